//! The link service over a Unix socket, seen by a gRPC client.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "whatever else comes fails the test"
)]

use std::collections::VecDeque;

use bytes::Bytes;
use muster_daemon::Config;
use muster_proto::{
    BrokerNode, View,
    link::{
        Ack, BrokerFrame, Hello, NotOwner, Position, Publish, Refusal, RefusalReason, Relay,
        Subscribe, Subscribed, Unsubscribe, WorkerFrame, broker_frame::Frame as Out,
        link_client::LinkClient,
    },
};
use tempfile::TempDir;
use tokio::{net::UnixListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use tonic::{
    Code,
    transport::{Channel, Endpoint},
};

use super::*;
use crate::{limits::Limits, table::Source};

mod links;
mod relay;

/// Longest a test waits for something that must come.
const PATIENCE: Duration = Duration::from_secs(20);
const CREDIT: u64 = 1 << 20;

struct Broker {
    table: Arc<Table>,
    links: Arc<Links>,
    view: View,
    client: LinkClient<Channel>,
    stop: CancellationToken,
    server: JoinHandle<Result<(), tonic::transport::Error>>,
    _dir: TempDir,
}

impl Broker {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("b.sock");
        let listener = Listener::Unix(UnixListener::bind(&path).unwrap());
        let config = Config::default();
        let table = Arc::new(Table::new(Limits::new(&config), 1000, Source::Nothing));
        let links = Arc::new(Links::default());
        let bytes_max = config.limits.message_bytes_max.as_usize();
        let service = LinkService::new(Arc::clone(&table), Arc::clone(&links), bytes_max);
        let stop = CancellationToken::new();
        let server = tokio::spawn(service.serve(listener, stop.clone().cancelled_owned()));
        let endpoint = Endpoint::from_shared(format!("unix:{}", path.display())).unwrap();
        let client =
            LinkClient::new(endpoint.connect().await.unwrap()).max_decoding_message_size(16 << 20);
        let mut broker = Self {
            table,
            links,
            view: View::default(),
            client,
            stop,
            server,
            _dir: dir,
        };
        broker.apply([(1, 1)]);
        broker
    }

    /// Applies a view with these (slot, incarnation); the broker itself is (1, 1).
    fn apply(&mut self, brokers: impl IntoIterator<Item = (u32, u64)>) {
        let node = |(slot, incarnation)| BrokerNode {
            slot,
            incarnation,
            address: "unix:/nowhere".into(),
        };
        self.view = View::next(&self.view, brokers.into_iter().map(node));
        self.table.apply(clock::now(), &self.view, 1, 1);
    }

    async fn link(&mut self, id: u64, credit_bytes: u64) -> WorkerSide {
        let hello = hello(id, credit_bytes, LINK_VERSION);
        WorkerSide::open(&mut self.client, hello).await.unwrap()
    }

    async fn credit(&mut self, link: u64) -> (mpsc::Sender<Credit>, Streaming<Credit>) {
        let (credit, outbound) = mpsc::channel(4);
        credit.send(Credit { link, bytes: 0 }).await.unwrap();
        let response = self.client.control(ReceiverStream::new(outbound)).await;
        (credit, response.unwrap().into_inner())
    }
}

struct WorkerSide {
    outbound: mpsc::Sender<WorkerBatch>,
    inbound: Streaming<BrokerBatch>,
    received: VecDeque<Out>,
}

impl WorkerSide {
    async fn open(client: &mut LinkClient<Channel>, first: Frame) -> Result<Self, Status> {
        let (outbound, batches) = mpsc::channel(16);
        let frames = vec![WorkerFrame { frame: Some(first) }];
        outbound.send(WorkerBatch { frames }).await.unwrap();
        let response = client.data(ReceiverStream::new(batches)).await?;
        Ok(Self {
            outbound,
            inbound: response.into_inner(),
            received: VecDeque::new(),
        })
    }

    async fn send(&self, frames: impl IntoIterator<Item = Frame>) {
        let frames = frames
            .into_iter()
            .map(|frame| WorkerFrame { frame: Some(frame) })
            .collect();
        self.outbound.send(WorkerBatch { frames }).await.unwrap();
    }

    async fn batch(&mut self) -> Result<Option<BrokerBatch>, Status> {
        timeout(PATIENCE, self.inbound.message())
            .await
            .expect("a batch within the patience of a test")
    }

    async fn next(&mut self) -> Out {
        loop {
            if let Some(frame) = self.received.pop_front() {
                return frame;
            }
            let batch = self.batch().await.unwrap().expect("the link stands");
            let frames = batch.frames.into_iter();
            self.received
                .extend(frames.filter_map(|BrokerFrame { frame }| frame));
        }
    }

    async fn next_relay(&mut self) -> Relay {
        match self.next().await {
            Out::Relay(relay) => relay,
            other => panic!("{other:?} instead of a relay"),
        }
    }

    async fn failure(&mut self) -> Status {
        loop {
            match self.batch().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("the link ended without a reason"),
                Err(status) => return status,
            }
        }
    }
}

fn hello(link: u64, credit_bytes: u64, version: u32) -> Frame {
    Frame::Hello(Hello {
        version,
        link,
        worker_slot: 1,
        worker_incarnation: 1,
        credit_bytes,
    })
}

const REQUEST: u64 = 7;

fn subscribe(channel: &'static str, after: Option<Position>) -> Frame {
    subscribe_at(channel, after, 1)
}

fn subscribe_at(channel: &'static str, after: Option<Position>, shard_epoch: u64) -> Frame {
    Frame::Subscribe(Subscribe {
        channel: Bytes::from_static(channel.as_bytes()),
        after,
        shard_epoch,
        request: REQUEST,
        attempt: 0,
    })
}

fn publish(seq: u64, channel: &'static str, data: &'static str) -> Publish {
    Publish {
        seq,
        channel: Bytes::from_static(channel.as_bytes()),
        data: Some(Bytes::from_static(data.as_bytes())),
        producer: Bytes::from_static(b"producer"),
        n: seq,
        shard_epoch: 1,
        age_ms: 0,
        attempt: 0,
    }
}

fn relay(channel: &'static str, offset: u64, data: &'static str) -> Out {
    Out::Relay(Relay {
        channel: Bytes::from_static(channel.as_bytes()),
        offset,
        data: Some(Bytes::from_static(data.as_bytes())),
    })
}

fn generation(subscribed: &Out) -> u64 {
    match subscribed {
        Out::Subscribed(Subscribed { position, .. }) => position.unwrap().generation,
        other => panic!("{other:?} instead of Subscribed"),
    }
}

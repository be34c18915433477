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
use crate::limits::Limits;

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
        let table = Arc::new(Table::new(Limits::new(&config), 1000));
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
        let link = WorkerSide::open(&mut self.client).await;
        link.send([hello(id, credit_bytes, LINK_VERSION)]).await;
        link
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
    async fn open(client: &mut LinkClient<Channel>) -> Self {
        let (outbound, batches) = mpsc::channel(16);
        let response = client.data(ReceiverStream::new(batches)).await.unwrap();
        Self {
            outbound,
            inbound: response.into_inner(),
            received: VecDeque::new(),
        }
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

fn subscribe(channel: &'static str, after: Option<Position>) -> Frame {
    Frame::Subscribe(Subscribe {
        channel: Bytes::from_static(channel.as_bytes()),
        after,
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

#[tokio::test]
async fn a_publication_is_acked_and_relayed_in_order_to_every_subscriber() {
    let mut broker = Broker::start().await;
    let mut first = broker.link(1, CREDIT).await;
    let mut second = broker.link(2, CREDIT).await;
    second.send([subscribe("a", None)]).await;
    let generation = generation(&second.next().await);

    let publications = (1..=3).map(|seq| Frame::Publish(publish(seq, "a", "\"x\"")));
    first
        .send([subscribe("a", None)].into_iter().chain(publications))
        .await;

    // The answers to publications overtake the rest of their turn.
    let ack = Out::Ack(Ack {
        first_seq: 1,
        last_seq: 3,
    });
    let subscribed = Out::Subscribed(Subscribed {
        channel: Bytes::from_static(b"a"),
        position: Some(Position {
            generation,
            offset: 0,
        }),
        recovered: true,
    });
    assert_eq!(first.next().await, ack);
    assert_eq!(first.next().await, subscribed);
    for offset in 1..=3 {
        assert_eq!(first.next().await, relay("a", offset, "\"x\""));
        assert_eq!(second.next().await, relay("a", offset, "\"x\""));
    }
}

#[tokio::test]
async fn absent_data_stays_absent_and_null_stays_null() {
    let mut broker = Broker::start().await;
    let mut link = broker.link(1, CREDIT).await;
    let absent = Publish {
        data: None,
        ..publish(1, "a", "")
    };
    let null = publish(2, "a", "null");
    link.send([
        subscribe("a", None),
        Frame::Publish(absent),
        Frame::Publish(null),
    ])
    .await;
    assert!(matches!(link.next().await, Out::Ack(_)));
    assert!(matches!(link.next().await, Out::Subscribed(_)));
    assert_eq!(link.next_relay().await.data, None);
    assert_eq!(
        link.next_relay().await.data,
        Some(Bytes::from_static(b"null"))
    );
}

#[tokio::test]
async fn a_publication_that_is_sent_again_on_another_link_is_acked_and_not_relayed() {
    let mut broker = Broker::start().await;
    let mut link = broker.link(1, CREDIT).await;
    link.send([Frame::Publish(publish(1, "a", "1"))]).await;
    assert!(matches!(link.next().await, Out::Ack(_)));

    let mut link = broker.link(2, CREDIT).await;
    let again = publish(1, "a", "1");
    let new = Publish {
        n: 2,
        ..publish(2, "a", "2")
    };
    link.send([
        subscribe("a", None),
        Frame::Publish(again),
        Frame::Publish(new),
    ])
    .await;
    let ack = Out::Ack(Ack {
        first_seq: 1,
        last_seq: 2,
    });
    assert_eq!(link.next().await, ack);
    assert!(matches!(link.next().await, Out::Subscribed(_)));
    assert_eq!(link.next().await, relay("a", 2, "2"));
}

#[tokio::test]
async fn a_publish_of_another_epoch_is_refused_and_not_relayed() {
    let mut broker = Broker::start().await;
    let mut link = broker.link(1, CREDIT).await;
    let early = Publish {
        shard_epoch: 0,
        ..publish(1, "a", "1")
    };
    let right = Publish {
        attempt: 1,
        ..publish(2, "a", "2")
    };
    link.send([
        subscribe("a", None),
        Frame::Publish(early),
        Frame::Publish(right),
    ])
    .await;
    let refusal = Out::Refusal(Refusal {
        seq: 1,
        reason: RefusalReason::WrongEpoch.into(),
    });
    assert_eq!(link.next().await, refusal);
    assert!(matches!(link.next().await, Out::Ack(_)));
    assert!(matches!(link.next().await, Out::Subscribed(_)));
    assert_eq!(link.next().await, relay("a", 1, "2"));
}

#[tokio::test]
async fn after_a_refused_publication_later_ones_wait_until_it_is_sent_again() {
    let mut broker = Broker::start().await;
    let mut link = broker.link(1, CREDIT).await;
    let publish = |seq, n, attempt| {
        Frame::Publish(Publish {
            n,
            shard_epoch: 3,
            attempt,
            ..publish(seq, "a", "1")
        })
    };
    let refusal = |seq| {
        Out::Refusal(Refusal {
            seq,
            reason: RefusalReason::WrongEpoch.into(),
        })
    };
    broker.apply([(2, 1)]);
    link.send([publish(1, 1, 0)]).await;
    assert_eq!(link.next().await, refusal(1));

    // The view arrives between two publications that were sent as one.
    broker.apply([(1, 1)]);
    link.send([publish(2, 2, 0), publish(3, 1, 1), publish(4, 2, 1)])
        .await;
    assert_eq!(link.next().await, refusal(2));
    let ack = Out::Ack(Ack {
        first_seq: 3,
        last_seq: 4,
    });
    assert_eq!(link.next().await, ack);
}

#[tokio::test]
async fn a_shard_that_the_view_takes_away_refuses_and_forgets_its_subscriptions() {
    let mut broker = Broker::start().await;
    let mut link = broker.link(1, CREDIT).await;
    link.send([subscribe("a", None)]).await;
    let before = generation(&link.next().await);

    broker.apply([(2, 1)]);
    link.send([subscribe("a", None), Frame::Publish(publish(1, "a", "1"))])
        .await;
    assert!(matches!(link.next().await, Out::Refusal(_)));
    let not_owner = Out::NotOwner(NotOwner {
        channel: Bytes::from_static(b"a"),
        reason: RefusalReason::Unspecified.into(),
    });
    assert_eq!(link.next().await, not_owner);

    // Back again, it is another log, and nobody is subscribed.
    broker.apply([(1, 1)]);
    let again = Publish {
        shard_epoch: 3,
        attempt: 1,
        ..publish(2, "a", "1")
    };
    link.send([Frame::Publish(again)]).await;
    assert!(matches!(link.next().await, Out::Ack(_)));
    let after = Position {
        generation: before,
        offset: 0,
    };
    link.send([subscribe("a", Some(after))]).await;
    let Out::Subscribed(subscribed) = link.next().await else {
        panic!("not subscribed");
    };
    assert!(!subscribed.recovered);
    assert_ne!(subscribed.position.unwrap().generation, before);
    assert_eq!(link.next().await, relay("a", 1, "1"));
}

#[tokio::test]
async fn without_credit_nothing_is_relayed_and_with_it_nothing_is_missing() {
    let mut broker = Broker::start().await;
    let mut slow = broker.link(1, 1).await;
    let mut fast = broker.link(2, CREDIT).await;
    slow.send([subscribe("a", None)]).await;
    slow.next().await;
    let publications = (1..=100).map(|seq| Frame::Publish(publish(seq, "a", "\"ten bytes\"")));
    fast.send([subscribe("a", None)].into_iter().chain(publications))
        .await;
    while fast.next().await != relay("a", 100, "\"ten bytes\"") {}

    // The first publication exceeded the credit, which let it through.
    assert_eq!(slow.next_relay().await.offset, 1);
    let (credit, _end) = broker.credit(1).await;
    for bytes in [1, 200, 1 << 20] {
        credit.send(Credit { link: 1, bytes }).await.unwrap();
    }
    for offset in 2..=100 {
        assert_eq!(slow.next_relay().await.offset, offset);
    }
    fast.send([Frame::Publish(publish(101, "a", "1"))]).await;
    assert_eq!(slow.next().await, relay("a", 101, "1"));
}

#[tokio::test]
async fn credit_that_comes_before_its_link_waits_for_it_and_ends_with_it() {
    let mut broker = Broker::start().await;
    let (credit, outbound) = mpsc::channel(4);
    let first = Credit {
        link: 7,
        bytes: 100,
    };
    credit.send(first).await.unwrap();
    let stream = ReceiverStream::new(outbound);
    let mut credits = broker.client.control(stream).await.unwrap().into_inner();

    let mut link = broker.link(7, 0).await;
    link.send([subscribe("a", None), Frame::Publish(publish(1, "a", "1"))])
        .await;
    while link.next().await != relay("a", 1, "1") {}
    drop(link);
    let end = timeout(PATIENCE, credits.message()).await.unwrap();
    assert_eq!(end.unwrap(), None);
}

#[tokio::test]
async fn a_link_that_does_not_open_in_time_is_not_found() {
    let links = Links::default();
    assert!(links.get(1, Duration::ZERO).await.is_none());
}

#[tokio::test]
async fn a_range_is_read_after_a_position_up_to_an_offset() {
    let mut broker = Broker::start().await;
    let mut link = broker.link(1, CREDIT).await;
    let publications = (1..=5).map(|seq| Frame::Publish(publish(seq, "a", "1")));
    link.send(publications.chain([subscribe("a", None)])).await;
    link.next().await;
    let generation = generation(&link.next().await);

    let request = ReadRequest {
        channel: Bytes::from_static(b"a"),
        after: Some(Position {
            generation,
            offset: 1,
        }),
        to_offset: 4,
        bytes_max: 2,
    };
    let response = broker.client.read(request.clone()).await.unwrap();
    let ReadResponse {
        head,
        complete,
        publications,
    } = response.into_inner();
    let offsets: Vec<u64> = publications.iter().map(|relay| relay.offset).collect();
    assert_eq!((head.unwrap().offset, complete), (5, true));
    assert_eq!(offsets, [2, 3], "two bytes are two publications");

    broker.apply([(2, 1)]);
    let status = broker.client.read(request).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
}

#[tokio::test]
async fn a_worker_of_another_version_is_refused_with_both_versions() {
    let mut broker = Broker::start().await;
    let mut link = WorkerSide::open(&mut broker.client).await;
    link.send([hello(1, CREDIT, 9)]).await;
    let status = link.failure().await;
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains('9') && status.message().contains('1'));
}

#[tokio::test]
async fn a_frame_that_breaks_the_protocol_ends_its_link_and_no_other() {
    let mut broker = Broker::start().await;
    let mut other = broker.link(99, CREDIT).await;
    let long = Frame::Subscribe(Subscribe {
        channel: vec![b'x'; 513].into(),
        after: None,
    });
    let not_utf8 = Frame::Unsubscribe(Unsubscribe {
        channel: Bytes::from_static(b"\xff"),
    });
    let cases = [
        (Frame::Publish(publish(2, "a", "1")), "publish.seq"),
        (long, "subscribe.channel"),
        (not_utf8, "unsubscribe.channel"),
        (hello(1, 0, LINK_VERSION), "hello"),
    ];
    for (id, (frame, field)) in (1..).zip(cases) {
        let mut link = broker.link(id, CREDIT).await;
        link.send([frame]).await;
        let status = link.failure().await;
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().starts_with(field), "{status}");
    }
    let mut link = WorkerSide::open(&mut broker.client).await;
    link.send([subscribe("a", None)]).await;
    assert_eq!(link.failure().await.code(), Code::InvalidArgument);
    let mut link = broker.link(99, CREDIT).await;
    assert_eq!(link.failure().await.code(), Code::AlreadyExists);

    other.send([subscribe("a", None)]).await;
    assert!(matches!(other.next().await, Out::Subscribed(_)));
}

#[tokio::test]
async fn a_malformed_publication_is_refused_and_the_link_goes_on() {
    let mut broker = Broker::start().await;
    let mut link = broker.link(1, CREDIT).await;
    let no_producer = Publish {
        producer: Bytes::new(),
        ..publish(1, "a", "1")
    };
    let bad_channel = Publish {
        channel: Bytes::from_static(b"\xff"),
        ..publish(2, "a", "1")
    };
    let too_long = Publish {
        data: Some(vec![b'1'; (1 << 20) + 1].into()),
        ..publish(3, "a", "1")
    };
    for malformed in [no_producer, bad_channel, too_long] {
        let seq = malformed.seq;
        link.send([Frame::Publish(malformed)]).await;
        let refusal = Refusal {
            seq,
            reason: RefusalReason::Malformed.into(),
        };
        assert_eq!(link.next().await, Out::Refusal(refusal));
    }
    link.send([Frame::Publish(publish(4, "a", "1"))]).await;
    assert!(matches!(link.next().await, Out::Ack(_)));
}

#[tokio::test]
async fn the_largest_legal_publication_passes() {
    let mut broker = Broker::start().await;
    let mut link = broker.link(1, CREDIT).await;
    let channel = Bytes::from("x".repeat(512));
    let data = Bytes::from(vec![b'1'; 1 << 20]);
    let subscribe = Frame::Subscribe(Subscribe {
        channel: channel.clone(),
        after: None,
    });
    let publish = Publish {
        channel,
        data: Some(data.clone()),
        producer: vec![b'p'; 128].into(),
        ..publish(1, "", "")
    };
    link.send([subscribe, Frame::Publish(publish)]).await;
    link.next().await;
    link.next().await;
    assert_eq!(link.next_relay().await.data, Some(data));
}

#[tokio::test]
async fn a_worker_that_ends_its_stream_gets_what_is_due_and_leaves_nothing_behind() {
    let mut broker = Broker::start().await;
    let mut link = broker.link(1, CREDIT).await;
    link.send([subscribe("a", None), Frame::Publish(publish(1, "a", "1"))])
        .await;
    let WorkerSide { outbound, .. } = &mut link;
    *outbound = mpsc::channel(1).0;
    while link.next().await != relay("a", 1, "1") {}
    assert_eq!(link.batch().await.unwrap(), None);
    assert_eq!(broker.links.len(), 0);
}

#[tokio::test]
async fn a_broker_that_stops_ends_every_link_and_tells_why() {
    let mut broker = Broker::start().await;
    let mut link = broker.link(1, CREDIT).await;
    link.send([subscribe("a", None)]).await;
    link.next().await;
    broker.stop.cancel();
    broker.links.stop(clock::now());
    let status = link.failure().await;
    assert_eq!(status.code(), Code::Unavailable);
    drop((link, broker.client));
    let served = timeout(PATIENCE, broker.server).await.unwrap();
    served.unwrap().unwrap();
}

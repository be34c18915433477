//! Links: this worker's gRPC streams to the brokers. The only file of this
//! crate that sees tonic.

use std::time::Duration;

use muster_daemon::grpc;
use muster_proto::{
    BrokerNode, LINK_VERSION,
    link::{
        BrokerBatch, Credit, Hello, ReadRequest, ReadResponse, WorkerBatch, WorkerFrame,
        link_client::LinkClient, worker_frame::Frame,
    },
};
use rand::{Rng, RngExt as _};
use tokio::{sync::mpsc, task::JoinSet};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Code, Status, Streaming,
    transport::{Channel, Endpoint},
};
use tracing::{debug, info, warn};

/// Batches handed to a link and not yet taken by the stream. When full, the
/// router keeps what is queued and offers it again in its next turn.
const BATCHES_CAP: usize = 256;
/// Credits on their way; a full queue adds them up.
const CREDITS_CAP: usize = 16;
/// Reads handed to a link and not yet under way, and those under way.
const READS_CAP: usize = 16;
const READS_MAX: usize = 32;
/// Bytes of an answer to a read: what a broker gives at most, beside one frame.
const READ_BYTES_MAX: usize = 2 << 20;
/// HTTP/2 windows: the default of 64 KiB costs three times the CPU.
const STREAM_WINDOW_BYTES: u32 = 8 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A broker that restarts is back within milliseconds.
const RETRY_MIN: Duration = Duration::from_millis(5);
const RETRY_MAX: Duration = Duration::from_millis(250);

/// What happens on the links of a worker.
#[derive(Debug)]
pub(crate) enum LinkEvent {
    /// The broker has accepted the link.
    Up {
        broker: u32,
        incarnation: u64,
        link: LinkSender,
    },
    Batch {
        broker: u32,
        incarnation: u64,
        batch: BrokerBatch,
    },
    /// A read is answered, or the broker has no answer now.
    Read {
        id: u64,
        response: Option<ReadResponse>,
    },
    Down {
        broker: u32,
        incarnation: u64,
    },
}

/// A read of what a channel keeps.
#[derive(Debug)]
pub(crate) struct LinkRead {
    pub(crate) id: u64,
    pub(crate) request: ReadRequest,
}

/// The sending half of a link that stands.
#[derive(Debug)]
pub(crate) struct LinkSender {
    batches: mpsc::Sender<WorkerBatch>,
    credits: mpsc::Sender<Credit>,
    reads: mpsc::Sender<LinkRead>,
    link: u64,
    /// Bytes handled and not yet credited.
    owed_bytes: u64,
    /// Credits are sent in steps of this.
    step_bytes: u64,
}

impl LinkSender {
    /// Room for a batch; `None` while the stream is behind.
    pub(crate) fn reserve(&self) -> Option<mpsc::Permit<'_, WorkerBatch>> {
        self.batches.try_reserve().ok()
    }

    /// Room for a read; `None` while too many are under way.
    pub(crate) fn reserve_read(&self) -> Option<mpsc::Permit<'_, LinkRead>> {
        self.reads.try_reserve().ok()
    }

    /// The worker has handled this many bytes: the broker may send as many.
    pub(crate) fn credit(&mut self, bytes: u64) {
        self.owed_bytes += bytes;
        if self.owed_bytes >= self.step_bytes {
            let credit = Credit {
                link: self.link,
                bytes: self.owed_bytes,
            };
            if self.credits.try_send(credit).is_ok() {
                self.owed_bytes = 0;
            }
        }
    }
}

/// What all links of a worker have in common.
#[derive(Debug, Clone)]
pub(crate) struct LinkSettings {
    pub(crate) worker_slot: u32,
    pub(crate) worker_incarnation: u64,
    pub(crate) credit_bytes: u64,
    /// Longest frame either side may send.
    pub(crate) frame_bytes_max: usize,
}

/// Keeps a link to a broker's incarnation until it is dropped.
pub(crate) async fn run_link(
    node: BrokerNode,
    settings: LinkSettings,
    events: mpsc::Sender<LinkEvent>,
    mut rng: impl Rng,
) {
    let mut pause = RETRY_MIN;
    loop {
        match connect(&node, &settings, &events, rng.random()).await {
            Ok(()) => {
                info!(broker = node.slot, "Lost the link to a broker.");
                pause = RETRY_MIN;
            }
            Err(error) if error.code() == Code::FailedPrecondition => {
                warn!(broker = node.slot, %error, "A broker refused the link.");
                pause = RETRY_MAX;
            }
            Err(error) => debug!(broker = node.slot, %error, "A broker cannot be reached yet."),
        }
        tokio::time::sleep(rng.random_range(pause / 2..=pause)).await;
        pause = (pause * 2).min(RETRY_MAX);
    }
}

/// The receiving half of a link that stands.
struct LinkReceiver {
    incoming: Streaming<BrokerBatch>,
    /// Carries nothing; its end is the link's.
    control: Streaming<Credit>,
    reads: mpsc::Receiver<LinkRead>,
    /// Answers to reads, which may be long.
    reader: LinkClient<Channel>,
}

/// Runs one link from connecting to its end; an error means that it never stood.
async fn connect(
    node: &BrokerNode,
    settings: &LinkSettings,
    events: &mpsc::Sender<LinkEvent>,
    link: u64,
) -> Result<(), Status> {
    let (broker, incarnation) = (node.slot, node.incarnation);
    let (sender, receiver) = open(node, settings, link).await?;
    let up = LinkEvent::Up {
        broker,
        incarnation,
        link: sender,
    };
    if events.send(up).await.is_ok() {
        pump(receiver, node, events).await;
        let _ = events
            .send(LinkEvent::Down {
                broker,
                incarnation,
            })
            .await;
    }
    Ok(())
}

async fn open(
    node: &BrokerNode,
    settings: &LinkSettings,
    link: u64,
) -> Result<(LinkSender, LinkReceiver), Status> {
    let tune = |endpoint: Endpoint| {
        endpoint
            .connect_timeout(CONNECT_TIMEOUT)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .tcp_nodelay(true)
    };
    let channel = grpc::connect(&node.address, tune)
        .await
        .map_err(|error| Status::unavailable(error.to_string()))?;
    let mut client = LinkClient::new(channel)
        .max_decoding_message_size(settings.frame_bytes_max)
        .max_encoding_message_size(settings.frame_bytes_max);

    let (batches, outgoing) = mpsc::channel(BATCHES_CAP);
    let hello = Frame::Hello(Hello {
        version: LINK_VERSION,
        link,
        worker_slot: settings.worker_slot,
        worker_incarnation: settings.worker_incarnation,
        credit_bytes: settings.credit_bytes,
    });
    let _ = batches.try_send(WorkerBatch {
        frames: vec![WorkerFrame { frame: Some(hello) }],
    });
    let incoming = client
        .data(ReceiverStream::new(outgoing))
        .await?
        .into_inner();

    let (credits, granted) = mpsc::channel(CREDITS_CAP);
    let _ = credits.try_send(Credit { link, bytes: 0 });
    let control = client
        .control(ReceiverStream::new(granted))
        .await?
        .into_inner();

    let (read_sender, reads) = mpsc::channel(READS_CAP);
    let reader = client.max_decoding_message_size(settings.frame_bytes_max + READ_BYTES_MAX);
    let step_bytes = (settings.credit_bytes / 8).max(1);
    let sender = LinkSender {
        batches,
        credits,
        reads: read_sender,
        link,
        owed_bytes: 0,
        step_bytes,
    };
    let receiver = LinkReceiver {
        incoming,
        control,
        reads,
        reader,
    };
    Ok((sender, receiver))
}

/// Passes batches on until the link ends.
async fn pump(mut receiver: LinkReceiver, node: &BrokerNode, events: &mpsc::Sender<LinkEvent>) {
    let (broker, incarnation) = (node.slot, node.incarnation);
    // They end with the link.
    let mut reading = JoinSet::new();
    loop {
        let received = tokio::select! {
            received = receiver.incoming.message() => received,
            _ = receiver.control.message() => Ok(None),
            Some(read) = receiver.reads.recv(), if reading.len() < READS_MAX => {
                let (reader, events) = (receiver.reader.clone(), events.clone());
                reading.spawn(answer_read(reader, read, events));
                continue;
            }
            Some(_) = reading.join_next() => continue,
        };
        match received {
            Ok(Some(batch)) => {
                // The worker's loop never waits for a link, so this wait ends.
                let event = LinkEvent::Batch {
                    broker,
                    incarnation,
                    batch,
                };
                if events.send(event).await.is_err() {
                    return;
                }
            }
            Ok(None) => return,
            Err(error) => {
                debug!(broker, %error, "A link ended with an error.");
                return;
            }
        }
    }
}

async fn answer_read(
    mut reader: LinkClient<Channel>,
    LinkRead { id, request }: LinkRead,
    events: mpsc::Sender<LinkEvent>,
) {
    let response = match reader.read(request).await {
        Ok(response) => Some(response.into_inner()),
        Err(error) => {
            debug!(%error, "A broker did not answer a read; it is asked again.");
            None
        }
    };
    // If nobody takes it, the worker is ending.
    let _ = events.send(LinkEvent::Read { id, response }).await;
}

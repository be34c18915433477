//! The link service: gRPC streams outside, links and shards inside. The only
//! file that sees tonic.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use muster_daemon::{clock, grpc};
use muster_proto::{
    BATCH_BYTES_MAX, LINK_VERSION, ShardId,
    link::{
        BrokerBatch, Credit, Hello, ReadRequest, ReadResponse, WorkerBatch,
        link_server::{Link as LinkRpc, LinkServer},
        worker_frame::Frame,
    },
};
use rand::rngs::StdRng;
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tokio_util::task::TaskTracker;
use tonic::{
    Request, Response, Status, Streaming,
    transport::{Server, server::TcpIncoming},
};
use tracing::info;

use crate::{
    error::LinkError,
    intake::{Intake, check_channel},
    link::{Gate, Link, LinkEnd, Step},
    links::Links,
    listen::Listener,
    table::{NotOpen, Table},
    turn::Turn,
};

/// Bytes a worker may send on one stream before it hears from us. Windows of
/// 64 KiB, the protocol's default, cost a third of the throughput.
const STREAM_WINDOW_BYTES: u32 = 8 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
const HTTP_FRAME_BYTES_MAX: u32 = 256 << 10;
/// What a publication needs in a batch beside channel and data, at most.
const ENVELOPE_BYTES_MAX: usize = 4 << 10;
/// Between hosts: a connection whose other end does not answer is closed.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Longest a `Data` stream may take until its first frame.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a `Control` stream may be ahead of its `Data` stream.
const OPEN_WAIT: Duration = Duration::from_secs(5);
/// Batches of one worker taken in one turn, when they are there.
const BATCHES_PER_TURN: usize = 8;
/// Shards from which an ended link is removed before others have their turn.
const SHARDS_PER_TURN: usize = 8;

/// Serves the links of a broker.
#[derive(Debug, Clone)]
pub(crate) struct LinkService {
    table: Arc<Table>,
    links: Arc<Links>,
    /// Longest data of one publication, in bytes.
    data_bytes_max: usize,
    /// When the monotonic clock was 0; read once, so that a publication's time
    /// does not change.
    boot_unix_ms: i64,
    tasks: TaskTracker,
}

impl LinkService {
    pub(crate) fn new(table: Arc<Table>, links: Arc<Links>, data_bytes_max: usize) -> Self {
        Self {
            table,
            links,
            data_bytes_max,
            boot_unix_ms: clock::boot_unix_millis(),
            tasks: TaskTracker::new(),
        }
    }

    /// Accepts links on `listener` until `shutdown` is ready and all links have
    /// ended.
    pub(crate) async fn serve(
        self,
        listener: Listener,
        shutdown: impl Future<Output = ()>,
    ) -> Result<(), tonic::transport::Error> {
        let batch_bytes_max = BATCH_BYTES_MAX + self.data_bytes_max + ENVELOPE_BYTES_MAX;
        let tasks = self.tasks.clone();
        let rpc = LinkServer::new(self).max_decoding_message_size(batch_bytes_max);
        let server = Server::builder()
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_frame_size(HTTP_FRAME_BYTES_MAX);
        match listener {
            Listener::Unix(listener) => {
                let incoming = grpc::incoming(listener);
                server
                    .serve_with_incoming_shutdown(rpc, incoming, shutdown)
                    .await?;
            }
            Listener::Tcp(listener) => {
                let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
                server
                    .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
                    .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
                    .serve_with_incoming_shutdown(rpc, incoming, shutdown)
                    .await?;
            }
        }
        tasks.close();
        tasks.wait().await;
        Ok(())
    }
}

#[tonic::async_trait]
impl LinkRpc for LinkService {
    type DataStream = DataStream;
    type ControlStream = ReceiverStream<Result<Credit, Status>>;

    async fn data(
        &self,
        request: Request<Streaming<WorkerBatch>>,
    ) -> Result<Response<DataStream>, Status> {
        let link = Arc::new(Link::new(clock::now()));
        let mut reader = Reader {
            inbound: request.into_inner(),
            intake: Intake::new(Arc::clone(&link), self.data_bytes_max),
            link: Arc::clone(&link),
            service: self.clone(),
            rng: rand::make_rng(),
        };
        let opened = match timeout(HELLO_TIMEOUT, reader.hello()).await {
            Ok(opened) => opened,
            Err(_) => Err(LinkError::HelloTimeout),
        };
        let (hello, first) = opened.inspect_err(|error| info!(%error, "Refused a link."))?;
        self.tasks.spawn(reader.run(hello, first));
        Ok(Response::new(DataStream {
            link,
            table: Arc::clone(&self.table),
            ended: false,
        }))
    }

    async fn control(
        &self,
        request: Request<Streaming<Credit>>,
    ) -> Result<Response<Self::ControlStream>, Status> {
        let (outcome, outbound) = mpsc::channel(1);
        let links = Arc::clone(&self.links);
        self.tasks.spawn(async move {
            if let Err(status) = take_credit(&links, request.into_inner()).await {
                // Nobody to tell if the worker is gone.
                let _ = outcome.send(Err(status)).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(outbound)))
    }

    async fn read(&self, request: Request<ReadRequest>) -> Result<Response<ReadResponse>, Status> {
        let request = request.into_inner();
        check_channel(&request.channel)
            .map_err(|error| Status::invalid_argument(format!("channel: {error}")))?;
        match self.table.read(&request, self.boot_unix_ms) {
            Ok(response) => Ok(Response::new(response)),
            Err(NotOpen(shard)) => Err(Status::failed_precondition(format!(
                "shard {shard} is not open here"
            ))),
        }
    }
}

/// The sending side of a link. It pulls: what a link that is behind has to get
/// stays in the log until the connection takes it.
#[derive(Debug)]
pub(crate) struct DataStream {
    link: Arc<Link>,
    table: Arc<Table>,
    ended: bool,
}

impl Stream for DataStream {
    type Item = Result<BrokerBatch, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let now = clock::now();
        loop {
            match self.link.next_step(now, cx.waker()) {
                Step::Send(batch) => return Poll::Ready(Some(Ok(batch))),
                Step::Resume(shard, channel) => {
                    let mut turn = Turn::new(now);
                    self.table.resume(&mut turn, &self.link, shard, &channel);
                    self.table.count(&turn);
                }
                Step::Wait => return Poll::Pending,
                Step::End(LinkEnd::Finished) => {
                    self.ended = true;
                    return Poll::Ready(None);
                }
                Step::End(LinkEnd::Failed(error)) => {
                    self.ended = true;
                    return Poll::Ready(Some(Err(error.into())));
                }
            }
        }
    }
}

impl Drop for DataStream {
    fn drop(&mut self) {
        self.link
            .end(&mut Turn::new(clock::now()), LinkEnd::Finished);
    }
}

/// The receiving side of a link, a task of its own so that a worker that does
/// not read is read nevertheless.
struct Reader {
    inbound: Streaming<WorkerBatch>,
    intake: Intake,
    link: Arc<Link>,
    service: LinkService,
    rng: StdRng,
}

/// What there is to read.
enum Input {
    Batch(WorkerBatch),
    Nothing,
    End,
}

impl Reader {
    /// Opens the link with the first frame; returns that and the rest of the
    /// first batch.
    async fn hello(&mut self) -> Result<(Hello, WorkerBatch), LinkError> {
        let Input::Batch(mut batch) = self.read().await? else {
            return Err(LinkError::HelloMissing);
        };
        if batch.frames.is_empty() {
            return Err(LinkError::HelloMissing);
        }
        let Some(Frame::Hello(hello)) = batch.frames.remove(0).frame else {
            return Err(LinkError::HelloMissing);
        };
        if hello.version != LINK_VERSION {
            let theirs = hello.version;
            return Err(LinkError::WrongVersion { theirs });
        }
        let link = Arc::clone(&self.link);
        link.add_credit(&mut Turn::new(clock::now()), hello.credit_bytes);
        self.service.links.open(hello.link, link)?;
        Ok((hello, batch))
    }

    async fn run(mut self, hello: Hello, first: WorkerBatch) {
        // The owner of this task is the link: however it ends, so does the link.
        let _end = EndOnDrop(Arc::clone(&self.link));
        let (id, worker, incarnation) = (hello.link, hello.worker_slot, hello.worker_incarnation);
        info!(link = id, worker, incarnation, "A link has opened.");
        let end = match self.serve(first).await {
            Ok(()) => LinkEnd::Finished,
            Err(error) => LinkEnd::Failed(error),
        };
        self.service.links.close(id);
        match self.link.end(&mut Turn::new(clock::now()), end) {
            LinkEnd::Finished => info!(link = id, worker, incarnation, "A link has ended."),
            LinkEnd::Failed(error) => {
                info!(link = id, worker, incarnation, %error, "A link has ended.");
            }
        }
        for shard in ShardId::all() {
            let table = &self.service.table;
            table.remove_link(clock::now(), &self.link, shard);
            if shard.index() % SHARDS_PER_TURN == 0 {
                tokio::task::yield_now().await;
            }
        }
    }

    async fn serve(&mut self, first: WorkerBatch) -> Result<(), LinkError> {
        let mut input = Input::Batch(first);
        while let Input::Batch(batch) = input {
            self.turn(batch).await?;
            // The links that the turn has woken come first.
            tokio::task::yield_now().await;
            input = self.read().await?;
        }
        Ok(())
    }

    /// Handles `batch` and what else is there already, then wakes the links
    /// concerned. Waits for nothing.
    async fn turn(&mut self, batch: WorkerBatch) -> Result<(), LinkError> {
        let mut turn = Turn::new(clock::now());
        let mut outcome = self.handle(&mut turn, batch);
        for _ in 1..BATCHES_PER_TURN {
            if outcome.is_err() {
                break;
            }
            outcome = match self.read_ready().await {
                Ok(Input::Batch(batch)) => self.handle(&mut turn, batch),
                Ok(Input::Nothing | Input::End) => break,
                Err(error) => Err(error),
            };
        }
        let table = &self.service.table;
        for shard in table.commit(&mut turn) {
            let table = Arc::clone(table);
            self.service
                .tasks
                .spawn_blocking(move || table.sync(shard, clock::now));
        }
        table.count(&turn);
        outcome
    }

    fn handle(&mut self, turn: &mut Turn, batch: WorkerBatch) -> Result<(), LinkError> {
        let table = &self.service.table;
        self.intake.handle(turn, &mut self.rng, table, batch)
    }

    /// The next batch. Cancel-safe.
    async fn read(&mut self) -> Result<Input, LinkError> {
        poll_fn(|cx| self.poll_read(cx)).await
    }

    /// The next batch if there is one.
    async fn read_ready(&mut self) -> Result<Input, LinkError> {
        poll_fn(|cx| match self.poll_read(cx) {
            Poll::Ready(input) => Poll::Ready(input),
            Poll::Pending => Poll::Ready(Ok(Input::Nothing)),
        })
        .await
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<Input, LinkError>> {
        match self.link.gate(cx.waker()) {
            Gate::Open => {}
            Gate::Paused => return Poll::Pending,
            Gate::Ended => return Poll::Ready(Ok(Input::End)),
        }
        let input = match ready!(Pin::new(&mut self.inbound).poll_next(cx)) {
            Some(Ok(batch)) => Ok(Input::Batch(batch)),
            Some(Err(status)) => Err(LinkError::Unreadable {
                reason: status.message().into(),
            }),
            None => Ok(Input::End),
        };
        Poll::Ready(input)
    }
}

struct EndOnDrop(Arc<Link>);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.end(&mut Turn::new(clock::now()), LinkEnd::Finished);
    }
}

/// Adds the credit that comes in on a `Control` stream to its link, until one
/// of them ends.
async fn take_credit(links: &Links, mut inbound: Streaming<Credit>) -> Result<(), Status> {
    let Some(first) = inbound.message().await? else {
        return Ok(());
    };
    let Some(link) = links.get(first.link, OPEN_WAIT).await else {
        let id = first.link;
        return Err(Status::not_found(format!(
            "credit.link: no link {id:#x} is open"
        )));
    };
    let mut credit = first;
    loop {
        if credit.link != first.link {
            return Err(LinkError::CreditLinkChanged.into());
        }
        link.add_credit(&mut Turn::new(clock::now()), credit.bytes);
        let next = poll_fn(|cx| match link.gate(cx.waker()) {
            Gate::Ended => Poll::Ready(None),
            Gate::Open | Gate::Paused => Pin::new(&mut inbound).poll_next(cx),
        });
        match next.await {
            Some(next) => credit = next?,
            None => return Ok(()),
        }
    }
}

impl From<LinkError> for Status {
    fn from(error: LinkError) -> Self {
        let message = error.to_string();
        match error {
            LinkError::WrongVersion { .. } => Self::failed_precondition(message),
            LinkError::HelloMissing
            | LinkError::HelloRepeated
            | LinkError::Unreadable { .. }
            | LinkError::FrameEmpty
            | LinkError::SeqNotConsecutive { .. }
            | LinkError::Channel { .. }
            | LinkError::CreditLinkChanged => Self::invalid_argument(message),
            LinkError::LinkIdTaken => Self::already_exists(message),
            LinkError::HelloTimeout | LinkError::Stuck => Self::deadline_exceeded(message),
            LinkError::Stopping => Self::unavailable(message),
        }
    }
}

#[cfg(test)]
mod tests;

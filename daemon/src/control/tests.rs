//! A node against an orchestrator that comes, goes and stands still.

use std::{path::Path, pin::Pin};

use muster_proto::control::{
    Heartbeat, Role, View,
    nodes_server::{Nodes, NodesServer},
};
use tokio::{net::UnixListener, task::JoinHandle};
use tokio_stream::{
    Stream, StreamExt as _,
    wrappers::{ReceiverStream, UnixListenerStream},
};
use tonic::{Request, Response, Status, codegen::async_trait, transport::Server};

use super::*;

/// One stream as the orchestrator sees it.
struct Joined {
    reports: Streaming<NodeReport>,
    commands: mpsc::Sender<Result<NodeCommand, Status>>,
}

impl Joined {
    async fn next(&mut self) -> Report {
        let report = self.reports.message().await.unwrap().unwrap();
        report.report.unwrap()
    }

    async fn command(&self, command: Command) {
        let command = NodeCommand {
            command: Some(command),
        };
        self.commands.send(Ok(command)).await.unwrap();
    }
}

struct Service {
    streams: mpsc::Sender<Joined>,
}

#[async_trait]
impl Nodes for Service {
    type JoinStream = Pin<Box<dyn Stream<Item = Result<NodeCommand, Status>> + Send>>;

    async fn join(
        &self,
        request: Request<Streaming<NodeReport>>,
    ) -> Result<Response<Self::JoinStream>, Status> {
        let (commands, outgoing) = mpsc::channel(16);
        let reports = request.into_inner();
        let stream = Joined { reports, commands };
        self.streams.send(stream).await.unwrap();
        let outgoing = ReceiverStream::new(outgoing).map(|command| command);
        Ok(Response::new(Box::pin(outgoing)))
    }
}

struct Orchestrator {
    streams: mpsc::Receiver<Joined>,
    task: JoinHandle<()>,
}

impl Orchestrator {
    fn start(socket: &Path) -> Self {
        let (sender, streams) = mpsc::channel(4);
        let listener = UnixListener::bind(socket).unwrap();
        let service = NodesServer::new(Service { streams: sender });
        let connections = UnixListenerStream::new(listener);
        let task = tokio::spawn(async move {
            let served = Server::builder().serve_with_incoming(service, connections);
            served.await.unwrap();
        });
        Self { streams, task }
    }

    async fn stream(&mut self) -> Joined {
        self.streams.recv().await.unwrap()
    }

    /// Dies, as after SIGKILL: its connections break.
    async fn kill(self, socket: &Path, stream: Joined) {
        drop(stream);
        self.task.abort();
        // Aborted, which is the point.
        let _ = self.task.await;
        std::fs::remove_file(socket).unwrap();
    }
}

fn hello() -> Hello {
    Hello {
        version: 1,
        role: Role::Worker.into(),
        slot: 3,
        incarnation: 7,
        ..Hello::default()
    }
}

fn view(epoch: u64) -> Command {
    Command::View(View {
        epoch,
        ..View::default()
    })
}

#[tokio::test]
async fn a_node_says_hello_first_and_then_carries_reports_and_commands() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let mut orchestrator = Orchestrator::start(&socket);
    let (mut handle, task) = control(socket, hello());
    let task = tokio::spawn(task);
    let mut stream = orchestrator.stream().await;
    assert_eq!(stream.next().await, Report::Hello(hello()));
    stream.command(view(5)).await;
    assert_eq!(handle.commands.recv().await, Some(view(5)));
    // A heartbeat counts only once the stream stands, which it now does.
    let heartbeat = Report::Heartbeat(Heartbeat::default());
    handle.reports.send(heartbeat.clone()).await.unwrap();
    assert_eq!(stream.next().await, heartbeat);
    task.abort();
}

#[tokio::test]
async fn after_a_restart_of_the_orchestrator_the_node_repeats_what_counts() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let mut orchestrator = Orchestrator::start(&socket);
    let (mut handle, task) = control(socket.clone(), hello());
    let task = tokio::spawn(task);
    let mut stream = orchestrator.stream().await;
    stream.next().await;
    stream.command(view(5)).await;
    stream.command(view(6)).await;
    handle.commands.recv().await.unwrap();
    handle.commands.recv().await.unwrap();
    let applied = Report::ViewApplied(ViewApplied { epoch: 5 });
    handle.reports.send(applied.clone()).await.unwrap();
    assert_eq!(stream.next().await, applied);
    orchestrator.kill(&socket, stream).await;

    // Reported while nobody listens.
    handle.reports.send(Report::Ready(Ready {})).await.unwrap();
    let late = Report::Reply(Reply::default());
    handle.reports.send(late).await.unwrap();

    let mut orchestrator = Orchestrator::start(&socket);
    let mut stream = orchestrator.stream().await;
    let mut again = hello();
    again.epoch = 6;
    assert_eq!(stream.next().await, Report::Hello(again));
    assert_eq!(stream.next().await, applied);
    assert_eq!(stream.next().await, Report::Ready(Ready {}));
    task.abort();
}

#[tokio::test]
async fn a_node_never_waits_for_an_orchestrator_that_is_away() {
    let dir = tempfile::tempdir().unwrap();
    let (handle, task) = control(dir.path().join("nobody"), hello());
    let task = tokio::spawn(task);
    for _ in 0..10 * REPORTS_CAP {
        let heartbeat = Report::Heartbeat(Heartbeat::default());
        handle.reports.send(heartbeat).await.unwrap();
    }
    task.abort();
}

#[tokio::test]
async fn a_node_that_takes_no_commands_can_still_report() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let mut orchestrator = Orchestrator::start(&socket);
    let (handle, task) = control(socket, hello());
    let task = tokio::spawn(task);
    let mut stream = orchestrator.stream().await;
    stream.next().await;
    let commands = stream.commands.clone();
    let flood = tokio::spawn(async move {
        for epoch in 0..10 * COMMANDS_CAP as u64 {
            let command = NodeCommand {
                command: Some(view(epoch)),
            };
            if commands.send(Ok(command)).await.is_err() {
                return;
            }
        }
    });
    for epoch in 0..1_000 {
        let applied = Report::ViewApplied(ViewApplied { epoch });
        handle.reports.send(applied.clone()).await.unwrap();
        assert_eq!(stream.next().await, applied);
    }
    flood.abort();
    task.abort();
}

#[tokio::test]
async fn a_log_filter_is_answered_for_the_node_and_the_rest_is_left_to_it() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let mut orchestrator = Orchestrator::start(&socket);
    let (mut handle, task) = control(socket, hello());
    let task = tokio::spawn(task);
    let mut stream = orchestrator.stream().await;
    stream.next().await;
    let filter = Some("muster=loud".to_owned());
    let request = query::Request::LogFilter(LogFilterRequest { filter });
    let query = |id, request| Command::Query(Query { id, request });
    stream.command(query(7, Some(request))).await;
    stream.command(query(8, None)).await;
    let Report::Reply(reply) = stream.next().await else {
        panic!("the query is answered");
    };
    assert_eq!(reply.id, 7);
    let Some(reply::Answer::LogFilter(result)) = reply.answer else {
        panic!("as one about the filter: {reply:?}");
    };
    assert!(result.error.contains("muster=loud"), "{}", result.error);
    assert_eq!(handle.commands.recv().await, Some(query(8, None)));
    task.abort();
}

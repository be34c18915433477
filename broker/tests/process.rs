//! The broker's binary, between an orchestrator and a worker played by a test.

#![expect(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "whatever a test does not expect fails it"
)]

use std::{
    os::unix::{fs::PermissionsExt as _, net::UnixListener as StdUnixListener},
    path::Path,
    process::{Output, Stdio},
    time::Duration,
};

use bytes::Bytes;
use muster_proto::{
    BrokerNode, LINK_VERSION, View,
    control::{
        Hello, NodeCommand, NodeReport, Role,
        heartbeat::Stats,
        node_command::Command as NodeCommandKind,
        node_report::Report,
        nodes_server::{Nodes, NodesServer},
    },
    link::{
        self, BrokerBatch, Subscribe, WorkerBatch, WorkerFrame, broker_frame,
        link_client::LinkClient, worker_frame,
    },
};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::{
    net::UnixListener,
    process::{Child, Command},
    sync::mpsc,
    time::timeout,
};
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::{
    Request, Response, Status, Streaming,
    transport::{Channel, Endpoint, Server},
};

/// Longest a test waits for something that must come.
const PATIENCE: Duration = Duration::from_secs(30);

/// Hands every report of the one node that joins to the test.
#[derive(Debug)]
struct FakeNodes {
    reports: mpsc::Sender<Report>,
    commands: std::sync::Mutex<Option<mpsc::Receiver<Result<NodeCommand, Status>>>>,
}

#[tonic::async_trait]
impl Nodes for FakeNodes {
    type JoinStream = ReceiverStream<Result<NodeCommand, Status>>;

    async fn join(
        &self,
        request: Request<Streaming<NodeReport>>,
    ) -> Result<Response<Self::JoinStream>, Status> {
        let mut inbound = request.into_inner();
        let reports = self.reports.clone();
        tokio::spawn(async move {
            while let Ok(Some(NodeReport { report })) = inbound.message().await {
                if reports.send(report.unwrap()).await.is_err() {
                    return;
                }
            }
        });
        let commands = self.commands.lock().unwrap().take();
        let commands = commands.ok_or_else(|| Status::already_exists("one node only"))?;
        Ok(Response::new(ReceiverStream::new(commands)))
    }
}

struct Orchestrator {
    dir: TempDir,
    reports: mpsc::Receiver<Report>,
    commands: mpsc::Sender<Result<NodeCommand, Status>>,
}

impl Orchestrator {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("orchestrator.sock")).unwrap();
        let (reports_in, reports) = mpsc::channel(64);
        let (commands, commands_out) = mpsc::channel(4);
        let nodes = FakeNodes {
            reports: reports_in,
            commands: std::sync::Mutex::new(Some(commands_out)),
        };
        let incoming = UnixListenerStream::new(listener);
        tokio::spawn(Server::builder().serve_with_incoming(NodesServer::new(nodes), incoming));
        Self {
            dir,
            reports,
            commands,
        }
    }

    fn broker(&self, args: &[&str]) -> Child {
        command(self.dir.path())
            .args(["--slot", "2", "--incarnation", "77"])
            .args(args)
            .spawn()
            .unwrap()
    }

    async fn report(&mut self) -> Report {
        timeout(PATIENCE, self.reports.recv())
            .await
            .expect("a report within the patience of a test")
            .expect("the node stays joined")
    }

    /// The next report that is no heartbeat.
    async fn news(&mut self) -> Report {
        loop {
            match self.report().await {
                Report::Heartbeat(_) => {}
                report => return report,
            }
        }
    }

    async fn hello(&mut self) -> Hello {
        match self.news().await {
            Report::Hello(hello) => hello,
            other => panic!("{other:?} instead of Hello"),
        }
    }

    async fn give_all_shards(&self, hello: &Hello) {
        let broker = BrokerNode {
            slot: hello.slot,
            incarnation: hello.incarnation,
            address: hello.address.clone(),
        };
        let view = View::next(&View::default(), [broker]);
        let command = NodeCommand {
            command: Some(NodeCommandKind::View((&view).into())),
        };
        self.commands.send(Ok(command)).await.unwrap();
    }
}

fn command(runtime_dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_broker"));
    command
        .arg("--runtime-dir")
        .arg(runtime_dir)
        .env("MUSTER_BROKER__JOURNAL_DIR", runtime_dir.join("journal"))
        .env_remove("RUST_LOG")
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

async fn output(child: Child) -> Output {
    timeout(PATIENCE, child.wait_with_output())
        .await
        .expect("the broker ends within the patience of a test")
        .unwrap()
}

async fn terminate(child: Child) -> Output {
    let pid = i32::try_from(child.id().unwrap()).unwrap();
    kill_process(Pid::from_raw(pid).unwrap(), Signal::TERM).unwrap();
    output(child).await
}

/// Opens a link and subscribes to one channel; returns the broker's first frame.
async fn first_answer(address: &str) -> broker_frame::Frame {
    let endpoint = Endpoint::from_shared(address.to_owned()).unwrap();
    let mut client: LinkClient<Channel> = LinkClient::new(endpoint.connect().await.unwrap());
    let (outbound, batches) = mpsc::channel(1);
    let hello = worker_frame::Frame::Hello(link::Hello {
        version: LINK_VERSION,
        link: 1,
        worker_slot: 1,
        worker_incarnation: 1,
        credit_bytes: 1 << 20,
    });
    let subscribe = worker_frame::Frame::Subscribe(Subscribe {
        channel: Bytes::from_static(b"a"),
        after: None,
        shard_epoch: 1,
        request: 1,
        attempt: 0,
    });
    let frames = [hello, subscribe]
        .map(|frame| WorkerFrame { frame: Some(frame) })
        .into();
    outbound.send(WorkerBatch { frames }).await.unwrap();
    let stream = client.data(ReceiverStream::new(batches)).await.unwrap();
    let batch = timeout(PATIENCE, stream.into_inner().message())
        .await
        .unwrap();
    let BrokerBatch { mut frames } = batch.unwrap().expect("the link stands");
    frames.remove(0).frame.unwrap()
}

#[tokio::test]
async fn a_broker_joins_opens_its_shards_serves_and_ends_without_a_trace() {
    let mut orchestrator = Orchestrator::start();
    // A killed broker of the same incarnation has left its socket behind.
    let path = orchestrator.dir.path().join("broker-2-77.sock");
    drop(StdUnixListener::bind(&path).unwrap());
    let broker = orchestrator.broker(&[]);

    let hello = orchestrator.hello().await;
    assert_eq!(
        (hello.version, hello.role()),
        (muster_proto::CONTROL_VERSION, Role::Broker)
    );
    assert_eq!((hello.slot, hello.incarnation), (2, 77));
    assert_eq!(Some(hello.pid), broker.id());
    assert_eq!(hello.address, format!("unix:{}", path.display()));
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    orchestrator.give_all_shards(&hello).await;
    assert!(matches!(orchestrator.news().await, Report::ViewApplied(view) if view.epoch == 1));
    assert!(matches!(orchestrator.news().await, Report::Ready(_)));
    let answer = first_answer(&hello.address).await;
    assert!(
        matches!(answer, broker_frame::Frame::Subscribed(_)),
        "{answer:?}"
    );
    let stats = loop {
        if let Report::Heartbeat(heartbeat) = orchestrator.report().await
            && let Some(Stats::Broker(stats)) = heartbeat.stats
            && stats.channels > 0
        {
            break stats;
        }
    };
    assert_eq!((stats.shards, stats.channels), (256, 1));

    let output = terminate(broker).await;
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    assert!(!path.exists());
}

#[tokio::test]
async fn a_broker_on_tcp_tells_the_port_it_got() {
    let mut orchestrator = Orchestrator::start();
    let broker = orchestrator.broker(&["--listen", "127.0.0.1:0"]);
    let hello = orchestrator.hello().await;
    assert!(
        hello.address.starts_with("http://127.0.0.1:"),
        "{}",
        hello.address
    );
    assert!(!hello.address.ends_with(":0"), "{}", hello.address);
    let answer = first_answer(&hello.address).await;
    assert!(
        matches!(answer, broker_frame::Frame::NotOwner(_)),
        "{answer:?}"
    );
    assert!(terminate(broker).await.status.success());
}

#[tokio::test]
async fn a_runtime_directory_that_does_not_do_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let long = dir.path().join("d".repeat(100));
    std::fs::create_dir(&long).unwrap();
    let cases = [
        (long, "at most 107 are allowed"),
        (dir.path().join("missing"), "cannot listen on"),
    ];
    for (path, message) in cases {
        let output = output(command(&path).spawn().unwrap()).await;
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(
            stderr.contains("error: ") && stderr.contains(message),
            "{stderr}"
        );
        assert!(stderr.contains(path.to_str().unwrap()), "{stderr}");
    }
}

#[tokio::test]
async fn a_configuration_that_cannot_be_read_is_the_exit_code_78() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = command(dir.path());
    let output = output(command.args(["-c", "/nowhere.toml"]).spawn().unwrap()).await;
    assert_eq!(output.status.code(), Some(78));
}

//! Both services on a real socket, with the nodes' and the operator's own ends.

use std::path::PathBuf;

use muster_daemon::{
    control::{ControlHandle, control},
    runtime_dir::RuntimeDir,
};
use muster_proto::{
    CONTROL_VERSION,
    control::{
        Hello, Kick, Ready, StatusResponse, View, client_command::Action, node_command::Command,
        node_report::Report,
    },
};
use tokio::task::JoinSet;

use super::*;
use crate::node::{NodeId, Role};

/// A served socket; requests are answered by the test.
struct Served {
    _parent: tempfile::TempDir,
    dir: RuntimeDir,
    requests: mpsc::Receiver<Request>,
    tasks: JoinSet<()>,
}

impl Served {
    fn start() -> Self {
        let parent = tempfile::tempdir().unwrap();
        let dir = RuntimeDir::create(&parent.path().join("run")).unwrap();
        let listener = bind(&dir.orchestrator_socket()).unwrap();
        let (sender, requests) = mpsc::channel(REQUESTS_CAP);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { serve(listener, sender).await.unwrap() });
        Self {
            _parent: parent,
            dir,
            requests,
            tasks,
        }
    }

    fn node(&mut self, hello: Hello) -> ControlHandle {
        let (handle, task) = control(self.dir.orchestrator_socket(), hello);
        self.tasks.spawn(task);
        handle
    }

    async fn operator(&self) -> Operator {
        let path = Some(self.dir.path().to_owned());
        Operator::connect(path).await.unwrap().0
    }

    async fn request(&mut self) -> Request {
        self.requests.recv().await.unwrap()
    }
}

fn hello() -> Hello {
    Hello {
        version: CONTROL_VERSION,
        role: pb::Role::Broker.into(),
        slot: 2,
        incarnation: 9,
        pid: 77,
        release: String::new(),
        address: "unix:/b".into(),
        epoch: 4,
    }
}

#[tokio::test]
async fn a_node_that_is_accepted_reports_and_is_commanded() {
    let mut served = Served::start();
    let mut handle = served.node(hello());
    let Request::Join {
        node,
        pid,
        stream,
        commands,
        answer,
    } = served.request().await
    else {
        panic!("a node joins first");
    };
    let id = NodeId {
        role: Role::Broker,
        slot: 2,
    };
    let address = "unix:/b".to_owned();
    let (incarnation, epoch) = (9, 4);
    let joined = Joined {
        id,
        incarnation,
        address,
        epoch,
    };
    assert_eq!((node, pid), (joined, 77));
    answer.send(Ok(())).unwrap();
    handle.reports.send(Report::Ready(Ready {})).await.unwrap();
    let Request::Report {
        stream: same,
        report,
    } = served.request().await
    else {
        panic!("then it reports");
    };
    assert_eq!((same, report), (stream, Report::Ready(Ready {})));
    let view = Command::View(View {
        epoch: 5,
        ..View::default()
    });
    commands.send(view.clone()).await.unwrap();
    assert_eq!(handle.commands.recv().await, Some(view));
    // Cut off, it comes back by itself.
    drop(commands);
    let mut left = false;
    loop {
        match served.request().await {
            Request::Leave { stream: same } => left = same == stream,
            Request::Join { .. } => break,
            Request::Report { .. }
            | Request::Status { .. }
            | Request::Down { .. }
            | Request::Client { .. }
            | Request::Scale { .. } => {}
        }
    }
    assert!(left, "the earlier stream ended first");
}

#[tokio::test]
async fn nodes_that_make_no_sense_are_refused_before_the_cluster_hears_of_them() {
    let mut served = Served::start();
    for wrong in [
        Hello {
            version: CONTROL_VERSION + 1,
            ..hello()
        },
        Hello { role: 0, ..hello() },
        Hello { role: 9, ..hello() },
        Hello {
            address: String::new(),
            ..hello()
        },
    ] {
        let _handle = served.node(wrong);
    }
    let good = Hello { slot: 5, ..hello() };
    let _handle = served.node(good);
    // The wrong ones keep trying; only the good one gets through.
    let Request::Join { node, .. } = served.request().await else {
        panic!("a node joins first");
    };
    assert_eq!(node.id.slot, 5);
    assert!(served.requests.try_recv().is_err());
}

#[tokio::test]
async fn an_operator_gets_the_status_that_the_cluster_answers() {
    let mut served = Served::start();
    let mut operator = served.operator().await;
    let asked = tokio::spawn(async move { operator.status().await });
    let Request::Status { answer } = served.request().await else {
        panic!("the status was asked for");
    };
    let status = StatusResponse {
        epoch: 3,
        ..StatusResponse::default()
    };
    answer.send(status.clone()).unwrap();
    assert_eq!(asked.await.unwrap().unwrap(), status);
}

#[tokio::test]
async fn every_outcome_of_a_command_has_its_own_message() {
    let mut served = Served::start();
    for (outcome, message) in [
        (Outcome::Done, None),
        (
            Outcome::Refused("no such channel".into()),
            Some("the worker refused: no such channel"),
        ),
        (Outcome::Unknown, Some("no client has the session id abc")),
        (
            Outcome::NoAnswer { workers: 0 },
            Some("no worker is ready: try again"),
        ),
        (
            Outcome::NoAnswer { workers: 2 },
            Some("2 workers did not answer"),
        ),
        (Outcome::Busy, Some("too many commands at once: try again")),
    ] {
        let mut operator = served.operator().await;
        let kick = Action::Kick(Kick::default());
        let asked = tokio::spawn(async move { operator.act("abc".into(), kick).await });
        let Request::Client { command, answer } = served.request().await else {
            panic!("a command was given");
        };
        assert_eq!(command.connection, "abc");
        answer.send(outcome).unwrap();
        match (asked.await.unwrap(), message) {
            (Ok(()), None) => {}
            (Err(error), Some(message)) => {
                let error = error.to_string();
                assert!(error.starts_with(message), "{error}");
            }
            (result, message) => panic!("{result:?} instead of {message:?}"),
        }
    }
}

#[tokio::test]
async fn a_number_of_workers_outside_the_limits_is_refused_before_the_cluster_hears_of_it() {
    let mut served = Served::start();
    let mut operator = served.operator().await;
    for workers in [0, 257, u32::MAX] {
        let error = operator.scale(workers).await.unwrap_err().to_string();
        let message = format!("a cluster has 1 to 256 workers, not {workers}");
        assert_eq!(error, message);
    }
    let asked = tokio::spawn(async move { operator.scale(256).await });
    let Request::Scale { workers, answer } = served.request().await else {
        panic!("the cluster is to be scaled");
    };
    assert_eq!(workers, 256);
    answer.send(Err(ScaleRefused)).unwrap();
    let error = asked.await.unwrap().unwrap_err().to_string();
    assert_eq!(error, "the cluster is ending");
}

#[tokio::test]
async fn where_no_cluster_runs_an_operator_is_told_how_to_start_one() {
    let parent = tempfile::tempdir().unwrap();
    let dir = RuntimeDir::create(&parent.path().join("run")).unwrap();
    let stale = bind(&dir.orchestrator_socket()).unwrap();
    drop(stale);
    for path in [dir.path().to_owned(), PathBuf::from("/nonexistent/muster")] {
        let error = Operator::connect(Some(path)).await.unwrap_err().to_string();
        assert!(error.starts_with("no cluster runs at "), "{error}");
        assert!(error.contains("orchestrator up"), "{error}");
    }
}

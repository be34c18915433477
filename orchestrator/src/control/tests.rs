//! Both services on a real socket, with the nodes' and the operator's own ends.

use std::path::PathBuf;

use muster_daemon::{
    control::{ControlHandle, control},
    exit,
    runtime_dir::RuntimeDir,
};
use muster_proto::{
    CONTROL_VERSION,
    control::{
        ClientResult, Hello, Kick, PublishResult, Ready, StatusResponse, View,
        client_command::Action, node_command::Command, node_report::Report,
        publish_result::Outcome, query::Request as Query,
    },
};
use tokio::task::JoinSet;

use super::*;
use crate::{
    gather::Gather,
    node::{NodeId, Role},
};

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
            | Request::Query { .. }
            | Request::Scale { .. }
            | Request::Update { .. }
            | Request::AbortUpdate { .. }
            | Request::UpdateStatus { .. }
            | Request::Reload { .. }
            | Request::Rebalance { .. } => {}
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

/// Answers the next query, which must be for `whom`.
async fn answer_query(
    served: &mut Served,
    whom: Whom,
    outcome: Result<Gathered, NotAsked>,
) -> Query {
    let Request::Query {
        request,
        whom: asked,
        answer,
    } = served.request().await
    else {
        panic!("nodes were asked");
    };
    assert_eq!(asked, whom);
    answer.send(outcome).unwrap();
    request
}

/// What was gathered without the workers in these slots.
fn gathered(answers: Gather, silent: &[u32]) -> Result<Gathered, NotAsked> {
    let role = Role::Worker;
    let silent = silent.iter().map(|slot| NodeId { role, slot: *slot });
    let silent = silent.collect();
    Ok(Gathered { answers, silent })
}

#[tokio::test]
async fn every_outcome_of_a_command_has_its_own_message() {
    let mut served = Served::start();
    let found = |error: &str| {
        Gather::Client(Some(ClientResult {
            found: true,
            error: error.into(),
        }))
    };
    for (outcome, message) in [
        (gathered(found(""), &[]), None),
        (
            gathered(found("no such channel"), &[]),
            Some("the worker refused: no such channel"),
        ),
        (
            gathered(Gather::Client(None), &[]),
            Some("no client has the session id abc"),
        ),
        (
            Err(NotAsked::NotReady),
            Some("no worker is ready: try again"),
        ),
        (
            gathered(Gather::Client(None), &[1, 2]),
            Some("the outcome is unknown: 2 workers did not answer"),
        ),
        (
            Err(NotAsked::Busy),
            Some("too many commands at once: try again"),
        ),
    ] {
        let mut operator = served.operator().await;
        let kick = Action::Kick(Kick::default());
        let asked = tokio::spawn(async move { operator.act("abc".into(), kick).await });
        let Query::Client(command) = answer_query(&mut served, Whom::Workers, outcome).await else {
            panic!("a command was given");
        };
        assert_eq!(command.connection, "abc");
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
async fn an_operator_learns_whether_a_publication_may_still_arrive() {
    let mut served = Served::start();
    let result = |outcome: Outcome| {
        Gather::Publish(Some(PublishResult {
            outcome: outcome.into(),
            message: "why".into(),
        }))
    };
    for (outcome, exit_code) in [
        (gathered(result(Outcome::Published), &[]), exit::SUCCESS),
        (gathered(result(Outcome::Refused), &[]), exit::FAILURE),
        (gathered(result(Outcome::Invalid), &[]), exit::USAGE),
        (
            gathered(result(Outcome::Unknown), &[]),
            exit::OUTCOME_UNKNOWN,
        ),
        (gathered(Gather::Publish(None), &[1]), exit::OUTCOME_UNKNOWN),
        (Err(NotAsked::NotReady), exit::FAILURE),
    ] {
        let mut operator = served.operator().await;
        let data = "1".into();
        let asked = tokio::spawn(async move { operator.publish("a".into(), data).await });
        answer_query(&mut served, Whom::AnyWorker, outcome.clone()).await;
        let code = asked
            .await
            .unwrap()
            .map_or_else(|error| error.exit_code(), |()| exit::SUCCESS);
        assert_eq!(code, exit_code, "{outcome:?}");
    }
}

#[tokio::test]
async fn an_orchestrator_that_goes_while_it_is_asked_leaves_the_outcome_unknown() {
    let mut served = Served::start();
    let mut operator = served.operator().await;
    let asked = tokio::spawn(async move { operator.publish("a".into(), "1".into()).await });
    served.request().await;
    served.tasks.shutdown().await;
    let error = asked.await.unwrap().unwrap_err();
    assert_eq!(error.exit_code(), exit::OUTCOME_UNKNOWN, "{error}");
}

#[tokio::test]
async fn lists_are_as_long_as_they_may_be_and_name_who_was_silent() {
    let mut served = Served::start();
    for (limit, asked_for) in [(0, 100), (1, 1), (LIST_LIMIT_MAX, LIST_LIMIT_MAX)] {
        let mut operator = served.operator().await;
        let request = pb::ConnectionsRequest {
            worker: 7,
            limit,
            ..pb::ConnectionsRequest::default()
        };
        let expected = pb::ConnectionsRequest {
            limit: asked_for,
            ..request.clone()
        };
        let nothing = Gather::of(&Query::Connections(expected.clone()));
        let asked = tokio::spawn(async move { operator.connections(request).await });
        let query = answer_query(&mut served, Whom::Worker(7), gathered(nothing, &[7])).await;
        assert_eq!(query, Query::Connections(expected));
        assert_eq!(asked.await.unwrap().unwrap().silent, ["worker-7"]);
    }
    let mut operator = served.operator().await;
    let request = pb::ChannelsRequest {
        limit: LIST_LIMIT_MAX + 1,
        ..pb::ChannelsRequest::default()
    };
    let error = operator.channels(request).await.unwrap_err();
    assert_eq!(error.exit_code(), exit::USAGE, "{error}");
    let asked = tokio::spawn(async move {
        let request = pb::ConnectionsRequest::default();
        operator.connections(request).await
    });
    let nobody = Err(NotAsked::NoWorker { slot: 9 });
    answer_query(&mut served, Whom::Workers, nobody).await;
    let error = asked.await.unwrap().unwrap_err().to_string();
    assert!(error.contains("no worker in slot 9"), "{error}");
}

#[tokio::test]
async fn a_number_of_nodes_outside_the_limits_is_refused_before_the_cluster_hears_of_it() {
    let mut served = Served::start();
    let mut operator = served.operator().await;
    for count in [0, 257, u32::MAX] {
        for (workers, brokers, what) in [
            (Some(count), Some(1), "workers"),
            (None, Some(count), "brokers"),
        ] {
            let goal = Goal { workers, brokers };
            let error = operator.scale(goal).await.unwrap_err().to_string();
            let message = format!("a cluster has 1 to 256 {what}, not {count}");
            assert_eq!(error, message);
        }
    }
    let error = operator.scale(Goal::default()).await.unwrap_err();
    assert_eq!(error.exit_code(), exit::USAGE, "{error}");
    let wanted = Goal {
        workers: Some(256),
        brokers: None,
    };
    let asked = tokio::spawn(async move { operator.scale(wanted).await });
    let Request::Scale { goal, answer } = served.request().await else {
        panic!("the cluster is to be scaled");
    };
    assert_eq!(goal, wanted);
    answer.send(Err(ScaleRefused::Ending)).unwrap();
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

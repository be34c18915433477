//! Updates that come to nothing once all workers are new: while the brokers
//! follow, and at the very end.

use std::{collections::BTreeSet, fs, process::Output};

use muster_tests::{Cluster, eventually, patience, status::Status};
use rustix::process::Signal;
use serde_json::Value;

use super::{
    Traffic, assert_smooth, error,
    program::{Program, own},
    status, until, update,
    whole::{has_only_its_nodes, settled_descriptors},
};
use crate::{counted, json};

const CLIENTS: usize = 20;

/// Lines of a program whose second broker waits for the gate.
const SECOND_BROKER_WAITS: &str = r#"[ "$1 $3" = "broker 2" ] && read _ < "$here/gate""#;
/// Lines of a program that may not be run any more once it was asked twice whether
/// it can take over: at first, and at the end.
const CANNOT_BE_EXECUTED: &str = r#"if [ "$1" = takeover-check ]; then
    [ -e "$here/asked" ] && chmod 0 "$here/new"
    touch "$here/asked"
fi"#;

/// The first broker is new, the second one is about to be.
async fn until_halfway(cluster: &Cluster) {
    let halfway = until(cluster, "the second broker has its turn", |status| {
        status["following"]["slot"] == 2 && status["following"]["step"] == "starting"
    })
    .await;
    assert_eq!(halfway["phase"], "brokers", "{halfway}");
    assert_eq!(halfway["workers_done"], 2, "{halfway}");
    assert_eq!(halfway["following"]["brokers_done"], 1, "{halfway}");
}

/// The update has failed for this reason; every process had its turn and runs the
/// earlier program again, under the same orchestrator. What `update --status`
/// says.
async fn assert_taken_back(
    cluster: &Cluster,
    before: &Status,
    output: &Output,
    reason: &str,
) -> Value {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let error = error(output);
    let rolled_back = "rolled back: the workers that were replaced (2 of 2)";
    for part in [reason, rolled_back] {
        assert!(error.contains(part), "{error}\n{}", cluster.log());
    }
    let status = status(cluster).await;
    assert_eq!(status["state"], "failed", "{status}");
    let why = status["error"].as_str();
    assert!(why.is_some_and(|why| why.contains(reason)), "{status}");
    assert_eq!(status["workers_done"], 0, "{status}");
    assert_eq!(status["workers_returned"], 2, "{status}");
    assert_eq!(status["stuck"], Value::Array(vec![]), "{status}");
    assert_eq!(status["failed"], 0, "{status}");
    let following = &status["following"];
    assert_eq!(following["brokers_done"], 0, "{status}");
    assert_eq!(following["orchestrator_done"], false, "{status}");
    let after = eventually("every node is back", patience(), async || {
        let status = cluster.status().await?;
        if status.is_whole() {
            Ok(status)
        } else {
            Err(format!("{status:?}"))
        }
    })
    .await;
    assert_eq!(
        (after.pid, &after.listen),
        (before.pid, &before.listen),
        "the same orchestrator"
    );
    let earlier: BTreeSet<u32> = before.pids().into_iter().collect();
    for node in &after.nodes {
        assert!(!earlier.contains(&node.pid), "it had its turn: {node:?}");
        assert_eq!(node.restarts, 0, "{node:?}");
        let runs = fs::read_link(format!("/proc/{}/exe", node.pid));
        assert_eq!(runs.ok(), Some(own()), "{node:?}");
    }
    has_only_its_nodes(cluster).await;
    status
}

/// Nobody has lost anything, and the next update goes through.
async fn assert_unharmed(cluster: &Cluster, traffic: Traffic) {
    let updated = update(cluster).await;
    assert_smooth(&updated, CLIENTS as u64);
    assert_eq!(updated["following"]["brokers_done"], 2, "{updated}");
    assert_eq!(updated["following"]["orchestrator_done"], true, "{updated}");
    let mut clients = traffic.end().await;
    for client in &mut clients {
        assert!(client.is_alive().await);
    }
    counted(cluster, CLIENTS).await;
}

fn config(cluster: &Cluster) -> String {
    fs::read_to_string(cluster.runtime_dir().join("config.toml")).expect("it is there")
}

#[tokio::test]
async fn workers_that_turn_bad_while_the_brokers_follow_take_everything_back() {
    let cluster = Cluster::start(2, 2).await;
    let traffic = Traffic::start(&cluster.url(), CLIENTS).await;
    let before = cluster.status().await.unwrap();
    let lines = format!("export MUSTER_TEST_FAULT_AFTER=\"$here/bad\"\n{SECOND_BROKER_WAITS}");
    let unfit = Program::unfit_after("leaks", &lines);
    let mut gate = unfit.gate("gate");
    let updating = unfit.begin(&cluster, &["--canary", "0"]);
    until_halfway(&cluster).await;
    fs::write(unfit.dir().join("bad"), "").unwrap();
    eventually("that is found out", patience(), async || {
        let log = cluster.log();
        if log.contains("The new workers are no good") {
            Ok(())
        } else {
            Err(log)
        }
    })
    .await;
    gate.open();
    let output = updating.wait_with_output().await.unwrap();
    let status = assert_taken_back(&cluster, &before, &output, "is no good: it has").await;
    assert_eq!(status["aborted"], false, "{status}");
    assert_unharmed(&cluster, traffic).await;
    cluster.down().await;
}

#[tokio::test]
async fn an_update_that_is_aborted_while_the_brokers_follow_is_taken_back_with_its_configuration() {
    let cluster = Cluster::start(2, 2).await;
    let traffic = Traffic::start(&cluster.url(), CLIENTS).await;
    let before = cluster.status().await.unwrap();
    let config_before = config(&cluster);
    cluster.configure("[limits]\nchannels_per_connection_max = 77");
    let program = Program::after(SECOND_BROKER_WAITS);
    let mut gate = program.gate("gate");
    let updating = program.begin(&cluster, &["--canary", "0"]);
    until_halfway(&cluster).await;
    assert_ne!(config(&cluster), config_before);
    let opening = async {
        let is_told = |status: &Value| status["aborted"] == true;
        until(&cluster, "the cluster knows", is_told).await;
        gate.open();
    };
    let abort = ["update", "--abort", "--json"];
    let (aborted, ()) = tokio::join!(cluster.verb(&abort), opening);
    assert!(aborted.status.success(), "{aborted:?}");
    let output = updating.wait_with_output().await.unwrap();
    let status = assert_taken_back(&cluster, &before, &output, "an operator aborted it").await;
    assert_eq!(status["aborted"], true, "{status}");
    assert_eq!(json(&String::from_utf8_lossy(&aborted.stdout)), status);
    assert_eq!(config(&cluster), config_before);
    assert_unharmed(&cluster, traffic).await;
    assert!(config(&cluster).contains("77"), "it comes with the next");
    cluster.down().await;
}

#[tokio::test]
async fn an_update_that_is_interrupted_while_the_brokers_follow_is_taken_back() {
    let cluster = Cluster::start(2, 2).await;
    let traffic = Traffic::start(&cluster.url(), CLIENTS).await;
    let before = cluster.status().await.unwrap();
    let program = Program::after(SECOND_BROKER_WAITS);
    let mut gate = program.gate("gate");
    let updating = program.begin(&cluster, &["--canary", "0"]);
    until_halfway(&cluster).await;
    Cluster::signal_process(updating.id().expect("it lives"), Signal::INT);
    let is_told = |status: &Value| status["aborted"] == true;
    until(&cluster, "the cluster knows", is_told).await;
    gate.open();
    let output = updating.wait_with_output().await.unwrap();
    assert_taken_back(&cluster, &before, &output, "an operator aborted it").await;
    assert!(
        error(&output).contains("Taking the update back"),
        "{output:?}"
    );
    assert_unharmed(&cluster, traffic).await;
    cluster.down().await;
}

#[tokio::test]
async fn an_orchestrator_that_cannot_be_executed_in_the_end_goes_on_and_takes_everything_back() {
    let cluster = Cluster::start(2, 2).await;
    let traffic = Traffic::start(&cluster.url(), CLIENTS).await;
    let mut open = Vec::new();
    // Whatever an attempt leaves behind, the next one finds it.
    for _ in 0..2 {
        let before = cluster.status().await.unwrap();
        let program = Program::after(CANNOT_BE_EXECUTED);
        let output = program.update(&cluster, &["--canary", "0"]).await;
        let reason = "the orchestrator cannot execute the new program and goes on with the \
                      earlier one: Permission denied";
        assert_taken_back(&cluster, &before, &output, reason).await;
        open.push(settled_descriptors(&cluster).await);
        let told = cluster.verb(&["update", "--status"]).await;
        let told = String::from_utf8_lossy(&told.stdout).into_owned();
        assert!(told.starts_with("The last update failed. "), "{told}");
        assert!(told.contains(reason), "{told}");
    }
    assert_eq!(open[0], open[1], "descriptors after each attempt");
    assert_unharmed(&cluster, traffic).await;
    cluster.down().await;
}

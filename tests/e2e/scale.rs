//! More and fewer workers while clients are connected.

use crate::{counted, handover::Traffic};
use muster_tests::{Cluster, Raw, eventually, patience, status::Status};
use rustix::process::Signal;
use serde_json::json as value;

const QUICK: &str = "[shutdown]\ntimeout = \"3s\"";

async fn connect(cluster: &Cluster, count: usize) -> Vec<Raw> {
    let mut clients = Vec::new();
    for _ in 0..count {
        clients.push(Raw::connect(&cluster.url()).await);
    }
    clients
}

/// Waits until the workers have so many.
async fn has_connections(cluster: &Cluster, wanted: &[u64]) {
    eventually("all have their part", patience(), async || {
        match cluster.connections().await {
            counts if counts == wanted => Ok(()),
            counts => Err(format!("{counts:?}")),
        }
    })
    .await;
}

#[tokio::test]
async fn new_workers_take_new_clients_until_all_have_the_same() {
    let cluster = Cluster::start(1, 1).await;
    let mut clients = connect(&cluster, 40).await;
    let answer = cluster.scale(4).await;
    let starting = value!(["worker-2", "worker-3", "worker-4"]);
    assert_eq!(answer["starting"], starting, "{answer}");
    cluster.has_workers(4).await;
    // While the connections there are are shared with the new workers, too.
    clients.extend(connect(&cluster, 120).await);
    eventually("all have nearly the same", patience(), async || {
        let counts = counted(&cluster, 160).await;
        match counts.iter().all(|count| (39..=41).contains(count)) {
            true => Ok(()),
            false => Err(format!("{counts:?}")),
        }
    })
    .await;
    for client in &mut clients {
        assert!(client.is_alive().await);
    }
    cluster.down().await;
}

#[tokio::test]
async fn clients_of_workers_that_go_stay_connected_and_miss_nothing() {
    let cluster = Cluster::builder(3, 2).config(QUICK).start().await;
    let traffic = Traffic::start(&cluster.url(), 60).await;
    counted(&cluster, 60).await;
    let answer = cluster.scale(1).await;
    assert_eq!(answer["draining"], value!(["worker-2", "worker-3"]));
    cluster.has_workers(1).await;
    let mut clients = traffic.end().await;
    for client in &mut clients {
        assert!(client.is_alive().await);
    }
    assert_eq!(counted(&cluster, 60).await, [60]);
    cluster.down().await;
}

#[tokio::test]
async fn new_workers_get_their_part_of_the_clients_that_are_connected() {
    let cluster = Cluster::start(1, 1).await;
    let traffic = Traffic::start(&cluster.url(), 40).await;
    counted(&cluster, 40).await;
    cluster.scale(4).await;
    cluster.has_workers(4).await;
    has_connections(&cluster, &[10; 4]).await;
    for mut client in traffic.end().await {
        assert!(client.is_alive().await);
    }
    cluster.down().await;
}

#[tokio::test]
async fn workers_that_are_uneven_are_evened_out_on_request() {
    let cluster = Cluster::start(2, 1).await;
    cluster.signal_node("worker", 1, Signal::STOP).await;
    let mut clients = connect(&cluster, 60).await;
    cluster.signal_node("worker", 1, Signal::CONT).await;
    assert_eq!(counted(&cluster, 60).await, [0, 60]);
    let output = cluster.verb(&["rebalance", "--json"]).await;
    assert!(output.status.success(), "{output:?}");
    let answer = crate::json(&String::from_utf8_lossy(&output.stdout));
    assert_eq!(answer, value!({ "moved": 30, "failed": 0, "error": null }));
    has_connections(&cluster, &[30, 30]).await;
    for client in &mut clients {
        assert!(client.is_alive().await);
    }
    let output = cluster.verb(&["rebalance"]).await;
    let answer = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(answer, "The workers are even enough.\n");
    cluster.down().await;
}

#[tokio::test]
async fn a_worker_that_does_not_let_go_is_killed_when_its_time_is_up() {
    let cluster = Cluster::builder(2, 1)
        .config("[shutdown]\ntimeout = \"500ms\"")
        .start()
        .await;
    cluster.signal_node("worker", 2, Signal::STOP).await;
    cluster.scale(1).await;
    let node = cluster.status().await.unwrap();
    assert_eq!(node.node("worker", 2).unwrap().state, "draining");
    cluster.has_workers(1).await;
    let log = cluster.log();
    assert!(log.contains("has not ended in time"), "{log}");
    cluster.down().await;
}

#[tokio::test]
async fn the_newest_goal_counts() {
    let cluster = Cluster::builder(2, 1).config(QUICK).start().await;
    let _clients = connect(&cluster, 30).await;
    counted(&cluster, 30).await;
    let before = cluster.status().await.unwrap();
    cluster.scale(1).await;
    let answer = cluster.scale(2).await;
    assert_eq!(answer["starting"], value!(["worker-2"]), "{answer}");
    let back = cluster.replaced(before.node("worker", 2).unwrap()).await;
    assert_eq!(back.restarts, 0, "it did not end by accident");
    cluster.has_workers(2).await;
    let answer = cluster.scale(2).await;
    assert_eq!(answer["starting"], value!([]), "there is nothing to do");
    let after = cluster.status().await.unwrap();
    let pid = |status: &Status| status.node("worker", 1).unwrap().pid;
    assert_eq!(pid(&after), pid(&before));
    cluster.down().await;
}

#[tokio::test]
async fn a_cluster_that_drains_workers_can_be_ended() {
    let cluster = Cluster::start(2, 1).await;
    let _clients = connect(&cluster, 30).await;
    cluster.scale(1).await;
    // With the default time-out the drain would take longer than this test waits.
    cluster.down().await;
}

#[tokio::test]
async fn goals_that_make_no_sense_are_refused_with_the_limits() {
    let cluster = Cluster::start(1, 1).await;
    for (arguments, code, message) in [
        (["--workers", "0"], 2, "1..=256"),
        (["--workers", "257"], 2, "1..=256"),
        (["--brokers", "0"], 2, "1..=256"),
        (["--brokers", "257"], 2, "1..=256"),
    ] {
        let output = cluster.verb(&["scale", arguments[0], arguments[1]]).await;
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(error.contains(message), "{error}");
    }
    cluster.has_workers(1).await;
}

/// As far apart as the gate lets workers drift: up to 9/8 of the mean and 8
/// more a worker accepts, 16 at a time.
fn assert_balanced(counts: &[u64]) {
    let mean = counts.iter().sum::<u64>() / counts.len() as u64;
    let most = mean * 9 / 8 + 8 + 16;
    assert!(counts.iter().all(|count| *count <= most), "{counts:?}");
}

#[tokio::test]
async fn connections_spread_over_the_workers_that_work_while_one_is_stopped() {
    let cluster = Cluster::builder(4, 1)
        .config("[supervision]\nworker_hung_after = \"5m\"\n[broker]\nkey_window = \"10m\"")
        .start()
        .await;
    cluster.signal_node("worker", 1, Signal::STOP).await;
    let _clients = connect(&cluster, 400).await;
    let counts = counted(&cluster, 400).await;
    assert_eq!(counts[0], 0, "{counts:?}");
    assert_balanced(&counts[1..]);
    // Awake again, it takes the next ones.
    cluster.signal_node("worker", 1, Signal::CONT).await;
    let _more = connect(&cluster, 200).await;
    assert_balanced(&counted(&cluster, 600).await);
}

#[tokio::test]
async fn connections_spread_over_the_workers_that_work_while_one_is_in_a_crash_loop() {
    let cluster = Cluster::start(4, 1).await;
    // What is started from now on does not get far.
    let config = cluster.runtime_dir().join("config.toml");
    std::fs::write(config, "nonsense").unwrap();
    cluster.signal_node("worker", 1, Signal::KILL).await;
    eventually("worker 1 is in a crash loop", patience(), async || {
        let log = cluster.log();
        if log.contains("Node ends again and again") {
            Ok(())
        } else {
            Err(log)
        }
    })
    .await;
    let _clients = connect(&cluster, 400).await;
    let counts = counted(&cluster, 400).await;
    assert_eq!(counts[0], 0, "{counts:?}");
    assert_balanced(&counts[1..]);
}

//! `orchestrator bench` against a cluster that it finds by itself.

use std::{fs, process::Stdio};

use muster_tests::{Cluster, orchestrator, patience};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::time::timeout;

use crate::json;

/// Runs the benchmark and reads what it prints.
async fn bench(cluster: &Cluster, arguments: &[&str]) -> Value {
    let mut command = vec!["bench"];
    command.extend_from_slice(arguments);
    command.extend_from_slice(&["--json", "--force", "--warmup", "0.2"]);
    let output = cluster.verb(&command).await;
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {error}");
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[tokio::test]
async fn every_scenario_accounts_for_what_it_published() {
    let cluster = Cluster::start(2, 1).await;
    for (arguments, delivered) in [
        (&["fanout", "--subscribers", "20", "--rate", "20"][..], true),
        (
            &["lobby", "--lobbies", "5", "--members", "3", "--rate", "5"],
            true,
        ),
        (
            &[
                "hold",
                "--connections",
                "30",
                "--group",
                "10",
                "--rate",
                "5",
            ],
            true,
        ),
        (&["idle", "--connections", "20"], false),
        (&["fanout", "--rate", "20", "--without-acks"], true),
    ] {
        let arguments = [arguments, &["--duration", "1", "--processes", "2"]].concat();
        let report = bench(&cluster, &arguments).await;
        let wrong = ["lost", "repeated", "out_of_order", "foreign"];
        assert!(wrong.iter().all(|key| report[key] == 0), "{report}");
        assert_eq!(report["published"], report["acked"], "{report}");
        let count = report["delivered"].as_u64().expect("a number");
        assert_eq!(count > 0, delivered, "{report}");
        let series = report["series"].as_array().expect("a list");
        assert_eq!(!series.is_empty(), delivered, "{report}");
        assert!(report["server"]["cores"].is_number(), "{report}");
    }
}

#[tokio::test]
async fn clients_that_come_and_go_are_counted() {
    let cluster = Cluster::start(1, 1).await;
    let report = bench(&cluster, &["churn", "--clients", "4", "--duration", "1"]).await;
    assert_eq!(report["failed"], 0, "{report}");
    assert!(report["cycles"].as_u64() > Some(0), "{report}");
}

#[tokio::test]
async fn a_limit_that_no_load_keeps_is_searched_for_and_said_not_to_be_found() {
    let cluster = Cluster::start(1, 1).await;
    let page = cluster.runtime_dir().join("page.html");
    let arguments = [
        "saturate",
        "fanout",
        "--subscribers",
        "3",
        // A microsecond: nothing is that fast, but a search ends only with a
        // bracket or its steps.
        "--p99-ms",
        "0.001",
        "--duration",
        "0.1",
        "--settle",
        "5",
        "--html",
        page.to_str().expect("it is UTF-8"),
    ];
    let report = bench(&cluster, &arguments).await;
    assert_eq!(report["best"], Value::Null, "{report}");
    assert_eq!(report["steps"][0]["failed"], "too late", "{report}");
    let page = fs::read_to_string(page).expect("the page is written");
    assert!(page.contains("<svg") && page.contains("too late"), "{page}");
}

#[tokio::test]
async fn an_interrupted_run_reports_what_it_has_so_far() {
    let cluster = Cluster::start(1, 1).await;
    let mut command = orchestrator::command();
    command
        .args(["bench", "fanout", "--subscribers", "5", "--rate", "20"])
        .args(["--warmup", "0.1", "--duration", "1000", "--json", "--force"])
        .arg("--runtime-dir")
        .arg(cluster.runtime_dir())
        .stdout(Stdio::piped());
    let child = command.spawn().expect("it starts");
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
    let pid = pid.and_then(Pid::from_raw).expect("it runs");
    // It measures once publications arrive, after the warm-up.
    muster_tests::eventually("it publishes", patience(), async || {
        let status = cluster.status().await?;
        let stats = status.nodes.iter().filter_map(|node| node.stats.as_ref());
        match stats.map(|stats| stats.publications).sum::<u64>() {
            0..10 => Err("not yet"),
            _ => Ok(()),
        }
        .map_err(str::to_owned)
    })
    .await;
    kill_process(pid, Signal::INT).expect("it runs");
    let output = timeout(patience(), child.wait_with_output())
        .await
        .expect("it ends in time")
        .expect("it ran");
    assert!(output.status.success(), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).expect("it reports");
    assert!(report["delivered"].as_u64() > Some(0), "{report}");
    assert_eq!(report["lost"], 0, "{report}");
}

#[tokio::test]
async fn without_a_cluster_it_says_what_to_do() {
    let dir = tempfile::tempdir().expect("a directory");
    let output = orchestrator::command()
        .args(["bench", "idle", "--runtime-dir"])
        .arg(dir.path())
        .output()
        .await
        .expect("it runs");
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(
        error.contains("start one with `up`") && error.contains("--url"),
        "{error}"
    );
}

/// Runs the scenario `kill` with a small load.
async fn bench_kill(cluster: &Cluster, arguments: &[&str]) -> Value {
    let mut command = vec!["bench", "kill", "--lobbies", "10", "--members", "3"];
    command.extend_from_slice(arguments);
    command.extend_from_slice(&["--json", "--force", "--warmup", "0.2"]);
    let output = cluster.verb(&command).await;
    let error = String::from_utf8_lossy(&output.stderr);
    let text = String::from_utf8_lossy(&output.stdout);
    let report: Value =
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}, {error}"));
    assert_eq!(report["disconnects"], 0, "{report}");
    assert!(report["acked"].as_u64() > Some(0), "{report}");
    assert!(output.status.success(), "{report}");
    let wrong = ["lost", "repeated", "out_of_order", "unanswered", "errors"];
    assert!(wrong.iter().all(|key| report[key] == 0), "{report}");
    report
}

#[tokio::test]
async fn brokers_that_are_killed_and_stopped_under_load_disconnect_nobody() {
    let cluster = Cluster::start(2, 2).await;
    let page = cluster.runtime_dir().join("page.html");
    let page = page.to_str().expect("it is UTF-8");
    let arguments = ["--kills", "4", "--stops", "1", "--html", page];
    let report = bench_kill(&cluster, &arguments).await;
    let rounds = report["rounds"].as_array().expect("a list");
    let met: Vec<_> = rounds
        .iter()
        .map(|round| (round["signal"].as_str(), round["node"].as_str()))
        .collect();
    let expected = [
        (Some("KILL"), Some("broker-1")),
        (Some("KILL"), Some("broker-2")),
        (Some("KILL"), Some("broker-1 and broker-2")),
        (Some("STOP"), Some("broker-1")),
    ];
    assert_eq!(met, expected, "{report}");
    assert!(
        rounds.iter().all(|round| round["whole_us"].is_u64()),
        "{report}"
    );
    assert_eq!(report["pauses_us"]["KILL"]["count"], 3, "{report}");
    // It is found out when it has been silent for two seconds, and had been for
    // up to one of them when it was stopped.
    assert!(
        report["pauses_us"]["STOP"]["max"].as_u64() > Some(500_000),
        "{report}"
    );
    let log = cluster.log();
    assert!(!log.contains("Node ends again and again"), "{log}");
    assert!(
        fs::read_to_string(page)
            .expect("the page is written")
            .contains("pause by KILL")
    );
}

#[tokio::test]
async fn brokers_are_scaled_and_killed_meanwhile_under_load_and_nobody_is_disconnected() {
    let cluster = Cluster::start(1, 1).await;
    let report = bench_kill(&cluster, &["--scale", "2,1"]).await;
    assert_eq!(report["pauses_us"]["SCALE"]["count"], 2, "{report}");
    let arguments = ["--kills", "1", "--stops", "0", "--while-scaling"];
    let report = bench_kill(&cluster, &arguments).await;
    let met: Vec<_> = report["rounds"]
        .as_array()
        .expect("a list")
        .iter()
        .collect();
    assert_eq!(met[0]["node"], "broker-1, scaling to 2 brokers", "{report}");
    assert_eq!(met[1]["node"], "to 1 brokers", "{report}");
    assert!(
        met.iter().all(|round| round["whole_us"].is_u64()),
        "{report}"
    );
    let brokers = cluster.status().await.unwrap().shards();
    assert_eq!(brokers.len(), 1);
}

/// Descriptors of all processes. Now and then one more is open for who asked
/// last, or for who has just ended.
fn descriptors(held: &Value) -> u64 {
    let roles = held.as_object().expect("roles").values();
    let count = |held: &Value| held["descriptors"].as_u64().expect("a number");
    roles.map(count).sum()
}

#[tokio::test]
async fn updates_and_new_sizes_under_load_disconnect_nobody_and_leave_nothing_behind() {
    let cluster = Cluster::start(2, 2).await;
    let page = cluster.runtime_dir().join("page.html");
    let page = page.to_str().expect("it is UTF-8");
    let own = orchestrator::binary();
    let own = own.to_str().expect("it is UTF-8");
    let arguments = [
        "bench",
        "deploy",
        "--lobbies",
        "20",
        "--members",
        "5",
        "--updates",
        "5",
        "--pause",
        "0.2",
        "--scale",
        "3,1,2",
        "--binary",
        own,
        "--html",
        page,
        "--json",
        "--force",
        "--warmup",
        "0.2",
    ];
    let output = cluster.verb(&arguments).await;
    let error = String::from_utf8_lossy(&output.stderr);
    let report = json(&String::from_utf8_lossy(&output.stdout));
    assert!(output.status.success(), "{error}\n{report}");
    let wrong = [
        "disconnects",
        "lost",
        "repeated",
        "out_of_order",
        "unanswered",
        "errors",
    ];
    assert!(wrong.iter().all(|key| report[key] == 0), "{report}");
    let deploy = &report["deploy"];
    assert_eq!(
        (&deploy["moved"], &deploy["failed"]),
        (&500.into(), &0.into()),
        "{deploy}"
    );
    assert_eq!(deploy["pause_us"]["count"], 500, "{deploy}");
    assert!(deploy["moved_per_second"].as_f64() > Some(0.0), "{deploy}");
    let steps = deploy["steps"].as_array().expect("a list");
    let what: Vec<_> = steps
        .iter()
        .filter_map(|step| step["what"].as_str())
        .collect();
    let updates = ["update"; 5];
    let sizes = ["to 3 workers", "to 1 workers", "to 2 workers"];
    assert_eq!(what, [&updates[..], &sizes[..]].concat(), "{deploy}");
    for step in &steps[..5] {
        assert!(step["updated"]["pause_max_us"].as_u64() > Some(0), "{step}");
        let (held, first) = (descriptors(&step["held"]), descriptors(&steps[0]["held"]));
        assert!(held <= first + 3, "{held}, {first}: {deploy}");
    }
    assert!(
        fs::read_to_string(page)
            .expect("the page is written")
            .contains("pause of a connection")
    );
}

#[tokio::test]
async fn a_failed_update_ends_the_deploy_and_is_said() {
    let cluster = Cluster::start(1, 1).await;
    let arguments = [
        "bench",
        "deploy",
        "--lobbies",
        "2",
        "--members",
        "2",
        "--updates",
        "3",
        "--pause",
        "0.2",
        "--binary",
        "/bin/false",
        "--json",
        "--force",
        "--warmup",
        "0.2",
    ];
    let output = cluster.verb(&arguments).await;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let report = json(&String::from_utf8_lossy(&output.stdout));
    let steps = report["deploy"]["steps"].as_array().expect("a list");
    assert_eq!(steps.len(), 1, "{report}");
    let error = steps[0]["error"].as_str().expect("it says why");
    assert!(error.contains("no worker was replaced"), "{report}");
    assert_eq!(report["disconnects"], 0, "{report}");
    assert_eq!(report["lost"], 0, "{report}");
}

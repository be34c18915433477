//! Programs that are no good: they are found out, and everything goes back.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Output,
    time::Duration,
};

use muster_tests::{Cluster, Raw, tools};
use rustix::process::Signal;
use serde_json::Value;

use super::{
    Traffic, error,
    failures::Listeners,
    program::{Program, begin, own},
    status, until, update,
};
use crate::{counted, json};

/// Clients of a cluster of two workers.
const CLIENTS: usize = 40;

async fn pids(cluster: &Cluster) -> Vec<u32> {
    let status = cluster.status().await.expect("the cluster runs");
    status.workers().iter().map(|node| node.pid).collect()
}

/// What the workers' processes run.
async fn programs(cluster: &Cluster) -> Vec<PathBuf> {
    let pids = pids(cluster).await;
    let program = |pid| fs::read_link(format!("/proc/{pid}/exe")).expect("the worker lives");
    pids.into_iter().map(program).collect()
}

/// The update was refused or has failed for this reason, and every worker runs the
/// earlier program.
async fn assert_back(cluster: &Cluster, output: &Output, reason: &str) {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let error = error(output);
    tools::say(&error);
    assert!(error.contains(reason), "{error}\n{}", cluster.log());
    assert_eq!(programs(cluster).await, vec![own(); 2]);
    let status = status(cluster).await;
    assert_eq!(status["state"], "failed", "{status}");
    assert_eq!(status["workers_done"], 0, "{status}");
    assert_eq!(status["stuck"], Value::Array(vec![]), "{status}");
}

/// A worker that serves badly and keeps its connections is found at the canary.
async fn is_found_and_taken_back(fault: &str, reason: &str) {
    let cluster = Cluster::start(2, 1).await;
    let traffic = Traffic::start(&cluster.url(), CLIENTS).await;
    let unfit = Program::unfit(fault);
    let output = unfit.update(&cluster, &["--hold", "60s"]).await;
    assert_back(&cluster, &output, reason).await;
    assert!(error(&output).contains("rolled back"), "{output:?}");
    let status = status(&cluster).await;
    assert_eq!(status["workers_returned"], 1, "{status}");
    assert_eq!(status["failed"], 0, "{status}");
    let mut clients = traffic.end().await;
    for client in &mut clients {
        assert!(client.is_alive().await);
    }
    counted(&cluster, CLIENTS).await;
    // The next one goes through.
    assert_eq!(update(&cluster).await["state"], "done");
    cluster.down().await;
}

#[tokio::test]
async fn a_program_that_leaks_memory_is_found_at_the_canary_and_no_client_notices() {
    is_found_and_taken_back("leaks", "worker-1 is no good: it has").await;
}

#[tokio::test]
async fn a_program_that_stalls_is_found_at_the_canary_and_no_client_is_lost() {
    is_found_and_taken_back("stalls", "worker-1 is no good: its thread is").await;
}

#[tokio::test]
async fn a_program_that_cuts_clients_off_is_found_before_it_has_cut_them_all() {
    let cluster = Cluster::start(2, 1).await;
    let listeners = Listeners::start(&cluster).await;
    let unfit = Program::unfit("cuts");
    let output = unfit.update(&cluster, &["--hold", "60s"]).await;
    assert_back(&cluster, &output, "connections ended abnormally").await;
    let (alive, closed) = listeners.end().await;
    assert!((6..=12).contains(&closed), "{closed}");
    for mut client in alive {
        assert!(client.is_alive().await);
    }
    cluster.down().await;
}

#[tokio::test]
async fn a_program_that_dies_is_found_and_its_slot_is_filled_by_the_earlier_one() {
    let cluster = Cluster::start(2, 1).await;
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        clients.push(Raw::connect(&cluster.url()).await);
    }
    let had = counted(&cluster, CLIENTS).await;
    let unfit = Program::unfit("dies");
    let output = unfit.update(&cluster, &["--hold", "60s"]).await;
    cluster.has_workers(2).await;
    assert_back(
        &cluster,
        &output,
        "worker-1, which was new, ended: signal 6",
    )
    .await;
    let mut alive = 0;
    for mut client in clients {
        alive += u64::from(client.is_alive().await);
    }
    assert_eq!(alive, had[1], "those of the worker that was not replaced");
    cluster.down().await;
}

#[tokio::test]
async fn a_program_that_is_no_good_is_found_out_before_a_connection_has_moved() {
    let cluster = Cluster::start(2, 1).await;
    let traffic = Traffic::start(&cluster.url(), 8).await;
    let before = pids(&cluster).await;
    let says = |control: u32, snapshots: u32| {
        Program::script(&format!(
            "echo '{{\"release\":\"9\",\"control\":{control},\"link\":1,\"hand_over\":1,\
             \"writes_snapshots\":[{snapshots},{snapshots}],\
             \"reads_snapshots\":[{snapshots},{snapshots}]}}'"
        ))
    };
    for (program, reason) in [
        (
            says(2, 9),
            "it reads snapshots of version 9, the workers that run write 1 to 2",
        ),
        (says(77, 1), "it speaks version 77 of the control protocol"),
        (
            Program::script("echo 'error: invalid configuration: unknown key a.b' >&2; exit 78"),
            "it refuses the cluster's configuration: invalid configuration: unknown key a.b",
        ),
        (Program::script("exit 3"), "it does not say what it speaks"),
        (Program::script("echo hello"), "makes no sense"),
        (
            Program::script("exec sleep 600"),
            "it does not answer within 10s",
        ),
        (
            Program::unfit("dies_while_it_warms_up"),
            "the successor of worker-1 does not start: signal 6",
        ),
    ] {
        let output = program.update(&cluster, &[]).await;
        assert_back(&cluster, &output, reason).await;
        assert!(
            error(&output).contains("no worker was replaced"),
            "{output:?}"
        );
        assert_eq!(pids(&cluster).await, before);
        assert_eq!(status(&cluster).await["moved"], 0);
    }
    for client in &mut traffic.end().await {
        assert!(client.is_alive().await);
    }
    cluster.down().await;
}

#[tokio::test]
async fn an_update_that_is_aborted_while_it_holds_is_taken_back() {
    let cluster = Cluster::start(2, 1).await;
    let traffic = Traffic::start(&cluster.url(), CLIENTS).await;
    let output = cluster.verb(&["update", "--abort"]).await;
    assert!(
        error(&output).contains("no update is under way"),
        "{output:?}"
    );
    let before = pids(&cluster).await;
    let aborting = async {
        let held = until(&cluster, "it holds", |status| status["phase"] == "holding").await;
        assert_eq!(
            (&held["workers_done"], &held["aborted"]),
            (&1.into(), &false.into())
        );
        assert!(held["hold_left_ms"].as_u64() > Some(50_000), "{held}");
        cluster.verb(&["update", "--abort", "--json"]).await
    };
    let (begun, aborted) = tokio::join!(cluster.verb(&["update", "--hold", "60s"]), aborting);
    assert_back(&cluster, &begun, "an operator aborted it; rolled back").await;
    assert!(aborted.status.success(), "{aborted:?}");
    let aborted = json(&String::from_utf8_lossy(&aborted.stdout));
    assert_eq!(
        (&aborted["aborted"], &aborted["workers_returned"]),
        (&true.into(), &1.into())
    );
    let after = pids(&cluster).await;
    assert_ne!(before[0], after[0]);
    assert_eq!(before[1], after[1], "it was not touched");
    for client in &mut traffic.end().await {
        assert!(client.is_alive().await);
    }
    cluster.down().await;
}

#[tokio::test]
async fn an_update_that_is_interrupted_by_ctrl_c_at_any_moment_loses_no_client() {
    let cluster = Cluster::start(2, 1).await;
    let listeners = Listeners::start(&cluster).await;
    for delay in [5, 40, 80, 120, 200, 400, 900] {
        let child = begin(&cluster, &["update", "--canary", "0"]);
        let pid = child.id().expect("it lives");
        until(&cluster, "it has begun", |status| {
            status["state"] == "running"
        })
        .await;
        tokio::time::sleep(Duration::from_millis(delay)).await;
        Cluster::signal_process(pid, Signal::INT);
        let output = child.wait_with_output().await.expect("it ends");
        let status = status(&cluster).await;
        tools::say(&format!("after {delay} ms: {status}"));
        if status["state"] == "failed" {
            assert_back(&cluster, &output, "an operator aborted it").await;
            assert_eq!(status["aborted"], true);
            assert!(
                error(&output).contains("Taking the update back"),
                "{output:?}"
            );
        }
    }
    let (alive, closed) = listeners.end().await;
    assert_eq!(closed, 0, "{}", alive.len());
    assert_eq!(update(&cluster).await["state"], "done");
    cluster.down().await;
}

#[tokio::test]
async fn several_workers_at_a_time_lose_nothing() {
    let cluster = Cluster::start(4, 1).await;
    let traffic = Traffic::start(&cluster.url(), CLIENTS).await;
    let watching = until(&cluster, "three are replaced at once", |status| {
        status["steps"]
            .as_array()
            .is_some_and(|steps| steps.len() == 3)
    });
    let updating = cluster.verb(&["update", "--parallel", "3", "--json"]);
    let (updated, seen) = tokio::join!(updating, watching);
    assert_eq!(
        (&seen["workers_done"], &seen["phase"]),
        (&1.into(), &"replacing".into())
    );
    let updated = json(&String::from_utf8_lossy(&updated.stdout));
    assert_eq!(
        (&updated["state"], &updated["workers_done"]),
        (&"done".into(), &4.into())
    );
    assert_eq!(updated["failed"], 0, "{updated}");
    for client in &mut traffic.end().await {
        assert!(client.is_alive().await);
    }
    cluster.down().await;
}

/// Kills worker 1; what the next one runs.
async fn killed_and_back(cluster: &Cluster) -> PathBuf {
    cluster.kill_worker(1).await;
    programs(cluster).await.swap_remove(0)
}

#[tokio::test]
async fn the_program_of_the_workers_outlives_its_file_and_the_orchestrator() {
    let mut cluster = Cluster::start(2, 1).await;
    let copy = Program::copy();
    let output = copy.update(&cluster, &[]).await;
    assert!(output.status.success(), "{output:?}\n{}", cluster.log());
    assert_eq!(programs(&cluster).await, vec![copy.path.clone(); 2]);
    assert_eq!(killed_and_back(&cluster).await, copy.path);
    // Another file takes its place; what is started again is still the same.
    let other = copy.path.with_file_name("other");
    fs::copy("/bin/false", &other).expect("a file is copied");
    fs::rename(&other, &copy.path).expect("it is renamed");
    let is_gone = |program: &Path| program.to_string_lossy().ends_with("/copy (deleted)");
    assert!(is_gone(&killed_and_back(&cluster).await));
    cluster.kill_orchestrator().await;
    cluster.up_again(3, |same| same).await;
    assert!(is_gone(&killed_and_back(&cluster).await));
    // And it can be rolled back to.
    let output = Program::unfit("dies_while_it_warms_up")
        .update(&cluster, &[])
        .await;
    assert!(error(&output).contains("does not start"), "{output:?}");
    let programs = programs(&cluster).await;
    assert!(
        programs.iter().all(|program| is_gone(program)),
        "{programs:?}"
    );
    cluster.down().await;
}

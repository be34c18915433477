//! Updates of everything: after the workers the brokers, and the orchestrator in
//! place.

use std::{collections::BTreeSet, fs};

use muster_tests::{Cluster, Raw, eventually, patience, status::Status};
use rustix::process::Signal;
use tokio::{net::TcpStream, sync::watch};

use super::{Traffic, assert_smooth, error, program::Program, status, update};

/// Descriptors that a process has open.
fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd"))
        .expect("the process lives")
        .count()
}

/// The same, once every node is back and asking costs none any more.
pub(super) async fn settled_descriptors(cluster: &Cluster) -> usize {
    let mut before = 0;
    eventually("every node is back", patience(), async || {
        let status = cluster.status().await?;
        let now = descriptors(status.pid);
        let is_settled = status.is_whole() && now == std::mem::replace(&mut before, now);
        if is_settled {
            Ok(now)
        } else {
            Err(format!("{now} descriptors, {status:?}"))
        }
    })
    .await
}

/// Children of a process, by pid; zombies are marked.
fn children(parent: u32) -> BTreeSet<(u32, bool)> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
            let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
            let (_, rest) = stat.rsplit_once(") ")?;
            let mut fields = rest.split(' ');
            let is_zombie = fields.next()? == "Z";
            (fields.next()? == parent.to_string()).then_some((pid, is_zombie))
        })
        .collect()
}

/// Waits until the orchestrator has exactly its nodes as children.
pub(super) async fn has_only_its_nodes(cluster: &Cluster) {
    eventually("the nodes are all there is", patience(), async || {
        let status = cluster.status().await?;
        let nodes: BTreeSet<_> = status.nodes.iter().map(|node| (node.pid, false)).collect();
        match children(status.pid) {
            found if found == nodes => Ok(()),
            found => Err(format!("{found:?} instead of {nodes:?}")),
        }
    })
    .await;
}

fn pids(status: &Status, role: &str) -> BTreeSet<u32> {
    let nodes = status.nodes.iter().filter(|node| node.role == role);
    nodes.map(|node| node.pid).collect()
}

#[tokio::test]
async fn an_update_replaces_every_process_and_keeps_the_orchestrators_pid() {
    let cluster = Cluster::start(2, 2).await;
    let mut before = cluster.status().await.unwrap();
    let traffic = Traffic::start(&cluster.url(), 20).await;
    let (stop, stopped) = watch::channel(false);
    let addr = cluster.addr().to_owned();
    let connecting = tokio::spawn(async move {
        let mut connected = 0_u32;
        while !*stopped.borrow() {
            let stream = TcpStream::connect(&addr).await;
            stream.expect("no moment at which nobody listens");
            connected += 1;
        }
        connected
    });
    let mut open = Vec::new();
    for round in 0..4 {
        let updated = update(&cluster).await;
        assert_smooth(&updated, 20);
        let following = &updated["following"];
        println!("round {round}: {updated}");
        assert_eq!(following["brokers_done"], 2, "{updated}");
        assert_eq!(following["orchestrator_done"], true, "{updated}");
        let pause = following["pause_max_us"].as_u64().unwrap();
        assert!((1..2_000_000).contains(&pause), "{updated}");
        let after = cluster.status().await.unwrap();
        assert_eq!(after.pid, before.pid);
        assert_eq!(after.listen, before.listen);
        for role in ["worker", "broker"] {
            assert_eq!(pids(&after, role).len(), 2, "{after:?}");
            assert!(pids(&after, role).is_disjoint(&pids(&before, role)));
        }
        assert!(
            after.nodes.iter().all(|node| node.restarts == 0),
            "{after:?}"
        );
        has_only_its_nodes(&cluster).await;
        before = cluster.status().await.unwrap();
        open.push(settled_descriptors(&cluster).await);
    }
    stop.send(true).unwrap();
    assert!(connecting.await.unwrap() > 0);
    let clients = traffic.end().await;
    drop(clients);
    println!("descriptors after each update: {open:?}");
    assert!(open.iter().all(|now| now <= &open[0]), "{open:?}");
    cluster.down().await;
}

#[tokio::test]
async fn an_orchestrator_that_was_executed_anew_looks_after_its_children() {
    let cluster = Cluster::start(2, 1).await;
    assert_smooth(&update(&cluster).await, 0);
    for (role, slot) in [("worker", 1), ("broker", 1)] {
        let before = cluster.status().await.unwrap();
        let victim = before.node(role, slot).unwrap();
        Cluster::signal_process(victim.pid, Signal::KILL);
        cluster.replaced(victim).await;
        let after = cluster.status().await.unwrap();
        let node = after.node(role, slot).unwrap();
        assert_eq!(node.restarts, 1);
        has_only_its_nodes(&cluster).await;
    }
    assert!(cluster.log().contains("signal 9 (SIGKILL)"));
    // And as often as one likes, with a size that was changed meanwhile.
    cluster.scale(1).await;
    cluster.has_workers(1).await;
    assert_smooth(&update(&cluster).await, 0);
    cluster.has_workers(1).await;
    Raw::connect(&cluster.url()).await;
    cluster.down().await;
}

#[tokio::test]
async fn a_program_is_remembered_by_the_next_orchestrator() {
    let program = Program::after("echo \"$1\" >> \"$here/marks\"");
    let marks = program.dir().join("marks");
    let mut cluster = Cluster::start(1, 1).await;
    let output = program.update(&cluster, &[]).await;
    assert!(output.status.success(), "{output:?}\n{}", cluster.log());
    let marked = |role: &str| {
        let text = fs::read_to_string(&marks).unwrap_or_default();
        text.lines().filter(|line| *line == role).count()
    };
    let up = marked("up") + marked("--runtime-dir");
    assert_eq!((marked("worker"), marked("broker"), up), (1, 1, 1));
    cluster.kill_worker(1).await;
    assert_eq!(marked("worker"), 2);
    cluster.kill_orchestrator().await;
    cluster.up_again(2, |same| same).await;
    cluster.kill_broker(1).await;
    assert_eq!(marked("broker"), 2);
    cluster.down().await;
}

#[tokio::test]
async fn a_new_program_whose_broker_does_not_come_up_makes_place_for_the_earlier_one() {
    let bad = Program::after("echo $$ >> \"$here/marks\"\n[ \"$1 $3\" = \"broker 2\" ] && exit 7");
    let cluster = Cluster::start(1, 2).await;
    let traffic = Traffic::start(&cluster.url(), 6).await;
    let before = cluster.status().await.unwrap();
    let output = bad.update(&cluster, &[]).await;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let error = error(&output);
    assert!(
        error.contains("broker-2 does not start: exit code 7"),
        "{error}"
    );
    let after = cluster.status().await.unwrap();
    assert_eq!(after.pid, before.pid);
    assert!(after.is_whole(), "{after:?}");
    let marks = fs::read_to_string(bad.dir().join("marks")).unwrap();
    let is_new = |pid: u32| marks.lines().any(|line| line == pid.to_string());
    for (role, slot) in [("worker", 1), ("broker", 1), ("broker", 2)] {
        let pid = |status: &Status| status.node(role, slot).unwrap().pid;
        assert_ne!(pid(&before), pid(&after), "{role}-{slot} had its turn");
        assert!(!is_new(pid(&after)), "{role}-{slot} runs the new program");
    }
    let status = status(&cluster).await;
    assert_eq!(status["workers_returned"], 1, "{status}");
    assert_eq!(status["following"]["brokers_done"], 0, "{status}");
    assert_smooth(&update(&cluster).await, 6);
    traffic.end().await;
    cluster.down().await;
}

#[tokio::test]
async fn a_program_that_cannot_take_over_leaves_the_orchestrator_as_it_is() {
    let bad = Program::after("[ \"$1\" = takeover-check ] && { echo 'not me' >&2; exit 1; }");
    let cluster = Cluster::start(1, 1).await;
    let mut client = Raw::connect(&cluster.url()).await;
    let before = cluster.status().await.unwrap();
    let output = bad.update(&cluster, &[]).await;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let error = error(&output);
    assert!(error.contains("not me"), "{error}");
    let status = status(&cluster).await;
    assert_eq!(status["state"], "failed", "{status}");
    assert_eq!(cluster.status().await.unwrap().pid, before.pid);
    assert!(client.is_alive().await);
    assert_smooth(&update(&cluster).await, 1);
    cluster.down().await;
}

#[tokio::test]
async fn the_end_of_an_update_is_known_after_it_and_by_the_next_orchestrator() {
    let mut cluster = Cluster::start(1, 1).await;
    let updated = update(&cluster).await;
    assert_eq!(status(&cluster).await, updated);
    cluster.kill_orchestrator().await;
    cluster.up_again(2, |same| same).await;
    assert_eq!(status(&cluster).await, updated);
    cluster.down().await;
}

//! An orchestrator that is killed takes nothing with it, and the next one takes
//! over what lives (delivery.md E3).

use std::{
    fs,
    io::Write as _,
    os::unix::net::UnixStream,
    process::{Child, Command},
    time::Duration,
};

use muster_tests::{Cluster, Raw, eventually, patience, status::Status};
use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};
use rustix::process::Signal;

use crate::{counted, everybody_hears_everybody, on_every_worker};

fn channels() -> Vec<String> {
    (0..8).map(|n| format!("channel {n}")).collect()
}

async fn subscribe_all(clients: &mut [Raw]) {
    for client in clients {
        for channel in channels() {
            client.subscribe(&channel).await;
        }
    }
}

/// Role, slot, pid and incarnation of each node.
fn lives(status: &Status) -> Vec<(String, u32, u32, u64)> {
    let nodes = status.nodes.iter();
    nodes
        .map(|node| (node.role.clone(), node.slot, node.pid, node.incarnation))
        .collect()
}

#[tokio::test]
async fn clients_publish_on_while_the_orchestrator_is_killed_and_started_again_and_again() {
    let mut cluster = Cluster::start(2, 2).await;
    let mut clients = on_every_worker(&cluster).await;
    subscribe_all(&mut clients).await;
    let before = cluster.status().await.unwrap();
    for round in 0..3 {
        cluster.kill_orchestrator().await;
        everybody_hears_everybody(&mut clients, &channels(), &format!("alone {round}")).await;
        let after = cluster.up_again(4, |same| same).await;
        assert_eq!(lives(&after), lives(&before), "the same processes");
        assert_eq!(after.listen, before.listen);
        assert!(after.nodes.iter().all(|node| node.restarts == 0));
        everybody_hears_everybody(&mut clients, &channels(), &format!("after {round}")).await;
    }
    cluster.down().await;
}

#[tokio::test]
async fn nothing_that_is_published_meanwhile_is_lost_repeated_or_out_of_order() {
    let mut cluster = Cluster::start(2, 1).await;
    let mut clients = on_every_worker(&cluster).await;
    subscribe_all(&mut clients).await;
    let mut publisher = Raw::connect(&cluster.url()).await;
    let (stop, stopped) = tokio::sync::oneshot::channel();
    let publishing = tokio::spawn(async move {
        let mut stopped = std::pin::pin!(stopped);
        for n in 0_u32.. {
            let channel = &channels()[n as usize % channels().len()];
            publisher.publish(channel, &n.to_string()).await;
            if futures_util::poll!(&mut stopped).is_ready() {
                return n;
            }
        }
        unreachable!("it is stopped")
    });
    for _ in 0..2 {
        cluster.kill_orchestrator().await;
        cluster.up_again(3, |same| same).await;
    }
    stop.send(()).unwrap();
    let last = publishing.await.unwrap();
    for client in &mut clients {
        let mut heard = Vec::new();
        while heard.len() <= last as usize {
            heard.push(client.delivery().await);
        }
        for (at, channel) in channels().iter().enumerate() {
            let got = heard.iter().filter(|(name, _)| name == channel);
            let got: Vec<u32> = got
                .map(|(_, data)| data.as_ref().unwrap().parse().unwrap())
                .collect();
            let sent: Vec<u32> = (0..=last)
                .filter(|n| *n as usize % channels().len() == at)
                .collect();
            assert_eq!(got, sent, "{channel}");
        }
    }
    cluster.down().await;
}

#[tokio::test]
async fn a_node_that_was_taken_over_and_dies_is_replaced() {
    let mut cluster = Cluster::start(2, 2).await;
    cluster.kill_orchestrator().await;
    cluster.up_again(4, |same| same).await;
    tokio::join!(cluster.kill_worker(1), cluster.kill_broker(2));
    let status = cluster.status().await.unwrap();
    let worker = status.node("worker", 1).unwrap();
    assert_eq!(worker.restarts, 1);
    let mut clients = on_every_worker(&cluster).await;
    subscribe_all(&mut clients).await;
    // And again, now with nodes of two orchestrators.
    cluster.kill_orchestrator().await;
    let after = cluster.up_again(4, |same| same).await;
    assert_eq!(lives(&after), lives(&status));
    assert_eq!(after.node("worker", 1).unwrap().restarts, 1);
    everybody_hears_everybody(&mut clients, &channels(), "after").await;
    assert!(cluster.log().contains("exit unknown (adopted)"));
    cluster.down().await;
}

#[tokio::test]
async fn what_died_with_the_orchestrator_is_started_and_the_rest_goes_on() {
    let mut cluster = Cluster::start(2, 2).await;
    let mut clients = on_every_worker(&cluster).await;
    let before = cluster.status().await.unwrap();
    cluster.kill_orchestrator().await;
    for (role, slot) in [("worker", 2), ("broker", 1)] {
        cluster.signal_last_known(&before, role, slot, Signal::KILL);
    }
    let after = cluster.up_again(4, |same| same).await;
    for node in &after.nodes {
        let known = before.node(&node.role, node.slot).unwrap();
        let died = [("worker", 2), ("broker", 1)].contains(&(node.role.as_str(), node.slot));
        assert_eq!(node.pid != known.pid, died, "{node:?}");
        assert_eq!(node.incarnation > known.incarnation, died, "{node:?}");
    }
    let mut kept = Vec::new();
    for mut client in clients.drain(..) {
        if client.is_alive().await {
            kept.push(client);
        }
    }
    assert!(!kept.is_empty(), "clients of the other worker stayed");
    kept.push(Raw::connect(&cluster.url()).await);
    subscribe_all(&mut kept).await;
    everybody_hears_everybody(&mut kept, &channels(), "after").await;
    cluster.down().await;
}

#[tokio::test]
async fn without_a_living_worker_the_address_is_bound_anew_and_stays_the_same() {
    let mut cluster = Cluster::start(1, 1).await;
    let before = cluster.status().await.unwrap();
    cluster.kill_orchestrator().await;
    cluster.signal_last_known(&before, "worker", 1, Signal::KILL);
    let after = cluster.up_again(2, |same| same).await;
    assert_eq!(after.listen, before.listen);
    assert_eq!(
        after.node("broker", 1).unwrap().pid,
        before.node("broker", 1).unwrap().pid
    );
    Raw::connect(&cluster.url()).await;
    cluster.down().await;
}

#[tokio::test]
async fn nodes_beyond_the_wanted_number_stay_and_missing_ones_are_started() {
    let mut cluster = Cluster::start(2, 1).await;
    let mut clients = on_every_worker(&cluster).await;
    let before = cluster.status().await.unwrap();
    cluster.kill_orchestrator().await;
    let fewer = cluster.up_again(3, |builder| builder.size(1, 1)).await;
    assert_eq!(lives(&fewer), lives(&before));
    cluster.kill_orchestrator().await;
    let more = cluster.up_again(5, |builder| builder.size(4, 1)).await;
    assert_eq!(more.workers().len(), 4);
    for client in &mut clients {
        assert!(client.is_alive().await);
    }
    cluster.down().await;
}

#[tokio::test]
async fn a_changed_configuration_is_named_and_waits_for_down_and_up() {
    let mut cluster = Cluster::start(1, 1).await;
    let mut client = Raw::connect(&cluster.url()).await;
    cluster.kill_orchestrator().await;
    cluster
        .up_again(2, |builder| {
            builder.config("[listener]\npath = \"/game/\"\n[limits]\nconnections_max = 7")
        })
        .await;
    let log = cluster.log();
    assert!(
        log.contains("listener.path, limits.connections_max"),
        "{log}"
    );
    // The old path is served still, also by a worker that is started now.
    client.publish("a", "1").await;
    cluster.kill_worker(1).await;
    Raw::connect(&cluster.url()).await;
    cluster.down().await;
}

/// Waits until the log says it.
async fn logged(cluster: &Cluster, text: &str) {
    eventually(&format!("{text:?} is logged"), patience(), async || {
        if cluster.log().contains(text) {
            Ok(())
        } else {
            Err("it is not".into())
        }
    })
    .await;
}

#[tokio::test]
async fn with_a_state_that_is_garbage_nothing_is_left_orphaned_and_the_cluster_starts() {
    for garbage in ["", "no json", "{\"version\":99}"] {
        let mut cluster = Cluster::start(1, 1).await;
        let before = cluster.status().await.unwrap();
        cluster.kill_orchestrator().await;
        let file = cluster.runtime_dir().join("state.json");
        fs::write(&file, garbage).unwrap();
        let after = cluster.up_again(2, |same| same).await;
        for node in &after.nodes {
            assert_ne!(node.pid, before.node(&node.role, node.slot).unwrap().pid);
        }
        logged(&cluster, file.to_str().unwrap()).await;
        logged(&cluster, "cannot be taken over").await;
        Raw::connect(&cluster.url()).await;
        cluster.down().await;
    }
}

/// A process that has nothing to do with any cluster; killed at the end.
struct Bystander(Child);

impl Bystander {
    fn start() -> Self {
        Self(Command::new("sleep").arg("600").spawn().expect("it starts"))
    }

    fn is_alive(&mut self) -> bool {
        matches!(self.0.try_wait(), Ok(None))
    }
}

impl Drop for Bystander {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn a_pid_that_is_another_processs_by_now_is_not_touched() {
    let mut cluster = Cluster::start(2, 1).await;
    let mut bystander = Bystander::start();
    let before = cluster.status().await.unwrap();
    cluster.kill_orchestrator().await;
    cluster.signal_last_known(&before, "worker", 2, Signal::KILL);
    let file = cluster.runtime_dir().join("state.json");
    let mut state: serde_json::Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    for node in state["nodes"].as_array_mut().unwrap() {
        if node["role"] == "worker" && node["slot"] == 2 {
            node["pid"] = bystander.0.id().into();
        }
        if node["role"] == "worker" && node["slot"] == 1 {
            // The right pid, but of a process that was started at another time.
            node["start_ticks"] = 1.into();
        }
    }
    fs::write(&file, state.to_string()).unwrap();
    let after = cluster.up_again(3, |same| same).await;
    for slot in [1, 2] {
        let pid = after.node("worker", slot).unwrap().pid;
        assert_ne!(pid, before.node("worker", slot).unwrap().pid);
        assert_ne!(pid, bystander.0.id());
    }
    assert_eq!(
        after.node("broker", 1).unwrap().pid,
        before.node("broker", 1).unwrap().pid
    );
    cluster.down().await;
    assert!(bystander.is_alive());
}

#[tokio::test]
async fn ctrl_c_and_a_second_signal_end_nodes_that_were_taken_over() {
    let mut cluster = Cluster::start(2, 1).await;
    cluster.kill_orchestrator().await;
    cluster.up_again(3, |same| same).await;
    let mut client = Raw::connect(&cluster.url()).await;
    cluster.signal(Signal::INT);
    client.closed().await;
    assert!(cluster.ended().await.success());
    assert_eq!(cluster.left_behind(), Vec::<String>::new());

    let mut cluster = Cluster::builder(1, 1)
        .config("[shutdown]\ncloses_per_second = 1\ntimeout = \"10m\"")
        .start()
        .await;
    cluster.kill_orchestrator().await;
    cluster.up_again(2, |same| same).await;
    let mut clients = Vec::new();
    for _ in 0..patience().as_secs() * 3 {
        clients.push(Raw::connect(&cluster.url()).await);
    }
    cluster.signal(Signal::TERM);
    logged(&cluster, "Closing the connections.").await;
    cluster.signal(Signal::TERM);
    cluster.ended().await;
    assert_eq!(cluster.left_behind(), Vec::<String>::new());
}

#[tokio::test]
async fn the_log_of_nodes_that_were_taken_over_is_heard_again() {
    let mut cluster = Cluster::start(1, 1).await;
    cluster.kill_orchestrator().await;
    let status = cluster.up_again(2, |same| same).await;
    let lines = cluster.log().len();
    cluster.signal_last_known(&status, "worker", 1, Signal::TERM);
    eventually(
        "the worker's last words are there",
        patience(),
        async || match cluster.log().get(lines..) {
            Some(log) if log.contains("Worker ended.") => Ok(()),
            log => Err(format!("{log:?}")),
        },
    )
    .await;
}

#[tokio::test]
async fn an_orchestrator_that_is_killed_at_any_moment_of_its_start_can_be_started_again() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut cluster = Cluster::start(2, 2).await;
    let mut clients = on_every_worker(&cluster).await;
    subscribe_all(&mut clients).await;
    for round in 0..3 {
        for _ in 0..4 {
            cluster.kill_orchestrator().await;
            cluster.begin_up_again();
            // Somewhere between the first look around and the last node's join.
            tokio::time::sleep(Duration::from_micros(rng.random_range(0..80_000))).await;
        }
        cluster.kill_orchestrator().await;
        let status = cluster.up_again(4, |same| same).await;
        assert!(status.nodes.iter().all(|node| node.restarts == 0));
        everybody_hears_everybody(&mut clients, &channels(), &format!("round {round}")).await;
    }
    cluster.down().await;
}

#[tokio::test]
async fn a_first_start_that_is_killed_at_any_moment_leaves_nothing_in_the_way_of_the_next() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut rng = SmallRng::seed_from_u64(seed);
    for _ in 0..8 {
        let mut cluster = Cluster::builder(2, 1).begin();
        tokio::time::sleep(Duration::from_micros(rng.random_range(0..150_000))).await;
        cluster.kill_orchestrator().await;
        cluster.up_again(3, |same| same).await;
        Raw::connect(&cluster.url()).await;
        cluster.down().await;
    }
}

#[tokio::test]
async fn a_worker_that_hangs_while_there_is_no_orchestrator_holds_the_next_one_up_briefly() {
    let mut cluster = Cluster::start(1, 1).await;
    let before = cluster.status().await.unwrap();
    cluster.kill_orchestrator().await;
    cluster.signal_last_known(&before, "worker", 1, Signal::STOP);
    let after = cluster.up_again(2, |same| same).await;
    assert_ne!(
        after.node("worker", 1).unwrap().pid,
        before.node("worker", 1).unwrap().pid
    );
    Raw::connect(&cluster.url()).await;
    cluster.down().await;
}

#[tokio::test]
async fn a_cluster_that_was_ending_is_whole_again_once_its_last_clients_are_gone() {
    let mut cluster = Cluster::builder(2, 1)
        .config("[shutdown]\ncloses_per_second = 1\ntimeout = \"5s\"")
        .start()
        .await;
    let mut clients = on_every_worker(&cluster).await;
    let before = cluster.status().await.unwrap();
    cluster.signal(Signal::TERM);
    clients[0].closed().await;
    cluster.kill_orchestrator().await;
    cluster.up_again(3, |same| same).await;
    eventually("both workers are new", patience(), async || {
        let status = cluster.status().await?;
        let is_new = |slot| {
            let node = status.node("worker", slot)?;
            let pid = before.node("worker", slot)?.pid;
            (node.pid != pid && node.state == "ready").then_some(())
        };
        is_new(1).and(is_new(2)).ok_or(format!("{status:?}"))
    })
    .await;
    Raw::connect(&cluster.url()).await;
    cluster.down().await;
}

#[tokio::test]
async fn garbage_on_a_workers_socket_harms_nobody() {
    let mut cluster = Cluster::start(1, 1).await;
    let mut client = Raw::connect(&cluster.url()).await;
    let sockets: Vec<_> = fs::read_dir(cluster.runtime_dir())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.to_string_lossy().contains("/worker-"))
        .collect();
    assert_eq!(sockets.len(), 1);
    for garbage in [vec![0; 1 << 20], b"GET / HTTP/1.1\r\n\r\n".to_vec(), vec![]] {
        let mut peer = UnixStream::connect(&sockets[0]).unwrap();
        // The worker closes as soon as it has seen enough.
        let _ = peer.write_all(&garbage);
        drop(peer);
        client.publish("a", "1").await;
    }
    cluster.kill_orchestrator().await;
    cluster.up_again(2, |same| same).await;
    assert!(client.is_alive().await);
    cluster.down().await;
}

#[tokio::test]
async fn a_cluster_that_was_scaled_keeps_its_size_and_goes_on_with_what_was_under_way() {
    let mut cluster = Cluster::builder(2, 1)
        .config("[shutdown]\ntimeout = \"4s\"")
        .start()
        .await;
    let scale = cluster.verb(&["scale", "--workers", "3"]).await;
    assert!(scale.status.success(), "{scale:?}");
    eventually("there are three", patience(), async || {
        match cluster.status().await? {
            status if status.is_whole() && status.workers().len() == 3 => Ok(()),
            status => Err(format!("{status:?}")),
        }
    })
    .await;
    cluster.kill_orchestrator().await;
    cluster.up_again(4, |same| same).await;

    let clients = on_every_worker(&cluster).await;
    counted(&cluster, clients.len()).await;
    let scale = cluster.verb(&["scale", "--workers", "1"]).await;
    assert!(scale.status.success(), "{scale:?}");
    cluster.kill_orchestrator().await;
    cluster.begin_up_again_with(|builder| builder.size(1, 1));
    eventually("there is one", patience(), async || {
        match cluster.status().await? {
            status if status.is_whole() && status.workers().len() == 1 => Ok(()),
            status => Err(format!("{status:?}")),
        }
    })
    .await;
    let after = counted(&cluster, clients.len()).await;
    assert_eq!(after, [clients.len() as u64], "nobody was lost");
    assert!(
        !cluster.log().contains("Closing the connections.\""),
        "told to go away"
    );
    cluster.down().await;
}

//! Nodes that hang, and an orchestrator that does.

use std::process::Command;

use muster_tests::{Cluster, Raw, eventually, patience, tools};
use rustix::process::Signal;
use tokio::time::{Duration, sleep};

use crate::{
    counted, everybody_hears_everybody,
    failures::{channels, service_is_whole, subscribe_all},
    on_every_worker,
};

#[tokio::test]
async fn a_stopped_broker_is_replaced_and_every_publication_is_acknowledged() {
    let cluster = Cluster::builder(2, 2)
        .config("[link]\npublish_timeout = \"15s\"")
        .start()
        .await;
    let mut clients = on_every_worker(&cluster).await;
    let channels = channels();
    subscribe_all(&mut clients, &channels).await;
    let before = cluster.status().await.unwrap();
    let victim = before.node("broker", 1).unwrap();
    cluster.signal_node("broker", 1, Signal::STOP).await;
    for client in &mut clients {
        for channel in &channels {
            client.publish(channel, "\"meanwhile\"").await;
        }
    }
    let node = cluster.replaced(victim).await;
    assert_eq!(node.restarts, 1);
    let exit = node.last_exit.unwrap();
    assert!(exit.contains("SIGKILL") && exit.contains("hung"), "{exit}");
    service_is_whole(&mut clients, &channels).await;
    let after = cluster.status().await.unwrap();
    for (role, slot) in [("broker", 2), ("worker", 1), ("worker", 2)] {
        assert_eq!(after.node(role, slot).unwrap().restarts, 0, "{role} {slot}");
    }
    let log = cluster.log();
    assert!(log.contains("Node hangs"), "{log}");
    cluster.down().await;
}

#[tokio::test]
async fn a_stopped_worker_is_replaced_and_the_others_clients_notice_nothing() {
    let cluster = Cluster::builder(2, 1)
        .config("[supervision]\nworker_hung_after = \"2s\"")
        .start()
        .await;
    let clients = on_every_worker(&cluster).await;
    let counts = counted(&cluster, clients.len()).await;
    let before = cluster.status().await.unwrap();
    cluster.signal_node("worker", 1, Signal::STOP).await;
    // Whoever comes meanwhile is taken by the other.
    let mut newcomer = Raw::connect(&cluster.url()).await;
    cluster.replaced(before.node("worker", 1).unwrap()).await;
    let mut kept = 0;
    for mut client in clients {
        kept += u64::from(client.is_alive().await);
    }
    assert_eq!(kept, counts[1], "{counts:?}");
    assert!(newcomer.is_alive().await);
    let after = cluster.status().await.unwrap();
    assert_eq!(after.node("worker", 2).unwrap().restarts, 0);
    assert_eq!(after.node("broker", 1).unwrap().restarts, 0);
}

#[tokio::test]
async fn a_node_that_hangs_while_it_starts_is_replaced_until_one_does_start() {
    let cluster = Cluster::builder(2, 1)
        .config("[supervision]\nstart_timeout = \"2s\"")
        .start()
        .await;
    let before = cluster.status().await.unwrap();
    // Whoever opens a pipe that nobody writes to waits for ever.
    let config = cluster.runtime_dir().join("config.toml");
    let aside = cluster.runtime_dir().join("aside.toml");
    std::fs::rename(&config, &aside).unwrap();
    tools::run(Command::new("mkfifo").arg(&config));
    cluster.signal_node("worker", 1, Signal::KILL).await;
    eventually("the next life is found hanging", patience(), async || {
        let status = cluster.status().await?;
        let node = status.node("worker", 1).ok_or("it is not listed")?;
        match &node.last_exit {
            Some(exit) if exit.contains("hung") => Ok(()),
            Some(_) | None => Err(format!("{node:?}")),
        }
    })
    .await;
    std::fs::rename(&aside, &config).unwrap();
    let victim = before.node("worker", 1).unwrap();
    assert!(cluster.replaced(victim).await.restarts >= 2);
    cluster.down().await;
}

#[tokio::test]
async fn an_orchestrator_that_stood_still_or_the_whole_machine_kills_nobody() {
    let cluster = Cluster::builder(2, 2)
        .config("[supervision]\nworker_hung_after = \"2s\"")
        .start()
        .await;
    let before = cluster.status().await.unwrap();
    for whole_machine in [false, true] {
        if whole_machine {
            cluster.signal_all(&before, Signal::STOP);
        } else {
            cluster.signal(Signal::STOP);
        }
        // Not to wait for something: this is how long it stands still.
        sleep(Duration::from_secs(3)).await;
        cluster.signal_all(&before, Signal::CONT);
        // As long as it would take to find a node silent.
        for _ in 0..10 {
            sleep(Duration::from_millis(250)).await;
            let after = cluster.status().await.unwrap();
            assert_eq!(after.pids(), before.pids(), "{}", cluster.log());
        }
    }
    cluster.down().await;
}

/// Waits until the broker reports a number of shards that `holds`.
async fn shards_are(cluster: &Cluster, slot: u32, holds: impl Fn(u32) -> bool) {
    let what = format!("broker {slot} has as many shards as it should");
    eventually(&what, patience(), async || {
        let status = cluster.status().await?;
        let node = status.node("broker", slot).ok_or("it is not listed")?;
        match &node.stats {
            Some(stats) if holds(stats.shards) => Ok(()),
            Some(_) | None => Err(format!("{node:?}")),
        }
    })
    .await;
}

#[tokio::test]
async fn shards_of_a_broker_in_a_crash_loop_move_and_come_back_under_connected_clients() {
    let cluster = Cluster::start(2, 2).await;
    let mut clients = on_every_worker(&cluster).await;
    let channels = channels();
    subscribe_all(&mut clients, &channels).await;
    let before = cluster.status().await.unwrap();
    let victim = before.node("broker", 1).unwrap();
    // Where its next lives want their sockets there is something else.
    let obstacles: Vec<_> = (1..=4)
        .map(|n| format!("broker-1-{}.sock", victim.incarnation + n))
        .map(|name| cluster.runtime_dir().join(name))
        .collect();
    for obstacle in &obstacles {
        std::fs::create_dir(obstacle).unwrap();
    }
    cluster.signal_node("broker", 1, Signal::KILL).await;
    shards_are(&cluster, 2, |shards| shards == 256).await;
    service_is_whole(&mut clients, &channels).await;
    everybody_hears_everybody(&mut clients, &channels, "without").await;

    let back = cluster.replaced(victim).await;
    assert!(back.incarnation > victim.incarnation + 4, "{back:?}");
    shards_are(&cluster, 1, |shards| shards > 0).await;
    service_is_whole(&mut clients, &channels).await;
    everybody_hears_everybody(&mut clients, &channels, "with").await;
    let after = cluster.status().await.unwrap();
    assert_eq!(after.node("broker", 2).unwrap().restarts, 0);
    for obstacle in &obstacles {
        std::fs::remove_dir(obstacle).unwrap();
    }
    cluster.down().await;
}

//! Nodes that hang, and an orchestrator that does.

use muster_tests::{Cluster, Raw, eventually, patience};
use rustix::process::Signal;
use tokio::time::{Duration, sleep};

use crate::{
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
    let counts = eventually("all connections are counted", patience(), async || {
        let counts = cluster.connections().await;
        if counts.iter().sum::<u64>() == clients.len() as u64 {
            Ok(counts)
        } else {
            Err(format!("{counts:?}"))
        }
    })
    .await;
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

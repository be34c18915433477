//! Processes killed under the clients.

use muster_tests::{Cluster, Raw, eventually, patience};
use tokio::time::{Duration, timeout};

use crate::{everybody_hears_everybody, on_every_worker};

/// Longer than the deliveries of a round take.
const ROUND: Duration = Duration::from_secs(2);

/// Enough names to meet every broker.
pub(crate) fn channels() -> Vec<String> {
    (0..24).map(|n| format!("channel {n}")).collect()
}

pub(crate) async fn subscribe_all(clients: &mut [Raw], channels: &[String]) {
    for client in clients {
        for channel in channels {
            client.subscribe(channel).await;
        }
    }
}

/// Publishes on every channel until every client has got something of the same
/// round on every channel: the links have found each other again.
pub(crate) async fn service_is_whole(clients: &mut [Raw], channels: &[String]) {
    let mut round = 0;
    eventually("all channels reach all clients", patience(), async || {
        round += 1;
        let text = format!(r#""probe {round}""#);
        for channel in channels {
            let data = format!(r#"{{"channel":"{channel}","data":{text}}}"#);
            let answer = clients[0].call("#publish", &data).await;
            if answer.contains("error") {
                return Err(answer);
            }
        }
        for client in clients.iter_mut() {
            let everything = async {
                let mut seen = 0;
                while seen < channels.len() {
                    let (_, data) = client.delivery().await;
                    seen += usize::from(data.as_deref() == Some(&text));
                }
            };
            // A subscription that is not back yet misses some; the next round tells.
            timeout(ROUND, everything)
                .await
                .map_err(|_| format!("round {round} had holes"))?;
        }
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn clients_of_a_killed_broker_stay_connected_and_are_served_again() {
    let cluster = Cluster::start(2, 2).await;
    let mut clients = on_every_worker(&cluster).await;
    let channels = channels();
    subscribe_all(&mut clients, &channels).await;
    for slot in [1, 2] {
        cluster.kill_broker(slot).await;
        service_is_whole(&mut clients, &channels).await;
        everybody_hears_everybody(&mut clients, &channels, &format!("after {slot}")).await;
    }
    let status = cluster.status().await.unwrap();
    assert_eq!(status.node("broker", 1).unwrap().restarts, 1);
    assert_eq!(status.node("worker", 1).unwrap().restarts, 0);
    cluster.down().await;
}

#[tokio::test]
async fn the_only_broker_may_be_killed_again_and_again() {
    let cluster = Cluster::start(2, 1).await;
    let mut clients = on_every_worker(&cluster).await;
    let channels = channels();
    subscribe_all(&mut clients, &channels).await;
    for _ in 0..2 {
        cluster.kill_broker(1).await;
        service_is_whole(&mut clients, &channels).await;
    }
    everybody_hears_everybody(&mut clients, &channels, "after").await;
}

#[tokio::test]
async fn a_publication_that_waits_for_its_broker_is_acknowledged_once_it_is_back() {
    let cluster = Cluster::start(1, 1).await;
    let mut client = Raw::connect(&cluster.url()).await;
    client.subscribe("a").await;
    for n in 0..20 {
        client
            .send(&format!(
                r##"{{"event":"#publish","data":{{"channel":"a","data":{n}}},"cid":{}}}"##,
                n + 100
            ))
            .await;
        if n == 10 {
            cluster.kill_broker(1).await;
        }
    }
    let mut acknowledged = 0;
    let mut last = None;
    while acknowledged < 20 {
        let text = client.receive().await;
        if text.starts_with(r#"{"rid":"#) {
            assert!(!text.contains("error"), "{text}");
            acknowledged += 1;
        } else {
            let n: u32 = text
                .rsplit_once(r#""data":"#)
                .unwrap()
                .1
                .trim_end_matches('}')
                .parse()
                .unwrap();
            assert!(last < Some(n), "{n} after {last:?}");
            last = Some(n);
        }
    }
}

#[tokio::test]
async fn only_the_clients_of_a_killed_worker_lose_their_connection() {
    let cluster = Cluster::start(2, 2).await;
    let mut clients = on_every_worker(&cluster).await;
    let channels = channels();
    subscribe_all(&mut clients, &channels).await;
    let before = eventually("all connections are counted", patience(), async || {
        let counts = cluster.connections().await;
        let all = counts.iter().sum::<u64>() == clients.len() as u64;
        if all {
            Ok(counts)
        } else {
            Err(format!("{counts:?}"))
        }
    })
    .await;
    cluster.kill_worker(1).await;

    let mut kept = Vec::new();
    let mut lost = 0;
    for mut client in clients {
        // A killed process's sockets are closed before it is reaped, and that is
        // before its successor was started: whoever lost the connection knows it.
        if client.is_alive().await {
            kept.push(client);
        } else {
            lost += 1;
        }
    }
    assert_eq!(lost, before[0], "{before:?}");
    assert_eq!(kept.len() as u64, before[1], "{before:?}");

    // New clients find the new worker, and everybody reaches everybody.
    for _ in 0..lost {
        let mut client = Raw::connect(&cluster.url()).await;
        subscribe_all(std::slice::from_mut(&mut client), &channels).await;
        kept.push(client);
    }
    eventually("the new worker has clients", patience(), async || {
        let counts = cluster.connections().await;
        if counts.iter().all(|count| *count > 0) {
            Ok(())
        } else {
            Err(format!("{counts:?}"))
        }
    })
    .await;
    everybody_hears_everybody(&mut kept, &channels, "after").await;
    cluster.down().await;
}

#[tokio::test]
async fn every_process_may_be_killed_at_once() {
    let cluster = Cluster::start(2, 2).await;
    tokio::join!(
        cluster.kill_worker(1),
        cluster.kill_worker(2),
        cluster.kill_broker(1),
        cluster.kill_broker(2),
    );
    let mut clients = on_every_worker(&cluster).await;
    let channels = channels();
    subscribe_all(&mut clients, &channels).await;
    service_is_whole(&mut clients, &channels).await;
    everybody_hears_everybody(&mut clients, &channels, "after").await;
    cluster.down().await;
}

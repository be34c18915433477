//! Whole clusters of real processes, seen from outside.

mod adoption;
mod auth;
mod bench;
mod closes;
mod command_line;
mod deploy;
mod failures;
mod handover;
mod heartbeat;
mod history;
mod http;
mod journal;
mod journal_files;
mod limits;
mod namespaces;
mod operator_verbs;
mod operators;
mod packets;
mod positions;
mod publishing;
mod rates;
mod reload;
mod scale;
mod scale_brokers;
mod sdk;
mod supervision;

use std::collections::BTreeSet;

use muster_tests::{Cluster, Raw, eventually, patience};
use serde_json::Value;

/// Connects clients until every worker has at least one.
async fn on_every_worker(cluster: &Cluster) -> Vec<Raw> {
    let workers = cluster.connections().await.len();
    let mut clients = Vec::new();
    for _ in 0..4 * workers {
        clients.push(Raw::connect(&cluster.url()).await);
    }
    eventually("every worker has a client", patience(), async || {
        let counts = cluster.connections().await;
        if counts.iter().all(|count| *count > 0) {
            return Ok(());
        }
        if clients.len() < 50 * workers {
            clients.push(Raw::connect(&cluster.url()).await);
        }
        Err(format!("{counts:?}"))
    })
    .await;
    clients
}

/// Open connections of each worker once there are `count` of them.
async fn counted(cluster: &Cluster, count: usize) -> Vec<u64> {
    eventually("all connections are counted", patience(), async || {
        let counts = cluster.connections().await;
        if counts.iter().sum::<u64>() == count as u64 {
            Ok(counts)
        } else {
            Err(format!("{counts:?}"))
        }
    })
    .await
}

/// Every client publishes on every channel, and every client, subscribed to all
/// of them, gets everything; per channel all see one order.
async fn everybody_hears_everybody(clients: &mut [Raw], channels: &[String], round: &str) {
    for (n, client) in clients.iter_mut().enumerate() {
        for channel in channels {
            client.publish(channel, &format!(r#""{round} {n}""#)).await;
        }
    }
    let mut orders = BTreeSet::new();
    let count = clients.len();
    for client in clients {
        let mut heard = vec![Vec::new(); channels.len()];
        while heard.iter().any(|of_one| of_one.len() < count) {
            let (channel, data) = client.delivery().await;
            let at = channels
                .iter()
                .position(|name| *name == channel)
                .expect("a known channel");
            let data = data.expect("there is data");
            if data.contains(round) {
                heard[at].push(data);
            }
        }
        orders.insert(heard);
    }
    assert_eq!(orders.len(), 1, "all see one order per channel");
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// The name of the error in an answer.
fn error_name(answer: &str) -> String {
    let answer = json(answer);
    answer["error"]["name"]
        .as_str()
        .unwrap_or_else(|| panic!("no error name: {answer}"))
        .to_owned()
}

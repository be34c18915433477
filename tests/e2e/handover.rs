//! Workers that are replaced under their clients: nobody is disconnected, and
//! nothing is lost, repeated or out of order.

use muster_tests::{Cluster, Raw};
use serde_json::Value;

use crate::{json, on_every_worker};

/// Replaces all workers; what `update --json` answers.
async fn update(cluster: &Cluster) -> Value {
    let output = cluster.verb(&["update", "--json"]).await;
    assert!(output.status.success(), "{output:?}\n{}", cluster.log());
    json(&String::from_utf8_lossy(&output.stdout))
}

#[tokio::test]
async fn an_idle_subscriber_keeps_its_connection_through_an_update() {
    let cluster = Cluster::start(1, 1).await;
    let mut client = Raw::connect(&cluster.url()).await;
    client.subscribe("news").await;
    let before = cluster.status().await.unwrap();
    let updated = update(&cluster).await;
    assert_eq!(updated["state"], "done");
    assert_eq!(
        (&updated["moved"], &updated["workers_done"]),
        (&1.into(), &1.into())
    );
    let after = cluster.status().await.unwrap();
    let (before, after) = (
        before.node("worker", 1).unwrap(),
        after.node("worker", 1).unwrap(),
    );
    assert_ne!(before.pid, after.pid);
    assert_eq!((after.state.as_str(), after.restarts), ("ready", 0));
    client.publish("news", "1").await;
    assert_eq!(client.delivery().await, ("news".into(), Some("1".into())));
    // And new ones find the new worker.
    for mut other in on_every_worker(&cluster).await {
        assert!(other.is_alive().await);
    }
    cluster.down().await;
}

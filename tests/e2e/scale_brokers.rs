//! More and fewer brokers while clients publish.

use std::collections::HashMap;

use muster_proto::{SHARDS, shards_per_broker_max};
use muster_tests::{Cluster, Raw, eventually, patience, status::Status};
use tokio::{sync::oneshot, task::JoinHandle};

use crate::{
    everybody_hears_everybody,
    failures::{channels, service_is_whole, subscribe_all},
    on_every_worker,
};

/// Ends what a listener waits for.
const END: &str = "\"end\"";

/// Waits until exactly so many brokers are there, all nodes are ready, and
/// nothing is being scaled or moved any more: every shard has one owner, and no
/// broker more than its share.
async fn has_brokers(cluster: &Cluster, count: u32) -> Status {
    let share = shards_per_broker_max(count as usize).expect("there are brokers");
    eventually(&format!("{count} brokers"), patience(), async || {
        let status = cluster.status().await?;
        let shards = status.shards();
        let is_even = shards.iter().all(|shards| *shards as usize <= share);
        let are_all = shards.iter().sum::<u32>() as usize == SHARDS;
        let is_settled = status.scaling.is_none() && status.is_whole();
        if shards.len() == count as usize && is_even && are_all && is_settled {
            Ok(status)
        } else {
            Err(format!("{status:?}"))
        }
    })
    .await
}

/// Publishes numbers on all channels in turn, each when the last one is
/// acknowledged, until told to stop.
fn publish_on(mut client: Raw, channels: Vec<String>) -> (oneshot::Sender<()>, JoinHandle<u32>) {
    let (stop, stopped) = oneshot::channel();
    let publishing = tokio::spawn(async move {
        let mut stopped = std::pin::pin!(stopped);
        for n in 0_u32.. {
            let channel = &channels[n as usize % channels.len()];
            client.publish(channel, &n.to_string()).await;
            if futures_util::poll!(&mut stopped).is_ready() {
                for channel in &channels {
                    client.publish(channel, END).await;
                }
                return n + 1;
            }
        }
        unreachable!("it is stopped")
    });
    (stop, publishing)
}

/// Everything that arrives, by channel, until every channel has ended.
fn listen(mut client: Raw, channels: usize) -> JoinHandle<HashMap<String, Vec<u32>>> {
    tokio::spawn(async move {
        let mut heard: HashMap<String, Vec<u32>> = HashMap::new();
        let mut ended = 0;
        while ended < channels {
            let (channel, data) = client.delivery().await;
            let data = data.expect("there is data");
            match data.parse() {
                Ok(n) => heard.entry(channel).or_default().push(n),
                Err(_) => ended += usize::from(data == END),
            }
        }
        assert!(client.is_alive().await);
        heard
    })
}

fn assert_whole(heard: &HashMap<String, Vec<u32>>, channels: &[String], published: u32) {
    for (at, channel) in channels.iter().enumerate() {
        let sent: Vec<u32> = (0..published)
            .filter(|n| *n as usize % channels.len() == at)
            .collect();
        assert_eq!(heard[channel], sent, "{channel}");
    }
}

#[tokio::test]
async fn brokers_come_and_go_while_clients_publish_and_none_is_disconnected() {
    let cluster = Cluster::start(2, 2).await;
    let mut clients = on_every_worker(&cluster).await;
    let channels = channels();
    subscribe_all(&mut clients, &channels).await;
    let mut listener = Raw::connect(&cluster.url()).await;
    subscribe_all(std::slice::from_mut(&mut listener), &channels).await;
    let listening = listen(listener, channels.len());
    let publisher = Raw::connect(&cluster.url()).await;
    let before = has_brokers(&cluster, 2).await;

    let (stop, publishing) = publish_on(publisher, channels.clone());
    for brokers in [4, 3] {
        cluster.scale_brokers(brokers).await;
        let status = has_brokers(&cluster, brokers).await;
        for slot in [1, 2] {
            let (now, then) = (status.node("broker", slot), before.node("broker", slot));
            assert_eq!(now.unwrap().pid, then.unwrap().pid, "it stays as it is");
        }
    }
    stop.send(()).unwrap();
    let published = publishing.await.unwrap();
    let heard = listening.await.unwrap();
    assert_whole(&heard, &channels, published);
    everybody_hears_everybody(&mut clients, &channels, "after").await;
    for client in &mut clients {
        assert!(client.is_alive().await);
    }
    cluster.down().await;
}

#[tokio::test]
async fn workers_and_brokers_are_scaled_in_one_call_and_brokers_once_at_a_time() {
    let cluster = Cluster::start(1, 1).await;
    let arguments = ["scale", "--workers", "2", "--brokers", "3"];
    let output = cluster.verb(&arguments).await;
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("2 workers and 3 brokers"), "{text}");
    assert!(text.contains("worker-2, broker-2, broker-3"), "{text}");

    let output = cluster
        .verb(&["scale", "--workers", "5", "--brokers", "2"])
        .await;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("from 1 to 3 already"), "{error}");
    let scaling = cluster.status().await.unwrap().scaling.unwrap();
    assert_eq!((&scaling["from"], &scaling["to"]), (&1.into(), &3.into()));

    has_brokers(&cluster, 3).await;
    cluster.has_workers(2).await;
    cluster.scale_brokers(1).await;
    has_brokers(&cluster, 1).await;
    cluster.down().await;
}

#[tokio::test]
async fn an_orchestrator_that_is_killed_while_it_scales_brokers_is_succeeded_by_one_that_goes_on() {
    let mut cluster = Cluster::start(2, 2).await;
    let mut clients = on_every_worker(&cluster).await;
    let channels = channels();
    subscribe_all(&mut clients, &channels).await;
    for brokers in [4, 2] {
        cluster.scale_brokers(brokers).await;
        cluster.kill_orchestrator().await;
        let all = 2 + brokers;
        cluster.up_again(all, |same| same.size(2, brokers)).await;
        has_brokers(&cluster, brokers).await;
        let round = format!("after {brokers}");
        everybody_hears_everybody(&mut clients, &channels, &round).await;
    }
    cluster.down().await;
}

#[tokio::test]
async fn new_brokers_that_end_again_and_again_go_again_and_the_others_serve_on() {
    let cluster = Cluster::start(2, 2).await;
    let mut clients = on_every_worker(&cluster).await;
    let channels = channels();
    subscribe_all(&mut clients, &channels).await;
    // What is started from now on does not get far.
    let config = cluster.runtime_dir().join("config.toml");
    std::fs::write(config, "nonsense").unwrap();
    cluster.scale_brokers(3).await;
    eventually("it gives up", patience(), async || {
        let log = cluster.log();
        if log.contains("the new ones go again") {
            Ok(())
        } else {
            Err(log)
        }
    })
    .await;
    has_brokers(&cluster, 2).await;
    service_is_whole(&mut clients, &channels).await;
    cluster.down().await;
}

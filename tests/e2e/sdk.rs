//! Our own client against a whole cluster.

use std::collections::HashMap;

use futures_util::StreamExt;
use muster_client::{Client, Error, Event, Events, Subscription, SubscriptionError};
use muster_tests::{
    Cluster, Raw,
    cluster::AUTH_KEY,
    patience,
    tokens::{seconds, sign},
};
use rustix::process::Signal;
use serde_json::json as value;
use tokio::time::timeout;

use crate::{json, on_every_worker};

async fn connect(cluster: &Cluster) -> Client {
    Client::builder(&cluster.url())
        .connect()
        .await
        .expect("the cluster accepts")
}

async fn next(subscription: &mut Subscription) -> Result<i64, SubscriptionError> {
    let next = timeout(patience(), subscription.next()).await;
    let publication = next.expect("in time").expect("the stream goes on")?;
    Ok(publication.data.json().expect("a number"))
}

async fn until<T>(events: &mut Events, mut accept: impl FnMut(Event) -> Option<T>) -> T {
    let search = async {
        loop {
            let event = events.next().await.expect("the client has not ended");
            if let Some(found) = accept(event) {
                return found;
            }
        }
    };
    timeout(patience(), search)
        .await
        .expect("the event comes in time")
}

#[tokio::test]
async fn clients_publish_to_each_other() {
    let cluster = Cluster::start(2, 2).await;
    let mut clients = Vec::new();
    for _ in 0..6 {
        let client = connect(&cluster).await;
        let subscription = client.subscribe("lobby").await.unwrap();
        clients.push((client, subscription));
    }
    for (n, (client, _)) in clients.iter().enumerate() {
        client.publish("lobby", &n).await.unwrap();
    }
    for (_, subscription) in &mut clients {
        for n in 0..6 {
            assert_eq!(next(subscription).await.unwrap(), n);
        }
    }
}

#[tokio::test]
async fn the_servers_errors_reach_the_caller() {
    let cluster = Cluster::builder(1, 1)
        .config("[limits]\nchannels_per_connection_max = 1")
        .start()
        .await;
    let client = connect(&cluster).await;
    assert!(matches!(
        client.call("nothing", &1).await,
        Err(Error::Server(_))
    ));
    assert!(matches!(
        client.authenticate("nonsense").await,
        Err(Error::Server(_))
    ));
    let _first = client.subscribe("a").await.unwrap();
    assert!(matches!(client.subscribe("b").await, Err(Error::Server(_))));
    let token = sign(AUTH_KEY, &value!({"exp": seconds(60)}));
    client.authenticate(&token).await.unwrap();
}

#[tokio::test]
async fn a_client_whose_worker_is_killed_comes_back_by_itself_and_resubscribes() {
    let cluster = Cluster::start(1, 1).await;
    let client = connect(&cluster).await;
    let mut events = client.events().await.unwrap();
    let mut subscription = client.subscribe("a").await.unwrap();
    cluster.kill_worker(1).await;
    let is_connected = |event| matches!(event, Event::Connected { .. }).then_some(());
    until(&mut events, is_connected).await;
    // Everything wanted is subscribed to again before other calls are sent.
    client.publish("a", &7).await.unwrap();
    assert_eq!(next(&mut subscription).await.unwrap(), 7);
}

/// A client, its events from the first one after it was connected, and its
/// session's id.
async fn connect_and_listen(cluster: &Cluster) -> (Client, Events, String) {
    let client = Client::builder(&cluster.url()).connect_lazily();
    let client = client.expect("the address is good");
    let mut events = client.events().await.expect("the client lives");
    let connected = until(&mut events, |event| {
        let Event::Connected { id, .. } = event else {
            return None;
        };
        Some(id)
    });
    let id = connected.await;
    (client, events, id)
}

/// The worker that has each connection.
async fn workers(cluster: &Cluster) -> HashMap<String, u32> {
    let output = cluster.verb(&["connections", "--json"]).await;
    let answer = json(&String::from_utf8_lossy(&output.stdout));
    let list = answer["connections"].as_array().expect("a list");
    let worker = |one: &serde_json::Value| {
        let slot = one["worker"].as_u64().expect("a slot");
        let id = one["connection"].as_str().expect("an id").to_owned();
        (id, u32::try_from(slot).expect("a small number"))
    };
    list.iter().map(worker).collect()
}

/// The worker that has this connection, and a client of another one.
async fn apart(cluster: &Cluster, id: &str) -> (u32, Raw) {
    let others = on_every_worker(cluster).await;
    let workers = workers(cluster).await;
    let victim = workers[id];
    let mut others = others.into_iter();
    let elsewhere = others.find(|other| workers[&other.id] != victim);
    (victim, elsewhere.expect("somebody is elsewhere"))
}

#[tokio::test]
async fn a_client_whose_worker_is_killed_gets_everything_that_was_published_meanwhile() {
    let cluster = Cluster::start(2, 1).await;
    let (client, _events, id) = connect_and_listen(&cluster).await;
    let mut subscription = client.subscribe("a").await.unwrap();
    let (victim, mut publisher) = apart(&cluster, &id).await;
    publisher.publish("a", "1").await;
    assert_eq!(next(&mut subscription).await.unwrap(), 1);
    cluster.signal_node("worker", victim, Signal::KILL).await;
    for n in 2..=60 {
        publisher.publish("a", &n.to_string()).await;
    }
    for n in 2..=60 {
        assert_eq!(next(&mut subscription).await.unwrap(), n);
    }
    client.publish("a", &61).await.unwrap();
    let last = timeout(patience(), subscription.next()).await.unwrap();
    assert_eq!(last.unwrap().unwrap().offset, Some(61));
}

#[tokio::test]
async fn a_client_that_was_away_too_long_is_told_that_something_is_missing() {
    let cluster = Cluster::builder(2, 1)
        .config("[broker]\ntail_age = \"1ms\"")
        .start()
        .await;
    let (client, _events, id) = connect_and_listen(&cluster).await;
    let mut subscription = client.subscribe("a").await.unwrap();
    let (victim, mut publisher) = apart(&cluster, &id).await;
    publisher.subscribe("a").await;
    cluster.signal_node("worker", victim, Signal::KILL).await;
    for n in 0..30 {
        publisher.publish("a", &n.to_string()).await;
    }
    let missed = next(&mut subscription).await;
    assert!(
        matches!(missed, Err(SubscriptionError::Missed)),
        "{missed:?}"
    );
    client.publish("a", &99).await.unwrap();
    while next(&mut subscription).await.unwrap() != 99 {}
}

#[tokio::test]
async fn an_operator_can_end_a_subscription_and_a_client() {
    let cluster = Cluster::start(1, 1).await;
    let (client, mut events, id) = connect_and_listen(&cluster).await;
    let mut subscription = client.subscribe("a").await.unwrap();
    cluster.kick(&id, Some("a"), "bye").await;
    assert!(matches!(
        next(&mut subscription).await,
        Err(SubscriptionError::KickedOut { message: Some(message) }) if message == "bye"
    ));
    cluster.disconnect(&id, 4500, "banned").await;
    let ended = until(&mut events, |event| {
        let Event::Ended { code, reason } = event else {
            return None;
        };
        Some((code.0, reason))
    });
    assert_eq!(ended.await, (4500, "banned".to_owned()));
}

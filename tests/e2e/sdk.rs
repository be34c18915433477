//! Our own client against a whole cluster.

use futures_util::StreamExt;
use muster_client::{Client, Error, Event, Events, Subscription, SubscriptionError};
use muster_tests::{
    Cluster,
    cluster::AUTH_KEY,
    patience,
    tokens::{seconds, sign},
};
use serde_json::json as value;
use tokio::time::timeout;

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

#[tokio::test]
async fn an_operator_can_end_a_subscription_and_a_client() {
    let cluster = Cluster::start(1, 1).await;
    let client = Client::builder(&cluster.url()).connect_lazily().unwrap();
    let mut events = client.events().await.unwrap();
    let connected = until(&mut events, |event| {
        let Event::Connected { id, .. } = event else {
            return None;
        };
        Some(id)
    });
    let id = connected.await;
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

//! Subscriptions.

use futures_util::StreamExt;
use muster_client::{CloseCode, Error, Event, SubscribeOptions, Subscription, SubscriptionError};
use serde_json::{Value, json};

use crate::server::{Accepted, Server};

async fn numbers(subscription: &mut Subscription, count: usize) -> Vec<u32> {
    let mut numbers = Vec::new();
    for _ in 0..count {
        let publication = subscription.next().await.unwrap().unwrap();
        numbers.push(publication.data.json().unwrap());
    }
    numbers
}

/// Waits until the client has handled everything that was sent to it.
async fn settle(client: &muster_client::Client, accepted: &mut Accepted) {
    let (settled, ()) = tokio::join!(client.call("settle", &0), async {
        let packet = accepted.expect("settle").await;
        accepted.answer(&packet, Value::Null).await;
    });
    settled.unwrap();
}

#[tokio::test]
async fn a_subscription_streams_publications_in_order() {
    let server = Server::bind().await;
    let (client, mut accepted) = server.pair(server.client()).await;
    let (subscription, ()) = tokio::join!(client.subscribe("c"), accepted.acknowledge("c"));
    let mut subscription = subscription.unwrap();
    assert_eq!(&**subscription.channel(), "c");
    for n in 0..100 {
        accepted.publish("c", json!(n)).await;
        accepted.publish("other", json!(n)).await;
    }
    let expected: Vec<u32> = (0..100).collect();
    assert_eq!(numbers(&mut subscription, 100).await, expected);
}

#[tokio::test]
async fn a_subscription_outlives_its_connection() {
    let server = Server::bind().await;
    let (client, mut accepted) = server.pair(server.client()).await;
    let (subscription, ()) = tokio::join!(client.subscribe("c"), accepted.acknowledge("c"));
    let mut subscription = subscription.unwrap();
    accepted.publish("c", json!(1)).await;
    assert_eq!(numbers(&mut subscription, 1).await, [1]);
    drop(accepted);
    let (mut accepted, _) = server.open().await;
    accepted.acknowledge("c").await;
    accepted.publish("c", json!(2)).await;
    assert_eq!(numbers(&mut subscription, 1).await, [2]);
}

#[tokio::test]
async fn an_acknowledgement_may_come_from_a_later_connection() {
    let server = Server::bind().await;
    let (client, mut accepted) = server.pair(server.client()).await;
    let mut subscription = client
        .subscribe_pending("c", SubscribeOptions::default())
        .await
        .unwrap();
    accepted.expect("#subscribe").await;
    drop(accepted);
    let (acknowledged, ()) = tokio::join!(subscription.acknowledged(), async {
        server.open().await.0.acknowledge("c").await;
    });
    acknowledged.unwrap();
    subscription.acknowledged().await.unwrap();
}

#[tokio::test]
async fn a_refused_subscription_is_an_error_and_ends_the_stream() {
    let server = Server::bind().await;
    let (client, mut accepted) = server.pair(server.client()).await;
    let mut subscription = client
        .subscribe_pending("c", SubscribeOptions::default())
        .await
        .unwrap();
    let packet = accepted.expect("#subscribe").await;
    accepted
        .refuse(&packet, json!({"name": "BrokerError", "message": "no"}))
        .await;
    let error = subscription.acknowledged().await.unwrap_err();
    assert!(matches!(error, Error::Server(e) if e.message == "no"));
    let item = subscription.next().await;
    assert!(matches!(item, Some(Err(SubscriptionError::Refused(e))) if e.message == "no"));
    assert!(subscription.next().await.is_none());
    drop(subscription);
    settle(&client, &mut accepted).await;
}

#[tokio::test]
async fn a_kick_out_ends_the_stream_after_what_came_before_it() {
    let server = Server::bind().await;
    let (client, mut accepted) = server.pair(server.client()).await;
    let mut events = client.events().await.unwrap();
    let (subscription, ()) = tokio::join!(client.subscribe("c"), accepted.acknowledge("c"));
    let mut subscription = subscription.unwrap();
    accepted.publish("c", json!(1)).await;
    accepted
        .send(json!({"event": "#kickOut", "data": {"channel": "c", "message": "bye"}}))
        .await;
    let event = events.next().await;
    assert!(matches!(event, Some(Event::KickedOut { channel, .. }) if &*channel == "c"));
    assert_eq!(numbers(&mut subscription, 1).await, [1]);
    let item = subscription.next().await;
    assert!(
        matches!(&item, Some(Err(SubscriptionError::KickedOut { message: Some(m) })) if m == "bye"),
        "{item:?}"
    );
    assert!(subscription.next().await.is_none());
}

#[tokio::test]
async fn a_slow_consumer_learns_how_many_publications_it_missed() {
    let server = Server::bind().await;
    let (client, mut accepted) = server.pair(server.client().subscription_capacity(2)).await;
    let (subscription, ()) = tokio::join!(client.subscribe("c"), accepted.acknowledge("c"));
    let mut subscription = subscription.unwrap();
    for n in 0..5 {
        accepted.publish("c", json!(n)).await;
    }
    settle(&client, &mut accepted).await;
    assert_eq!(numbers(&mut subscription, 2).await, [0, 1]);
    accepted.publish("c", json!(5)).await;
    let item = subscription.next().await;
    assert!(
        matches!(item, Some(Err(SubscriptionError::Lagged { missed: 3 }))),
        "{item:?}"
    );
    assert_eq!(numbers(&mut subscription, 1).await, [5]);
}

#[tokio::test]
async fn two_subscriptions_share_one_at_the_server_until_both_are_dropped() {
    let server = Server::bind().await;
    let (client, mut accepted) = server.pair(server.client()).await;
    let (first, ()) = tokio::join!(client.subscribe("c"), accepted.acknowledge("c"));
    let (mut first, mut second) = (first.unwrap(), client.subscribe("c").await.unwrap());
    accepted.publish("c", json!(1)).await;
    assert_eq!(numbers(&mut first, 1).await, [1]);
    assert_eq!(numbers(&mut second, 1).await, [1]);
    drop(first);
    settle(&client, &mut accepted).await;
    accepted.publish("c", json!(2)).await;
    assert_eq!(numbers(&mut second, 1).await, [2]);
    drop(second);
    assert_eq!(accepted.expect("#unsubscribe").await["data"], "c");
}

#[tokio::test]
async fn a_subscription_dropped_at_once_leaves_nothing_behind() {
    let server = Server::bind().await;
    let (client, mut accepted) = server.pair(server.client()).await;
    drop(
        client
            .subscribe_pending("c", SubscribeOptions::default())
            .await
            .unwrap(),
    );
    let last = tokio::join!(client.call("last", &0), async {
        let mut is_subscribed = false;
        loop {
            let packet = accepted.packet().await;
            match packet["event"].as_str() {
                Some("#subscribe") => is_subscribed = true,
                Some("#unsubscribe") => is_subscribed = false,
                _ => {
                    accepted.answer(&packet, Value::Null).await;
                    return is_subscribed;
                }
            }
        }
    });
    last.0.unwrap();
    if last.1 {
        // Its release was not seen yet, but it will be.
        assert_eq!(accepted.expect("#unsubscribe").await["data"], "c");
    }
    drop(accepted);
    let (mut accepted, _) = server.open().await;
    settle(&client, &mut accepted).await;
}

#[tokio::test]
async fn the_end_of_the_client_ends_the_stream_with_its_code() {
    let server = Server::bind().await;
    let (client, mut accepted) = server.pair(server.client()).await;
    let (subscription, ()) = tokio::join!(client.subscribe("c"), accepted.acknowledge("c"));
    let mut subscription = subscription.unwrap();
    accepted.close(Some(4999)).await;
    let item = subscription.next().await;
    assert!(
        matches!(
            item,
            Some(Err(SubscriptionError::Ended {
                code: CloseCode(4999)
            }))
        ),
        "{item:?}"
    );
    assert!(subscription.next().await.is_none());
}

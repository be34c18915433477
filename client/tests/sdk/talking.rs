//! Calls, publications and one-way packets.

use std::time::Duration;

use futures_util::{StreamExt, future::join_all};
use muster_client::{CloseCode, Error, Event};
use serde_json::{Value, json};

use crate::server::Server;

#[tokio::test]
async fn a_call_brings_the_servers_answer() {
    let server = Server::bind().await;
    let (client, mut accepted) = server.pair(server.client()).await;
    let (sum, ()) = tokio::join!(client.call("sum", &[1, 2]), async {
        let packet = accepted.expect("sum").await;
        assert_eq!(packet["data"], json!([1, 2]));
        accepted.answer(&packet, json!(3)).await;
    });
    let sum = sum.unwrap();
    assert_eq!(sum.json::<u32>().unwrap(), 3);
    assert_eq!(sum.raw(), Some("3"));
}

#[tokio::test]
async fn a_publication_is_acknowledged_or_refused_with_the_whole_error() {
    let server = Server::bind().await;
    let (client, mut accepted) = server.pair(server.client()).await;
    let data = json!({"x": 1});
    let (published, packet) = tokio::join!(client.publish("c", &data), async {
        let packet = accepted.expect("#publish").await;
        accepted.send(json!({"rid": packet["cid"]})).await;
        packet
    });
    published.unwrap();
    assert_eq!(packet["data"], json!({"channel": "c", "data": {"x": 1}}));
    let (published, ()) = tokio::join!(client.publish("c", "text"), async {
        let packet = accepted.expect("#publish").await;
        let error = json!({"name": "InvalidActionError", "message": "no", "extra": [1]});
        accepted.refuse(&packet, error).await;
    });
    let Err(Error::Server(error)) = published else {
        panic!("{published:?}")
    };
    assert_eq!(error.name.as_deref(), Some("InvalidActionError"));
    assert_eq!(error.to_string(), "InvalidActionError: no");
    let raw: Value = serde_json::from_str(error.raw.get()).unwrap();
    assert_eq!(raw["extra"], json!([1]));
}

#[tokio::test]
async fn one_way_packets_go_out_and_come_in() {
    let server = Server::bind().await;
    let (client, mut accepted) = server.pair(server.client()).await;
    let mut events = client.events().await.unwrap();
    client.transmit("e", &7).await.unwrap();
    client.transmit_publish("c", &8).await.unwrap();
    assert_eq!(accepted.packet().await, json!({"event": "e", "data": 7}));
    let publication = json!({"event": "#publish", "data": {"channel": "c", "data": 8}});
    assert_eq!(accepted.packet().await, publication);
    accepted
        .send(json!({"event": "hello", "data": "you"}))
        .await;
    let Some(Event::Received { event, data }) = events.next().await else {
        panic!()
    };
    assert_eq!(
        (event.as_str(), data.json::<&str>().unwrap()),
        ("hello", "you")
    );
}

#[tokio::test]
async fn a_call_whose_connection_is_lost_fails_with_an_unknown_outcome() {
    let server = Server::bind().await;
    let (client, mut accepted) = server.pair(server.client()).await;
    let (called, _accepted) = tokio::join!(client.call("e", &1), async {
        accepted.expect("e").await;
        accepted.close(Some(4001)).await;
        server.open().await
    });
    assert!(matches!(
        called,
        Err(Error::ConnectionLost {
            code: CloseCode::PONG_TIMEOUT
        })
    ));
}

#[tokio::test]
async fn a_call_without_a_connection_is_sent_on_the_next_one() {
    let server = Server::bind().await;
    let client = server.client().connect_lazily().unwrap();
    let (called, ()) = tokio::join!(client.call("e", &1), async {
        drop(server.accept().await);
        let (mut accepted, _) = server.open().await;
        let packet = accepted.expect("e").await;
        accepted.answer(&packet, json!("late")).await;
    });
    assert_eq!(called.unwrap().json::<String>().unwrap(), "late");
}

#[tokio::test]
async fn a_call_that_nobody_answers_times_out() {
    let server = Server::bind().await;
    let builder = server.client().ack_timeout(Duration::from_millis(20));
    let (client, _accepted) = server.pair(builder).await;
    assert!(matches!(client.call("e", &1).await, Err(Error::Timeout)));
}

#[tokio::test]
async fn more_calls_than_allowed_are_refused() {
    let server = Server::bind().await;
    let (client, mut accepted) = server.pair(server.client().calls_max(1)).await;
    let (first, second) = tokio::join!(client.call("a", &1), async {
        let packet = accepted.expect("a").await;
        let second = client.call("b", &1).await;
        accepted.answer(&packet, Value::Null).await;
        second
    });
    first.unwrap();
    assert!(matches!(second, Err(Error::TooManyCalls { max: 1 })));
}

#[tokio::test]
async fn data_that_is_no_json_is_an_error_of_its_own() {
    let server = Server::bind().await;
    let (client, _accepted) = server.pair(server.client()).await;
    let no_json = std::collections::HashMap::from([((1, 2), 3)]);
    assert!(matches!(
        client.publish("c", &no_json).await,
        Err(Error::Encode(_))
    ));
    let long = "x".repeat(513);
    assert!(matches!(
        client.publish(&long, &1).await,
        Err(Error::ChannelName(_))
    ));
}

#[tokio::test]
async fn more_than_the_sockets_hold_passes_in_both_directions() {
    const CALLS: usize = 80;
    let server = Server::bind().await;
    let (client, mut accepted) = server.pair(server.client()).await;
    let data = "x".repeat(64 << 10);
    let calls = (0..CALLS).map(|_| client.call("echo", &data));
    let (answers, ()) = tokio::join!(join_all(calls), async {
        for _ in 0..CALLS {
            let packet = accepted.expect("echo").await;
            let data = packet["data"].clone();
            accepted.answer(&packet, data).await;
        }
    });
    for answer in answers {
        assert_eq!(answer.unwrap().json::<&str>().unwrap().len(), data.len());
    }
}

//! Subscribers that want positions: they resume where they were, or are told that
//! they cannot.

use muster_tests::{Cluster, Raw};
use serde_json::{Value, json as value};

use crate::{json, on_every_worker};

/// Subscribes with a position; what the answer says.
async fn follow(client: &mut Raw, channel: &str, since: &Value) -> Value {
    let data = value!({"channel": channel, "since": since}).to_string();
    let answer = json(&client.call("#subscribe", &data).await);
    assert_eq!(answer.get("error"), None, "{answer}");
    answer["data"].clone()
}

/// The next publication: its offset and its data.
async fn next(client: &mut Raw) -> (u64, u64) {
    let packet = json(&client.receive().await);
    assert_eq!(packet["event"], "#publish", "{packet}");
    let number = |name| packet["data"][name].as_u64().expect("a number");
    (number("offset"), number("data"))
}

fn position(answer: &Value, offset: u64) -> Value {
    value!({"generation": answer["generation"], "offset": offset})
}

#[tokio::test]
async fn a_subscriber_resumes_at_its_position_on_any_worker_and_stock_clients_see_nothing_of_it() {
    let cluster = Cluster::start(2, 2).await;
    let mut publisher = Raw::connect(&cluster.url()).await;
    let mut stock = Raw::connect(&cluster.url()).await;
    stock.subscribe("a").await;
    let mut follower = Raw::connect(&cluster.url()).await;
    publisher.publish("a", "0").await;
    let first = follow(&mut follower, "a", &Value::Null).await;
    assert_eq!(
        (&first["offset"], &first["recovered"]),
        (&value!(1), &value!(true))
    );
    publisher.publish("a", "1").await;
    assert_eq!(next(&mut follower).await, (2, 1));
    follower.close(1000, "").await;
    for n in 2..=40 {
        publisher.publish("a", &n.to_string()).await;
    }
    for mut again in on_every_worker(&cluster).await {
        let since = position(&first, 2);
        let answer = follow(&mut again, "a", &since).await;
        let expected = value!({"generation": first["generation"], "offset": 2, "recovered": true});
        assert_eq!(answer, expected);
        for n in 2..=40 {
            assert_eq!(next(&mut again).await, (n + 1, n));
        }
    }
    // Brokers that are killed change nothing.
    let mut last = Raw::connect(&cluster.url()).await;
    for slot in [1, 2] {
        cluster.kill_broker(slot).await;
    }
    follow(&mut last, "a", &position(&first, 39)).await;
    publisher.publish("a", "41").await;
    for n in 39..=41 {
        assert_eq!(next(&mut last).await, (n + 1, n));
    }
    for n in 0..=41 {
        let text = stock.receive().await;
        let plain = format!(r##"{{"event":"#publish","data":{{"channel":"a","data":{n}}}}}"##);
        assert_eq!(text, plain);
    }
    cluster.down().await;
}

#[tokio::test]
async fn a_subscriber_whose_position_is_not_kept_any_more_is_told_so_and_goes_on() {
    let config = "[broker]\ntail_age = \"1ms\"\n[limits]\nmessage_bytes_max = \"1KiB\"";
    let cluster = Cluster::builder(1, 1).config(config).start().await;
    let mut publisher = Raw::connect(&cluster.url()).await;
    let mut follower = Raw::connect(&cluster.url()).await;
    let first = follow(&mut follower, "a", &Value::Null).await;
    for n in 1..=20 {
        publisher.publish("a", &n.to_string()).await;
        assert_eq!(next(&mut follower).await, (n, n));
    }
    for since in [
        position(&first, 2),
        position(&first, 99),
        value!({"generation": "00000000000000aa", "offset": 20}),
    ] {
        let mut late = Raw::connect(&cluster.url()).await;
        let answer = follow(&mut late, "a", &since).await;
        assert_eq!(
            answer,
            value!({"generation": first["generation"], "offset": 20, "recovered": false})
        );
    }
    let mut exact = Raw::connect(&cluster.url()).await;
    let answer = follow(&mut exact, "a", &position(&first, 20)).await;
    assert_eq!(answer["recovered"], true);
    publisher.publish("a", "21").await;
    for client in [&mut follower, &mut exact] {
        assert_eq!(next(client).await, (21, 21));
    }
    let malformed = exact
        .call("#subscribe", r#"{"channel":"b","since":20}"#)
        .await;
    assert!(malformed.contains("InvalidActionError"), "{malformed}");
    cluster.down().await;
}

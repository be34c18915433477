//! Subscribers that want positions: they resume where they were, or are told that
//! they cannot.

use std::{fs, path::Path};

use muster_tests::{Cluster, Raw, eventually, patience, status::Stats};
use rustix::process::Signal;
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

/// What a follower is told of a hole.
async fn told(client: &mut Raw) -> Value {
    let packet = json(&client.receive().await);
    assert_eq!(packet["event"], "#position", "{packet}");
    packet["data"].clone()
}

/// Waits until the workers have counted as many holes as that.
async fn holes_counted(cluster: &Cluster, holes: u64, holes_told: u64) {
    let sum = |stats: &[Stats], count: fn(&Stats) -> u64| stats.iter().map(count).sum::<u64>();
    eventually("the holes are counted", patience(), async || {
        let status = cluster.status().await?;
        let workers = status.workers().into_iter();
        let stats: Vec<_> = workers.filter_map(|node| node.stats.clone()).collect();
        let found = (
            sum(&stats, |stats| stats.holes),
            sum(&stats, |stats| stats.holes_told),
        );
        match found == (holes, holes_told) {
            true => Ok(()),
            false => Err(format!("{found:?}")),
        }
    })
    .await;
}

fn remove_segments(journal: &Path) {
    for shard in fs::read_dir(journal).expect("there is a journal") {
        for file in fs::read_dir(shard.expect("an entry").path()).expect("a shard") {
            let path = file.expect("an entry").path();
            if path.extension().is_some_and(|suffix| suffix == "segment") {
                fs::remove_file(path).expect("it can be removed");
            }
        }
    }
}

/// Which worker has a connection.
async fn worker_of(cluster: &Cluster, client: &Raw) -> u32 {
    let output = cluster.verb(&["connections", "--json"]).await;
    let answer = json(&String::from_utf8_lossy(&output.stdout));
    let mut entries = answer["connections"].as_array().expect("a list").iter();
    let entry = entries.find(|entry| entry["connection"] == client.id.as_str());
    let worker = entry.expect("it is connected")["worker"].as_u64();
    u32::try_from(worker.expect("a number")).expect("a slot")
}

#[tokio::test]
async fn a_follower_is_told_that_the_log_was_lost_and_goes_on_in_the_new_one() {
    let cluster = Cluster::start(1, 1).await;
    let mut publisher = Raw::connect(&cluster.url()).await;
    let (mut follower, mut stock) = (
        Raw::connect(&cluster.url()).await,
        Raw::connect(&cluster.url()).await,
    );
    stock.subscribe("a").await;
    let first = follow(&mut follower, "a", &Value::Null).await;
    for n in 1..=3 {
        publisher.publish("a", &n.to_string()).await;
        assert_eq!(next(&mut follower).await, (n, n));
    }
    // The broker does not notice, and its successor finds nothing.
    remove_segments(&cluster.journal_dir());
    cluster.kill_broker(1).await;
    let hole = told(&mut follower).await;
    assert_eq!(hole["channel"], "a");
    assert_eq!(hole["recovered"], false);
    assert_eq!(hole["offset"], 0);
    assert_ne!(hole["generation"], first["generation"]);
    publisher.publish("a", "4").await;
    assert_eq!(next(&mut follower).await, (1, 4));
    // Who comes back with a position of the old log is told, too.
    let mut late = Raw::connect(&cluster.url()).await;
    let answer = follow(&mut late, "a", &position(&first, 3)).await;
    let expected = value!({"generation": hole["generation"], "offset": 1, "recovered": false});
    assert_eq!(answer, expected);
    for n in 1..=4 {
        let text = stock.receive().await;
        let plain = format!(r##"{{"event":"#publish","data":{{"channel":"a","data":{n}}}}}"##);
        assert_eq!(text, plain, "stock clients are told nothing");
    }
    holes_counted(&cluster, 1, 2).await;
    cluster.down().await;
}

#[tokio::test]
async fn a_follower_is_told_of_what_was_let_go_while_its_worker_stood_still() {
    let config = "[broker]\ntail_age = \"1ms\"";
    let cluster = Cluster::builder(2, 1).config(config).start().await;
    let mut clients = on_every_worker(&cluster).await;
    let mut follower = clients.remove(0);
    let worker = worker_of(&cluster, &follower).await;
    let mut publisher = clients.remove(0);
    while worker_of(&cluster, &publisher).await == worker {
        publisher = clients.remove(0);
    }
    let first = follow(&mut follower, "a", &Value::Null).await;
    publisher.publish("a", "1").await;
    assert_eq!(next(&mut follower).await, (1, 1));
    // Its link ends with the broker, and it asks for nothing until it goes on.
    cluster.signal_node("worker", worker, Signal::STOP).await;
    cluster.kill_broker(1).await;
    for n in 2..=9 {
        publisher.publish("a", &n.to_string()).await;
    }
    cluster.signal_node("worker", worker, Signal::CONT).await;
    let hole = told(&mut follower).await;
    let reached = hole["offset"].as_u64().expect("a number");
    let expected = value!({
        "channel": "a", "generation": first["generation"], "offset": reached, "recovered": false,
    });
    assert_eq!(hole, expected);
    assert!((2..=9).contains(&reached), "{hole}");
    publisher.publish("a", "10").await;
    for n in reached + 1..=10 {
        assert_eq!(next(&mut follower).await, (n, n));
    }
    holes_counted(&cluster, 1, 1).await;
    cluster.down().await;
}

//! Workers that are replaced under their clients: nobody is disconnected, and
//! nothing is lost, repeated or out of order.

mod failures;
mod positions;
mod program;
mod remains;
mod rollback;
mod stock;
mod taken_back;
mod traffic;
mod whole;

use std::process::Output;

use muster_tests::{
    Cluster, Raw,
    bare::{self, Bare},
    eventually, patience,
};
use serde_json::Value;
use tokio::time::{Duration, sleep};

pub(crate) use self::traffic::Traffic;
use crate::{counted, json, on_every_worker};

/// Replaces all workers; what `update --json` answers.
async fn update(cluster: &Cluster) -> Value {
    let output = cluster.verb(&["update", "--json"]).await;
    assert!(output.status.success(), "{output:?}\n{}", cluster.log());
    json(&String::from_utf8_lossy(&output.stdout))
}

/// How the update is that is under way, or how the last one ended.
async fn status(cluster: &Cluster) -> Value {
    let output = cluster.verb(&["update", "--status", "--json"]).await;
    json(&String::from_utf8_lossy(&output.stdout))
}

async fn until(cluster: &Cluster, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
    eventually(what, patience(), async || {
        let status = status(cluster).await;
        if holds(&status) {
            Ok(status)
        } else {
            Err(status.to_string())
        }
    })
    .await
}

fn error(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Holes, repetitions and disconnects that the processes noticed themselves.
fn assert_smooth(updated: &Value, moved: u64) {
    assert_eq!(updated["state"], "done", "{updated}");
    assert_eq!(updated["failed"], 0, "{updated}");
    assert_eq!(updated["moved"], moved, "{updated}");
}

#[tokio::test]
async fn an_idle_subscriber_keeps_its_connection_through_an_update() {
    let cluster = Cluster::start(1, 1).await;
    let mut client = Raw::connect(&cluster.url()).await;
    client.subscribe("news").await;
    let before = cluster.status().await.unwrap();
    let updated = update(&cluster).await;
    assert_smooth(&updated, 1);
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

#[tokio::test]
async fn clients_that_publish_to_each_other_notice_no_update() {
    let cluster = Cluster::start(2, 2).await;
    let traffic = Traffic::start(&cluster.url(), 40).await;
    for _ in 0..3 {
        assert_smooth(&update(&cluster).await, 40);
    }
    let mut clients = traffic.end().await;
    for client in &mut clients {
        assert!(client.is_alive().await);
    }
    assert_eq!(counted(&cluster, 40).await.iter().sum::<u64>(), 40);
    cluster.down().await;
}

#[tokio::test]
async fn what_is_half_read_goes_on_in_the_new_worker() {
    let cluster = Cluster::start(1, 1).await;
    let mut listener = Raw::connect(&cluster.url()).await;
    listener.subscribe("a").await;
    let publish =
        |n: u32| format!(r##"{{"event":"#publish","data":{{"channel":"a","data":{n}}}}}"##);

    // In the middle of a frame: its head, its mask, and its payload.
    let mut dribblers = Vec::new();
    for (n, cut) in [(1, 1), (2, 4), (3, 20)] {
        let mut client = Bare::connect(cluster.addr()).await;
        client.upgrade().await;
        client.handshake().await;
        let frame = bare::text(&publish(n));
        client.write(&frame[..cut]).await;
        dribblers.push((client, frame[cut..].to_vec()));
    }
    // Between two fragments, within a character of several bytes.
    let mut fragments = Bare::connect(cluster.addr()).await;
    fragments.upgrade().await;
    fragments.handshake().await;
    let euro = r##"{"event":"#publish","data":{"channel":"a","data":"€"}}"##;
    let at = euro.find('€').unwrap() + 1;
    fragments
        .write(&bare::frame(1, false, &euro.as_bytes()[..at]))
        .await;
    // Before its handshake, and in the middle of its HTTP request.
    let mut silent = Bare::connect(cluster.addr()).await;
    silent.upgrade().await;
    let mut head = Bare::connect(cluster.addr()).await;
    head.write(b"GET /socketcluster/ HTTP/1.1\r\nHost: a\r\n")
        .await;
    counted(&cluster, 7).await;

    let updating = async {
        // The earlier worker waits for the request, which comes once the rest moved.
        until(&cluster, "the others have moved", |status| {
            status["step"] == "handing_over"
        })
        .await;
        head.write(
            b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
              Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        )
        .await;
        head.upgraded().await;
    };
    let (updated, ()) = tokio::join!(update(&cluster), updating);
    assert_smooth(&updated, 7);

    for (client, rest) in &mut dribblers {
        client.write(rest).await;
    }
    for n in 1..=3 {
        let delivery = listener.delivery().await;
        assert_eq!(delivery, ("a".into(), Some(n.to_string())));
    }
    fragments
        .write(&bare::frame(0, true, &euro.as_bytes()[at..]))
        .await;
    let delivery = listener.delivery().await;
    assert_eq!(delivery, ("a".into(), Some("\"€\"".into())));
    for client in [&mut silent, &mut head] {
        client.handshake().await;
    }
    cluster.down().await;
}

#[tokio::test]
async fn a_client_that_reads_slowly_gets_every_byte_across_an_update() {
    const LENGTH: usize = 100_000;
    let cluster = Cluster::builder(1, 1)
        .config("[limits]\noutbox_bytes_max = \"64MiB\"")
        .start()
        .await;
    let mut slow = Bare::connect(cluster.addr()).await;
    slow.upgrade().await;
    slow.handshake().await;
    slow.write(&bare::text(
        r##"{"event":"#subscribe","data":{"channel":"a"},"cid":2}"##,
    ))
    .await;
    assert_eq!(slow.text().await, r#"{"rid":2}"#);
    let mut publisher = Raw::connect(&cluster.url()).await;
    // More than the kernel takes: frames wait, and one is partly written.
    let padding = "x".repeat(LENGTH);
    let mut published = 0;
    for _ in 0..3 {
        for _ in 0..100 {
            published += 1;
            publisher
                .publish("a", &format!(r#""{published} {padding}""#))
                .await;
        }
        assert_smooth(&update(&cluster).await, 2);
    }
    for n in 1..=published {
        let text = slow.text().await;
        let start = format!(r##"{{"event":"#publish","data":{{"channel":"a","data":"{n} xxx"##);
        assert!(text.starts_with(&start), "{n}: {}", &text[..60]);
        assert_eq!(text.len(), start.len() - 3 + LENGTH + 3);
    }
    cluster.down().await;
}

#[tokio::test]
async fn the_clients_state_moves_with_it() {
    let cluster = Cluster::start(1, 1).await;
    let mut client = Raw::connect(&cluster.url()).await;
    client.subscribe("a").await;
    let id = client.id.clone();
    cluster
        .set_token(&id, &serde_json::json!({ "user": 1 }))
        .await;
    let _token = client.receive().await;
    assert_smooth(&update(&cluster).await, 1);
    // The same session, its subscription and its token.
    let answer = json(&client.call("#handshake", "{}").await);
    assert_eq!(answer["data"]["id"], *id);
    assert_eq!(answer["data"]["isAuthenticated"], true);
    cluster.kick(&id, Some("a"), "").await;
    assert!(client.receive().await.contains("#kickOut"));
    cluster.disconnect(&id, 1000, "").await;
    assert_eq!(client.closed().await.code, 1000);
    cluster.down().await;
}

#[tokio::test]
async fn pings_go_on_in_time_across_updates() {
    let cluster = Cluster::builder(1, 1)
        .config("[heartbeat]\nping_interval = \"500ms\"\npong_timeout = \"2s\"")
        .start()
        .await;
    let mut client = Raw::connect(&cluster.url()).await;
    client.subscribe("a").await;
    let pings = async {
        // Answers pings, and nothing else comes.
        let text = client.receive().await;
        (client, text)
    };
    let updates = async {
        for _ in 0..8 {
            assert_smooth(&update(&cluster).await, 1);
            sleep(Duration::from_millis(400)).await;
        }
        let mut publisher = Raw::connect(&cluster.url()).await;
        publisher.publish("a", "1").await;
        publisher
    };
    let ((_client, text), _publisher) = tokio::join!(pings, updates);
    assert!(text.contains("#publish"), "{text}");
    cluster.down().await;
}

#[tokio::test]
async fn one_update_at_a_time_and_none_without_a_program_to_run() {
    let cluster = Cluster::start(2, 1).await;
    assert_eq!(status(&cluster).await["state"], "none");
    let output = cluster.verb(&["update", "--binary", "/nonexistent"]).await;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("/nonexistent cannot be run"), "{error}");
    let (one, other) = tokio::join!(cluster.verb(&["update"]), cluster.verb(&["update"]));
    let codes = [one.status.code(), other.status.code()];
    assert!(
        codes == [Some(0), Some(1)] || codes == [Some(1), Some(0)],
        "{codes:?}"
    );
    cluster.down().await;
}

#[tokio::test]
async fn a_program_that_does_not_start_costs_no_connection() {
    let cluster = Cluster::start(1, 1).await;
    let mut client = Raw::connect(&cluster.url()).await;
    client.subscribe("a").await;
    let before = cluster.status().await.unwrap();
    let output = cluster.verb(&["update", "--binary", "/bin/false"]).await;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("what it speaks"), "{error}");
    let after = cluster.status().await.unwrap();
    assert_eq!(
        before.node("worker", 1).unwrap().pid,
        after.node("worker", 1).unwrap().pid
    );
    client.publish("a", "1").await;
    assert_eq!(client.delivery().await.1.as_deref(), Some("1"));
    assert_smooth(&update(&cluster).await, 1);
    cluster.down().await;
}

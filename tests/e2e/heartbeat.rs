//! Pings, pongs, and clients that stop answering.

use muster_tests::{Cluster, Raw};
use tokio::time::{Duration, Instant, timeout};
use tokio_tungstenite::tungstenite::Message;

const CONFIG: &str = "[heartbeat]\nping_interval = \"300ms\"\npong_timeout = \"2s\"";
const PONG_TIMEOUT: Duration = Duration::from_secs(2);

/// Reads for `duration` and gives the texts to `answer`, which may answer them.
async fn live(
    client: &mut Raw,
    duration: Duration,
    answer: impl Fn(&str) -> Option<&'static str>,
) -> Vec<String> {
    let deadline = Instant::now() + duration;
    let mut texts = Vec::new();
    while let Some(left) = deadline.checked_duration_since(Instant::now()) {
        let Ok(message) = timeout(left, client.receive_message()).await else {
            break;
        };
        match message {
            Ok(Message::Text(text)) => {
                if let Some(answer) = answer(&text) {
                    client.send(answer).await;
                }
                texts.push(text.as_str().to_owned());
            }
            other => panic!("the connection should live, not {other:?}"),
        }
    }
    texts
}

#[tokio::test]
async fn a_client_that_answers_pings_lives_and_one_that_does_not_is_closed_with_4001() {
    let cluster = Cluster::builder(1, 1).config(CONFIG).start().await;
    let mut client = Raw::connect(&cluster.url()).await;
    let mut silent = Raw::connect(&cluster.url()).await;
    let begin = Instant::now();
    let pings = live(&mut client, PONG_TIMEOUT * 2, |text| {
        text.is_empty().then_some("")
    })
    .await;
    assert!(
        pings.iter().all(String::is_empty),
        "a client of version 2 sees no other ping: {pings:?}"
    );
    assert!((6..=14).contains(&pings.len()), "{pings:?}");
    client.publish("a", "1").await;

    let closed = silent.closed().await;
    assert_eq!((closed.code, closed.reason.as_str()), (4001, ""));
    assert!(begin.elapsed() >= PONG_TIMEOUT);
}

#[tokio::test]
async fn a_client_of_version_1_is_recognised_and_lives() {
    let cluster = Cluster::builder(1, 1).config(CONFIG).start().await;
    let mut client = Raw::connect(&cluster.url()).await;
    let texts = live(&mut client, PONG_TIMEOUT * 2, |text| {
        (text == "#1").then_some("#2")
    })
    .await;
    assert!(texts.len() >= 6, "{texts:?}");
    let last: Vec<_> = texts.iter().rev().take(4).collect();
    assert!(
        last.iter().all(|text| *text == "#1"),
        "once known, it gets only its own: {texts:?}"
    );
    client.send(r#"{"event":"nothing","cid":9}"#).await;
    loop {
        let text = client.receive().await;
        if text != "#1" {
            assert!(text.starts_with(r#"{"rid":9,"#), "{text}");
            break;
        }
    }
}

#[tokio::test]
async fn anything_a_client_sends_is_a_sign_of_life() {
    let cluster = Cluster::builder(1, 1).config(CONFIG).start().await;
    let mut client = Raw::connect(&cluster.url()).await;
    let texts = live(&mut client, PONG_TIMEOUT * 2, |text| {
        (text.is_empty() || text == "#1").then_some(r#"{"event":"nothing"}"#)
    })
    .await;
    assert!(texts.len() >= 6, "{texts:?}");
}

#[tokio::test]
async fn a_subscriber_that_is_flooded_still_gets_its_pings() {
    let cluster = Cluster::builder(1, 1).config(CONFIG).start().await;
    let mut subscriber = Raw::connect(&cluster.url()).await;
    let mut publisher = Raw::connect(&cluster.url()).await;
    subscriber.subscribe("a").await;
    let data = format!(r#""{}""#, "x".repeat(10_000));
    let flood = async {
        let begin = Instant::now();
        let mut published = 0;
        while begin.elapsed() < PONG_TIMEOUT * 2 {
            publisher.publish("a", &data).await;
            published += 1;
        }
        published
    };
    let read = live(&mut subscriber, PONG_TIMEOUT * 2, |text| {
        text.is_empty().then_some("")
    });
    let (published, texts) = tokio::join!(flood, read);
    let pings = texts.iter().filter(|text| text.is_empty()).count();
    assert!(published > 20, "{published}");
    assert!(pings >= 6, "{pings} pings among {} texts", texts.len());
}

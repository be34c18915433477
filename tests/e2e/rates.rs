//! Clients that are faster than they may be.

use std::time::Duration;

use muster_tests::{Cluster, Raw};
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Message;

/// Packets a client may send at once, and per second after that.
const BURST: u32 = 50;
const RATE: u32 = 100;
/// Enough to take a second.
const SENT: u32 = BURST + RATE;

async fn slow_cluster() -> Cluster {
    let config = format!("[limits]\nmessages_per_second = {{ rate = {RATE}, burst = {BURST} }}");
    Cluster::builder(1, 1).config(&config).start().await
}

/// The handshake was one packet, and the last one may be there early.
fn shortest() -> Duration {
    Duration::from_secs(1) * (SENT - BURST - 1) / RATE
}

#[tokio::test]
async fn a_client_that_is_too_fast_is_slowed_down_and_everything_it_sent_is_done() {
    let cluster = slow_cluster().await;
    let mut fast = Raw::connect(&cluster.url()).await;
    let mut other = Raw::connect(&cluster.url()).await;
    other.subscribe("a").await;
    let begin = Instant::now();
    for n in 0..SENT {
        let packet =
            format!(r##"{{"event":"#publish","data":{{"channel":"a","data":{n}}},"cid":{n}}}"##);
        fast.send(&packet).await;
    }
    for n in 0..SENT {
        assert_eq!(
            fast.answer(&n.to_string()).await,
            format!(r#"{{"rid":{n}}}"#)
        );
    }
    assert!(begin.elapsed() >= shortest(), "{:?}", begin.elapsed());
    for n in 0..SENT {
        assert_eq!(other.delivery().await.1, Some(n.to_string()));
    }
}

#[tokio::test]
async fn an_array_of_packets_is_no_way_around_the_rate() {
    let cluster = slow_cluster().await;
    let mut fast = Raw::connect(&cluster.url()).await;
    let packet = |n| format!(r##"{{"event":"#publish","data":{{"channel":"a"}},"cid":{n}}}"##);
    let packets: Vec<String> = (0..SENT).map(packet).collect();
    let begin = Instant::now();
    fast.send(&format!("[{}]", packets.join(","))).await;
    for n in 0..SENT {
        assert_eq!(
            fast.answer(&n.to_string()).await,
            format!(r#"{{"rid":{n}}}"#)
        );
    }
    assert!(begin.elapsed() >= shortest(), "{:?}", begin.elapsed());
}

#[tokio::test]
async fn websocket_pings_count_like_packets() {
    let cluster = slow_cluster().await;
    let mut fast = Raw::connect(&cluster.url()).await;
    let begin = Instant::now();
    for _ in 0..SENT {
        fast.send_message(Message::Ping("x".into())).await;
    }
    let mut pongs = 0;
    while pongs < SENT {
        let message = fast.receive_message().await.expect("the connection stands");
        pongs += u32::from(message.is_pong());
    }
    assert!(begin.elapsed() >= shortest(), "{:?}", begin.elapsed());
}

#[tokio::test]
async fn a_client_that_is_slowed_down_is_not_taken_for_dead() {
    let config = "[limits]\nmessages_per_second = { rate = 20, burst = 1 }\n\
                  [heartbeat]\nping_interval = \"200ms\"\npong_timeout = \"600ms\"";
    let cluster = Cluster::builder(1, 1).config(config).start().await;
    let mut fast = Raw::connect(&cluster.url()).await;
    // Two seconds' worth, and a pong of its own only behind them.
    for n in 0..40 {
        fast.send(&format!(r#"{{"event":"nothing","cid":{n}}}"#))
            .await;
    }
    for n in 0..40 {
        fast.answer(&n.to_string()).await;
    }
}

#[tokio::test]
async fn the_channels_of_a_reconnect_are_not_slowed_down() {
    const CHANNELS: usize = 1000;
    // At this rate they would take a quarter of an hour.
    let config = "[limits]\nmessages_per_second = { rate = 1, burst = 1 }";
    let cluster = Cluster::builder(1, 1).config(config).start().await;
    let mut client = Raw::connect(&cluster.url()).await;
    let subscribe =
        |n| format!(r##"{{"event":"#subscribe","data":{{"channel":"c{n}"}},"cid":{n}}}"##);
    let packets: Vec<String> = (0..CHANNELS).map(subscribe).collect();
    client.send(&format!("[{}]", packets.join(","))).await;
    for n in 0..CHANNELS {
        assert_eq!(
            client.answer(&n.to_string()).await,
            format!(r#"{{"rid":{n}}}"#)
        );
    }
}

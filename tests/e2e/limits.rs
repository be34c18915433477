//! Clients that read too slowly, brokers that do not answer, machines that
//! allow too little.

use std::process::Output;

use muster_tests::{Cluster, Raw, orchestrator, patience};
use rustix::process::Signal;
use tokio::{
    io::AsyncWriteExt,
    net::TcpStream,
    time::{Instant, timeout},
};

use crate::{error_name, http};

/// Upgrades, makes the handshake, subscribes to `a` and reads nothing.
async fn subscribe_and_never_read(cluster: &Cluster) -> TcpStream {
    let mut stream = http::upgraded(cluster).await;
    let packets =
        br##"[{"event":"#handshake","cid":1},{"event":"#subscribe","data":{"channel":"a"},"cid":2}]"##;
    let length = u8::try_from(packets.len()).expect("it is short");
    let frame = [&[0x81, 0x80 | length, 0, 0, 0, 0][..], packets].concat();
    stream
        .write_all(&frame)
        .await
        .expect("the connection stands");
    stream
}

#[tokio::test]
async fn a_client_that_does_not_read_is_cut_off_and_holds_up_nobody() {
    // More than the kernel's own buffers take.
    const PUBLICATIONS: usize = 400;
    let cluster = Cluster::start(1, 1).await;
    let slow = subscribe_and_never_read(&cluster).await;
    let mut reader = Raw::connect(&cluster.url()).await;
    reader.subscribe("a").await;
    let mut publisher = Raw::connect(&cluster.url()).await;
    let data = format!(r#""{}""#, "x".repeat(100_000));
    for _ in 0..PUBLICATIONS {
        publisher.publish("a", &data).await;
        assert_eq!(reader.delivery().await.1.as_ref(), Some(&data));
    }
    let closed = muster_tests::eventually("the slow client is counted", patience(), async || {
        let status = cluster.status().await?;
        let stats = status.nodes.iter().filter_map(|node| node.stats.as_ref());
        match stats.map(|stats| stats.slow_clients_closed).sum::<u64>() {
            0 => Err("none was closed".to_owned()),
            closed => Ok(closed),
        }
    });
    assert_eq!(closed.await, 1);
    drop(slow);
}

#[tokio::test]
async fn a_publication_that_no_broker_takes_is_answered_with_an_unknown_outcome_in_time() {
    let cluster = Cluster::builder(1, 1)
        .config("[link]\npublish_timeout = \"500ms\"")
        .start()
        .await;
    let mut client = Raw::connect(&cluster.url()).await;
    let mut other = Raw::connect(&cluster.url()).await;
    client.subscribe("a").await;
    cluster.signal_node("broker", 1, Signal::STOP).await;
    let begin = Instant::now();
    let answer = client.call("#publish", r#"{"channel":"a","data":1}"#).await;
    assert_eq!(error_name(&answer), "PublishOutcomeUnknownError");
    assert!(begin.elapsed().as_millis() >= 500, "{:?}", begin.elapsed());
    // Everything that needs no broker goes on.
    assert!(other.call("nothing", "1").await.contains("error"));
    cluster.kill_broker(1).await;
    client.publish("a", "2").await;
}

async fn up_with_descriptors(limit: u32, config: &str) -> Output {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("muster.toml");
    std::fs::write(&file, config).expect("it is written");
    let script = format!("ulimit -n {limit} && exec \"$0\" \"$@\"");
    let mut command = orchestrator::command_in_shell(&script);
    command.arg("up").args([
        "--workers",
        "1",
        "--brokers",
        "1",
        "--listen",
        "127.0.0.1:0",
    ]);
    command
        .arg("--config")
        .arg(&file)
        .arg("--runtime-dir")
        .arg(dir.path().join("run"));
    timeout(patience(), command.output())
        .await
        .expect("it ends in time")
        .expect("it runs")
}

#[tokio::test]
async fn too_few_descriptors_are_told_with_the_limit_and_what_it_allows() {
    for (limit, config, about) in [
        (100, "", "100"),
        (1000, "[limits]\nconnections_max = 5000", "1000"),
    ] {
        let output = up_with_descriptors(limit, config).await;
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(78), "{error}");
        assert!(
            error.contains(about) && error.contains("descriptors"),
            "{error}"
        );
    }
}

/// Connects from a loopback address of this machine and asks for an upgrade.
async fn upgrade_from(cluster: &Cluster, address: &str) -> (TcpStream, String) {
    let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
    let from = format!("{address}:0").parse().expect("an address");
    socket.bind(from).expect("a loopback address");
    let to = cluster.addr().parse().expect("an address");
    let mut stream = socket.connect(to).await.expect("the server listens");
    let head = http::upgrade(&mut stream).await;
    (stream, head)
}

#[tokio::test]
async fn an_address_with_too_many_connections_is_answered_429_and_others_are_served() {
    let cluster = Cluster::builder(1, 1)
        .config("[limits]\nconnections_per_address_max = 2")
        .start()
        .await;
    let (first, head) = upgrade_from(&cluster, "127.0.0.2").await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    let (_second, head) = upgrade_from(&cluster, "127.0.0.2").await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    let (_refused, head) = upgrade_from(&cluster, "127.0.0.2").await;
    assert!(head.starts_with("HTTP/1.1 429 "), "{head}");
    assert!(head.contains("Retry-After: "), "{head}");
    let (_other, head) = upgrade_from(&cluster, "127.0.0.3").await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    drop(first);
    muster_tests::eventually("there is room again", patience(), async || {
        let (_, head) = upgrade_from(&cluster, "127.0.0.2").await;
        head.starts_with("HTTP/1.1 101 ").then_some(()).ok_or(head)
    })
    .await;
}

#[tokio::test]
async fn a_channel_name_beyond_the_configured_length_is_refused_with_both_lengths() {
    let cluster = Cluster::builder(1, 1)
        .config("[limits]\nchannel_name_bytes_max = 8")
        .start()
        .await;
    let mut client = Raw::connect(&cluster.url()).await;
    client.subscribe("12345678").await;
    let answer = client
        .call("#subscribe", r#"{"channel":"123456789"}"#)
        .await;
    assert_eq!(error_name(&answer), "InvalidActionError");
    assert!(answer.contains("9 bytes, at most 8"), "{answer}");
}

//! What is not a WebSocket yet, or never becomes one.

use std::time::Duration;

use muster_tests::{Cluster, Raw, eventually, patience};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

const UPGRADE: &str = "Upgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n";

/// An upgraded connection as bytes.
pub(crate) async fn upgraded(cluster: &Cluster) -> TcpStream {
    let mut stream = TcpStream::connect(cluster.addr())
        .await
        .expect("the server listens");
    let head = upgrade(&mut stream).await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    stream
}

/// Asks for an upgrade; the head of the answer.
pub(crate) async fn upgrade(stream: &mut TcpStream) -> String {
    let request = format!("GET /socketcluster/ HTTP/1.1\r\nHost: a\r\n{UPGRADE}\r\n");
    stream
        .write_all(request.as_bytes())
        .await
        .expect("the connection stands");
    head(stream).await
}

/// Reads one HTTP head.
async fn head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    let read = async {
        while !head.ends_with(b"\r\n\r\n") {
            match stream.read_u8().await {
                Ok(byte) => head.push(byte),
                Err(_) => break,
            }
        }
    };
    timeout(patience(), read)
        .await
        .expect("a head arrives in time");
    String::from_utf8(head).expect("a head is ASCII")
}

/// Sends bytes and reads everything until the end of the connection.
async fn exchange(cluster: &Cluster, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(cluster.addr())
        .await
        .expect("the server listens");
    let mut answer = Vec::new();
    // The server may answer and close before all is sent.
    let _ = stream.write_all(request).await;
    let end = timeout(patience(), stream.read_to_end(&mut answer)).await;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    assert!(end.is_ok(), "the connection does not end: {answer}");
    answer
}

fn status(answer: &str) -> u16 {
    let status = answer
        .strip_prefix("HTTP/1.1 ")
        .and_then(|rest| rest.get(..3));
    status
        .and_then(|status| status.parse().ok())
        .unwrap_or_else(|| panic!("no status: {answer:?}"))
}

async fn upgrade_status(cluster: &Cluster, line: &str, headers: &str) -> u16 {
    let request = format!("{line} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{headers}\r\n");
    status(&exchange(cluster, request.as_bytes()).await)
}

#[tokio::test]
async fn the_health_check_says_ok() {
    let cluster = Cluster::start(1, 1).await;
    let answer = exchange(
        &cluster,
        b"GET /health-check HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    )
    .await;
    assert_eq!(status(&answer), 200);
    assert!(answer.ends_with("\r\n\r\nOK"), "{answer}");
}

#[tokio::test]
async fn upgrades_that_are_not_for_clients_are_refused_with_the_fitting_status() {
    let cluster = Cluster::start(1, 1).await;
    let path = "GET /socketcluster/";
    for (line, headers, expected) in [
        ("GET /", UPGRADE, 400),
        ("GET /other/", UPGRADE, 400),
        // What the Autobahn test asks for with a setting of its own.
        ("GET /echo", UPGRADE, 400),
        ("GET /socketcluster/more", UPGRADE, 400),
        ("POST /socketcluster/", UPGRADE, 405),
        (path, "", 400),
        (
            path,
            "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n",
            400,
        ),
    ] {
        assert_eq!(
            upgrade_status(&cluster, line, headers).await,
            expected,
            "{line} {headers}"
        );
    }
    let mut client =
        Raw::connect(&format!("ws://{}/socketcluster?a=b&a=c+d", cluster.addr())).await;
    client.publish("a", "1").await;
}

#[tokio::test]
async fn only_allowed_origins_may_connect() {
    let cluster = Cluster::builder(1, 1)
        .config("[listener]\norigins = [\"good.example:*\", \"other.example:8080\"]")
        .start()
        .await;
    let with = |origin: &str| {
        let header = if origin.is_empty() {
            String::new()
        } else {
            format!("Origin: {origin}\r\n")
        };
        format!("GET /socketcluster/ HTTP/1.1\r\nHost: a\r\n{UPGRADE}{header}\r\n")
    };
    for origin in [
        "http://good.example",
        "https://good.example:444",
        "http://other.example:8080",
    ] {
        let mut stream = TcpStream::connect(cluster.addr()).await.unwrap();
        stream.write_all(with(origin).as_bytes()).await.unwrap();
        assert_eq!(status(&head(&mut stream).await), 101, "{origin}");
    }
    for origin in [
        "",
        "null",
        "http://bad.example",
        "http://other.example",
        "http://good.example.bad.example",
    ] {
        let answer = exchange(&cluster, with(origin).as_bytes()).await;
        assert_eq!(status(&answer), 403, "{origin}");
    }
}

#[tokio::test]
async fn garbage_before_the_upgrade_ends_the_connection_and_nothing_else() {
    let cluster = Cluster::start(1, 1).await;
    let mut client = Raw::connect(&cluster.url()).await;
    let garbage: [&[u8]; 5] = [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\x00\xff\x00\xff\r\n\r\n",
        b"hello\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /socketcluster/ HTTP/1.1\r\nno colon\r\n\r\n",
    ];
    for bytes in garbage {
        let answer = exchange(&cluster, bytes).await;
        assert!(answer.is_empty() || status(&answer) == 400, "{answer}");
    }
    client.publish("a", "1").await;
}

#[tokio::test]
async fn a_head_beyond_the_limit_is_refused() {
    let cluster = Cluster::start(1, 1).await;
    let request = format!(
        "GET /socketcluster/ HTTP/1.1\r\nHost: a\r\n{UPGRADE}X: {}\r\n\r\n",
        "x".repeat(17 << 10)
    );
    let answer = exchange(&cluster, request.as_bytes()).await;
    assert!(matches!(status(&answer), 400 | 431), "{answer}");
    // Also when its end never comes.
    let answer = exchange(&cluster, &vec![b'x'; 64 << 10]).await;
    assert!(
        answer.is_empty() || matches!(status(&answer), 400 | 431),
        "{answer}"
    );
    Raw::connect(&cluster.url()).await;
}

#[tokio::test]
async fn a_head_in_single_bytes_is_understood_with_frames_right_behind_it() {
    let cluster = Cluster::start(1, 1).await;
    let mut stream = TcpStream::connect(cluster.addr()).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let request = format!("GET /socketcluster/ HTTP/1.1\r\nHost: a\r\n{UPGRADE}\r\n");
    let (start, end) = request.as_bytes().split_at(request.len() - 2);
    for byte in start {
        stream.write_all(&[*byte]).await.unwrap();
    }
    // The last bytes of the head, and the handshake in a masked frame.
    let handshake = br##"{"event":"#handshake","cid":1}"##;
    let length = 0x80 | u8::try_from(handshake.len()).unwrap();
    let frame = [&[0x81, length, 0, 0, 0, 0][..], handshake].concat();
    stream.write_all(&[end, &frame].concat()).await.unwrap();
    assert_eq!(status(&head(&mut stream).await), 101);
    let mut answer = [0; 10];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer[2..], b"{\"rid\":1");
}

#[tokio::test]
async fn a_head_that_never_ends_is_cut_off() {
    let cluster = Cluster::builder(1, 1)
        .config("[listener]\nhandshake_timeout = \"600ms\"")
        .start()
        .await;
    let mut stream = TcpStream::connect(cluster.addr()).await.unwrap();
    stream
        .write_all(b"GET /socketcluster/ HTTP/1.1\r\n")
        .await
        .unwrap();
    let trickle = async {
        // A byte now and then must not buy more time.
        let mut header = b"X: ".iter().chain(std::iter::repeat(&b'x'));
        loop {
            let byte = *header.next().expect("it repeats");
            if stream.write_all(&[byte]).await.is_err() {
                return;
            }
            let mut answer = [0; 512];
            let pause = Duration::from_millis(100);
            if let Ok(Ok(0) | Err(_)) = timeout(pause, stream.read(&mut answer)).await {
                return;
            }
        }
    };
    timeout(patience(), trickle)
        .await
        .expect("the connection ends");
    Raw::connect(&cluster.url()).await;
}

#[tokio::test]
async fn connections_beyond_the_limit_are_told_when_to_come_back() {
    let cluster = Cluster::builder(2, 1)
        .config("[limits]\nconnections_max = 3")
        .start()
        .await;
    let mut clients = Vec::new();
    for _ in 0..6 {
        clients.push(Raw::connect(&cluster.url()).await);
    }
    let request = format!("GET /socketcluster/ HTTP/1.1\r\nHost: a\r\n{UPGRADE}\r\n");
    let answer = exchange(&cluster, request.as_bytes()).await;
    assert_eq!(status(&answer), 503);
    assert!(
        answer.to_ascii_lowercase().contains("\r\nretry-after: "),
        "{answer}"
    );
    // Those who are in are served, and a place given back is taken again.
    for client in &mut clients {
        client.publish("a", "1").await;
    }
    clients.pop().expect("there are six").close(1000, "").await;
    eventually("the free place is taken", patience(), async || {
        let mut stream = TcpStream::connect(cluster.addr())
            .await
            .map_err(|e| e.to_string())?;
        stream
            .write_all(request.as_bytes())
            .await
            .map_err(|e| e.to_string())?;
        let head = head(&mut stream).await;
        if head.starts_with("HTTP/1.1 101 ") {
            Ok(())
        } else {
            Err(head)
        }
    })
    .await;
}

//! Which close code follows on which mistake, and that it stays one client's.

use muster_tests::{Cluster, Raw, raw::Closed};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_tungstenite::tungstenite::Message;

use crate::http;

fn code(code: u16) -> Closed {
    // The server's own closes have no reason.
    Closed {
        code,
        reason: String::new(),
    }
}

#[tokio::test]
async fn a_client_without_a_handshake_in_time_is_closed_with_4005() {
    let cluster = Cluster::builder(1, 1)
        .config("[listener]\nhandshake_timeout = \"500ms\"")
        .start()
        .await;
    let mut silent = Raw::open(&cluster.url()).await;
    let mut client = Raw::connect(&cluster.url()).await;
    assert_eq!(silent.closed().await, code(4005));
    client.publish("a", "1").await;
}

#[tokio::test]
async fn anything_before_the_handshake_is_closed_with_4009() {
    let cluster = Cluster::start(1, 1).await;
    for text in [
        r##"{"event":"#publish","data":{"channel":"a"},"cid":1}"##,
        r##"{"event":"#authenticate","data":"x","cid":1}"##,
        r#"{"event":"nothing"}"#,
        "nonsense",
        "{",
        "{}",
        "null",
        "",
        "#2",
        r##"[{"event":"nothing","cid":1},{"event":"#handshake","cid":2}]"##,
    ] {
        let mut client = Raw::open(&cluster.url()).await;
        client.send(text).await;
        assert_eq!(client.closed().await, code(4009), "{text}");
    }
}

#[tokio::test]
async fn a_handshake_or_an_authentication_without_a_call_id_is_closed_with_4008() {
    let cluster = Cluster::start(1, 1).await;
    for cid in ["", r#","cid":null"#, r#","cid":"1""#] {
        let mut client = Raw::open(&cluster.url()).await;
        client
            .send(&format!(
                r##"{{"event":"#handshake","data":{{"authToken":null}}{cid}}}"##
            ))
            .await;
        assert_eq!(client.closed().await, code(4008), "{cid}");
        let mut client = Raw::connect(&cluster.url()).await;
        client
            .send(&format!(r##"{{"event":"#authenticate","data":"x"{cid}}}"##))
            .await;
        assert_eq!(client.closed().await, code(4008), "{cid}");
    }
}

#[tokio::test]
async fn a_message_beyond_the_limit_closes_its_sender_with_1009() {
    let cluster = Cluster::builder(1, 1)
        .config("[limits]\nmessage_bytes_max = \"64KiB\"")
        .start()
        .await;
    let mut client = Raw::connect(&cluster.url()).await;
    let mut other = Raw::connect(&cluster.url()).await;
    // As long as allowed.
    let packet = |bytes: usize| {
        let frame = r##"{"event":"#publish","data":{"channel":"a","data":""},"cid":5}"##;
        frame.replace(
            r#"data":"""#,
            &format!(r#"data":"{}""#, "x".repeat(bytes - frame.len())),
        )
    };
    client.send(&packet(65_536)).await;
    assert_eq!(client.receive().await, r#"{"rid":5}"#);
    client.send(&packet(65_537)).await;
    assert_eq!(client.closed().await, code(1009));
    other.publish("a", "1").await;
}

#[tokio::test]
async fn frames_that_break_the_protocol_close_their_sender_alone() {
    let cluster = Cluster::start(1, 1).await;
    let mut other = Raw::connect(&cluster.url()).await;
    other.subscribe("a").await;
    let frames: [(&[u8], u16); 8] = [
        (&[0x81, 0x02, b'{', b'}'], 1002),             // Not masked.
        (&[0x83, 0x80, 0, 0, 0, 0], 1002),             // A reserved opcode.
        (&[0xC1, 0x80, 0, 0, 0, 0], 1002),             // A reserved bit.
        (&[0x09, 0x80, 0, 0, 0, 0], 1002),             // A ping in fragments.
        (&[0x80, 0x80, 0, 0, 0, 0], 1002),             // Continues nothing.
        (&[0x88, 0x81, 0, 0, 0, 0, 3], 1002),          // Half a close code.
        (&[0x88, 0x82, 0, 0, 0, 0, 0x03, 0xED], 1002), // 1005 must not be sent.
        (&[0x81, 0x82, 0, 0, 0, 0, 0xC3, 0x28], 1007), // Not UTF-8.
    ];
    for (frame, expected) in frames {
        let mut stream = http::upgraded(&cluster).await;
        stream.write_all(frame).await.unwrap();
        assert_eq!(close_code(&mut stream).await, expected, "{frame:x?}");
        other.publish("a", "1").await;
        assert_eq!(other.delivery().await.0, "a");
    }
}

/// Reads to the end; the code in the last frame.
async fn close_code(stream: &mut TcpStream) -> u16 {
    let mut bytes = Vec::new();
    tokio::time::timeout(muster_tests::patience(), stream.read_to_end(&mut bytes))
        .await
        .expect("the server ends the connection in time")
        .ok();
    match bytes.as_slice() {
        [.., 0x88, 0x02, high, low] => u16::from_be_bytes([*high, *low]),
        other => panic!("no close frame at the end of {other:x?}"),
    }
}

#[tokio::test]
async fn a_client_that_closes_gets_its_own_code_back() {
    let cluster = Cluster::start(1, 1).await;
    for value in [1000, 1001, 4000, 4100, 4999] {
        let client = Raw::connect(&cluster.url()).await;
        assert_eq!(client.close(value, "bye").await.code, value);
    }
    let mut client = Raw::connect(&cluster.url()).await;
    client.send_message(Message::Close(None)).await;
    assert_eq!(client.closed().await.code, 1005);
}

#[tokio::test]
async fn a_websocket_ping_is_answered_and_fragments_are_joined() {
    let cluster = Cluster::start(1, 1).await;
    let mut stream = http::upgraded(&cluster).await;
    stream
        .write_all(&[0x89, 0x83, 0, 0, 0, 0, b'a', b'b', b'c'])
        .await
        .unwrap();
    let mut pong = [0; 5];
    stream.read_exact(&mut pong).await.unwrap();
    assert_eq!(&pong, b"\x8a\x03abc");
    let handshake = br##"{"event":"#handshake","cid":1}"##;
    let (first, second) = handshake.split_at(9);
    let length = |part: &[u8]| 0x80 | u8::try_from(part.len()).unwrap();
    for byte in [
        &[0x01, length(first), 0, 0, 0, 0][..],
        first,
        &[0x89, 0x80, 0, 0, 0, 0],
        &[0x80, length(second), 0, 0, 0, 0],
        second,
    ]
    .concat()
    {
        stream.write_all(&[byte]).await.unwrap();
    }
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer[..2], b"\x8a\x00", "the ping between the fragments");
    assert_eq!(&answer[4..], b"{\"rid\":1");
}

#[tokio::test]
async fn a_host_is_drained_by_closes_after_which_stock_clients_come_back_at_once() {
    let mut cluster = Cluster::start(2, 1).await;
    let mut clients = Vec::new();
    for _ in 0..10 {
        let mut client = Raw::connect(&cluster.url()).await;
        client.subscribe("a").await;
        clients.push(client);
    }
    let began = tokio::time::Instant::now();
    let down = cluster.verb(&["down", "--drain", "--within", "2s"]);
    let closes = async {
        let mut closed = Vec::new();
        for client in &mut clients {
            closed.push(client.closed().await.code);
        }
        (closed, began.elapsed())
    };
    let (down, (codes, took)) = tokio::join!(down, closes);
    assert!(down.status.success(), "{down:?}");
    // No status at all.
    assert_eq!(codes, [1005; 10]);
    assert!(took >= std::time::Duration::from_millis(200), "{took:?}");
    assert!(cluster.ended().await.success());
    assert_eq!(cluster.left_behind(), Vec::<String>::new());
}

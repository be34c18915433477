//! A client whose every byte the test decides: frames in pieces, messages in
//! fragments, and no reading where none is wanted.

use muster_wire::frame::{Decoded, Decoder, Message, Side};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::eventually::patience;

const MESSAGE_BYTES_MAX: usize = 64 << 20;
const FINAL: u8 = 0x80;

/// One connection; nothing is sent or read by itself.
#[derive(Debug)]
pub struct Bare {
    stream: TcpStream,
    decoder: Decoder,
    unread: Vec<u8>,
}

/// A frame of a client, whole or one of several fragments.
#[must_use]
pub fn frame(opcode: u8, is_final: bool, payload: &[u8]) -> Vec<u8> {
    let first = opcode | if is_final { FINAL } else { 0 };
    // Masked with zeros: that is a mask, too.
    let mut frame = match payload.len() {
        len @ 0..126 => vec![first, 0x80 | u8::try_from(len).expect("below 126")],
        len => {
            let mut head = vec![first, 0x80 | 127];
            head.extend_from_slice(&(len as u64).to_be_bytes());
            head
        }
    };
    frame.extend_from_slice(&[0; 4]);
    frame.extend_from_slice(payload);
    frame
}

/// A text message in one frame.
#[must_use]
pub fn text(payload: &str) -> Vec<u8> {
    frame(1, true, payload.as_bytes())
}

impl Bare {
    /// A TCP connection.
    ///
    /// # Panics
    /// When there is no server.
    pub async fn connect(addr: &str) -> Self {
        let stream = TcpStream::connect(addr).await.expect("the server listens");
        stream.set_nodelay(true).expect("it is a TCP socket");
        Self {
            stream,
            decoder: Decoder::default(),
            unread: vec![],
        }
    }

    /// Sends bytes.
    ///
    /// # Panics
    /// When the connection is gone.
    pub async fn write(&mut self, bytes: &[u8]) {
        let written = self.stream.write_all(bytes).await;
        written.expect("the connection stands");
    }

    /// Sends the HTTP request and reads its answer.
    ///
    /// # Panics
    /// When it is not upgraded.
    pub async fn upgrade(&mut self) {
        self.write(
            b"GET /socketcluster/ HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\
              Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
              Sec-WebSocket-Version: 13\r\n\r\n",
        )
        .await;
        self.upgraded().await;
    }

    /// Reads the answer to the HTTP request.
    ///
    /// # Panics
    /// When it is not upgraded.
    pub async fn upgraded(&mut self) {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let byte = timeout(patience(), self.stream.read_u8()).await;
            head.push(byte.expect("in time").expect("the connection stands"));
        }
        assert!(head.starts_with(b"HTTP/1.1 101 "), "{head:?}");
    }

    /// Makes the SocketCluster handshake; returns the session id.
    ///
    /// # Panics
    /// When it is refused.
    pub async fn handshake(&mut self) -> String {
        self.write(&text(r##"{"event":"#handshake","cid":1}"##))
            .await;
        let answer = self.text().await;
        let answer: serde_json::Value = serde_json::from_str(&answer).expect("it is JSON");
        let id = answer["data"]["id"].as_str();
        id.expect("the handshake gives an id").to_owned()
    }

    /// The next text that is no ping; pings are answered.
    ///
    /// # Panics
    /// When none comes in time.
    pub async fn text(&mut self) -> String {
        loop {
            match self.next().await {
                text if text.is_empty() => self.write(&text_of_pong()).await,
                text => return text,
            }
        }
    }

    /// The next text.
    async fn next(&mut self) -> String {
        loop {
            let decoded = self
                .decoder
                .decode(Side::Client, &mut self.unread, MESSAGE_BYTES_MAX);
            match decoded.expect("the server's frames are in order") {
                Decoded::Frame { consumed, message } => {
                    let text = match message {
                        Some(Message::Text(text)) => Some(text.to_owned()),
                        None | Some(Message::Ping(_) | Message::Pong(_)) => None,
                        Some(other) => panic!("a text was expected, not {other:?}"),
                    };
                    self.unread.drain(..consumed);
                    if let Some(text) = text {
                        return text;
                    }
                }
                Decoded::Incomplete { .. } => {
                    let read = self.stream.read_buf(&mut self.unread);
                    let read = timeout(patience(), read).await;
                    let len = read.expect("something comes in time");
                    assert_ne!(len.expect("the connection stands"), 0, "it was closed");
                }
            }
        }
    }
}

fn text_of_pong() -> Vec<u8> {
    text("")
}

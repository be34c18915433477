//! An engine without brokers, and a client of it, with a real socket between
//! them.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use muster_daemon::config::{History, Namespace};
use muster_wire::{
    frame::{Decoded, Decoder, Message, Side},
    session::{Rate, Rules},
};
use rand::{SeedableRng as _, rngs::StdRng};
use tokio::sync::mpsc;

use super::{Engine, Settings};
use crate::{
    auth::Auth,
    core::{Core, Names, Now},
    link::LinkSettings,
    namespaces::Namespaces,
    router::Router,
    upgrade::UpgradeRules,
};

/// Channels with this prefix have a history.
pub(crate) const KEPT: &str = "kept:";

/// A worker without brokers.
pub(crate) fn engine(listener: TcpListener, now: Now) -> Engine {
    let second = Duration::from_secs(1);
    let rules = Rules {
        handshake_timeout: second * 10,
        ping_interval: second * 8,
        pong_timeout: second * 20,
        channels_max: 10,
        packets: Rate::new(1000, 1000),
        subscribes: Rate::new(1000, 1000),
    };
    let auth = Auth::with_secret(b"a test", second);
    let router = Router::new(1 << 20, second * 5);
    let kept = Namespace {
        prefix: KEPT.into(),
        history: Some(History::default()),
        ..Namespace::default()
    };
    let names = Names {
        namespaces: Namespaces::new(vec![kept]),
        ..Names::default()
    };
    let core = Core::new(rules, auth, names, router);
    let settings = Settings {
        upgrade: UpgradeRules {
            path: "/".into(),
            origins: vec!["*:*".into()],
            head_bytes_max: 4096,
            echo_path: None,
        },
        connections_max: 100,
        connections_per_address_max: Some(100),
        message_bytes_max: 1 << 20,
        outbox_bytes_max: 1 << 20,
        is_successor: false,
        link: LinkSettings {
            worker_slot: 1,
            worker_incarnation: 1,
            credit_bytes: 1,
            frame_bytes_max: 1 << 20,
        },
    };
    listener.set_nonblocking(true).unwrap();
    let (events, _) = mpsc::channel(1);
    let rng = StdRng::seed_from_u64(3);
    let mut engine = Engine::new(settings, core, listener, None, events, now, rng).unwrap();
    engine.start_accepting();
    engine
}

/// Whether the worker subscribes to the channel.
pub(crate) fn has_channel(engine: &Engine, channel: &str) -> bool {
    engine.core.channels.name(channel).is_some()
}

/// What a worker does with its sockets in one turn.
pub(crate) async fn turn(engine: &mut Engine) {
    let ready = tokio::time::timeout(Duration::from_millis(1), engine.wait());
    if ready.await.is_ok() {
        engine.handle_ready();
    }
    engine.finish_turn();
}

#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) socket: TcpStream,
    decoder: Decoder,
    unread: Vec<u8>,
}

impl Client {
    /// One that has made its handshake. `turn` lets workers work.
    pub(crate) async fn open(addr: SocketAddr, mut turn: impl AsyncFnMut()) -> Self {
        let mut client = Self {
            socket: TcpStream::connect(addr).unwrap(),
            decoder: Decoder::default(),
            unread: vec![],
        };
        client.socket.set_nodelay(true).unwrap();
        client.socket.set_nonblocking(true).unwrap();
        let request = b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\
            Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
            Sec-WebSocket-Version: 13\r\n\r\n";
        client.socket.write_all(request).unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            match client.socket.read_exact(&mut byte) {
                Ok(()) => head.push(byte[0]),
                Err(_) => turn().await,
            }
        }
        client.say(r##"{"event":"#handshake","cid":1}"##);
        assert!(client.hear(turn).await.contains("isAuthenticated"));
        client
    }

    /// Sends a text in one frame.
    pub(crate) fn say(&mut self, text: &str) {
        let length = u8::try_from(text.len()).unwrap();
        assert!(length < 126);
        let frame = [&[0x81, 0x80 | length, 0, 0, 0, 0][..], text.as_bytes()].concat();
        self.socket.write_all(&frame).unwrap();
    }

    /// The next text; the code of a close frame as a number, 0 without one;
    /// `end` at the end of the connection.
    pub(crate) async fn hear(&mut self, mut turn: impl AsyncFnMut()) -> String {
        for _ in 0..5000 {
            if let Some(heard) = self.try_hear() {
                return heard;
            }
            turn().await;
        }
        panic!("nothing came");
    }

    /// The same, if it is there.
    pub(crate) fn try_hear(&mut self) -> Option<String> {
        loop {
            let decoded = self.decoder.decode(Side::Client, &mut self.unread, 1 << 20);
            if let Decoded::Frame { consumed, message } = decoded.unwrap() {
                let heard = match message {
                    Some(Message::Text(text)) => text.to_owned(),
                    Some(Message::Close(close)) => {
                        close.map_or(0, |close| close.code.0).to_string()
                    }
                    other => panic!("{other:?}"),
                };
                self.unread.drain(..consumed);
                return Some(heard);
            }
            let mut bytes = [0; 4096];
            match self.socket.read(&mut bytes) {
                Ok(0) => return Some("end".to_owned()),
                Ok(len) => self.unread.extend_from_slice(&bytes[..len]),
                Err(_) => return None,
            }
        }
    }
}

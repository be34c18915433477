//! Two engines in one process, with real sockets between them and the clients.

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    os::fd::AsFd as _,
    time::Duration,
};

use muster_wire::{
    Millis,
    frame::{Decoded, Decoder, Message, Side},
    session::{Rate, Rules},
};
use rand::{SeedableRng as _, rngs::StdRng};
use tokio::sync::mpsc;

use super::*;
use crate::{
    auth::Auth,
    core::{Core, Names, Now},
    engine::Settings,
    link::LinkSettings,
    router::Router,
    upgrade::UpgradeRules,
};

const NOW: Now = Now {
    millis: Millis(50_000),
    unix: 1_700_000_000,
};

/// A worker without brokers.
fn engine(listener: TcpListener) -> Engine {
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
    let core = Core::new(rules, auth, Names::default(), router);
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
    let mut engine = Engine::new(settings, core, listener, None, events, NOW, rng).unwrap();
    engine.start_accepting();
    engine
}

/// An engine with one client, which has made its handshake, and another engine.
struct Pair {
    giver: Engine,
    taker: Engine,
    client: TcpStream,
    decoder: Decoder,
    unread: Vec<u8>,
}

impl Pair {
    async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let other = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut pair = Self {
            giver: engine(listener),
            taker: engine(other),
            client: TcpStream::connect(addr).unwrap(),
            decoder: Decoder::default(),
            unread: vec![],
        };
        pair.client.set_nodelay(true).unwrap();
        pair.client.set_nonblocking(true).unwrap();
        let request = b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\
            Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
            Sec-WebSocket-Version: 13\r\n\r\n";
        pair.client.write_all(request).unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            match pair.client.read_exact(&mut byte) {
                Ok(()) => head.push(byte[0]),
                Err(_) => pair.turn().await,
            }
        }
        pair.say(r##"{"event":"#handshake","cid":1}"##);
        assert!(pair.hear().await.contains("isAuthenticated"));
        pair
    }

    /// Sends a text in one frame.
    fn say(&mut self, text: &str) {
        let length = u8::try_from(text.len()).unwrap();
        assert!(length < 126);
        let frame = [&[0x81, 0x80 | length, 0, 0, 0, 0][..], text.as_bytes()].concat();
        self.client.write_all(&frame).unwrap();
    }

    /// The next text; the code of a close frame as a number, 0 without one;
    /// `end` at the end of the connection.
    async fn hear(&mut self) -> String {
        for _ in 0..5000 {
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
                return heard;
            }
            let mut bytes = [0; 4096];
            match self.client.read(&mut bytes) {
                Ok(0) => return "end".to_owned(),
                Ok(len) => self.unread.extend_from_slice(&bytes[..len]),
                Err(_) => self.turn().await,
            }
        }
        panic!("nothing came");
    }

    /// One turn of both workers.
    async fn turn(&mut self) {
        for engine in [&mut self.giver, &mut self.taker] {
            let ready = tokio::time::timeout(Duration::from_millis(1), engine.wait());
            if ready.await.is_ok() {
                engine.handle_ready();
            }
            engine.finish_turn();
        }
    }

    fn freeze(&mut self) -> FrozenBatch {
        let mut keys = self.giver.keys();
        let frozen = self.giver.freeze(&mut keys, 10, false, &mut false);
        frozen.expect("there is one")
    }

    /// What the taker makes of a batch; its descriptors are duplicates.
    fn build(&mut self, frozen: &FrozenBatch) -> Vec<Arrival> {
        let snapshots = Snapshots::from_bytes(&frozen.body).unwrap();
        let sockets = frozen.keys.iter().map(|key| {
            let socket = self.giver.socket(*key).unwrap();
            socket.as_fd().try_clone_to_owned().unwrap()
        });
        let sockets = sockets.collect();
        self.taker.build(snapshots, sockets)
    }
}

fn arrivals(keys: &[ConnectionKey]) -> Vec<Arrival> {
    let arrival = |key: &ConnectionKey| Arrival {
        key: *key,
        unacked: vec![],
    };
    keys.iter().map(arrival).collect()
}

const CALL: &str = r#"{"event":"x","cid":2}"#;

#[tokio::test]
async fn a_client_goes_on_with_the_other_worker() {
    let mut pair = Pair::new().await;
    // A publication that nobody has acked.
    pair.say(r##"{"event":"#publish","data":{"channel":"a","data":1},"cid":7}"##);
    while pair.giver.core.router.is_idle() {
        pair.turn().await;
    }
    let frozen = pair.freeze();
    let arrivals = pair.build(&frozen);
    assert_eq!(arrivals[0].unacked.len(), 1);
    assert!(pair.taker.core.router.is_idle(), "not before the commit");
    for arrival in arrivals {
        pair.taker.run(arrival);
    }
    assert!(!pair.taker.core.router.is_idle());
    pair.giver.release(&frozen.keys);
    assert_eq!((pair.giver.len(), pair.taker.len()), (0, 1));
    assert!(pair.giver.core.router.is_idle(), "the other one sends it");
    pair.say(CALL);
    assert!(pair.hear().await.starts_with(r#"{"rid":2,"#));
}

#[tokio::test]
async fn nobody_touches_a_frozen_clients_socket_and_nothing_is_lost() {
    let mut pair = Pair::new().await;
    let frozen = pair.freeze();
    let arrivals = pair.build(&frozen);
    pair.say(CALL);
    let frame = muster_wire::frame::text_frame(b"while it was frozen");
    pair.giver.send(frozen.keys[0], &mut vec![frame]);
    for engine in [&mut pair.giver, &mut pair.taker] {
        engine.finish_turn();
        engine.set_now(Now {
            millis: NOW.millis + Duration::from_secs(60),
            ..NOW
        });
        engine.handle_tick();
        engine.finish_turn();
        assert_eq!(engine.len(), 1, "its deadlines stand still");
        engine.set_now(NOW);
    }
    let waiting = tokio::time::timeout(Duration::from_millis(50), pair.giver.wait());
    assert!(waiting.await.is_err(), "it is not watched");
    // It stays: what was queued and said meanwhile comes.
    let keys: Vec<_> = arrivals.iter().map(|arrival| arrival.key).collect();
    pair.taker.abandon(&keys);
    pair.giver.thaw(frozen.keys[0]);
    pair.giver.finish_turn();
    assert_eq!(pair.hear().await, "while it was frozen");
    assert!(pair.hear().await.starts_with(r#"{"rid":2,"#));
}

#[tokio::test]
async fn an_ended_worker_that_has_touched_nothing_gives_a_client_back() {
    let mut pair = Pair::new().await;
    let frozen = pair.freeze();
    pair.say(CALL);
    let committed = pair.build(&frozen);
    drop(committed);
    assert_eq!(pair.giver.judge(arrivals(&frozen.keys)), 1);
    assert!(pair.hear().await.starts_with(r#"{"rid":2,"#));
}

#[tokio::test]
async fn what_an_ended_worker_has_read_is_lost_and_the_client_comes_back_at_once() {
    let mut pair = Pair::new().await;
    let frozen = pair.freeze();
    pair.say(CALL);
    let socket = pair.giver.socket(frozen.keys[0]).unwrap();
    let other = TcpStream::from(socket.as_fd().try_clone_to_owned().unwrap());
    let mut byte = [0];
    while (&other).read(&mut byte).is_err() {}
    assert_eq!(pair.giver.judge(arrivals(&frozen.keys)), 0);
    pair.giver.finish_turn();
    assert_eq!(pair.hear().await, "0", "a close without a status");
}

#[tokio::test]
async fn into_what_an_ended_worker_has_begun_to_write_nothing_is_written() {
    let mut pair = Pair::new().await;
    let frozen = pair.freeze();
    let socket = pair.giver.socket(frozen.keys[0]).unwrap();
    let other = TcpStream::from(socket.as_fd().try_clone_to_owned().unwrap());
    (&other).write_all(&[0x81]).unwrap();
    drop(other);
    assert_eq!(pair.giver.judge(arrivals(&frozen.keys)), 0);
    assert_eq!(pair.giver.len(), 0);
    assert_eq!(pair.hear().await, "end");
}

#[tokio::test]
async fn what_is_closing_or_no_websocket_yet_does_not_move() {
    let mut pair = Pair::new().await;
    let addr = pair.giver.listener.local_addr().unwrap();
    let _head = TcpStream::connect(addr).unwrap();
    while pair.giver.len() < 2 {
        pair.turn().await;
    }
    let mut keys = pair.giver.keys();
    let mut later = false;
    let frozen = pair.giver.freeze(&mut keys, 10, false, &mut later).unwrap();
    assert_eq!(frozen.keys.len(), 1);
    assert!(later, "it may still become one");
    pair.giver.thaw(frozen.keys[0]);
    pair.giver.close(frozen.keys[0], None, "");
    let (mut keys, mut later) = (frozen.keys, false);
    assert!(
        pair.giver
            .freeze(&mut keys, 10, false, &mut later)
            .is_none()
    );
    assert!(!later);
}

#[tokio::test]
async fn what_is_on_its_way_past_the_queues_moves_too() {
    use crate::{core::Clients as _, outbox::Delivery, stats::Stats};

    let mut pair = Pair::new().await;
    // With others it is enough of them; those are gone by now.
    let gone = (1000..1100).map(|index| ConnectionKey { index, serial: 1 });
    let keys: Vec<_> = pair.giver.keys().into_iter().chain(gone).collect();
    let frame = muster_wire::frame::text_frame(b"to many");
    let delivery = Delivery {
        frame: &frame,
        channel: 1,
        slow_client: muster_daemon::config::SlowClient::Close,
    };
    let connections = &mut pair.giver.connections;
    connections.fan_out(&keys, delivery, &mut Stats::default());
    assert!(connections.has_broadcast());
    let frozen = pair.freeze();
    for arrival in pair.build(&frozen) {
        pair.taker.run(arrival);
    }
    pair.giver.release(&frozen.keys);
    pair.say(CALL);
    assert_eq!(pair.hear().await, "to many");
    assert!(pair.hear().await.starts_with(r#"{"rid":2,"#), "once");
}

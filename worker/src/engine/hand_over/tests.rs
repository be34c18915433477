//! Two engines in one process, with real sockets between them and the clients.

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    os::fd::AsFd as _,
    time::Duration,
};

use muster_proto::link::{self, KeptPublication, ReadResponse};
use muster_wire::{Millis, snapshot::SNAPSHOT_VERSION};

use super::*;
use crate::{
    core::Now,
    engine::testing::{Client, engine, turn},
    link::LinkEvent,
};

const NOW: Now = Now {
    millis: Millis(50_000),
    unix: 1_700_000_000,
};

const WANTED: Wanted = Wanted {
    at_most: 10,
    version: SNAPSHOT_VERSION,
    is_urgent: false,
};

/// An engine with one client, which has made its handshake, and another engine.
struct Pair {
    giver: Engine,
    taker: Engine,
    client: Client,
}

impl Pair {
    async fn new() -> Self {
        let [mut giver, taker] = [(); 2].map(|()| {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            engine(listener, NOW)
        });
        let addr = giver.listener.local_addr().unwrap();
        let client = Client::open(addr, async || turn(&mut giver).await).await;
        Self {
            giver,
            taker,
            client,
        }
    }

    fn say(&mut self, text: &str) {
        self.client.say(text);
    }

    async fn hear(&mut self) -> String {
        let Self {
            giver,
            taker,
            client,
        } = self;
        let turns = async || {
            turn(giver).await;
            turn(taker).await;
        };
        client.hear(turns).await
    }

    /// One turn of both workers.
    async fn turn(&mut self) {
        turn(&mut self.giver).await;
        turn(&mut self.taker).await;
    }

    fn freeze(&mut self) -> FrozenBatch {
        let mut keys = self.giver.keys();
        let frozen = self.giver.freeze(&mut keys, WANTED, &mut false);
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
    let frozen = pair.giver.freeze(&mut keys, WANTED, &mut later).unwrap();
    assert_eq!(frozen.keys.len(), 1);
    assert!(later, "it may still become one");
    pair.giver.thaw(frozen.keys[0]);
    pair.giver.close(frozen.keys[0], None, "");
    let (mut keys, mut later) = (frozen.keys, false);
    assert!(pair.giver.freeze(&mut keys, WANTED, &mut later).is_none());
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

#[tokio::test]
async fn a_history_read_that_is_not_answered_is_asked_again_by_the_other_worker() {
    let mut pair = Pair::new().await;
    pair.say(r#"{"event":"history","data":{"channel":"kept:a","limit":2},"cid":7}"#);
    // Answered in the order of the calls, so not before the read.
    pair.say(CALL);
    let questions = |engine: &mut Engine| {
        let mut asked = Vec::new();
        engine.core.reads.send(|id, question| {
            asked.push((id, question.clone()));
            Some(1)
        });
        asked
    };
    let mut before = questions(&mut pair.giver);
    while before.is_empty() {
        pair.turn().await;
        before = questions(&mut pair.giver);
    }
    let frozen = pair.freeze();
    for arrival in pair.build(&frozen) {
        pair.taker.run(arrival);
    }
    pair.giver.release(&frozen.keys);
    let after = questions(&mut pair.taker);
    assert_eq!(after.len(), 1);
    assert_eq!(after[0].1, before[0].1, "the same question");
    let response = |data: &'static [u8]| {
        Some(ReadResponse {
            head: Some(link::Position {
                generation: 7,
                offset: 1,
            }),
            complete: true,
            publications: vec![KeptPublication {
                offset: 1,
                data: Some(Bytes::from_static(data)),
                ..KeptPublication::default()
            }],
            ..ReadResponse::default()
        })
    };
    // What the first worker was answered is nobody's any more.
    let late = LinkEvent::Read {
        id: before[0].0,
        response: response(b"1"),
    };
    pair.giver.handle_link(late);
    pair.turn().await;
    assert_eq!(pair.client.try_hear(), None);
    let answer = LinkEvent::Read {
        id: after[0].0,
        response: response(b"2"),
    };
    pair.taker.handle_link(answer);
    let heard = pair.hear().await;
    assert!(heard.starts_with(r#"{"rid":7,"data":{"#), "{heard}");
    assert!(heard.contains(r#""data":2"#), "{heard}");
    assert!(
        pair.hear().await.starts_with(r#"{"rid":2,"#),
        "then the rest"
    );
}

#[tokio::test]
async fn a_client_that_wants_positions_goes_on_where_it_was() {
    let mut pair = Pair::new().await;
    let channel = ChannelName::try_from("a").unwrap();
    let at = |offset| Position {
        generation: 7,
        offset,
    };
    pair.say(r##"{"event":"#subscribe","data":{"channel":"a","since":null},"cid":3}"##);
    while pair.giver.core.channels.name("a").is_none() {
        pair.turn().await;
    }
    for (engine, offset) in [(&mut pair.giver, 4), (&mut pair.taker, 6)] {
        // The other worker has a subscriber of its own, and is ahead.
        engine
            .core
            .channels
            .keep(&channel, at(offset), Default::default);
        let (request, _) = engine.core.channels.request("a").unwrap();
        engine.core.channels.confirm("a", request, at(offset), true);
    }
    let Pair { giver, .. } = &mut pair;
    giver.core.start_followers("a", &mut giver.connections, NOW);
    assert!(pair.hear().await.contains(r#""offset":4"#), "from here on");
    let old = Wanted {
        version: SNAPSHOT_VERSION - 1,
        ..WANTED
    };
    let (mut keys, mut later) = (pair.giver.keys(), false);
    assert!(pair.giver.freeze(&mut keys, old, &mut later).is_none());
    assert!(!later, "an earlier release does not know its place");

    let frozen = pair.freeze();
    for arrival in pair.build(&frozen) {
        pair.taker.run(arrival);
    }
    pair.giver.release(&frozen.keys);
    let mut asked = Vec::new();
    pair.taker.core.reads.send(|id, question| {
        asked.push((id, question.since));
        Some(1)
    });
    assert_eq!(asked, [(1, Some(at(4)))], "what it misses is read");
    let publications = [5, 6].map(|offset| KeptPublication {
        offset,
        data: Some(offset.to_string().into()),
        ..KeptPublication::default()
    });
    let answer = LinkEvent::Read {
        id: 1,
        response: Some(ReadResponse {
            head: Some(link::Position {
                generation: 7,
                offset: 6,
            }),
            complete: true,
            publications: publications.into(),
            ..ReadResponse::default()
        }),
    };
    pair.taker.handle_link(answer);
    for offset in [5, 6] {
        let heard = pair.hear().await;
        let data = format!(r#""data":{offset},"offset":{offset}"#);
        assert!(heard.contains(&data), "{heard}");
    }
    let arrived = pair.taker.core.channels.arrive("a", 7, |_| true).unwrap();
    assert_eq!(arrived.followers.len(), 1, "and then what is new");
    assert!(arrived.subscribers.is_empty());
}

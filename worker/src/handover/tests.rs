//! A worker whose counterpart does not do as it should: the other end of the
//! socket is played by hand.

use std::{net::TcpListener, os::fd::OwnedFd, path::Path};

use muster_daemon::{adoption, runtime_dir};
use muster_proto::control::HandOverTarget;
use muster_wire::snapshot::{Place, SNAPSHOT_VERSION, SNAPSHOT_VERSIONS};
use tempfile::TempDir;
use tokio::time::{Duration, timeout};

use super::{
    message::{Announced, FromGiver, FromTaker, RefusedConnection, decode},
    packets::{Outgoing, Packet, Packets, pair},
    *,
};
use crate::{
    connection::ConnectionKey,
    engine::{
        Wanted,
        testing::{Client, engine, has_channel, turn},
    },
    now,
};

const CLIENTS: usize = 3;
const SLOT: u32 = 1;
const CALL: &str = r#"{"event":"x","cid":2}"#;
const BATCH: u32 = 1;

/// A worker with clients, and the other end of a hand-over from or to it.
struct World {
    engine: Engine,
    handovers: Handovers,
    clients: Vec<Client>,
    peer: Option<Packets>,
    report: Option<HandedOver>,
    _dir: TempDir,
}

impl World {
    async fn new() -> (Self, mpsc::Sender<OwnedFd>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let mut engine = engine(listener, now());
        let mut clients = Vec::new();
        for _ in 0..CLIENTS {
            clients.push(Client::open(addr, async || turn(&mut engine).await).await);
        }
        let dir = tempfile::tempdir().unwrap();
        let (offers, offered) = mpsc::channel(1);
        let args = NodeArgs {
            slot: SLOT,
            incarnation: 1,
            successor: false,
            runtime_dir: dir.path().into(),
            config: None,
        };
        let world = Self {
            engine,
            handovers: Handovers::new(&args, offered),
            clients,
            peer: None,
            report: None,
            _dir: dir,
        };
        (world, offers)
    }

    /// A worker that hands all it has over to the peer.
    async fn giving() -> Self {
        let (mut world, _) = Self::new().await;
        let target = HandOverTarget {
            slot: SLOT,
            incarnation: 2,
            ..HandOverTarget::default()
        };
        let mut offered = successor(world._dir.path(), &target);
        let order = HandOver {
            id: 7,
            targets: vec![target],
            leave: true,
        };
        world.handovers.begin(order, &mut world.engine);
        while world.peer.is_none() {
            world.turn().await;
            let socket = offered.try_recv().ok();
            world.peer = socket.map(|socket| Packets::new(socket).unwrap());
        }
        world
    }

    /// A worker without clients that the peer hands something over to.
    async fn taking() -> Self {
        let (mut world, offers) = Self::new().await;
        for client in std::mem::take(&mut world.clients) {
            drop(client);
        }
        while world.engine.len() > 0 {
            world.turn().await;
        }
        let (own, offered) = pair().unwrap();
        offers.try_send(offered).unwrap();
        world.peer = Some(Packets::new(own).unwrap());
        world
    }

    async fn turn(&mut self) {
        self.engine.set_now(now());
        let news = timeout(Duration::from_millis(1), self.handovers.next());
        if let Ok(news) = news.await {
            self.handovers.handle(news, &mut self.engine);
        }
        turn(&mut self.engine).await;
        if let Some(report) = self.handovers.finish_turn(&mut self.engine) {
            self.report = Some(report);
        }
    }

    fn say(&self, message: &FromTaker) {
        self.peer.as_ref().unwrap().say(message).unwrap();
    }

    /// What the worker says next.
    async fn packet(&mut self) -> Packet {
        loop {
            let peer = self.peer.as_mut().expect("it is connected");
            let packet = poll_fn(|cx| peer.poll_receive(cx));
            if let Ok(packet) = timeout(Duration::from_millis(1), packet).await {
                return packet.unwrap().expect("it goes on");
            }
            self.turn().await;
        }
    }

    /// The same of a worker that hands over; its descriptors are closed.
    async fn giver_says(&mut self) -> FromGiver {
        decode(&self.packet().await.bytes).unwrap().0
    }

    /// The same of a worker that takes over.
    async fn taker_says(&mut self) -> FromTaker {
        decode(&self.packet().await.bytes).unwrap().0
    }

    /// As a successor does up to the first batch, which it has received.
    async fn receive_batch(&mut self) {
        assert!(matches!(self.giver_says().await, FromGiver::Begin { .. }));
        self.say(&FromTaker::Welcome {
            snapshots: SNAPSHOT_VERSION,
        });
        self.receive_next_batch(BATCH).await;
    }

    async fn receive_next_batch(&mut self, number: u32) {
        let packet = self.packet().await;
        let (message, _) = decode::<FromGiver>(&packet.bytes).unwrap();
        let FromGiver::Prepare {
            batch, connections, ..
        } = message
        else {
            panic!("{message:?}");
        };
        assert_eq!((batch, connections), (number, CLIENTS));
        assert_eq!(packet.descriptors.len(), CLIENTS);
    }

    /// Waits for the worker's last report; every client is still served by it,
    /// and what it had said meanwhile is not lost.
    async fn ends_with_everybody_served(&mut self) -> HandedOver {
        while self.handovers.is_giving() {
            self.turn().await;
        }
        let report = self.report.take().expect("it reports");
        assert!(report.done);
        assert_eq!((report.moved, report.left), (0, CLIENTS as u64));
        for index in 0..CLIENTS {
            self.is_served(index).await;
        }
        report
    }

    async fn is_served(&mut self, index: usize) {
        self.clients[index].say(CALL);
        let engine = &mut self.engine;
        let client = &mut self.clients[index];
        let heard = client.hear(async || turn(engine).await).await;
        assert!(heard.starts_with(r#"{"rid":2,"#), "{heard}");
        assert_eq!(client.try_hear(), None, "once");
    }
}

/// The socket of a successor that somebody plays.
fn successor(dir: &Path, target: &HandOverTarget) -> mpsc::Receiver<OwnedFd> {
    let path = runtime_dir::worker_socket(dir, target.slot, target.incarnation);
    let socket = adoption::bind(&path).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (offers, offered) = mpsc::channel(1);
    tokio::spawn(adoption::serve(socket, listener.into(), offers));
    offered
}

#[tokio::test]
async fn a_successor_that_refuses_at_once_gets_nobody() {
    let mut world = World::giving().await;
    assert!(matches!(world.giver_says().await, FromGiver::Begin { .. }));
    assert!(world.engine.is_accepting(), "new clients are still its own");
    let reason = "it is too warm".to_owned();
    world.say(&FromTaker::Refused { reason });
    let report = world.ends_with_everybody_served().await;
    assert_eq!(report.error, "it is too warm");
    assert!(world.engine.is_accepting());
}

#[tokio::test]
async fn a_successor_that_wants_snapshots_of_another_release_gets_nobody() {
    for snapshots in [SNAPSHOT_VERSION + 1, SNAPSHOT_VERSIONS.start() - 1] {
        let mut world = World::giving().await;
        let FromGiver::Begin { oldest, newest, .. } = world.giver_says().await else {
            panic!("that comes first");
        };
        assert_eq!(oldest..=newest, SNAPSHOT_VERSIONS);
        world.say(&FromTaker::Welcome { snapshots });
        let report = world.ends_with_everybody_served().await;
        assert!(report.error.contains("out of turn"), "{}", report.error);
    }
}

#[tokio::test]
async fn connections_that_a_successor_refuses_again_and_again_stay() {
    let mut world = World::giving().await;
    world.receive_batch().await;
    for batch in BATCH.. {
        // Said while nobody reads it.
        world.clients[0].say(CALL);
        let refused = (0..CLIENTS).map(|index| RefusedConnection {
            index,
            reason: "no room".to_owned(),
        });
        world.say(&FromTaker::Prepared {
            batch,
            refused: refused.collect(),
        });
        assert_eq!(world.giver_says().await, FromGiver::Abort { batch });
        let engine = &mut world.engine;
        let heard = world.clients[0].hear(async || turn(engine).await).await;
        assert!(heard.starts_with(r#"{"rid":2,"#), "{heard}");
        if batch == 5 {
            break;
        }
        world.receive_next_batch(batch + 1).await;
    }
    assert_eq!(world.giver_says().await, FromGiver::End);
    let report = world.ends_with_everybody_served().await;
    assert_eq!((report.failed, &*report.note), (CLIENTS as u64, "no room"));
    assert_eq!(report.error, "", "the others could go");
}

#[tokio::test]
async fn a_successor_that_makes_no_sense_gets_nobody_whatever_it_says() {
    let packet = |message: FromTaker| message::encode(&message, b"").unwrap();
    let prepared = |batch, index| {
        let reason = String::new();
        packet(FromTaker::Prepared {
            batch,
            refused: vec![RefusedConnection { index, reason }],
        })
    };
    let nonsense = [
        b"garbage".to_vec(),
        vec![0xff; 10_000],
        prepared(BATCH, CLIENTS),
        prepared(BATCH + 1, 0),
        packet(FromTaker::Running { batch: BATCH }),
        packet(FromTaker::Subscribed),
    ];
    for bytes in nonsense {
        let mut world = World::giving().await;
        world.receive_batch().await;
        world.clients[1].say(CALL);
        let peer = world.peer.as_ref().unwrap();
        muster_daemon::descriptor::send(peer.socket(), &bytes, &[]).unwrap();
        while world.handovers.is_giving() {
            world.turn().await;
        }
        let engine = &mut world.engine;
        let heard = world.clients[1].hear(async || turn(engine).await).await;
        assert!(heard.starts_with(r#"{"rid":2,"#), "{heard}");
        let report = world.ends_with_everybody_served().await;
        assert!(!report.error.is_empty());
        assert!(world.engine.is_accepting(), "as before");
    }
}

#[tokio::test]
async fn a_successor_that_closes_its_socket_before_the_commit_gets_nobody() {
    for step in 0..3 {
        let mut world = World::giving().await;
        match step {
            0 => {}
            1 => assert!(matches!(world.giver_says().await, FromGiver::Begin { .. })),
            _ => world.receive_batch().await,
        }
        world.peer = None;
        let report = world.ends_with_everybody_served().await;
        assert!(!report.error.is_empty());
        assert!(world.engine.is_accepting());
    }
}

#[tokio::test]
async fn a_successor_that_closes_its_socket_after_the_commit_may_have_them() {
    let mut world = World::giving().await;
    world.receive_batch().await;
    let refused = vec![RefusedConnection {
        index: 0,
        reason: String::new(),
    }];
    world.say(&FromTaker::Prepared {
        batch: BATCH,
        refused,
    });
    let batch = BATCH;
    assert_eq!(world.giver_says().await, FromGiver::Commit { batch });
    world.peer = None;
    // The one that was refused is served. The others may be served elsewhere as
    // long as that process lives, so this one does not touch them.
    let mut heard = Vec::new();
    for client in &mut world.clients {
        client.say(CALL);
    }
    while heard.is_empty() {
        world.turn().await;
        heard.extend(world.clients.iter_mut().filter_map(Client::try_hear));
    }
    for _ in 0..20 {
        world.turn().await;
    }
    heard.extend(world.clients.iter_mut().filter_map(Client::try_hear));
    assert_eq!(heard.len(), 1, "{heard:?}");
    assert!(world.handovers.is_giving() && world.report.is_none());
    // A worker that ends meanwhile leaves them to it.
    world.handovers.stop(&mut world.engine);
    while world.handovers.is_giving() {
        world.turn().await;
    }
    assert_eq!(world.engine.len(), 1);
}

#[tokio::test]
async fn what_several_workers_have_announced_is_kept_until_the_last_of_them_ends() {
    let (mut world, offers) = World::new().await;
    let mut peers = Vec::new();
    for _ in 0..2 {
        let (own, offered) = pair().unwrap();
        offers.try_send(offered).unwrap();
        world.peer = Some(Packets::new(own).unwrap());
        while world.handovers.takers.len() == peers.len() {
            world.turn().await;
        }
        welcomed(&mut world).await;
        let place = Place {
            channel: "a".try_into().unwrap(),
            generation: 7,
            offset: 1,
        };
        let announced = Announced {
            places: vec![place],
        };
        let body = Outgoing::new(serde_json::to_vec(&announced).unwrap()).unwrap();
        let message = FromGiver::Announce { body: body.body() };
        let peer = world.peer.take().unwrap();
        peer.send(&message, &body, &[]).unwrap();
        while world.handovers.takers.iter().any(Taker::is_idle) {
            world.turn().await;
        }
        peers.push(peer);
    }
    for left in [1, 0] {
        assert!(has_channel(&world.engine, "a"));
        drop(peers.pop());
        while world.handovers.takers.len() > left {
            world.turn().await;
        }
    }
    assert!(!has_channel(&world.engine, "a"));
}

/// Another worker with clients, whose part in the hand-over is played.
struct Giver {
    engine: Engine,
    clients: Vec<Client>,
    frozen: Vec<ConnectionKey>,
    body: Vec<u8>,
}

impl Giver {
    async fn new() -> Self {
        let (
            World {
                engine, clients, ..
            },
            _,
        ) = World::new().await;
        Self {
            engine,
            clients,
            frozen: Vec::new(),
            body: Vec::new(),
        }
    }

    fn freeze(&mut self) {
        let mut keys = self.engine.keys();
        let wanted = Wanted {
            at_most: CLIENTS,
            version: SNAPSHOT_VERSION,
            is_urgent: false,
        };
        let frozen = self.engine.freeze(&mut keys, wanted, &mut false).unwrap();
        (self.frozen, self.body) = (frozen.keys, frozen.body);
    }

    /// Sends the batch; `connections` is how many it says there are.
    fn send(&self, peer: &Packets, connections: usize) {
        let outgoing = Outgoing::new(self.body.clone()).unwrap();
        let message = FromGiver::Prepare {
            batch: BATCH,
            connections,
            body: outgoing.body(),
        };
        let sockets = self
            .frozen
            .iter()
            .filter_map(|key| self.engine.socket(*key));
        let sockets: Vec<_> = sockets.collect();
        peer.send(&message, &outgoing, &sockets).unwrap();
    }

    async fn goes_on(&mut self) {
        for key in std::mem::take(&mut self.frozen) {
            self.engine.thaw(key);
        }
        for client in &mut self.clients {
            client.say(CALL);
            let engine = &mut self.engine;
            let heard = client.hear(async || turn(engine).await).await;
            assert!(heard.starts_with(r#"{"rid":2,"#), "{heard}");
        }
    }
}

fn begin() -> FromGiver {
    FromGiver::begin(SLOT, 1, false)
}

async fn welcomed(world: &mut World) {
    world.peer.as_ref().unwrap().say(&begin()).unwrap();
    let snapshots = SNAPSHOT_VERSION;
    assert_eq!(world.taker_says().await, FromTaker::Welcome { snapshots });
}

#[tokio::test]
async fn a_worker_of_another_release_is_refused_with_both_versions() {
    let FromGiver::Begin { version, .. } = begin() else {
        panic!("that is it");
    };
    let other_messages = (version + 1, SNAPSHOT_VERSION, "version 2 of the hand-over");
    let newer = (version, SNAPSHOT_VERSION + 1, "version 3 to 3");
    for (version, oldest, said) in [other_messages, newer] {
        let mut world = World::taking().await;
        let message = FromGiver::Begin {
            version,
            oldest,
            newest: oldest,
            slot: SLOT,
            incarnation: 1,
            replace: true,
        };
        world.peer.as_ref().unwrap().say(&message).unwrap();
        let FromTaker::Refused { reason } = world.taker_says().await else {
            panic!("it does not understand that");
        };
        assert!(reason.contains(said), "{reason}");
    }
}

#[tokio::test]
async fn snapshots_that_are_corrupt_are_refused_and_a_good_batch_is_taken_after_them() {
    let mut world = World::taking().await;
    let mut giver = Giver::new().await;
    welcomed(&mut world).await;
    giver.freeze();
    let good = giver.body.clone();
    let mut garbled = good.clone();
    garbled[good.len() / 2] ^= 0x80;
    let bodies = [
        (garbled, CLIENTS),
        (good[..good.len() - 1].to_vec(), CLIENTS),
        (Vec::new(), CLIENTS),
        (good.clone(), CLIENTS - 1),
        (good.clone(), CLIENTS + 1),
    ];
    for (body, connections) in bodies {
        giver.body = body;
        giver.send(world.peer.as_ref().unwrap(), connections);
        let FromTaker::Prepared { batch, refused } = world.taker_says().await else {
            panic!("it answers");
        };
        let indices: Vec<_> = refused.iter().map(|one| one.index).collect();
        assert_eq!(indices, (0..connections).collect::<Vec<_>>());
        assert!(refused.iter().all(|one| !one.reason.is_empty()));
        assert_eq!(world.engine.len(), 0);
        let peer = world.peer.as_ref().unwrap();
        peer.say(&FromGiver::Abort { batch }).unwrap();
    }
    giver.goes_on().await;

    giver.freeze();
    giver.send(world.peer.as_ref().unwrap(), CLIENTS);
    let prepared = world.taker_says().await;
    let (batch, refused) = (BATCH, vec![]);
    assert_eq!(prepared, FromTaker::Prepared { batch, refused });
    let peer = world.peer.as_ref().unwrap();
    peer.say(&FromGiver::Commit { batch }).unwrap();
    assert_eq!(world.taker_says().await, FromTaker::Running { batch });
    giver.engine.release(&giver.frozen);
    assert_eq!((giver.engine.len(), world.engine.len()), (0, CLIENTS));
    world.clients = giver.clients;
    for index in 0..CLIENTS {
        world.is_served(index).await;
    }
}

#[tokio::test]
async fn a_worker_that_lives_keeps_its_clients_when_its_socket_ends_before_the_commit() {
    let mut world = World::taking().await;
    let mut giver = Giver::new().await;
    welcomed(&mut world).await;
    giver.freeze();
    giver.send(world.peer.as_ref().unwrap(), CLIENTS);
    let prepared = world.taker_says().await;
    assert!(matches!(prepared, FromTaker::Prepared { .. }));
    world.peer = None;
    while world.handovers.is_under_way() {
        world.turn().await;
    }
    assert_eq!(world.engine.len(), 0, "it has let go of them");
    giver.goes_on().await;
}

#[tokio::test]
async fn what_comes_out_of_turn_ends_a_hand_over_and_costs_nobody() {
    let commit = FromGiver::Commit { batch: BATCH };
    let other = FromGiver::Commit { batch: BATCH + 1 };
    for (is_prepared, message) in [(false, commit), (true, other), (true, begin())] {
        let mut world = World::taking().await;
        let mut giver = Giver::new().await;
        welcomed(&mut world).await;
        giver.freeze();
        if is_prepared {
            giver.send(world.peer.as_ref().unwrap(), CLIENTS);
            let prepared = world.taker_says().await;
            assert!(matches!(prepared, FromTaker::Prepared { .. }));
        }
        world.peer.as_ref().unwrap().say(&message).unwrap();
        while world.handovers.is_under_way() {
            world.turn().await;
        }
        assert_eq!(world.engine.len(), 0);
        giver.goes_on().await;
    }
}

//! A worker whose counterpart does not do as it should: the other end of the
//! socket is played by hand.

mod taking;

use std::{net::TcpListener, os::fd::OwnedFd, path::Path};

use muster_daemon::{adoption, runtime_dir};
use muster_proto::control::HandOverTarget;
use muster_wire::snapshot::{SNAPSHOT_VERSION, SNAPSHOT_VERSIONS};
use tempfile::TempDir;
use tokio::time::{Duration, timeout};

use super::{
    message::{FromGiver, FromTaker, RefusedConnection, decode},
    packets::{Packet, Packets},
    *,
};
use crate::{
    engine::testing::{Client, engine, turn},
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

    /// The same of a worker that hands over, without the descriptors.
    async fn giver_says(&mut self) -> FromGiver {
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

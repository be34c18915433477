//! A worker that gets clients of another one, which is played by hand.

use muster_wire::snapshot::Place;

use super::*;
use crate::{
    connection::ConnectionKey,
    engine::{Wanted, testing::has_channel},
    handover::{
        message::Announced,
        packets::{Outgoing, pair},
    },
};

impl World {
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

    /// What the worker says next.
    async fn taker_says(&mut self) -> FromTaker {
        decode(&self.packet().await.bytes).unwrap().0
    }
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

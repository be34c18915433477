//! Whatever order things come in, a follower gets every publication once and in
//! order, or is told that some are missing.

use muster_proto::link;
use proptest::prelude::*;

use super::*;

const GENERATION: u64 = 7;
const FOLLOWER: ConnectionKey = ConnectionKey {
    index: 1,
    serial: 1,
};
const OTHER: ConnectionKey = ConnectionKey {
    index: 2,
    serial: 1,
};

fn name() -> ChannelName {
    ChannelName::try_from("a").unwrap()
}

fn at(offset: u64) -> Position {
    Position {
        generation: GENERATION,
        offset,
    }
}

/// An owner that keeps the last `kept` of `head` publications, the worker that
/// follows it, and what its one follower has.
struct World {
    channels: Channels,
    head: u64,
    kept: u64,
    /// Up to here the owner has told the worker.
    told: u64,
    /// Reads on their way, also of a subscription that has ended.
    reading: Vec<Position>,
    is_subscribed: bool,
    /// What the follower has, as it knows.
    has: Option<u64>,
    holes: usize,
}

impl World {
    fn new() -> Self {
        let mut channels = Channels::default();
        channels.join(&name(), OTHER, SlowClient::default);
        let (request, _) = channels.request("a").unwrap();
        channels.confirm("a", request, at(0), true);
        Self {
            channels,
            head: 0,
            kept: 3,
            told: 0,
            reading: Vec::new(),
            is_subscribed: false,
            has: None,
            holes: 0,
        }
    }

    fn relay(&mut self) {
        if self.told == self.head {
            return;
        }
        self.told += 1;
        let arrived = self.channels.arrive("a", self.told, |_| true).unwrap();
        assert_eq!(arrived.subscribers, [OTHER]);
        if !arrived.followers.is_empty() {
            assert_eq!(arrived.followers, [FOLLOWER]);
            self.receive(self.told);
        }
    }

    fn receive(&mut self, offset: u64) {
        let has = self.has.as_mut().expect("its subscription is acknowledged");
        assert_eq!(offset, *has + 1);
        *has = offset;
    }

    fn subscribe(&mut self) {
        if self.is_subscribed {
            return;
        }
        self.is_subscribed = true;
        let since = self.has.map(at);
        let joined = self
            .channels
            .follow(&name(), FOLLOWER, since, SlowClient::default);
        if joined == Joined::Confirmed {
            self.start();
        }
    }

    fn start(&mut self) {
        for start in self.channels.start_followers("a") {
            match start {
                Start::Live {
                    position,
                    recovered,
                    ..
                } => {
                    assert!(recovered, "generations are the same");
                    assert!(self.has.is_none_or(|has| has == position.offset));
                    self.has = Some(position.offset);
                }
                Start::Read { since, .. } => {
                    assert_eq!(Some(since.offset), self.has);
                    self.reading.push(since);
                }
            }
        }
    }

    fn leave(&mut self) {
        if std::mem::take(&mut self.is_subscribed) {
            assert!(!self.channels.leave("a", FOLLOWER));
        }
    }

    /// The owner answers what was asked, with at most two publications.
    fn answer(&mut self) {
        if self.reading.is_empty() {
            return;
        }
        let since = self.reading.remove(0);
        let first = self.head.saturating_sub(self.kept);
        let complete = (first..=self.head).contains(&since.offset);
        let offsets = since.offset.max(first) + 1..=self.head;
        let publications = offsets.take(2).map(|offset| KeptPublication {
            offset,
            ..KeptPublication::default()
        });
        let response = ReadResponse {
            head: Some(link::Position {
                generation: GENERATION,
                offset: self.head,
            }),
            complete,
            publications: publications.collect(),
            ..ReadResponse::default()
        };
        let read = (since, Some(response));
        let Some(caught) = self.channels.catch_up("a", FOLLOWER, read) else {
            return;
        };
        match caught.missed {
            Some(missed) => missed
                .into_iter()
                .for_each(|(offset, _)| self.receive(offset)),
            None => {
                assert!(!complete);
                self.has = Some(caught.since.offset);
                self.holes += 1;
            }
        }
        self.reading.extend(caught.next);
    }

    /// The link breaks and comes back; the owner goes on where the worker is.
    fn reconnect(&mut self) {
        self.channels.unconfirm(|_| true);
        self.subscribe();
        let (request, after) = self.channels.request("a").unwrap();
        let after = after.unwrap();
        let first = self.head.saturating_sub(self.kept);
        let recovered = after.offset >= first;
        self.told = after.offset.max(first);
        let position = at(self.told);
        let (waited, has_hole) = self.channels.confirm("a", request, position, recovered);
        assert!(waited.is_empty());
        assert_eq!(has_hole, !recovered);
        if has_hole {
            let (position, keys) = self.channels.skip_hole("a").unwrap();
            if keys == [FOLLOWER] {
                self.has = Some(position.offset);
                self.holes += 1;
            }
        }
        self.start();
    }

    fn finish(&mut self) {
        self.subscribe();
        while self.told < self.head || !self.reading.is_empty() {
            self.answer();
            self.relay();
        }
        assert_eq!(self.has, Some(self.head));
    }
}

#[derive(Debug, Clone, Copy)]
enum Op {
    Publish,
    Relay,
    Subscribe,
    Leave,
    Answer,
    Reconnect,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        5 => Just(Op::Publish),
        4 => Just(Op::Relay),
        2 => Just(Op::Subscribe),
        1 => Just(Op::Leave),
        3 => Just(Op::Answer),
        1 => Just(Op::Reconnect),
    ]
}

fn run(kept: u64, ops: &[Op]) -> World {
    let mut world = World::new();
    world.kept = kept;
    for op in ops {
        match op {
            Op::Publish => world.head += 1,
            Op::Relay => world.relay(),
            Op::Subscribe => world.subscribe(),
            Op::Leave => world.leave(),
            Op::Answer => world.answer(),
            Op::Reconnect => world.reconnect(),
        }
    }
    world.finish();
    world
}

proptest! {
    #[test]
    fn a_follower_misses_nothing_while_everything_is_kept(ops in prop::collection::vec(op(), 0..80)) {
        prop_assert_eq!(run(1000, &ops).holes, 0);
    }

    #[test]
    fn a_follower_is_told_of_every_hole(ops in prop::collection::vec(op(), 0..80)) {
        run(3, &ops);
    }
}

#[test]
fn a_position_of_another_log_is_no_position() {
    let mut world = World::new();
    let since = Position {
        generation: GENERATION + 1,
        offset: 3,
    };
    world
        .channels
        .follow(&name(), FOLLOWER, Some(since), SlowClient::default);
    let start = Start::Live {
        key: FOLLOWER,
        position: at(0),
        recovered: false,
    };
    assert_eq!(world.channels.start_followers("a"), [start]);
}

#[test]
fn a_read_that_could_not_be_done_is_a_hole() {
    let mut world = World::new();
    world.head = 5;
    (0..5).for_each(|_| world.relay());
    world.has = Some(2);
    world.subscribe();
    let caught = world
        .channels
        .catch_up("a", FOLLOWER, (at(2), None))
        .unwrap();
    assert_eq!((caught.missed, caught.since), (None, at(5)));
    assert!(caught.is_first);
}

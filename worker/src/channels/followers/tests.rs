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

/// A worker that listens to the owner.
struct Worker {
    channels: Channels,
    /// Up to here the owner has told it.
    told: u64,
}

impl Worker {
    fn new() -> Self {
        let mut channels = Channels::default();
        channels.join(&name(), OTHER, SlowClient::default);
        let (request, _) = channels.request("a").unwrap();
        channels.confirm("a", request, at(0), true);
        Self { channels, told: 0 }
    }
}

/// An owner that keeps the last `kept` of `head` publications, two workers that
/// listen to it, and what the one follower has, which is with one of them.
struct World {
    workers: [Worker; 2],
    /// Where the follower is.
    here: usize,
    head: u64,
    kept: u64,
    /// Reads on their way, by who asks, also of a subscription that has ended.
    reading: Vec<(usize, Position)>,
    is_subscribed: bool,
    is_told: bool,
    /// What the follower has, as it knows.
    has: Option<u64>,
    holes: usize,
}

impl World {
    fn new() -> Self {
        Self {
            workers: [Worker::new(), Worker::new()],
            here: 0,
            head: 0,
            kept: 3,
            reading: Vec::new(),
            is_subscribed: false,
            is_told: false,
            has: None,
            holes: 0,
        }
    }

    fn channels(&mut self) -> &mut Channels {
        &mut self.workers[self.here].channels
    }

    fn relay(&mut self, to: usize) {
        let Worker { channels, told } = &mut self.workers[to];
        if *told == self.head {
            return;
        }
        *told += 1;
        let offset = *told;
        let arrived = channels.arrive("a", offset, |_| true).unwrap();
        assert_eq!(arrived.subscribers, [OTHER]);
        if !arrived.followers.is_empty() {
            assert_eq!((arrived.followers, to), (vec![FOLLOWER], self.here));
            self.receive(offset);
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
        (self.is_subscribed, self.is_told) = (true, false);
        let since = self.has.map(at);
        let joined = self
            .channels()
            .follow(&name(), FOLLOWER, since, SlowClient::default);
        if joined == Joined::Confirmed {
            self.start(self.here);
        }
    }

    /// The follower goes to the other worker, as with a hand-over.
    fn hand_over(&mut self) {
        let place = self.channels().place_of_follower("a", FOLLOWER);
        if self.is_subscribed {
            assert_eq!(place, self.has.map(at));
            assert!(!self.channels().leave("a", FOLLOWER));
        }
        self.here = 1 - self.here;
        if !self.is_subscribed {
            return;
        }
        let is_told = self.is_told;
        let channels = self.channels();
        let joined = match place.filter(|_| is_told) {
            Some(place) => channels.follow_on(&name(), FOLLOWER, place, SlowClient::default),
            None => channels.follow(&name(), FOLLOWER, place, SlowClient::default),
        };
        if joined == Joined::Confirmed {
            self.start(self.here);
        }
    }

    fn start(&mut self, worker: usize) {
        for start in self.workers[worker].channels.start_followers("a") {
            assert_eq!(worker, self.here);
            match start {
                Start::Live {
                    position,
                    recovered,
                    ..
                } => {
                    assert!(recovered, "generations are the same");
                    assert!(!self.is_told);
                    assert!(self.has.is_none_or(|has| has == position.offset));
                    self.has = Some(position.offset);
                    self.is_told = true;
                }
                Start::Read { since, .. } => {
                    assert_eq!(Some(since.offset), self.has);
                    self.reading.push((worker, since));
                }
                Start::Hole { .. } => panic!("generations are the same"),
            }
        }
    }

    fn leave(&mut self) {
        if std::mem::take(&mut self.is_subscribed) {
            assert!(!self.channels().leave("a", FOLLOWER));
        }
    }

    /// The owner answers what was asked, with at most two publications.
    fn answer(&mut self) {
        if self.reading.is_empty() {
            return;
        }
        let (worker, since) = self.reading.remove(0);
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
        let channels = &mut self.workers[worker].channels;
        let Some(caught) = channels.catch_up("a", FOLLOWER, read) else {
            return;
        };
        assert_eq!(worker, self.here);
        assert_eq!(caught.is_first, !std::mem::replace(&mut self.is_told, true));
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
        self.reading.extend(caught.next.map(|next| (worker, next)));
    }

    /// A worker's link breaks and comes back; the owner goes on where it is.
    fn reconnect(&mut self, worker: usize) {
        self.workers[worker].channels.unconfirm(|_| true);
        self.subscribe();
        let first = self.head.saturating_sub(self.kept);
        let Worker { channels, told } = &mut self.workers[worker];
        let (request, after) = channels.request("a").unwrap();
        let after = after.unwrap();
        let recovered = after.offset >= first;
        *told = after.offset.max(first);
        let position = at(*told);
        let (waited, has_hole) = channels.confirm("a", request, position, recovered);
        assert!(waited.is_empty());
        assert_eq!(has_hole, !recovered);
        if has_hole {
            let (position, keys) = channels.skip_hole("a").unwrap();
            if keys == [FOLLOWER] {
                assert!(self.has < Some(position.offset));
                self.has = Some(position.offset);
                self.holes += 1;
            }
        }
        self.start(worker);
    }

    fn finish(&mut self) {
        self.subscribe();
        while self.workers[self.here].told < self.head || !self.reading.is_empty() {
            self.answer();
            self.relay(self.here);
        }
        assert_eq!(self.has, Some(self.head));
    }
}

#[derive(Debug, Clone, Copy)]
enum Op {
    Publish,
    Relay(usize),
    Subscribe,
    Leave,
    Answer,
    Reconnect(usize),
    HandOver,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        5 => Just(Op::Publish),
        8 => (0..2_usize).prop_map(Op::Relay),
        2 => Just(Op::Subscribe),
        1 => Just(Op::Leave),
        3 => Just(Op::Answer),
        2 => (0..2_usize).prop_map(Op::Reconnect),
        2 => Just(Op::HandOver),
    ]
}

fn run(kept: u64, ops: &[Op]) -> World {
    let mut world = World::new();
    world.kept = kept;
    for op in ops {
        match op {
            Op::Publish => world.head += 1,
            Op::Relay(to) => world.relay(*to),
            Op::Subscribe => world.subscribe(),
            Op::Leave => world.leave(),
            Op::Answer => world.answer(),
            Op::Reconnect(worker) => world.reconnect(*worker),
            Op::HandOver => world.hand_over(),
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
        .channels()
        .follow(&name(), FOLLOWER, Some(since), SlowClient::default);
    let start = Start::Live {
        key: FOLLOWER,
        position: at(0),
        recovered: false,
    };
    assert_eq!(world.channels().start_followers("a"), [start]);
    let channels = world.channels();
    channels.leave("a", FOLLOWER);
    channels.follow_on(&name(), FOLLOWER, since, SlowClient::default);
    let start = Start::Hole {
        key: FOLLOWER,
        position: at(0),
    };
    assert_eq!(channels.start_followers("a"), [start], "it is told");
    assert_eq!(channels.place_of_follower("a", FOLLOWER), Some(at(0)));
}

#[test]
fn a_read_that_could_not_be_done_is_a_hole() {
    let mut world = World::new();
    world.head = 5;
    (0..5).for_each(|_| world.relay(0));
    world.has = Some(2);
    world.subscribe();
    let caught = world
        .channels()
        .catch_up("a", FOLLOWER, (at(2), None))
        .unwrap();
    assert_eq!((caught.missed, caught.since), (None, at(5)));
    assert!(caught.is_first);
}

#[test]
fn who_came_from_another_worker_keeps_a_subscription_that_the_owner_refuses() {
    let mut channels = Channels::default();
    channels.follow_on(&name(), FOLLOWER, at(3), SlowClient::default);
    channels.follow(&name(), OTHER, None, SlowClient::default);
    let (request, _) = channels.request("a").unwrap();
    assert_eq!(channels.refuse("a", request), [OTHER]);
    let (request, _) = channels.request("a").unwrap();
    channels.confirm("a", request, at(3), true);
    assert_eq!(channels.start_followers("a"), []);
    assert_eq!(channels.place_of_follower("a", FOLLOWER), Some(at(3)));
}

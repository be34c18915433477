//! What a shard promises, without IO: links are pulled by hand.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "whatever else comes fails the test"
)]

use std::{collections::HashSet, mem, task::Waker, time::Duration};

use muster_proto::link::{
    BrokerFrame, NotOwner, Position, ReadRequest, Subscribed, broker_frame::Frame,
};
use rand::{SeedableRng, rngs::StdRng};

use super::*;
use crate::link::{LinkEnd, Step};

mod history;
mod syncing;

const EPOCH: u64 = 5;
const REQUEST: u64 = 9;
const PLENTY: u64 = 1 << 40;

/// One shard and a clock.
struct Bench {
    shard: Shard,
    now: Millis,
    rng: StdRng,
    n: u64,
    /// What came in one batch with the `Subscribed` that was asked for last.
    rest: Vec<Frame>,
}

impl Bench {
    fn new() -> Self {
        Self::with(Limits::for_tests(), 1000)
    }

    fn with(limits: Limits, channels_max: u64) -> Self {
        let count = Arc::new(ChannelCount::new(channels_max));
        Self {
            shard: Shard::open(Millis(0), ShardId::new(7), EPOCH, limits, count),
            now: Millis(0),
            rng: StdRng::seed_from_u64(1),
            n: 0,
            rest: Vec::new(),
        }
    }

    fn turn<T>(&mut self, act: impl FnOnce(&mut Shard, &mut Turn, &mut StdRng) -> T) -> T {
        let mut turn = Turn::new(self.now);
        act(&mut self.shard, &mut turn, &mut self.rng)
    }

    fn link(&self, credit: u64) -> Arc<Link> {
        let link = Arc::new(Link::new(self.now));
        link.add_credit(&mut Turn::new(self.now), credit);
        link
    }

    /// Publishes under a key of its own.
    fn publish(&mut self, channel: &str, data: &str) -> Result<(), RefusalReason> {
        self.n += 1;
        let publish = publication("bench", self.n, channel, data);
        self.take(&publish)
    }

    /// One publication in a turn of its own, and its answer.
    fn take(&mut self, publish: &Publish) -> Result<(), RefusalReason> {
        let publisher = self.link(0);
        let publish = Publish {
            seq: 1,
            ..publish.clone()
        };
        let done = self.turn(|shard, turn, rng| {
            let publishing = shard.publish(turn, rng, &publisher, &publish);
            shard.commit(turn);
            publishing
        });
        let answers = self.pull(&publisher);
        match (done, answers.first()) {
            (Publishing::Done(outcome), None) => outcome,
            (Publishing::Staged, Some(Frame::Ack(_))) => Ok(()),
            (Publishing::Staged, Some(Frame::Refusal(refusal))) => Err(refusal.reason()),
            other => panic!("{other:?} is no answer"),
        }
    }

    fn subscribe(&mut self, link: &Arc<Link>, channel: &str, after: Option<Position>) {
        let subscribe = Subscribe {
            channel: Bytes::copy_from_slice(channel.as_bytes()),
            after,
            shard_epoch: EPOCH,
            request: REQUEST,
            attempt: 0,
        };
        self.turn(|shard, turn, rng| shard.subscribe(turn, rng, link, &subscribe));
    }

    /// One batch, as the connection would take it.
    fn pull(&mut self, link: &Arc<Link>) -> Vec<Frame> {
        loop {
            match link.next_step(self.now, Waker::noop()) {
                Step::Send(batch) => {
                    let frames = batch.frames.into_iter();
                    return frames.filter_map(|BrokerFrame { frame }| frame).collect();
                }
                Step::Resume(_, channel) => {
                    self.turn(|shard, turn, _| shard.resume(turn, link, &channel));
                }
                Step::Wait | Step::End(_) => return Vec::new(),
            }
        }
    }

    fn pull_all(&mut self, link: &Arc<Link>) -> Vec<Frame> {
        let mut all = mem::take(&mut self.rest);
        loop {
            let frames = self.pull(link);
            if frames.is_empty() {
                return all;
            }
            all.extend(frames);
        }
    }

    /// The data of everything relayed, and nothing but relays.
    fn relayed(&mut self, link: &Arc<Link>) -> Vec<(u64, String)> {
        let relay = |frame| match frame {
            Frame::Relay(relay) => {
                let data = relay.data.unwrap_or_default().to_vec();
                (relay.offset, String::from_utf8(data).unwrap())
            }
            other => panic!("{other:?} instead of a relay"),
        };
        self.pull_all(link).into_iter().map(relay).collect()
    }

    /// Where the link goes on, which it is told, and from there it gets all up to
    /// `last`.
    fn hole(&mut self, link: &Arc<Link>, last: u64) -> Position {
        let mut frames = self.pull_all(link).into_iter();
        let Some(Frame::Subscribed(Subscribed {
            position: Some(position),
            recovered: false,
            ..
        })) = frames.next()
        else {
            panic!("the hole is not told");
        };
        let offsets: Vec<u64> = frames
            .map(|frame| match frame {
                Frame::Relay(relay) => relay.offset,
                other => panic!("{other:?} instead of a relay"),
            })
            .collect();
        let expected: Vec<_> = (position.offset + 1..=last).collect();
        assert_eq!(offsets, expected);
        position
    }

    /// The next frame, which answers a `Subscribe`.
    fn subscribed(&mut self, link: &Arc<Link>) -> (Position, bool) {
        let mut frames = self.pull(link).into_iter();
        match frames.next() {
            Some(Frame::Subscribed(subscribed)) => {
                self.rest = frames.collect();
                (subscribed.position.unwrap(), subscribed.recovered)
            }
            other => panic!("{other:?} instead of Subscribed"),
        }
    }

    fn sweep(&mut self, times: usize) {
        for _ in 0..times {
            self.shard.sweep(self.now);
        }
    }
}

fn publication(producer: &str, n: u64, channel: &str, data: &str) -> Publish {
    Publish {
        seq: 0,
        channel: Bytes::copy_from_slice(channel.as_bytes()),
        data: Some(Bytes::copy_from_slice(data.as_bytes())),
        producer: Bytes::copy_from_slice(producer.as_bytes()),
        n,
        shard_epoch: EPOCH,
        age_ms: 0,
        attempt: 0,
    }
}

fn numbered(offsets: std::ops::RangeInclusive<u64>) -> Vec<(u64, String)> {
    offsets.map(|offset| (offset, offset.to_string())).collect()
}

#[test]
fn a_subscriber_without_position_gets_what_comes_from_now_on() {
    let mut bench = Bench::new();
    bench.publish("a", "1").unwrap();
    let link = bench.link(PLENTY);
    bench.subscribe(&link, "a", None);
    let (position, recovered) = bench.subscribed(&link);
    assert_eq!((position.offset, recovered), (1, true));
    bench.publish("a", "2").unwrap();
    bench.publish("b", "1").unwrap();
    assert_eq!(bench.relayed(&link), numbered(2..=2));
}

#[test]
fn a_subscriber_with_position_gets_exactly_what_is_missing_and_then_what_comes() {
    let mut bench = Bench::new();
    let link = bench.link(PLENTY);
    bench.subscribe(&link, "a", None);
    let (start, _) = bench.subscribed(&link);
    for data in 1..=9 {
        bench.publish("a", &data.to_string()).unwrap();
    }
    for offset in 0..=9 {
        let link = bench.link(PLENTY);
        let after = Position { offset, ..start };
        bench.subscribe(&link, "a", Some(after));
        bench.publish("a", &(10 + offset).to_string()).unwrap();
        assert_eq!(bench.subscribed(&link), (after, true));
        assert_eq!(bench.relayed(&link), numbered(offset + 1..=10 + offset));
    }
}

#[test]
fn a_position_whose_continuation_is_gone_starts_at_the_oldest_that_is_kept() {
    let mut bench = Bench::new();
    let link = bench.link(PLENTY);
    bench.subscribe(&link, "a", None);
    let (start, _) = bench.subscribed(&link);
    for data in 1..=3 {
        bench.now = Millis(data * 10_000);
        bench.publish("a", &data.to_string()).unwrap();
    }
    bench.now = Millis(45_000); // The first is 35 s old.

    let late = bench.link(PLENTY);
    bench.subscribe(&late, "a", Some(start));
    let kept = Position { offset: 1, ..start };
    assert_eq!(bench.subscribed(&late), (kept, false));
    assert_eq!(bench.relayed(&late), numbered(2..=3));

    let stranger = bench.link(PLENTY);
    let other = Position {
        generation: !start.generation,
        offset: 3,
    };
    bench.subscribe(&stranger, "a", Some(other));
    assert_eq!(bench.subscribed(&stranger), (kept, false));

    let ahead = bench.link(PLENTY);
    bench.subscribe(&ahead, "a", Some(Position { offset: 4, ..start }));
    assert_eq!(bench.subscribed(&ahead), (kept, false));
}

#[test]
fn an_unsubscribed_link_gets_nothing_more() {
    let mut bench = Bench::new();
    let link = bench.link(PLENTY);
    bench.subscribe(&link, "a", None);
    bench.subscribed(&link);
    bench.shard.unsubscribe(Millis(0), &link, b"a");
    bench.shard.unsubscribe(Millis(0), &link, b"never seen");
    bench.publish("a", "1").unwrap();
    assert_eq!(bench.relayed(&link), []);
}

#[test]
fn a_link_that_subscribes_twice_gets_each_publication_once() {
    let mut bench = Bench::new();
    let link = bench.link(PLENTY);
    bench.subscribe(&link, "a", None);
    bench.subscribe(&link, "a", None);
    assert_eq!(bench.pull_all(&link).len(), 2);
    bench.publish("a", "1").unwrap();
    assert_eq!(bench.relayed(&link), numbered(1..=1));
}

#[test]
fn a_known_key_is_acked_without_a_new_offset() {
    let mut bench = Bench::new();
    let link = bench.link(PLENTY);
    bench.subscribe(&link, "a", None);
    bench.subscribed(&link);
    for (n, data) in [(1, "1"), (1, "1"), (3, "2"), (2, "?"), (3, "2"), (4, "3")] {
        let publish = publication("p", n, "a", data);
        assert_eq!(bench.take(&publish), Ok(()));
    }
    assert_eq!(bench.relayed(&link), numbered(1..=3));
}

#[test]
fn a_refused_publication_consumes_no_offset_and_its_key_stays_free() {
    let mut bench = Bench::with(Limits::for_tests(), 1);
    let link = bench.link(PLENTY);
    bench.subscribe(&link, "a", None);
    bench.subscribed(&link);
    let mut publish = |publish: Publish| bench.take(&publish);
    let good = || publication("p", 1, "a", "1");
    let early = Publish {
        shard_epoch: EPOCH + 1,
        ..good()
    };
    assert_eq!(publish(early), Err(RefusalReason::WrongEpoch));
    let old = Publish {
        age_ms: 60_001,
        ..good()
    };
    assert_eq!(publish(old), Err(RefusalReason::Expired));
    let elsewhere = publication("p", 1, "b", "1");
    assert_eq!(publish(elsewhere), Err(RefusalReason::ChannelsFull));
    let just_in_time = Publish {
        age_ms: 60_000,
        ..good()
    };
    assert_eq!(publish(just_in_time), Ok(()));
    assert_eq!(bench.relayed(&link), numbered(1..=1));
}

#[test]
fn an_old_publication_that_is_known_is_acked() {
    let mut bench = Bench::new();
    let old = Publish {
        age_ms: u32::MAX,
        ..publication("p", 1, "a", "1")
    };
    let mut publish = |publish: &Publish| bench.take(publish);
    assert_eq!(publish(&publication("p", 1, "a", "1")), Ok(()));
    assert_eq!(publish(&old), Ok(()));
}

#[test]
fn one_that_was_too_old_does_not_pass_for_known_after_a_later_one() {
    let mut bench = Bench::new();
    let old = Publish {
        age_ms: u32::MAX,
        ..publication("p", 1, "a", "1")
    };
    assert_eq!(bench.take(&old), Err(RefusalReason::Expired));
    assert_eq!(bench.take(&publication("p", 2, "a", "2")), Ok(()));
    assert_eq!(bench.take(&old), Err(RefusalReason::OutcomeUnknown));
}

#[test]
fn a_producer_too_many_is_refused_as_log_full() {
    let mut bench = Bench::new();
    let mut publish = |producer: u64| {
        let publish = publication(&producer.to_string(), 1, "a", "1");
        bench.take(&publish)
    };
    for producer in 0..100 {
        assert_eq!(publish(producer), Ok(()));
    }
    assert_eq!(publish(100), Err(RefusalReason::LogFull));
    assert_eq!(publish(0), Ok(()));
}

#[test]
fn a_subscription_to_a_channel_too_many_is_told_why() {
    let mut bench = Bench::with(Limits::for_tests(), 1);
    let link = bench.link(PLENTY);
    bench.publish("a", "1").unwrap();
    bench.subscribe(&link, "b", None);
    let refused = Frame::NotOwner(NotOwner {
        channel: Bytes::from_static(b"b"),
        reason: RefusalReason::ChannelsFull.into(),
        request: REQUEST,
    });
    assert_eq!(bench.pull_all(&link), [refused]);
}

#[test]
fn an_idle_channel_is_forgotten_and_begins_anew() {
    let mut bench = Bench::with(Limits::for_tests(), 1);
    bench.publish("a", "1").unwrap();
    bench.now = Millis(31_000);
    bench.sweep(1);
    assert_eq!(bench.publish("b", "1"), Err(RefusalReason::ChannelsFull));
    bench.now = Millis(60_001);
    bench.sweep(1);
    bench.publish("b", "1").unwrap();
}

#[test]
fn a_channel_that_is_subscribed_to_or_used_lives_on() {
    let mut bench = Bench::with(Limits::for_tests(), 1);
    let link = bench.link(PLENTY);
    bench.subscribe(&link, "a", None);
    let (before, _) = bench.subscribed(&link);
    bench.publish("a", "1").unwrap();
    bench.now = Millis(1_000_000);
    bench.sweep(2);
    bench.shard.remove_link(bench.now, &link);
    // It has only now lost its subscriber.
    bench.now = Millis(1_060_000);
    bench.sweep(2);
    let again = bench.link(PLENTY);
    let after = Position {
        offset: 1,
        ..before
    };
    bench.subscribe(&again, "a", Some(after));
    assert_eq!(bench.subscribed(&again), (after, true));

    bench.shard.remove_link(bench.now, &again);
    bench.now = Millis(2_000_000);
    bench.sweep(2);
    let link = bench.link(PLENTY);
    bench.subscribe(&link, "a", Some(after));
    let (position, recovered) = bench.subscribed(&link);
    assert_ne!(position.generation, before.generation);
    assert_eq!((position.offset, recovered), (0, false));
}

#[test]
fn every_one_of_many_idle_channels_is_forgotten_within_a_minute_of_sweeps() {
    let mut bench = Bench::with(Limits::for_tests(), 5000);
    let link = bench.link(PLENTY);
    for channel in 0..5000 {
        bench.subscribe(&link, &channel.to_string(), None);
    }
    bench.shard.remove_link(bench.now, &link);
    bench.now = Millis(60_001);
    bench.sweep(60);
    assert_eq!(bench.shard.channel_count.get(), 0);
}

#[test]
fn a_link_that_ended_is_neither_relayed_to_nor_kept() {
    let mut bench = Bench::new();
    let link = bench.link(PLENTY);
    bench.subscribe(&link, "a", None);
    link.end(&mut Turn::new(Millis(0)), LinkEnd::Finished);
    bench.publish("a", "1").unwrap();
    assert_eq!(Arc::strong_count(&link), 1);
}

#[test]
fn a_link_that_fell_behind_what_is_kept_is_told_so_and_goes_on() {
    let small = Limits {
        tail_bytes_max: 1000,
        ..Limits::for_tests()
    };
    let mut bench = Bench::with(small, 10);
    let link = bench.link(1);
    bench.subscribe(&link, "a", None);
    let (start, _) = bench.subscribed(&link);
    for data in 1..=100 {
        bench.publish("a", &data.to_string()).unwrap();
    }
    assert_eq!(bench.relayed(&link), numbered(1..=1));
    link.add_credit(&mut Turn::new(bench.now), PLENTY);
    let position = bench.hole(&link, 100);
    assert_eq!(position.generation, start.generation);
    assert!((50..100).contains(&position.offset), "{}", position.offset);
}

#[test]
fn a_link_that_is_behind_gets_its_channels_in_turns() {
    let mut bench = Bench::new();
    let link = bench.link(0);
    let data = "x".repeat(1000);
    for channel in ["a", "b", "c"] {
        bench.subscribe(&link, channel, None);
        for _ in 0..100 {
            bench.publish(channel, &data).unwrap();
        }
    }
    bench.pull_all(&link);
    link.add_credit(&mut Turn::new(bench.now), 60_000);
    let channels: HashSet<Bytes> = bench
        .pull_all(&link)
        .into_iter()
        .filter_map(|frame| match frame {
            Frame::Relay(relay) => Some(relay.channel),
            _ => None,
        })
        .collect();
    assert_eq!(channels.len(), 3);
}

#[test]
fn a_read_is_limited_by_its_offset_its_bytes_and_what_is_kept() {
    let mut bench = Bench::new();
    for data in 1..=5 {
        bench.now = Millis(data * 10_000);
        bench.publish("a", &data.to_string()).unwrap();
    }
    bench.now = Millis(45_000);
    bench.sweep(1); // The first is gone.
    let link = bench.link(PLENTY);
    bench.subscribe(&link, "a", None);
    let (head, _) = bench.subscribed(&link);
    let mut read = |after: Option<u64>, before: Option<u64>, bytes_max| {
        let at = |offset| Position { offset, ..head };
        let request = ReadRequest {
            channel: Bytes::from_static(b"a"),
            after: after.map(at),
            before: before.map(at),
            bytes_max,
            ..ReadRequest::default()
        };
        let response = bench.shard.read(&request, 0);
        let mut newest_first = bench.shard.read(
            &ReadRequest {
                newest_first: true,
                ..request
            },
            0,
        );
        if bytes_max == 0 {
            newest_first.publications.reverse();
            assert_eq!(newest_first, response);
        }
        assert_eq!(response.head, Some(head));
        let offsets: Vec<u64> = response.publications.iter().map(|p| p.offset).collect();
        (offsets, response.complete)
    };
    assert_eq!(read(Some(1), None, 0), (vec![2, 3, 4, 5], true));
    assert_eq!(read(Some(0), None, 0), (vec![2, 3, 4, 5], false));
    assert_eq!(read(None, Some(4), 0), (vec![2, 3], false));
    assert_eq!(read(Some(2), Some(3), 0), (vec![], true));
    assert_eq!(read(Some(4), Some(2), 0), (vec![], true));
    assert_eq!(read(None, Some(0), 0), (vec![], false));
    assert_eq!(read(Some(2), None, 2), (vec![3, 4], true));
    assert_eq!(read(Some(5), None, 0), (vec![], true));
    assert_eq!(read(Some(6), None, 0), (vec![], false));

    let unknown = bench.shard.read(&ReadRequest::default(), 0);
    assert_eq!((unknown.head, unknown.complete), (None, true));
    let other = Some(Position {
        generation: !head.generation,
        offset: 2,
    });
    for (after, before) in [(other, None), (None, other)] {
        let request = ReadRequest {
            channel: Bytes::from_static(b"a"),
            after,
            before,
            ..ReadRequest::default()
        };
        let response = bench.shard.read(&request, 0);
        assert!(response.publications.is_empty() && !response.complete);
    }
}

#[test]
fn a_read_that_is_cut_short_says_so_and_gives_at_least_one_publication() {
    let mut bench = Bench::new();
    for data in ["11", "22", "33"] {
        bench.publish("a", data).unwrap();
    }
    let mut read = |limit, bytes_max, newest_first| {
        let response = bench.shard.read(
            &ReadRequest {
                channel: Bytes::from_static(b"a"),
                limit,
                bytes_max,
                newest_first,
                ..ReadRequest::default()
            },
            1_000_000,
        );
        let times = response.publications.iter().map(|p| p.time_ms);
        assert!(times.eq(response.publications.iter().map(|_| 1_000_000)));
        let offsets: Vec<u64> = response.publications.iter().map(|p| p.offset).collect();
        (offsets, response.more, response.complete)
    };
    assert_eq!(read(2, 0, false), (vec![1, 2], true, true));
    assert_eq!(read(2, 0, true), (vec![3, 2], true, true));
    assert_eq!(read(3, 0, true), (vec![3, 2, 1], false, true));
    assert_eq!(read(0, 1, false), (vec![1], true, true));
    assert_eq!(read(9, 5, true), (vec![3, 2], true, true));
}

#[test]
fn a_publication_does_not_pin_the_batch_it_came_in() {
    let mut bench = Bench::new();
    let link = bench.link(PLENTY);
    bench.subscribe(&link, "a", None);
    bench.subscribed(&link);
    let batch = Bytes::from(vec![b'1'; 64 << 10]);
    let publish = Publish {
        data: Some(batch.slice(..20)),
        producer: batch.slice(..8),
        ..publication("", 1, "a", "")
    };
    bench.take(&publish).unwrap();
    bench.pull_all(&link);
    drop(publish);
    assert!(batch.is_unique());
}

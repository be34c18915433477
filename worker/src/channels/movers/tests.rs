use std::collections::{BTreeMap, VecDeque};

use muster_daemon::config::SlowClient;
use muster_wire::ChannelName;
use proptest::prelude::*;

use super::*;
use crate::channels::{Arrival, Channels, Joined};

fn key(index: u32) -> ConnectionKey {
    ConnectionKey { index, serial: 1 }
}

fn name() -> ChannelName {
    ChannelName::try_from("a").unwrap()
}

fn at(generation: u64, offset: u64) -> Position {
    Position { generation, offset }
}

fn join_at(channels: &mut Channels, index: u32, position: Position) -> Joined {
    channels.join_at(&name(), key(index), position, SlowClient::default)
}

/// Who gets the publication.
fn arrive(channels: &mut Channels, offset: u64) -> Vec<ConnectionKey> {
    let arrived = channels.arrive("a", offset, |_| true);
    let arrived = arrived.expect("the subscription stands");
    let mut all = [arrived.subscribers, &arrived.movers].concat();
    all.sort();
    all
}

/// A worker whose subscription stands there, with one subscriber.
fn subscribed(position: Position) -> Channels {
    let mut channels = Channels::default();
    channels.join(&name(), key(0), SlowClient::default);
    let (request, _) = channels.request("a").unwrap();
    channels.confirm("a", request, position, true);
    channels
}

#[test]
fn the_first_who_comes_makes_the_worker_subscribe_from_where_he_is() {
    let mut channels = Channels::default();
    assert_eq!(join_at(&mut channels, 1, at(7, 4)), Joined::First);
    assert_eq!(channels.request("a"), Some((1, Some(at(7, 4)))));
    assert_eq!(channels.confirm("a", 1, at(7, 4), true), (vec![], false));
    assert_eq!(arrive(&mut channels, 5), [key(1)]);
    assert_eq!(channels.subscriptions(), 1);
}

#[test]
fn who_is_ahead_skips_what_he_has() {
    let mut channels = subscribed(at(7, 4));
    assert_eq!(join_at(&mut channels, 1, at(7, 6)), Joined::Confirmed);
    assert_eq!(channels.place_of("a", key(1)), Some(at(7, 6)));
    assert_eq!(arrive(&mut channels, 5), [key(0)]);
    assert_eq!(arrive(&mut channels, 6), [key(0)]);
    assert_eq!(arrive(&mut channels, 7), [key(0), key(1)]);
    assert_eq!(channels.place_of("a", key(1)), Some(at(7, 7)));
}

#[test]
fn who_is_behind_gets_what_he_misses_and_nobody_gets_it_twice() {
    let mut channels = subscribed(at(7, 4));
    assert_eq!(join_at(&mut channels, 1, at(7, 2)), Joined::First);
    let (request, after) = channels.request("a").unwrap();
    assert_eq!(after, Some(at(7, 2)), "all is asked for from there");
    assert!(
        channels.arrive("a", 5, |_| true).is_none(),
        "of the earlier subscription; it comes again"
    );
    assert_eq!(
        channels.confirm("a", request, at(7, 2), true),
        (vec![], false)
    );
    assert_eq!(arrive(&mut channels, 3), [key(1)]);
    let arrived = channels.arrive("a", 4, |_| true).unwrap();
    assert_eq!(arrived.arrival, Arrival::Repeated);
    assert_eq!(
        (arrived.subscribers, arrived.movers),
        (&[][..], vec![key(1)])
    );
    assert_eq!(arrive(&mut channels, 5), [key(0), key(1)]);
}

#[test]
fn what_is_not_kept_any_more_is_a_hole_for_him_alone() {
    let mut channels = subscribed(at(7, 4));
    join_at(&mut channels, 1, at(7, 1));
    let (request, _) = channels.request("a").unwrap();
    let (_, has_hole) = channels.confirm("a", request, at(7, 3), false);
    assert!(has_hole);
    assert_eq!(arrive(&mut channels, 4), [key(1)]);
    assert_eq!(arrive(&mut channels, 5), [key(0), key(1)]);
}

#[test]
fn what_is_kept_of_what_the_worker_has_is_no_hole() {
    let mut channels = subscribed(at(7, 4));
    join_at(&mut channels, 1, at(7, 3));
    let (request, _) = channels.request("a").unwrap();
    let (_, has_hole) = channels.confirm("a", request, at(7, 3), false);
    assert!(!has_hole, "the worker is at 4, the other at 3");
}

#[test]
fn who_comes_from_a_log_that_was_lost_goes_on_in_the_new_one() {
    let mut channels = subscribed(at(8, 4));
    assert_eq!(join_at(&mut channels, 1, at(7, 900)), Joined::First);
    let (request, after) = channels.request("a").unwrap();
    assert_eq!(after, Some(at(8, 4)));
    let (_, has_hole) = channels.confirm("a", request, at(8, 4), true);
    assert!(has_hole, "what was missed is unknown");
    assert_eq!(arrive(&mut channels, 5), [key(0), key(1)]);
}

#[test]
fn channels_are_kept_for_those_who_come_and_then_let_go_of() {
    let mut channels = Channels::default();
    let other = ChannelName::try_from("b").unwrap();
    for name in [&name(), &other] {
        assert!(channels.keep(name, at(7, 4), SlowClient::default));
    }
    join_at(&mut channels, 1, at(7, 4));
    assert_eq!(channels.let_go(), [other]);
    assert!(channels.leave("a", key(1)));
    assert_eq!((channels.len(), channels.subscriptions()), (0, 0));
}

#[test]
fn a_mover_that_leaves_is_gone() {
    let mut channels = subscribed(at(7, 4));
    join_at(&mut channels, 1, at(7, 9));
    assert_eq!(channels.members("a").count(), 2);
    assert!(!channels.leave("a", key(1)));
    assert_eq!(
        (channels.members("a").count(), channels.subscriptions()),
        (1, 1)
    );
}

/// An owner and its link to the worker, in order and as slow as it likes.
#[derive(Default)]
struct Owner {
    head: u64,
    /// The last one sent to the worker, while it subscribes.
    sent: Option<u64>,
    /// On its way to the worker.
    link: VecDeque<Frame>,
    /// Requests on their way to the owner.
    requests: VecDeque<(u64, Option<Position>)>,
}

enum Frame {
    Subscribed { request: u64, after: u64 },
    Relay(u64),
}

const GENERATION: u64 = 7;

impl Owner {
    fn publish(&mut self) {
        self.head += 1;
        self.catch_up();
    }

    fn catch_up(&mut self) {
        if let Some(sent) = &mut self.sent {
            while *sent < self.head {
                *sent += 1;
                self.link.push_back(Frame::Relay(*sent));
            }
        }
    }

    fn take_request(&mut self) {
        if let Some((request, after)) = self.requests.pop_front() {
            let after = after.map_or(self.head, |after| after.offset);
            self.link.push_back(Frame::Subscribed { request, after });
            self.sent = Some(after);
            self.catch_up();
        }
    }
}

proptest! {
    /// Whoever comes from wherever, whenever: he gets everything after his place
    /// once and in order.
    #[test]
    fn everybody_gets_what_he_has_not_got_once_and_in_order(
        steps in prop::collection::vec((0_u8..5, 0_u64..20), 1..150),
    ) {
        let mut owner = Owner { head: 20, ..Owner::default() };
        let mut channels = Channels::default();
        // The next one that each of them is to get.
        let mut next: BTreeMap<ConnectionKey, u64> = BTreeMap::new();
        let drain = [(3, 0), (4, 0)].into_iter().cycle().take(2000);
        for (step, number) in steps.into_iter().chain(drain) {
            match step {
                0 | 1 => owner.publish(),
                2 => {
                    let index = u32::try_from(next.len()).unwrap();
                    let place = owner.head - number;
                    if join_at(&mut channels, index, at(GENERATION, place)) == Joined::First {
                        owner.requests.extend(channels.request("a"));
                    }
                    next.insert(key(index), place + 1);
                }
                3 => owner.take_request(),
                _ => match owner.link.pop_front() {
                    Some(Frame::Subscribed { request, after }) => {
                        let position = at(GENERATION, after);
                        let (_, has_hole) = channels.confirm("a", request, position, true);
                        prop_assert!(!has_hole);
                    }
                    Some(Frame::Relay(offset)) => {
                        if let Some(arrived) = channels.arrive("a", offset, |_| true) {
                            prop_assert_ne!(arrived.arrival, Arrival::AfterHole);
                            for key in arrived.subscribers.iter().chain(&arrived.movers) {
                                let expected = next.get_mut(key).unwrap();
                                prop_assert_eq!(*expected, offset);
                                *expected += 1;
                            }
                        }
                    }
                    None => {}
                },
            }
        }
        for (key, next) in next {
            prop_assert_eq!(next, owner.head + 1, "{:?}", key);
        }
    }
}

//! What a link promises, without IO.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "whatever else comes fails the test"
)]

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::Wake,
};

use proptest::prelude::*;
use prost::Message as _;

use super::*;

const NOW: Millis = Millis(0);

fn turn() -> Turn {
    Turn::new(NOW)
}

fn link(credit: u64) -> Link {
    let link = Link::new(NOW);
    link.add_credit(&mut turn(), credit);
    link
}

fn relay(link: &Link, offset: u64, data: &'static str) -> Offer {
    let data = Some(Bytes::from_static(data.as_bytes()));
    let channel = Bytes::from_static(b"a");
    link.relay(&mut turn(), ShardId::new(0), &channel, offset, &data)
}

fn frames(link: &Link) -> Vec<Frame> {
    match link.next_step(NOW, Waker::noop()) {
        Step::Send(batch) => batch.frames.into_iter().filter_map(|f| f.frame).collect(),
        other => panic!("{other:?} instead of a batch"),
    }
}

#[derive(Debug, Default)]
struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn answers_come_in_order_and_acks_that_follow_each_other_as_one() {
    let link = link(10);
    assert_eq!(relay(&link, 1, "1"), Offer::Accepted);
    let refused = Err(RefusalReason::WrongEpoch);
    for (first, count, outcome) in [
        (1, 2, Ok(())),
        (6, 1, Ok(())),
        (5, 1, refused),
        (3, 2, Ok(())),
        (7, 3, Ok(())),
    ] {
        link.settle(&mut turn(), first, count, outcome);
    }
    let found = frames(&link);
    let ranges: Vec<_> = found
        .iter()
        .map(|frame| match frame {
            Frame::Ack(ack) => (ack.first_seq, ack.last_seq),
            Frame::Refusal(refusal) => (refusal.seq, 0),
            Frame::Relay(relay) => (0, relay.offset),
            other => panic!("unexpected {other:?}"),
        })
        .collect();
    assert_eq!(ranges, [(1, 4), (5, 0), (6, 9), (0, 1)]);
}

#[test]
fn a_link_is_woken_once_per_turn_and_only_while_it_sleeps() {
    let link = link(100);
    let count = Arc::new(Count::default());
    let waker = Waker::from(Arc::clone(&count));
    assert_eq!(link.next_step(NOW, &waker), Step::Wait);
    let mut first = turn();
    let data = None;
    for offset in 1..=3 {
        let channel = Bytes::from_static(b"a");
        let offer = link.relay(&mut first, ShardId::new(0), &channel, offset, &data);
        assert_eq!(offer, Offer::Accepted);
    }
    assert_eq!(count.0.load(Ordering::Relaxed), 0, "the turn is not over");
    drop(first);
    assert_eq!(count.0.load(Ordering::Relaxed), 1);
    assert_eq!(relay(&link, 4, "x"), Offer::Accepted);
    assert_eq!(count.0.load(Ordering::Relaxed), 1, "it is awake already");
}

#[test]
fn credit_lets_the_publication_through_that_exceeds_it_and_no_further_one() {
    let link = link(3);
    assert_eq!(relay(&link, 1, "12"), Offer::Accepted);
    assert_eq!(relay(&link, 2, "12"), Offer::Accepted);
    assert_eq!(relay(&link, 3, "12"), Offer::Behind);
    assert_eq!(frames(&link).len(), 2);
    link.add_credit(&mut turn(), 1); // Zero now.
    assert_eq!(link.next_step(NOW, Waker::noop()), Step::Wait);
    link.add_credit(&mut turn(), 1);
    let resume = Step::Resume(ShardId::new(0), Bytes::from_static(b"a"));
    assert_eq!(link.next_step(NOW, Waker::noop()), resume);
}

#[test]
fn who_comes_while_others_wait_for_credit_waits_behind_them() {
    let link = link(0);
    let data = Some(Bytes::from_static(b"1"));
    for channel in ["a", "b", "a"] {
        let channel = Bytes::from_static(channel.as_bytes());
        let offer = link.relay(&mut turn(), ShardId::new(0), &channel, 1, &data);
        assert_eq!(offer, Offer::Behind);
    }
    link.add_credit(&mut turn(), 100);
    assert_eq!(relay(&link, 1, "1"), Offer::Behind);
    for channel in ["a", "b"] {
        let resume = Step::Resume(ShardId::new(0), Bytes::from_static(channel.as_bytes()));
        assert_eq!(link.next_step(NOW, Waker::noop()), resume);
    }
    assert_eq!(link.next_step(NOW, Waker::noop()), Step::Wait);
}

#[test]
fn publications_without_data_are_bounded_too() {
    let link = link(1);
    let channel = Bytes::from(vec![b'x'; 512]);
    let accepted = (1..)
        .take_while(|&offset| {
            let offer = link.relay(&mut turn(), ShardId::new(0), &channel, offset, &None);
            offer == Offer::Accepted
        })
        .count();
    assert_eq!(
        accepted,
        RELAY_BYTES_MAX.div_ceil(512 + FRAME_OVERHEAD_BYTES)
    );
}

#[test]
fn who_does_not_take_its_answers_is_not_read_until_it_does() {
    let link = link(0);
    let count = Arc::new(Count::default());
    let waker = Waker::from(Arc::clone(&count));
    assert_eq!(link.gate(&waker), Gate::Open);
    let subscribe = Subscribe {
        channel: vec![b'x'; 512].into(),
        ..Subscribe::default()
    };
    while link.gate(&waker) == Gate::Open {
        link.not_owner(&mut turn(), &subscribe, RefusalReason::Unspecified);
    }
    assert_eq!(link.gate(&waker), Gate::Paused);
    while count.0.load(Ordering::Relaxed) == 0 {
        frames(&link);
    }
    assert_eq!(link.gate(&waker), Gate::Open);
}

#[test]
fn a_link_is_stuck_after_ten_seconds_with_something_to_get_and_no_progress() {
    let link = link(0);
    let at = |seconds: u64| Millis(seconds * 1000);
    assert!(!link.is_stuck(at(100)), "it has nothing to get");
    let channel = Bytes::from_static(b"a");
    link.fall_behind(&mut Turn::new(at(100)), ShardId::new(0), &channel);
    assert!(!link.is_stuck(at(109)));
    assert!(link.is_stuck(at(110)));
    link.add_credit(&mut Turn::new(at(110)), 1);
    assert!(!link.is_stuck(at(119)));
    assert!(link.is_stuck(at(120)));
    link.not_owner(
        &mut Turn::new(at(120)),
        &Subscribe::default(),
        RefusalReason::Unspecified,
    );
    assert!(link.is_stuck(at(120)), "more to get is no progress");
    while link.next_step(at(125), Waker::noop()) != Step::Wait {}
    assert!(!link.is_stuck(at(1000)), "it has got all");
}

#[test]
fn a_link_that_finishes_still_gets_what_it_is_due_and_one_that_fails_does_not() {
    for failed in [false, true] {
        let link = link(10);
        assert_eq!(relay(&link, 1, "1"), Offer::Accepted);
        let end = if failed {
            LinkEnd::Failed(LinkError::Stuck)
        } else {
            LinkEnd::Finished
        };
        link.end(&mut turn(), end.clone());
        link.end(&mut turn(), LinkEnd::Failed(LinkError::Stopping));
        assert_eq!(relay(&link, 2, "2"), Offer::Gone);
        assert_eq!(link.gate(Waker::noop()), Gate::Ended);
        if !failed {
            assert_eq!(frames(&link).len(), 1);
        }
        assert_eq!(link.next_step(NOW, Waker::noop()), Step::End(end));
    }
}

#[test]
fn the_end_of_a_link_wakes_both_of_its_sides() {
    let link = link(0);
    let count = Arc::new(Count::default());
    let waker = Waker::from(Arc::clone(&count));
    assert_eq!(link.gate(&waker), Gate::Open);
    assert_eq!(link.next_step(NOW, &waker), Step::Wait);
    link.end(&mut turn(), LinkEnd::Finished);
    assert_eq!(count.0.load(Ordering::Relaxed), 2);
}

proptest! {
    #[test]
    fn a_batch_has_at_most_its_bytes_or_one_frame(
        sizes in proptest::collection::vec((0_usize..512, 0_usize..90_000), 1..20),
        answers in 1_usize..3000,
    ) {
        let link = link(1 << 40);
        link.settle(&mut turn(), 1, answers as u64, Err(RefusalReason::Malformed));
        for &(name, data) in &sizes {
            let channel = Bytes::from(vec![b'x'; name]);
            let data = Some(Bytes::from(vec![b'1'; data]));
            let position = Position { generation: u64::MAX, offset: u64::MAX };
            link.subscribed(&mut turn(), &channel, position, true, u64::MAX);
            let offer = link.relay(&mut turn(), ShardId::new(0), &channel, u64::MAX, &data);
            prop_assert_eq!(offer, Offer::Accepted);
        }
        let mut frames = 0;
        while let Step::Send(batch) = link.next_step(NOW, Waker::noop()) {
            let bytes = batch.encoded_len();
            prop_assert!(bytes <= BATCH_BYTES_MAX || batch.frames.len() == 1, "{bytes} bytes");
            frames += batch.frames.len();
        }
        prop_assert_eq!(frames, answers + 2 * sizes.len());
        let state = link.lock();
        prop_assert_eq!((state.relay_bytes, state.answer_bytes), (0, 0));
    }
}

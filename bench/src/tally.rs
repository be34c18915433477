//! One subscriber's account of what arrived: holes, repeats, order.

use super::{
    clock::{Micros, SECOND},
    messages::Sent,
    stamp::Stamp,
};

/// How long before the end of a connection a publication may have been on its
/// way and still count as missed because of that end.
const UNDER_WAY: Micros = SECOND;

/// What one subscriber got from all publishers of its channel.
#[derive(Debug, Default)]
pub(super) struct Tally {
    publishers: Vec<Received>,
    /// Changes with the order in which everything arrived.
    order: u64,
    counts: Counts,
    /// When the subscriber had no subscription: from its connection's end until
    /// the acknowledgement of the next one.
    absences: Vec<(Micros, Option<Micros>)>,
}

/// What one subscriber got from one publisher.
#[derive(Debug, Clone)]
struct Received {
    /// The sequence number that should come next.
    next: u32,
    missing: Vec<u32>,
}

/// What can be wrong with what arrived.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) received: u64,
    pub(super) repeated: u64,
    pub(super) out_of_order: u64,
    /// Arrived although it belongs to another channel or to no publisher.
    pub(super) foreign: u64,
}

/// What became of the publications that one subscriber should have.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Losses {
    /// Acknowledged, and never arrived although the subscriber was connected.
    pub(super) lost: u64,
    /// Acknowledged, and passed while the subscriber was not connected.
    pub(super) away: u64,
}

impl Tally {
    pub(super) fn new(publishers: u32) -> Self {
        let received = Received {
            next: 1,
            missing: vec![],
        };
        Self {
            publishers: vec![received; publishers as usize],
            ..Self::default()
        }
    }

    /// Takes a delivery.
    pub(super) fn receive(&mut self, stamp: Stamp) {
        self.counts.received += 1;
        let Some(from) = self.publishers.get_mut(stamp.publisher as usize) else {
            self.counts.foreign += 1;
            return;
        };
        let sequence = stamp.sequence;
        if sequence >= from.next {
            from.missing.extend(from.next..sequence);
            from.next = sequence + 1;
        } else if let Some(at) = from.missing.iter().position(|missing| *missing == sequence) {
            from.missing.swap_remove(at);
            self.counts.out_of_order += 1;
        } else {
            self.counts.repeated += 1;
        }
        let mark = u64::from(stamp.publisher) << 32 | u64::from(sequence);
        self.order = (self.order.rotate_left(5) ^ mark).wrapping_mul(0x517c_c1b7_2722_0a95);
    }

    /// A delivery of a channel the subscriber does not listen to.
    pub(super) fn receive_foreign(&mut self) {
        self.counts.received += 1;
        self.counts.foreign += 1;
    }

    /// The subscriber's connection has ended, or an attempt to get another.
    pub(super) fn leave(&mut self, at: Micros) {
        if self
            .absences
            .last()
            .is_none_or(|(_, until)| until.is_some())
        {
            self.absences.push((at, None));
        }
    }

    /// The subscriber is subscribed again.
    pub(super) fn come_back(&mut self, at: Micros) {
        if let Some((_, until)) = self.absences.last_mut() {
            *until = Some(at);
        }
    }

    fn was_absent(&self, at: Micros) -> bool {
        self.absences
            .iter()
            .any(|(from, until)| at + UNDER_WAY >= *from && until.is_none_or(|until| at <= until))
    }

    pub(super) fn counts(&self) -> Counts {
        self.counts
    }

    /// Whether nothing of `sent` is still to come.
    pub(super) fn is_complete(&self, sent: &[Sent]) -> bool {
        self.losses(sent).lost == 0
    }

    /// Compares with what was sent, publisher by publisher.
    pub(super) fn losses(&self, sent: &[Sent]) -> Losses {
        let mut losses = Losses::default();
        for (from, sent) in self.publishers.iter().zip(sent) {
            let missing = from.missing.iter().copied().chain(from.next..=sent.count);
            for sequence in missing.filter(|sequence| sent.is_acked(*sequence)) {
                let was_absent = sent
                    .intended(sequence)
                    .is_some_and(|at| self.was_absent(at));
                *if was_absent {
                    &mut losses.away
                } else {
                    &mut losses.lost
                } += 1;
            }
        }
        losses
    }

    /// The order in which everything arrived, if it arrived without a hole: equal
    /// for all subscribers of a channel that have one.
    pub(super) fn order(&self) -> Option<u64> {
        let whole = self.publishers.iter().all(|from| from.missing.is_empty());
        (whole && self.absences.is_empty() && self.counts.repeated == 0 && self.counts.received > 0)
            .then_some(self.order)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(publisher: u32, sequence: u32) -> Stamp {
        Stamp {
            channel: 0,
            publisher,
            sequence,
            intended: 0,
        }
    }

    fn tally(publishers: u32, received: &[(u32, u32)]) -> Tally {
        let mut tally = Tally::new(publishers);
        for &(publisher, sequence) in received {
            tally.receive(stamp(publisher, sequence));
        }
        tally
    }

    /// One publication in each second, the first at 1 s.
    fn sent(count: u32, not_acked: &[u32]) -> Sent {
        let (not_acked, stretches) = (not_acked.to_vec(), vec![(1, SECOND)]);
        Sent {
            count,
            not_acked,
            interval: SECOND,
            stretches,
        }
    }

    #[test]
    fn a_hole_a_repeat_and_a_late_one_are_told_apart() {
        let tally = tally(1, &[(0, 1), (0, 4), (0, 4), (0, 2)]);
        assert_eq!(
            tally.counts(),
            Counts {
                received: 4,
                repeated: 1,
                out_of_order: 1,
                foreign: 0
            }
        );
        assert_eq!(tally.losses(&[sent(4, &[])]), Losses { lost: 1, away: 0 });
    }

    #[test]
    fn what_never_arrived_at_the_end_is_lost_too() {
        let tally = tally(2, &[(0, 1), (0, 2)]);
        let sent = [sent(3, &[]), sent(2, &[])];
        assert_eq!(tally.losses(&sent).lost, 3);
        assert!(!tally.is_complete(&sent));
    }

    #[test]
    fn what_was_not_acknowledged_cannot_be_lost() {
        let tally = tally(1, &[(0, 1), (0, 3)]);
        assert!(tally.is_complete(&[sent(4, &[2, 4])]));
    }

    #[test]
    fn what_passed_while_a_subscriber_was_away_is_counted_apart() {
        let mut tally = tally(1, &[(0, 1), (0, 2)]);
        tally.leave(4 * SECOND);
        tally.come_back(6 * SECOND);
        tally.receive(stamp(0, 8));
        // 3 was under way when the connection ended, 7 came after the return.
        assert_eq!(tally.losses(&[sent(9, &[])]), Losses { lost: 2, away: 4 });
        // Having heard nothing since the return is no excuse.
        let mut deaf = Tally::new(1);
        deaf.leave(2 * SECOND);
        deaf.come_back(3 * SECOND);
        assert_eq!(deaf.losses(&[sent(5, &[])]), Losses { lost: 2, away: 3 });
    }

    #[test]
    fn a_foreign_delivery_is_not_taken_for_a_repeat() {
        let tally = tally(1, &[(3, 1)]);
        assert_eq!(tally.counts().foreign, 1);
        assert_eq!(tally.counts().repeated, 0);
    }

    #[test]
    fn two_subscribers_that_saw_another_order_differ() {
        let one = tally(2, &[(0, 1), (1, 1)]);
        let two = tally(2, &[(1, 1), (0, 1)]);
        let three = tally(2, &[(0, 1), (1, 1)]);
        assert_ne!(one.order(), two.order());
        assert_eq!(one.order(), three.order());
    }
}

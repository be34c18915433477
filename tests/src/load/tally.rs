//! One subscriber's account of what arrived: holes, repeats, order.

use super::{messages::Sent, stamp::Stamp};

/// What one subscriber got from all publishers of its channel.
#[derive(Debug, Default)]
pub(super) struct Tally {
    publishers: Vec<Received>,
    /// Changes with the order in which everything arrived.
    order: u64,
    counts: Counts,
}

/// What one subscriber got from one publisher.
#[derive(Debug, Clone)]
struct Received {
    /// The sequence number that should come next.
    next: u32,
    missing: Vec<u32>,
    /// Numbers that passed while the subscriber had no connection.
    away: Vec<u32>,
    /// The subscriber just came back: what is missing now, it was away for.
    returned: bool,
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
            away: vec![],
            returned: false,
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
            let skipped = from.next..sequence;
            if from.returned {
                from.away.extend(skipped)
            } else {
                from.missing.extend(skipped)
            }
            from.returned = false;
            from.next = sequence + 1;
        } else if let Some(at) = from.missing.iter().position(|missing| *missing == sequence) {
            from.missing.swap_remove(at);
            self.counts.out_of_order += 1;
        } else if let Some(at) = from.away.iter().position(|away| *away == sequence) {
            // It came back earlier than the next publication told.
            from.away.swap_remove(at);
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

    /// The subscriber's connection stands again.
    pub(super) fn return_from_away(&mut self) {
        for from in &mut self.publishers {
            from.returned = true;
        }
    }

    pub(super) fn counts(&self) -> Counts {
        self.counts
    }

    /// Whether everything of `sent` that was acknowledged is there.
    pub(super) fn is_complete(&self, sent: &[Sent]) -> bool {
        self.losses(sent, true) == Losses::default()
    }

    /// Compares with what was sent. `connected`: whether the subscriber still is;
    /// otherwise what came after its end, it was away for.
    pub(super) fn losses(&self, sent: &[Sent], connected: bool) -> Losses {
        let mut losses = Losses::default();
        for (from, sent) in self.publishers.iter().zip(sent) {
            let acked = |sequence: &u32| sent.not_acked.binary_search(sequence).is_err();
            let tail = from.next..=sent.count;
            let tail_acked = tail.filter(acked).count() as u64;
            losses.lost += from
                .missing
                .iter()
                .filter(|sequence| acked(sequence))
                .count() as u64;
            losses.away += from.away.iter().filter(|sequence| acked(sequence)).count() as u64;
            if connected && !from.returned {
                losses.lost += tail_acked;
            } else {
                losses.away += tail_acked;
            }
        }
        losses
    }

    /// The order in which everything arrived, if it arrived without a hole: equal
    /// for all subscribers of a channel that have one.
    pub(super) fn order(&self) -> Option<u64> {
        let whole = self
            .publishers
            .iter()
            .all(|from| from.missing.is_empty() && from.away.is_empty());
        (whole && self.counts.repeated == 0 && self.counts.received > 0).then_some(self.order)
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

    fn sent(count: u32, not_acked: &[u32]) -> Sent {
        Sent {
            count,
            not_acked: not_acked.to_vec(),
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
        assert_eq!(
            tally.losses(&[sent(4, &[])], true),
            Losses { lost: 1, away: 0 }
        );
    }

    #[test]
    fn what_never_arrived_at_the_end_is_lost_too() {
        let tally = tally(2, &[(0, 1), (0, 2)]);
        let sent = [sent(3, &[]), sent(2, &[])];
        assert_eq!(tally.losses(&sent, true).lost, 3);
        assert!(!tally.is_complete(&sent));
    }

    #[test]
    fn what_was_not_acknowledged_cannot_be_lost() {
        let tally = tally(1, &[(0, 1), (0, 3)]);
        assert!(tally.is_complete(&[sent(4, &[2, 4])]));
    }

    #[test]
    fn what_passed_while_a_subscriber_was_away_is_counted_apart() {
        let mut tally = tally(1, &[(0, 1)]);
        tally.return_from_away();
        tally.receive(stamp(0, 4));
        tally.receive(stamp(0, 6));
        assert_eq!(
            tally.losses(&[sent(6, &[])], true),
            Losses { lost: 1, away: 2 }
        );
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

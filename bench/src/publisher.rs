//! One publisher's account of what it sent.

use std::collections::BTreeSet;

use super::{
    clock::Micros,
    messages::{Sent, intended},
    plan::Schedule,
};

/// `cid`s below belong to the handshake and the subscription.
const FIRST_CID: u64 = 10;

/// One publisher: when it is due, what it sent, what was acknowledged.
#[derive(Debug)]
pub(super) struct Publisher {
    pub(super) schedule: Schedule,
    /// Sequence number of the last publication.
    sent: u32,
    pending: BTreeSet<u32>,
    failed: Vec<u32>,
    acked: u64,
    /// Due while there was no connection.
    skipped: u64,
    stretches: Vec<(u32, Micros)>,
    /// The next publication begins a stretch.
    begins_stretch: bool,
}

impl Publisher {
    pub(super) fn new(schedule: Schedule) -> Self {
        Self {
            schedule,
            sent: 0,
            pending: BTreeSet::new(),
            failed: vec![],
            acked: 0,
            skipped: 0,
            stretches: vec![],
            begins_stretch: true,
        }
    }

    /// When the publication after the one due at `due` is due.
    pub(super) fn after(&self, due: Micros) -> Micros {
        due + self.schedule.interval
    }

    /// Sequence number and `cid` of the publication that was due at `due`.
    pub(super) fn send(&mut self, due: Micros) -> (u32, u64) {
        self.sent += 1;
        if std::mem::take(&mut self.begins_stretch) {
            self.stretches.push((self.sent, due));
        }
        self.pending.insert(self.sent);
        (self.sent, FIRST_CID + u64::from(self.sent))
    }

    pub(super) fn skip(&mut self) {
        self.skipped += 1;
        self.begins_stretch = true;
    }

    /// Takes an answer; the sequence number of the publication that it answers,
    /// if it answers any.
    pub(super) fn answer(&mut self, rid: u64, is_error: bool) -> Option<u32> {
        let sequence = rid
            .checked_sub(FIRST_CID)
            .and_then(|n| u32::try_from(n).ok());
        let sequence = sequence.filter(|sequence| self.pending.remove(sequence))?;
        if is_error {
            self.failed.push(sequence)
        } else {
            self.acked += 1
        }
        Some(sequence)
    }

    /// When a publication was meant to be sent.
    pub(super) fn intended(&self, sequence: u32) -> Option<Micros> {
        intended(&self.stretches, self.schedule.interval, sequence)
    }

    pub(super) fn is_answered(&self) -> bool {
        self.pending.is_empty()
    }

    pub(super) fn acked(&self) -> u64 {
        self.acked
    }

    pub(super) fn failed(&self) -> u64 {
        self.failed.len() as u64
    }

    pub(super) fn unanswered(&self) -> u64 {
        self.pending.len() as u64
    }

    pub(super) fn skipped(&self) -> u64 {
        self.skipped
    }

    /// What subscribers must have.
    pub(super) fn account(&self) -> Sent {
        let mut not_acked: Vec<_> = self.pending.iter().chain(&self.failed).copied().collect();
        not_acked.sort_unstable();
        Sent {
            count: self.sent,
            not_acked,
            interval: self.schedule.interval,
            stretches: self.stretches.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn publisher() -> Publisher {
        Publisher::new(Schedule {
            publisher: 0,
            interval: 1000,
            phase: 0,
        })
    }

    #[test]
    fn errors_and_silence_are_not_acknowledgements() {
        let mut publisher = publisher();
        let cids: Vec<_> = (0..3).map(|_| publisher.send(0).1).collect();
        assert_eq!(publisher.answer(cids[0], false), Some(1));
        assert_eq!(publisher.answer(cids[1], true), Some(2));
        let account = publisher.account();
        assert_eq!((account.count, account.not_acked), (3, vec![2, 3]));
        assert_eq!(
            (
                publisher.acked(),
                publisher.failed(),
                publisher.unanswered()
            ),
            (1, 1, 1)
        );
    }

    #[test]
    fn an_answer_counts_once() {
        let mut publisher = publisher();
        let (_, cid) = publisher.send(0);
        assert_eq!(publisher.answer(cid, false), Some(1));
        assert_eq!(publisher.answer(cid, false), None);
        assert_eq!(publisher.answer(1, false), None);
        assert_eq!(publisher.acked(), 1);
    }

    #[test]
    fn the_time_of_every_publication_is_known_also_after_a_pause() {
        let mut publisher = publisher();
        publisher.send(500);
        publisher.send(1500);
        publisher.skip();
        publisher.skip();
        publisher.send(4500);
        publisher.send(5500);
        let account = publisher.account();
        let times: Vec<_> = (0..5).map(|sequence| account.intended(sequence)).collect();
        assert_eq!(times, [None, Some(500), Some(1500), Some(4500), Some(5500)]);
    }
}

//! The publications of one shard that its owner has not acked.

use std::collections::VecDeque;

use muster_wire::Millis;

use super::Publication;

/// In the order in which clients published them; a prefix of them is on the
/// wire.
#[derive(Debug, Default)]
pub(super) struct ShardQueue {
    publications: VecDeque<Publication>,
    /// The id of the first of them; ids count up without holes.
    first_id: u64,
    /// How many of them are on the wire.
    sent: usize,
    bytes: usize,
    /// Grows whenever sending starts over.
    attempt: u32,
    /// Nothing is sent until this has passed and [`Self::release`] has noticed.
    held_until: Option<Millis>,
}

impl ShardQueue {
    /// Bytes of everything kept.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn attempt(&self) -> u32 {
        self.attempt
    }

    pub(super) fn push(&mut self, publication: Publication) {
        self.bytes += publication.bytes();
        self.publications.push_back(publication);
    }

    /// Everything kept will be sent again, from the first on.
    pub(super) fn rewind(&mut self) {
        self.sent = 0;
        self.attempt = self.attempt.wrapping_add(1);
        self.held_until = None;
    }

    /// The owner refused the epoch of something sent in `attempt`: nothing
    /// later may go before it (delivery.md A5), so all of it waits.
    pub(super) fn hold(&mut self, attempt: u32, until: Millis) {
        // Refusals of an attempt already given up say nothing new.
        if attempt == self.attempt {
            self.rewind();
            self.held_until = Some(until);
        }
    }

    pub(super) fn is_held(&self) -> bool {
        self.held_until.is_some()
    }

    pub(super) fn is_sendable(&self) -> bool {
        self.sent < self.publications.len() && self.held_until.is_none()
    }

    /// Whether a refused shard has rested long enough; it can be sent to again
    /// then.
    pub(super) fn release(&mut self, now: Millis) -> bool {
        self.held_until.take_if(|until| now >= *until).is_some()
    }

    /// The next publication to put on the wire, with its id.
    pub(super) fn send_next(&mut self) -> Option<(u64, &Publication)> {
        let publication = self.publications.get(self.sent)?;
        let id = self.first_id + self.sent as u64;
        self.sent += 1;
        Some((id, publication))
    }

    /// The publication that was answered. An owner answers in order, so it is
    /// the first, or has been given up or answered before.
    pub(super) fn take_answered(&mut self, id: u64) -> Option<Publication> {
        (id == self.first_id).then(|| self.take_first()).flatten()
    }

    /// The first publication, if it was accepted before `time`.
    pub(super) fn take_older_than(&mut self, time: Millis) -> Option<Publication> {
        let is_older = self.publications.front()?.accepted < time;
        is_older.then(|| self.take_first()).flatten()
    }

    /// Everything kept, in order.
    pub(super) fn publications(&self) -> impl Iterator<Item = &Publication> {
        self.publications.iter()
    }

    /// Forgets what is not on the wire and `is_gone` says somebody else sends.
    /// Returns its bytes.
    pub(super) fn withdraw(&mut self, is_gone: impl Fn(&Publication) -> bool) -> usize {
        let before = self.bytes;
        let mut rest = self.publications.split_off(self.sent);
        rest.retain(|publication| !is_gone(publication));
        self.publications.append(&mut rest);
        let kept = self.publications.iter().map(Publication::bytes);
        self.bytes = kept.sum();
        before - self.bytes
    }

    fn take_first(&mut self) -> Option<Publication> {
        let publication = self.publications.pop_front()?;
        self.first_id += 1;
        self.sent = self.sent.saturating_sub(1);
        self.bytes -= publication.bytes();
        if self.publications.is_empty() {
            self.publications = VecDeque::new();
        }
        Some(publication)
    }
}

//! Subscribers that came from another worker and are elsewhere in a channel
//! than this one: each gets what it has not got, until it is where the worker is
//! (delivery.md B6).

use super::Position;
use crate::connection::ConnectionKey;

/// A subscriber with a place of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mover {
    pub(super) key: ConnectionKey,
    /// It has everything up to here.
    pub(super) position: Position,
}

/// Empty, and without memory, nearly always.
#[derive(Debug, Default)]
pub(super) struct Movers(Vec<Mover>);

impl Movers {
    pub(super) fn push(&mut self, mover: Mover) {
        self.0.push(mover);
    }

    /// Returns whether it was there.
    pub(super) fn remove(&mut self, key: ConnectionKey) -> bool {
        let index = self.0.iter().position(|mover| mover.key == key);
        if let Some(index) = index {
            self.0.swap_remove(index);
        }
        index.is_some()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = ConnectionKey> + '_ {
        self.0.iter().map(|mover| mover.key)
    }

    pub(super) fn place_of(&self, key: ConnectionKey) -> Option<Position> {
        let mover = self.0.iter().find(|mover| mover.key == key);
        mover.map(|mover| mover.position)
    }

    /// From where on the owner must send, so that everybody gets everything.
    pub(super) fn earliest(&self, worker: Option<Position>) -> Option<Position> {
        let movers = self.0.iter().map(|mover| mover.position);
        let behind = movers.filter(|position| worker.is_none_or(|at| at.is_after(*position)));
        behind.chain(worker).min_by_key(|position| position.offset)
    }

    /// The publication at `offset` has come, and the worker is now at `worker`.
    /// Returns who gets it as its next; those who are where the worker is become
    /// `subscribers`.
    pub(super) fn arrive(
        &mut self,
        offset: u64,
        worker: Position,
        subscribers: &mut Vec<ConnectionKey>,
    ) -> Vec<ConnectionKey> {
        if self.0.is_empty() {
            return Vec::new();
        }
        let mut getting = Vec::new();
        for mover in &mut self.0 {
            if mover.position.is_like(worker) && mover.position.offset < offset {
                mover.position.offset = offset;
                getting.push(mover.key);
            }
        }
        self.join(worker, subscribers);
        getting
    }

    /// The subscription stands, with everything after `from`, and the worker is
    /// at `worker`: whoever needs earlier ones, or is in a log that was lost, has
    /// missed some. Returns whether there was one.
    pub(super) fn settle(
        &mut self,
        worker: Position,
        from: Position,
        subscribers: &mut Vec<ConnectionKey>,
    ) -> bool {
        let mut has_missed = false;
        for mover in &mut self.0 {
            if from.is_after(mover.position) || !from.is_like(mover.position) {
                mover.position = from;
                has_missed = true;
            }
        }
        self.join(worker, subscribers);
        has_missed
    }

    fn join(&mut self, worker: Position, subscribers: &mut Vec<ConnectionKey>) {
        self.0.retain(|mover| {
            let is_there = mover.position == worker;
            if is_there {
                subscribers.push(mover.key);
            }
            !is_there
        });
        if self.0.is_empty() {
            self.0 = Vec::new();
        }
    }
}

#[cfg(test)]
mod tests;

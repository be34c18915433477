//! One turn of work: what it did and whom it has to wake at its end.

use std::task::Waker;

use bytes::Bytes;
use muster_proto::{SHARDS, ShardId, link::Position};
use muster_wire::Millis;

/// Collects what a turn touched, so that each link is woken once, after all of
/// the turn's frames are on it.
#[derive(Debug)]
pub(crate) struct Turn {
    pub(crate) now: Millis,
    /// Publications appended in this turn.
    pub(crate) publications: u64,
    /// Relays put on links in this turn.
    pub(crate) relayed: u64,
    wakers: Vec<Waker>,
    /// In which something was staged, each once.
    touched: Vec<ShardId>,
    is_touched: [bool; SHARDS],
    /// In which something waits for a sync.
    unsynced: Vec<ShardId>,
    /// Publications that joined a log, for simulations only.
    joined: Option<Vec<Joined>>,
}

/// A publication that joined a log.
#[derive(Debug)]
pub(crate) struct Joined {
    pub(crate) shard: ShardId,
    pub(crate) epoch: u64,
    pub(crate) channel: Bytes,
    pub(crate) position: Position,
    pub(crate) data: Option<Bytes>,
}

impl Turn {
    pub(crate) fn new(now: Millis) -> Self {
        Self {
            now,
            publications: 0,
            relayed: 0,
            wakers: Vec::new(),
            touched: Vec::new(),
            is_touched: [false; SHARDS],
            unsynced: Vec::new(),
            joined: None,
        }
    }

    /// A turn that is watched.
    pub(crate) fn watched(now: Millis) -> Self {
        let mut turn = Self::new(now);
        turn.joined = Some(Vec::new());
        turn
    }

    pub(crate) fn note_joined(&mut self, joined: impl FnOnce() -> Joined) {
        if let Some(all) = &mut self.joined {
            all.push(joined());
        }
    }

    pub(crate) fn take_joined(&mut self) -> Vec<Joined> {
        self.joined.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Something was staged in this shard.
    pub(crate) fn touch(&mut self, shard: ShardId) {
        if !std::mem::replace(&mut self.is_touched[shard.index()], true) {
            self.touched.push(shard);
        }
    }

    /// The shards in which something was staged since the last call.
    pub(crate) fn take_touched(&mut self) -> Vec<ShardId> {
        let touched = std::mem::take(&mut self.touched);
        for shard in &touched {
            self.is_touched[shard.index()] = false;
        }
        touched
    }

    /// Something waits for this shard's sync.
    pub(crate) fn needs_sync(&mut self, shard: ShardId) {
        self.unsynced.push(shard);
    }

    pub(crate) fn take_unsynced(&mut self) -> Vec<ShardId> {
        std::mem::take(&mut self.unsynced)
    }

    /// Wakes this one at the end of the turn.
    pub(crate) fn wake(&mut self, waker: Option<Waker>) {
        self.wakers.extend(waker);
    }
}

// In `drop`, so that no way out of a turn leaves a link asleep.
impl Drop for Turn {
    fn drop(&mut self) {
        self.wakers.drain(..).for_each(Waker::wake);
    }
}

//! What all journals of a broker may need together.

use std::sync::atomic::{AtomicU64, Ordering};

use muster_proto::SHARDS;

/// Of a shard's room, the part that its histories have when room is short: they
/// are in up to three checkpoints' worth of segments, and tails need room, too.
const HISTORIES_PART: u64 = 4;

/// Bytes of all journals of a broker. Each of its open shards brings an equal
/// part of the cluster's, so that all brokers together stay within it.
#[derive(Debug)]
pub(crate) struct Budget {
    pub(super) used: AtomicU64,
    pub(super) open: AtomicU64,
    /// Of all shards together.
    max: u64,
}

impl Budget {
    pub(crate) fn new(max: u64) -> Self {
        Self {
            used: AtomicU64::new(0),
            open: AtomicU64::new(0),
            max,
        }
    }

    pub(super) fn has_room(&self, bytes: u64) -> bool {
        let used = self.used.load(Ordering::Relaxed).saturating_add(bytes);
        let open = self.open.load(Ordering::Relaxed);
        u128::from(used) * SHARDS as u128 <= u128::from(self.max) * u128::from(open)
    }

    /// What one shard's histories may need once most of the room is taken;
    /// `None` while there is plenty.
    pub(super) fn histories_max(&self) -> Option<u64> {
        let used = self.used.load(Ordering::Relaxed);
        let open = self.open.load(Ordering::Relaxed);
        let most = u128::from(self.max) * u128::from(open) / 4 * 3;
        let is_short = u128::from(used) * SHARDS as u128 > most;
        is_short.then_some(self.max / SHARDS as u64 / HISTORIES_PART)
    }

    pub(super) fn add(&self, bytes: u64) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn remove(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

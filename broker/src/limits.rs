//! What a broker keeps at most, in one place.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use muster_daemon::Config;

/// Producers remembered per shard and key window; a new producer beyond it is
/// refused as `LOG_FULL`. Far above what a shard's clients need, so that only a
/// flood of reconnecting publishers meets it.
const PRODUCERS_PER_SHARD_MAX: usize = 1 << 18;
/// A channel that nobody has used for this long, without subscriber and with
/// nothing retained, is forgotten (delivery.md B3).
const CHANNEL_IDLE: Duration = Duration::from_secs(60);

/// Limits of one shard.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    /// How long a publication is retained, room permitting.
    pub(crate) tail_age: Duration,
    /// Bytes retained per shard.
    pub(crate) tail_bytes_max: usize,
    pub(crate) key_window: Duration,
    pub(crate) producers_max: usize,
    pub(crate) channel_idle: Duration,
}

impl Limits {
    /// Small ones, that short tests reach.
    #[cfg(test)]
    pub(crate) fn for_tests() -> Self {
        Self {
            tail_age: Duration::from_secs(30),
            tail_bytes_max: 1 << 20,
            key_window: Duration::from_secs(60),
            producers_max: 100,
            channel_idle: Duration::from_secs(60),
        }
    }

    pub(crate) fn new(config: &Config) -> Self {
        Self {
            tail_age: config.broker.tail_age,
            tail_bytes_max: config.broker.tail_bytes_max.as_usize(),
            key_window: config.broker.key_window,
            producers_max: PRODUCERS_PER_SHARD_MAX,
            channel_idle: CHANNEL_IDLE,
        }
    }
}

/// How many channels the broker's shards have together.
#[derive(Debug)]
pub(crate) struct ChannelCount {
    count: AtomicU64,
    max: u64,
}

impl ChannelCount {
    pub(crate) fn new(max: u64) -> Self {
        Self {
            count: AtomicU64::new(0),
            max,
        }
    }

    /// Takes the place of one more channel; false when there is none.
    #[must_use]
    pub(crate) fn take(&self) -> bool {
        self.count
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| {
                (count < self.max).then_some(count + 1)
            })
            .is_ok()
    }

    /// Takes places for channels that are there already, however many there are.
    pub(crate) fn add(&self, channels: usize) {
        self.count.fetch_add(channels as u64, Ordering::Relaxed);
    }

    /// Gives back the places of `channels` channels that were taken.
    pub(crate) fn give_back(&self, channels: usize) {
        self.count.fetch_sub(channels as u64, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }
}

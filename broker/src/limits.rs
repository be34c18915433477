//! What a broker keeps at most, in one place.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use muster_daemon::{
    Config,
    config::{History, Namespace, Namespaces},
};

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
    /// How long every publication is retained, room permitting.
    pub(crate) tail_age: Duration,
    /// What is retained for longer.
    pub(crate) histories: Histories,
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
            histories: Histories::default(),
            tail_bytes_max: 1 << 20,
            key_window: Duration::from_secs(60),
            producers_max: 100,
            channel_idle: Duration::from_secs(60),
        }
    }

    pub(crate) fn new(config: &Config) -> Self {
        Self {
            tail_age: config.broker.tail_age,
            histories: Histories::new(config.namespace.clone()),
            tail_bytes_max: config.broker.tail_bytes_max.as_usize(),
            key_window: config.broker.key_window,
            producers_max: PRODUCERS_PER_SHARD_MAX,
            channel_idle: CHANNEL_IDLE,
        }
    }
}

/// What channels keep beyond their tails, by their names.
#[derive(Debug, Default, Clone)]
pub(crate) struct Histories(Arc<Namespaces>);

/// What is kept of one channel: all of these hold, but for what is in its tail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// Publications.
    pub(crate) count: usize,
    /// Bytes of their data.
    pub(crate) bytes: usize,
    /// `None`: as old as they may be.
    pub(crate) age: Option<Duration>,
}

impl Histories {
    pub(crate) fn new(namespaces: Vec<Namespace>) -> Self {
        Self(Arc::new(Namespaces::new(namespaces)))
    }

    /// Keeps so much of the channels whose names begin so.
    #[cfg(test)]
    pub(crate) fn for_tests(histories: &[(&str, History)]) -> Self {
        let namespaces = histories.iter().map(|(prefix, history)| Namespace {
            prefix: (*prefix).into(),
            history: Some(*history),
            ..Namespace::default()
        });
        Self::new(namespaces.collect())
    }

    /// Of the channel of this name; `None` if it keeps nothing but its tail.
    pub(crate) fn of(&self, channel: &[u8]) -> Option<Bounds> {
        let History { count, bytes, age } = self.0.of(channel)?.history?;
        let all = usize::MAX;
        Some(Bounds {
            count: count.map_or(all, |count| usize::try_from(count).unwrap_or(all)),
            bytes: bytes.map_or(all, |bytes| bytes.as_usize()),
            age,
        })
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

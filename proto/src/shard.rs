//! How channels are cut into shards, the unit of ownership.

use std::fmt;

use xxhash_rust::xxh3::xxh3_64;

/// Number of shards; never changes for a cluster's life.
pub const SHARDS: usize = 256;

/// A fixed slice of the channel space: one of [`SHARDS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
// Invariant: there are exactly as many shards as a byte has values.
pub struct ShardId(u8);

impl ShardId {
    /// The shard with this number.
    #[must_use]
    pub const fn new(number: u8) -> Self {
        Self(number)
    }

    /// The shard's number, below [`SHARDS`].
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// Every shard, in order.
    pub fn all() -> impl DoubleEndedIterator<Item = Self> + ExactSizeIterator {
        (0..SHARDS).map(|index| Self(low_byte(index as u64)))
    }
}

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The shard that a channel belongs to: xxh3 (64 bits, seed 0) of the name's
/// UTF-8 bytes, modulo [`SHARDS`].
#[must_use]
pub fn shard_of(channel: impl AsRef<[u8]>) -> ShardId {
    ShardId(low_byte(xxh3_64(channel.as_ref())))
}

/// `number` modulo [`SHARDS`].
fn low_byte(number: u64) -> u8 {
    number.to_le_bytes()[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shard_is_listed_once_and_in_order() {
        let indices: Vec<usize> = ShardId::all().map(ShardId::index).collect();
        assert_eq!(indices, (0..SHARDS).collect::<Vec<_>>());
    }

    #[test]
    fn the_shard_is_the_hash_modulo_the_number_of_shards() {
        for name in ["", "a", "lobby:1", "Grüße"] {
            let expected = xxh3_64(name.as_bytes()) % SHARDS as u64;
            assert_eq!(shard_of(name).index() as u64, expected);
            assert_eq!(shard_of(name), shard_of(name.as_bytes()));
        }
    }
}

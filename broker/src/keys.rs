//! The publication keys a shard remembers (delivery.md A1, A2).

use std::{collections::HashMap, mem, time::Duration};

use bytes::Bytes;
use muster_wire::Millis;

/// The last `n` of every producer that published in this shard.
///
/// Two maps take turns: a key stays at least one window and at most two, and
/// forgetting costs nothing per key.
#[derive(Debug)]
pub(crate) struct Keys {
    window: Duration,
    /// Producers in one map beyond which new ones are refused.
    producers_max: usize,
    newer: HashMap<Bytes, u64>,
    older: HashMap<Bytes, u64>,
    turned_at: Millis,
}

/// As many producers are remembered as may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct KeysFull;

impl Keys {
    pub(crate) fn new(now: Millis, window: Duration, producers_max: usize) -> Self {
        Self {
            window,
            producers_max,
            newer: HashMap::new(),
            older: HashMap::new(),
            turned_at: now,
        }
    }

    /// Whether the producer's publication `n`, or a later one, is in the log.
    pub(crate) fn knows(&self, producer: &[u8], n: u64) -> bool {
        self.newer
            .get(producer)
            .or_else(|| self.older.get(producer))
            .is_some_and(|&last| n <= last)
    }

    /// Remembers that the producer's publication `n` is in the log.
    pub(crate) fn remember(&mut self, producer: &[u8], n: u64) -> Result<(), KeysFull> {
        if let Some(last) = self.newer.get_mut(producer) {
            *last = n.max(*last);
            return Ok(());
        }
        if self.newer.len() >= self.producers_max {
            return Err(KeysFull);
        }
        // A copy, so that the key does not pin the batch it came in.
        self.newer.insert(Bytes::copy_from_slice(producer), n);
        Ok(())
    }

    /// Forgets what has been remembered for longer than needed.
    pub(crate) fn forget_old(&mut self, now: Millis) {
        let age = now.since(self.turned_at);
        if age < self.window {
            return;
        }
        self.older = mem::take(&mut self.newer);
        if age >= self.window * 2 {
            self.older = HashMap::new();
        }
        self.turned_at = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_secs(60);

    #[test]
    fn a_key_is_known_for_a_window_and_forgotten_after_two() {
        for remembered_at in [0, 1, 59_999] {
            let mut keys = Keys::new(Millis(0), WINDOW, 10);
            keys.forget_old(Millis(remembered_at));
            keys.remember(b"p", 7).unwrap();
            for second in 0..=60 {
                keys.forget_old(Millis(remembered_at + second * 1000));
                assert!(keys.knows(b"p", 7), "after {second} s");
            }
            keys.forget_old(Millis(remembered_at + 60_000));
            keys.forget_old(Millis(remembered_at + 120_000));
            assert!(!keys.knows(b"p", 7));
        }
    }

    #[test]
    fn a_long_silence_forgets_everything() {
        let mut keys = Keys::new(Millis(0), WINDOW, 10);
        keys.remember(b"p", 7).unwrap();
        keys.forget_old(Millis(120_000));
        assert!(!keys.knows(b"p", 7));
    }

    #[test]
    fn earlier_numbers_of_a_producer_are_known_and_later_ones_are_not() {
        let mut keys = Keys::new(Millis(0), WINDOW, 10);
        keys.remember(b"p", 7).unwrap();
        keys.remember(b"p", 5).unwrap();
        assert!(keys.knows(b"p", 6) && keys.knows(b"p", 7));
        assert!(!keys.knows(b"p", 8));
        assert!(!keys.knows(b"q", 1));
    }

    #[test]
    fn beyond_the_limit_only_known_producers_are_remembered() {
        let mut keys = Keys::new(Millis(0), WINDOW, 1);
        keys.remember(b"p", 1).unwrap();
        assert_eq!(keys.remember(b"q", 1), Err(KeysFull));
        assert_eq!(keys.remember(b"p", 2), Ok(()));
    }
}

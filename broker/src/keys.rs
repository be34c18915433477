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
    newer: HashMap<Bytes, Last>,
    older: HashMap<Bytes, Last>,
    turned_at: Millis,
    /// Breaks C2 on purpose, in simulations.
    forgets_refused: bool,
}

/// What is remembered of a producer.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Last {
    /// Its last publication in the log; 0 if there is none.
    pub(crate) n: u64,
    /// Its last publication that was refused for good, although later ones may
    /// be taken; 0 if there is none.
    pub(crate) refused: u64,
}

/// Whether a publication is in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Known {
    No,
    Yes,
    /// It is earlier than one that was refused, and than one that was taken:
    /// which of both happened to it is not remembered.
    Perhaps,
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
            forgets_refused: false,
        }
    }

    /// Whether the producer's publication `n` is in the log, or a later one,
    /// which says the same: they come in order.
    pub(crate) fn knows(&self, producer: &[u8], n: u64) -> Known {
        let last = self.last(producer);
        if n > last.n {
            Known::No
        } else if n > last.refused {
            Known::Yes
        } else {
            Known::Perhaps
        }
    }

    /// What is remembered of a producer.
    pub(crate) fn last(&self, producer: &[u8]) -> Last {
        let last = self.newer.get(producer);
        let last = last.or_else(|| self.older.get(producer));
        last.copied().unwrap_or_default()
    }

    /// Remembers that the producer's publication `n` is in the log; returns what
    /// was remembered before.
    pub(crate) fn remember(&mut self, producer: &[u8], n: u64) -> Result<Last, KeysFull> {
        if let Some(last) = self.newer.get_mut(producer) {
            let before = *last;
            last.n = n.max(before.n);
            return Ok(before);
        }
        let before = self.last(producer);
        let last = Last {
            n: n.max(before.n),
            ..before
        };
        self.put(producer, last).map(|()| before)
    }

    /// Goes back to what was remembered before a publication that is not in the
    /// log after all.
    pub(crate) fn restore(&mut self, producer: &[u8], before: Last) {
        let maps = [&mut self.newer, &mut self.older];
        for last in maps.into_iter().filter_map(|map| map.get_mut(producer)) {
            last.n = before.n;
        }
    }

    /// Remembers that a publication was refused for good. Without a place for
    /// that, a copy of it that is sent again may pass for one that was taken.
    pub(crate) fn note_refused(&mut self, producer: &[u8], n: u64) {
        if self.forgets_refused {
            return;
        }
        let before = self.last(producer);
        let last = Last {
            refused: n.max(before.refused),
            ..before
        };
        let _no_place = self.put(producer, last);
    }

    fn put(&mut self, producer: &[u8], last: Last) -> Result<(), KeysFull> {
        if let Some(place) = self.newer.get_mut(producer) {
            *place = last;
            return Ok(());
        }
        if self.newer.len() >= self.producers_max {
            return Err(KeysFull);
        }
        // A copy, so that the key does not pin the batch it came in.
        self.newer.insert(Bytes::copy_from_slice(producer), last);
        Ok(())
    }

    /// When the maps last changed places.
    pub(crate) fn turned_at(&self) -> Millis {
        self.turned_at
    }

    /// All that is remembered, and whether it is among the older.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (bool, &Bytes, Last)> {
        let older = self.older.iter().map(|(key, last)| (true, key, *last));
        let newer = self.newer.iter().map(|(key, last)| (false, key, *last));
        older.chain(newer)
    }

    /// Begins anew, with what [`Self::load`] is given.
    pub(crate) fn clear(&mut self, turned_at: Millis) {
        self.newer = HashMap::new();
        self.older = HashMap::new();
        self.turned_at = turned_at;
    }

    /// From now on, what is refused is not remembered.
    pub(crate) fn break_refused(&mut self) {
        self.forgets_refused = true;
    }

    /// Takes over an entry as it was.
    pub(crate) fn load(&mut self, is_older: bool, producer: &[u8], last: Last) {
        let map = if is_older {
            &mut self.older
        } else {
            &mut self.newer
        };
        map.insert(Bytes::copy_from_slice(producer), last);
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
                assert_eq!(keys.knows(b"p", 7), Known::Yes, "after {second} s");
            }
            keys.forget_old(Millis(remembered_at + 60_000));
            keys.forget_old(Millis(remembered_at + 120_000));
            assert_eq!(keys.knows(b"p", 7), Known::No);
        }
    }

    #[test]
    fn a_long_silence_forgets_everything() {
        let mut keys = Keys::new(Millis(0), WINDOW, 10);
        keys.remember(b"p", 7).unwrap();
        keys.forget_old(Millis(120_000));
        assert_eq!(keys.knows(b"p", 7), Known::No);
    }

    #[test]
    fn earlier_numbers_of_a_producer_are_known_and_later_ones_are_not() {
        let mut keys = Keys::new(Millis(0), WINDOW, 10);
        keys.remember(b"p", 7).unwrap();
        keys.remember(b"p", 5).unwrap();
        assert_eq!(keys.knows(b"p", 6), Known::Yes);
        assert_eq!(keys.knows(b"p", 7), Known::Yes);
        assert_eq!(keys.knows(b"p", 8), Known::No);
        assert_eq!(keys.knows(b"q", 1), Known::No);
    }

    #[test]
    fn beyond_the_limit_only_known_producers_are_remembered() {
        let mut keys = Keys::new(Millis(0), WINDOW, 1);
        keys.remember(b"p", 1).unwrap();
        assert_eq!(keys.remember(b"q", 1), Err(KeysFull));
        assert_eq!(keys.remember(b"p", 2).map(|before| before.n), Ok(1));
    }

    #[test]
    fn a_refused_publication_never_passes_for_one_that_was_taken() {
        let mut keys = Keys::new(Millis(0), WINDOW, 10);
        keys.remember(b"p", 1).unwrap();
        keys.note_refused(b"p", 2);
        assert_eq!(keys.knows(b"p", 2), Known::No, "it may still be taken");
        keys.remember(b"p", 3).unwrap();
        assert_eq!(keys.knows(b"p", 2), Known::Perhaps);
        assert_eq!(keys.knows(b"p", 3), Known::Yes);
        let before = keys.remember(b"p", 4).unwrap();
        keys.restore(b"p", before);
        assert_eq!(keys.knows(b"p", 4), Known::No);
        assert_eq!(keys.knows(b"p", 3), Known::Yes);
    }
}

//! One channel of a shard: where it stands and what is kept of it.

use std::{collections::VecDeque, io, ops::Add, time::Duration};

use bytes::Bytes;
use muster_wire::Millis;

use super::data::Data;
use crate::{limits::Bounds, room::give_back_room};

/// Counted for each retained publication beside its data: what the two queues,
/// the reference count and the allocator need.
const RETAINED_OVERHEAD_BYTES: usize = 112;

#[derive(Debug)]
pub(super) struct Channel {
    pub(super) name: Bytes,
    pub(super) generation: u64,
    pub(super) last_offset: u64,
    /// Offsets after `last_offset` that are given to publications on their way
    /// into the journal.
    pub(super) assigned: u64,
    pub(super) used_at: Millis,
    /// The last publications, up to `last_offset`: the history's, then the tail's.
    kept: VecDeque<Kept>,
    pub(super) history: Option<History>,
}

/// When something was published, in milliseconds of the monotonic clock: below
/// zero before the machine's last start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment(pub(crate) i64);

impl Moment {
    /// How old it is; zero if it is still to come.
    pub(crate) fn age(self, now: Millis) -> Duration {
        let millis = Self::from(now).0.saturating_sub(self.0);
        Duration::from_millis(u64::try_from(millis).unwrap_or(0))
    }

    /// On a clock that knows nothing of earlier starts.
    pub(crate) fn since_boot(self) -> Millis {
        Millis(u64::try_from(self.0).unwrap_or(0))
    }
}

impl From<Millis> for Moment {
    fn from(at: Millis) -> Self {
        Self(i64::try_from(at.0).unwrap_or(i64::MAX))
    }
}

impl Add<Duration> for Moment {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        let millis = i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
        Self(self.0.saturating_add(millis))
    }
}

/// A publication that is kept.
#[derive(Debug, Clone)]
pub(crate) struct Kept {
    pub(crate) at: Moment,
    data: Option<Data>,
}

/// What is kept of a channel beyond its tail.
#[derive(Debug)]
pub(super) struct History {
    bounds: Bounds,
    /// Of what is kept, how many have left the tail; the oldest.
    beyond: usize,
    /// Of the data of all that is kept.
    data_bytes: usize,
}

impl Kept {
    pub(crate) fn new(at: Moment, data: Option<Data>) -> Self {
        Self { at, data }
    }

    /// Its data, which must have been loaded if it was not in memory.
    pub(crate) fn data(&self) -> Option<&Bytes> {
        let data = self.data.as_ref()?;
        debug_assert!(data.held().is_some(), "what is used has been loaded");
        data.held()
    }

    fn data_bytes(&self) -> usize {
        self.data.as_ref().map_or(0, Data::len)
    }

    /// What it counts for.
    pub(super) fn bytes(&self) -> usize {
        self.data_bytes() + RETAINED_OVERHEAD_BYTES
    }
}

impl Channel {
    pub(super) fn new(now: Millis, name: Bytes, generation: u64, bounds: Option<Bounds>) -> Self {
        Self {
            name,
            generation,
            last_offset: 0,
            assigned: 0,
            used_at: now,
            kept: VecDeque::new(),
            history: bounds.map(|bounds| History {
                bounds,
                beyond: 0,
                data_bytes: 0,
            }),
        }
    }

    /// Nothing is kept.
    pub(super) fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// Publications that are in the tail.
    pub(super) fn in_tail(&self) -> usize {
        self.kept.len() - self.beyond()
    }

    /// Publications that have left the tail.
    pub(super) fn beyond(&self) -> usize {
        self.history.as_ref().map_or(0, |history| history.beyond)
    }

    /// What all that is kept counts for.
    pub(super) fn bytes(&self) -> usize {
        self.kept.iter().map(Kept::bytes).sum()
    }

    /// What of it has left the tail counts for.
    pub(super) fn bytes_beyond(&self) -> usize {
        self.kept.range(..self.beyond()).map(Kept::bytes).sum()
    }

    /// The offset just before the first retained publication.
    pub(super) fn tail_start(&self) -> u64 {
        self.last_offset - self.kept.len() as u64
    }

    /// The first of those that have left the tail.
    pub(super) fn oldest_beyond(&self) -> Option<&Kept> {
        self.kept.front().filter(|_| self.beyond() > 0)
    }

    /// When the first of those that have left the tail is to go, if that is a
    /// matter of time.
    pub(super) fn expires_at(&self) -> Option<Moment> {
        let age = self.history.as_ref()?.bounds.age?;
        Some(self.oldest_beyond()?.at + age)
    }

    /// The first in the tail leaves it and is kept all the same; returns what it
    /// counts for. `None` where nothing is kept beyond the tail.
    pub(super) fn pass_on(&mut self) -> Option<usize> {
        let history = self.history.as_mut()?;
        let bytes = self.kept.get(history.beyond)?.bytes();
        history.beyond += 1;
        Some(bytes)
    }

    /// Whether it has more than its history may have, beyond its tail.
    pub(super) fn is_over(&self) -> bool {
        self.history.as_ref().is_some_and(|history| {
            let Bounds { count, bytes, .. } = history.bounds;
            history.beyond > 0 && (self.kept.len() > count || history.data_bytes > bytes)
        })
    }

    /// Takes the newest publication in; returns what it counts for.
    pub(super) fn push(&mut self, kept: Kept) -> usize {
        let bytes = kept.bytes();
        if let Some(history) = &mut self.history {
            history.data_bytes += kept.data_bytes();
        }
        self.kept.push_back(kept);
        bytes
    }

    /// Takes in, beyond the tail, the publication before the first one that is
    /// kept. False, and nothing is done, where there is no history.
    pub(super) fn push_oldest(&mut self, kept: Kept) -> bool {
        let Some(history) = &mut self.history else {
            return false;
        };
        history.data_bytes += kept.data_bytes();
        history.beyond += 1;
        self.kept.push_front(kept);
        true
    }

    /// Lets go of the oldest publication; returns what it counted for.
    pub(super) fn pop_oldest(&mut self) -> usize {
        let Some(kept) = self.kept.pop_front() else {
            return 0;
        };
        give_back_room(&mut self.kept);
        if let Some(history) = &mut self.history {
            history.data_bytes -= kept.data_bytes();
            history.beyond = history.beyond.saturating_sub(1);
        }
        kept.bytes()
    }

    /// What is kept after one offset and before another, with offsets.
    pub(super) fn range(
        &self,
        after: u64,
        before: u64,
    ) -> impl DoubleEndedIterator<Item = (u64, &Kept)> {
        let start = self.tail_start();
        let index = |offset: u64| {
            let index = usize::try_from(offset.saturating_sub(start)).unwrap_or(usize::MAX);
            index.min(self.kept.len())
        };
        let from = index(after);
        let to = index(before.saturating_sub(1)).max(from);
        let kept = self.kept.range(from..to).enumerate();
        kept.map(move |(index, kept)| (start + 1 + (from + index) as u64, kept))
    }

    /// Reads what is kept after that offset and not in memory, the newest first.
    /// Fails with the first offset that cannot be read.
    pub(super) fn load(&mut self, after: u64) -> Result<(), (u64, io::Error)> {
        let start = self.tail_start();
        let from = usize::try_from(after.saturating_sub(start)).unwrap_or(usize::MAX);
        let from = from.min(self.kept.len());
        for (index, kept) in self.kept.range_mut(from..).enumerate().rev() {
            if let Some(data) = &mut kept.data {
                let offset = start + 1 + (from + index) as u64;
                data.load().map_err(|error| (offset, error))?;
            }
        }
        Ok(())
    }
}

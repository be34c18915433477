//! The life of a shard's segments: each begins with a checkpoint, so that those
//! before it can go once nothing else in them is needed.

use muster_proto::SHARDS;
use tracing::warn;

use super::{
    Journal, channel_id,
    format::{Copied, Header, Record, encode},
};
use crate::log::Log;

/// A segment is left for the next one when so much was appended to it, or as
/// much again as its checkpoint is if that is more. With little room for all
/// journals it is less.
const SEGMENT_BYTES: u64 = 1 << 20;
const SEGMENT_BYTES_MIN: u64 = 16 << 10;
/// A quiet shard keeps no larger segment of which nothing is retained.
const IDLE_SEGMENT_BYTES: u64 = 64 << 10;
/// Of a shard's room, the part that is one segment.
const SEGMENT_PART: u64 = 8;
/// When a shard begins a new segment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    pub(super) segment_bytes: u64,
    pub(super) idle_bytes: u64,
}

impl Sizes {
    /// Sizes that fit when all journals of a cluster may have `bytes_max`.
    pub(crate) fn new(bytes_max: u64) -> Self {
        let part = bytes_max / SHARDS as u64 / SEGMENT_PART;
        let segment_bytes = part.clamp(SEGMENT_BYTES_MIN, SEGMENT_BYTES);
        Self {
            segment_bytes,
            idle_bytes: IDLE_SEGMENT_BYTES.min(segment_bytes),
        }
    }

    /// So small that short tests and simulations begin many segments.
    pub(crate) fn small() -> Self {
        Self {
            segment_bytes: 600,
            idle_bytes: 200,
        }
    }
}

#[derive(Debug)]
pub(super) struct Segment {
    pub(super) sequence: u64,
    pub(super) bytes: u64,
    /// The shard's publications up to the end of this segment.
    pub(super) publications: u64,
    /// Of the shard's first so many publications, its checkpoint has whatever
    /// histories kept of them.
    pub(super) carried: u64,
}

impl Journal {
    /// Goes on in a new segment when the present one is large enough, or when
    /// histories `were_cut`, and lets go of segments that are needed for nothing.
    /// Nothing may be staged.
    ///
    /// `unapplied` publications are written and not in the log.
    pub(crate) fn tidy(&mut self, log: &Log, unapplied: usize, were_cut: bool) {
        debug_assert!(!self.has_staged(), "what is staged is bound to its segment");
        if self.is_broken() {
            return;
        }
        let sizes = &self.options.sizes;
        let appended = self.present().bytes - self.checkpoint_bytes;
        let is_large = appended >= self.checkpoint_bytes.max(sizes.segment_bytes);
        let is_idle = appended > sizes.idle_bytes && unapplied == 0 && log.in_tails() == 0;
        if is_large || is_idle || were_cut {
            self.rotate(log, unapplied);
        }
        // What is in tails are the shard's last publications. What is kept of
        // earlier ones, histories, the present checkpoint has.
        let present = self.present();
        let in_tails = (log.in_tails() + unapplied) as u64;
        let mut unneeded = present.publications.saturating_sub(in_tails);
        if !log.histories().is_empty() {
            unneeded = unneeded.min(present.carried);
        }
        if self.options.broken.retention {
            unneeded = u64::MAX;
        }
        while self.segments.len() > 1 && self.segments[0].publications <= unneeded {
            if let Some(segment) = self.segments.pop_front() {
                self.options.budget.remove(segment.bytes);
                self.outdated.push(segment.sequence);
            }
        }
        if !self.options.is_synced {
            self.remove_outdated();
        }
    }

    /// Removes the files of segments that are not needed. To be called once
    /// what was written after them is as durable as it will be.
    pub(crate) fn remove_outdated(&mut self) {
        for sequence in self.outdated.drain(..) {
            if let Err(error) = self.storage.remove(sequence) {
                let file = self.storage.name(sequence);
                warn!(file = %file.display(), %error, "Could not remove a segment of the journal.");
            }
        }
    }

    pub(super) fn rotate(&mut self, log: &Log, unapplied: usize) {
        let present = self.present();
        let (sequence, publications) = (present.sequence + 1, present.publications);
        let content = self.checkpoint(sequence, log);
        if let Err(error) = self.storage.create(sequence, &content) {
            // The present one goes on growing until it can be.
            if !std::mem::replace(&mut self.is_stuck, true) {
                let file = self.storage.name(sequence);
                warn!(file = %file.display(), %error, "Could not begin a segment of the journal.");
            }
            return;
        }
        let bytes = content.len() as u64;
        self.options.budget.add(bytes);
        self.segments.push_back(Segment {
            sequence,
            bytes,
            publications,
            carried: publications.saturating_sub(unapplied as u64),
        });
        self.checkpoint_bytes = bytes;
        self.is_stuck = false;
        self.is_opening_written = true;
        self.declared = vec![false; self.declared.len()];
        if self.options.broken.carried_channels {
            return;
        }
        for key in log.channel_keys() {
            if key.index() >= self.declared.len() {
                self.declared.resize(key.index() + 1, false);
            }
            self.declared[key.index()] = true;
        }
    }

    /// A new segment's content: all that earlier ones are needed for, but what is
    /// in tails only.
    pub(super) fn checkpoint(&self, sequence: u64, log: &Log) -> Vec<u8> {
        let header = Header {
            shard: self.shard,
            sequence,
            boot: self.opened.boot,
        };
        let broken = self.options.broken;
        let mut content = header.encode().to_vec();
        let mut add = |record: &Record<'_>| encode(&mut content, sequence, 0, record);
        add(&Record::Opened(self.opened));
        add(&Record::Keys {
            turned_at: log.keys().turned_at().0,
        });
        let keys = log.keys().entries().filter(|_| !broken.carried_keys);
        for (is_older, producer, last) in keys {
            add(&Record::Key {
                is_older,
                n: last.n,
                refused: last.refused,
                producer,
            });
        }
        let channels = log.channel_keys().filter(|_| !broken.carried_channels);
        for key in channels {
            let position = log.assigned(key);
            add(&Record::Channel {
                id: channel_id(key),
                generation: position.generation,
                offset: position.offset,
                name: log.name(key),
            });
            if log.has_history(key) && !broken.carried_histories {
                for (offset, kept) in log.range(key, 0, u64::MAX).rev() {
                    add(&Record::Copy(Copied {
                        channel: channel_id(key),
                        offset,
                        at: kept.at.0,
                        data: kept.data().map(|data| &data[..]),
                    }));
                }
            }
        }
        add(&Record::End);
        content
    }
}

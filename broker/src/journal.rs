//! The journal of one shard: what a broker needs to open the shard again.
//!
//! What is to be appended is *staged* first: encoded, in order, into one buffer,
//! which [`Journal::commit`] writes in one go. Only then does anybody hear of it
//! (delivery.md A3). A write that fails leaves the journal as it was before, and
//! nothing of what was staged is in it (C2).
//!
//! `format` is the layout of a segment, `segments` begins and removes them,
//! `recovery` reads them all, `stored` one again, `storage` is where they are,
//! `home` is the directory of all shards.

mod broken;
mod budget;
pub mod check;
mod format;
mod home;
#[doc(hidden)]
pub(crate) mod memory;
mod recovery;
mod segments;
mod storage;
mod stored;
#[cfg(test)]
mod tests;

use std::{
    collections::VecDeque,
    fs::File,
    io,
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
};

use muster_proto::ShardId;
use muster_wire::Millis;
use tracing::{error, info};

pub use self::{broken::BrokenRules, home::HomeError};
pub(crate) use self::{
    budget::Budget,
    home::{Clock, Home, OpenShardError},
    recovery::{Recovered, Recovery, RecoveryError, open},
    segments::Sizes,
    storage::LockError,
};
use self::{
    format::{ChannelId, Opened, Publication, Record, encode},
    segments::Segment,
    storage::Storage,
};
use crate::log::{ChannelKey, Log};

/// Room of the staging buffer that is kept.
const BUFFER_BYTES_KEPT: usize = 256 << 10;

/// How a shard's journal is written.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    /// Nothing is told to anybody before it is synced.
    pub(crate) is_synced: bool,
    /// What all journals of this broker may need together.
    pub(crate) budget: Arc<Budget>,
    pub(crate) sizes: Sizes,
    /// Rules that are broken on purpose, in simulations.
    pub(crate) broken: BrokenRules,
}

/// Why what was staged is not in the journal.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CommitError {
    #[error("the journals have reached broker.journal_bytes_max")]
    Full,
    #[error("cannot write to {}", file.display())]
    Write { file: PathBuf, source: io::Error },
    /// The journal takes nothing more, and whether what was staged is in it is
    /// not known.
    #[error("cannot cut {} after a write that failed ({written})", file.display())]
    Truncate {
        file: PathBuf,
        written: io::Error,
        source: io::Error,
    },
}

/// What a commit has achieved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Committed {
    /// It outlives this process.
    Written,
    /// It is to be synced before anybody may hear of it.
    Unsynced,
}

/// What has to be synced, by a thread that may wait.
#[derive(Debug)]
pub(crate) struct Unsynced {
    files: Vec<Arc<File>>,
}

impl Unsynced {
    pub(crate) fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Waits for the disk.
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.files.iter().try_for_each(|file| file.sync_all())
    }
}

/// Whether the journal takes what it is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Health {
    Good,
    /// The last write failed and was taken back.
    Failing,
    /// The last write failed and could not be taken back.
    Torn,
    /// A sync failed: what is on the disk is not known, until it is read again.
    Unsynced,
}

/// A shard's journal, open for appending.
#[derive(Debug)]
pub(crate) struct Journal {
    shard: ShardId,
    storage: Box<dyn Storage>,
    options: Options,
    opened: Opened,
    /// `opened` is in the journal.
    is_opening_written: bool,
    /// Oldest first; the last one is written to. Never empty.
    segments: VecDeque<Segment>,
    /// To be removed once what follows them is synced.
    outdated: Vec<u64>,
    /// Encoded and not written.
    buffer: Vec<u8>,
    staged_publications: u64,
    /// Of the buffer, what counts as written and is not; 0 unless that rule is
    /// broken.
    late_bytes: usize,
    /// By channel: the present segment declares it.
    declared: Vec<bool>,
    /// Those of them whose declaration is staged only.
    declared_now: Vec<ChannelId>,
    /// Of the present segment.
    checkpoint_bytes: u64,
    /// The next segment could not be begun.
    is_stuck: bool,
    health: Health,
}

impl Journal {
    /// Declares a channel that has just begun.
    pub(crate) fn stage_channel(&mut self, key: ChannelKey, log: &Log) {
        self.stage_opening();
        let id = channel_id(key);
        let position = log.assigned(key);
        let record = Record::Channel {
            id,
            generation: position.generation,
            offset: position.offset,
            name: log.name(key),
        };
        self.stage(&record);
        if key.index() >= self.declared.len() {
            self.declared.resize(key.index() + 1, false);
        }
        self.declared[key.index()] = true;
        self.declared_now.push(id);
    }

    /// Stages the channel's next publication.
    pub(crate) fn stage_publication(
        &mut self,
        at: Millis,
        key: ChannelKey,
        log: &Log,
        publication: StagedPublication<'_>,
    ) {
        if !self.declared.get(key.index()).copied().unwrap_or(false) {
            self.stage_channel(key, log);
        }
        self.stage_opening();
        let record = Record::Publication(Publication {
            channel: channel_id(key),
            offset: log.assigned(key).offset + 1,
            at: at.0,
            producer: publication.producer,
            n: publication.n,
            refused: publication.refused,
            data: publication.data,
        });
        self.stage(&record);
        self.staged_publications += 1;
    }

    pub(crate) fn has_staged(&self) -> bool {
        !self.buffer.is_empty()
    }

    /// Whether the offsets of what is refused are taken back (delivery.md C2).
    pub(crate) fn takes_back(&self) -> bool {
        !self.options.broken.offsets
    }

    /// Whether it refuses everything until it is opened again, or cut.
    pub(crate) fn is_broken(&self) -> bool {
        matches!(self.health, Health::Torn | Health::Unsynced)
    }

    /// Writes what is staged. On an error nothing of it is in the journal,
    /// except after [`CommitError::Truncate`].
    pub(crate) fn commit(&mut self) -> Result<Committed, CommitError> {
        if self.options.broken.order {
            return self.commit_late();
        }
        let outcome = self.write_staged();
        match &outcome {
            Ok(_) => {
                if self.health == Health::Failing {
                    info!(shard = %self.shard, "The journal takes publications again.");
                    self.health = Health::Good;
                }
                self.is_opening_written = true;
                self.declared_now.clear();
            }
            Err(failure) => {
                if self.health == Health::Good {
                    let error: &dyn std::error::Error = failure;
                    error!(shard = %self.shard, error, "The journal refuses publications.");
                }
                self.health = match failure {
                    CommitError::Full | CommitError::Write { .. } => Health::Failing,
                    CommitError::Truncate { .. } => Health::Torn,
                };
                for id in self.declared_now.drain(..) {
                    self.declared[id as usize] = false;
                }
            }
        }
        self.buffer.clear();
        self.buffer.shrink_to(BUFFER_BYTES_KEPT);
        self.staged_publications = 0;
        outcome
    }

    /// Writes what the last commit should have written.
    fn commit_late(&mut self) -> Result<Committed, CommitError> {
        let late = self.buffer.split_off(self.late_bytes);
        let outcome = self.write_staged();
        self.buffer = late;
        self.late_bytes = self.buffer.len();
        outcome
    }

    fn write_staged(&mut self) -> Result<Committed, CommitError> {
        let bytes = self.buffer.len() as u64;
        if !self.options.budget.has_room(bytes) {
            return Err(CommitError::Full);
        }
        let segment = self.present();
        let (sequence, start) = (segment.sequence, segment.bytes);
        let mut at = start;
        while at < start + bytes {
            let rest = &self.buffer[usize::try_from(at - start).unwrap_or(usize::MAX)..];
            let written = match self.storage.write_at(at, rest) {
                Ok(0) => Err(io::ErrorKind::WriteZero.into()),
                other => other,
            };
            match written {
                Ok(written) => at += written as u64,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(self.take_back(sequence, start, at, source)),
            }
        }
        let publications = self.staged_publications;
        let segment = self.present_mut();
        segment.bytes += bytes;
        segment.publications += publications;
        self.options.budget.add(bytes);
        Ok(if self.options.is_synced {
            Committed::Unsynced
        } else {
            Committed::Written
        })
    }

    /// Cuts what a failed write has put between `start` and `end`.
    fn take_back(
        &mut self,
        sequence: u64,
        start: u64,
        end: u64,
        written: io::Error,
    ) -> CommitError {
        let file = self.storage.name(sequence);
        if self.options.broken.truncation {
            self.present_mut().bytes = end;
            self.options.budget.add(end - start);
            return CommitError::Write {
                file,
                source: written,
            };
        }
        match self.storage.truncate(start) {
            Ok(()) => CommitError::Write {
                file,
                source: written,
            },
            Err(source) => CommitError::Truncate {
                file,
                written,
                source,
            },
        }
    }

    /// Cuts what a failed write has left, if that could not be done at once.
    pub(crate) fn heal(&mut self) {
        let segment = self.present();
        if self.health == Health::Torn && self.storage.truncate(segment.bytes).is_ok() {
            info!(shard = %self.shard, "The journal is whole again.");
            self.health = Health::Failing;
        }
    }

    /// Takes nothing more: a sync has failed.
    pub(crate) fn break_off(&mut self, failure: &io::Error) {
        if self.health != Health::Unsynced {
            error!(
                shard = %self.shard,
                error = failure as &dyn std::error::Error,
                "Could not sync the journal; it refuses publications until the broker is restarted."
            );
        }
        self.health = Health::Unsynced;
    }

    /// Of all its segments.
    pub(crate) fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.bytes).sum()
    }

    /// What the shard's histories may need, if room is short.
    pub(crate) fn histories_max(&self) -> Option<u64> {
        self.options.budget.histories_max()
    }

    /// What is written and not synced.
    pub(crate) fn take_unsynced(&mut self) -> Unsynced {
        let files = self.storage.take_unsynced();
        Unsynced { files }
    }

    /// Says that nothing is missing, and lets go of the shard.
    pub(crate) fn close(mut self) {
        self.buffer.clear();
        if self.health == Health::Good {
            self.stage_opening();
            self.stage(&Record::Closed);
            // Without it, the shard counts as not closed, which it is.
            let _ = self.commit();
        }
    }

    fn present(&self) -> &Segment {
        self.segments.back().expect("there is always one")
    }

    fn present_mut(&mut self) -> &mut Segment {
        self.segments.back_mut().expect("there is always one")
    }

    fn stage_opening(&mut self) {
        if !self.is_opening_written && self.buffer.is_empty() {
            self.stage(&Record::Opened(self.opened));
        }
    }

    fn stage(&mut self, record: &Record<'_>) {
        let Segment {
            sequence, bytes, ..
        } = *self.present();
        encode(&mut self.buffer, sequence, bytes, record);
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.options.budget.remove(self.bytes());
        self.options.budget.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What is journaled of a publication, beside its channel.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StagedPublication<'a> {
    pub(crate) producer: &'a [u8],
    pub(crate) n: u64,
    /// The producer's last publication that was refused, 0 if none.
    pub(crate) refused: u64,
    pub(crate) data: Option<&'a [u8]>,
}

fn channel_id(key: ChannelKey) -> ChannelId {
    ChannelId::try_from(key.index()).expect("a broker has far less than 2³² channels")
}

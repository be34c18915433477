//! Reads the journals that no broker has, says what is wrong with them, and puts
//! aside what keeps a broker from opening them.

use std::{
    io,
    path::{Path, PathBuf},
};

use muster_daemon::{clock, config::BrokerConfig};
use muster_proto::ShardId;

use super::{
    home::{Clock, HomeError, boot_id, dir_of, shard_dir},
    recovery::{Inspected, RecoveryError, inspect},
    storage::{Files, LockError, Storage as _, epoch_of},
};

/// Why journals cannot be looked at, or not be repaired.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// There is none.
    #[error("there is no journal in {}", .0.display())]
    Nothing(PathBuf),
    /// A broker has it.
    #[error(
        "a broker has shard {shard} in {} open: end the cluster first (orchestrator down)",
        dir.display()
    )]
    Held {
        /// Of the 256.
        shard: usize,
        /// The journal's directory.
        dir: PathBuf,
    },
    /// A file or directory cannot be used.
    #[error("cannot use {}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Boots could not be told apart.
    #[error(transparent)]
    Home(#[from] HomeError),
}

/// What there is of a shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardCheck {
    /// Of the 256.
    pub shard: usize,
    /// Files.
    pub segments: usize,
    /// Bytes that could be read.
    pub bytes: u64,
    /// Channels.
    pub channels: usize,
    /// Publications in the files; a broker retains what is young enough.
    pub publications: u64,
    /// The highest at which a broker has had it open.
    pub epoch: u64,
    /// Bytes of a last record that was not written to its end; a broker cuts them.
    pub torn_bytes: u64,
    /// The machine went down before all was written: a broker begins anew, every
    /// channel with a new generation.
    pub is_anew: bool,
    /// What keeps a broker from opening it.
    pub damage: Option<Damaged>,
}

/// What keeps a broker from opening a shard, and what would let it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damaged {
    /// Which file.
    pub file: PathBuf,
    /// Where in it, in bytes.
    pub offset: u64,
    /// What is wrong there.
    pub reason: String,
    /// Files to put aside, the oldest first.
    pub aside: Vec<PathBuf>,
    /// None is left then, so every channel begins anew, with a new generation.
    /// Otherwise the others say all that is needed beside retained publications.
    pub is_all: bool,
}

/// The journals of a directory, locked for as long as this lives.
#[derive(Debug)]
pub struct Journals {
    clock: Clock,
    shards: Vec<(ShardId, Files)>,
}

/// The directory of the journal with this configuration and runtime directory.
#[must_use]
pub fn journal_dir(config: &BrokerConfig, runtime_dir: &Path) -> PathBuf {
    dir_of(config, runtime_dir)
}

impl Journals {
    /// Locks all shards in `dir`.
    ///
    /// # Errors
    /// When there are none, or a broker has one of them.
    pub fn open(dir: &Path) -> Result<Self, CheckError> {
        let clock = Clock {
            boot: boot_id().map_err(HomeError::BootId)?,
            now: clock::now(),
            wall_ms: clock::unix_millis(),
        };
        let mut shards = Vec::new();
        for shard in ShardId::all() {
            let path = shard_dir(dir, shard);
            match Files::hold(path.clone()) {
                Ok(Some(files)) => shards.push((shard, files)),
                Ok(None) => {}
                Err(LockError::Io(source)) => return Err(CheckError::Io { path, source }),
                Err(LockError::Held | LockError::LaterEpoch { .. }) => {
                    let (shard, dir) = (shard.index(), dir.into());
                    return Err(CheckError::Held { shard, dir });
                }
            }
        }
        match shards.is_empty() {
            true => Err(CheckError::Nothing(dir.into())),
            false => Ok(Self { clock, shards }),
        }
    }

    /// Reads everything; one answer per shard.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn check(&self) -> Result<Vec<ShardCheck>, CheckError> {
        let shards = self.shards.iter();
        shards
            .map(|(shard, files)| self.check_one(*shard, files))
            .collect()
    }

    /// Puts aside what [`Self::check`] names; returns the new names.
    ///
    /// # Errors
    /// When a file cannot be renamed; what was done before stays done, and does
    /// no harm.
    pub fn repair(&self) -> Result<Vec<PathBuf>, CheckError> {
        let mut renamed = Vec::new();
        for (shard, files) in &self.shards {
            let sequences = sequences(files)?;
            if self.inspect(*shard, files, &sequences)?.failure.is_none() {
                continue;
            }
            let whole = self.whole_from(*shard, files, &sequences)?;
            // The oldest first: a shard of which the newest one is damaged stays
            // closed until that is gone, too.
            for sequence in &sequences[..whole] {
                let path = files.name(*sequence);
                let aside = files.set_aside(*sequence);
                renamed.push(aside.map_err(|source| CheckError::Io { path, source })?);
            }
        }
        Ok(renamed)
    }

    fn check_one(&self, shard: ShardId, files: &Files) -> Result<ShardCheck, CheckError> {
        let sequences = sequences(files)?;
        let found = self.inspect(shard, files, &sequences)?;
        let path = files.dir().to_owned();
        let epoch = epoch_of(&path).map_err(|source| CheckError::Io { path, source })?;
        let damage = match found.failure {
            Some(RecoveryError::Damaged { file, at, damage }) => {
                let whole = self.whole_from(shard, files, &sequences)?;
                let aside = sequences[..whole].iter().map(|it| files.name(*it));
                Some(Damaged {
                    file,
                    offset: at,
                    reason: damage.to_string(),
                    aside: aside.collect(),
                    is_all: whole == sequences.len(),
                })
            }
            Some(_) | None => None,
        };
        Ok(ShardCheck {
            shard: shard.index(),
            segments: sequences.len(),
            bytes: found.recovery.bytes,
            channels: found.channels,
            publications: found.recovery.publications,
            epoch: found.epoch.max(epoch),
            torn_bytes: found.recovery.torn_bytes,
            is_anew: found.recovery.is_anew,
            damage,
        })
    }

    /// The first of the segments from which on all are whole; their count if the
    /// newest is not.
    ///
    /// A segment begins with all that earlier ones are needed for, but retained
    /// publications (delivery.md B3). So without the earlier ones no position
    /// means anything else than before, and no key is forgotten.
    fn whole_from(
        &self,
        shard: ShardId,
        files: &Files,
        sequences: &[u64],
    ) -> Result<usize, CheckError> {
        for first in 0..sequences.len() {
            let found = self.inspect(shard, files, &sequences[first..])?;
            if found.failure.is_none() {
                return Ok(first);
            }
        }
        Ok(sequences.len())
    }

    fn inspect(
        &self,
        shard: ShardId,
        files: &Files,
        sequences: &[u64],
    ) -> Result<Inspected, CheckError> {
        let found = inspect(files, shard, sequences, self.clock);
        match found.failure {
            Some(RecoveryError::Read { file: path, source }) => {
                Err(CheckError::Io { path, source })
            }
            Some(_) | None => Ok(found),
        }
    }
}

fn sequences(files: &Files) -> Result<Vec<u64>, CheckError> {
    files.segments().map_err(|source| {
        let path = files.dir().to_owned();
        CheckError::Io { path, source }
    })
}

//! The directory in which every shard has its journal.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use muster_daemon::{
    clock,
    config::{BrokerConfig, Fsync},
};
use muster_proto::ShardId;
use muster_wire::Millis;
use rustix::{fs::statvfs, process::geteuid};
use tracing::warn;
use xxhash_rust::xxh3::xxh3_64;

use super::{
    BrokenRules, Budget, Options, Recovered, RecoveryError, Sizes,
    recovery::open,
    storage::{Files, LockError, epoch_of},
};
use crate::limits::Limits;

/// Memory with names, which outlives processes and not the machine.
const SHARED_MEMORY: &str = "/dev/shm";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
const DIR_MODE: u32 = 0o700;

/// What moments are measured with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Clock {
    /// Tells this boot of the machine from others: their monotonic clocks have
    /// nothing to do with each other.
    pub(crate) boot: u128,
    pub(crate) now: Millis,
    /// Since 1970, in milliseconds.
    pub(crate) wall_ms: u64,
}

/// Why there is no place for journals.
#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    /// It could not be created or looked at.
    #[error("cannot use {} for the journal: set broker.journal_dir", path.display())]
    Io {
        /// The directory.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Another user could read or change it.
    #[error(
        "{} cannot hold the journal: it must be a directory of user {user} alone (chmod 700); or \
         set broker.journal_dir",
        path.display()
    )]
    NotOurs {
        /// The directory.
        path: PathBuf,
        /// Who this process is.
        user: u32,
    },
    /// Boots could not be told apart.
    #[error("cannot read {BOOT_ID}, so a crash of the machine would go unnoticed")]
    BootId(#[source] io::Error),
}

/// Why a shard was not opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenShardError {
    #[error("cannot lock {}", dir.display())]
    Lock { dir: PathBuf, source: LockError },
    #[error(transparent)]
    Recovery(#[from] RecoveryError),
}

/// The journals of all shards.
#[derive(Debug)]
pub(crate) struct Home {
    dir: PathBuf,
    boot: u128,
    is_ever_synced: bool,
    options: Options,
}

impl Home {
    /// The directory of the configuration, created if need be.
    pub(crate) fn open(config: &BrokerConfig, runtime_dir: &Path) -> Result<Self, HomeError> {
        let dir = dir_of(config, runtime_dir);
        let parent = dir.parent().unwrap_or(&dir);
        match config.journal_dir {
            Some(_) => fs::create_dir_all(parent).map_err(|source| HomeError::Io {
                path: parent.into(),
                source,
            })?,
            None => create(parent)?,
        }
        create(&dir)?;
        let boot = boot_id().map_err(HomeError::BootId)?;
        let bytes_max = config.journal_bytes_max.0;
        warn_if_small(&dir, bytes_max);
        Ok(Self {
            dir,
            boot,
            is_ever_synced: config.fsync != Fsync::Never,
            options: Options {
                is_synced: config.fsync == Fsync::Always,
                budget: Arc::new(Budget::new(bytes_max)),
                sizes: Sizes::new(bytes_max),
                broken: BrokenRules::default(),
            },
        })
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Opens a shard at this epoch. Reads what is in its journal, so not for a
    /// thread that others wait for.
    pub(crate) fn open_shard(
        &self,
        shard: ShardId,
        epoch: u64,
        limits: &Limits,
    ) -> Result<Recovered, OpenShardError> {
        let dir = self.shard_dir(shard);
        let files = match Files::lock(dir.clone(), epoch, self.is_ever_synced) {
            Ok(files) => Box::new(files),
            Err(source) => return Err(OpenShardError::Lock { dir, source }),
        };
        let options = self.options.clone();
        Ok(open(files, shard, epoch, self.clock(), limits, options)?)
    }

    /// The highest epoch at which any shard was opened.
    pub(crate) fn highest_epoch(&self) -> Result<u64, HomeError> {
        let mut highest = 0;
        for shard in ShardId::all() {
            let path = self.shard_dir(shard);
            let epoch = epoch_of(&path).map_err(|source| HomeError::Io { path, source })?;
            highest = highest.max(epoch);
        }
        Ok(highest)
    }

    fn clock(&self) -> Clock {
        Clock {
            boot: self.boot,
            now: clock::now(),
            wall_ms: clock::unix_millis(),
        }
    }

    fn shard_dir(&self, shard: ShardId) -> PathBuf {
        shard_dir(&self.dir, shard)
    }
}

/// Where a shard's journal is.
pub(super) fn shard_dir(dir: &Path, shard: ShardId) -> PathBuf {
    dir.join(format!("shard-{:03}", shard.index()))
}

/// Where the journal is; when nobody says, in this user's directory in shared
/// memory, and in it the cluster's, which its runtime directory names.
pub(super) fn dir_of(config: &BrokerConfig, runtime_dir: &Path) -> PathBuf {
    if let Some(dir) = &config.journal_dir {
        return dir.clone();
    }
    let ours = Path::new(SHARED_MEMORY).join(format!("muster-{}", geteuid().as_raw()));
    let absolute = std::path::absolute(runtime_dir);
    let runtime_dir = absolute.as_deref().unwrap_or(runtime_dir);
    let name = runtime_dir.file_name().unwrap_or_default();
    let whole = xxh3_64(runtime_dir.as_os_str().as_encoded_bytes());
    let cluster = format!("{}-{whole:016x}", name.display());
    ours.join(cluster)
}

fn create(path: &Path) -> Result<(), HomeError> {
    let io = |source| HomeError::Io {
        path: path.into(),
        source,
    };
    match DirBuilder::new().mode(DIR_MODE).create(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(io(error)),
    }
    let metadata = fs::metadata(path).map_err(io)?;
    let user = geteuid().as_raw();
    if !metadata.is_dir() || metadata.uid() != user || metadata.mode() & 0o077 != 0 {
        let path = path.into();
        return Err(HomeError::NotOurs { path, user });
    }
    Ok(())
}

fn warn_if_small(dir: &Path, bytes_max: u64) {
    let Ok(stat) = statvfs(dir) else {
        return;
    };
    let bytes = stat.f_blocks.saturating_mul(stat.f_frsize);
    if bytes < bytes_max {
        warn!(
            dir = %dir.display(),
            bytes,
            bytes_max,
            "The journal's file system is smaller than broker.journal_bytes_max: lower that, or set \
             broker.journal_dir (in a container: or give it more shared memory)."
        );
    }
}

pub(super) fn boot_id() -> io::Result<u128> {
    let text = fs::read_to_string(BOOT_ID)?;
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    u128::from_str_radix(&digits, 16).map_err(io::Error::other)
}

//! Where a shard's segments are: the seam between the journal and its files, so
//! that every write can be made to fail.

use std::{
    fmt::Debug,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read as _},
    os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};

const DIR_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;
/// Held by the shard's owner and never unlinked (delivery.md C1). Its content is
/// the highest epoch at which the shard was opened.
const LOCK_NAME: &str = "lock";
const SEGMENT_SUFFIX: &str = ".segment";
/// Of a segment that is being written; it becomes one by its name.
const UNFINISHED_SUFFIX: &str = ".new";

/// Reads one segment, whole.
pub(crate) trait ReadSegment: Debug + Send + Sync {
    fn read(&self) -> io::Result<Vec<u8>>;
}

/// A segment's file.
#[derive(Debug)]
struct SegmentFile(PathBuf);

impl ReadSegment for SegmentFile {
    fn read(&self) -> io::Result<Vec<u8>> {
        fs::read(&self.0)
    }
}

/// The segments of one shard, held by this process alone.
pub(crate) trait Storage: Debug + Send + Sync {
    /// The segments there are, oldest first.
    fn segments(&self) -> io::Result<Vec<u64>>;

    /// Reads a segment into `content`, whose content goes.
    fn read(&self, sequence: u64, content: &mut Vec<u8>) -> io::Result<()>;

    /// What reads a segment later, when this may be gone.
    fn reader(&self, sequence: u64) -> Box<dyn ReadSegment>;

    /// Makes an existing segment the one that is written to.
    fn resume(&mut self, sequence: u64) -> io::Result<()>;

    /// Makes a segment with this content, whole or not at all, and makes it the
    /// one that is written to.
    fn create(&mut self, sequence: u64, content: &[u8]) -> io::Result<()>;

    /// Writes to the present segment; may write less than it was given.
    fn write_at(&mut self, at: u64, bytes: &[u8]) -> io::Result<usize>;

    /// Cuts the present segment.
    fn truncate(&mut self, len: u64) -> io::Result<()>;

    fn remove(&mut self, sequence: u64) -> io::Result<()>;

    /// What has to be synced so that all that was written is on the disk; the
    /// next call does not name it again.
    fn take_unsynced(&mut self) -> Vec<Arc<File>>;

    /// Names a segment to people.
    fn name(&self, sequence: u64) -> PathBuf;
}

/// Why a shard's directory is not this process's.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LockError {
    /// Another process, or an earlier use in this one, has not let go yet.
    #[error("another broker has it")]
    Held,
    #[error("it has been open at epoch {found}")]
    LaterEpoch { found: u64 },
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A shard's directory, locked.
#[derive(Debug)]
pub(crate) struct Files {
    dir: PathBuf,
    /// The kernel's lock lives as long as this open file.
    _lock: File,
    current: Option<Arc<File>>,
    /// Somebody asks for what is not synced.
    is_synced: bool,
    /// Files with something that is not synced, each once.
    unsynced: Vec<Arc<File>>,
}

impl Files {
    /// Locks a shard's directory for this epoch, creating it if need be.
    /// `is_synced`: what is written will be asked for to be synced.
    pub(crate) fn lock(dir: PathBuf, epoch: u64, is_synced: bool) -> Result<Self, LockError> {
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(DIR_MODE).create(&dir)?;
        let lock = open_lock(&dir)?;
        take_lock(&lock)?;
        let found = read_epoch(&lock)?;
        if found > epoch {
            return Err(LockError::LaterEpoch { found });
        }
        // As many bytes as before, so a full disk is no hindrance.
        lock.write_all_at(format!("{epoch:020}\n").as_bytes(), 0)?;
        let mut files = Self {
            dir,
            _lock: lock,
            current: None,
            is_synced,
            unsynced: Vec::new(),
        };
        files.remove_unfinished()?;
        Ok(files)
    }

    /// Locks a shard's directory to look at it; nothing in it changes. `None` if
    /// there is no such directory.
    pub(crate) fn hold(dir: PathBuf) -> Result<Option<Self>, LockError> {
        if !dir.is_dir() {
            return Ok(None);
        }
        let lock = open_lock(&dir)?;
        take_lock(&lock)?;
        Ok(Some(Self {
            dir,
            _lock: lock,
            current: None,
            is_synced: false,
            unsynced: Vec::new(),
        }))
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Gives a segment another name, under which nobody looks for it, and
    /// returns that.
    pub(crate) fn set_aside(&self, sequence: u64) -> io::Result<PathBuf> {
        let path = self.name(sequence);
        let aside = (1..)
            .map(|number| path.with_extension(format!("aside-{number}")))
            .find(|aside| !aside.exists())
            .expect("there are fewer files than numbers");
        fs::rename(&path, &aside)?;
        File::open(&self.dir)?.sync_all()?;
        Ok(aside)
    }

    fn remove_unfinished(&mut self) -> io::Result<()> {
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            let name = entry.file_name();
            if name
                .to_str()
                .is_some_and(|name| name.ends_with(UNFINISHED_SUFFIX))
            {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    fn note_unsynced(&mut self, file: &Arc<File>) {
        let is_known = self.unsynced.iter().any(|known| Arc::ptr_eq(known, file));
        if self.is_synced && !is_known {
            self.unsynced.push(Arc::clone(file));
        }
    }

    fn current(&self) -> io::Result<Arc<File>> {
        let current = self.current.as_ref().map(Arc::clone);
        current.ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Storage for Files {
    fn segments(&self) -> io::Result<Vec<u64>> {
        let mut sequences = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let name = entry?.file_name();
            let number = name
                .to_str()
                .and_then(|name| name.strip_suffix(SEGMENT_SUFFIX));
            sequences.extend(number.and_then(|number| number.parse::<u64>().ok()));
        }
        sequences.sort_unstable();
        Ok(sequences)
    }

    fn read(&self, sequence: u64, content: &mut Vec<u8>) -> io::Result<()> {
        content.clear();
        let mut file = File::open(self.name(sequence))?;
        content.reserve(usize::try_from(file.metadata()?.len()).unwrap_or(0));
        file.read_to_end(content).map(|_| ())
    }

    fn reader(&self, sequence: u64) -> Box<dyn ReadSegment> {
        Box::new(SegmentFile(self.name(sequence)))
    }

    fn resume(&mut self, sequence: u64) -> io::Result<()> {
        let file = OpenOptions::new().write(true).open(self.name(sequence))?;
        self.current = Some(Arc::new(file));
        Ok(())
    }

    fn create(&mut self, sequence: u64, content: &[u8]) -> io::Result<()> {
        let path = self.name(sequence);
        let unfinished = path.with_extension(&UNFINISHED_SUFFIX[1..]);
        let create = || {
            let file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(FILE_MODE)
                .open(&unfinished)?;
            file.write_all_at(content, 0)?;
            fs::rename(&unfinished, &path)?;
            Ok((file, File::open(&self.dir)?))
        };
        let (file, dir) = create().inspect_err(|_: &io::Error| {
            // Its room is needed; what cannot be removed is at the next start.
            let _ = fs::remove_file(&unfinished);
        })?;
        let file = Arc::new(file);
        self.note_unsynced(&file);
        self.note_unsynced(&Arc::new(dir));
        self.current = Some(file);
        Ok(())
    }

    fn write_at(&mut self, at: u64, bytes: &[u8]) -> io::Result<usize> {
        let file = self.current()?;
        self.note_unsynced(&file);
        file.write_at(bytes, at)
    }

    fn truncate(&mut self, len: u64) -> io::Result<()> {
        self.current()?.set_len(len)
    }

    fn remove(&mut self, sequence: u64) -> io::Result<()> {
        fs::remove_file(self.name(sequence))
    }

    fn take_unsynced(&mut self) -> Vec<Arc<File>> {
        std::mem::take(&mut self.unsynced)
    }

    fn name(&self, sequence: u64) -> PathBuf {
        self.dir.join(format!("{sequence:010}{SEGMENT_SUFFIX}"))
    }
}

fn open_lock(dir: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(FILE_MODE)
        .open(dir.join(LOCK_NAME))
}

fn take_lock(lock: &File) -> Result<(), LockError> {
    match flock(lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(()),
        Err(Errno::WOULDBLOCK) => Err(LockError::Held),
        Err(errno) => Err(io::Error::from(errno).into()),
    }
}

/// The highest epoch at which the shard in `dir` was opened; 0 if never.
pub(crate) fn epoch_of(dir: &Path) -> io::Result<u64> {
    match File::open(dir.join(LOCK_NAME)) {
        Ok(lock) => read_epoch(&lock),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error),
    }
}

fn read_epoch(lock: &File) -> io::Result<u64> {
    let mut text = [0; 20];
    let len = lock.read_at(&mut text, 0)?;
    let text = str::from_utf8(&text[..len]).unwrap_or_default();
    // Empty: it was created just now. Anything else that is no number was not
    // written by us; the segments know the epoch, too.
    Ok(text.trim().parse().unwrap_or(0))
}

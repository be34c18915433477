//! The runtime directory: sockets, lock and effective configuration of one
//! running cluster. Whoever can write there controls the cluster, so it must
//! be its owner's alone.

use std::{
    env,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read as _, Seek as _, Write as _},
    os::{
        fd::OwnedFd,
        unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
    process::geteuid,
};

/// A Unix socket's path takes 108 bytes, a closing zero among them.
const SOCKET_PATH_BYTES_MAX: usize = 107;
/// The longest name of a socket that is ever put into the directory:
/// `broker-SLOT-INCARNATION.sock`, and the same for a worker.
const SOCKET_NAME_BYTES_MAX: usize = 32;
/// The file in a runtime directory that nodes are started with.
pub const CONFIG_NAME: &str = "config.toml";
const DIR_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;

/// A cluster's runtime directory; it exists and belongs to this user alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeDir {
    path: PathBuf,
}

/// Held by the one orchestrator of a runtime directory, until it is dropped or
/// the process is dead.
#[derive(Debug)]
pub struct RuntimeLock {
    // The kernel's lock lives as long as the open file.
    file: File,
}

impl RuntimeLock {
    /// The same claim in a descriptor of its own: it stands until both are gone.
    ///
    /// # Errors
    ///
    /// When there is no descriptor left.
    pub fn share(&self) -> io::Result<OwnedFd> {
        Ok(self.file.try_clone()?.into())
    }
}

/// Why a runtime directory cannot be used. The messages say what to do.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeDirError {
    #[error("cannot create the runtime directory {}: choose another one with --runtime-dir", path.display())]
    Create { path: PathBuf, source: io::Error },
    #[error("cannot use the runtime directory {}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("no runtime directory at {}", path.display())]
    Missing { path: PathBuf },
    #[error(
        "the runtime directory {} is a symbolic link: name the directory itself with --runtime-dir",
        path.display()
    )]
    Symlink { path: PathBuf },
    #[error(
        "the runtime directory {} is not a directory: remove it or choose another one with \
         --runtime-dir",
        path.display()
    )]
    NotADirectory { path: PathBuf },
    #[error(
        "the runtime directory {} belongs to user {owner}, not to user {user}: choose another one \
         with --runtime-dir",
        path.display()
    )]
    Foreign {
        path: PathBuf,
        owner: u32,
        user: u32,
    },
    #[error(
        "the runtime directory {} has mode {mode:04o}, so others could control the cluster: run \
         `chmod 700 {}`",
        path.display(),
        path.display()
    )]
    Mode { path: PathBuf, mode: u32 },
    #[error(
        "the runtime directory {} is too long for the sockets in it: at most {} bytes; choose \
         another one with --runtime-dir",
        path.display(),
        SOCKET_PATH_BYTES_MAX - SOCKET_NAME_BYTES_MAX - 1
    )]
    TooLong { path: PathBuf },
    #[error(
        "a cluster already runs at {} (orchestrator pid {pid}): end it with `orchestrator down` \
         or choose another --runtime-dir",
        path.display()
    )]
    Live { path: PathBuf, pid: String },
}

/// Where the runtime directory is when nobody names one:
/// `$XDG_RUNTIME_DIR/muster`, else `muster-UID` in the temporary directory.
#[must_use]
pub fn default_path() -> PathBuf {
    match env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from) {
        Some(path) if path.is_absolute() => path.join("muster"),
        Some(_) | None => env::temp_dir().join(format!("muster-{}", geteuid().as_raw())),
    }
}

impl RuntimeDir {
    /// Opens the directory, creating it (and no parent of it) if need be.
    ///
    /// # Errors
    ///
    /// When it cannot be created, is not a directory of this user alone, or its
    /// path is too long for the sockets in it.
    pub fn create(path: &Path) -> Result<Self, RuntimeDirError> {
        let path = absolute(path)?;
        match DirBuilder::new().mode(DIR_MODE).create(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(source) => return Err(RuntimeDirError::Create { path, source }),
        }
        Self::checked(path)
    }

    /// Opens a directory that must exist.
    ///
    /// # Errors
    ///
    /// As for [`RuntimeDir::create`].
    pub fn open(path: &Path) -> Result<Self, RuntimeDirError> {
        Self::checked(absolute(path)?)
    }

    fn checked(path: PathBuf) -> Result<Self, RuntimeDirError> {
        let metadata = match fs::symlink_metadata(&path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(RuntimeDirError::Missing { path });
            }
            Err(source) => return Err(RuntimeDirError::Io { path, source }),
        };
        let user = geteuid().as_raw();
        let mode = metadata.mode() & 0o7777;
        if metadata.is_symlink() {
            Err(RuntimeDirError::Symlink { path })
        } else if !metadata.is_dir() {
            Err(RuntimeDirError::NotADirectory { path })
        } else if metadata.uid() != user {
            let owner = metadata.uid();
            Err(RuntimeDirError::Foreign { path, owner, user })
        } else if mode & 0o077 != 0 {
            Err(RuntimeDirError::Mode { path, mode })
        } else if path.as_os_str().len() + 1 + SOCKET_NAME_BYTES_MAX > SOCKET_PATH_BYTES_MAX {
            Err(RuntimeDirError::TooLong { path })
        } else {
            Ok(Self { path })
        }
    }

    /// The directory, absolute.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The socket of the orchestrator's control and operator services.
    #[must_use]
    pub fn orchestrator_socket(&self) -> PathBuf {
        orchestrator_socket(&self.path)
    }

    /// The effective configuration, which nodes are started with.
    #[must_use]
    pub fn config_file(&self) -> PathBuf {
        self.path.join(CONFIG_NAME)
    }

    /// The memory that workers share to balance what they accept.
    #[must_use]
    pub fn gate_file(&self) -> PathBuf {
        gate_file(&self.path)
    }

    /// What the next orchestrator must know of this one's nodes.
    #[must_use]
    pub fn state_file(&self) -> PathBuf {
        self.path.join("state.json")
    }

    /// Claims the directory for this process.
    ///
    /// # Errors
    ///
    /// When another process has it, which is then named, or the lock file
    /// cannot be written.
    pub fn lock(&self) -> Result<RuntimeLock, RuntimeDirError> {
        let fail = |source| RuntimeDirError::Io {
            path: self.path.clone(),
            source,
        };
        // Never unlinked: two processes could otherwise lock two files of one name.
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(FILE_MODE)
            .open(self.path.join("lock"))
            .map_err(fail)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                let mut pid = String::new();
                let read = file.read_to_string(&mut pid);
                let known = read.is_ok() && !pid.trim().is_empty();
                return Err(RuntimeDirError::Live {
                    path: self.path.clone(),
                    pid: if known { pid.trim() } else { "unknown" }.into(),
                });
            }
            Err(errno) => return Err(fail(errno.into())),
        }
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .map_err(fail)?;
        Ok(RuntimeLock { file })
    }

    /// Goes on with the claim that an earlier program of this process had.
    ///
    /// # Errors
    ///
    /// When the descriptor is not that of the lock file, or holds no lock.
    pub fn keep_lock(&self, lock: OwnedFd) -> Result<RuntimeLock, RuntimeDirError> {
        let keep = || -> io::Result<RuntimeLock> {
            let file = File::from(lock);
            let (held, named) = (file.metadata()?, fs::metadata(self.path.join("lock"))?);
            if (held.dev(), held.ino()) != (named.dev(), named.ino()) {
                return Err(io::Error::other(
                    "the earlier program's lock is another one",
                ));
            }
            // Whoever holds it already gets it again.
            flock(&file, FlockOperation::NonBlockingLockExclusive)?;
            Ok(RuntimeLock { file })
        };
        keep().map_err(|source| RuntimeDirError::Io {
            path: self.path.clone(),
            source,
        })
    }

    /// Blocks until no process holds the directory's lock.
    ///
    /// # Errors
    ///
    /// When the lock file cannot be opened or waited for.
    pub fn wait_until_free(&self) -> Result<(), RuntimeDirError> {
        let wait = || -> io::Result<()> {
            let file = match File::open(self.path.join("lock")) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                opened => opened?,
            };
            Ok(flock(&file, FlockOperation::LockShared)?)
        };
        wait().map_err(|source| RuntimeDirError::Io {
            path: self.path.clone(),
            source,
        })
    }

    /// Removes sockets that a dead cluster left behind. Only for the holder of
    /// the lock, once no node is alive.
    ///
    /// # Errors
    ///
    /// When the directory cannot be read or a socket cannot be removed.
    pub fn remove_sockets(&self, lock: &RuntimeLock) -> Result<(), RuntimeDirError> {
        self.remove_sockets_unless(lock, |_| false)
    }

    /// Removes sockets that a dead orchestrator left behind, without those that
    /// are `kept` by name because they belong to living nodes. Only for the
    /// holder of the lock.
    ///
    /// # Errors
    ///
    /// As [`RuntimeDir::remove_sockets`].
    pub fn remove_sockets_unless(
        &self,
        _: &RuntimeLock,
        kept: impl Fn(&str) -> bool,
    ) -> Result<(), RuntimeDirError> {
        let remove = || -> io::Result<()> {
            for entry in fs::read_dir(&self.path)? {
                let entry = entry?;
                let is_kept = entry.file_name().to_str().is_some_and(&kept);
                if entry.file_type()?.is_socket() && !is_kept {
                    fs::remove_file(entry.path())?;
                }
            }
            Ok(())
        };
        remove().map_err(|source| RuntimeDirError::Io {
            path: self.path.clone(),
            source,
        })
    }

    /// Writes a file that only this user can read, replacing one of that name.
    /// Readers see the old or the new content, nothing in between.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn write(&self, path: &Path, content: &[u8]) -> Result<(), RuntimeDirError> {
        let unfinished = path.with_extension("new");
        let write = || -> io::Result<()> {
            match fs::remove_file(&unfinished) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            }
            let mut file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(FILE_MODE)
                .open(&unfinished)?;
            file.write_all(content)?;
            fs::rename(&unfinished, path)
        };
        write().map_err(|source| RuntimeDirError::Io {
            path: path.into(),
            source,
        })
    }
}

/// The orchestrator's socket in a runtime directory, for nodes.
#[must_use]
pub fn orchestrator_socket(runtime_dir: &Path) -> PathBuf {
    runtime_dir.join("orchestrator.sock")
}

/// A worker's socket in a runtime directory, where an orchestrator that is
/// started anew asks for the listening socket.
#[must_use]
pub fn worker_socket(runtime_dir: &Path, slot: u32, incarnation: u64) -> PathBuf {
    runtime_dir.join(format!("worker-{slot}-{incarnation}.sock"))
}

/// The accept gate's memory in a runtime directory, for nodes.
#[must_use]
pub fn gate_file(runtime_dir: &Path) -> PathBuf {
    runtime_dir.join("gate")
}

fn absolute(path: &Path) -> Result<PathBuf, RuntimeDirError> {
    std::path::absolute(path).map_err(|source| RuntimeDirError::Io {
        path: path.into(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::{
        fs::{PermissionsExt as _, symlink},
        net::UnixListener,
    };

    use super::*;

    fn new() -> (tempfile::TempDir, RuntimeDir) {
        let parent = tempfile::tempdir().unwrap();
        let dir = RuntimeDir::create(&parent.path().join("run")).unwrap();
        (parent, dir)
    }

    #[test]
    fn a_new_directory_is_its_owners_alone_and_opens_again() {
        let (_parent, dir) = new();
        assert_eq!(fs::metadata(dir.path()).unwrap().mode() & 0o777, 0o700);
        assert_eq!(RuntimeDir::create(dir.path()).unwrap(), dir);
        assert_eq!(RuntimeDir::open(dir.path()).unwrap(), dir);
    }

    #[test]
    fn a_directory_that_others_can_enter_is_refused_with_what_to_do() {
        let (_parent, dir) = new();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let error = RuntimeDir::create(dir.path()).unwrap_err();
        assert!(matches!(error, RuntimeDirError::Mode { mode: 0o755, .. }));
        assert!(error.to_string().contains("chmod 700"), "{error}");
    }

    #[test]
    fn a_symbolic_link_a_file_and_a_missing_directory_are_refused() {
        let (parent, dir) = new();
        let link = parent.path().join("link");
        symlink(dir.path(), &link).unwrap();
        let refused = RuntimeDir::create(&link);
        assert!(matches!(refused, Err(RuntimeDirError::Symlink { .. })));
        let file = parent.path().join("file");
        fs::write(&file, "").unwrap();
        let refused = RuntimeDir::create(&file);
        assert!(matches!(
            refused,
            Err(RuntimeDirError::NotADirectory { .. })
        ));
        let refused = RuntimeDir::open(&parent.path().join("missing"));
        assert!(matches!(refused, Err(RuntimeDirError::Missing { .. })));
        let refused = RuntimeDir::create(&parent.path().join("missing/run"));
        assert!(matches!(refused, Err(RuntimeDirError::Create { .. })));
    }

    #[test]
    fn a_path_too_long_for_its_sockets_is_refused() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("x".repeat(SOCKET_PATH_BYTES_MAX));
        let refused = RuntimeDir::create(&path);
        assert!(matches!(refused, Err(RuntimeDirError::TooLong { .. })));
    }

    #[test]
    fn the_longest_directory_has_room_for_every_socket() {
        for name in [
            orchestrator_socket(Path::new("")),
            // Incarnations start at microseconds since 1970, so this is the year 2286.
            PathBuf::from("broker-256-9999999999999999.sock"),
            worker_socket(Path::new(""), 256, 9_999_999_999_999_999),
        ] {
            assert!(name.as_os_str().len() <= SOCKET_NAME_BYTES_MAX, "{name:?}");
        }
    }

    #[test]
    fn a_second_claim_is_refused_with_the_pid_of_the_first() {
        let (_parent, dir) = new();
        let lock = dir.lock().unwrap();
        let error = dir.lock().unwrap_err().to_string();
        assert!(error.contains(&std::process::id().to_string()), "{error}");
        drop(lock);
        dir.lock().unwrap();
    }

    #[test]
    fn a_claim_that_is_passed_on_is_never_free_in_between() {
        let (_parent, dir) = new();
        let lock = dir.lock().unwrap();
        let shared = lock.share().unwrap();
        drop(lock);
        let refused = dir.lock();
        assert!(matches!(refused, Err(RuntimeDirError::Live { .. })));
        let lock = dir.keep_lock(shared).unwrap();
        let refused = dir.lock();
        assert!(matches!(refused, Err(RuntimeDirError::Live { .. })));
        drop(lock);
        dir.lock().unwrap();
        let other = File::open("/dev/null").unwrap();
        assert!(dir.keep_lock(other.into()).is_err());
    }

    #[test]
    fn stale_sockets_go_and_other_files_stay() {
        let (_parent, dir) = new();
        let lock = dir.lock().unwrap();
        drop(UnixListener::bind(dir.orchestrator_socket()).unwrap());
        let living = worker_socket(dir.path(), 1, 7);
        drop(UnixListener::bind(&living).unwrap());
        dir.write(&dir.config_file(), b"a").unwrap();
        let kept = |name: &str| name == "worker-1-7.sock";
        dir.remove_sockets_unless(&lock, kept).unwrap();
        assert!(living.exists() && !dir.orchestrator_socket().exists());
        dir.remove_sockets(&lock).unwrap();
        assert!(!living.exists());
        assert!(!dir.orchestrator_socket().exists());
        assert!(dir.config_file().exists());
    }

    #[test]
    fn a_written_file_is_its_owners_alone_and_is_replaced() {
        let (_parent, dir) = new();
        let path = dir.config_file();
        dir.write(&path, b"one").unwrap();
        dir.write(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    }
}

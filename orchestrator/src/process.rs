//! Processes that are nobody's children here: found by what the kernel says of
//! them, held by a descriptor so that a pid that is used again does no harm.

use std::{
    ffi::OsStr,
    fs, io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::{ffi::OsStrExt as _, fs::MetadataExt as _, process::ExitStatusExt as _},
    },
    path::Path,
    process::ExitStatus,
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{
        Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, geteuid, pidfd_open, pidfd_send_signal,
        waitid,
    },
};
use tokio::io::{Interest, unix::AsyncFd};
use tracing::debug;

use crate::node::{NodeId, Role};

/// A node of this user that runs in some runtime directory.
#[derive(Debug)]
pub(crate) struct NodeProcess {
    pub(crate) id: NodeId,
    pub(crate) incarnation: u64,
    pub(crate) process: Process,
}

/// A process, and nothing else that gets its pid after its end.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    /// When it was started, in clock ticks since the machine was.
    pub(crate) start_ticks: u64,
    pidfd: OwnedFd,
}

/// What a node's command line says.
#[derive(Debug, PartialEq, Eq)]
struct NodeCommand<'a> {
    id: NodeId,
    incarnation: u64,
    /// Absolute.
    dir: &'a Path,
}

/// Every node of this user that was started for `runtime_dir`.
///
/// # Errors
///
/// When the system's processes cannot be read.
pub(crate) fn nodes_of(runtime_dir: &Path) -> io::Result<Vec<NodeProcess>> {
    let mut found = Vec::new();
    let own_dir = fs::metadata(runtime_dir)?;
    for entry in fs::read_dir("/proc")? {
        let Ok(entry) = entry else { continue };
        let pid = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        // A process that ended meanwhile, or another user's, is none of ours.
        if let Some(pid) = pid
            && let Ok(process) = Process::open(pid)
            && let Ok(metadata) = entry.metadata()
            && metadata.uid() == geteuid().as_raw()
            && let Ok(command_line) = fs::read(entry.path().join("cmdline"))
            && let Some(NodeCommand {
                id,
                incarnation,
                dir,
            }) = parse(&command_line)
            && is_same_dir(&entry.path(), dir, &own_dir)
        {
            found.push(NodeProcess {
                id,
                incarnation,
                process,
            });
        }
    }
    Ok(found)
}

/// When a process of this pid was started, in clock ticks since the machine was.
pub(crate) fn start_ticks(pid: u32) -> io::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    parse_start_ticks(&stat).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

impl Process {
    /// The process that has this pid now.
    fn open(pid: i32) -> io::Result<Self> {
        Self::of(Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?)
    }

    /// The same.
    pub(crate) fn of(raw: Pid) -> io::Result<Self> {
        // Before anything about it is read, so all that is read is about it: a
        // pid is not used again while a descriptor holds it.
        let pidfd = pidfd_open(raw, PidfdFlags::empty())?;
        let pid = raw.as_raw_nonzero().get().unsigned_abs();
        Ok(Self {
            pid,
            start_ticks: start_ticks(pid)?,
            pidfd,
        })
    }

    /// Sends a signal; one that has ended already is as good.
    pub(crate) fn signal(&self, signal: Signal) {
        if let Err(error) = pidfd_send_signal(&self.pidfd, signal) {
            debug!(pid = self.pid, %error, "A process was gone already.");
        }
    }

    /// Waits until it has ended; false when it has not in time.
    pub(crate) fn wait_blocking(&self, timeout: Duration) -> bool {
        let timeout = Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(timeout.subsec_nanos()),
        };
        let mut polled = [PollFd::new(&self.pidfd, PollFlags::IN)];
        matches!(poll(&mut polled, Some(&timeout)), Ok(ready) if ready > 0)
    }

    /// Waits until it has ended; says how if that can be known. Cancel-safe.
    ///
    /// # Errors
    ///
    /// When it cannot be watched.
    pub(crate) async fn wait(&self) -> io::Result<Option<ExitStatus>> {
        #[expect(
            deprecated,
            reason = "its successor is unsafe for descriptors that may close early; this one is owned"
        )]
        let pidfd = AsyncFd::with_interest(self.pidfd.try_clone()?, Interest::READABLE)?;
        let _ended = pidfd.readable().await?;
        Ok(self.reap())
    }

    /// How it ended, if it is this process's child after all: an earlier program
    /// of this process may have started it.
    fn reap(&self) -> Option<ExitStatus> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        let ended = waitid(WaitId::PidFd(self.pidfd.as_fd()), options).ok()??;
        let signal = ended.terminating_signal();
        // As wait(2) says it.
        signal
            .or(ended.exit_status().map(|code| code << 8))
            .map(ExitStatus::from_raw)
    }
}

/// `program worker|broker --slot N --incarnation N … --runtime-dir DIR …`, as
/// nodes are started.
fn parse(command_line: &[u8]) -> Option<NodeCommand<'_>> {
    let arguments: Vec<&[u8]> = command_line.split(|byte| *byte == 0).collect();
    let role = match *arguments.get(1)? {
        b"worker" => Role::Worker,
        b"broker" => Role::Broker,
        _ => return None,
    };
    let value = |flag: &[u8]| {
        let mut pairs = arguments.windows(2);
        pairs.find(|pair| pair[0] == flag).map(|pair| pair[1])
    };
    let number = |flag| std::str::from_utf8(value(flag)?).ok()?.parse::<u64>().ok();
    let dir = Path::new(OsStr::from_bytes(value(b"--runtime-dir")?));
    let slot = number(b"--slot").and_then(|slot| u32::try_from(slot).ok());
    Some(NodeCommand {
        id: NodeId {
            role,
            // Whatever fills no slot is still ours to end.
            slot: slot.unwrap_or(0),
        },
        incarnation: number(b"--incarnation").unwrap_or(0),
        dir,
    })
}

/// Whether what a process calls `dir` is the directory `own`: the same path can
/// be another one in a container, and another path the same one.
fn is_same_dir(process: &Path, dir: &Path, own: &fs::Metadata) -> bool {
    let Ok(relative) = dir.strip_prefix("/") else {
        return false;
    };
    let seen = fs::metadata(process.join("root").join(relative));
    seen.is_ok_and(|seen| (seen.dev(), seen.ino()) == (own.dev(), own.ino()))
}

/// The 22nd field of `/proc/PID/stat`; the second is a name in parentheses that
/// may hold anything.
fn parse_start_ticks(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(") ")?;
    rest.split(' ').nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_told_by_its_role_and_its_runtime_directory() {
        let node = b"orchestrator\0worker\0--slot\x003\0--incarnation\x0077\0--runtime-dir\0/run/a\0--config\0/run/a/c\0";
        let id = NodeId {
            role: Role::Worker,
            slot: 3,
        };
        let expected = NodeCommand {
            id,
            incarnation: 77,
            dir: Path::new("/run/a"),
        };
        assert_eq!(parse(node), Some(expected));
        for other in [
            b"orchestrator\0up\0--runtime-dir\0/run/a\0".as_slice(),
            b"orchestrator\0--runtime-dir\0/run/a\0worker\0",
            b"vi\0worker\0/run/a\0",
            b"",
        ] {
            assert_eq!(parse(other), None);
        }
    }

    #[test]
    fn a_directory_is_the_same_under_another_name_and_another_one_under_the_same() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("run");
        fs::create_dir(&dir).unwrap();
        let link = parent.path().join("link");
        std::os::unix::fs::symlink(parent.path(), &link).unwrap();
        let own = fs::metadata(&dir).unwrap();
        let process = Path::new("/proc/self");
        for same in [dir.clone(), link.join("run"), dir.join("../run")] {
            assert!(is_same_dir(process, &same, &own), "{same:?}");
        }
        // As a process in a container sees it.
        fs::create_dir_all(parent.path().join("root/run")).unwrap();
        assert!(!is_same_dir(parent.path(), Path::new("/run"), &own));
        for none in ["run", "/nonexistent/muster", ""] {
            assert!(!is_same_dir(process, Path::new(none), &own), "{none}");
        }
    }

    #[test]
    fn a_node_with_a_slot_that_is_none_is_found_and_fills_no_slot() {
        for slot in ["x", "-1", "99999999999", ""] {
            let line = format!("o\0broker\0--slot\0{slot}\0--runtime-dir\0/run/a\0");
            let node = parse(line.as_bytes()).unwrap();
            assert_eq!((node.id.slot, node.incarnation), (0, 0), "{slot}");
        }
    }

    #[test]
    fn the_start_is_read_whatever_the_process_calls_itself() {
        let stat = "7 (a) b) (c) S 1 7 7 0 -1 4194560 1 0 0 0 1 2 0 0 20 0 1 0 4711 1 2 3";
        assert_eq!(parse_start_ticks(stat), Some(4711));
        for garbage in ["", "7 (a", "7 (a) S 1 2 3"] {
            assert_eq!(parse_start_ticks(garbage), None);
        }
        let own = start_ticks(std::process::id()).unwrap();
        assert_eq!(start_ticks(std::process::id()).unwrap(), own);
    }

    #[tokio::test]
    async fn the_end_of_a_process_is_noticed_and_its_signals_reach_nobody_else() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let process = Process::open(pid).unwrap();
        assert!(!process.wait_blocking(Duration::ZERO));
        process.signal(Signal::KILL);
        let status = process.wait().await.unwrap();
        assert_eq!(status.and_then(|status| status.signal()), Some(9));
        assert!(process.wait_blocking(Duration::ZERO));
        process.signal(Signal::KILL);
        assert!(child.wait().is_err(), "it has been waited for");
        assert_eq!(process.wait().await.unwrap(), None);
    }
}

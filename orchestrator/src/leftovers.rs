//! Nodes that an orchestrator left behind when it was killed: found by their
//! command line and ended before a new cluster starts in their directory.

use std::{
    ffi::OsStr,
    fs, io,
    os::{fd::OwnedFd, unix::ffi::OsStrExt as _},
    path::Path,
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};
use tracing::{info, warn};

/// What nodes without an orchestrator may take to end by themselves.
const TERMINATE_TIMEOUT: Timespec = Timespec {
    tv_sec: 3,
    tv_nsec: 0,
};
const KILL_TIMEOUT: Duration = Duration::from_secs(5);

/// Ends the nodes of `runtime_dir`. Only for the holder of its lock, before it
/// has started any itself.
///
/// # Errors
///
/// When the system's processes cannot be read.
pub(crate) fn end(runtime_dir: &Path) -> io::Result<()> {
    for (pid, process) in find(runtime_dir)? {
        warn!(
            pid = pid.as_raw_nonzero().get(),
            "Ending a node that an earlier orchestrator left."
        );
        // Gone by itself is as good.
        let _ = pidfd_send_signal(&process, Signal::TERM);
        if !has_ended(&process, TERMINATE_TIMEOUT) {
            let _ = pidfd_send_signal(&process, Signal::KILL);
            let timeout = Timespec {
                tv_sec: i64::try_from(KILL_TIMEOUT.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: 0,
            };
            if !has_ended(&process, timeout) {
                info!(pid = pid.as_raw_nonzero().get(), "It could not be killed.");
            }
        }
    }
    Ok(())
}

fn find(runtime_dir: &Path) -> io::Result<Vec<(Pid, OwnedFd)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Ok(entry) = entry else { continue };
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.parse().ok());
        let Some(pid) = pid.and_then(Pid::from_raw) else {
            continue;
        };
        // Opened before the command line is read, so it is one process's.
        let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else {
            continue;
        };
        // A process that ended meanwhile, or another user's, is none of ours.
        let Ok(command_line) = fs::read(entry.path().join("cmdline")) else {
            continue;
        };
        if is_node_of(&command_line, runtime_dir) {
            found.push((pid, process));
        }
    }
    Ok(found)
}

/// `program worker|broker … --runtime-dir DIR …`, as nodes are started.
fn is_node_of(command_line: &[u8], runtime_dir: &Path) -> bool {
    let arguments: Vec<&[u8]> = command_line.split(|byte| *byte == 0).collect();
    let is_node = matches!(arguments.get(1), Some(&(b"worker" | b"broker")));
    let mut pairs = arguments.windows(2);
    is_node
        && pairs.any(|pair| {
            pair[0] == b"--runtime-dir" && OsStr::from_bytes(pair[1]) == runtime_dir.as_os_str()
        })
}

fn has_ended(process: &OwnedFd, timeout: Timespec) -> bool {
    let mut polled = [PollFd::new(process, PollFlags::IN)];
    matches!(poll(&mut polled, Some(&timeout)), Ok(ready) if ready > 0)
}

#[cfg(test)]
mod tests {
    use std::{os::unix::process::ExitStatusExt as _, process::Stdio};

    use super::*;

    #[test]
    fn a_node_is_told_by_its_role_and_its_runtime_directory() {
        let dir = Path::new("/run/a");
        let node = b"orchestrator\0worker\0--slot\0x\0--runtime-dir\0/run/a\0--config\0/run/a/c\0";
        assert!(is_node_of(node, dir));
        assert!(!is_node_of(node, Path::new("/run/b")));
        for other in [
            b"orchestrator\0up\0--runtime-dir\0/run/a\0".as_slice(),
            b"orchestrator\0--runtime-dir\0/run/a\0worker\0",
            b"vi\0worker\0/run/a\0",
            b"",
        ] {
            assert!(!is_node_of(other, dir));
        }
    }

    #[test]
    fn a_node_of_the_directory_is_ended_and_another_ones_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let scripts = tempfile::tempdir().unwrap();
        fs::write(scripts.path().join("worker"), "read line").unwrap();
        let start = |dir: &Path| {
            // A shell that waits, with the command line of a node.
            std::process::Command::new("sh")
                .args(["worker", "--slot", "1", "--runtime-dir"])
                .arg(dir)
                .current_dir(scripts.path())
                .stdin(Stdio::piped())
                .spawn()
                .unwrap()
        };
        let mut node = start(dir.path());
        let mut other = start(&dir.path().join("other"));
        end(dir.path()).unwrap();
        assert_eq!(node.wait().unwrap().signal(), Some(Signal::TERM.as_raw()));
        assert!(other.try_wait().unwrap().is_none());
        // Its standard input ends, so it does too.
        drop(other.stdin.take());
        other.wait().unwrap();
    }
}

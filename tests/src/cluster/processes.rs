//! Finding and ending a cluster's processes, however they are related.

use std::{fs, path::Path, thread, time::Duration};

use rustix::process::{Pid, Signal, kill_process};

const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// A running process.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) pid: u32,
    /// Its command line, for people.
    pub(super) command: String,
}

/// Sends a signal; a process that is gone does not matter.
pub(super) fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

/// Processes whose command line names something in `dir`. A temporary directory
/// belongs to one cluster, so these are that cluster's.
pub(super) fn mentioning(dir: &Path) -> Vec<Found> {
    let needle = dir.to_string_lossy();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
            // Empty for zombies, whose parent has only to look.
            let command = fs::read(entry.path().join("cmdline")).ok()?;
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            (command.contains(&*needle) && pid != std::process::id())
                .then_some(Found { pid, command })
        })
        .collect()
}

/// Kills until nothing is left; what survived for `patience`.
pub(super) fn kill_all(dir: &Path, patience: Duration) -> Vec<Found> {
    let mut left = patience.as_millis() / LOOK_AGAIN.as_millis();
    loop {
        let found = mentioning(dir);
        if found.is_empty() || left == 0 {
            return found;
        }
        for process in &found {
            signal(process.pid, Signal::KILL);
        }
        thread::sleep(LOOK_AGAIN);
        left -= 1;
    }
}

/// Waits until a process runs no more; false when it does for `patience`.
pub(super) fn wait_gone(pid: u32, patience: Duration) -> bool {
    let mut left = patience.as_millis() / LOOK_AGAIN.as_millis();
    // The command line of a zombie is empty.
    while fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty()) {
        if left == 0 {
            return false;
        }
        thread::sleep(LOOK_AGAIN);
        left -= 1;
    }
    true
}

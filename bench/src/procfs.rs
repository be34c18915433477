//! Processor time and memory of processes, from `/proc`.

use std::{collections::BTreeSet, fs, process};

/// Processor time that this process has used.
pub(super) fn own_processor_us() -> u64 {
    processor_us(process::id()).unwrap_or(0)
}

/// Processor time that all threads of a process have used, user and system;
/// nothing, if it does not exist.
pub(super) fn processor_us(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    ticks(&stat).map(|ticks| ticks * 1_000_000 / rustix::param::clock_ticks_per_second())
}

/// Proportional set size; nothing, if the process does not exist or is not ours.
pub(super) fn pss_bytes(pid: u32) -> Option<u64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    pss(&rollup)
}

/// Bytes in memory, and open descriptors; nothing, if the process does not exist
/// or is not ours.
pub(super) fn held(pid: u32) -> Option<(u64, u64)> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count();
    Some((kib(&status, "VmRSS:")?, descriptors as u64))
}

/// These processes and all that they, and theirs, have started.
pub(super) fn with_descendants(pids: &[u32]) -> Vec<u32> {
    let mut all: BTreeSet<u32> = pids.iter().copied().collect();
    let parents: Vec<(u32, u32)> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(|pid| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            Some((pid, parent(&stat)?))
        })
        .collect();
    loop {
        let children = parents.iter().filter(|(_, parent)| all.contains(parent));
        let before = all.len();
        let children: Vec<u32> = children.map(|(pid, _)| *pid).collect();
        all.extend(children);
        if all.len() == before {
            return all.into_iter().collect();
        }
    }
}

fn parent(stat: &str) -> Option<u32> {
    let (_, fields) = stat.rsplit_once(") ")?;
    fields.split(' ').nth(1)?.parse().ok()
}

fn ticks(stat: &str) -> Option<u64> {
    // The second field is the name in parentheses and may hold anything.
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ').skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

fn pss(rollup: &str) -> Option<u64> {
    kib(rollup, "Pss:")
}

/// The bytes of a line such as `Pss: 4 kB`.
fn kib(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_name_with_spaces_and_parentheses_does_not_shift_the_fields() {
        let stat = "7 (a) b (c)) S 1 7 7 0 -1 4194560 100 0 0 0 30 12 0 0 20 0 1 0 5 6 7";
        assert_eq!(ticks(stat), Some(42));
        assert_eq!(parent(stat), Some(1));
    }

    #[test]
    fn the_proportional_set_size_is_in_bytes() {
        assert_eq!(
            pss("Rss:   9 kB\nPss:      4 kB\nPss_Dirty:   2 kB\n"),
            Some(4096)
        );
    }

    #[test]
    fn the_processes_of_a_process_are_found() {
        let mut child = process::Command::new("sleep").arg("60").spawn().unwrap();
        let found = with_descendants(&[process::id()]);
        assert!(found.contains(&process::id()) && found.contains(&child.id()));
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn this_process_uses_memory_and_descriptors() {
        assert!(pss_bytes(process::id()).unwrap() > 0);
        let (bytes, descriptors) = held(process::id()).unwrap();
        assert!(bytes > 0 && descriptors >= 3, "{bytes} {descriptors}");
    }
}

//! What a worker has counted since its start.

use std::fs;

/// Reported to the orchestrator once a second.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stats {
    /// Taken from clients.
    pub(crate) publications: u64,
    /// Not acknowledged by their owners.
    pub(crate) publications_failed: u64,
    /// Queued for clients.
    pub(crate) deliveries: u64,
    /// Times that publications were missing for this worker's subscribers.
    pub(crate) holes: u64,
    /// Subscribers that got what they had missed, and those that were told that
    /// they miss something.
    pub(crate) resumed: u64,
    pub(crate) holes_told: u64,
    /// Publications given up for clients that did not read, as their channels'
    /// policies say.
    pub(crate) dropped: u64,
    /// Closed because they did not read.
    pub(crate) slow_clients_closed: u64,
    /// Connections that ended without a close frame, or with a code that tells of
    /// a fault.
    pub(crate) abnormal_closes: u64,
}

/// Memory that is this process's alone; 0 where the system does not say.
pub(crate) fn memory_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    parse_memory(&status).unwrap_or(0)
}

/// `RssAnon` of `/proc/PID/status`, in bytes.
fn parse_memory(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_what_the_kernel_says_of_this_process() {
        assert!(memory_bytes() > 100 * 1024);
        let status = "Name:\ta\nRssAnon:\t    2048 kB\nRssFile:\t 7 kB\n";
        assert_eq!(parse_memory(status), Some(2 << 20));
        for nothing in [
            "",
            "RssAnon:",
            "RssAnon:\t x kB",
            "RssAnon: 99999999999999999999 kB",
        ] {
            assert_eq!(parse_memory(nothing), None, "{nothing}");
        }
    }
}

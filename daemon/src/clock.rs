//! The two clocks. The only place that reads them; everything else is told.

use std::time::{Duration, SystemTime};

use muster_wire::Millis;
use rustix::time::{ClockId, clock_gettime};

/// The host's monotonic clock, the same for every process on it.
#[must_use]
pub fn now() -> Millis {
    let time = clock_gettime(ClockId::Monotonic);
    let elapsed = Duration::try_from(time).unwrap_or_default();
    Millis(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX))
}

/// Seconds since 1970 in UTC, which token expiry is measured in. It may jump;
/// before 1970 it is 0.
#[must_use]
pub fn unix_seconds() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// The same in milliseconds.
#[must_use]
pub fn unix_millis() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| {
            u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
        })
}

/// When the monotonic clock was 0, in milliseconds since 1970. It jumps with the
/// wall clock.
#[must_use]
pub fn boot_unix_millis() -> i64 {
    let signed = |millis| i64::try_from(millis).unwrap_or(i64::MAX);
    signed(unix_millis()).saturating_sub(signed(now().0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_monotonic_clock_counts_in_milliseconds() {
        let before = now();
        let uptime = std::fs::read_to_string("/proc/uptime").unwrap();
        let seconds: f64 = uptime.split(' ').next().unwrap().parse().unwrap();
        let after = now();
        assert!(before <= after);
        // The boot clock also counts suspended time, so only the unit is checked.
        assert!(before.since(Millis(0)).as_secs_f64() <= seconds + 1.0);
        assert!(before.0 > 0);
    }

    #[test]
    fn the_wall_clock_is_past_the_year_2020() {
        assert!(unix_seconds() > 1_577_836_800);
    }
}

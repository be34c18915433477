//! How fast a client may go (delivery.md F3).

use serde::{Deserialize, Serialize};

use crate::Millis;

const NANOS_PER_SECOND: u64 = 1_000_000_000;
const NANOS_PER_MILLI: u64 = 1_000_000;

/// What a client may do in the long run, and at once; in the form in which each
/// packet is measured against it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Nanoseconds that one of them takes.
    interval: u64,
    /// How many may be done at once.
    burst: u32,
    /// Nanoseconds that those take.
    ahead: u64,
}

impl Rate {
    /// So many per second in the long run, and so many at once after little was
    /// done for a while; 0 counts as 1.
    #[must_use]
    pub const fn new(per_second: u32, burst: u32) -> Self {
        let per_second = if per_second == 0 { 1 } else { per_second };
        let burst = if burst == 0 { 1 } else { burst };
        let interval = NANOS_PER_SECOND / per_second as u64;
        Self {
            interval,
            burst,
            ahead: interval.saturating_mul(burst as u64),
        }
    }

    /// The same in the long run, and at least so many at once.
    #[must_use]
    pub fn with_burst_of(self, at_least: u32) -> Self {
        let burst = self.burst.max(at_least);
        Self {
            burst,
            ahead: u64::from(burst).saturating_mul(self.interval),
            ..self
        }
    }
}

/// What one client has done, measured against a [`Rate`] (the generic cell rate
/// algorithm): a number, and nothing to be done while time passes.
///
/// Nothing is refused. What was read counts, and a client that is over its rate
/// is not read until it is within it again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Pace {
    /// When a client that went steadily would have done as much, in nanoseconds
    /// of the host's clock.
    due: u64,
}

impl Pace {
    pub(super) fn count(&mut self, rate: Rate, now: Millis) {
        let now = now.0.saturating_mul(NANOS_PER_MILLI);
        self.due = self.due.max(now).saturating_add(rate.interval);
    }

    pub(super) fn is_over(self, rate: Rate, now: Millis) -> bool {
        let now = now.0.saturating_mul(NANOS_PER_MILLI);
        self.due > now.saturating_add(rate.ahead)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const START: Millis = Millis(5_000);

    #[test]
    fn a_burst_is_free_and_what_comes_after_it_waits() {
        let rate = Rate::new(10, 3);
        let mut pace = Pace::default();
        for _ in 0..3 {
            pace.count(rate, START);
            assert!(!pace.is_over(rate, START));
        }
        pace.count(rate, START);
        assert!(pace.is_over(rate, START));
        assert!(pace.is_over(rate, Millis(START.0 + 99)));
        assert!(!pace.is_over(rate, Millis(START.0 + 100)));
    }

    #[test]
    fn a_clock_at_its_end_and_a_rate_of_nothing_do_no_harm() {
        let rate = Rate::new(0, 0);
        let mut pace = Pace::default();
        pace.count(rate, Millis(u64::MAX));
        assert!(!pace.is_over(rate, Millis(u64::MAX)));
    }

    proptest! {
        #[test]
        fn whoever_stops_when_over_does_at_most_burst_and_rate_and_one(
            per_second in 1_u32..10_000,
            burst in 1_u32..2_000,
            waits in prop::collection::vec(0_u64..50, 1..400),
        ) {
            let rate = Rate::new(per_second, burst);
            let mut pace = Pace::default();
            let (mut now, mut done) = (START, 0_u64);
            for wait in waits {
                now = Millis(now.0 + wait);
                while !pace.is_over(rate, now) {
                    pace.count(rate, now);
                    done += 1;
                }
                let passed = now.0 - START.0;
                let allowed = u64::from(burst) + 1 + passed * u64::from(per_second) / 1000;
                // Intervals are whole nanoseconds, so a rate may be a little higher.
                prop_assert!(done <= allowed + allowed / 1000 + 1, "{done} of {allowed}");
            }
        }
    }
}

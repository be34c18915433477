//! What arrived when, second by second.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::clock::{Micros, SECOND};

/// Longest latency that is told apart; longer ones count as this.
const LATENCY_MAX_US: u64 = 120_000_000;
/// Enough to plot.
const DIGITS: u8 = 2;
/// Seconds that are kept apart; what comes later counts for the last one.
const SECONDS_MAX: usize = 3600;

/// Deliveries of each second after the window's beginning.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Series(Vec<Second>);

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Second {
    /// (value, count), by value.
    latency: Vec<(u64, u64)>,
}

/// One second as it is reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) struct Summary {
    pub(super) deliveries: u64,
    pub(super) p50_us: u64,
    pub(super) p99_us: u64,
    pub(super) max_us: u64,
}

impl Series {
    /// Something arrived, so long after the beginning.
    pub(super) fn record(&mut self, after: Micros, latency: u64) {
        let second = usize::try_from(after / SECOND).unwrap_or(usize::MAX);
        let second = second.min(SECONDS_MAX - 1);
        if self.0.len() <= second {
            self.0.resize_with(second + 1, Second::default);
        }
        self.0[second].record(rounded(latency));
    }

    /// All processes' together.
    pub(super) fn summarise(all: &[&Self]) -> Vec<Summary> {
        let seconds = all.iter().map(|series| series.0.len()).max().unwrap_or(0);
        let second = |index: usize| {
            let mut histogram = Histogram::<u64>::new_with_bounds(1, LATENCY_MAX_US, DIGITS)
                .expect("the bounds are in order");
            for second in all.iter().filter_map(|series| series.0.get(index)) {
                for (value, count) in &second.latency {
                    histogram.saturating_record_n(*value, *count);
                }
            }
            Summary {
                deliveries: histogram.len(),
                p50_us: histogram.value_at_quantile(0.5),
                p99_us: histogram.value_at_quantile(0.99),
                max_us: histogram.max(),
            }
        };
        (0..seconds).map(second).collect()
    }
}

impl Second {
    fn record(&mut self, value: u64) {
        match self
            .latency
            .binary_search_by_key(&value, |(value, _)| *value)
        {
            Ok(at) => self.latency[at].1 += 1,
            Err(at) => self.latency.insert(at, (value, 1)),
        }
    }
}

/// To five binary digits, so that a second has a few hundred values at most.
fn rounded(value: u64) -> u64 {
    let shift = (u64::BITS - value.leading_zeros()).saturating_sub(5);
    value >> shift << shift
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_arrives_counts_for_its_second_whichever_process_saw_it() {
        let (mut one, mut other) = (Series::default(), Series::default());
        one.record(0, 100);
        one.record(SECOND - 1, 100);
        other.record(SECOND, 10_000);
        other.record(3 * SECOND, 1);
        let summary = Series::summarise(&[&one, &other]);
        let deliveries: Vec<u64> = summary.iter().map(|second| second.deliveries).collect();
        assert_eq!(deliveries, [2, 1, 0, 1]);
        assert!(summary[0].p50_us.abs_diff(100) < 5, "{summary:?}");
        assert!(summary[1].max_us.abs_diff(10_000) < 400, "{summary:?}");
    }

    #[test]
    fn latencies_are_rounded_by_little() {
        for value in [0, 1, 31, 32, 1000, 123_456, u64::MAX] {
            let rounded = rounded(value);
            assert!(rounded <= value && value - rounded <= value / 16, "{value}");
        }
    }
}

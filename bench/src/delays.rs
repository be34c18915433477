//! How long publications took, by the time at which they were meant to be sent:
//! what a pause is read from.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::clock::Micros;

/// Publications meant to be sent within so much of each other are one.
const GRAIN: Micros = 10_000;
/// Grains that are kept, most: an hour.
const GRAINS_MAX: usize = 360_000;

/// The longest delays, from the intended time of sending to the delivery or the
/// answer.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Delays(BTreeMap<Micros, Micros>);

impl Delays {
    pub(super) fn record(&mut self, intended: Micros, at: Micros) {
        let grain = intended / GRAIN;
        if self.0.len() < GRAINS_MAX || self.0.contains_key(&grain) {
            let longest = self.0.entry(grain).or_default();
            *longest = (*longest).max(at.saturating_sub(intended));
        }
    }

    pub(super) fn add(&mut self, other: &Self) {
        for (grain, delay) in &other.0 {
            let longest = self.0.entry(*grain).or_default();
            *longest = (*longest).max(*delay);
        }
    }

    /// The longest delay of what was under way at some time of that span; `None`
    /// when nothing was.
    pub(super) fn longest(&self, from: Micros, to: Micros) -> Option<Micros> {
        let before = self.0.range(..=to / GRAIN);
        let under_way = before.filter(|(grain, delay)| *grain * GRAIN + GRAIN + **delay >= from);
        under_way.map(|(_, delay)| *delay).max()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_the_longest_delay_of_what_was_under_way() {
        let mut delays = Delays::default();
        assert_eq!(delays.longest(0, 1_000_000), None);
        for (intended, at) in [
            (100_000, 101_000),
            (500_000, 800_000),
            (700_000, 801_000),
            (900_000, 902_000),
        ] {
            delays.record(intended, at);
        }
        assert_eq!(delays.longest(600_000, 850_000), Some(300_000));
        assert_eq!(delays.longest(850_000, 1_000_000), Some(2_000));
        assert_eq!(delays.longest(0, 200_000), Some(1_000));
        assert_eq!(delays.longest(2_000_000, 3_000_000), None);
        let mut other = Delays::default();
        other.record(100_000, 600_000);
        delays.add(&other);
        assert_eq!(delays.longest(0, 200_000), Some(500_000));
    }
}

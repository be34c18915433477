//! For how long connections stood still while they were handed over.

use std::time::Duration;

/// Steps in which pauses are counted: 0.1 ms, then an eighth more each, up to
/// some minutes.
const STEPS: usize = 128;
const FIRST_MICROS: u64 = 100;

/// A distribution of pauses, exact to an eighth.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pauses {
    counts: Vec<u64>,
    max: Duration,
}

impl Pauses {
    /// Counts connections that stood still for so long.
    pub fn record(&mut self, pause: Duration, connections: u64) {
        let micros = u64::try_from(pause.as_micros()).unwrap_or(u64::MAX);
        let step = bounds().position(|bound| micros <= bound);
        self.counts.resize(STEPS, 0);
        self.counts[step.unwrap_or(STEPS - 1)] += connections;
        self.max = self.max.max(pause);
    }

    /// Adds what somebody else has counted.
    pub fn merge(&mut self, other: &Self) {
        self.counts.resize(STEPS, 0);
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count = count.saturating_add(*more);
        }
        self.max = self.max.max(other.max);
    }

    /// The counts by step, to be sent.
    #[must_use]
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// For each step that has any, the longest that its pauses may have been, and
    /// their number.
    pub fn steps(&self) -> impl Iterator<Item = (Duration, u64)> + '_ {
        let steps = bounds().zip(&self.counts).filter(|(_, count)| **count > 0);
        steps.map(|(bound, count)| (Duration::from_micros(bound).min(self.max), *count))
    }

    /// The longest pause.
    #[must_use]
    pub fn max(&self) -> Duration {
        self.max
    }

    /// What was sent; steps that this release does not have are left out.
    #[must_use]
    pub fn received(mut counts: Vec<u64>, max: Duration) -> Self {
        counts.truncate(STEPS);
        Self { counts, max }
    }

    /// The pause that this part of the connections (0 to 1) did not exceed; zero
    /// without any.
    #[must_use]
    pub fn quantile(&self, part: f64) -> Duration {
        let total = self
            .counts
            .iter()
            .fold(0_u64, |sum, count| sum.saturating_add(*count));
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a count of connections"
        )]
        let rank = (total as f64 * part).ceil() as u64;
        let mut seen = 0;
        for (count, bound) in self.counts.iter().zip(bounds()) {
            seen += count;
            if *count > 0 && seen >= rank {
                return Duration::from_micros(bound).min(self.max);
            }
        }
        Duration::ZERO
    }
}

/// The longest pause of each step, in microseconds.
fn bounds() -> impl Iterator<Item = u64> {
    std::iter::successors(Some(FIRST_MICROS), |bound| Some(bound + bound.div_ceil(8))).take(STEPS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_exact_to_an_eighth_and_never_above_the_longest() {
        let mut pauses = Pauses::default();
        for millis in 1..=1000 {
            pauses.record(Duration::from_millis(millis), 1);
        }
        for (part, millis) in [(0.5, 500_u128), (0.99, 990), (1.0, 1000), (0.0, 1)] {
            let found = pauses.quantile(part).as_micros();
            let wanted = millis * 1000_u128;
            assert!(
                (wanted..=wanted + wanted / 7).contains(&found),
                "{part}: {found}"
            );
        }
        assert_eq!(pauses.max(), Duration::from_secs(1));
        pauses.record(Duration::MAX, 9_000_000);
        assert!(pauses.quantile(0.99) > Duration::from_secs(60));
    }

    #[test]
    fn what_two_have_counted_is_what_one_would_have() {
        let (mut one, mut other, mut all) =
            (Pauses::default(), Pauses::default(), Pauses::default());
        for (micros, connections) in [(50, 63), (900, 5), (27_000, 1)] {
            let pause = Duration::from_micros(micros);
            one.record(pause, connections);
            other.record(pause * 3, connections);
            all.record(pause, connections);
            all.record(pause * 3, connections);
        }
        assert_eq!(one.steps().map(|(_, count)| count).sum::<u64>(), 69);
        assert_eq!(one.steps().last(), Some((one.max(), 1)));
        let sent = Pauses::received(other.counts().to_vec(), other.max());
        let mut merged = Pauses::default();
        merged.merge(&one);
        merged.merge(&sent);
        assert_eq!(merged, all);
    }

    #[test]
    fn nothing_and_nonsense_have_quantiles() {
        assert_eq!(Pauses::default().quantile(0.99), Duration::ZERO);
        let nonsense = Pauses::received(vec![u64::MAX; 500], Duration::from_secs(1));
        assert!(nonsense.quantile(0.1) <= Duration::from_secs(1));
        let mut merged = nonsense.clone();
        merged.merge(&nonsense);
        assert_eq!(merged.counts().len(), STEPS);
    }
}

//! How long to wait before trying again.

use std::time::Duration;

use rand::{Rng, RngExt as _};

/// Doublings after which the ceiling no longer grows; keeps the shift in range.
const ATTEMPTS_MAX: u32 = 16;

/// Exponential back-off with jitter: each wait is random between the shortest
/// and a ceiling that doubles up to the longest, so that many who lost the same
/// thing do not come back at the same moment.
#[derive(Debug, Clone)]
pub struct Backoff {
    min: Duration,
    max: Duration,
    attempt: u32,
}

impl Backoff {
    /// Waits of at least `min` and at most `max`; `max` wins where they cross.
    #[must_use]
    pub const fn new(min: Duration, max: Duration) -> Self {
        Self {
            min,
            max,
            attempt: 0,
        }
    }

    /// The next wait.
    pub fn next(&mut self, rng: &mut impl Rng) -> Duration {
        self.attempt = (self.attempt + 1).min(ATTEMPTS_MAX);
        let ceiling = self.min.saturating_mul(1 << self.attempt).min(self.max);
        let floor = self.min.min(ceiling);
        rng.random_range(floor..=ceiling)
    }

    /// It worked: the next wait is a short one again.
    pub fn reset(&mut self) {
        self.attempt = 0;
    }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng as _, rngs::SmallRng};

    use super::*;

    const MIN: Duration = Duration::from_millis(10);
    const MAX: Duration = Duration::from_secs(1);

    #[test]
    fn waits_stay_between_the_bounds_and_reach_the_longest() {
        let seed = 7;
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut backoff = Backoff::new(MIN, MAX);
        let waits: Vec<_> = (0..200).map(|_| backoff.next(&mut rng)).collect();
        assert!(waits.iter().all(|wait| (MIN..=MAX).contains(wait)));
        assert!(waits[0] <= MIN * 2, "the first wait is short: {waits:?}");
        assert!(waits.iter().any(|wait| *wait > MAX / 2), "seed {seed}");
    }

    #[test]
    fn after_a_success_the_next_wait_is_short_again() {
        let mut rng = SmallRng::seed_from_u64(8);
        let mut backoff = Backoff::new(MIN, MAX);
        for _ in 0..50 {
            backoff.next(&mut rng);
        }
        backoff.reset();
        assert!(backoff.next(&mut rng) <= MIN * 2);
    }

    #[test]
    fn crossed_bounds_give_the_longest() {
        let mut rng = SmallRng::seed_from_u64(9);
        assert_eq!(Backoff::new(MAX, MIN).next(&mut rng), MIN);
    }
}

//! When to connect again.

use std::time::Duration;

use crate::close::Reaction;

/// When to connect again.
///
/// After a close that lets clients come back at once the first attempt is
/// immediate. Otherwise the first wait is anywhere between `first_min` and
/// `first_max`; both double with each attempt, up to `max`. (Stock clients
/// wait 10 to 20 s and up to 60 s; a game cannot.)
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReconnectConfig {
    /// Shortest first wait.
    pub first_min: Duration,
    /// Longest first wait.
    pub first_max: Duration,
    /// Longest wait of all.
    pub max: Duration,
    /// A connection that lasted this long starts the schedule anew; shorter ones
    /// do not, so that a server which closes at once is not asked in a loop.
    pub stable_after: Duration,
}

impl Default for ReconnectConfig {
    fn default() -> Self {
        Self {
            first_min: Duration::from_millis(200),
            first_max: Duration::from_secs(1),
            max: Duration::from_secs(20),
            stable_after: Duration::from_secs(5),
        }
    }
}

/// Where the schedule stands.
#[derive(Debug)]
pub(super) struct Backoff {
    /// Attempts since the last connection that lasted.
    attempts: u32,
    /// State of the jitter, a splitmix64 sequence.
    random: u64,
}

impl Backoff {
    pub(super) const fn new(seed: u64) -> Self {
        Self {
            attempts: 0,
            random: seed,
        }
    }

    /// An open connection ended after `lasted`.
    pub(super) fn connection_lasted(&mut self, config: &ReconnectConfig, lasted: Duration) {
        if lasted >= config.stable_after {
            self.attempts = 0;
        }
    }

    /// How long to wait before the next attempt; nothing: there is none.
    pub(super) fn next(
        &mut self,
        config: &ReconnectConfig,
        reaction: Reaction,
    ) -> Option<Duration> {
        let attempt = self.attempts;
        self.attempts = self.attempts.saturating_add(1);
        match (reaction, attempt) {
            (Reaction::Never, _) => None,
            (Reaction::AtOnce, 0) => Some(Duration::ZERO),
            (Reaction::AtOnce | Reaction::Delayed, attempt) => {
                let doubled = 1_u32 << attempt.min(16);
                let min = config.first_min.saturating_mul(doubled).min(config.max);
                let max = config.first_max.saturating_mul(doubled).min(config.max);
                Some(min + max.saturating_sub(min).mul_f64(self.chance()))
            }
        }
    }

    /// At least 0 and under 1.
    fn chance(&mut self) -> f64 {
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut bits = self.random;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        bits ^= bits >> 31;
        // The upper 32 bits are exact in a double.
        f64::from(u32::try_from(bits >> 32).unwrap_or(u32::MAX)) / 4_294_967_296.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: ReconnectConfig = ReconnectConfig {
        first_min: Duration::from_millis(200),
        first_max: Duration::from_secs(1),
        max: Duration::from_secs(20),
        stable_after: Duration::from_secs(5),
    };

    #[test]
    fn waits_double_up_to_the_maximum_and_differ_between_clients() {
        let mut distinct = std::collections::BTreeSet::new();
        for seed in 0..50 {
            let mut backoff = Backoff::new(seed);
            for attempt in 0..40 {
                let wait = backoff.next(&CONFIG, Reaction::Delayed).unwrap();
                let factor = 2_u32.pow(attempt.min(10));
                assert!(
                    wait >= (CONFIG.first_min * factor).min(CONFIG.max),
                    "{attempt}: {wait:?}"
                );
                assert!(
                    wait <= (CONFIG.first_max * factor).min(CONFIG.max),
                    "{attempt}: {wait:?}"
                );
                if attempt == 0 {
                    distinct.insert(wait);
                }
            }
        }
        assert!(distinct.len() > 45, "{distinct:?}");
    }

    #[test]
    fn only_the_first_attempt_after_a_lasting_connection_is_immediate() {
        let mut backoff = Backoff::new(7);
        assert_eq!(
            backoff.next(&CONFIG, Reaction::AtOnce),
            Some(Duration::ZERO)
        );
        backoff.connection_lasted(&CONFIG, Duration::from_millis(4_999));
        assert!(backoff.next(&CONFIG, Reaction::AtOnce).unwrap() >= CONFIG.first_min);
        backoff.connection_lasted(&CONFIG, Duration::from_secs(5));
        assert_eq!(
            backoff.next(&CONFIG, Reaction::AtOnce),
            Some(Duration::ZERO)
        );
    }

    #[test]
    fn a_final_close_has_no_next_attempt() {
        assert_eq!(Backoff::new(1).next(&CONFIG, Reaction::Never), None);
    }
}

//! Whether workers that were replaced are as good as those before them.

use std::time::Duration;

use muster_daemon::config::UpdateConfig;

/// Abnormal closes that say nothing: clients come and go.
const CLOSES_SPARE: u64 = 5;
/// So many times what is usual is not unusual.
const CLOSES_FACTOR: u64 = 3;
/// What is usual is not told by less time than this.
const USUAL_OVER: Duration = Duration::from_secs(60);
const MILLION: u64 = 1_000_000;

/// How a worker was in the seconds before its last sign of life.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Health {
    pub(crate) connections: u64,
    /// Since it was started.
    pub(crate) abnormal_closes: u64,
    pub(crate) age: Duration,
    /// 0: it does not say.
    pub(crate) memory_bytes: u64,
    /// How late its thread was in the best of the last three seconds; in each of
    /// them, the worst counts.
    pub(crate) lag: Duration,
}

/// What the worker had that was in a slot before.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Earlier {
    pub(crate) connections: u64,
    pub(crate) memory_bytes: u64,
}

/// How the cluster is without the new workers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Usual {
    /// Abnormal closes of a million connections in a second.
    closes_per_million: u64,
    /// The longest that an earlier worker is late.
    lag: Duration,
}

impl Usual {
    /// Counts a worker of the earlier program in.
    pub(crate) fn note(&mut self, health: &Health) {
        let seconds = health.age.max(USUAL_OVER).as_secs();
        let lived = health.connections.max(1).saturating_mul(seconds);
        let closes = health.abnormal_closes.saturating_mul(MILLION) / lived;
        self.closes_per_million = self.closes_per_million.max(closes);
        self.lag = self.lag.max(health.lag);
    }

    /// The same with the worst of both.
    pub(crate) fn or(self, other: Self) -> Self {
        Self {
            closes_per_million: self.closes_per_million.max(other.closes_per_million),
            lag: self.lag.max(other.lag),
        }
    }

    /// What is usual however busy the machine is.
    pub(crate) fn without_lag(self) -> Self {
        Self {
            lag: Duration::ZERO,
            ..self
        }
    }
}

/// What is wrong with a new worker, compared to the one `earlier` in its slot and
/// to what is `usual`.
pub(crate) fn judge(
    health: &Health,
    earlier: Earlier,
    usual: Usual,
    limits: &UpdateConfig,
) -> Option<String> {
    closes(health, usual, limits)
        .or_else(|| lag(health, usual, limits))
        .or_else(|| memory(health, earlier, limits))
}

/// What is wrong with a hand-over of which these connections were refused.
pub(crate) fn judge_moves(moved: u64, failed: u64, limits: &UpdateConfig) -> Option<String> {
    let of = moved.saturating_add(failed);
    let share = u64::from(limits.failed_moves_per_thousand_max);
    let allowed = of.saturating_mul(share) / 1000;
    (failed > allowed)
        .then(|| format!("{failed} of {of} connections were refused, more than {allowed}"))
}

fn closes(health: &Health, usual: Usual, limits: &UpdateConfig) -> Option<String> {
    let closed = health.abnormal_closes;
    let had = health.connections.saturating_add(closed);
    let share = u64::from(limits.abnormal_closes_per_thousand_max);
    let lived = had.saturating_mul(health.age.as_secs());
    let expected = lived.saturating_mul(usual.closes_per_million) / MILLION;
    let allowed = CLOSES_SPARE
        .saturating_add(had.saturating_mul(share) / 1000)
        .saturating_add(expected.saturating_mul(CLOSES_FACTOR));
    (closed > allowed).then(|| {
        format!(
            "{closed} of its {had} connections ended abnormally, {allowed} would be no reason to \
             worry"
        )
    })
}

fn lag(health: &Health, usual: Usual, limits: &UpdateConfig) -> Option<String> {
    let limit = limits.lag_max;
    // Where others are late, too, the machine is to blame.
    let is_late = health.lag > limit && usual.lag <= limit;
    is_late.then(|| {
        format!(
            "its thread is {} ms late again and again, more than {} ms",
            health.lag.as_millis(),
            limit.as_millis()
        )
    })
}

fn memory(health: &Health, earlier: Earlier, limits: &UpdateConfig) -> Option<String> {
    let Earlier {
        connections,
        memory_bytes: before,
    } = earlier;
    let now = health.memory_bytes;
    if before == 0 || now == 0 {
        return None;
    }
    // What it has beside its connections does not become less with them.
    let grown = health.connections.max(connections).max(1);
    let scaled = u128::from(before) * u128::from(grown) / u128::from(connections.max(1));
    let allowed = scaled.saturating_mul(limits.memory_percent_max.into()) / 100;
    let allowed = allowed.saturating_add(limits.memory_spare.0.into());
    (u128::from(now) > allowed).then(|| {
        format!(
            "it has {} MiB of memory for {} connections, the one before it had {} MiB for {}",
            now >> 20,
            health.connections,
            before >> 20,
            connections
        )
    })
}

#[cfg(test)]
mod tests {
    use muster_daemon::ByteSize;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn good() -> Health {
        Health {
            connections: 1_000,
            abnormal_closes: 0,
            age: Duration::from_secs(10),
            memory_bytes: 30 * MIB,
            lag: Duration::from_millis(3),
        }
    }

    fn earlier() -> Earlier {
        Earlier {
            connections: 1_000,
            memory_bytes: 30 * MIB,
        }
    }

    fn fault(health: Health, usual: Usual) -> Option<String> {
        judge(&health, earlier(), usual, &UpdateConfig::default())
    }

    fn usual(abnormal_closes: u64, lag: Duration) -> Usual {
        let mut usual = Usual::default();
        usual.note(&Health {
            abnormal_closes,
            age: Duration::from_secs(3600),
            lag,
            ..good()
        });
        usual
    }

    #[test]
    fn a_worker_like_the_one_before_is_good() {
        assert_eq!(fault(good(), Usual::default()), None);
        let idle = Health {
            connections: 0,
            ..good()
        };
        assert_eq!(fault(idle, Usual::default()), None);
    }

    #[test]
    fn abnormal_closes_beyond_a_share_of_the_connections_are_a_fault() {
        let with = |abnormal_closes| Health {
            abnormal_closes,
            ..good()
        };
        assert_eq!(fault(with(25), Usual::default()), None);
        let why = fault(with(26), Usual::default()).unwrap();
        assert!(why.contains("26 of its 1026 connections"), "{why}");
    }

    #[test]
    fn where_clients_often_vanish_more_of_them_may() {
        // 0.01 per connection and second: 100 in ten seconds.
        let busy = usual(36_000, Duration::ZERO);
        let with = |abnormal_closes| Health {
            abnormal_closes,
            ..good()
        };
        assert_eq!(fault(with(200), busy), None);
        assert!(fault(with(600), busy).is_some());
    }

    #[test]
    fn a_young_worker_does_not_tell_what_is_usual_by_a_few_closes() {
        let mut usual = Usual::default();
        usual.note(&Health {
            connections: 10,
            abnormal_closes: 3,
            age: Duration::from_secs(2),
            ..good()
        });
        assert_eq!(usual.closes_per_million, 5_000);
    }

    #[test]
    fn a_thread_that_is_late_while_others_are_not_is_a_fault() {
        let late = Health {
            lag: Duration::from_millis(501),
            ..good()
        };
        let why = fault(late, Usual::default()).unwrap();
        assert!(why.contains("501 ms late"), "{why}");
        assert_eq!(fault(late, usual(0, Duration::from_millis(501))), None);
        assert!(fault(late, usual(0, Duration::from_millis(500))).is_some());
    }

    #[test]
    fn memory_beyond_the_double_and_some_is_a_fault() {
        let with = |memory_bytes, connections| Health {
            memory_bytes,
            connections,
            ..good()
        };
        assert_eq!(fault(with(124 * MIB, 1_000), Usual::default()), None);
        let why = fault(with(125 * MIB, 1_000), Usual::default()).unwrap();
        assert!(why.contains("125 MiB of memory for 1000"), "{why}");
        // Ten times as many clients have come.
        assert_eq!(fault(with(600 * MIB, 10_000), Usual::default()), None);
        // One that has none any more still has what it is made of.
        assert_eq!(fault(with(60 * MIB, 0), Usual::default()), None);
        // One that does not say how much it has.
        assert_eq!(fault(with(0, 1_000), Usual::default()), None);
        let limits = UpdateConfig {
            memory_percent_max: 100,
            memory_spare: ByteSize(0),
            ..UpdateConfig::default()
        };
        let judge = |memory| judge(&with(memory, 1_000), earlier(), Usual::default(), &limits);
        assert_eq!(judge(30 * MIB), None);
        assert!(judge(30 * MIB + 1).is_some());
    }

    #[test]
    fn connections_that_are_refused_are_a_fault_beyond_a_share_of_all() {
        let judge = |moved, failed| judge_moves(moved, failed, &UpdateConfig::default());
        assert_eq!(judge(0, 0), None);
        assert_eq!(judge(9_990, 10), None);
        assert!(judge(9_989, 11).unwrap().contains("11 of 10000"));
        assert!(judge(100, 1).is_some(), "among few, one is much");
    }

    #[test]
    fn no_number_overflows() {
        let most = Health {
            connections: u64::MAX,
            abnormal_closes: u64::MAX,
            age: Duration::MAX,
            memory_bytes: u64::MAX,
            lag: Duration::MAX,
        };
        let mut usual = Usual::default();
        usual.note(&most);
        let earlier = Earlier {
            connections: 0,
            memory_bytes: u64::MAX,
        };
        let _ = judge(&most, earlier, usual, &UpdateConfig::default());
    }
}

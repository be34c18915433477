//! Which connection subscribes to what and publishes when.

use super::{
    clock::{Micros, SECOND, micros},
    options::{Scenario, Shape},
};

/// What one connection does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Role {
    pub(super) channel: u32,
    pub(super) subscribes: bool,
    pub(super) publishes: Option<Schedule>,
}

/// When one publisher publishes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Schedule {
    /// Which of its channel's publishers this is.
    pub(super) publisher: u32,
    pub(super) interval: Micros,
    /// The first time, after the start.
    pub(super) phase: Micros,
}

/// What all connections do.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) roles: Vec<Role>,
    pub(super) channels: u32,
    pub(super) publishers_per_channel: u32,
}

impl Plan {
    pub(super) fn new(scenario: &Scenario) -> Self {
        match *scenario {
            Scenario::Idle { connections } => Self::idle(connections),
            // Each client comes and goes as one of these.
            Scenario::Churn { clients } => Self::idle(clients),
            Scenario::Fanout {
                subscribers,
                rate,
                publishers,
            } => Self::fanout(subscribers, publishers, rate),
            Scenario::Lobby {
                lobbies,
                members,
                rate,
            }
            | Scenario::Deploy {
                lobbies,
                members,
                rate,
                ..
            } => Self::lobbies(lobbies, members, rate),
            Scenario::Saturate {
                what,
                subscribers,
                lobbies,
                members,
                step_rate,
                ..
            } => match what {
                Shape::Fanout => Self::fanout(subscribers, 1, step_rate),
                Shape::Lobby => Self::lobbies(lobbies, members, step_rate),
            },
            Scenario::Kill {
                fanout: true,
                subscribers,
                rate,
                ..
            } => Self::fanout(subscribers, 1, rate.unwrap_or(50.0)),
            Scenario::Kill {
                lobbies,
                members,
                rate,
                ..
            } => Self::lobbies(lobbies, members, rate.unwrap_or(1.0)),
            Scenario::Hold {
                connections,
                group,
                rate,
            } => Self::groups(connections, group, rate),
        }
    }

    /// Each has a channel of its own on which nothing happens.
    fn idle(connections: u32) -> Self {
        Self {
            roles: (0..connections).map(subscriber).collect(),
            channels: connections,
            publishers_per_channel: 0,
        }
    }

    fn fanout(subscribers: u32, publishers: u32, rate: f64) -> Self {
        let interval = micros(f64::from(publishers) / rate);
        let publishing = (0..publishers).map(|n| Role {
            channel: 0,
            subscribes: false,
            publishes: Some(schedule(n, n, publishers, interval)),
        });
        Self {
            roles: (0..subscribers)
                .map(|_| subscriber(0))
                .chain(publishing)
                .collect(),
            channels: 1,
            publishers_per_channel: publishers,
        }
    }

    fn lobbies(lobbies: u32, members: u32, rate: f64) -> Self {
        let total = lobbies * members;
        let member = |n: u32| Role {
            channel: n / members,
            subscribes: true,
            // The members of a lobby take turns over the whole interval.
            publishes: Some(schedule(
                n % members,
                n % members * lobbies + n / members,
                total,
                micros(1.0 / rate),
            )),
        };
        Self {
            roles: (0..total).map(member).collect(),
            channels: lobbies,
            publishers_per_channel: members,
        }
    }

    fn groups(connections: u32, group: u32, rate: f64) -> Self {
        let groups = connections.div_ceil(group);
        let member = |n: u32| Role {
            channel: n / group,
            subscribes: true,
            publishes: n
                .is_multiple_of(group)
                .then(|| schedule(0, n / group, groups, micros(1.0 / rate))),
        };
        Self {
            roles: (0..connections).map(member).collect(),
            channels: groups,
            publishers_per_channel: 1,
        }
    }

    /// The roles of one of `processes` processes: every so-many-th, so that each
    /// has a share of everything.
    pub(super) fn share(&self, index: u32, processes: u32) -> impl Iterator<Item = &Role> {
        self.roles
            .iter()
            .skip(index as usize)
            .step_by(processes as usize)
    }

    /// Deliveries per second when everything arrives.
    pub(super) fn deliveries_per_second(&self) -> f64 {
        let mut subscribers = vec![0_u32; self.channels as usize];
        for role in self.roles.iter().filter(|role| role.subscribes) {
            subscribers[role.channel as usize] += 1;
        }
        let rate = |role: &Role| {
            let schedule = role.publishes.as_ref()?;
            #[expect(clippy::cast_precision_loss, reason = "for people")]
            let per_second = SECOND as f64 / schedule.interval as f64;
            Some(per_second * f64::from(subscribers[role.channel as usize]))
        };
        self.roles
            .iter()
            .filter_map(rate)
            .fold(0.0, |sum, rate| sum + rate)
    }
}

fn subscriber(channel: u32) -> Role {
    Role {
        channel,
        subscribes: true,
        publishes: None,
    }
}

/// Spreads `total` publishers evenly over one interval.
fn schedule(publisher: u32, n: u32, total: u32, interval: Micros) -> Schedule {
    let interval = interval.max(1);
    let phase = interval * u64::from(n) / u64::from(total.max(1));
    Schedule {
        publisher,
        interval,
        phase,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_member_of_every_lobby_publishes_once_per_interval_at_its_own_time() {
        let plan = Plan::new(&Scenario::Lobby {
            lobbies: 3,
            members: 4,
            rate: 2.0,
        });
        let mut phases: Vec<_> = plan
            .roles
            .iter()
            .map(|role| role.publishes.as_ref().unwrap().phase)
            .collect();
        assert_eq!(phases.len(), 12);
        phases.sort_unstable();
        assert!(
            phases.windows(2).all(|pair| pair[0] < pair[1]),
            "{phases:?}"
        );
        assert!(phases.iter().all(|phase| *phase < 500_000));
        assert!((plan.deliveries_per_second() - 3.0 * 4.0 * 4.0 * 2.0).abs() < 1e-6);
    }

    #[test]
    fn the_shares_of_all_processes_are_the_whole_plan() {
        let plan = Plan::new(&Scenario::Fanout {
            subscribers: 10,
            rate: 5.0,
            publishers: 2,
        });
        let shared: usize = (0..3).map(|index| plan.share(index, 3).count()).sum();
        assert_eq!(shared, plan.roles.len());
        assert!((plan.deliveries_per_second() - 50.0).abs() < 1e-6);
    }

    #[test]
    fn the_last_group_may_be_smaller_and_still_has_a_publisher() {
        let plan = Plan::new(&Scenario::Hold {
            connections: 25,
            group: 10,
            rate: 1.0,
        });
        assert_eq!(plan.channels, 3);
        assert_eq!(
            plan.roles
                .iter()
                .filter(|role| role.publishes.is_some())
                .count(),
            3
        );
    }
}

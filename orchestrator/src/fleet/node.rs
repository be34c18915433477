//! One node: its slot, its process's stream, and what it last reported.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use muster_proto::control::{self as pb, heartbeat, node_command::Command, node_status::Stats};
use muster_wire::Millis;
use tokio::sync::mpsc;

use crate::{
    node::{NodeId, Role},
    program::Program,
    supervisor::{Health, Phase, Slot},
};

/// Heartbeats over which a worker's lag is looked at.
const LAGS: usize = 3;

/// One slot, its process's stream, and what it last reported.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) slot: Slot,
    /// When the current process was started.
    pub(crate) born: Millis,
    /// What its next process is started from.
    pub(crate) program: Arc<Program>,
    /// Its process is of the update that is under way.
    pub(crate) is_new: bool,
    pub(super) stream: Option<NodeStream>,
    stats: Option<Stats>,
    /// Heartbeats of the process, and how late it was in each of the last ones.
    beats: u64,
    lags: VecDeque<Duration>,
    counted: Option<Counted>,
    rate: Rate,
    /// The view epoch that was applied last.
    pub(super) applied: u64,
    /// A worker's links that stood after that.
    pub(super) links: Option<u32>,
}

#[derive(Debug)]
pub(super) struct NodeStream {
    pub(super) number: u64,
    pub(super) commands: mpsc::Sender<Command>,
}

/// Messages per second between the last two heartbeats.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Rate {
    /// Publications that came in.
    pub(crate) publications: u64,
    /// Publications that went out, once per receiver.
    pub(crate) deliveries: u64,
}

#[derive(Debug, Clone, Copy)]
struct Counted {
    at: Millis,
    publications: u64,
    deliveries: u64,
}

impl Node {
    pub(super) fn new(slot: Slot, program: Arc<Program>) -> Self {
        Self {
            slot,
            born: Millis(0),
            program,
            is_new: false,
            stream: None,
            stats: None,
            beats: 0,
            lags: VecDeque::with_capacity(LAGS),
            counted: None,
            rate: Rate::default(),
            applied: 0,
            links: None,
        }
    }

    /// A new process fills the slot: what the last one reported is history.
    pub(crate) fn reborn(&mut self, now: Millis) {
        self.born = now;
        self.stats = None;
        self.beats = 0;
        self.lags.clear();
        self.counted = None;
        self.rate = Rate::default();
        self.view_applied(0);
    }

    /// What it says of its links from now on is about this view.
    pub(crate) fn view_applied(&mut self, epoch: u64) {
        self.applied = epoch;
        self.links = None;
    }

    /// What the process reported last.
    pub(crate) fn stats(&self) -> Option<&Stats> {
        self.stats.as_ref()
    }

    /// When that was.
    pub(crate) fn reported_at(&self) -> Option<Millis> {
        self.counted.map(|counted| counted.at)
    }

    /// Heartbeats of the process so far.
    pub(crate) fn beats(&self) -> u64 {
        self.beats
    }

    /// How a worker is; `None` as long as it has not said so.
    pub(crate) fn health(&self, now: Millis) -> Option<Health> {
        let Some(Stats::Worker(stats)) = &self.stats else {
            return None;
        };
        let has_all = self.lags.len() == LAGS;
        let lag = self.lags.iter().min().filter(|_| has_all);
        Some(Health {
            connections: stats.connections,
            abnormal_closes: stats.abnormal_closes,
            age: now.since(self.born),
            memory_bytes: stats.memory_bytes,
            lag: lag.copied().unwrap_or_default(),
        })
    }

    pub(crate) fn rate(&self) -> Rate {
        self.rate
    }

    pub(crate) fn heartbeat(&mut self, now: Millis, heartbeat: pb::Heartbeat) {
        let Some(stats) = heartbeat.stats else {
            return;
        };
        let (stats, publications, deliveries) = match stats {
            heartbeat::Stats::Worker(stats) => {
                (Stats::Worker(stats), stats.publications, stats.deliveries)
            }
            heartbeat::Stats::Broker(stats) => {
                (Stats::Broker(stats), stats.publications, stats.relayed)
            }
        };
        let counted = Counted {
            at: now,
            publications,
            deliveries,
        };
        self.beats += 1;
        if let Stats::Worker(worker) = &stats {
            self.links = Some(worker.links);
            if self.lags.len() == LAGS {
                self.lags.pop_front();
            }
            self.lags.push_back(Duration::from_micros(worker.lag_us));
        }
        if let Some(before) = self.counted.replace(counted) {
            let passed = now.since(before.at);
            self.rate = Rate {
                publications: per_second(before.publications, publications, passed),
                deliveries: per_second(before.deliveries, deliveries, passed),
            };
        }
        self.stats = Some(stats);
    }

    /// The node in an operator's answer.
    pub(crate) fn status(&self, id: NodeId, now: Millis) -> pb::NodeStatus {
        let life = self.slot.life();
        let uptime = life.map_or(Duration::ZERO, |_| now.since(self.born));
        let state = match self.slot.phase() {
            Phase::Starting { .. } | Phase::Ready { .. } if id.role == Role::Successor => {
                "successor"
            }
            Phase::Starting { .. } if self.slot.restarts() > 0 => "restarting",
            Phase::Waiting { .. } if self.slot.restarts() > 0 => "restarting",
            Phase::Hung { .. } => "restarting",
            Phase::Starting { .. } | Phase::Waiting { .. } => "starting",
            Phase::Ready { .. } => "ready",
            Phase::Draining { .. } => "draining",
            Phase::Stopping { .. } | Phase::Stopped => "stopping",
        };
        pb::NodeStatus {
            role: pb::Role::from(id.role).into(),
            slot: id.slot,
            incarnation: life.map_or(0, |life| life.incarnation),
            pid: life.map_or(0, |life| life.pid),
            state: state.into(),
            restarts: self.slot.restarts(),
            last_exit: self
                .slot
                .last_exit()
                .map(ToString::to_string)
                .unwrap_or_default(),
            uptime_ms: u64::try_from(uptime.as_millis()).unwrap_or(u64::MAX),
            stats: self.stats,
        }
    }
}

fn per_second(before: u64, after: u64, passed: Duration) -> u64 {
    let millis = u64::try_from(passed.as_millis()).unwrap_or(u64::MAX).max(1);
    after.saturating_sub(before).saturating_mul(1000) / millis
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng as _, rngs::SmallRng};

    use super::{
        super::tests::{ID, fleet},
        *,
    };
    use crate::supervisor::Event;

    fn worker_heartbeat(publications: u64, deliveries: u64) -> pb::Heartbeat {
        pb::Heartbeat {
            stats: Some(heartbeat::Stats::Worker(pb::WorkerStats {
                publications,
                deliveries,
                ..pb::WorkerStats::default()
            })),
        }
    }

    #[test]
    fn rates_are_between_two_heartbeats_of_one_life() {
        let mut fleet = fleet();
        let node = fleet.get_mut(ID).unwrap();
        node.heartbeat(Millis(1_000), worker_heartbeat(100, 1_000));
        assert_eq!(node.rate(), Rate::default());
        node.heartbeat(Millis(3_000), worker_heartbeat(300, 5_000));
        let rate = Rate {
            publications: 100,
            deliveries: 2_000,
        };
        assert_eq!(node.rate(), rate);
        node.reborn(Millis(4_000));
        node.heartbeat(Millis(5_000), worker_heartbeat(3, 5));
        assert_eq!(node.rate(), Rate::default());
    }

    #[test]
    fn a_workers_lag_is_the_best_of_three_heartbeats_of_one_life() {
        let mut fleet = fleet();
        let node = fleet.get_mut(ID).unwrap();
        assert_eq!(node.health(Millis(0)), None);
        let mut lag_after = |lag_us| {
            let stats = pb::WorkerStats {
                lag_us,
                ..pb::WorkerStats::default()
            };
            let stats = Some(heartbeat::Stats::Worker(stats));
            node.heartbeat(Millis(0), pb::Heartbeat { stats });
            node.health(Millis(0)).unwrap().lag.as_micros()
        };
        assert_eq!(
            [900, 800, 700, 950, 990, 3].map(&mut lag_after),
            [0, 0, 700, 700, 700, 3]
        );
        assert_eq!(node.beats(), 6);
        node.reborn(Millis(4_000));
        assert_eq!((node.beats(), node.health(Millis(4_000))), (0, None));
    }

    #[test]
    fn a_node_that_replaces_another_is_restarting_until_it_is_ready() {
        let mut fleet = fleet();
        let mut rng = SmallRng::seed_from_u64(1);
        let node = fleet.get_mut(ID).unwrap();
        assert_eq!(node.status(ID, Millis(5)).state, "starting");
        let exited = Event::Exited {
            incarnation: 1,
            exit: crate::supervisor::Exit::default(),
        };
        for (event, state) in [
            (exited, "restarting"),
            (Event::Woken, "restarting"),
            (Event::Started { pid: 78 }, "restarting"),
            (Event::Ready { incarnation: 2 }, "ready"),
            (Event::Stop, "stopping"),
        ] {
            let _ = node.slot.handle(Millis(5), event, &mut rng);
            assert_eq!(node.status(ID, Millis(5)).state, state);
        }
    }
}

//! More and fewer nodes while the cluster runs; how workers come and go.

use std::time::Duration;

use muster_proto::control as pb;
use muster_wire::Millis;
use tracing::{info, warn};

use super::{Cluster, Number, Stage, WORKER_GRACE};
use crate::{
    control::{Goal, ScaleRefused},
    node::{NodeId, Role},
    supervisor::{Event, Phase},
};

impl Cluster {
    /// Begins to make the cluster as large as `goal` says; all of it or nothing.
    pub(super) fn scale(
        &mut self,
        now: Millis,
        goal: Goal,
    ) -> Result<pb::ScaleResponse, ScaleRefused> {
        if !self.may_scale() {
            return Err(ScaleRefused::Ending);
        }
        if self.is_updating() {
            return Err(ScaleRefused::Updating);
        }
        if let Some(brokers) = goal.brokers {
            self.may_scale_brokers(brokers)?;
        }
        let within = self.settings.shutdown_timeout;
        let mut answer = pb::ScaleResponse {
            within_ms: u64::try_from(within.as_millis()).unwrap_or(u64::MAX),
            ..pb::ScaleResponse::default()
        };
        if let Some(workers) = goal.workers {
            self.scale_workers(now, workers, &mut answer);
        }
        if let Some(brokers) = goal.brokers {
            self.scale_brokers(now, brokers, &mut answer);
        }
        answer.workers = self.settings.size.workers;
        answer.brokers = self.settings.size.brokers;
        Ok(answer)
    }

    /// Makes `workers` the number of workers; the highest slots go first. What
    /// an earlier call began and this one does not want is undone as soon as
    /// it has ended.
    fn scale_workers(&mut self, now: Millis, workers: u32, answer: &mut pb::ScaleResponse) {
        info!(
            from = self.settings.size.workers,
            to = workers,
            "Changing the number of workers."
        );
        self.settings.size.workers = workers;
        for slot in 1..=workers {
            let id = worker(slot);
            if self.fleet.add(id) || self.is_leaving(id) {
                answer.starting.push(slot);
            }
        }
        if !answer.starting.is_empty() {
            self.rebalance_when_ready(now);
        }
        let within = self.settings.shutdown_timeout;
        let until = now + within + WORKER_GRACE;
        for id in self.fleet.ids(Role::Worker) {
            if id.slot > workers {
                self.feed(now, id, Event::Drain { until });
                answer.draining.push(id.slot);
            }
        }
    }

    /// Begins to end the cluster, and has its clients come back at once: to the
    /// cluster of another host, where a load balancer sends them there.
    pub(super) fn drain(&mut self, now: Millis, within: Option<Duration>) {
        if !self.may_scale() {
            return;
        }
        let within = within.unwrap_or(self.settings.shutdown_timeout);
        info!(
            ?within,
            "Ending: clients are closed so that they come back at once."
        );
        let until = now + within + WORKER_GRACE;
        self.stage = Stage::EndingWorkers {
            until: until + WORKER_GRACE,
        };
        self.service.stopping();
        for role in [Role::Worker, Role::Successor] {
            for id in self.fleet.ids(role) {
                self.feed(now, id, Event::Drain { until });
            }
        }
    }

    /// Removes the slots whose workers have ended for good, or fills them again
    /// if they are wanted meanwhile.
    pub(super) fn retire_workers(&mut self) {
        if !self.may_scale() {
            return;
        }
        for id in self.fleet.ids(Role::Worker) {
            if self.phase(id) == Some(Phase::Stopped) {
                self.fleet.remove(id);
                if id.slot <= self.settings.size.workers {
                    self.fleet.add(id);
                } else {
                    info!(node = %id, "Worker is gone.");
                }
            }
        }
    }

    pub(super) fn tell_to_drain(&mut self, now: Millis, id: NodeId, until: Millis) {
        if id.role == Role::Broker {
            // The view says it: it has no shards any more.
            return;
        }
        if self.may_scale() && self.order_to_leave(until, id) {
            return;
        }
        let within = until.since(now).saturating_sub(WORKER_GRACE);
        info!(node = %id, ?within, "Worker is to close its clients and end.");
        self.tell_to_close(id, within);
    }

    /// A worker whose stream broke may have missed what it was told.
    pub(super) fn remind_to_drain(&mut self, now: Millis, id: NodeId) {
        if let Some(Phase::Draining { until, .. }) = self.phase(id) {
            self.tell_to_drain(now, id, until);
        }
    }

    pub(super) fn cut(&self, node: NodeId, pid: u32) {
        warn!(%node, pid, "Node has not ended in time: killing it.");
        self.signal(node, pid, Number::KILL);
    }

    fn may_scale(&self) -> bool {
        matches!(self.stage, Stage::Starting | Stage::Running)
    }

    fn is_leaving(&mut self, id: NodeId) -> bool {
        match self.phase(id) {
            Some(Phase::Draining { .. } | Phase::Stopping { .. } | Phase::Stopped) => true,
            Some(
                Phase::Waiting { .. }
                | Phase::Starting { .. }
                | Phase::Ready { .. }
                | Phase::Hung { .. },
            )
            | None => false,
        }
    }

    fn phase(&mut self, id: NodeId) -> Option<Phase> {
        self.fleet.get_mut(id).map(|node| node.slot.phase())
    }
}

fn worker(slot: u32) -> NodeId {
    NodeId {
        role: Role::Worker,
        slot,
    }
}

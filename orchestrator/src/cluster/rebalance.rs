//! Connections that go from some workers to others because those leave, are new,
//! or have fewer.

use std::{collections::BTreeMap, time::Duration};

use muster_proto::control::{self as pb, node_command::Command, node_status::Stats};
use muster_wire::Millis;
use tokio::sync::oneshot;
use tracing::{info, warn};

use super::{Cluster, Stage, WORKER_GRACE, orders::Purpose, update::worker};
use crate::{
    control::RebalanceRefused,
    fleet::Node,
    node::{NodeId, Role},
    supervisor::{Load, Move, Phase, even_out, share_out},
};

/// Clients come and go while connections move, so it looks again; so many times
/// at most, since it will not win a race against a crowd.
const ROUNDS_MAX: u32 = 4;

type Answer = oneshot::Sender<Result<pb::RebalanceResponse, RebalanceRefused>>;

/// What evens the workers out, while it goes on.
#[derive(Debug, Default)]
pub(super) struct Rebalance {
    /// Since when it is wanted, or another look at what it has come to: what a
    /// worker reported before says nothing about now.
    wanted: Option<Millis>,
    /// Times it has ordered anything since it was wanted.
    rounds: u32,
    /// Orders that are not through.
    open: usize,
    result: pb::RebalanceResponse,
    /// Operators that wait for its end.
    answers: Vec<Answer>,
}

impl Cluster {
    /// New workers come: they get connections once all are ready.
    pub(super) fn rebalance_when_ready(&mut self, now: Millis) {
        self.rebalance.wanted = Some(now);
    }

    /// An operator wants it, and is told what came of it.
    pub(super) fn begin_rebalance(&mut self, now: Millis, answer: Answer) {
        let refused = match self.stage {
            Stage::Running if self.is_updating() => Some(RebalanceRefused::Updating),
            Stage::Running => None,
            Stage::Starting => Some(RebalanceRefused::Starting),
            Stage::EndingWorkers { .. } | Stage::EndingBrokers { .. } | Stage::Killing { .. } => {
                Some(RebalanceRefused::Ending)
            }
        };
        if let Some(refused) = refused {
            // An operator that gave up needs no answer, here and below.
            let _ = answer.send(Err(refused));
            return;
        }
        self.rebalance.answers.push(answer);
        self.rebalance.wanted = Some(now);
    }

    /// Does what is due for it.
    pub(super) fn advance_rebalance(&mut self) {
        let Some(since) = self.rebalance.wanted else {
            return;
        };
        let is_busy = self.orders.is_open() || self.is_updating() || self.rebalance.open > 0;
        if is_busy || self.stage != Stage::Running {
            return;
        }
        let ready = |phase| matches!(phase, Phase::Ready { .. });
        if !self.fleet.all(Role::Worker, ready) || !self.have_all_reported(since) {
            return;
        }
        self.rebalance.wanted = None;
        let loads = if self.rebalance.rounds < ROUNDS_MAX {
            self.loads(0)
        } else {
            Vec::new()
        };
        let mut by_giver: BTreeMap<u32, Vec<(NodeId, u32)>> = BTreeMap::new();
        for Move {
            from,
            to,
            connections,
        } in even_out(&loads)
        {
            let connections = u32::try_from(connections).unwrap_or(u32::MAX);
            by_giver
                .entry(from)
                .or_default()
                .push((worker(to), connections));
        }
        for (from, targets) in by_giver {
            let order = self.order(worker(from), &targets, Purpose::Rebalance, false);
            self.rebalance.open += usize::from(order.is_some());
        }
        if self.rebalance.open == 0 {
            self.conclude_rebalance();
        } else {
            self.rebalance.rounds += 1;
        }
    }

    /// An order of it is through, or will never be.
    pub(super) fn rebalanced(&mut self, now: Millis, report: Option<&pb::HandedOver>) {
        let result = &mut self.rebalance.result;
        if let Some(report) = report {
            result.moved += report.moved;
            result.failed += report.failed;
            if !report.error.is_empty() {
                result.error.clone_from(&report.error);
            }
        } else {
            result.error = "a worker ended meanwhile".to_owned();
        }
        self.rebalance.open = self.rebalance.open.saturating_sub(1);
        if self.rebalance.open > 0 {
            return;
        }
        if self.rebalance.result.error.is_empty() {
            self.rebalance.wanted = Some(now);
        } else {
            self.conclude_rebalance();
        }
    }

    fn conclude_rebalance(&mut self) {
        let result = std::mem::take(&mut self.rebalance.result);
        self.rebalance.rounds = 0;
        info!(
            moved = result.moved,
            failed = result.failed,
            error = result.error,
            "The workers are evened out."
        );
        for answer in self.rebalance.answers.drain(..) {
            let _ = answer.send(Ok(result.clone()));
        }
    }

    /// A worker that goes gives its connections to those that stay; what is left
    /// then, or all if that fails, it closes. False if nobody takes them.
    pub(super) fn order_to_leave(&mut self, until: Millis, id: NodeId) -> bool {
        if self.orders.has_open(id) {
            // It is told again with the others when it joins again.
            return true;
        }
        let connections = self.connections_of(id);
        let mut staying = self.loads(id.slot);
        let shares = share_out(connections, &mut staying);
        let share = |(slot, share)| (worker(slot), u32::try_from(share).unwrap_or(u32::MAX));
        let mut targets: Vec<(NodeId, u32)> = shares.into_iter().map(share).collect();
        if targets.is_empty() {
            let lowest = staying.iter().min_by_key(|(_, load)| *load);
            targets.extend(lowest.map(|(slot, _)| (worker(*slot), 0)));
        }
        // With whatever it has got since it last said how many it has.
        match targets.last_mut() {
            Some((_, share)) => *share = 0,
            None => return false,
        }
        self.order(id, &targets, Purpose::Leave { until }, true)
            .is_some()
    }

    /// A worker that goes has given away what it could.
    pub(super) fn left_by(
        &mut self,
        now: Millis,
        id: NodeId,
        until: Millis,
        report: &pb::HandedOver,
    ) {
        if !report.error.is_empty() {
            warn!(node = %id, error = report.error, "A worker that goes could not hand over.");
        }
        let within = until.since(now).saturating_sub(WORKER_GRACE);
        self.tell_to_close(id, within);
    }

    /// Tells a worker to close what it has, and to end.
    pub(super) fn tell_to_close(&mut self, id: NodeId, within: Duration) {
        let within_ms = u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
        if !self.fleet.send(id, Command::Drain(pb::Drain { within_ms })) {
            // Told when it joins again; if it does not, its time runs out.
            self.leave(id);
        }
    }

    fn have_all_reported(&self, since: Millis) -> bool {
        let mut workers = self.fleet.nodes().filter(|(id, _)| id.role == Role::Worker);
        workers.all(|(_, node)| node.reported_at().is_some_and(|at| at > since))
    }

    /// Connections of the workers that stay without this one, as they last
    /// reported. Those that are not ready count only where none is.
    fn loads(&self, without: u32) -> Vec<Load> {
        let size = self.settings.size.workers;
        let staying = |id: NodeId| id.role == Role::Worker && id.slot <= size && id.slot != without;
        let of = |is_meant: &dyn Fn(&Node) -> bool| -> Vec<Load> {
            let nodes = self.fleet.nodes();
            let meant = nodes.filter(|(id, node)| staying(*id) && is_meant(node));
            meant
                .map(|(id, node)| (id.slot, connections(node)))
                .collect()
        };
        let ready = of(&|node| matches!(node.slot.phase(), Phase::Ready { .. }));
        if ready.is_empty() {
            of(&|node| node.slot.life().is_some())
        } else {
            ready
        }
    }

    fn connections_of(&self, id: NodeId) -> u64 {
        let mut nodes = self.fleet.nodes();
        let node = nodes.find(|(other, _)| *other == id);
        node.map_or(0, |(_, node)| connections(node))
    }
}

fn connections(node: &Node) -> u64 {
    match node.stats() {
        Some(Stats::Worker(stats)) => stats.connections,
        Some(Stats::Broker(_)) | None => 0,
    }
}

//! Orders to workers to hand connections over, and what comes of them.

use std::collections::BTreeMap;

use muster_proto::control::{self as pb, node_command::Command};
use muster_wire::Millis;
use rustix::process::Signal;
use tracing::{info, warn};

use super::Cluster;
use crate::node::NodeId;

/// What connections are handed over for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Another process fills the slot.
    Update,
    /// The worker goes, and is cut off then.
    Leave { until: Millis },
    /// The workers are to have the same.
    Rebalance,
}

/// Orders that are under way.
#[derive(Debug, Default)]
pub(super) struct Orders {
    last_id: u64,
    open: BTreeMap<u64, Order>,
}

#[derive(Debug)]
struct Order {
    from: NodeId,
    purpose: Purpose,
    command: pb::HandOver,
}

impl Orders {
    /// As for queries: a worker may still answer an earlier orchestrator's.
    pub(super) fn after(last_id: u64) -> Self {
        Self {
            last_id,
            open: BTreeMap::new(),
        }
    }

    pub(super) fn is_open(&self) -> bool {
        !self.open.is_empty()
    }

    /// Whether the worker has an order that it is not through with.
    pub(super) fn has_open(&self, from: NodeId) -> bool {
        self.open.values().any(|order| order.from == from)
    }
}

impl Cluster {
    /// Orders a worker to hand connections over to others, to each at most so
    /// many (0: all that are left), and with `leave` to take none meanwhile.
    /// `None` if it cannot be told.
    pub(super) fn order(
        &mut self,
        from: NodeId,
        targets: &[(NodeId, u32)],
        purpose: Purpose,
        leave: bool,
    ) -> Option<u64> {
        let targets = targets.iter().filter_map(|(to, connections)| {
            let life = self.fleet.get_mut(*to).and_then(|node| node.slot.life())?;
            Some(pb::HandOverTarget {
                slot: to.slot,
                incarnation: life.incarnation,
                connections: *connections,
            })
        });
        let targets: Vec<_> = targets.collect();
        let id = self.orders.last_id + 1;
        info!(node = %from, id, targets = targets.len(), "Worker is to hand connections over.");
        let command = pb::HandOver { id, targets, leave };
        if !self.fleet.send(from, Command::HandOver(command.clone())) {
            self.leave(from);
            return None;
        }
        self.orders.last_id = id;
        let order = Order {
            from,
            purpose,
            command,
        };
        self.orders.open.insert(id, order);
        Some(id)
    }

    /// A worker whose stream broke may have missed what it was told, and what it
    /// said may be lost.
    pub(super) fn remind_of_orders(&mut self, from: NodeId) {
        let open = self.orders.open.values();
        let of_it = open.filter(|order| order.from == from);
        let commands: Vec<_> = of_it.map(|order| order.command.clone()).collect();
        for command in commands {
            if !self.fleet.send(from, Command::HandOver(command)) {
                self.leave(from);
                return;
            }
        }
    }

    /// A worker says how its order stands.
    pub(super) fn handed_over(&mut self, now: Millis, report: &pb::HandedOver) {
        if report.stuck_incarnation > 0 {
            self.end_stuck(report.stuck_slot, report.stuck_incarnation);
        }
        if !report.done {
            self.update_goes_on(report);
            return;
        }
        let Some(order) = self.orders.open.remove(&report.id) else {
            return;
        };
        info!(
            node = %order.from,
            id = report.id,
            moved = report.moved,
            failed = report.failed,
            left = report.left,
            error = report.error,
            "Connections were handed over."
        );
        match order.purpose {
            Purpose::Update => self.update_handed_over(order.from, report),
            Purpose::Leave { until } => self.left_by(now, order.from, until, report),
            Purpose::Rebalance => self.rebalanced(now, Some(report)),
        }
    }

    /// A worker has ended: it carries no order out any more.
    pub(super) fn end_orders(&mut self, now: Millis, from: NodeId) {
        let open = self.orders.open.iter();
        let of_it = open.filter(|(_, order)| order.from == from);
        let of_it: Vec<u64> = of_it.map(|(id, _)| *id).collect();
        for id in of_it {
            let Some(order) = self.orders.open.remove(&id) else {
                continue;
            };
            match order.purpose {
                Purpose::Update => self.update_order_lost(id),
                Purpose::Leave { .. } => {}
                Purpose::Rebalance => self.rebalanced(now, None),
            }
        }
    }

    /// It has connections that are committed to it and does not say that they
    /// run: only its end gives them back (delivery.md D3).
    fn end_stuck(&self, slot: u32, incarnation: u64) {
        for (id, node) in self.fleet.nodes() {
            if id.slot == slot
                && let Some(life) = node.slot.life()
                && life.incarnation == incarnation
            {
                warn!(node = %id, "A worker stands still while it takes over: killing it.");
                self.signal(id, life.pid, Signal::KILL);
            }
        }
    }
}

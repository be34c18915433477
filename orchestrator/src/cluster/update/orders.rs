//! What an update orders of workers, and what they say to that.

use std::time::Duration;

use muster_proto::control::{self as pb, node_command::Command};

use super::{
    super::{Cluster, orders::Purpose},
    LEAVE_WITHIN,
    run::{Moves, successor, worker},
};
use crate::{
    fleet::Node,
    node::{NodeId, Role},
    supervisor::{Handed, judge_moves},
};

impl Cluster {
    pub(super) fn order_update(&mut self, slot: u32, from: NodeId, to: NodeId) {
        let order = self.order(from, &[(to, 0)], Purpose::Update, true);
        let Some(run) = &mut self.update else {
            return;
        };
        let tally = run.slots.entry(slot).or_default();
        tally.handed = match order {
            Some(_) => Handed::NotYet,
            None => Handed::Failed {
                reason: format!("{from} is not joined"),
                has_moved: false,
            },
        };
        tally.order = order;
    }

    /// The worker is to end its hand-over in between. One that cannot be told goes
    /// on; what it hands over comes back then.
    pub(super) fn call_off(&mut self, slot: u32) {
        let run = self.update.as_ref();
        let order = run.and_then(|run| run.slots.get(&slot)?.order);
        if let Some(id) = order
            && !self
                .fleet
                .send(worker(slot), Command::CallOff(pb::CallOff { id }))
        {
            self.leave(worker(slot));
        }
    }

    /// What an order of the update has come to so far.
    pub(in crate::cluster) fn update_goes_on(&mut self, report: &pb::HandedOver) {
        let Some(run) = &mut self.update else {
            return;
        };
        if let Some(slot) = run.slot_of(report.id)
            && let Some(tally) = run.slots.get_mut(&slot)
        {
            tally.moves = Moves::reported(report);
        }
    }

    /// The same in the end.
    pub(in crate::cluster) fn update_handed_over(&mut self, from: NodeId, report: &pb::HandedOver) {
        let Some(run) = &mut self.update else {
            return;
        };
        let Some(slot) = run.slot_of(report.id) else {
            return;
        };
        run.count(slot, report);
        let is_back = from.role == Role::Successor;
        // The earlier program gets what it can get.
        let is_judged = !is_back && !run.machine.is_going_back();
        let refused = judge_moves(report.moved, report.failed, &self.settings.update);
        let handed = if !report.error.is_empty() {
            Handed::Failed {
                reason: report.error.clone(),
                has_moved: report.moved > 0,
            }
        } else if let Some(reason) = refused.filter(|_| is_judged) {
            Handed::Failed {
                reason: format!("{reason}: {}", report.note),
                has_moved: report.moved > 0,
            }
        } else {
            Handed::All
        };
        let is_through = handed == Handed::All;
        let beats = self.fleet.get(successor(slot));
        let beats = beats.map_or(0, Node::beats);
        if let Some(tally) = run.slots.get_mut(&slot) {
            tally.handed = handed;
            tally.beats = beats;
        }
        if is_back && is_through {
            self.tell_to_leave(from);
        }
    }

    /// It has handed over, and is to end.
    pub(super) fn tell_to_leave(&mut self, from: NodeId) {
        let within_ms = millis(LEAVE_WITHIN);
        let drain = Command::Drain(pb::Drain { within_ms });
        if !self.fleet.send(from, drain) {
            self.leave(from);
        }
    }

    /// The worker that was to hand over has ended, or is not heard any more.
    pub(in crate::cluster) fn update_order_lost(&mut self, id: u64) {
        let Some(run) = &mut self.update else {
            return;
        };
        if let Some(slot) = run.slot_of(id)
            && let Some(tally) = run.slots.get_mut(&slot)
        {
            tally.order = None;
            tally.handed = Handed::Failed {
                reason: "it ended".to_owned(),
                has_moved: true,
            };
        }
    }

    /// One that was started to succeed another waits for that, or to be told that
    /// there is none.
    pub(in crate::cluster) fn tell_to_take_place(&mut self, slot: u32) {
        let has_successor = self.fleet.get(successor(slot)).is_some();
        let command = Command::TakePlace(pb::TakePlace {});
        if !has_successor && !self.fleet.send(worker(slot), command) {
            // Told when it joins again.
            self.leave(worker(slot));
        }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

//! Nodes that do nothing: they run and hang, or end again and again.

use std::time::Duration;

use muster_wire::Millis;
use tracing::{info, warn};

use super::{Cluster, Number, Stage};
use crate::{
    node::{NodeId, Role},
    supervisor::Event,
};

impl Cluster {
    /// What this process did not hear because it stood still itself is no
    /// node's silence.
    pub(super) fn forgive_silence(&mut self, now: Millis) {
        let lost = self.turns.turn(now);
        if lost == Duration::ZERO {
            return;
        }
        if lost == Duration::MAX {
            info!("The orchestrator stood still; waiting for the nodes anew.");
        }
        for role in super::ROLES {
            for id in self.fleet.ids(role) {
                self.feed(now, id, Event::Deaf(lost));
            }
        }
    }

    /// Shards of a broker in a crash loop move to the others, and back once it
    /// is settled.
    pub(super) fn set_brokers_aside(&mut self, now: Millis) {
        let looping = self.fleet.crash_looping(Role::Broker);
        if !matches!(self.stage, Stage::Running) || looping == *self.membership.aside() {
            return;
        }
        for slot in looping.difference(self.membership.aside()) {
            warn!(node = %broker(*slot), "Broker ends again and again: its shards move to the others.");
        }
        for slot in self.membership.aside().difference(&looping) {
            info!(node = %broker(*slot), "Broker is settled: it gets its shards back.");
        }
        let tells = self.membership.set_aside(now, looping);
        self.tell(tells);
    }

    /// Its end is then noticed like any other.
    pub(super) fn kill_hung(&self, node: NodeId, pid: u32, silent: Duration) {
        warn!(%node, pid, ?silent, "Node hangs: killing it to start another.");
        self.signal(node, pid, Number::KILL);
    }
}

fn broker(slot: u32) -> NodeId {
    NodeId {
        role: Role::Broker,
        slot,
    }
}

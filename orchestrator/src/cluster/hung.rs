//! Nodes that run and do nothing.

use std::time::Duration;

use muster_wire::Millis;
use tracing::{info, warn};

use super::{Cluster, Number, signal};
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
        for role in [Role::Broker, Role::Worker] {
            for id in self.fleet.ids(role) {
                self.feed(now, id, Event::Deaf(lost));
            }
        }
    }
}

/// Its end is then noticed like any other.
pub(super) fn kill_hung(node: NodeId, pid: u32, silent: Duration) {
    warn!(%node, pid, ?silent, "Node hangs: killing it to start another.");
    signal(pid, Number::KILL);
}

//! How nodes come to life, and what their end means.

use std::{sync::Arc, time::Duration};

use muster_wire::Millis;
use rustix::process::Signal as Number;
use tracing::{error, info, warn};

use super::{Cluster, ClusterError, Stage};
use crate::{
    node::{NodeId, Role},
    spawn::Ended,
    supervisor::{Action, Event, Exit},
};

impl Cluster {
    /// A node's process has ended.
    pub(super) fn ended(&mut self, now: Millis, ended: Ended) {
        let Ended {
            node: id,
            incarnation,
            exit,
        } = ended;
        // A successor may fill the slot by now.
        let id = self.fleet.of_life(id, incarnation).unwrap_or(id);
        self.leave(id);
        self.adopted.remove(&id);
        self.end_orders(now, id);
        if id.role == Role::Successor {
            self.successor_ended(id.slot, &exit);
            return;
        }
        if id.role == Role::Worker && self.succeed(id.slot) {
            return;
        }
        self.note_exit(id, &exit);
        let address = self.membership.address(id);
        if let Some(socket) = address.and_then(|address| address.strip_prefix("unix:")) {
            // One that ended by itself has removed it.
            let _ = std::fs::remove_file(socket);
        }
        let is_announced = self.following_ended(id, incarnation, &exit);
        let exited = Event::Exited {
            incarnation,
            exit: exit.clone(),
        };
        self.feed(now, id, exited);
        let next = self.fleet.get_mut(id).and_then(|node| node.slot.wake_at());
        match next.map(|at| at.since(now)) {
            None => info!(node = %id, %exit, "Node ended."),
            Some(_) if is_announced => info!(node = %id, %exit, "Node made place for another."),
            Some(Duration::ZERO) => warn!(node = %id, %exit, "Node ended, starting it again."),
            Some(wait) => {
                error!(node = %id, %exit, ?wait, "Node ends again and again, waiting to start it.");
            }
        }
    }

    /// Feeds a slot and does what it decides.
    pub(super) fn feed(&mut self, now: Millis, id: NodeId, event: Event) {
        let Some(node) = self.fleet.get_mut(id) else {
            return;
        };
        match node.slot.handle(now, event, &mut self.rng) {
            Action::Nothing => {}
            Action::Start { incarnation } => {
                node.reborn(now);
                let program = Arc::clone(&node.program);
                let event = match self.spawner.start(&program, id, incarnation) {
                    Ok(started) => {
                        let pid = started.pid;
                        info!(node = %id, pid, "Node started.");
                        self.children
                            .spawn(self.spawner.attend(id, incarnation, started));
                        Event::Started { pid }
                    }
                    Err(error) => {
                        warn!(node = %id, %error, "Node cannot be started.");
                        let reason = error.to_string();
                        if id.role == Role::Successor {
                            let status = format!("cannot be started: {reason}");
                            let last_line = None;
                            self.successor_ended(id.slot, &Exit { status, last_line });
                            return;
                        }
                        let status = format!("cannot be started: {reason}");
                        let last_line = None;
                        self.following_ended(id, incarnation, &Exit { status, last_line });
                        Event::StartFailed { reason }
                    }
                };
                self.feed(now, id, event);
            }
            Action::Terminate(life) => self.signal(id, life.pid, Number::TERM),
            Action::Drain { until, .. } => self.tell_to_drain(now, id, until),
            Action::Cut(life) => self.cut(id, life.pid),
            Action::Kill { life, silent } => self.kill_hung(id, life.pid, silent),
        }
        self.give_up_on_crash_loop(now, id);
    }

    /// A cluster that has never been whole and does not get there ends with the
    /// reason; one that was keeps trying.
    fn give_up_on_crash_loop(&mut self, now: Millis, id: NodeId) {
        let Some(node) = self.fleet.get_mut(id) else {
            return;
        };
        if self.stage == Stage::Starting && node.slot.is_crash_loop() {
            let exit = node.slot.last_exit().cloned().unwrap_or_default();
            self.failure = Some(ClusterError::DoesNotStart { node: id, exit });
            self.begin_end(now);
        }
    }
}

//! Going on with the nodes of an orchestrator that was killed, and writing down
//! what the next one needs for it (delivery.md E3).

use std::{sync::Arc, time::Duration};

use muster_daemon::{exit::chain, telemetry};
use muster_wire::Millis;
use rustix::process::Signal;
use tracing::{info, warn};

use super::{Cluster, Stage, WORKER_GRACE, signal, update::worker};
use crate::{
    adoption::{Adopted, Adoption},
    announce::announce,
    node::{NodeId, Role},
    process::Process,
    programs::Programs,
    state::{LifeState, State},
    supervisor::Life,
};

/// Longest that the end of an update waits for nodes to join again.
const REJOIN_MAX: Duration = Duration::from_secs(10);

impl Cluster {
    /// Takes over what an earlier orchestrator started. To be called before
    /// [`Cluster::run`], which starts what is missing.
    pub(crate) fn adopt(&mut self, now: Millis, adoption: Adoption) {
        let Adoption { state, nodes, .. } = adoption;
        let brokers = self.settings.size.brokers;
        let before = state.brokers_before.unwrap_or(state.size.brokers);
        self.membership.resume(state.view, |slot| slot <= brokers);
        self.started = state.started.min(now);
        if let Some(filter) = &state.log_filter
            && let Err(error) = telemetry::set_filter(filter)
        {
            warn!(
                error = chain(&error),
                "The log filter is the configuration's again."
            );
        }
        // They may have missed the last one.
        self.has_reloaded = true;
        self.last_update = state.last_update;
        if self.settings.is_executed_anew {
            self.rejoin_until = Some(now + REJOIN_MAX);
        }
        let pids: Vec<u32> = nodes.values().map(|node| node.life.pid).collect();
        let programs = state.programs.find(&pids);
        self.fleet.set_program(programs.of_new_slots());
        for role in super::ROLES {
            for id in self.fleet.ids(role) {
                if let Some(node) = self.fleet.get_mut(id) {
                    node.program = programs.of_slot(id);
                }
            }
        }
        let mut updating = None;
        let living: Vec<NodeId> = nodes.keys().copied().collect();
        for (id, Adopted { life, process }) in nodes {
            if id.role == Role::Successor {
                let program = programs.of_slot(id);
                self.fleet.add_successor(id.slot, program, true);
            }
            self.adopt_node(now, id, &life, Arc::new(process));
            if id.role == Role::Successor {
                if living.contains(&worker(id.slot)) {
                    updating = Some(id.slot);
                } else {
                    self.promote(id.slot);
                }
            }
        }
        // It was whole once, and its clients have noticed nothing.
        self.stage = Stage::Running;
        self.resume_resize(now, before);
        match updating {
            Some(slot) => self.resume_update(now, slot),
            None => self.fleet.forget_new(),
        }
        announce(&self.settings);
        self.service.ready();
    }

    fn adopt_node(&mut self, now: Millis, id: NodeId, life: &LifeState, process: Arc<Process>) {
        let LifeState {
            incarnation, pid, ..
        } = *life;
        // It is not among the slots if it was being scaled away.
        let is_leaving = self.fleet.add(id);
        let Some(node) = self.fleet.get_mut(id) else {
            return;
        };
        node.born = life.born.min(now);
        let adopted = Life { incarnation, pid };
        if is_leaving {
            let until = match id.role {
                Role::Worker | Role::Successor => {
                    now + self.settings.shutdown_timeout + WORKER_GRACE
                }
                Role::Broker => Self::brokers_cut_at(now),
            };
            node.slot.adopt_draining(adopted, until);
        } else {
            node.slot.adopt(now, adopted, life.restarts);
        }
        info!(node = %id, pid, "Node taken over.");
        self.adopted.insert(id, Arc::clone(&process));
        let attended = self.spawner.attend_adopted(id, incarnation, process);
        self.children.spawn(attended);
    }

    /// Writes down what the next orchestrator needs, if that has changed.
    pub(super) fn save(&mut self) {
        let lives = self.fleet.nodes().filter_map(|(id, node)| {
            let Life { incarnation, pid } = node.slot.life()?;
            let start_ticks = self.state_file.start_ticks(id, incarnation, pid)?;
            let life = LifeState {
                incarnation,
                pid,
                start_ticks,
                born: node.born,
                restarts: node.slot.restarts(),
            };
            Some((id, life))
        });
        let lives: std::collections::BTreeMap<_, _> = lives.collect();
        let highest = lives.values().map(|life| life.incarnation).max();
        let nodes = self.fleet.nodes().map(|(id, node)| (id, &*node.program));
        let programs = Programs::of(self.fleet.program(), nodes);
        let growing = self.resize.filter(|resize| resize.from < resize.to);
        let state = State {
            incarnation: highest.unwrap_or(0).max(self.fleet.incarnation()),
            brokers_before: growing.map(|resize| resize.from),
            programs,
            last_update: self.last_update.clone(),
            log_filter: self.changed_log_filter(),
            started: self.started,
            size: self.settings.size,
            lives,
            view: self.membership.view().clone(),
        };
        self.state_file.write(state);
    }

    /// The log filter, if it is another than the configuration's.
    fn changed_log_filter(&self) -> Option<String> {
        let filter = telemetry::filter();
        let is_changed = !filter.is_empty() && filter != self.settings.config.log.filter;
        is_changed.then_some(filter)
    }

    /// Sends a signal to the process in a slot.
    pub(super) fn signal(&self, id: NodeId, pid: u32, number: Signal) {
        match self.adopted.get(&id) {
            // Not our child, so its pid may be another's by now.
            Some(process) if process.pid == pid => process.signal(number),
            Some(_) | None => signal(pid, number),
        }
    }
}

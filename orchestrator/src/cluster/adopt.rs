//! Going on with the nodes of an orchestrator that was killed, and writing down
//! what the next one needs for it (delivery.md E3).

use std::sync::Arc;

use muster_wire::Millis;
use rustix::process::Signal;
use tracing::info;

use super::{Cluster, Stage, WORKER_GRACE, signal, update::worker};
use crate::{
    adoption::{Adopted, Adoption},
    announce::announce,
    node::{NodeId, Role},
    process::Process,
    program::Program,
    state::{LifeState, State},
    supervisor::Life,
};

impl Cluster {
    /// Takes over what an earlier orchestrator started. To be called before
    /// [`Cluster::run`], which starts what is missing.
    pub(crate) fn adopt(&mut self, now: Millis, adoption: Adoption) {
        let Adoption { state, nodes, .. } = adoption;
        let brokers = self.settings.size.brokers;
        let before = state.brokers_before.unwrap_or(state.size.brokers);
        self.membership.resume(state.view, |slot| slot <= brokers);
        self.started = state.started.min(now);
        if let Some(named) = &state.program {
            let pids = nodes.values().map(|node| node.life.pid);
            let program = Arc::new(Program::find(named, pids));
            self.fleet.set_program(Arc::clone(&program));
            for id in self.fleet.ids(Role::Worker) {
                if let Some(node) = self.fleet.get_mut(id) {
                    node.program = Arc::clone(&program);
                }
            }
        }
        let mut updating = None;
        let living: Vec<NodeId> = nodes.keys().copied().collect();
        for (id, Adopted { life, process }) in nodes {
            if id.role == Role::Successor {
                let program = Program::of_process(life.pid).unwrap_or_else(|_| Program::own());
                self.fleet.add_successor(id.slot, program.into(), true);
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
        let growing = self.resize.filter(|resize| resize.from < resize.to);
        let state = State {
            incarnation: highest.unwrap_or(0).max(self.fleet.incarnation()),
            brokers_before: growing.map(|resize| resize.from),
            started: self.started,
            size: self.settings.size,
            program: self.fleet.program().named().cloned(),
            lives,
            view: self.membership.view().clone(),
        };
        self.state_file.write(state);
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

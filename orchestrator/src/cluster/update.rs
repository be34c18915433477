//! Carries an update of the workers out.

mod orders;
mod run;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use muster_daemon::exit::chain;
use muster_proto::control as pb;
use muster_wire::Millis;
use rustix::process::Signal;
use tokio::task::spawn_blocking;
use tracing::{error, info, warn};

pub(super) use self::run::{Run, worker};
use self::run::{Tally, successor};
use super::{Cluster, Stage, WORKER_GRACE};
use crate::{
    control::{AbortRefused, UpdateRefused, UpdateWish},
    node::{NodeId, Role},
    probe::{self, ProbeError},
    program::Program,
    reexec,
    supervisor::{
        Earlier, Event, Exit, Handed, Phase, Plan, SlotFacts, Successor, Times, UpdateFacts,
        UpdateNext, Usual, judge,
    },
};

/// How long a worker may take to end once it has handed over: a client that is
/// in the middle of its HTTP request is waited for.
const LEAVE_WITHIN: Duration = Duration::from_secs(5);
/// Beside that, before it is killed.
const LEAVE_GRACE: Duration = Duration::from_secs(10);
/// Why what an operator aborts is taken back.
const ABORTED: &str = "an operator aborted it";

impl Cluster {
    /// Begins to replace all workers.
    pub(super) fn begin_update(
        &mut self,
        now: Millis,
        wish: UpdateWish,
    ) -> Result<(), UpdateRefused> {
        self.may_update()?;
        let program = match wish.program {
            Some(path) => match Program::open(&path) {
                Ok(program) => Arc::new(program),
                Err(error) => {
                    let reason = error.to_string();
                    return Err(UpdateRefused::Program {
                        program: path,
                        reason,
                    });
                }
            },
            None => Arc::clone(self.fleet.program()),
        };
        self.reload_for_update()
            .map_err(|error| UpdateRefused::Config(chain(&error)))?;
        let settings = &self.settings.update;
        let plan = Plan {
            canary: wish.canary.unwrap_or(settings.canary),
            hold: wish.hold.unwrap_or(settings.hold),
            parallel: wish.parallel.unwrap_or(settings.parallel).max(1),
        };
        let slots = 1..=self.settings.size.workers;
        let earlier = slots.filter_map(|slot| {
            let node = self.fleet.get(worker(slot))?;
            Some((slot, Arc::clone(&node.program)))
        });
        let earlier: BTreeMap<_, _> = earlier.collect();
        info!(
            program = %program.path().display(),
            workers = earlier.len(),
            canary = plan.canary,
            hold = ?plan.hold,
            parallel = plan.parallel,
            "Updating the workers."
        );
        self.look_at(Arc::clone(&program));
        let mut run = Run::new(now, plan, earlier, program);
        run.usual = self.usual(now).without_lag();
        self.update = Some(run);
        self.following = None;
        Ok(())
    }

    /// Has the update taken back that is under way.
    pub(super) fn abort_update(&mut self, now: Millis) -> Result<(), AbortRefused> {
        match self.stage {
            Stage::Starting | Stage::Running => {}
            Stage::EndingWorkers { .. } | Stage::EndingBrokers { .. } | Stage::Killing { .. } => {
                return Err(AbortRefused::Ending);
            }
        }
        let run = self.update.as_mut().filter(|run| !run.is_over());
        let run = run.ok_or(AbortRefused::None)?;
        let following = self.following.as_mut().filter(|one| !one.is_over());
        let (is_new, next) = if let Some(following) = following {
            (following.give_up(ABORTED.into()), UpdateNext::Nothing)
        } else {
            let next = run.machine.give_up(ABORTED.into());
            (next != UpdateNext::Nothing, next)
        };
        if is_new {
            run.is_aborted = true;
            warn!("The update is aborted: taking it back.");
            self.do_update(now, next);
        }
        Ok(())
    }

    /// Asks a program whether it fits, without waiting for its answer.
    fn look_at(&mut self, program: Arc<Program>) {
        let earlier = Arc::clone(self.fleet.program());
        let config_file = self.spawner.config_file.clone();
        let is_executed = self.settings.kept.is_some();
        let runtime_dir = self.settings.runtime_dir.clone();
        self.probes.spawn(async move {
            let note = probe::look(&program, &earlier, &config_file).await?;
            if is_executed {
                let check = move || reexec::check(program.executable(), &runtime_dir);
                let checked = spawn_blocking(check).await;
                checked
                    .unwrap_or_else(|error| Err(error.to_string()))
                    .map_err(ProbeError::Takeover)?;
            }
            Ok(note)
        });
    }

    /// It has answered.
    pub(super) fn looked_at(&mut self, found: Result<Option<String>, ProbeError>) {
        let Some(run) = self.update.as_mut().filter(|run| !run.is_over()) else {
            return;
        };
        let found = found.map(|note| {
            if let Some(note) = note {
                warn!(note, "The new program has an edge.");
                run.note = note;
            }
        });
        let program = run.program.path().display().to_string();
        run.checked = Some(found.map_err(|error| format!("{program} is no good: {error}")));
    }

    pub(super) fn update_status(&self, now: Millis) -> pb::UpdateStatusResponse {
        match &self.update {
            Some(run) => {
                let mut status = run.status(now);
                if let Some(following) = &self.following {
                    status.following = Some(following.status());
                    if !following.is_over() {
                        status.phase = following.phase().into();
                    }
                }
                status
            }
            None => self.last_update(),
        }
    }

    pub(super) fn is_updating(&self) -> bool {
        self.update.as_ref().is_some_and(|run| !run.is_over())
    }

    pub(super) fn update_wake_at(&self) -> Option<Millis> {
        let run = self.update.as_ref().filter(|run| !run.is_over())?;
        run.machine.wake_at()
    }

    pub(super) fn may_update(&self) -> Result<(), UpdateRefused> {
        match self.stage {
            Stage::Running => {}
            Stage::Starting => return Err(UpdateRefused::Starting),
            Stage::EndingWorkers { .. } | Stage::EndingBrokers { .. } | Stage::Killing { .. } => {
                return Err(UpdateRefused::Ending);
            }
        }
        if self.is_updating() {
            return Err(UpdateRefused::Busy);
        }
        if self.orders.is_open() {
            return Err(UpdateRefused::HandingOver);
        }
        let leaving = |phase| matches!(phase, Phase::Draining { .. } | Phase::Stopping { .. });
        let mut nodes = self.fleet.nodes();
        let is_leaving = nodes.any(|(_, node)| leaving(node.slot.phase()));
        if is_leaving || self.resize.is_some() {
            return Err(UpdateRefused::Scaling);
        }
        Ok(())
    }

    /// Does what is due for an update.
    pub(super) fn advance_update(&mut self, now: Millis) {
        self.judge_following(now);
        if self.advance_following(now) {
            return;
        }
        while self.stage == Stage::Running && self.is_updating() {
            let Some(mut run) = self.update.take() else {
                return;
            };
            let times = self.update_times();
            let fault = self.update_fault(now, &run);
            let slot = |slot| self.slot_facts(run.slots.get(&slot), slot);
            let facts = UpdateFacts {
                checked: run.checked.clone(),
                fault,
                slot: &slot,
            };
            let next = run.machine.turn(now, &facts, times);
            self.update = Some(run);
            if next == UpdateNext::Nothing {
                return;
            }
            self.do_update(now, next);
            if self.advance_following(now) {
                return;
            }
        }
    }

    /// The new workers are watched while the brokers follow, too.
    fn judge_following(&mut self, now: Millis) {
        let run = self.update.as_ref().filter(|run| !run.is_over());
        let fault = run.and_then(|run| self.update_fault(now, run));
        let following = self.following.as_mut().filter(|one| !one.is_over());
        if let (Some(fault), Some(following)) = (fault, following)
            && following.give_up(fault.clone())
        {
            warn!(
                fault,
                "The new workers are no good: taking the update back."
            );
        }
    }

    fn update_times(&self) -> Times {
        Times {
            starting: self.settings.supervision.start_timeout,
            leaving: LEAVE_WITHIN + WORKER_GRACE + LEAVE_GRACE,
        }
    }

    fn slot_facts(&self, tally: Option<&Tally>, slot: u32) -> SlotFacts {
        let node = self.fleet.get(worker(slot));
        let phase = |id| self.fleet.get(id).map(|node| node.slot.phase());
        SlotFacts {
            is_worker_ready: matches!(phase(worker(slot)), Some(Phase::Ready { .. })),
            successor: match phase(successor(slot)) {
                None => Successor::None(tally.and_then(|tally| tally.exit.clone())),
                Some(Phase::Ready { .. }) => Successor::Ready,
                Some(
                    Phase::Waiting { .. }
                    | Phase::Starting { .. }
                    | Phase::Hung { .. }
                    | Phase::Draining { .. }
                    | Phase::Stopping { .. }
                    | Phase::Stopped,
                ) => Successor::Starting,
            },
            handed_over: tally.map_or(Handed::NotYet, |tally| tally.handed.clone()),
            is_heard: tally
                .zip(node)
                .is_some_and(|(tally, node)| node.beats() > tally.beats),
            is_new: node.is_some_and(|node| node.is_new),
        }
    }

    /// What is wrong with the workers that were replaced.
    fn update_fault(&self, now: Millis, run: &Run) -> Option<String> {
        let limits = &self.settings.update;
        if run.exits > limits.exits_max {
            return Some(run.last_exit.clone());
        }
        let usual = run.usual.or(self.usual(now));
        run.machine.replaced().iter().find_map(|slot| {
            let node = self.fleet.get(worker(*slot)).filter(|node| node.is_new)?;
            let were = run.were.get(slot).copied().unwrap_or_default();
            let fault = judge(&node.health(now)?, were, usual, limits)?;
            Some(format!("worker-{slot} is no good: {fault}"))
        })
    }

    /// How workers of the earlier program are.
    fn usual(&self, now: Millis) -> Usual {
        let mut usual = Usual::default();
        for (id, node) in self.fleet.nodes() {
            if id.role == Role::Worker
                && !node.is_new
                && let Some(health) = node.health(now)
            {
                usual.note(&health);
            }
        }
        usual
    }

    fn do_update(&mut self, now: Millis, next: UpdateNext) {
        match next {
            UpdateNext::Nothing => {}
            UpdateNext::Start(slot) => self.start_successor(now, slot),
            UpdateNext::HandOver(slot) => self.order_update(slot, worker(slot), successor(slot)),
            UpdateNext::CallOff(slot) => self.call_off(slot),
            UpdateNext::Leave(slot) => self.tell_to_leave(worker(slot)),
            UpdateNext::HandBack(slot) => {
                warn!(slot, "A worker's connections go back to it.");
                self.order_update(slot, successor(slot), worker(slot));
            }
            UpdateNext::EndSuccessor { slot, why } => {
                warn!(slot, why, "Ending a worker's successor.");
                self.end_now(successor(slot), Signal::KILL);
            }
            UpdateNext::EndWorker(slot) => {
                warn!(
                    slot,
                    "A worker that has handed over does not end: killing it."
                );
                self.end_now(worker(slot), Signal::KILL);
            }
            UpdateNext::GoBack(slots) => self.go_back(&slots),
            UpdateNext::Done(Ok(())) => self.workers_done(now),
            UpdateNext::Done(Err(why)) => self.end_update(now, Err(why)),
        }
    }

    /// All workers run the new program: now the others.
    fn workers_done(&mut self, now: Millis) {
        let Some(run) = &self.update else {
            return;
        };
        info!(moved = run.moved(), "The workers are updated.");
        if run.is_resumed {
            return self.end_update(now, Ok(()));
        }
        let program = Arc::clone(&run.program);
        self.begin_following(program);
    }

    /// Has an update taken back whose workers are through.
    pub(super) fn take_back(&mut self, now: Millis, why: String) {
        if let Some(run) = &mut self.update {
            let next = run.machine.take_back(why);
            self.do_update(now, next);
        }
    }

    fn start_successor(&mut self, now: Millis, slot: u32) {
        let Some(run) = &mut self.update else {
            return;
        };
        let is_new = !run.machine.is_going_back();
        info!(slot, is_new, "Starting a worker's successor.");
        let program = if is_new {
            &run.program
        } else {
            run.earlier.get(&slot).unwrap_or(self.fleet.program())
        };
        let program = Arc::clone(program);
        let tally = run.slots.entry(slot).or_default();
        *tally = Tally::default();
        if is_new
            && let Some(node) = self.fleet.get(worker(slot))
            && let Some(health) = node.health(now)
        {
            let were = Earlier {
                connections: health.connections,
                memory_bytes: health.memory_bytes,
            };
            run.were.insert(slot, were);
        }
        if !self.fleet.add_successor(slot, program, is_new) {
            tally.exit = Some("there is no such worker".to_owned());
            return;
        }
        self.feed(now, successor(slot), Event::Woken);
    }

    /// What fills these slots is started from the earlier program from now on, and
    /// as it was.
    fn go_back(&mut self, slots: &[u32]) {
        self.restore_config();
        let Some(run) = &self.update else {
            return;
        };
        for slot in slots {
            if let Some(node) = self.fleet.get_mut(worker(*slot))
                && let Some(program) = run.earlier.get(slot)
            {
                node.program = Arc::clone(program);
            }
        }
    }

    /// Nothing more happens.
    pub(super) fn end_update(&mut self, now: Millis, result: Result<(), String>) {
        self.probes.abort_all();
        if result.is_err() {
            self.restore_config();
        }
        self.fleet.forget_new();
        let Some(run) = &mut self.update else {
            return;
        };
        match &result {
            Ok(()) => {
                info!(moved = run.moved(), "The update is done.");
                if !run.is_resumed {
                    self.fleet.set_program(Arc::clone(&run.program));
                }
            }
            Err(why) => {
                let machine = &run.machine;
                error!(
                    why,
                    moved = run.moved(),
                    returned = machine.returned().len(),
                    "The update failed."
                );
                for (slot, why) in machine.stuck() {
                    error!(slot, why, "A worker could not be taken back.");
                }
            }
        }
        run.end(now, result);
    }

    /// A worker has ended: true if its successor fills the slot now.
    pub(super) fn succeed(&mut self, slot: u32) -> bool {
        let node = self.fleet.get(successor(slot));
        let is_there = node.is_some_and(|node| matches!(node.slot.phase(), Phase::Ready { .. }));
        if is_there {
            self.promote(slot);
            info!(slot, "The successor fills the slot.");
            self.tell_to_take_place(slot);
        }
        is_there
    }

    pub(super) fn promote(&mut self, slot: u32) {
        self.fleet.promote(slot);
        if let Some(process) = self.adopted.remove(&successor(slot)) {
            self.adopted.insert(worker(slot), process);
        }
    }

    /// A worker has ended that nobody succeeds. If it was new, that may be reason
    /// enough to take the update back; its slot then is the first to go back.
    pub(super) fn note_exit(&mut self, id: NodeId, exit: &Exit) {
        let Some(run) = self.update.as_mut().filter(|run| !run.is_over()) else {
            return;
        };
        let Some(node) = self.fleet.get_mut(id).filter(|node| node.is_new) else {
            return;
        };
        run.exits += 1;
        run.last_exit = format!("{id}, which was new, ended: {exit}");
        if run.exits > self.settings.update.exits_max
            && let Some(program) = run.earlier.get(&id.slot)
        {
            node.program = Arc::clone(program);
            node.is_new = false;
            // Before that program reads it.
            self.restore_config();
        }
    }

    /// A successor has ended without filling the slot.
    pub(super) fn successor_ended(&mut self, slot: u32, exit: &Exit) {
        warn!(slot, %exit, "A worker's successor ended.");
        self.fleet.remove_successor(slot);
        if let Some(run) = &mut self.update
            && let Some(tally) = run.slots.get_mut(&slot)
        {
            tally.exit = Some(exit.to_string());
        }
    }

    fn end_now(&mut self, id: NodeId, signal: Signal) {
        let life = self.fleet.get(id).and_then(|node| node.slot.life());
        if let Some(life) = life {
            self.signal(id, life.pid, signal);
        }
    }

    /// Goes on with the slot in which an earlier orchestrator was updating.
    pub(super) fn resume_update(&mut self, now: Millis, slot: u32) {
        info!(slot, "Going on with the update of a worker.");
        let own = self.fleet.program();
        let program = |id| self.fleet.get(id).map_or(own, |node| &node.program);
        let programs = (
            Arc::clone(program(worker(slot))),
            Arc::clone(program(successor(slot))),
        );
        self.update = Some(Run::resume(now, slot, programs, self.update_times()));
    }
}

//! Carries an update of the workers out.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use muster_daemon::exit::chain;
use muster_proto::{
    Pauses,
    control::{self as pb, node_command::Command},
};
use muster_wire::Millis;
use rustix::{
    fs::{Access, access},
    process::Signal,
};
use tracing::{error, info, warn};

use super::{Cluster, Stage, WORKER_GRACE, orders::Purpose, update_brokers::Following};
use crate::{
    control::UpdateRefused,
    node::{NodeId, Role},
    spawn::OWN_PROGRAM,
    supervisor::{Exit, Handed, Phase, Successor, Update, UpdateFacts, UpdateNext},
};

/// How long a worker may take to end once it has handed over: a client that is
/// in the middle of its HTTP request is waited for.
const LEAVE_WITHIN: Duration = Duration::from_secs(5);
/// Beside that, before it is killed.
const LEAVE_GRACE: Duration = Duration::from_secs(10);

/// An update, under way or over.
#[derive(Debug)]
pub(super) struct Run {
    machine: Update,
    program: Arc<Path>,
    workers: u32,
    started: Millis,
    /// It is what was left of an earlier orchestrator's: nothing follows.
    is_rest: bool,
    /// How it ended, and when.
    ended: Option<(Result<(), String>, Millis)>,
    /// The last order to hand over.
    order: Option<u64>,
    handed: Handed,
    /// How the last successor ended that did not succeed.
    exit: Option<String>,
    moved: u64,
    failed: u64,
    pauses: Pauses,
    /// Time that was spent handing over.
    handing_over: Duration,
    note: String,
}

impl Run {
    fn new(now: Millis, slots: impl IntoIterator<Item = u32>, program: Arc<Path>) -> Self {
        let machine = Update::new(slots);
        Self {
            workers: u32::try_from(machine.pending()).unwrap_or(u32::MAX),
            machine,
            program,
            started: now,
            is_rest: false,
            ended: None,
            order: None,
            handed: Handed::NotYet,
            exit: None,
            moved: 0,
            failed: 0,
            pauses: Pauses::default(),
            handing_over: Duration::ZERO,
            note: String::new(),
        }
    }

    fn status(&self, now: Millis) -> pb::UpdateStatusResponse {
        let micros = |pause: Duration| u64::try_from(pause.as_micros()).unwrap_or(u64::MAX);
        let (state, error, until) = match &self.ended {
            None => ("running", String::new(), now),
            Some((Ok(()), at)) => ("done", String::new(), *at),
            Some((Err(why), at)) => ("failed", why.clone(), *at),
        };
        let is_running = self.ended.is_none();
        let slot = self.machine.slot().filter(|_| is_running);
        pb::UpdateStatusResponse {
            state: state.into(),
            error,
            slot: slot.unwrap_or(0),
            step: slot.map_or(String::new(), |_| self.machine.step().into()),
            workers_done: self.machine.succeeded(),
            workers: self.workers,
            moved: self.moved,
            failed: self.failed,
            pause_p50_us: micros(self.pauses.quantile(0.5)),
            pause_p99_us: micros(self.pauses.quantile(0.99)),
            pause_max_us: micros(self.pauses.max()),
            took_ms: u64::try_from(until.since(self.started).as_millis()).unwrap_or(u64::MAX),
            note: self.note.clone(),
            following: None,
            pauses: self.pauses.counts().to_vec(),
            handing_over_us: micros(self.handing_over),
        }
    }
}

impl Cluster {
    /// Begins to replace all workers.
    pub(super) fn begin_update(
        &mut self,
        now: Millis,
        program: Option<PathBuf>,
    ) -> Result<(), UpdateRefused> {
        self.may_update()?;
        let program = match program {
            Some(program) => {
                if let Err(error) = access(&program, Access::EXEC_OK) {
                    let reason = error.to_string();
                    return Err(UpdateRefused::Program { program, reason });
                }
                program
            }
            None => PathBuf::from(OWN_PROGRAM),
        };
        self.reload_for_update()
            .map_err(|error| UpdateRefused::Config(chain(&error)))?;
        let slots = 1..=self.settings.size.workers;
        info!(program = %program.display(), workers = slots.end(), "Updating the workers.");
        self.update = Some(Run::new(now, slots, program.into()));
        self.following = None;
        Ok(())
    }

    pub(super) fn update_status(&self, now: Millis) -> pb::UpdateStatusResponse {
        match &self.update {
            Some(run) => pb::UpdateStatusResponse {
                following: self.following.as_ref().map(Following::status),
                ..run.status(now)
            },
            None => self.last_update(),
        }
    }

    pub(super) fn is_updating(&self) -> bool {
        self.update.as_ref().is_some_and(|run| run.ended.is_none())
    }

    pub(super) fn update_wake_at(&self) -> Option<Millis> {
        let run = self.update.as_ref().filter(|run| run.ended.is_none())?;
        run.machine.wake_at()
    }

    fn may_update(&self) -> Result<(), UpdateRefused> {
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
        if self.advance_following(now) {
            return;
        }
        while self.stage == Stage::Running && self.is_updating() {
            let Some(mut run) = self.update.take() else {
                return;
            };
            let facts = self.update_facts(&run);
            let starting = self.settings.supervision.start_timeout;
            let leaving = LEAVE_WITHIN + WORKER_GRACE + LEAVE_GRACE;
            let next = run.machine.turn(now, &facts, (starting, leaving));
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

    fn update_facts(&self, run: &Run) -> UpdateFacts {
        let slot = run.machine.slot().unwrap_or(0);
        let phase = |id: NodeId| {
            let mut nodes = self.fleet.nodes();
            nodes
                .find(|(other, _)| *other == id)
                .map(|(_, node)| node.slot.phase())
        };
        let is_ready = |phase: Option<Phase>| matches!(phase, Some(Phase::Ready { .. }));
        UpdateFacts {
            is_worker_ready: is_ready(phase(worker(slot))),
            successor: match phase(successor(slot)) {
                None => Successor::None(run.exit.clone()),
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
            handed_over: run.handed.clone(),
        }
    }

    fn do_update(&mut self, now: Millis, next: UpdateNext) {
        let Some(run) = &mut self.update else {
            return;
        };
        match next {
            UpdateNext::Nothing => {}
            UpdateNext::Start(slot) => {
                run.exit = None;
                run.handed = Handed::NotYet;
                info!(slot, "Starting a worker's successor.");
                let program = Arc::clone(&run.program);
                if !self.fleet.add_successor(slot, program) {
                    run.exit = Some("there is no such worker".to_owned());
                    return;
                }
                self.feed(now, successor(slot), crate::supervisor::Event::Woken);
            }
            UpdateNext::HandOver(slot) => self.order_update(worker(slot), successor(slot)),
            UpdateNext::HandBack(slot) => {
                warn!(slot, "A worker's connections go back to it.");
                self.order_update(successor(slot), worker(slot));
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
            UpdateNext::Done(Ok(())) => {
                info!(moved = run.moved, "The workers are updated.");
                if run.is_rest {
                    return self.end_update(now, Ok(()));
                }
                let program = Arc::clone(&run.program);
                self.begin_following(program);
            }
            UpdateNext::Done(Err(why)) => self.end_update(now, Err(why)),
        }
    }

    /// Nothing more happens.
    pub(super) fn end_update(&mut self, now: Millis, result: Result<(), String>) {
        let Some(run) = &mut self.update else {
            return;
        };
        match &result {
            Ok(()) => {
                info!(moved = run.moved, "The update is done.");
                if !run.is_rest {
                    self.fleet.set_program(Arc::clone(&run.program));
                }
            }
            Err(why) => error!(why, moved = run.moved, "The update failed."),
        }
        if result.is_err() && self.following.is_none() {
            self.restore_config();
        }
        let Some(run) = &mut self.update else {
            return;
        };
        run.ended = Some((result, now));
    }

    fn order_update(&mut self, from: NodeId, to: NodeId) {
        let order = self.order(from, &[(to, 0)], Purpose::Update, true);
        if let Some(run) = &mut self.update {
            run.handed = match order {
                Some(_) => Handed::NotYet,
                None => Handed::Failed {
                    reason: format!("{from} is not joined"),
                    has_moved: false,
                },
            };
            run.order = order;
        }
    }

    /// What an order of the update has come to.
    pub(super) fn update_handed_over(&mut self, from: NodeId, report: &pb::HandedOver) {
        let id = Some(report.id);
        let Some(run) = self.update.as_mut().filter(|run| run.order == id) else {
            return;
        };
        let max = Duration::from_micros(report.pause_max_us);
        run.pauses
            .merge(&Pauses::received(report.pauses.clone(), max));
        run.handing_over += Duration::from_micros(report.took_us);
        run.moved += report.moved;
        run.failed += report.failed;
        run.note.clone_from(&report.note);
        run.order = None;
        if report.error.is_empty() {
            run.handed = Handed::All;
            let within = LEAVE_WITHIN.as_millis();
            let within_ms = u64::try_from(within).unwrap_or(u64::MAX);
            if !self
                .fleet
                .send(from, Command::Drain(pb::Drain { within_ms }))
            {
                self.leave(from);
            }
        } else {
            run.handed = Handed::Failed {
                reason: report.error.clone(),
                has_moved: report.moved > 0,
            };
        }
    }

    /// The worker that was to hand over has ended, or is not heard any more.
    pub(super) fn update_order_lost(&mut self, id: u64) {
        if let Some(run) = self.update.as_mut().filter(|run| run.order == Some(id)) {
            run.order = None;
            run.handed = Handed::Failed {
                reason: "it ended".to_owned(),
                has_moved: true,
            };
        }
    }

    /// A worker has ended: true if its successor fills the slot now.
    pub(super) fn succeed(&mut self, slot: u32) -> bool {
        let node = self.fleet.get_mut(successor(slot));
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

    /// One that was started to succeed another waits for that, or to be told that
    /// there is none.
    pub(super) fn tell_to_take_place(&mut self, slot: u32) {
        let has_successor = self.fleet.get_mut(successor(slot)).is_some();
        let command = Command::TakePlace(pb::TakePlace {});
        if !has_successor && !self.fleet.send(worker(slot), command) {
            // Told when it joins again.
            self.leave(worker(slot));
        }
    }

    /// A successor has ended without filling the slot.
    pub(super) fn successor_ended(&mut self, slot: u32, exit: &Exit) {
        warn!(slot, %exit, "A worker's successor ended.");
        self.fleet.remove_successor(slot);
        if let Some(run) = &mut self.update {
            run.exit = Some(exit.to_string());
        }
    }

    fn end_now(&mut self, id: NodeId, signal: Signal) {
        let life = self.fleet.get_mut(id).and_then(|node| node.slot.life());
        if let Some(life) = life {
            self.signal(id, life.pid, signal);
        }
    }

    /// Goes on with the slot in which an earlier orchestrator was updating.
    pub(super) fn resume_update(&mut self, now: Millis, slot: u32) {
        info!(slot, "Going on with the update of a worker.");
        let mut run = Run::new(now, [slot], Path::new(OWN_PROGRAM).into());
        run.machine = Update::resume(now, slot, self.settings.supervision.start_timeout);
        run.workers = 1;
        run.is_rest = true;
        self.update = Some(run);
    }
}

pub(super) fn worker(slot: u32) -> NodeId {
    NodeId {
        role: Role::Worker,
        slot,
    }
}

pub(super) fn successor(slot: u32) -> NodeId {
    NodeId {
        role: Role::Successor,
        slot,
    }
}

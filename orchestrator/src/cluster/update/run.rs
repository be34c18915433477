//! An update as it is carried out: what its machine does not need to know.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use muster_proto::{Pauses, control as pb};
use muster_wire::Millis;

use crate::{
    node::{NodeId, Role},
    program::Program,
    supervisor::{Earlier, Handed, Plan, Times, Update, Usual},
};

/// An update, under way or over.
#[derive(Debug)]
pub(in crate::cluster) struct Run {
    pub(super) machine: Update,
    pub(super) program: Arc<Program>,
    /// What has come of the look at it.
    pub(super) checked: Option<Result<(), String>>,
    /// What the slots were started from before.
    pub(super) earlier: BTreeMap<u32, Arc<Program>>,
    /// How their workers were when their turn came.
    pub(super) were: BTreeMap<u32, Earlier>,
    /// How the workers were before all that.
    pub(super) usual: Usual,
    pub(super) slots: BTreeMap<u32, Tally>,
    /// New workers that ended by themselves, and the last one.
    pub(super) exits: u32,
    pub(super) last_exit: String,
    pub(super) is_aborted: bool,
    /// An earlier orchestrator has begun it; this one sees one slot through.
    pub(super) is_resumed: bool,
    pub(super) note: String,
    workers: u32,
    started: Millis,
    /// How it ended, and when.
    ended: Option<(Result<(), String>, Millis)>,
    moves: Moves,
}

/// What has come of the orders in a slot.
#[derive(Debug)]
pub(super) struct Tally {
    /// The one that is under way, and what is known of it.
    pub(super) order: Option<u64>,
    pub(super) moves: Moves,
    pub(super) handed: Handed,
    /// How the last successor ended that did not succeed.
    pub(super) exit: Option<String>,
    /// Heartbeats of the successor by when it had taken over.
    pub(super) beats: u64,
}

/// Connections that were handed over.
#[derive(Debug, Clone, Default)]
pub(super) struct Moves {
    moved: u64,
    failed: u64,
    pauses: Pauses,
    /// Time that was spent on it.
    took: Duration,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            order: None,
            moves: Moves::default(),
            handed: Handed::NotYet,
            exit: None,
            beats: 0,
        }
    }
}

impl Moves {
    pub(super) fn reported(report: &pb::HandedOver) -> Self {
        let max = Duration::from_micros(report.pause_max_us);
        Self {
            moved: report.moved,
            failed: report.failed,
            pauses: Pauses::received(report.pauses.clone(), max),
            took: Duration::from_micros(report.took_us),
        }
    }

    fn add(&mut self, other: &Self) {
        self.moved += other.moved;
        self.failed += other.failed;
        self.pauses.merge(&other.pauses);
        self.took += other.took;
    }
}

impl Run {
    pub(super) fn new(
        now: Millis,
        plan: Plan,
        earlier: BTreeMap<u32, Arc<Program>>,
        program: Arc<Program>,
    ) -> Self {
        Self {
            machine: Update::new(plan, earlier.keys().copied()),
            program,
            checked: None,
            workers: u32::try_from(earlier.len()).unwrap_or(u32::MAX),
            earlier,
            were: BTreeMap::new(),
            usual: Usual::default(),
            slots: BTreeMap::new(),
            exits: 0,
            last_exit: String::new(),
            is_aborted: false,
            is_resumed: false,
            note: String::new(),
            started: now,
            ended: None,
            moves: Moves::default(),
        }
    }

    /// What an earlier orchestrator was at in this slot.
    pub(super) fn resume(
        now: Millis,
        slot: u32,
        (earlier, program): (Arc<Program>, Arc<Program>),
        times: Times,
    ) -> Self {
        let plan = Plan {
            canary: 0,
            hold: Duration::ZERO,
            parallel: 1,
        };
        Self {
            machine: Update::resume(now, slot, times),
            is_resumed: true,
            slots: BTreeMap::from([(slot, Tally::default())]),
            note: format!(
                "the orchestrator that began it ended: only worker-{slot} is seen through; update \
                 again for the others"
            ),
            ..Self::new(now, plan, BTreeMap::from([(slot, earlier)]), program)
        }
    }

    pub(super) fn is_over(&self) -> bool {
        self.ended.is_some()
    }

    pub(super) fn end(&mut self, now: Millis, result: Result<(), String>) {
        self.ended = Some((result, now));
    }

    pub(super) fn moved(&self) -> u64 {
        self.moves.moved
    }

    /// Counts what an order has come to in the end.
    pub(super) fn count(&mut self, slot: u32, report: &pb::HandedOver) {
        self.moves.add(&Moves::reported(report));
        if let Some(tally) = self.slots.get_mut(&slot) {
            tally.order = None;
            tally.moves = Moves::default();
        }
        if !report.note.is_empty() {
            self.note.clone_from(&report.note);
        }
    }

    /// The slot in which an order is under way.
    pub(super) fn slot_of(&self, order: u64) -> Option<u32> {
        let mut slots = self.slots.iter();
        let (slot, _) = slots.find(|(_, tally)| tally.order == Some(order))?;
        Some(*slot)
    }

    pub(super) fn status(&self, now: Millis) -> pb::UpdateStatusResponse {
        let micros = |pause: Duration| u64::try_from(pause.as_micros()).unwrap_or(u64::MAX);
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let count = |slots: &[u32]| u32::try_from(slots.len()).unwrap_or(u32::MAX);
        let (state, error, until) = match &self.ended {
            None => ("running", String::new(), now),
            Some((Ok(()), at)) => ("done", String::new(), *at),
            Some((Err(why), at)) => ("failed", why.clone(), *at),
        };
        let is_running = self.ended.is_none();
        let steps = self.machine.steps().map(|(slot, step)| pb::UpdateStep {
            slot,
            step: step.into(),
        });
        let steps: Vec<_> = steps.collect();
        let first = steps.first().cloned().unwrap_or_default();
        let mut moves = self.moves.clone();
        for tally in self.slots.values() {
            moves.add(&tally.moves);
        }
        let phase = Some(self.machine.phase()).filter(|_| is_running);
        let stuck = self
            .machine
            .stuck()
            .iter()
            .map(|(slot, reason)| pb::UpdateStuck {
                slot: *slot,
                reason: reason.clone(),
            });
        pb::UpdateStatusResponse {
            state: state.into(),
            error,
            slot: first.slot,
            step: first.step,
            workers_done: count(self.machine.replaced()),
            workers: self.workers,
            moved: moves.moved,
            failed: moves.failed,
            pause_p50_us: micros(moves.pauses.quantile(0.5)),
            pause_p99_us: micros(moves.pauses.quantile(0.99)),
            pause_max_us: micros(moves.pauses.max()),
            took_ms: millis(until.since(self.started)),
            note: self.note.clone(),
            phase: phase.unwrap_or_default().into(),
            steps,
            hold_left_ms: millis(
                self.machine
                    .holds_until()
                    .map_or(Duration::ZERO, |until| until.since(now)),
            ),
            workers_returned: count(self.machine.returned()),
            stuck: stuck.collect(),
            aborted: self.is_aborted,
            following: None,
            pauses: moves.pauses.counts().to_vec(),
            handing_over_us: micros(moves.took),
        }
    }
}

pub(in crate::cluster) fn worker(slot: u32) -> NodeId {
    NodeId {
        role: Role::Worker,
        slot,
    }
}

pub(in crate::cluster) fn successor(slot: u32) -> NodeId {
    NodeId {
        role: Role::Successor,
        slot,
    }
}

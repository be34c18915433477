//! Replacing workers: whose turn is next, and when it is all taken back.
//!
//! Some workers are replaced before the others and watched for a while. As soon
//! as something is wrong, what is under way is called off and whoever was
//! replaced is replaced again, by the earlier program.

mod judge;
mod replace;

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use muster_wire::Millis;

use self::replace::{Replacement, Turn};
pub(crate) use self::{
    judge::{Earlier, Health, Usual, judge, judge_moves},
    replace::{Facts as SlotFacts, Handed, Successor, Times},
};

/// Times that a slot is tried to be taken back.
const BACK_ATTEMPTS: u32 = 3;

/// How an update goes about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Workers that are replaced before the others.
    pub(crate) canary: u32,
    /// How long they are watched before the others follow.
    pub(crate) hold: Duration,
    /// How many are replaced at the same time after that, at least 1.
    pub(crate) parallel: u32,
}

/// An update that is under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Update {
    plan: Plan,
    phase: Phase,
    /// Slots whose turn is still to come: to be replaced, and to be taken back.
    pending: VecDeque<u32>,
    going_back: VecDeque<u32>,
    /// Slots whose turn it is.
    running: BTreeMap<u32, Replacement>,
    /// Slots that a successor fills.
    replaced: Vec<u32>,
    /// Slots that were taken back, or are to be and cannot.
    returned: Vec<u32>,
    stuck: BTreeMap<u32, String>,
    attempts: BTreeMap<u32, u32>,
    /// Why it is taken back.
    failure: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The program is asked whether it fits.
    Checking,
    /// The first workers are replaced, one at a time.
    Canary,
    /// They are watched.
    Holding {
        until: Millis,
    },
    /// The others are replaced.
    Rest,
    /// All that was replaced is taken back.
    Back,
    Over,
}

/// How the cluster is.
pub(crate) struct Facts<'a> {
    /// What has come of the look at the program.
    pub(crate) checked: Option<Result<(), String>>,
    /// What is wrong with the workers that were replaced.
    pub(crate) fault: Option<String>,
    pub(crate) slot: &'a dyn Fn(u32) -> SlotFacts,
}

/// What the driver must do.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub(crate) enum Next {
    Nothing,
    /// Start a successor; of the earlier program if the update goes back.
    Start(u32),
    /// Have the worker hand over all it has to its successor.
    HandOver(u32),
    /// Tell the worker to end that in between.
    CallOff(u32),
    /// Have the worker end, which has handed over.
    Leave(u32),
    /// Have the successor hand over all it has to the worker, and end.
    HandBack(u32),
    /// End the successor, which has no connections, or by force what it has.
    EndSuccessor {
        slot: u32,
        why: String,
    },
    /// End the earlier worker, which has not ended in time.
    EndWorker(u32),
    /// From now on processes of these slots are started from the earlier program.
    GoBack(Vec<u32>),
    /// All slots had their turn, or it has failed for this reason.
    Done(Result<(), String>),
}

impl Update {
    pub(crate) fn new(plan: Plan, slots: impl IntoIterator<Item = u32>) -> Self {
        Self {
            plan,
            phase: Phase::Checking,
            pending: slots.into_iter().collect(),
            going_back: VecDeque::new(),
            running: BTreeMap::new(),
            replaced: Vec::new(),
            returned: Vec::new(),
            stuck: BTreeMap::new(),
            attempts: BTreeMap::new(),
            failure: None,
        }
    }

    /// The update of this slot, which has a successor already.
    pub(crate) fn resume(now: Millis, slot: u32, times: Times) -> Self {
        let plan = Plan {
            canary: 0,
            hold: Duration::ZERO,
            parallel: 1,
        };
        // Nobody knows any more what it would be compared to.
        let running = Replacement::new(now, slot, times, false);
        Self {
            phase: Phase::Rest,
            running: BTreeMap::from([(slot, running)]),
            ..Self::new(plan, [])
        }
    }

    /// For people and programs.
    pub(crate) fn phase(&self) -> &'static str {
        match self.phase {
            Phase::Checking => "checking",
            Phase::Canary => "canary",
            Phase::Holding { .. } => "holding",
            Phase::Rest => "replacing",
            Phase::Back => "rolling_back",
            Phase::Over => "over",
        }
    }

    /// Slots whose turn it is, and what is done to them.
    pub(crate) fn steps(&self) -> impl Iterator<Item = (u32, &'static str)> {
        self.running.iter().map(|(slot, one)| (*slot, one.step()))
    }

    /// Slots that a successor fills: those that stay so, once it is over.
    pub(crate) fn replaced(&self) -> &[u32] {
        &self.replaced
    }

    /// Slots that are filled by the earlier program again.
    pub(crate) fn returned(&self) -> &[u32] {
        &self.returned
    }

    /// Slots that could not be taken back, and why.
    pub(crate) fn stuck(&self) -> &BTreeMap<u32, String> {
        &self.stuck
    }

    /// Whether slots are being taken back.
    pub(crate) fn is_going_back(&self) -> bool {
        self.phase == Phase::Back
    }

    /// Until when the first workers are watched.
    pub(crate) fn holds_until(&self) -> Option<Millis> {
        match self.phase {
            Phase::Holding { until } => Some(until),
            Phase::Checking | Phase::Canary | Phase::Rest | Phase::Back | Phase::Over => None,
        }
    }

    /// When to call [`Update::turn`] although nothing has happened.
    pub(crate) fn wake_at(&self) -> Option<Millis> {
        let steps = self.running.values().filter_map(Replacement::wake_at);
        steps.chain(self.holds_until()).min()
    }

    /// It is not wanted any more, for this reason: everything is taken back. What
    /// is being taken back already goes on.
    pub(crate) fn give_up(&mut self, why: String) -> Next {
        match self.phase {
            Phase::Back | Phase::Over => return Next::Nothing,
            Phase::Checking | Phase::Canary | Phase::Holding { .. } | Phase::Rest => {}
        }
        self.failure = Some(why);
        self.phase = Phase::Back;
        self.pending.clear();
        for replacement in self.running.values_mut() {
            replacement.call_off();
        }
        let replaced = std::mem::take(&mut self.replaced);
        // Who was replaced last has been judged least.
        self.going_back = replaced.iter().rev().copied().collect();
        Next::GoBack(replaced)
    }

    /// As [`Self::give_up`], of an update whose workers are through, because of
    /// what came after them.
    pub(crate) fn take_back(&mut self, why: String) -> Next {
        if self.phase == Phase::Over && self.failure.is_none() && self.returned.is_empty() {
            self.phase = Phase::Rest;
        }
        self.give_up(why)
    }

    /// To be called again at once unless it returns [`Next::Nothing`].
    pub(crate) fn turn(&mut self, now: Millis, facts: &Facts<'_>, times: Times) -> Next {
        if let Some(fault) = &facts.fault {
            let next = self.give_up(fault.clone());
            if next != Next::Nothing {
                return next;
            }
        }
        let slots: Vec<u32> = self.running.keys().copied().collect();
        for slot in slots {
            let next = self.turn_of(now, slot, facts, times);
            if next != Next::Nothing {
                return next;
            }
        }
        match (self.phase, &facts.checked) {
            (Phase::Checking, None) | (Phase::Over, _) => Next::Nothing,
            (Phase::Checking, Some(Ok(()))) => {
                self.phase = Phase::Canary;
                self.go_on(now, times)
            }
            (Phase::Checking, Some(Err(why))) => self.end(Err(why.clone())),
            (Phase::Canary | Phase::Holding { .. } | Phase::Rest, _) => self.go_on(now, times),
            (Phase::Back, _) => self.go_on_back(now, facts, times),
        }
    }

    /// What is due in a slot whose turn it is.
    fn turn_of(&mut self, now: Millis, slot: u32, facts: &Facts<'_>, times: Times) -> Next {
        let Some(replacement) = self.running.get_mut(&slot) else {
            return Next::Nothing;
        };
        let (result, is_filled) = match replacement.turn(now, &(facts.slot)(slot), times) {
            Turn::Do(next) => return next,
            Turn::Over { result, is_filled } => (result, is_filled),
        };
        self.running.remove(&slot);
        if self.attempts.contains_key(&slot) {
            self.has_gone_back(slot, result, is_filled);
            return Next::Nothing;
        }
        match (self.phase, result) {
            // It was too late to call it off.
            (Phase::Back, _) if is_filled => {
                self.going_back.push_back(slot);
                return Next::GoBack(vec![slot]);
            }
            (Phase::Back, _) => {}
            (_, result) => {
                if is_filled {
                    self.replaced.push(slot);
                }
                if let Err(why) = result {
                    return self.give_up(why);
                }
            }
        }
        Next::Nothing
    }

    fn has_gone_back(&mut self, slot: u32, result: Result<(), String>, is_filled: bool) {
        match result {
            Err(_) if self.attempts[&slot] < BACK_ATTEMPTS && !is_filled => {
                self.going_back.push_back(slot);
            }
            Err(why) if !is_filled => {
                self.stuck.insert(slot, why);
            }
            Ok(()) | Err(_) => self.returned.push(slot),
        }
    }

    /// The next slots' turn, or the next phase.
    fn go_on(&mut self, now: Millis, times: Times) -> Next {
        loop {
            let begun = self.running.len() + self.replaced.len();
            let (at_once, most) = match self.phase {
                Phase::Canary => (1, self.plan.canary),
                Phase::Rest => (self.plan.parallel, u32::MAX),
                Phase::Holding { until } if until <= now => {
                    self.phase = Phase::Rest;
                    continue;
                }
                Phase::Holding { .. } | Phase::Checking | Phase::Back | Phase::Over => {
                    return Next::Nothing;
                }
            };
            let has_room = self.running.len() < as_count(at_once) && begun < as_count(most);
            if has_room && let Some(slot) = self.pending.pop_front() {
                let replacement = Replacement::new(now, slot, times, true);
                self.running.insert(slot, replacement);
                return Next::Start(slot);
            }
            if !self.running.is_empty() {
                return Next::Nothing;
            }
            if self.phase == Phase::Rest {
                return self.end(Ok(()));
            }
            let hold = if self.replaced.is_empty() {
                Duration::ZERO
            } else {
                self.plan.hold
            };
            self.phase = Phase::Holding { until: now + hold };
        }
    }

    /// The next slot that is to be taken back.
    fn go_on_back(&mut self, now: Millis, facts: &Facts<'_>, times: Times) -> Next {
        while self.running.len() < as_count(self.plan.parallel)
            && let Some(slot) = self.going_back.pop_front()
        {
            if !(facts.slot)(slot).is_new {
                // It has ended by itself, and was started from the earlier one.
                self.returned.push(slot);
                continue;
            }
            *self.attempts.entry(slot).or_default() += 1;
            let replacement = Replacement::new(now, slot, times, false);
            self.running.insert(slot, replacement);
            return Next::Start(slot);
        }
        if self.running.is_empty() {
            let why = self.failure.take();
            return self.end(Err(why.unwrap_or_else(|| "it was given up".into())));
        }
        Next::Nothing
    }

    fn end(&mut self, result: Result<(), String>) -> Next {
        self.phase = Phase::Over;
        self.pending.clear();
        self.replaced.extend(self.stuck.keys());
        Next::Done(result)
    }
}

fn as_count(slots: u32) -> usize {
    usize::try_from(slots).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod property;
#[cfg(test)]
mod tests;

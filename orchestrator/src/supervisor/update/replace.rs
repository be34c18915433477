//! Replacing the worker of one slot: which step is next.
//!
//! A successor is started beside the worker and warms up; the worker hands its
//! connections over and ends; the successor fills the slot. Whatever goes wrong
//! before the first connection has moved costs nothing, and later the connections
//! go back.

use std::time::Duration;

use muster_wire::Millis;

use super::Next;

/// Longest that handing over the connections of one worker may take.
pub(super) const HAND_OVER_TIMEOUT: Duration = Duration::from_secs(120);
/// Longest that a hand-over which was called off may go on.
const CALL_OFF_TIMEOUT: Duration = Duration::from_secs(15);
/// Longest that a worker is waited for which fills its slot, to hear how it is.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(5);

const NOT_WANTED: &str = "it is not wanted any more";

/// How long things may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Times {
    /// A successor, until it is ready.
    pub(crate) starting: Duration,
    /// A worker, until it has ended once it has handed over.
    pub(crate) leaving: Duration,
}

/// How the slot is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Facts {
    /// The earlier worker is ready.
    pub(crate) is_worker_ready: bool,
    pub(crate) successor: Successor,
    /// What the last order to hand over has come to.
    pub(crate) handed_over: Handed,
    /// Whoever took over has said since then how it is.
    pub(crate) is_heard: bool,
    /// A process of the new program fills the slot.
    pub(crate) is_new: bool,
}

/// The successor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Successor {
    /// There is none: it has not been started, fills the slot already, or has
    /// ended for this reason.
    None(Option<String>),
    Starting,
    Ready,
}

/// What an order to hand over has come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Handed {
    NotYet,
    All,
    Failed {
        reason: String,
        /// Some of them are with the other worker.
        has_moved: bool,
    },
}

/// A worker that is being replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Replacement {
    slot: u32,
    step: Step,
    /// Once the successor fills the slot, it is to say how it is.
    settles: bool,
    is_called_off: bool,
    /// Why the successor does not fill the slot.
    failure: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// The successor warms up.
    Starting { until: Millis },
    /// Connections go to it.
    HandingOver { until: Millis },
    /// The same, and what is on its way is to be the last.
    CallingOff { until: Millis },
    /// They have; what cannot go is finished by the earlier worker.
    Leaving { until: Millis },
    /// The successor fills the slot, and is to say how it is.
    Settling { until: Millis },
    /// They go back to the earlier worker.
    HandingBack { until: Millis },
    /// The successor is ended.
    Ending,
}

/// What comes next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Turn {
    Do(Next),
    Over {
        result: Result<(), String>,
        /// The successor fills the slot.
        is_filled: bool,
    },
}

impl Replacement {
    /// Begins with a successor that is about to be started; `settles`: once it
    /// fills the slot, it is waited for until it has said how it is.
    pub(super) fn new(now: Millis, slot: u32, times: Times, settles: bool) -> Self {
        let until = now + times.starting;
        Self {
            slot,
            step: Step::Starting { until },
            settles,
            is_called_off: false,
            failure: None,
        }
    }

    /// For people and programs.
    pub(super) fn step(&self) -> &'static str {
        match self.step {
            Step::Starting { .. } => "starting",
            Step::HandingOver { .. } | Step::CallingOff { .. } => "handing_over",
            Step::Leaving { .. } => "leaving",
            Step::Settling { .. } => "settling",
            Step::HandingBack { .. } => "handing_back",
            Step::Ending => "ending",
        }
    }

    pub(super) fn wake_at(&self) -> Option<Millis> {
        match self.step {
            Step::Starting { until }
            | Step::HandingOver { until }
            | Step::CallingOff { until }
            | Step::Leaving { until }
            | Step::Settling { until }
            | Step::HandingBack { until } => Some(until),
            Step::Ending => None,
        }
    }

    /// The worker is to stay. If that has handed over everything already, its
    /// successor fills the slot first.
    pub(super) fn call_off(&mut self) {
        self.is_called_off = true;
        self.settles = false;
    }

    pub(super) fn turn(&mut self, now: Millis, facts: &Facts, times: Times) -> Turn {
        let slot = self.slot;
        let is_late = self.wake_at().is_some_and(|until| until <= now);
        match (self.step, &facts.successor) {
            (Step::Settling { .. }, _) if facts.is_heard || is_late || !self.settles => filled(),
            (Step::HandingBack { .. } | Step::Ending, Successor::None(exit)) => Turn::Over {
                result: Err(self
                    .failure
                    .take()
                    .unwrap_or_else(|| "it was given up".into())),
                is_filled: exit.is_none(),
            },
            // It fills the slot, whatever became of the worker.
            (
                Step::Starting { .. }
                | Step::HandingOver { .. }
                | Step::CallingOff { .. }
                | Step::Leaving { .. },
                Successor::None(None),
            ) => {
                let until = now + SETTLE_TIMEOUT;
                self.step = Step::Settling { until };
                if self.settles { nothing() } else { filled() }
            }
            (
                Step::Starting { .. }
                | Step::HandingOver { .. }
                | Step::CallingOff { .. }
                | Step::Leaving { .. },
                Successor::None(Some(why)),
            ) => self.ended(why),
            (Step::Starting { .. }, _) if self.is_called_off => {
                self.end_successor(NOT_WANTED.into())
            }
            // The worker may be on its way back after a crash of its own.
            (Step::Starting { .. }, Successor::Ready) if facts.is_worker_ready => {
                let until = now + HAND_OVER_TIMEOUT;
                self.step = Step::HandingOver { until };
                Turn::Do(Next::HandOver(slot))
            }
            (Step::Starting { .. }, _) if is_late => self.end_successor(format!(
                "the successor of worker-{slot} is not ready in time"
            )),
            (Step::HandingOver { .. }, _) if self.is_called_off => {
                let until = now + CALL_OFF_TIMEOUT;
                self.step = Step::CallingOff { until };
                Turn::Do(Next::CallOff(slot))
            }
            (Step::HandingOver { .. }, _) => self.hand_over(now, facts, times, is_late),
            (Step::CallingOff { .. }, _) => self.wait_for_last_batch(now, facts, is_late),
            (Step::Leaving { .. }, _) if is_late => {
                let until = now + times.leaving;
                self.step = Step::Leaving { until };
                Turn::Do(Next::EndWorker(slot))
            }
            (Step::HandingBack { .. }, _)
                if is_late || matches!(facts.handed_over, Handed::Failed { .. }) =>
            {
                self.end_successor("its connections could not go back".into())
            }
            (
                Step::Starting { .. }
                | Step::Leaving { .. }
                | Step::Settling { .. }
                | Step::HandingBack { .. }
                | Step::Ending,
                _,
            ) => nothing(),
        }
    }

    /// The successor has, without filling the slot.
    fn ended(&self, why: &str) -> Turn {
        let what = match self.step {
            Step::Starting { .. } => "does not start",
            Step::HandingOver { .. } | Step::CallingOff { .. } => "ended while it took over",
            Step::Leaving { .. }
            | Step::Settling { .. }
            | Step::HandingBack { .. }
            | Step::Ending => "ended",
        };
        Turn::Over {
            result: Err(format!(
                "the successor of worker-{} {what}: {why}",
                self.slot
            )),
            is_filled: false,
        }
    }

    fn hand_over(&mut self, now: Millis, facts: &Facts, times: Times, is_late: bool) -> Turn {
        let slot = self.slot;
        let (reason, has_moved) = match &facts.handed_over {
            Handed::All => {
                let until = now + times.leaving;
                self.step = Step::Leaving { until };
                return Turn::Do(Next::Leave(slot));
            }
            Handed::Failed { reason, has_moved } => (reason.as_str(), *has_moved),
            Handed::NotYet if is_late => ("it takes too long", true),
            Handed::NotYet => return nothing(),
        };
        let why = format!("worker-{slot} could not hand over: {reason}");
        if has_moved {
            self.hand_back(now, why)
        } else {
            self.end_successor(why)
        }
    }

    /// It was called off: what has moved goes back.
    fn wait_for_last_batch(&mut self, now: Millis, facts: &Facts, is_late: bool) -> Turn {
        match &facts.handed_over {
            Handed::NotYet if !is_late => nothing(),
            Handed::Failed {
                reason,
                has_moved: false,
            } => self.end_successor(reason.clone()),
            Handed::NotYet | Handed::All | Handed::Failed { .. } => {
                self.hand_back(now, NOT_WANTED.into())
            }
        }
    }

    fn hand_back(&mut self, now: Millis, why: String) -> Turn {
        self.failure.get_or_insert(why);
        let until = now + HAND_OVER_TIMEOUT;
        self.step = Step::HandingBack { until };
        Turn::Do(Next::HandBack(self.slot))
    }

    fn end_successor(&mut self, why: String) -> Turn {
        self.failure.get_or_insert(why.clone());
        self.step = Step::Ending;
        let slot = self.slot;
        Turn::Do(Next::EndSuccessor { slot, why })
    }
}

fn nothing() -> Turn {
    Turn::Do(Next::Nothing)
}

fn filled() -> Turn {
    Turn::Over {
        result: Ok(()),
        is_filled: true,
    }
}

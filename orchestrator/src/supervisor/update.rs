//! Replacing workers one after another: which step is next.
//!
//! A successor is started beside the worker in a slot and warms up; that hands
//! its connections over and ends; the successor fills the slot. Whatever goes
//! wrong before the first connection has moved costs nothing, and later the
//! connections go back.

use std::{collections::VecDeque, time::Duration};

use muster_wire::Millis;

/// Longest that handing over the connections of one worker may take.
const HAND_OVER_TIMEOUT: Duration = Duration::from_secs(120);

/// An update that is under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Update {
    /// Slots whose turn is still to come.
    pending: VecDeque<u32>,
    step: Step,
    /// Why it ends before all slots had their turn.
    failure: Option<String>,
    /// Slots that a successor fills.
    succeeded: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// The next slot's turn.
    Between,
    /// The successor warms up.
    Starting { slot: u32, until: Millis },
    /// Connections go to it.
    HandingOver { slot: u32, until: Millis },
    /// They have; what cannot go is finished by the earlier worker.
    Leaving { slot: u32, until: Millis },
    /// They go back to the earlier worker.
    HandingBack { slot: u32, until: Millis },
    /// The successor is ended.
    Ending { slot: u32 },
}

/// How the slot is whose turn it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Facts {
    /// The earlier worker is ready.
    pub(crate) is_worker_ready: bool,
    pub(crate) successor: Successor,
    /// What the last order to hand over has come to.
    pub(crate) handed_over: Handed,
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

/// What the driver must do.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub(crate) enum Next {
    Nothing,
    /// Start a successor.
    Start(u32),
    /// Have the worker hand over all it has to its successor, and end.
    HandOver(u32),
    /// Have the successor hand over all it has to the worker, and end.
    HandBack(u32),
    /// End the successor, which has no connections, or by force what it has.
    EndSuccessor {
        slot: u32,
        why: String,
    },
    /// End the earlier worker, which has not ended in time.
    EndWorker(u32),
    /// All slots had their turn, or it has failed.
    Done(Result<(), String>),
}

impl Update {
    pub(crate) fn new(slots: impl IntoIterator<Item = u32>) -> Self {
        Self {
            pending: slots.into_iter().collect(),
            step: Step::Between,
            failure: None,
            succeeded: 0,
        }
    }

    /// The update of this slot, which has a successor already.
    pub(crate) fn resume(now: Millis, slot: u32, starting: Duration) -> Self {
        let until = now + starting;
        Self {
            step: Step::Starting { slot, until },
            ..Self::new([])
        }
    }

    /// Slots that a successor fills.
    pub(crate) fn succeeded(&self) -> u32 {
        self.succeeded
    }

    /// The slot whose turn it is.
    pub(crate) fn slot(&self) -> Option<u32> {
        match self.step {
            Step::Between => None,
            Step::Starting { slot, .. }
            | Step::HandingOver { slot, .. }
            | Step::Leaving { slot, .. }
            | Step::HandingBack { slot, .. }
            | Step::Ending { slot } => Some(slot),
        }
    }

    /// Slots whose turn is still to come.
    pub(crate) fn pending(&self) -> usize {
        self.pending.len()
    }

    /// For people and programs.
    pub(crate) fn step(&self) -> &'static str {
        match self.step {
            Step::Between | Step::Starting { .. } => "starting",
            Step::HandingOver { .. } => "handing_over",
            Step::Leaving { .. } => "leaving",
            Step::HandingBack { .. } => "handing_back",
            Step::Ending { .. } => "ending",
        }
    }

    /// When to call [`Update::turn`] although nothing has happened.
    pub(crate) fn wake_at(&self) -> Option<Millis> {
        match self.step {
            Step::Starting { until, .. }
            | Step::HandingOver { until, .. }
            | Step::Leaving { until, .. }
            | Step::HandingBack { until, .. } => Some(until),
            Step::Between | Step::Ending { .. } => None,
        }
    }

    /// `starting` and `leaving` are how long the successor may take to be ready,
    /// and the worker to end once it has handed over.
    pub(crate) fn turn(
        &mut self,
        now: Millis,
        facts: &Facts,
        (starting, leaving): (Duration, Duration),
    ) -> Next {
        let is_late = self.wake_at().is_some_and(|until| until <= now);
        match (self.step, &facts.successor) {
            (Step::Between, _) => self.next_slot(now, starting),
            // The worker may be on its way back after a crash of its own.
            (Step::Starting { slot, .. }, Successor::Ready) if facts.is_worker_ready => {
                let until = now + HAND_OVER_TIMEOUT;
                self.step = Step::HandingOver { slot, until };
                Next::HandOver(slot)
            }
            (Step::Starting { slot, .. }, Successor::None(Some(why))) => self.fail(format!(
                "the successor of worker-{slot} does not start: {why}"
            )),
            (Step::Starting { slot, .. }, _) if is_late => {
                let why = format!("the successor of worker-{slot} is not ready in time");
                self.end_successor(slot, why)
            }
            (Step::HandingOver { slot, .. }, Successor::None(Some(why))) => self.fail(format!(
                "the successor of worker-{slot} ended while it took over: {why}"
            )),
            // It fills the slot, whatever became of the worker.
            (
                Step::Starting { .. } | Step::HandingOver { .. } | Step::Leaving { .. },
                Successor::None(None),
            ) => {
                self.succeeded += 1;
                self.next_slot(now, starting)
            }
            (Step::HandingOver { slot, .. }, _) if facts.handed_over == Handed::All => {
                let until = now + leaving;
                self.step = Step::Leaving { slot, until };
                Next::Nothing
            }
            (Step::HandingOver { slot, .. }, Successor::Starting | Successor::Ready) => {
                self.hand_back_if_failed(now, slot, facts, is_late)
            }
            (Step::Leaving { slot, .. }, Successor::None(Some(why))) => {
                self.fail(format!("the successor of worker-{slot} ended: {why}"))
            }
            (Step::Leaving { slot, .. }, _) if is_late => {
                self.step = Step::Leaving {
                    slot,
                    until: now + leaving,
                };
                Next::EndWorker(slot)
            }
            (Step::HandingBack { .. } | Step::Ending { .. }, Successor::None(_)) => {
                let failure = self.failure.take();
                self.fail(failure.unwrap_or_else(|| "it was given up".to_owned()))
            }
            (Step::HandingBack { slot, .. }, _)
                if is_late || matches!(facts.handed_over, Handed::Failed { .. }) =>
            {
                let why = "its connections could not go back".to_owned();
                self.end_successor(slot, why)
            }
            (
                Step::Starting { .. }
                | Step::Leaving { .. }
                | Step::HandingBack { .. }
                | Step::Ending { .. },
                _,
            ) => Next::Nothing,
        }
    }

    fn hand_back_if_failed(
        &mut self,
        now: Millis,
        slot: u32,
        facts: &Facts,
        is_late: bool,
    ) -> Next {
        let (reason, has_moved) = match &facts.handed_over {
            Handed::Failed { reason, has_moved } => (reason.as_str(), *has_moved),
            Handed::NotYet | Handed::All if is_late => ("it takes too long", true),
            Handed::NotYet | Handed::All => return Next::Nothing,
        };
        let why = format!("worker-{slot} could not hand over: {reason}");
        if !has_moved {
            return self.end_successor(slot, why);
        }
        self.failure.get_or_insert(why);
        let until = now + HAND_OVER_TIMEOUT;
        self.step = Step::HandingBack { slot, until };
        Next::HandBack(slot)
    }

    fn next_slot(&mut self, now: Millis, starting: Duration) -> Next {
        let Some(slot) = self.pending.pop_front() else {
            self.step = Step::Between;
            return Next::Done(Ok(()));
        };
        let until = now + starting;
        self.step = Step::Starting { slot, until };
        Next::Start(slot)
    }

    fn end_successor(&mut self, slot: u32, why: String) -> Next {
        self.failure.get_or_insert(why.clone());
        self.step = Step::Ending { slot };
        Next::EndSuccessor { slot, why }
    }

    fn fail(&mut self, why: String) -> Next {
        self.pending.clear();
        self.step = Step::Between;
        Next::Done(Err(why))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Millis = Millis(1_000);
    const TIMES: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(5));

    fn facts(successor: Successor, handed_over: Handed) -> Facts {
        Facts {
            is_worker_ready: true,
            successor,
            handed_over,
        }
    }

    fn turn(update: &mut Update, successor: Successor, handed_over: Handed) -> Next {
        update.turn(NOW, &facts(successor, handed_over), TIMES)
    }

    fn late(update: &mut Update, successor: Successor, handed_over: Handed) -> Next {
        let until = update.wake_at().unwrap();
        update.turn(until, &facts(successor, handed_over), TIMES)
    }

    fn failed(has_moved: bool) -> Handed {
        Handed::Failed {
            reason: "no room".to_owned(),
            has_moved,
        }
    }

    /// An update of worker 1, whose connections are going over.
    fn handing_over() -> Update {
        let mut update = Update::new([1, 2]);
        let _ = turn(&mut update, Successor::None(None), Handed::NotYet);
        let next = turn(&mut update, Successor::Ready, Handed::NotYet);
        assert_eq!(next, Next::HandOver(1));
        update
    }

    #[test]
    fn each_slot_gets_a_successor_that_is_ready_before_connections_move() {
        let mut update = Update::new([1, 2]);
        for slot in [1, 2] {
            let next = turn(&mut update, Successor::None(None), Handed::NotYet);
            assert_eq!(next, Next::Start(slot));
            assert_eq!((update.slot(), update.step()), (Some(slot), "starting"));
            let next = turn(&mut update, Successor::Starting, Handed::NotYet);
            assert_eq!(next, Next::Nothing);
            let next = turn(&mut update, Successor::Ready, Handed::NotYet);
            assert_eq!(next, Next::HandOver(slot));
            let next = turn(&mut update, Successor::Ready, Handed::NotYet);
            assert_eq!(next, Next::Nothing);
            let next = turn(&mut update, Successor::Ready, Handed::All);
            assert_eq!((next, update.step()), (Next::Nothing, "leaving"));
        }
        let next = turn(&mut update, Successor::None(None), Handed::All);
        assert_eq!(next, Next::Done(Ok(())));
    }

    #[test]
    fn a_successor_that_does_not_start_costs_nothing_and_ends_the_update() {
        let mut update = Update::new([1, 2]);
        let _ = turn(&mut update, Successor::None(None), Handed::NotYet);
        let exit = Some("exit code 1".to_owned());
        let Next::Done(Err(why)) = turn(&mut update, Successor::None(exit), Handed::NotYet) else {
            panic!("it has failed");
        };
        assert!(why.contains("exit code 1"), "{why}");
        assert_eq!(update.pending(), 0);
    }

    #[test]
    fn a_successor_that_is_not_ready_in_time_is_ended() {
        let mut update = Update::new([1]);
        let _ = turn(&mut update, Successor::None(None), Handed::NotYet);
        let next = late(&mut update, Successor::Starting, Handed::NotYet);
        assert!(matches!(next, Next::EndSuccessor { slot: 1, .. }));
        let ended = Successor::None(Some("signal 9".to_owned()));
        let Next::Done(Err(why)) = turn(&mut update, ended, Handed::NotYet) else {
            panic!("it has failed");
        };
        assert!(why.contains("not ready in time"), "{why}");
    }

    #[test]
    fn a_worker_that_is_away_is_waited_for_before_it_hands_over() {
        let mut update = Update::new([1]);
        let _ = turn(&mut update, Successor::None(None), Handed::NotYet);
        let away = Facts {
            is_worker_ready: false,
            ..facts(Successor::Ready, Handed::NotYet)
        };
        assert_eq!(update.turn(NOW, &away, TIMES), Next::Nothing);
        let next = late(&mut update, Successor::Starting, Handed::NotYet);
        assert!(matches!(next, Next::EndSuccessor { .. }));
    }

    #[test]
    fn what_has_moved_goes_back_when_the_rest_cannot() {
        for is_late in [false, true] {
            let mut update = handing_over();
            let next = if is_late {
                late(&mut update, Successor::Ready, Handed::NotYet)
            } else {
                turn(&mut update, Successor::Ready, failed(true))
            };
            assert_eq!((next, update.step()), (Next::HandBack(1), "handing_back"));
            let next = turn(&mut update, Successor::Ready, Handed::NotYet);
            assert_eq!(next, Next::Nothing);
            let next = turn(&mut update, Successor::Ready, Handed::All);
            assert_eq!(next, Next::Nothing, "it ends by itself");
            let ended = Successor::None(Some("exit code 0".to_owned()));
            let Next::Done(Err(why)) = turn(&mut update, ended, Handed::All) else {
                panic!("it has failed");
            };
            assert!(why.contains("could not hand over"), "{why}");
        }
    }

    #[test]
    fn a_successor_that_got_nothing_is_ended() {
        let mut update = handing_over();
        let next = turn(&mut update, Successor::Ready, failed(false));
        let Next::EndSuccessor { slot: 1, why } = next else {
            panic!("it has nothing to hand back: {next:?}");
        };
        assert!(why.contains("could not hand over: no room"), "{why}");
    }

    #[test]
    fn a_successor_whose_connections_cannot_go_back_is_ended() {
        let mut update = handing_over();
        let _ = turn(&mut update, Successor::Ready, failed(true));
        let next = turn(&mut update, Successor::Ready, failed(false));
        assert!(matches!(next, Next::EndSuccessor { slot: 1, .. }));
    }

    #[test]
    fn a_successor_that_ends_while_it_takes_over_leaves_the_worker_serving() {
        let mut update = handing_over();
        let ended = Successor::None(Some("signal 9".to_owned()));
        let Next::Done(Err(why)) = turn(&mut update, ended, Handed::NotYet) else {
            panic!("it has failed");
        };
        assert!(why.contains("signal 9"), "{why}");
    }

    #[test]
    fn a_worker_that_ends_in_between_is_succeeded_all_the_same() {
        let mut update = handing_over();
        let next = turn(&mut update, Successor::None(None), Handed::NotYet);
        assert_eq!(next, Next::Start(2));
    }

    #[test]
    fn a_worker_that_does_not_leave_is_ended() {
        let mut update = handing_over();
        let _ = turn(&mut update, Successor::Ready, Handed::All);
        let next = late(&mut update, Successor::Ready, Handed::All);
        assert_eq!(next, Next::EndWorker(1));
        let next = turn(&mut update, Successor::None(None), Handed::All);
        assert_eq!(next, Next::Start(2));
    }
}

//! Replacing brokers one after another: which step is next.
//!
//! A broker's end is an announced crash (architecture.md 4.6): it is told to
//! end, another one is started in its slot and opens the same shards at the
//! next epoch. Publications wait for it in the workers, so one that does not
//! come up soon makes place for the earlier program.

use std::{collections::VecDeque, time::Duration};

use muster_wire::Millis;

/// Longest that a broker may take to end once it was told to, and then to be
/// gone once it was killed.
const END_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest that a new broker may take to have its shards. Publications wait for
/// it, `link.publish_timeout` at most; a journal of gigabytes takes its time.
const START_TIMEOUT: Duration = Duration::from_secs(10);

/// An update of the brokers that is under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BrokerUpdate {
    /// Slots whose turn is still to come.
    pending: VecDeque<u32>,
    step: Step,
    /// Slots that the new program fills.
    done: Vec<u32>,
    /// Why no further slot has its turn.
    given_up: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    /// The next slot's turn.
    Between,
    /// The earlier broker was told to end.
    Ending { slot: u32, until: Millis },
    /// The new one has not got its shards.
    Starting { slot: u32, until: Millis },
    /// The earlier program is on its way back into the slot.
    PuttingBack {
        slot: u32,
        until: Millis,
        why: String,
    },
}

/// What fills the slot whose turn it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Filling {
    /// The process that was there before the slot's turn came.
    Earlier,
    /// Nothing, or a process that does not have its shards yet.
    Starting,
    /// A process that has its shards, which workers know.
    Ready,
    /// A new process has ended for this reason.
    Died(String),
}

/// What the driver must do.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub(crate) enum Next {
    Nothing,
    /// Tell the broker to end, and fill its slot with the new program.
    Replace(u32),
    /// End the broker by force: it was told to.
    Kill(u32),
    /// Fill the slot with the earlier program again.
    PutBack {
        slot: u32,
        why: String,
    },
    /// All slots had their turn, or it has failed.
    Done(Result<(), String>),
}

impl BrokerUpdate {
    pub(crate) fn new(slots: impl IntoIterator<Item = u32>) -> Self {
        Self {
            pending: slots.into_iter().collect(),
            step: Step::Between,
            done: Vec::new(),
            given_up: None,
        }
    }

    /// Slots that the new program fills.
    pub(crate) fn done(&self) -> &[u32] {
        &self.done
    }

    /// It is not wanted any more, for this reason: the broker whose turn it is
    /// is the last one. False if it comes to nothing already.
    pub(crate) fn give_up(&mut self, why: String) -> bool {
        let is_failing = matches!(self.step, Step::PuttingBack { .. });
        if is_failing || self.given_up.is_some() {
            return false;
        }
        self.pending.clear();
        self.given_up = Some(why);
        true
    }

    /// Slots whose turn is still to come.
    pub(crate) fn pending(&self) -> usize {
        self.pending.len()
    }

    /// The slot whose turn it is.
    pub(crate) fn slot(&self) -> Option<u32> {
        match self.step {
            Step::Between => None,
            Step::Ending { slot, .. }
            | Step::Starting { slot, .. }
            | Step::PuttingBack { slot, .. } => Some(slot),
        }
    }

    /// For people and programs.
    pub(crate) fn step(&self) -> &'static str {
        match self.step {
            Step::Between | Step::Ending { .. } => "ending",
            Step::Starting { .. } => "starting",
            Step::PuttingBack { .. } => "putting_back",
        }
    }

    /// When to call [`BrokerUpdate::turn`] although nothing has happened.
    pub(crate) fn wake_at(&self) -> Option<Millis> {
        match self.step {
            Step::Between => None,
            Step::Ending { until, .. }
            | Step::Starting { until, .. }
            | Step::PuttingBack { until, .. } => Some(until),
        }
    }

    pub(crate) fn turn(&mut self, now: Millis, filling: &Filling) -> Next {
        let is_late = self.wake_at().is_some_and(|until| until <= now);
        match (&self.step, filling) {
            (Step::Between, _) => self.next_slot(now),
            (Step::Ending { slot, .. } | Step::Starting { slot, .. }, Filling::Died(why)) => {
                let why = format!("the new broker-{slot} does not start: {why}");
                self.put_back(now, *slot, why)
            }
            (Step::Ending { slot, .. } | Step::Starting { slot, .. }, Filling::Ready) => {
                self.done.push(*slot);
                self.next_slot(now)
            }
            (Step::Ending { slot, .. }, Filling::Starting) => {
                let until = now + START_TIMEOUT;
                self.step = Step::Starting { slot: *slot, until };
                Next::Nothing
            }
            (Step::Ending { slot, .. }, Filling::Earlier) if is_late => {
                let slot = *slot;
                let until = now + END_TIMEOUT;
                self.step = Step::Ending { slot, until };
                Next::Kill(slot)
            }
            (Step::Starting { slot, .. }, Filling::Starting | Filling::Earlier) if is_late => {
                let why = format!(
                    "the new broker-{slot} has not opened its shards within {START_TIMEOUT:?}"
                );
                self.put_back(now, *slot, why)
            }
            (Step::PuttingBack { why, .. }, Filling::Ready) => {
                let why = why.clone();
                self.fail(why)
            }
            (Step::PuttingBack { slot, why, .. }, _) if is_late => {
                let why = format!("{why}; nor is broker-{slot} back with the earlier program yet");
                self.fail(why)
            }
            (Step::Ending { .. } | Step::Starting { .. }, Filling::Earlier | Filling::Starting)
            | (Step::PuttingBack { .. }, Filling::Earlier | Filling::Starting | Filling::Died(_)) => {
                Next::Nothing
            }
        }
    }

    fn next_slot(&mut self, now: Millis) -> Next {
        let Some(slot) = self.pending.pop_front() else {
            self.step = Step::Between;
            return Next::Done(self.given_up.take().map_or(Ok(()), Err));
        };
        let until = now + END_TIMEOUT;
        self.step = Step::Ending { slot, until };
        Next::Replace(slot)
    }

    fn put_back(&mut self, now: Millis, slot: u32, why: String) -> Next {
        let until = now + END_TIMEOUT + START_TIMEOUT;
        self.step = Step::PuttingBack {
            slot,
            until,
            why: why.clone(),
        };
        Next::PutBack { slot, why }
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

    fn late(update: &mut BrokerUpdate, filling: &Filling) -> Next {
        let until = update.wake_at().unwrap();
        update.turn(until, filling)
    }

    fn replacing() -> BrokerUpdate {
        let mut update = BrokerUpdate::new([1, 2]);
        assert_eq!(update.turn(NOW, &Filling::Starting), Next::Replace(1));
        update
    }

    #[test]
    fn one_broker_after_the_other_is_replaced_once_the_one_before_has_its_shards() {
        let mut update = BrokerUpdate::new([1, 2]);
        for slot in [1, 2] {
            assert_eq!(update.turn(NOW, &Filling::Ready), Next::Replace(slot));
            assert_eq!((update.slot(), update.step()), (Some(slot), "ending"));
            assert_eq!(update.turn(NOW, &Filling::Earlier), Next::Nothing);
            assert_eq!(update.turn(NOW, &Filling::Starting), Next::Nothing);
            assert_eq!(update.step(), "starting");
            assert_eq!(update.turn(NOW, &Filling::Starting), Next::Nothing);
            assert_eq!(update.done().len() + 1, slot as usize);
        }
        assert_eq!(update.turn(NOW, &Filling::Ready), Next::Done(Ok(())));
        assert_eq!((update.done(), update.slot()), (&[1, 2][..], None));
    }

    #[test]
    fn a_broker_that_does_not_end_when_it_is_told_to_is_killed() {
        let mut update = replacing();
        assert_eq!(late(&mut update, &Filling::Earlier), Next::Kill(1));
        assert_eq!(update.turn(NOW, &Filling::Starting), Next::Nothing);
        assert_eq!(update.turn(NOW, &Filling::Ready), Next::Replace(2));
    }

    #[test]
    fn a_new_broker_that_dies_or_takes_too_long_makes_place_for_the_earlier_program() {
        for is_late in [false, true] {
            let mut update = replacing();
            let _ = update.turn(NOW, &Filling::Starting);
            let next = if is_late {
                late(&mut update, &Filling::Starting)
            } else {
                update.turn(NOW, &Filling::Died("exit code 1".into()))
            };
            let Next::PutBack { slot: 1, why } = next else {
                panic!("{next:?}");
            };
            let about = if is_late { "10s" } else { "exit code 1" };
            assert!(why.contains(about), "{why}");
            assert_eq!(update.step(), "putting_back");
            assert_eq!(update.turn(NOW, &Filling::Starting), Next::Nothing);
            let next = update.turn(NOW, &Filling::Ready);
            assert_eq!(next, Next::Done(Err(why)));
            assert_eq!((update.pending(), update.done()), (0, &[][..]));
        }
    }

    #[test]
    fn an_update_that_is_given_up_ends_with_the_broker_whose_turn_it_is() {
        for is_starting in [false, true] {
            let mut update = replacing();
            if is_starting {
                assert_eq!(update.turn(NOW, &Filling::Starting), Next::Nothing);
            }
            assert!(update.give_up("enough".into()));
            assert!(
                !update.give_up("too late".into()),
                "the first reason counts"
            );
            assert_eq!(update.turn(NOW, &Filling::Starting), Next::Nothing);
            let next = update.turn(NOW, &Filling::Ready);
            assert_eq!(next, Next::Done(Err("enough".into())));
            assert_eq!(update.done(), [1]);
        }
    }

    #[test]
    fn an_update_that_is_given_up_before_the_first_turn_replaces_nobody() {
        let mut update = BrokerUpdate::new([1, 2]);
        assert!(update.give_up("enough".into()));
        let next = update.turn(NOW, &Filling::Starting);
        assert_eq!(next, Next::Done(Err("enough".into())));
        assert_eq!((update.done(), update.slot()), (&[][..], None));
    }

    #[test]
    fn an_update_that_is_given_up_in_the_last_turn_fails_although_all_brokers_are_new() {
        let mut update = BrokerUpdate::new([1]);
        assert_eq!(update.turn(NOW, &Filling::Starting), Next::Replace(1));
        assert!(update.give_up("enough".into()));
        let next = update.turn(NOW, &Filling::Ready);
        assert_eq!(next, Next::Done(Err("enough".into())));
        assert_eq!(update.done(), [1]);
    }

    #[test]
    fn a_broker_that_dies_after_the_update_was_given_up_is_put_back_first() {
        let mut update = replacing();
        assert!(update.give_up("enough".into()));
        let next = update.turn(NOW, &Filling::Died("exit code 1".into()));
        assert!(matches!(next, Next::PutBack { slot: 1, .. }), "{next:?}");
        let next = update.turn(NOW, &Filling::Ready);
        let Next::Done(Err(why)) = next else {
            panic!("{next:?}");
        };
        assert!(why.contains("exit code 1"), "{why}");
        assert!(update.done().is_empty());
    }

    #[test]
    fn an_update_that_has_failed_is_not_given_up() {
        let mut update = replacing();
        let _ = update.turn(NOW, &Filling::Died("exit code 1".into()));
        assert!(!update.give_up("enough".into()));
    }

    #[test]
    fn an_update_does_not_wait_for_ever_for_the_earlier_program() {
        let mut update = replacing();
        let _ = update.turn(NOW, &Filling::Died("exit code 1".into()));
        let next = late(&mut update, &Filling::Starting);
        let Next::Done(Err(why)) = next else {
            panic!("{next:?}");
        };
        assert!(why.contains("nor is broker-1 back"), "{why}");
    }
}

//! More or fewer brokers: which step is next.
//!
//! More: the new ones start and are linked to before they get shards. Fewer:
//! the others have the shards of those that go before those end.

use std::time::Duration;

use muster_wire::Millis;

/// Longest that shards wait for links to brokers that are ready; a worker whose
/// link comes later sends then.
const LINK_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest that it takes brokers to open and close what a view says, before a
/// scale goes on without them.
const APPLY_TIMEOUT: Duration = Duration::from_secs(10);

/// A change of the number of brokers that is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Resize {
    pub(crate) from: u32,
    pub(crate) to: u32,
    step: Step,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Not all new brokers are ready.
    Starting,
    /// Not all workers have links to them.
    Linking { until: Millis },
    /// Not all brokers have opened and closed what the view says.
    Moving { until: Millis },
    /// The same, and those that go live on meanwhile.
    Leaving { until: Millis },
    /// Those that go were told to end.
    Ending,
}

/// How the cluster is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Facts {
    /// Every new broker is ready.
    pub(crate) is_ready: bool,
    /// A new broker ends again and again.
    pub(crate) is_failing: bool,
    /// Every worker that is ready has links to all brokers.
    pub(crate) is_linked: bool,
    /// Every broker has opened and closed what the view says.
    pub(crate) is_applied: bool,
    /// Every broker that is to go has ended.
    pub(crate) is_gone: bool,
}

/// What the driver must do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(crate) enum Next {
    Nothing,
    /// Give the new brokers their shards.
    Admit,
    /// The new brokers are no good: let them go.
    GiveUp,
    /// End the brokers that go.
    End,
    /// It is through.
    Done,
}

impl Resize {
    /// New brokers have been asked for.
    pub(crate) fn grow(from: u32, to: u32) -> Self {
        let step = Step::Starting;
        Self { from, to, step }
    }

    /// The view without the brokers that go has been told.
    pub(crate) fn shrink(now: Millis, from: u32, to: u32) -> Self {
        let until = now + APPLY_TIMEOUT;
        let step = Step::Leaving { until };
        Self { from, to, step }
    }

    /// For people and programs.
    pub(crate) fn step(&self) -> &'static str {
        match self.step {
            Step::Starting => "starting",
            Step::Linking { .. } => "linking",
            Step::Moving { .. } | Step::Leaving { .. } => "moving",
            Step::Ending => "ending",
        }
    }

    /// When to call [`Resize::turn`] although nothing has happened.
    pub(crate) fn wake_at(&self) -> Option<Millis> {
        match self.step {
            Step::Linking { until } | Step::Moving { until } | Step::Leaving { until } => {
                Some(until)
            }
            Step::Starting | Step::Ending => None,
        }
    }

    /// When those that go are ended by force, at the latest.
    pub(crate) fn cut_at(now: Millis, grace: Duration) -> Millis {
        now + APPLY_TIMEOUT + grace
    }

    pub(crate) fn turn(&mut self, now: Millis, facts: Facts) -> Next {
        let (step, next) = match self.step {
            Step::Starting | Step::Linking { .. } if facts.is_failing => (self.step, Next::GiveUp),
            Step::Starting if facts.is_ready => {
                let until = now + LINK_TIMEOUT;
                (Step::Linking { until }, Next::Nothing)
            }
            // One has died meanwhile.
            Step::Linking { .. } if !facts.is_ready => (Step::Starting, Next::Nothing),
            Step::Linking { until } if facts.is_linked || until <= now => {
                let until = now + APPLY_TIMEOUT;
                (Step::Moving { until }, Next::Admit)
            }
            Step::Moving { until } if facts.is_applied || until <= now => (self.step, Next::Done),
            Step::Leaving { .. } | Step::Ending if facts.is_gone => (self.step, Next::Done),
            Step::Leaving { until } if facts.is_applied || until <= now => {
                (Step::Ending, Next::End)
            }
            step @ (Step::Starting
            | Step::Linking { .. }
            | Step::Moving { .. }
            | Step::Leaving { .. }
            | Step::Ending) => (step, Next::Nothing),
        };
        self.step = step;
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Millis = Millis(1_000);
    const NOTHING: Facts = Facts {
        is_ready: false,
        is_failing: false,
        is_linked: false,
        is_applied: false,
        is_gone: false,
    };
    const READY: Facts = Facts {
        is_ready: true,
        ..NOTHING
    };
    const LINKED: Facts = Facts {
        is_linked: true,
        ..READY
    };
    const APPLIED: Facts = Facts {
        is_applied: true,
        ..LINKED
    };

    #[test]
    fn new_brokers_get_shards_once_they_are_ready_and_linked_to() {
        let mut resize = Resize::grow(2, 4);
        assert_eq!(resize.turn(NOW, NOTHING), Next::Nothing);
        assert_eq!(resize.step(), "starting");
        assert_eq!(resize.turn(NOW, READY), Next::Nothing);
        assert_eq!(resize.turn(NOW, READY), Next::Nothing);
        assert_eq!(resize.step(), "linking");
        assert_eq!(resize.turn(NOW, LINKED), Next::Admit);
        assert_eq!(resize.turn(NOW, LINKED), Next::Nothing);
        assert_eq!(resize.step(), "moving");
        assert_eq!(resize.turn(NOW, APPLIED), Next::Done);
    }

    #[test]
    fn a_worker_without_a_link_holds_the_shards_up_for_a_bounded_time() {
        let mut resize = Resize::grow(2, 4);
        let _ = resize.turn(NOW, READY);
        let until = resize.wake_at().unwrap();
        assert_eq!(until, NOW + LINK_TIMEOUT);
        assert_eq!(resize.turn(until, READY), Next::Admit);
        let until = resize.wake_at().unwrap();
        assert_eq!(resize.turn(until, READY), Next::Done);
    }

    #[test]
    fn a_new_broker_that_dies_is_waited_for_again_and_one_that_keeps_dying_is_not() {
        let mut resize = Resize::grow(2, 3);
        let _ = resize.turn(NOW, READY);
        assert_eq!(resize.turn(NOW, NOTHING), Next::Nothing);
        assert_eq!(resize.step(), "starting");
        let failing = Facts {
            is_failing: true,
            ..NOTHING
        };
        assert_eq!(resize.turn(NOW, failing), Next::GiveUp);
    }

    #[test]
    fn brokers_end_once_the_others_have_their_shards() {
        let mut resize = Resize::shrink(NOW, 4, 2);
        assert_eq!(resize.turn(NOW, LINKED), Next::Nothing);
        assert_eq!(resize.step(), "moving");
        assert_eq!(resize.turn(NOW, APPLIED), Next::End);
        assert_eq!(resize.turn(NOW, APPLIED), Next::Nothing, "told once");
        assert_eq!(resize.step(), "ending");
        let gone = Facts {
            is_gone: true,
            ..APPLIED
        };
        assert_eq!(resize.turn(NOW, gone), Next::Done);
    }

    #[test]
    fn a_broker_that_does_not_take_over_keeps_those_that_go_for_a_bounded_time() {
        let mut resize = Resize::shrink(NOW, 4, 2);
        let until = resize.wake_at().unwrap();
        assert_eq!(resize.turn(until, NOTHING), Next::End);
        assert!(Resize::cut_at(NOW, Duration::from_secs(1)) > until);
    }
}

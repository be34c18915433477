//! One slot of the cluster: the process that fills it, and what comes next.

use std::{fmt, time::Duration};

use muster_daemon::backoff::Backoff;
use muster_wire::Millis;
use rand::Rng;

/// Deaths before ready, or soon after it, that make a crash loop
/// (delivery.md E1).
const CRASH_LOOP_DEATHS: u32 = 3;
/// A node that lives this long after it was ready has not died early.
const SETTLED_AFTER: Duration = Duration::from_secs(5);
/// In a crash loop only: a machine should not be busy with starting what dies.
const RESTART_WAIT_MIN: Duration = Duration::from_millis(500);
const RESTART_WAIT_MAX: Duration = Duration::from_secs(30);
/// What a living node may take to join an orchestrator that was started anew.
const REJOIN_MAX: Duration = Duration::from_secs(3);

/// One process in a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Life {
    /// Rises with every start.
    pub(crate) incarnation: u64,
    pub(crate) pid: u32,
}

/// How long a node may be silent before it is taken for hung.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Patience {
    pub(crate) starting: Duration,
    pub(crate) ready: Duration,
}

/// Where a slot stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// No process; one is started when the time has come.
    Waiting {
        until: Millis,
    },
    /// The process runs and has not said that it is ready.
    Starting {
        life: Life,
        since: Millis,
    },
    Ready {
        life: Life,
        since: Millis,
    },
    /// The process was killed because it was silent for so long.
    Hung {
        life: Life,
        silent: Duration,
        /// It did not live long enough to be settled.
        early: bool,
    },
    /// The process was asked to let its clients go and end.
    Draining {
        life: Life,
        until: Millis,
    },
    /// The process was told to end.
    Stopping {
        life: Life,
    },
    /// No process, and none will be started.
    Stopped,
}

/// What happened to a slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// Time went by.
    Woken,
    /// The start that was asked for brought a process.
    Started {
        pid: u32,
    },
    /// The start that was asked for failed.
    StartFailed {
        reason: String,
    },
    Ready {
        incarnation: u64,
    },
    /// The thread of the process that does the work gave a sign of life.
    Heartbeat,
    /// The process is to make place for another one, now.
    Replace,
    /// The orchestrator itself did not listen for this long.
    Deaf(Duration),
    Exited {
        incarnation: u64,
        exit: Exit,
    },
    /// The slot is to be emptied, by force when the time has come.
    Drain {
        until: Millis,
    },
    /// The cluster ends.
    Stop,
}

/// How a process ended, for people.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Exit {
    /// `exit code 1`, `signal 9 (SIGKILL)`.
    pub(crate) status: String,
    /// The last thing it logged.
    pub(crate) last_line: Option<String>,
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.last_line {
            Some(line) => write!(f, "{}; last log line: {line}", self.status),
            None => f.write_str(&self.status),
        }
    }
}

/// What the driver must do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(crate) enum Action {
    Nothing,
    /// Start a process, and say at once whether there is one.
    Start {
        incarnation: u64,
    },
    /// Ask the process to end.
    Terminate(Life),
    /// Ask the process to let its clients go until then, and to end.
    Drain {
        life: Life,
        until: Millis,
    },
    /// End the process at once: it did not within the time it had.
    Cut(Life),
    /// End the process: it hangs, having been silent for so long.
    Kill {
        life: Life,
        silent: Duration,
    },
}

/// A slot and its history.
#[derive(Debug)]
pub(crate) struct Slot {
    phase: Phase,
    incarnation: u64,
    restarts: u32,
    early_deaths: u32,
    last_exit: Option<Exit>,
    backoff: Backoff,
    patience: Patience,
    /// The process's end has been asked for, to start another.
    is_replaced: bool,
    /// The last sign of life, on a clock that stands still while the
    /// orchestrator does; `None` before this orchestrator has begun to listen.
    heard: Option<Millis>,
}

impl Slot {
    /// A slot that has never been filled; its incarnations come after `incarnation`.
    pub(crate) fn new(incarnation: u64, patience: Patience) -> Self {
        Self {
            phase: Phase::Waiting { until: Millis(0) },
            incarnation,
            restarts: 0,
            early_deaths: 0,
            last_exit: None,
            backoff: Backoff::new(RESTART_WAIT_MIN, RESTART_WAIT_MAX),
            patience,
            is_replaced: false,
            heard: None,
        }
    }

    /// Fills the slot with a process that an earlier orchestrator started. It
    /// has to join and to say again that it is ready; one that hangs does not,
    /// and has no longer for it than such a node has.
    pub(crate) fn adopt(&mut self, now: Millis, life: Life, restarts: u32) {
        let patience = self.patience.ready + REJOIN_MAX;
        let ahead = self.patience.starting.saturating_sub(patience);
        let ahead = u64::try_from(ahead.as_millis()).unwrap_or(u64::MAX);
        self.heard = Some(Millis(now.0.saturating_sub(ahead)));
        self.phase = Phase::Starting { life, since: now };
        self.incarnation = self.incarnation.max(life.incarnation);
        self.restarts = restarts;
    }

    /// The same for a process that has been asked to end; it is asked again
    /// when it joins.
    pub(crate) fn adopt_draining(&mut self, life: Life, until: Millis) {
        self.phase = Phase::Draining { life, until };
        self.incarnation = self.incarnation.max(life.incarnation);
    }

    /// Its incarnations come after this one, too.
    pub(crate) fn skip_to(&mut self, incarnation: u64) {
        self.incarnation = self.incarnation.max(incarnation);
    }

    /// The process in this slot has taken the place of the one in `earlier`.
    pub(crate) fn succeed(&mut self, earlier: &Self) {
        self.skip_to(earlier.incarnation);
        self.restarts += earlier.restarts;
        self.last_exit.clone_from(&earlier.last_exit);
    }

    pub(crate) fn set_patience(&mut self, patience: Patience) {
        self.patience = patience;
    }

    pub(crate) fn phase(&self) -> Phase {
        self.phase
    }

    /// Of the process in the slot, or the last one.
    pub(crate) fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// Times a process was started in the place of one that had ended.
    pub(crate) fn restarts(&self) -> u32 {
        self.restarts
    }

    pub(crate) fn last_exit(&self) -> Option<&Exit> {
        self.last_exit.as_ref()
    }

    /// The process in the slot.
    pub(crate) fn life(&self) -> Option<Life> {
        match self.phase {
            Phase::Starting { life, .. }
            | Phase::Ready { life, .. }
            | Phase::Hung { life, .. }
            | Phase::Draining { life, .. }
            | Phase::Stopping { life } => Some(life),
            Phase::Waiting { .. } | Phase::Stopped => None,
        }
    }

    /// What dies as soon as it is started, again and again; until one is settled.
    pub(crate) fn is_crash_loop(&self) -> bool {
        self.early_deaths >= CRASH_LOOP_DEATHS
    }

    /// When to send [`Event::Woken`].
    pub(crate) fn wake_at(&self) -> Option<Millis> {
        match self.phase {
            Phase::Waiting { until } | Phase::Draining { until, .. } => Some(until),
            Phase::Ready { since, .. } if self.is_crash_loop() => {
                Some((since + SETTLED_AFTER).min(self.hung_at()))
            }
            Phase::Starting { .. } | Phase::Ready { .. } => Some(self.hung_at()),
            Phase::Hung { .. } | Phase::Stopping { .. } | Phase::Stopped => None,
        }
    }

    pub(crate) fn handle(&mut self, now: Millis, event: Event, rng: &mut impl Rng) -> Action {
        let (phase, action) = match (self.phase, event) {
            (Phase::Waiting { until }, Event::Woken) if until <= now => {
                self.incarnation += 1;
                let incarnation = self.incarnation;
                (self.phase, Action::Start { incarnation })
            }
            (Phase::Waiting { .. }, Event::Started { pid }) => {
                let incarnation = self.incarnation;
                let life = Life { incarnation, pid };
                self.heard = Some(now);
                (Phase::Starting { life, since: now }, Action::Nothing)
            }
            (Phase::Waiting { .. }, Event::StartFailed { reason }) => {
                let exit = Exit {
                    status: format!("cannot be started: {reason}"),
                    last_line: None,
                };
                (self.after_death(now, exit, rng), Action::Nothing)
            }
            (Phase::Starting { life, .. }, Event::Ready { incarnation })
                if life.incarnation == incarnation =>
            {
                self.heard = Some(now);
                (Phase::Ready { life, since: now }, Action::Nothing)
            }
            (Phase::Starting { life, .. } | Phase::Ready { life, .. }, Event::Woken) => {
                self.look_after(now, life)
            }
            (Phase::Draining { life, until }, Event::Woken) if until <= now => {
                (Phase::Stopping { life }, Action::Cut(life))
            }
            (_, Event::Exited { incarnation, exit }) => {
                let phase = self.after_exit(now, incarnation, exit, rng);
                (phase, Action::Nothing)
            }
            (_, Event::Drain { until }) => self.drain(until),
            (_, Event::Stop) => self.stop(),
            (phase, Event::Replace) => (phase, self.replace()),
            (phase, Event::Heartbeat) => {
                self.heard = Some(now);
                (phase, Action::Nothing)
            }
            (phase, Event::Deaf(lost)) => {
                let heard = self.heard.unwrap_or(now);
                self.heard = Some(heard + lost.min(now.since(heard)));
                (phase, Action::Nothing)
            }
            // Late news from a life or a phase already left.
            (
                phase,
                Event::Woken
                | Event::Started { .. }
                | Event::StartFailed { .. }
                | Event::Ready { .. },
            ) => (phase, Action::Nothing),
        };
        self.phase = phase;
        action
    }

    fn hung_at(&self) -> Millis {
        self.heard
            .map_or(Millis(0), |heard| heard + self.patience())
    }

    /// How long the process may be silent. A node that waits for others to
    /// start says so by its heartbeats.
    fn patience(&self) -> Duration {
        match self.phase {
            Phase::Ready { .. } => self.patience.ready,
            Phase::Waiting { .. }
            | Phase::Starting { .. }
            | Phase::Hung { .. }
            | Phase::Draining { .. }
            | Phase::Stopping { .. }
            | Phase::Stopped => self.patience.starting,
        }
    }

    /// Whether the process hangs, or is settled.
    fn look_after(&mut self, now: Millis, life: Life) -> (Phase, Action) {
        let silent = now.since(*self.heard.get_or_insert(now));
        let early = self.is_early(now);
        if silent >= self.patience() {
            let phase = Phase::Hung {
                life,
                silent,
                early,
            };
            return (phase, Action::Kill { life, silent });
        }
        if !early {
            self.settled();
        }
        (self.phase, Action::Nothing)
    }

    /// Whether the end of what is in the slot now counts for a crash loop.
    fn is_early(&self, now: Millis) -> bool {
        match self.phase {
            Phase::Waiting { .. } | Phase::Starting { .. } => true,
            Phase::Ready { since, .. } => now.since(since) < SETTLED_AFTER,
            Phase::Hung { early, .. } => early,
            Phase::Draining { .. } | Phase::Stopping { .. } | Phase::Stopped => false,
        }
    }

    fn drain(&self, until: Millis) -> (Phase, Action) {
        match self.phase {
            Phase::Ready { life, .. } => {
                let phase = Phase::Draining { life, until };
                (phase, Action::Drain { life, until })
            }
            // It has no clients.
            Phase::Starting { life, .. } => {
                let phase = Phase::Draining { life, until };
                (phase, Action::Terminate(life))
            }
            phase @ Phase::Draining { .. } => (phase, Action::Nothing),
            Phase::Waiting { .. }
            | Phase::Hung { .. }
            | Phase::Stopping { .. }
            | Phase::Stopped => self.stop(),
        }
    }

    /// What is not there, or is on its way out, needs no telling.
    fn replace(&mut self) -> Action {
        match self.phase {
            Phase::Starting { life, .. } | Phase::Ready { life, .. } => {
                self.is_replaced = true;
                Action::Terminate(life)
            }
            Phase::Waiting { .. }
            | Phase::Hung { .. }
            | Phase::Draining { .. }
            | Phase::Stopping { .. }
            | Phase::Stopped => Action::Nothing,
        }
    }

    fn stop(&self) -> (Phase, Action) {
        match self.phase {
            Phase::Starting { life, .. }
            | Phase::Ready { life, .. }
            | Phase::Draining { life, .. } => (Phase::Stopping { life }, Action::Terminate(life)),
            Phase::Hung { life, .. } => (Phase::Stopping { life }, Action::Nothing),
            phase @ Phase::Stopping { .. } => (phase, Action::Nothing),
            Phase::Waiting { .. } | Phase::Stopped => (Phase::Stopped, Action::Nothing),
        }
    }

    fn after_exit(
        &mut self,
        now: Millis,
        incarnation: u64,
        exit: Exit,
        rng: &mut impl Rng,
    ) -> Phase {
        if self
            .life()
            .is_none_or(|life| life.incarnation != incarnation)
        {
            return self.phase;
        }
        let is_replaced = std::mem::take(&mut self.is_replaced);
        match self.phase {
            Phase::Draining { .. } | Phase::Stopping { .. } | Phase::Stopped => {
                self.last_exit = Some(exit);
                Phase::Stopped
            }
            // As it was asked to: no death, and nothing to hold against the next.
            Phase::Waiting { .. }
            | Phase::Starting { .. }
            | Phase::Ready { .. }
            | Phase::Hung { .. }
                if is_replaced =>
            {
                Phase::Waiting { until: now }
            }
            Phase::Waiting { .. }
            | Phase::Starting { .. }
            | Phase::Ready { .. }
            | Phase::Hung { .. } => self.after_death(now, exit, rng),
        }
    }

    fn settled(&mut self) {
        self.early_deaths = 0;
        self.backoff.reset();
    }

    /// The first restarts come at once; only a crash loop waits.
    fn after_death(&mut self, now: Millis, mut exit: Exit, rng: &mut impl Rng) -> Phase {
        let early = self.is_early(now);
        if let Phase::Hung { silent, .. } = self.phase {
            exit.status += &format!(", killed because it hung (silent for {silent:?})");
        }
        self.last_exit = Some(exit);
        self.restarts += 1;
        if early {
            self.early_deaths += 1;
        } else {
            self.settled();
        }
        let until = if self.is_crash_loop() {
            now + self.backoff.next(rng)
        } else {
            now
        };
        Phase::Waiting { until }
    }
}

#[cfg(test)]
mod tests;

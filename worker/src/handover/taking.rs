//! What the worker that gets the clients does next, without doing it.
//!
//! It puts the clients of a batch together and subscribes for them, touches no
//! socket before the commit, and lets go of everything if that does not come.
//! One case is different: when the other worker has *ended* before the commit,
//! nobody else has its clients any more, and those it has not touched since run
//! on here.

use std::time::Duration;

use muster_wire::Millis;

use super::message::{FromGiver, FromTaker, RefusedConnection};
use crate::connection::ConnectionKey;

/// Longest that channels' owners may take to confirm the subscriptions of a
/// batch; shorter than the other worker waits for the answer.
const SUBSCRIBE_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest that a worker may take from the end of its socket to its own.
const DEATH_TIMEOUT: Duration = Duration::from_secs(3);

/// What is taken over from one worker.
#[derive(Debug)]
pub(crate) struct Taking {
    phase: Phase,
}

#[derive(Debug)]
enum Phase {
    /// Nothing was said yet.
    Greeting,
    Open,
    /// A batch is being put together.
    Building {
        number: u32,
    },
    /// Channels are being subscribed to.
    Announced {
        until: Millis,
    },
    /// The channels of a batch are.
    Preparing {
        batch: Batch,
        until: Millis,
    },
    Prepared(Batch),
    /// The other worker's socket ended; whether it has, too, is not known yet.
    Orphaned {
        keys: Vec<ConnectionKey>,
        until: Millis,
    },
    Over,
}

#[derive(Debug)]
struct Batch {
    number: u32,
    keys: Vec<ConnectionKey>,
    refused: Vec<RefusedConnection>,
}

/// What happened.
#[derive(Debug)]
pub(crate) enum Event {
    Said(FromGiver),
    /// What [`Action::Build`] asked for is there; places in the batch that could
    /// not be put together are in `refused`.
    Built {
        keys: Vec<ConnectionKey>,
        refused: Vec<RefusedConnection>,
    },
    /// The owners of all channels have the subscriptions that are needed now.
    Subscribed,
    /// Its socket ended, or what it says makes no sense.
    Lost,
    /// The process has ended.
    Dead,
    Woken,
}

/// What the driver must do, in order.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Answer(FromTaker),
    /// Subscribe to the channels that were announced.
    Keep,
    /// Put the batch together that came with the message.
    Build,
    /// Take new clients in the other's place.
    Replace,
    /// Run these: they are this worker's.
    Run(Vec<ConnectionKey>),
    /// Let go of these without touching them.
    Discard(Vec<ConnectionKey>),
    /// Run those that nobody has touched, and close the others.
    Judge(Vec<ConnectionKey>),
    /// No client comes any more; it is over.
    Finish,
}

impl Taking {
    pub(crate) fn new() -> Self {
        Self {
            phase: Phase::Greeting,
        }
    }

    /// Whether [`Event::Subscribed`] is awaited.
    pub(crate) fn is_subscribing(&self) -> bool {
        matches!(
            self.phase,
            Phase::Announced { .. } | Phase::Preparing { .. }
        )
    }

    /// Whether that is about channels that were announced, not about a batch's.
    pub(crate) fn is_announced_to(&self) -> bool {
        matches!(self.phase, Phase::Announced { .. })
    }

    /// When to say [`Event::Woken`].
    pub(crate) fn wake_at(&self) -> Option<Millis> {
        match self.phase {
            Phase::Announced { until }
            | Phase::Preparing { until, .. }
            | Phase::Orphaned { until, .. } => Some(until),
            Phase::Greeting
            | Phase::Open
            | Phase::Building { .. }
            | Phase::Prepared(_)
            | Phase::Over => None,
        }
    }

    pub(crate) fn handle(&mut self, now: Millis, event: Event) -> Vec<Action> {
        match event {
            Event::Said(message) => self.said(now, &message),
            Event::Built { keys, refused } => self.built(now, keys, refused),
            Event::Subscribed => self.subscribed(),
            Event::Lost => self.lost(now),
            Event::Dead => self.dead(),
            Event::Woken => self.woken(now),
        }
    }

    fn said(&mut self, now: Millis, message: &FromGiver) -> Vec<Action> {
        let phase = std::mem::replace(&mut self.phase, Phase::Open);
        match (phase, message) {
            (
                Phase::Greeting,
                FromGiver::Begin {
                    version,
                    oldest,
                    newest,
                    replace,
                    ..
                },
            ) => {
                let answer = FromTaker::answer(*version, *oldest, *newest);
                if matches!(answer, FromTaker::Refused { .. }) {
                    self.phase = Phase::Over;
                    return vec![Action::Answer(answer), Action::Finish];
                }
                let replace = replace.then_some(Action::Replace);
                let answer = Action::Answer(answer);
                replace.into_iter().chain([answer]).collect()
            }
            (Phase::Open, FromGiver::Announce { .. }) => {
                let until = now + SUBSCRIBE_TIMEOUT;
                self.phase = Phase::Announced { until };
                vec![Action::Keep]
            }
            (Phase::Open, FromGiver::Prepare { batch, .. }) => {
                self.phase = Phase::Building { number: *batch };
                vec![Action::Build]
            }
            (Phase::Prepared(batch), FromGiver::Commit { batch: number })
                if batch.number == *number =>
            {
                let running = FromTaker::Running { batch: *number };
                vec![Action::Run(batch.keys), Action::Answer(running)]
            }
            (Phase::Preparing { batch, .. } | Phase::Prepared(batch), FromGiver::Abort { .. }) => {
                vec![Action::Discard(batch.keys)]
            }
            (Phase::Open | Phase::Announced { .. }, FromGiver::Abort { .. }) => vec![],
            (Phase::Open | Phase::Announced { .. }, FromGiver::End) => {
                self.phase = Phase::Over;
                vec![Action::Finish]
            }
            // Out of turn: this is not the hand-over of this release.
            (phase, _) => {
                self.phase = Phase::Over;
                discard(phase)
            }
        }
    }

    fn built(
        &mut self,
        now: Millis,
        keys: Vec<ConnectionKey>,
        refused: Vec<RefusedConnection>,
    ) -> Vec<Action> {
        let Phase::Building { number } = self.phase else {
            return vec![Action::Discard(keys)];
        };
        let batch = Batch {
            number,
            keys,
            refused,
        };
        let until = now + SUBSCRIBE_TIMEOUT;
        self.phase = Phase::Preparing { batch, until };
        vec![]
    }

    fn subscribed(&mut self) -> Vec<Action> {
        match std::mem::replace(&mut self.phase, Phase::Open) {
            Phase::Announced { .. } => vec![Action::Answer(FromTaker::Subscribed)],
            Phase::Preparing { batch, .. } => self.prepared(batch),
            phase @ (Phase::Greeting
            | Phase::Open
            | Phase::Building { .. }
            | Phase::Prepared(_)
            | Phase::Orphaned { .. }
            | Phase::Over) => {
                self.phase = phase;
                vec![]
            }
        }
    }

    fn prepared(&mut self, mut batch: Batch) -> Vec<Action> {
        let answer = FromTaker::Prepared {
            batch: batch.number,
            refused: std::mem::take(&mut batch.refused),
        };
        self.phase = Phase::Prepared(batch);
        vec![Action::Answer(answer)]
    }

    fn lost(&mut self, now: Millis) -> Vec<Action> {
        match std::mem::replace(&mut self.phase, Phase::Over) {
            Phase::Preparing { batch, .. } | Phase::Prepared(batch) => {
                let until = now + DEATH_TIMEOUT;
                let keys = batch.keys;
                self.phase = Phase::Orphaned { keys, until };
                vec![]
            }
            orphaned @ Phase::Orphaned { .. } => {
                self.phase = orphaned;
                vec![]
            }
            phase @ (Phase::Greeting
            | Phase::Open
            | Phase::Building { .. }
            | Phase::Announced { .. }
            | Phase::Over) => discard(phase),
        }
    }

    fn dead(&mut self) -> Vec<Action> {
        match std::mem::replace(&mut self.phase, Phase::Over) {
            Phase::Orphaned { keys, .. } => vec![Action::Judge(keys), Action::Finish],
            // What it has said last is still to be read.
            phase @ (Phase::Greeting
            | Phase::Open
            | Phase::Building { .. }
            | Phase::Announced { .. }
            | Phase::Preparing { .. }
            | Phase::Prepared(_)
            | Phase::Over) => {
                self.phase = phase;
                vec![]
            }
        }
    }

    fn woken(&mut self, now: Millis) -> Vec<Action> {
        if self.wake_at().is_none_or(|at| now < at) {
            return vec![];
        }
        match std::mem::replace(&mut self.phase, Phase::Open) {
            // The batches wait for what is missing.
            Phase::Announced { .. } => vec![Action::Answer(FromTaker::Subscribed)],
            Phase::Preparing { mut batch, .. } => {
                let keys = std::mem::take(&mut batch.keys);
                let count = keys.len() + batch.refused.len();
                batch.refused = (0..count).map(unconfirmed).collect();
                let mut actions = vec![Action::Discard(keys)];
                actions.extend(self.prepared(batch));
                actions
            }
            // It lives, so they are its own.
            Phase::Orphaned { keys, .. } => {
                self.phase = Phase::Over;
                vec![Action::Discard(keys), Action::Finish]
            }
            phase @ (Phase::Greeting
            | Phase::Open
            | Phase::Building { .. }
            | Phase::Prepared(_)
            | Phase::Over) => {
                self.phase = phase;
                vec![]
            }
        }
    }
}

fn unconfirmed(index: usize) -> RefusedConnection {
    let reason = format!("its channels' owners did not answer within {SUBSCRIBE_TIMEOUT:?}");
    RefusedConnection { index, reason }
}

/// The end of a hand-over in this phase.
fn discard(phase: Phase) -> Vec<Action> {
    let keys = match phase {
        Phase::Preparing { batch, .. } | Phase::Prepared(batch) => batch.keys,
        Phase::Orphaned { keys, .. } => keys,
        Phase::Greeting | Phase::Open | Phase::Building { .. } | Phase::Announced { .. } => {
            Vec::new()
        }
        Phase::Over => return vec![],
    };
    vec![Action::Discard(keys), Action::Finish]
}

#[cfg(test)]
mod tests;

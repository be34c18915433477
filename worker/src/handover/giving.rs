//! What the worker that has the clients does next, without doing it.
//!
//! In two phases, so that at every moment one process alone may touch a socket:
//! the clients of a batch are *frozen* here, prepared there, and *committed*.
//! Before the commit is sent any failure thaws them; after it they are the
//! other's, unless that has ended without having touched them (delivery.md D3).

use std::{collections::HashMap, time::Duration};

use muster_wire::{
    Millis,
    snapshot::{SNAPSHOT_VERSION, SNAPSHOT_VERSIONS},
};

use super::message::{BATCH_MAX, FromTaker, reason};
use crate::connection::ConnectionKey;

/// Longest that the other worker may take to answer before the commit.
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
/// A worker that is silent for so long after the commit is to be ended.
pub(crate) const STUCK_AFTER: Duration = Duration::from_secs(5);
/// After this its part of the connections is let go of.
pub(crate) const GIVE_UP_AFTER: Duration = Duration::from_secs(30);
/// Between two looks at clients that cannot go yet.
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// Times that the same connection is offered.
const OFFERS_MAX: u8 = 5;

/// What is handed over to one worker.
#[derive(Debug)]
pub(crate) struct Giving {
    phase: Phase,
    /// At most so many more; `None`: all there are.
    wanted: Option<u32>,
    batch: u32,
    /// No batch follows the one that is committed.
    is_called_off: bool,
    /// Of snapshots, once the other worker has said it.
    version: u32,
    /// How often connections were refused.
    refused: HashMap<ConnectionKey, u8>,
    outcome: Outcome,
}

/// What has come of it so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// Connections that run elsewhere.
    pub(crate) moved: u64,
    /// Connections that were refused as often as they are offered.
    pub(crate) failed: u64,
    /// Why the last one was refused.
    pub(crate) last_reason: Option<String>,
}

#[derive(Debug)]
enum Phase {
    /// The other worker has not answered to `Begin`.
    Greeting {
        until: Millis,
    },
    /// Nor to `Announce`.
    Announcing {
        until: Millis,
    },
    /// The next batch is due.
    Between {
        at: Millis,
    },
    Preparing {
        keys: Vec<ConnectionKey>,
        since: Millis,
    },
    Committed {
        keys: Vec<ConnectionKey>,
        since: Millis,
        is_stuck: bool,
    },
    Over,
}

/// What happened.
#[derive(Debug)]
pub(crate) enum Event {
    Said(FromTaker),
    /// There is nothing more to announce.
    Announced,
    /// Another announcement was sent.
    AnnouncementSent,
    /// These were frozen and sent.
    Sent(Vec<ConnectionKey>),
    /// Nobody can be frozen now; `later` says whether somebody may be.
    NobodyLeft {
        later: bool,
    },
    /// It could not be reached, its socket ended, or what it says makes no sense.
    Lost(String),
    /// The process has ended.
    Dead,
    Woken,
    /// This worker has no time for it any more.
    Stop,
    /// It is not wanted any more, but what is committed is seen through.
    CallOff,
}

/// What the driver must do, in order.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Send the next part of the channels, or say that there is none.
    Announce,
    /// Clients are the other's to accept from now on.
    Replaced,
    /// Freeze at most so many and send them.
    Freeze { at_most: usize, batch: u32 },
    /// Say that the batch is the other's.
    Commit { batch: u32 },
    /// Say that it is not.
    Abort { batch: u32 },
    /// Let go of connections that run elsewhere.
    Release(Vec<ConnectionKey>),
    /// Go on with connections as they were.
    Thaw(Vec<ConnectionKey>),
    /// Go on with those that nobody has touched, and close the others.
    Judge(Vec<ConnectionKey>),
    /// Close this process's part of connections that another one may have.
    Abandon(Vec<ConnectionKey>),
    /// The other worker stands still: it must be ended.
    ReportStuck,
    /// Say that it was all.
    End,
    /// It is over; why, if not because all was done.
    Finish(Result<(), String>),
}

impl Giving {
    /// `Begin` has been sent, or is about to be.
    pub(crate) fn new(now: Millis, wanted: Option<u32>) -> Self {
        Self {
            phase: Phase::Greeting {
                until: now + ANSWER_TIMEOUT,
            },
            wanted,
            batch: 0,
            is_called_off: false,
            version: SNAPSHOT_VERSION,
            refused: HashMap::new(),
            outcome: Outcome::default(),
        }
    }

    /// The version of snapshots that the other worker wants.
    pub(crate) fn version(&self) -> u32 {
        self.version
    }

    pub(crate) fn outcome(&self) -> &Outcome {
        &self.outcome
    }

    /// Whether the connection was refused as often as it is offered.
    pub(crate) fn is_given_up(&self, key: ConnectionKey) -> bool {
        let times = self.refused.get(&key);
        times.is_some_and(|times| *times >= OFFERS_MAX)
    }

    /// When to say [`Event::Woken`].
    pub(crate) fn wake_at(&self) -> Option<Millis> {
        match &self.phase {
            Phase::Greeting { until } | Phase::Announcing { until } => Some(*until),
            Phase::Between { at } => Some(*at),
            Phase::Preparing { since, .. } => Some(*since + ANSWER_TIMEOUT),
            Phase::Committed {
                since, is_stuck, ..
            } => Some(if *is_stuck {
                *since + GIVE_UP_AFTER
            } else {
                *since + STUCK_AFTER
            }),
            Phase::Over => None,
        }
    }

    pub(crate) fn handle(&mut self, now: Millis, event: Event) -> Vec<Action> {
        match event {
            Event::Said(message) => self.said(now, message),
            Event::AnnouncementSent => {
                if let Phase::Announcing { until } = &mut self.phase {
                    *until = now + ANSWER_TIMEOUT;
                }
                vec![]
            }
            Event::Announced if matches!(self.phase, Phase::Announcing { .. }) => {
                self.next_batch(now)
            }
            Event::Sent(keys) if matches!(self.phase, Phase::Between { .. }) => {
                self.phase = Phase::Preparing { keys, since: now };
                vec![]
            }
            Event::Announced => vec![],
            Event::Sent(keys) => vec![Action::Thaw(keys)],
            Event::NobodyLeft { later: true } => {
                self.phase = Phase::Between {
                    at: now + LOOK_AGAIN,
                };
                vec![]
            }
            Event::NobodyLeft { later: false } => self.finish(),
            Event::Lost(reason) => self.lost(reason),
            Event::Dead => self.dead(),
            Event::Woken => self.woken(now),
            Event::Stop => self.stop(),
            Event::CallOff => self.call_off(),
        }
    }

    fn said(&mut self, now: Millis, message: FromTaker) -> Vec<Action> {
        match (&mut self.phase, message) {
            (Phase::Greeting { .. }, FromTaker::Welcome { snapshots })
                if SNAPSHOT_VERSIONS.contains(&snapshots) =>
            {
                self.version = snapshots;
                let until = now + ANSWER_TIMEOUT;
                self.phase = Phase::Announcing { until };
                vec![Action::Replaced, Action::Announce]
            }
            (Phase::Greeting { .. }, FromTaker::Refused { reason }) => self.lost(reason),
            (Phase::Announcing { .. }, FromTaker::Subscribed) => vec![Action::Announce],
            (Phase::Preparing { keys, since }, FromTaker::Prepared { batch, refused })
                if batch == self.batch && refused.iter().all(|one| one.index < keys.len()) =>
            {
                let since = *since;
                let mut staying = Vec::new();
                for one in &refused {
                    let key = keys[one.index];
                    let times = self.refused.entry(key).or_default();
                    *times += 1;
                    self.outcome.failed += u64::from(*times == OFFERS_MAX);
                    self.outcome.last_reason = Some(reason(&one.reason));
                    staying.push(key);
                }
                keys.retain(|key| !staying.contains(key));
                let mut actions = vec![Action::Thaw(staying)];
                let keys = std::mem::take(keys);
                if keys.is_empty() {
                    self.phase = Phase::Between {
                        at: now + LOOK_AGAIN,
                    };
                    actions.push(Action::Abort { batch });
                    return actions;
                }
                self.phase = Phase::Committed {
                    keys,
                    since,
                    is_stuck: false,
                };
                actions.push(Action::Commit { batch });
                actions
            }
            (Phase::Committed { keys, .. }, FromTaker::Running { batch })
                if batch == self.batch =>
            {
                let keys = std::mem::take(keys);
                self.outcome.moved += keys.len() as u64;
                if let Some(wanted) = &mut self.wanted {
                    *wanted = wanted.saturating_sub(u32::try_from(keys.len()).unwrap_or(u32::MAX));
                }
                let mut actions = vec![Action::Release(keys)];
                if self.is_called_off {
                    self.phase = Phase::Over;
                    actions.extend([Action::End, Action::Finish(called_off())]);
                } else {
                    actions.extend(self.next_batch(now));
                }
                actions
            }
            (Phase::Over, _) => vec![],
            (_, message) => self.lost(format!("it said {message:?} out of turn")),
        }
    }

    fn next_batch(&mut self, now: Millis) -> Vec<Action> {
        let at_most = match self.wanted {
            Some(wanted) => usize::try_from(wanted).unwrap_or(BATCH_MAX).min(BATCH_MAX),
            None => BATCH_MAX,
        };
        if at_most == 0 {
            return self.finish();
        }
        self.batch = self.batch.wrapping_add(1);
        // Until it is said what has come of it.
        self.phase = Phase::Between {
            at: now + ANSWER_TIMEOUT,
        };
        vec![Action::Freeze {
            at_most,
            batch: self.batch,
        }]
    }

    fn finish(&mut self) -> Vec<Action> {
        self.phase = Phase::Over;
        vec![Action::End, Action::Finish(Ok(()))]
    }

    fn lost(&mut self, reason: String) -> Vec<Action> {
        match std::mem::replace(&mut self.phase, Phase::Over) {
            Phase::Greeting { .. } | Phase::Announcing { .. } | Phase::Between { .. } => {
                vec![Action::Finish(Err(reason))]
            }
            Phase::Preparing { keys, .. } => vec![
                Action::Abort { batch: self.batch },
                Action::Thaw(keys),
                Action::Finish(Err(reason)),
            ],
            // Whether it lives decides what becomes of them.
            committed @ Phase::Committed { .. } => {
                self.phase = committed;
                self.outcome.last_reason = Some(reason);
                vec![]
            }
            Phase::Over => vec![],
        }
    }

    fn dead(&mut self) -> Vec<Action> {
        let reason = "the other worker ended";
        match std::mem::replace(&mut self.phase, Phase::Over) {
            Phase::Greeting { .. } | Phase::Announcing { .. } | Phase::Between { .. } => {
                vec![Action::Finish(Err(reason.into()))]
            }
            Phase::Preparing { keys, .. } => {
                vec![Action::Thaw(keys), Action::Finish(Err(reason.into()))]
            }
            Phase::Committed { keys, .. } => {
                vec![Action::Judge(keys), Action::Finish(Err(reason.into()))]
            }
            Phase::Over => vec![],
        }
    }

    fn woken(&mut self, now: Millis) -> Vec<Action> {
        if self.wake_at().is_none_or(|at| now < at) {
            return vec![];
        }
        match &mut self.phase {
            Phase::Greeting { .. } | Phase::Announcing { .. } | Phase::Preparing { .. } => {
                self.lost(format!("it did not answer within {ANSWER_TIMEOUT:?}"))
            }
            Phase::Between { .. } => self.next_batch(now),
            Phase::Committed { is_stuck, .. } if !*is_stuck => {
                *is_stuck = true;
                vec![Action::ReportStuck]
            }
            Phase::Committed { keys, .. } => {
                let keys = std::mem::take(keys);
                self.phase = Phase::Over;
                let reason = "the other worker stood still after the commit".to_owned();
                vec![Action::Abandon(keys), Action::Finish(Err(reason))]
            }
            Phase::Over => vec![],
        }
    }

    /// A batch that is committed comes to its end first.
    fn call_off(&mut self) -> Vec<Action> {
        self.is_called_off = true;
        match std::mem::replace(&mut self.phase, Phase::Over) {
            Phase::Greeting { .. } | Phase::Announcing { .. } | Phase::Between { .. } => {
                vec![Action::End, Action::Finish(called_off())]
            }
            Phase::Preparing { keys, .. } => vec![
                Action::Abort { batch: self.batch },
                Action::Thaw(keys),
                Action::End,
                Action::Finish(called_off()),
            ],
            committed @ Phase::Committed { .. } => {
                self.phase = committed;
                vec![]
            }
            Phase::Over => vec![],
        }
    }

    /// What is committed stays so; the rest is this worker's again.
    fn stop(&mut self) -> Vec<Action> {
        let reason = || Err("this worker is ending".to_owned());
        match std::mem::replace(&mut self.phase, Phase::Over) {
            Phase::Greeting { .. } | Phase::Announcing { .. } | Phase::Between { .. } => {
                vec![Action::End, Action::Finish(reason())]
            }
            Phase::Preparing { keys, .. } => vec![
                Action::Abort { batch: self.batch },
                Action::Thaw(keys),
                Action::Finish(reason()),
            ],
            Phase::Committed { keys, .. } => {
                vec![Action::Abandon(keys), Action::Finish(reason())]
            }
            Phase::Over => vec![],
        }
    }
}

fn called_off() -> Result<(), String> {
    Err("it was called off".to_owned())
}

#[cfg(test)]
mod tests;

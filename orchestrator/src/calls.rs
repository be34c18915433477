//! Operator commands that act on one client: asked of every worker, since only
//! its own worker knows a connection.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use muster_proto::control::ClientResult;
use muster_wire::Millis;

/// Longest an operator waits for the workers.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Commands that wait for answers; beyond it an operator is refused.
const CALLS_MAX: usize = 1024;

/// What became of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    Done,
    /// The worker that has the connection refused, with its reason.
    Refused(String),
    /// No worker has such a connection.
    Unknown,
    /// No worker that answered has it, and some did not answer.
    NoAnswer {
        workers: usize,
    },
    /// Too many commands wait already.
    Busy,
}

/// Commands under way; `T` is whoever waits for the outcome.
#[derive(Debug)]
pub(crate) struct Calls<T> {
    last_id: u64,
    open: BTreeMap<u64, Call<T>>,
}

#[derive(Debug)]
struct Call<T> {
    waiter: T,
    /// Slots of the workers that have not answered.
    missing: BTreeSet<u32>,
    /// Workers that left before they answered.
    lost: usize,
    until: Millis,
}

impl<T> Default for Calls<T> {
    fn default() -> Self {
        Self {
            last_id: 0,
            open: BTreeMap::new(),
        }
    }
}

impl<T> Calls<T> {
    /// Begins a command that `workers` are asked, and returns its id.
    ///
    /// # Errors
    ///
    /// The waiter and the outcome when it is known at once.
    pub(crate) fn begin(
        &mut self,
        now: Millis,
        workers: BTreeSet<u32>,
        waiter: T,
    ) -> Result<u64, (T, Outcome)> {
        if workers.is_empty() {
            return Err((waiter, Outcome::NoAnswer { workers: 0 }));
        }
        if self.open.len() >= CALLS_MAX {
            return Err((waiter, Outcome::Busy));
        }
        self.last_id += 1;
        let call = Call {
            waiter,
            missing: workers,
            lost: 0,
            until: now + ANSWER_TIMEOUT,
        };
        self.open.insert(self.last_id, call);
        Ok(self.last_id)
    }

    /// A worker answered.
    pub(crate) fn answered(&mut self, slot: u32, result: &ClientResult) -> Option<(T, Outcome)> {
        let call = self.open.get_mut(&result.id)?;
        if result.found {
            let outcome = match result.error.as_str() {
                "" => Outcome::Done,
                error => Outcome::Refused(error.into()),
            };
            let call = self.open.remove(&result.id)?;
            return Some((call.waiter, outcome));
        }
        call.missing.remove(&slot);
        self.conclude(result.id)
    }

    /// A worker's stream broke: it will not answer.
    pub(crate) fn left(&mut self, slot: u32) -> Vec<(T, Outcome)> {
        let mut ids = Vec::new();
        for (id, call) in &mut self.open {
            if call.missing.remove(&slot) {
                call.lost += 1;
                ids.push(*id);
            }
        }
        ids.into_iter().filter_map(|id| self.conclude(id)).collect()
    }

    /// Ends the commands whose time is up.
    pub(crate) fn time(&mut self, now: Millis) -> Vec<(T, Outcome)> {
        let late: Vec<u64> = self
            .open
            .iter()
            .filter(|(_, call)| call.until <= now)
            .map(|(id, _)| *id)
            .collect();
        late.into_iter()
            .filter_map(|id| self.open.remove(&id))
            .map(|call| {
                let workers = call.missing.len() + call.lost;
                (call.waiter, Outcome::NoAnswer { workers })
            })
            .collect()
    }

    pub(crate) fn wake_at(&self) -> Option<Millis> {
        self.open.values().map(|call| call.until).min()
    }

    fn conclude(&mut self, id: u64) -> Option<(T, Outcome)> {
        if !self.open.get(&id)?.missing.is_empty() {
            return None;
        }
        let call = self.open.remove(&id)?;
        let outcome = match call.lost {
            0 => Outcome::Unknown,
            workers => Outcome::NoAnswer { workers },
        };
        Some((call.waiter, outcome))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Millis = Millis(0);

    fn result(id: u64, found: bool, error: &str) -> ClientResult {
        ClientResult {
            id,
            found,
            error: error.into(),
        }
    }

    fn begin(calls: &mut Calls<char>, waiter: char) -> u64 {
        calls.begin(NOW, BTreeSet::from([1, 2]), waiter).unwrap()
    }

    #[test]
    fn the_worker_that_has_the_connection_decides_at_once() {
        let mut calls = Calls::default();
        let (a, b) = (begin(&mut calls, 'a'), begin(&mut calls, 'b'));
        let done = calls.answered(2, &result(a, true, ""));
        assert_eq!(done, Some(('a', Outcome::Done)));
        let refused = calls.answered(1, &result(b, true, "not subscribed"));
        let reason = Outcome::Refused("not subscribed".into());
        assert_eq!(refused, Some(('b', reason)));
        assert_eq!(calls.answered(1, &result(a, false, "")), None);
    }

    #[test]
    fn a_connection_that_no_worker_has_is_unknown() {
        let mut calls = Calls::default();
        let id = begin(&mut calls, 'a');
        assert_eq!(calls.answered(1, &result(id, false, "")), None);
        assert_eq!(calls.answered(1, &result(id, false, "")), None);
        let unknown = calls.answered(2, &result(id, false, ""));
        assert_eq!(unknown, Some(('a', Outcome::Unknown)));
    }

    #[test]
    fn a_worker_that_leaves_or_is_late_leaves_the_outcome_open() {
        let mut calls = Calls::default();
        let id = begin(&mut calls, 'a');
        assert_eq!(calls.left(2), []);
        let open = calls.answered(1, &result(id, false, ""));
        assert_eq!(open, Some(('a', Outcome::NoAnswer { workers: 1 })));
        begin(&mut calls, 'b');
        let until = calls.wake_at().unwrap();
        assert_eq!(calls.time(NOW), []);
        let late = calls.time(until);
        assert_eq!(late, [('b', Outcome::NoAnswer { workers: 2 })]);
    }

    #[test]
    fn without_a_worker_there_is_no_answer() {
        let mut calls = Calls::default();
        let refused = calls.begin(NOW, BTreeSet::new(), 'a');
        assert_eq!(refused, Err(('a', Outcome::NoAnswer { workers: 0 })));
    }

    #[test]
    fn commands_beyond_the_limit_are_refused() {
        let mut calls = Calls::default();
        for _ in 0..CALLS_MAX {
            begin(&mut calls, 'a');
        }
        let refused = calls.begin(NOW, BTreeSet::from([1]), 'b');
        assert_eq!(refused, Err(('b', Outcome::Busy)));
    }
}

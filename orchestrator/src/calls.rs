//! Queries that operators wait for: which nodes were asked, which have not
//! answered, and when that is over.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use muster_proto::control::{Reply, query::Request};
use muster_wire::Millis;

use crate::{
    gather::{Gather, Taken},
    node::NodeId,
};

/// Queries that wait for answers; beyond it an operator is refused.
const CALLS_MAX: usize = 1024;

/// Why nobody was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotAsked {
    /// No worker takes clients now.
    NotReady,
    /// There is no worker in this slot.
    NoWorker { slot: u32 },
    /// Too many queries wait already.
    Busy,
}

/// What came of a query.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Gathered {
    pub(crate) answers: Gather,
    /// Were asked and did not answer.
    pub(crate) silent: BTreeSet<NodeId>,
}

/// Queries under way; `T` is whoever waits for the outcome.
#[derive(Debug)]
pub(crate) struct Calls<T> {
    last_id: u64,
    open: BTreeMap<u64, Call<T>>,
}

#[derive(Debug)]
struct Call<T> {
    waiter: T,
    gathered: Gathered,
    /// Have not answered yet.
    missing: BTreeSet<NodeId>,
    until: Millis,
}

impl<T> Calls<T> {
    /// Queries are numbered from the one after `last_id` on. A node may still
    /// answer what an earlier orchestrator asked, so that must have been far away.
    pub(crate) fn after(last_id: u64) -> Self {
        Self {
            last_id,
            open: BTreeMap::new(),
        }
    }

    /// Begins a query that `nodes` are asked, and returns its id.
    ///
    /// # Errors
    ///
    /// The waiter and the outcome when it is known at once.
    pub(crate) fn begin(
        &mut self,
        now: Millis,
        (nodes, request): (BTreeSet<NodeId>, &Request),
        timeout: Duration,
        waiter: T,
    ) -> Result<u64, (T, Result<Gathered, NotAsked>)> {
        let gathered = Gathered {
            answers: Gather::of(request),
            silent: BTreeSet::new(),
        };
        if nodes.is_empty() {
            return Err((waiter, Ok(gathered)));
        }
        if self.open.len() >= CALLS_MAX {
            return Err((waiter, Err(NotAsked::Busy)));
        }
        self.last_id = self.last_id.wrapping_add(1);
        let call = Call {
            waiter,
            gathered,
            missing: nodes,
            until: now + timeout,
        };
        self.open.insert(self.last_id, call);
        Ok(self.last_id)
    }

    /// A node answered.
    pub(crate) fn answered(&mut self, node: NodeId, reply: Reply) -> Option<(T, Gathered)> {
        let call = self.open.get_mut(&reply.id)?;
        if !call.missing.remove(&node) {
            return None;
        }
        match call.gathered.answers.take(node, reply.answer) {
            Taken::Part => {}
            Taken::Nonsense => {
                call.gathered.silent.insert(node);
            }
            Taken::Decides => {
                let call = self.open.remove(&reply.id)?;
                return Some((call.waiter, call.gathered));
            }
        }
        self.conclude(reply.id)
    }

    /// A node's stream broke: it will not answer.
    pub(crate) fn left(&mut self, node: NodeId) -> Vec<(T, Gathered)> {
        let mut ids = Vec::new();
        for (id, call) in &mut self.open {
            if call.missing.remove(&node) {
                call.gathered.silent.insert(node);
                ids.push(*id);
            }
        }
        ids.into_iter().filter_map(|id| self.conclude(id)).collect()
    }

    /// Ends the queries whose time is up.
    pub(crate) fn time(&mut self, now: Millis) -> Vec<(T, Gathered)> {
        let late: Vec<u64> = self
            .open
            .iter()
            .filter(|(_, call)| call.until <= now)
            .map(|(id, _)| *id)
            .collect();
        late.into_iter()
            .filter_map(|id| self.open.remove(&id))
            .map(|mut call| {
                call.gathered.silent.append(&mut call.missing);
                (call.waiter, call.gathered)
            })
            .collect()
    }

    /// Rises with each query.
    pub(crate) fn last_id(&self) -> u64 {
        self.last_id
    }

    pub(crate) fn wake_at(&self) -> Option<Millis> {
        self.open.values().map(|call| call.until).min()
    }

    fn conclude(&mut self, id: u64) -> Option<(T, Gathered)> {
        if !self.open.get(&id)?.missing.is_empty() {
            return None;
        }
        let call = self.open.remove(&id)?;
        Some((call.waiter, call.gathered))
    }
}

#[cfg(test)]
mod tests {
    use muster_proto::control::{ClientCommand, ClientResult, reply::Answer};

    use super::*;
    use crate::node::Role;

    const NOW: Millis = Millis(0);
    const TIMEOUT: Duration = Duration::from_secs(5);

    fn worker(slot: u32) -> NodeId {
        let role = Role::Worker;
        NodeId { role, slot }
    }

    fn reply(id: u64, found: bool, error: &str) -> Reply {
        let result = ClientResult {
            found,
            error: error.into(),
        };
        Reply {
            id,
            answer: Some(Answer::Client(result)),
        }
    }

    fn try_begin(calls: &mut Calls<char>, nodes: &[u32], waiter: char) -> Option<u64> {
        let nodes = nodes.iter().copied().map(worker).collect();
        let request = Request::Client(ClientCommand::default());
        let begun = calls.begin(NOW, (nodes, &request), TIMEOUT, waiter);
        begun.ok()
    }

    fn begin(calls: &mut Calls<char>, waiter: char) -> u64 {
        try_begin(calls, &[1, 2], waiter).unwrap()
    }

    /// Who waited, the error if the connection was found, and who was silent.
    fn told((waiter, gathered): (char, Gathered)) -> (char, Option<String>, Vec<u32>) {
        let Gather::Client(result) = gathered.answers else {
            panic!("a client was asked about");
        };
        let silent = gathered.silent.iter().map(|node| node.slot).collect();
        (waiter, result.map(|result| result.error), silent)
    }

    #[test]
    fn the_worker_that_has_the_connection_decides_at_once() {
        let mut calls = Calls::after(0);
        let done = begin(&mut calls, 'a');
        let refused = begin(&mut calls, 'b');
        let outcome = calls.answered(worker(2), reply(done, true, "")).unwrap();
        assert_eq!(told(outcome), ('a', Some(String::new()), vec![]));
        let outcome = calls
            .answered(worker(1), reply(refused, true, "no such channel"))
            .unwrap();
        let expected = ('b', Some("no such channel".into()), vec![]);
        assert_eq!(told(outcome), expected);
        // The other worker's late answer is nobody's any more.
        let late = calls.answered(worker(1), reply(done, false, ""));
        assert_eq!(late, None);
    }

    #[test]
    fn a_connection_is_unknown_once_every_worker_has_said_so() {
        let mut calls = Calls::after(0);
        let id = begin(&mut calls, 'a');
        for _ in 0..2 {
            let first = calls.answered(worker(1), reply(id, false, ""));
            assert_eq!(first, None, "a node answers once");
        }
        let outcome = calls.answered(worker(2), reply(id, false, "")).unwrap();
        assert_eq!(told(outcome), ('a', None, vec![]));
    }

    #[test]
    fn a_worker_that_leaves_or_is_silent_is_told_of() {
        let mut calls = Calls::after(0);
        let left = begin(&mut calls, 'a');
        let late = begin(&mut calls, 'b');
        assert_eq!(calls.wake_at(), Some(NOW + TIMEOUT));
        assert_eq!(calls.answered(worker(2), reply(left, false, "")), None);
        let ended: Vec<_> = calls.left(worker(1)).into_iter().map(told).collect();
        assert_eq!(ended, [('a', None, vec![1])]);
        assert_eq!(calls.answered(worker(9), reply(late, true, "")), None);
        let ended: Vec<_> = calls.time(NOW + TIMEOUT).into_iter().map(told).collect();
        assert_eq!(ended, [('b', None, vec![1, 2])]);
        assert_eq!(calls.wake_at(), None);
    }

    #[test]
    fn an_answer_that_is_none_counts_as_silence() {
        let mut calls = Calls::after(0);
        let id = begin(&mut calls, 'a');
        let nothing = Reply { id, answer: None };
        assert_eq!(calls.answered(worker(1), nothing), None);
        let outcome = calls.answered(worker(2), reply(id, false, "")).unwrap();
        assert_eq!(told(outcome), ('a', None, vec![1]));
    }

    #[test]
    fn queries_are_bounded_and_nobody_waits_for_nobody() {
        let mut calls = Calls::after(0);
        assert_eq!(try_begin(&mut calls, &[], 'a'), None);
        for _ in 0..CALLS_MAX {
            begin(&mut calls, 'a');
        }
        assert_eq!(try_begin(&mut calls, &[1], 'b'), None);
        calls.time(NOW + TIMEOUT);
        begin(&mut calls, 'b');
    }
}

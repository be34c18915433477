//! Passes on what operators ask of nodes.

use std::{collections::BTreeSet, time::Duration};

use muster_daemon::telemetry;
use muster_proto::control::{LogFilterRequest, Query, node_command::Command, query};
use muster_wire::Millis;

use super::{Cluster, Operator};
use crate::{
    calls::{Gathered, NotAsked},
    control::Whom,
    node::{NodeId, Role},
    supervisor::Phase,
};

/// Longest an operator waits for nodes, beside what a publication may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// What a publication's outcome may take from its worker to here.
const PUBLISH_GRACE: Duration = Duration::from_secs(1);

/// Where an orchestrator begins to number its queries: elsewhere than the one
/// before it, whose nodes may still answer that.
pub(super) fn first_query(incarnation: u64) -> u64 {
    incarnation.wrapping_add(u64::from(std::process::id()) << 32)
}

/// Tells operators what came of their queries.
pub(super) fn conclude(ended: impl IntoIterator<Item = (Operator, Gathered)>) {
    for (answer, gathered) in ended {
        // An operator that gave up needs no answer, here and below.
        let _ = answer.send(Ok(gathered));
    }
}

impl Cluster {
    pub(super) fn query(
        &mut self,
        now: Millis,
        request: &query::Request,
        whom: Whom,
        answer: Operator,
    ) {
        let nodes = match self.asked(whom) {
            Ok(nodes) => nodes,
            Err(not_asked) => {
                let _ = answer.send(Err(not_asked));
                return;
            }
        };
        let timeout = match request {
            query::Request::Publish(_) => {
                ANSWER_TIMEOUT.max(self.settings.publish_timeout + PUBLISH_GRACE)
            }
            query::Request::Client(_)
            | query::Request::Channels(_)
            | query::Request::History(_)
            | query::Request::Connections(_)
            | query::Request::LogFilter(_)
            | query::Request::Reload(_) => ANSWER_TIMEOUT,
        };
        let begun = self
            .calls
            .begin(now, (nodes.clone(), request), timeout, answer);
        let id = match begun {
            Ok(id) => id,
            Err((answer, outcome)) => {
                let _ = answer.send(outcome);
                return;
            }
        };
        for node in nodes {
            let request = Some(request.clone());
            if !self.fleet.send(node, Command::Query(Query { id, request })) {
                self.leave(node);
            }
        }
    }

    /// Every node logs what the orchestrator logs, also one that comes later.
    pub(super) fn tell_log_filter(&mut self, node: NodeId) {
        let filter = Some(telemetry::filter()).filter(|filter| !filter.is_empty());
        let request = Some(query::Request::LogFilter(LogFilterRequest { filter }));
        // Nobody waits for the answer.
        let id = 0;
        if !self.fleet.send(node, Command::Query(Query { id, request })) {
            self.leave(node);
        }
    }

    fn asked(&self, whom: Whom) -> Result<BTreeSet<NodeId>, NotAsked> {
        let joined = |role| {
            let slots = self.fleet.joined(role).into_iter();
            slots.map(move |slot| NodeId { role, slot })
        };
        // A worker and its successor share the clients of a slot.
        let workers = joined(Role::Worker).chain(joined(Role::Successor));
        let workers: BTreeSet<NodeId> = workers.collect();
        let nodes = match whom {
            Whom::Everyone => return Ok(workers.into_iter().chain(joined(Role::Broker)).collect()),
            Whom::Workers => workers,
            Whom::Worker(slot) => {
                let role = Role::Worker;
                let worker = NodeId { role, slot };
                if !self.fleet.ids(role).contains(&worker) {
                    return Err(NotAsked::NoWorker { slot });
                }
                workers.into_iter().filter(|id| id.slot == slot).collect()
            }
            Whom::AnyWorker => {
                let is_ready = |id: &NodeId| {
                    if id.role != Role::Worker {
                        return false;
                    }
                    let mut nodes = self.fleet.nodes();
                    nodes.any(|(other, node)| {
                        other == *id && matches!(node.slot.phase(), Phase::Ready { .. })
                    })
                };
                let ready: Vec<NodeId> = workers.into_iter().filter(is_ready).collect();
                // Another one each time: one that hangs must not fail them all.
                let turn = usize::try_from(self.calls.last_id()).unwrap_or_default();
                let chosen = turn.checked_rem(ready.len()).map(|index| ready[index]);
                chosen.into_iter().collect()
            }
        };
        if nodes.is_empty() {
            return Err(NotAsked::NotReady);
        }
        Ok(nodes)
    }
}

//! Makes one answer of the answers of many nodes, never longer than asked for.

use std::collections::{BTreeMap, BTreeSet};

use muster_proto::control::{
    self as pb, ChannelCount, ChannelsResult, ClientResult, Connection, ConnectionsResult,
    HistoryResult, PublishResult, WorkerConnections, query::Request, reply::Answer,
};

use crate::node::NodeId;

/// What the nodes have answered so far.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Gather {
    /// Of the worker that has the connection.
    Client(Option<ClientResult>),
    Publish(Option<PublishResult>),
    History(Option<HistoryResult>),
    Channels(Channels),
    Connections(Connections),
    /// The nodes that refused.
    Refused(BTreeSet<NodeId>),
}

/// What an answer meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Taken {
    /// The others count, too.
    Part,
    /// No other answer matters any more.
    Decides,
    /// It is no answer to what was asked.
    Nonsense,
}

/// The first channels by name, with the subscribers of all workers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Channels {
    limit: usize,
    counts: BTreeMap<String, u64>,
    cut: bool,
}

/// The oldest connections of all workers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Connections {
    limit: usize,
    oldest: Vec<Connection>,
    workers: Vec<WorkerConnections>,
}

impl Gather {
    /// Nothing so far.
    pub(crate) fn of(request: &Request) -> Self {
        match request {
            Request::Client(_) => Self::Client(None),
            Request::Publish(_) => Self::Publish(None),
            Request::History(_) => Self::History(None),
            Request::Channels(request) => Self::Channels(Channels {
                limit: request.limit as usize,
                counts: BTreeMap::new(),
                cut: false,
            }),
            Request::Connections(request) => Self::Connections(Connections {
                limit: request.limit as usize,
                oldest: Vec::new(),
                workers: Vec::new(),
            }),
            Request::LogFilter(_) | Request::Reload(_) => Self::Refused(BTreeSet::new()),
        }
    }

    /// Takes in what a node answered.
    pub(crate) fn take(&mut self, node: NodeId, answer: Option<Answer>) -> Taken {
        match (self, answer) {
            (Self::Client(decision), Some(Answer::Client(result))) => {
                if !result.found {
                    return Taken::Part;
                }
                *decision = Some(result);
                Taken::Decides
            }
            (Self::Publish(outcome), Some(Answer::Publish(result))) => {
                *outcome = Some(result);
                Taken::Decides
            }
            (Self::History(outcome), Some(Answer::History(result))) => {
                *outcome = Some(result);
                Taken::Decides
            }
            (Self::Channels(channels), Some(Answer::Channels(part))) => {
                channels.add(part);
                Taken::Part
            }
            (Self::Connections(connections), Some(Answer::Connections(part))) => {
                connections.add(node, part);
                Taken::Part
            }
            (
                Self::Refused(refused),
                Some(
                    Answer::LogFilter(pb::LogFilterResult { error })
                    | Answer::Reload(pb::ReloadResult { error }),
                ),
            ) => {
                if !error.is_empty() {
                    refused.insert(node);
                }
                Taken::Part
            }
            (_, Some(_) | None) => Taken::Nonsense,
        }
    }
}

impl Channels {
    /// Each part has its worker's first names, so a name that is among the first
    /// of all is in every part whose worker has it.
    fn add(&mut self, part: ChannelsResult) {
        self.cut |= part.cut;
        for ChannelCount {
            channel,
            subscribers,
        } in part.channels
        {
            *self.counts.entry(channel).or_default() += subscribers;
        }
        while self.counts.len() > self.limit {
            self.counts.pop_last();
            self.cut = true;
        }
    }

    /// The list, and whether there are more.
    pub(crate) fn into_list(self) -> (Vec<ChannelCount>, bool) {
        let counts = self.counts.into_iter();
        let list = counts.map(|(channel, subscribers)| ChannelCount {
            channel,
            subscribers,
        });
        (list.collect(), self.cut)
    }
}

impl Connections {
    fn add(&mut self, node: NodeId, part: ConnectionsResult) {
        self.workers.push(WorkerConnections {
            worker: node.slot,
            connections: part.total,
        });
        self.workers.sort_by_key(|count| count.worker);
        self.oldest.extend(part.connections);
        self.oldest.sort_by(|one, other| {
            let by_age = other.age_ms.cmp(&one.age_ms);
            by_age.then_with(|| one.connection.cmp(&other.connection))
        });
        self.oldest.truncate(self.limit);
    }

    /// The list, whether there are more, and how many each worker has.
    pub(crate) fn into_list(self) -> (Vec<Connection>, bool, Vec<WorkerConnections>) {
        let total: u64 = self.workers.iter().map(|count| count.connections).sum();
        let cut = total > self.oldest.len() as u64;
        (self.oldest, cut, self.workers)
    }
}

#[cfg(test)]
mod tests {
    use muster_proto::control::{ChannelsRequest, ConnectionsRequest};
    use proptest::prelude::*;

    use super::*;
    use crate::node::Role;

    fn worker(slot: u32) -> NodeId {
        let role = Role::Worker;
        NodeId { role, slot }
    }

    /// A worker's answer out of all it has.
    fn part(has: &BTreeMap<String, u64>, limit: usize) -> Answer {
        let first = has.iter().take(limit);
        let channels = first.map(|(channel, subscribers)| ChannelCount {
            channel: channel.clone(),
            subscribers: *subscribers,
        });
        Answer::Channels(ChannelsResult {
            channels: channels.collect(),
            cut: has.len() > limit,
        })
    }

    proptest! {
        #[test]
        fn the_first_channels_of_all_workers_have_the_sums_of_all_workers(
            workers in prop::collection::vec(prop::collection::btree_map("[a-d]{1,2}", 1_u64..9, 0..12), 1..5),
            limit in 1_usize..8,
        ) {
            let request = ChannelsRequest { limit: u32::try_from(limit).unwrap(), ..ChannelsRequest::default() };
            let mut gather = Gather::of(&Request::Channels(request));
            let mut sums = BTreeMap::<String, u64>::new();
            for (slot, has) in (1..).zip(&workers) {
                prop_assert_eq!(gather.take(worker(slot), Some(part(has, limit))), Taken::Part);
                for (channel, subscribers) in has {
                    *sums.entry(channel.clone()).or_default() += subscribers;
                }
            }
            let Gather::Channels(channels) = gather else {
                panic!("channels were asked for");
            };
            let (list, cut) = channels.into_list();
            let list: Vec<_> = list.into_iter().map(|count| (count.channel, count.subscribers)).collect();
            prop_assert_eq!(cut, sums.len() > limit);
            prop_assert_eq!(list, sums.into_iter().take(limit).collect::<Vec<_>>());
        }
    }

    #[test]
    fn the_oldest_connections_come_first_and_the_counts_are_of_all() {
        let connection = |name: &str, age_ms| Connection {
            connection: name.into(),
            age_ms,
            ..Connection::default()
        };
        let request = ConnectionsRequest {
            limit: 2,
            ..ConnectionsRequest::default()
        };
        let mut gather = Gather::of(&Request::Connections(request));
        for (slot, connections, total) in [
            (2, vec![connection("b", 70), connection("c", 60)], 40),
            (1, vec![connection("a", 65)], 1),
        ] {
            let part = ConnectionsResult { connections, total };
            gather.take(worker(slot), Some(Answer::Connections(part)));
        }
        let Gather::Connections(connections) = gather else {
            panic!("connections were asked for");
        };
        let (oldest, cut, workers) = connections.into_list();
        let names: Vec<_> = oldest.iter().map(|one| &*one.connection).collect();
        assert_eq!((names, cut), (vec!["b", "a"], true));
        let counts: Vec<_> = workers
            .iter()
            .map(|one| (one.worker, one.connections))
            .collect();
        assert_eq!(counts, [(1, 1), (2, 40)]);
    }

    #[test]
    fn an_answer_to_something_else_is_nonsense() {
        let mut gather = Gather::Refused(BTreeSet::new());
        let other = Answer::Client(ClientResult::default());
        assert_eq!(gather.take(worker(1), Some(other)), Taken::Nonsense);
        assert_eq!(gather.take(worker(1), None), Taken::Nonsense);
    }
}

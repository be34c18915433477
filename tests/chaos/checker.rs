//! Judges what the clients saw. Pure: it gets the journal and what was done to
//! which node, and says what is missing, too much, or in the wrong order.
//!
//! For that there is no excuse, whatever was done to whom. Only an answer may say,
//! around the death of a broker, that the outcome is unknown, or may still be
//! missing: those are counted apart.

mod story;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use self::story::{Connection, Publication, Story};
use crate::record::{ClientId, Key, OPERATOR, Record, Time};

/// How long before a broker's death something may have been with it, and how
/// long after its return links and subscriptions may take.
const MARGIN: Time = 2000;
/// How long a delivery may take where nothing is wrong, on a busy machine.
const DELIVERY: Time = 2500;
/// Between the clocks, or rather the queues, of two observers.
const SKEW: Time = 100;
/// Clients notice that a worker has died this long after its successor is
/// ready, at most.
const NOTICE: Time = 2000;
/// Problems that are told in full.
const TOLD_MAX: usize = 20;

/// A node was gone, or stood still, for a while.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Outage {
    pub(crate) is_broker: bool,
    pub(crate) slot: u32,
    pub(crate) from: Time,
    /// When everything was whole again.
    pub(crate) to: Time,
}

/// What was done to the cluster.
#[derive(Debug, Default)]
pub(crate) struct Circumstances {
    /// Nodes that were replaced.
    pub(crate) outages: Vec<Outage>,
    /// Which worker had which connection.
    pub(crate) workers: HashMap<String, u32>,
    /// When the observation ended.
    pub(crate) end: Time,
}

/// The same counted apart from and around the deaths of brokers.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) outside: usize,
    pub(crate) around: usize,
}

/// The verdict.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    pub(crate) published: usize,
    pub(crate) acknowledged: usize,
    pub(crate) deliveries: usize,
    /// Deliveries that a subscriber had a right to.
    pub(crate) due: usize,
    pub(crate) lost: usize,
    pub(crate) repeated: usize,
    pub(crate) out_of_order: usize,
    /// Answered with an error.
    pub(crate) failed: Count,
    /// Not answered although the connection stood.
    pub(crate) unanswered: Count,
    /// Whose connection ended before the answer.
    pub(crate) unknown: usize,
    pub(crate) connections: usize,
    /// Ended with their worker.
    pub(crate) ended_with_worker: usize,
    /// Ended without such a reason.
    pub(crate) cut: usize,
    /// What is at fault, in words; the first few.
    pub(crate) problems: Vec<String>,
}

struct Judge<'c> {
    circumstances: &'c Circumstances,
    verdict: Verdict,
}

/// Judges a run.
pub(crate) fn judge(records: Vec<Record>, circumstances: &Circumstances) -> Verdict {
    let story = Story::of(records);
    let mut judge = Judge {
        circumstances,
        verdict: Verdict::default(),
    };
    judge.connections(&story);
    judge.answers(&story);
    judge.losses(&story);
    judge.repetitions_and_order(&story);
    judge.verdict
}

impl Judge<'_> {
    /// Whether a broker died, or was dead, near this span of time.
    fn is_around(&self, from: Time, to: Time) -> bool {
        let mut brokers = self.circumstances.outages.iter();
        brokers.any(|outage| {
            outage.is_broker && from <= outage.to + MARGIN && to + MARGIN >= outage.from
        })
    }

    fn count(
        &mut self,
        field: impl Fn(&mut Verdict) -> &mut Count,
        (from, to): (Time, Time),
        problem: impl FnOnce() -> String,
    ) {
        let is_around = self.is_around(from, to);
        let count = field(&mut self.verdict);
        if is_around {
            count.around += 1;
        } else {
            count.outside += 1;
            self.tell(problem());
        }
    }

    fn tell(&mut self, problem: String) {
        if self.verdict.problems.len() < TOLD_MAX {
            self.verdict.problems.push(problem);
        }
    }

    /// The outage of its worker that ended a connection.
    fn reason(&self, connection: &Connection) -> Option<&Outage> {
        let (ended, _) = connection.ended?;
        let worker = self.circumstances.workers.get(&connection.id);
        let mut outages = self.circumstances.outages.iter();
        outages.find(|outage| {
            // A connection that was made just before is on no list.
            let is_its = worker.map_or(connection.from + NOTICE >= outage.from, |worker| {
                *worker == outage.slot
            });
            !outage.is_broker
                && is_its
                && connection.from <= outage.to
                && (outage.from..=outage.to + NOTICE).contains(&ended)
        })
    }

    fn connections(&mut self, story: &Story) {
        self.verdict.connections = story.connections.len();
        for connection in &story.connections {
            self.verdict.deliveries += connection.delivered.len();
            let Some((at, code)) = connection.ended else {
                continue;
            };
            if self.reason(connection).is_some() {
                self.verdict.ended_with_worker += 1;
                continue;
            }
            self.verdict.cut += 1;
            let Connection { client, id, .. } = connection;
            let worker = self.circumstances.workers.get(id);
            self.tell(format!(
                "client {client} was cut off with {code} at {at}, and its worker {worker:?} lived"
            ));
        }
    }

    fn answers(&mut self, story: &Story) {
        for publication in story.publications.values() {
            let Publication {
                key, at, answer, ..
            } = publication;
            self.verdict.published += 1;
            match answer {
                Some((_, None)) => self.verdict.acknowledged += 1,
                Some((answered, Some(error))) => self.count(
                    |verdict| &mut verdict.failed,
                    (*at, *answered),
                    || format!("{key:?} of {at} was answered {error} at {answered}"),
                ),
                None => {
                    let own = story.connections.iter().rev().find(|connection| {
                        connection.client == key.client && connection.from <= at + SKEW
                    });
                    // A verb of the command line that fails leaves it open, too.
                    let ended = own.is_none_or(|connection| connection.ended.is_some());
                    if ended {
                        self.verdict.unknown += 1;
                    } else {
                        self.count(
                            |verdict| &mut verdict.unanswered,
                            (*at, *at),
                            || format!("{key:?} of {at} was never answered"),
                        );
                    }
                }
            }
        }
    }

    /// What was acknowledged while somebody subscribed, and did not reach him.
    fn losses(&mut self, story: &Story) {
        let mut by_channel: BTreeMap<usize, Vec<&Publication>> = BTreeMap::new();
        for publication in story.publications.values() {
            by_channel
                .entry(publication.channel)
                .or_default()
                .push(publication);
        }
        for connection in &story.connections {
            let delivered: HashSet<Key> = connection
                .delivered
                .iter()
                .map(|(_, key, _)| *key)
                .collect();
            // What was on its way when the worker stopped or died is gone with it.
            let until = match (connection.ended, self.reason(connection)) {
                (None, _) => self.circumstances.end,
                (Some((at, _)), None) => at,
                (Some((at, _)), Some(outage)) => at.min(outage.from),
            };
            for (channel, subscribed) in &connection.subscribed {
                for publication in by_channel.get(channel).into_iter().flatten() {
                    let Some((answered, None)) = publication.answer else {
                        continue;
                    };
                    let is_due = publication.at > subscribed + SKEW && answered + DELIVERY < until;
                    self.verdict.due += usize::from(is_due);
                    if is_due && !delivered.contains(&publication.key) {
                        let client = connection.client;
                        let Publication { key, at, .. } = publication;
                        self.verdict.lost += 1;
                        self.tell(format!("{key:?} of {at}, acknowledged at {answered}, did not reach client {client}"));
                    }
                }
            }
        }
    }

    fn repetitions_and_order(&mut self, story: &Story) {
        let channels: BTreeSet<usize> = story
            .connections
            .iter()
            .flat_map(|connection| connection.delivered.iter().map(|(channel, ..)| *channel))
            .collect();
        for channel in channels {
            let lists: Vec<_> = story
                .connections
                .iter()
                .map(|connection| (connection.client, self.first_times(connection, channel)))
                .collect();
            for (client, list) in &lists {
                self.order_of_publishers(story, *client, list);
            }
            self.one_order(channel, &lists);
        }
    }

    /// What a connection got on a channel, each once; the rest is counted.
    fn first_times(&mut self, connection: &Connection, channel: usize) -> Vec<(Key, Time)> {
        let mut seen = HashSet::new();
        let mut list = Vec::new();
        for (_, key, at) in connection
            .delivered
            .iter()
            .filter(|(of, ..)| *of == channel)
        {
            if seen.insert(*key) {
                list.push((*key, *at));
            } else {
                let client = connection.client;
                self.verdict.repeated += 1;
                self.tell(format!("{key:?} reached client {client} again at {at}"));
            }
        }
        list
    }

    fn order_of_publishers(&mut self, story: &Story, client: ClientId, list: &[(Key, Time)]) {
        let mut last: HashMap<ClientId, u64> = HashMap::new();
        // One whose outcome was unknown may come whenever it likes, unless it was
        // on the same connection as the others.
        let counts = |key: &Key| {
            let publication = story.publications.get(key);
            let is_acked = publication
                .is_some_and(|publication| matches!(publication.answer, Some((_, None))));
            is_acked || key.client != OPERATOR
        };
        for (key, at) in list.iter().filter(|(key, _)| counts(key)) {
            if let Some(before) = last.insert(key.client, key.n)
                && before > key.n
            {
                self.verdict.out_of_order += 1;
                self.tell(format!(
                    "client {client} got {key:?} after {before} at {at}"
                ));
            }
        }
    }

    /// Whoever got two publications got them in the same order.
    fn one_order(&mut self, channel: usize, lists: &[(ClientId, Vec<(Key, Time)>)]) {
        // Connections come and go: each is compared with the longest.
        let mut places: HashMap<Key, usize> = HashMap::new();
        let mut sorted: Vec<_> = lists.iter().collect();
        sorted.sort_by_key(|(_, list)| std::cmp::Reverse(list.len()));
        for (client, list) in sorted {
            let mut last: Option<usize> = None;
            for (key, at) in list {
                let Some(place) = places.get(key).copied() else {
                    continue;
                };
                if last.is_some_and(|last| place < last) {
                    self.verdict.out_of_order += 1;
                    self.tell(format!("client {client} got {key:?} at {at} in another order than others on channel {channel}"));
                }
                last = Some(place);
            }
            if places.is_empty() {
                places = list
                    .iter()
                    .enumerate()
                    .map(|(place, (key, _))| (*key, place))
                    .collect();
            }
        }
    }
}

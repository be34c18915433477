//! Judges what the clients saw. Pure: it gets the journal and what was done to
//! which node, and says what is missing, too much, or in the wrong order.
//!
//! Brokers keep publications in memory. Around the death of one, some that it
//! had accepted are lost, or are delivered twice because they are sent again:
//! those are counted apart and are not at fault. Everywhere else there is no
//! excuse.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use crate::record::{ClientId, Key, OPERATOR, Record, Time, What};

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
    pub(crate) lost: Count,
    pub(crate) repeated: Count,
    pub(crate) out_of_order: Count,
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

/// One connection of a client.
#[derive(Debug)]
struct Connection {
    client: ClientId,
    id: String,
    from: Time,
    ended: Option<(Time, u16)>,
    /// When the cluster had acknowledged it, by channel.
    subscribed: BTreeMap<usize, Time>,
    delivered: Vec<(usize, Key, Time)>,
}

#[derive(Debug)]
struct Publication {
    key: Key,
    channel: usize,
    at: Time,
    answer: Option<(Time, Option<String>)>,
}

/// What the journal tells, sorted.
#[derive(Debug, Default)]
struct Story {
    connections: Vec<Connection>,
    publications: BTreeMap<Key, Publication>,
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

impl Story {
    fn of(records: Vec<Record>) -> Self {
        let mut story = Self::default();
        let mut current: HashMap<ClientId, usize> = HashMap::new();
        for Record { at, client, what } in records {
            if let What::Connected { id } = what {
                current.insert(client, story.connections.len());
                story.connections.push(Connection {
                    client,
                    id,
                    from: at,
                    ended: None,
                    subscribed: BTreeMap::new(),
                    delivered: Vec::new(),
                });
                continue;
            }
            let connection = current
                .get(&client)
                .and_then(|index| story.connections.get_mut(*index));
            match (what, connection) {
                (What::Disconnected { code }, Some(connection)) => {
                    connection.ended.get_or_insert((at, code));
                }
                (What::Subscribed { channel }, Some(connection)) => {
                    connection.subscribed.entry(channel).or_insert(at);
                }
                (What::Delivered { channel, key }, Some(connection)) => {
                    connection.delivered.push((channel, key, at));
                }
                (What::Published { n, channel }, _) => {
                    let key = Key { client, n };
                    let publication = Publication {
                        key,
                        channel,
                        at,
                        answer: None,
                    };
                    story.publications.insert(key, publication);
                }
                (What::Answered { n, error }, _) => {
                    let key = Key { client, n };
                    if let Some(publication) = story.publications.get_mut(&key) {
                        publication.answer.get_or_insert((at, error));
                    }
                }
                // Of a connection that never was.
                (
                    What::Connected { .. }
                    | What::Disconnected { .. }
                    | What::Subscribed { .. }
                    | What::Delivered { .. },
                    _,
                ) => {}
            }
        }
        story
    }
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
                        self.count(
                            |verdict| &mut verdict.lost,
                            (*at, answered),
                            || format!("{key:?} of {at}, acknowledged at {answered}, did not reach client {client}"),
                        );
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
                self.count(
                    |verdict| &mut verdict.repeated,
                    (*at, *at),
                    || format!("{key:?} reached client {client} again at {at}"),
                );
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
                self.count(
                    |verdict| &mut verdict.out_of_order,
                    (*at, *at),
                    || format!("client {client} got {key:?} after {before} at {at}"),
                );
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
                    self.count(
                        |verdict| &mut verdict.out_of_order,
                        (*at, *at),
                        || format!("client {client} got {key:?} at {at} in another order than others on channel {channel}"),
                    );
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

#[cfg(test)]
mod tests {
    use super::*;

    const START: Time = 1_000_000;
    const END: Time = START + 60_000;

    /// Two clients on channel 0, of which the first publishes 1 to 5, a second
    /// apart.
    fn calm() -> Vec<Record> {
        let mut records = Vec::new();
        let mut note = |at: Time, client, what| {
            records.push(Record {
                at: START + at,
                client,
                what,
            });
        };
        for client in [1, 2] {
            let id = format!("id {client}");
            note(0, client, What::Connected { id });
            note(10, client, What::Subscribed { channel: 0 });
        }
        for n in 1..=5 {
            let at = n * 1000;
            note(at, 1, What::Published { n, channel: 0 });
            let key = Key { client: 1, n };
            for client in [1, 2] {
                note(at + 20, client, What::Delivered { channel: 0, key });
            }
            note(at + 30, 1, What::Answered { n, error: None });
        }
        records
    }

    fn circumstances() -> Circumstances {
        let workers = [("id 1", 1), ("id 2", 2)];
        Circumstances {
            outages: Vec::new(),
            workers: workers.map(|(id, slot)| (id.to_owned(), slot)).into(),
            end: END,
        }
    }

    fn outage(is_broker: bool, slot: u32, from: Time) -> Outage {
        Outage {
            is_broker,
            slot,
            from: START + from,
            to: START + from + 300,
        }
    }

    fn is_delivery(record: &Record, to: ClientId, n: u64) -> bool {
        record.client == to && matches!(record.what, What::Delivered { key, .. } if key.n == n)
    }

    fn found(verdict: &Verdict) -> [Count; 5] {
        [
            verdict.lost,
            verdict.repeated,
            verdict.out_of_order,
            verdict.failed,
            verdict.unanswered,
        ]
    }

    #[test]
    fn nothing_is_found_where_nothing_is_wrong() {
        let verdict = judge(calm(), &circumstances());
        assert_eq!(found(&verdict), [Count::default(); 5]);
        assert_eq!((verdict.published, verdict.acknowledged), (5, 5));
        assert_eq!((verdict.deliveries, verdict.due, verdict.cut), (10, 10, 0));
        assert_eq!(verdict.problems, Vec::<String>::new());
    }

    #[test]
    fn each_fault_is_found_and_only_a_broker_s_death_nearby_excuses_it() {
        type Harm = fn(&mut Vec<Record>);
        let harms: [(usize, Harm); 5] = [
            (0, |records| {
                records.retain(|record| !is_delivery(record, 2, 3))
            }),
            (1, |records| {
                let again = records.iter().find(|record| is_delivery(record, 2, 3));
                let again = again.unwrap().clone();
                records.push(again);
            }),
            (2, |records| {
                let place = |n| records.iter().position(|record| is_delivery(record, 2, n));
                let (one, other) = (place(3).unwrap(), place(4).unwrap());
                records.swap(one, other);
            }),
            (3, |records| {
                for record in records {
                    if let What::Answered { n: 3, error } = &mut record.what {
                        *error = Some("SomeError".into());
                    }
                }
            }),
            (4, |records| {
                records.retain(|record| !matches!(record.what, What::Answered { n: 3, .. }));
            }),
        ];
        for (index, harm) in harms {
            let mut records = calm();
            harm(&mut records);
            let verdict = judge(records.clone(), &circumstances());
            let counts = found(&verdict);
            assert!(counts[index].outside > 0, "{index}: {counts:?}");
            let sum: usize = counts.iter().map(|count| count.outside).sum();
            assert_eq!(sum, counts[index].outside, "{counts:?}");
            assert!(!verdict.problems.is_empty());
            for (outage, is_excused) in [
                (outage(true, 1, 3000), true),
                (outage(true, 1, 30_000), false),
                (outage(false, 1, 3000), false),
            ] {
                let mut circumstances = circumstances();
                circumstances.outages.push(outage.clone());
                let counts = found(&judge(records.clone(), &circumstances));
                assert_eq!(
                    counts[index].outside == 0,
                    is_excused,
                    "{index}: {outage:?}"
                );
            }
        }
    }

    #[test]
    fn a_connection_may_end_with_its_own_worker_only() {
        let mut records = calm();
        records.push(Record {
            at: START + 10_100,
            client: 2,
            what: What::Disconnected { code: 1006 },
        });
        assert_eq!(judge(records.clone(), &circumstances()).cut, 1);
        for (slot, cut) in [(2, 0), (1, 1)] {
            let mut circumstances = circumstances();
            circumstances.outages.push(outage(false, slot, 10_000));
            let verdict = judge(records.clone(), &circumstances);
            assert_eq!((verdict.cut, verdict.ended_with_worker), (cut, 1 - cut));
        }
        // One that nobody listed, but that is older than a moment.
        let mut circumstances = circumstances();
        circumstances.workers.clear();
        circumstances.outages.push(outage(false, 2, 10_000));
        assert_eq!(judge(records, &circumstances).cut, 1);
    }

    #[test]
    fn only_the_end_of_its_own_connection_excuses_a_missing_answer() {
        let mut records = calm();
        records.retain(|record| !matches!(record.what, What::Answered { n: 3, .. }));
        let reconnect = |at: Time| {
            let again = |at: Time, what| Record {
                at: START + at,
                client: 1,
                what,
            };
            let id = "id 3".to_owned();
            [
                again(at, What::Disconnected { code: 1006 }),
                again(at + 10, What::Connected { id }),
            ]
        };
        let verdict = judge(records.clone(), &circumstances());
        assert_eq!((verdict.unanswered.outside, verdict.unknown), (1, 0));
        // Before the third publication.
        let place = records.iter().position(|record| record.at == START + 3000);
        let mut earlier = records.clone();
        earlier.splice(place.unwrap()..place.unwrap(), reconnect(2500));
        let verdict = judge(earlier, &circumstances());
        assert_eq!((verdict.unanswered.outside, verdict.unknown), (1, 0));
        // After it, on its own connection.
        let mut later = records;
        later.extend(reconnect(6000));
        let verdict = judge(later, &circumstances());
        assert_eq!((verdict.unanswered.outside, verdict.unknown), (0, 1));
    }

    #[test]
    fn an_operator_s_publication_without_an_outcome_may_come_late_but_one_with_may_not() {
        for is_acked in [true, false] {
            let mut records = calm();
            for (at, n) in [(20_000, 1), (20_100, 2)] {
                let at = START + at;
                let published = What::Published { n, channel: 0 };
                let mut whats = vec![published];
                if n == 2 || is_acked {
                    whats.push(What::Answered { n, error: None });
                }
                records.extend(whats.into_iter().map(|what| Record {
                    at,
                    client: OPERATOR,
                    what,
                }));
            }
            for n in [2, 1] {
                let key = Key {
                    client: OPERATOR,
                    n,
                };
                records.extend([1, 2].map(|client| Record {
                    at: START + 20_200,
                    client,
                    what: What::Delivered { channel: 0, key },
                }));
            }
            let verdict = judge(records, &circumstances());
            assert_eq!(verdict.out_of_order.outside, if is_acked { 2 } else { 0 });
            assert_eq!(verdict.unknown, usize::from(!is_acked));
        }
    }

    #[test]
    fn what_was_on_its_way_to_a_worker_that_died_is_not_lost_by_the_cluster() {
        let mut records = calm();
        records.retain(|record| !is_delivery(record, 2, 5));
        records.push(Record {
            at: START + 5300,
            client: 2,
            what: What::Disconnected { code: 1006 },
        });
        let mut circumstances = circumstances();
        circumstances.outages.push(outage(false, 2, 5100));
        let verdict = judge(records, &circumstances);
        assert_eq!(verdict.lost, Count::default(), "{:?}", verdict.problems);
    }
}

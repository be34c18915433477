//! What must hold (architecture.md section 4): a second, simpler account of what
//! was published, appended and heard, compared with the cluster at every step.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::Duration,
};

use muster_broker::simulation::Appended;
use muster_proto::ShardId;
use muster_wire::Millis;

use crate::{
    client::Call,
    logs::{Life, Logs, Place},
    positions::Positions,
    scenario::Scenario,
};

/// A rule that did not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Violation(pub(crate) String);

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[derive(Debug)]
pub(crate) struct Checker {
    durable: bool,
    may_have_holes: bool,
    may_refuse: bool,
    may_expire: bool,
    hears_own: bool,
    publish_timeout: Duration,
    pub(crate) positions: Positions,
    publications: BTreeMap<u64, Publication>,
    pub(crate) logs: Logs,
    /// Who appended in a shard at an epoch.
    owners: BTreeMap<(ShardId, u64), (u32, u64)>,
    /// The highest epoch at which a shard was appended to.
    epochs: BTreeMap<ShardId, u64>,
    /// The last publication of a connection in a life of a channel.
    last_of: BTreeMap<(u64, usize, Life), u64>,
    /// Subscriptions as the workers have them, by connection and channel.
    spans: BTreeMap<(u64, usize), Span>,
    /// Channels that a worker's owner has confirmed.
    confirmed: BTreeSet<(usize, usize)>,
    /// Times that a worker has counted a hole in a channel.
    holes: BTreeMap<(usize, usize), u64>,
    /// Orders what clients say and hear.
    moment: u64,
}

#[derive(Debug)]
struct Publication {
    channel: usize,
    connection: u64,
    said: u64,
    /// When its worker began to read the message it is in.
    handed: Option<(u64, Millis)>,
    /// When its worker was done with that message.
    taken: Option<Millis>,
    places: BTreeMap<Life, usize>,
    acked: bool,
    /// Its client was told that it is not published.
    refused: bool,
}

#[derive(Debug)]
struct Span {
    /// Of the subscribe.
    cid: u64,
    worker: usize,
    opened: u64,
    /// The owner has had the subscription since.
    confirmed: bool,
    acked: Option<Acked>,
    /// Where what was heard last may be: in more than one log if it was
    /// appended again after a log was lost.
    last: Vec<Place>,
    heard: BTreeSet<u64>,
    holes_before: u64,
}

#[derive(Debug)]
struct Acked {
    moment: u64,
    /// How long the logs were.
    lengths: BTreeMap<Life, usize>,
}

impl Span {
    /// Of these places those right after the last one, and all that are later.
    fn after_last(&self, places: &[Place]) -> (Vec<Place>, Vec<Place>) {
        let is_later =
            |place: &&Place| self.last.is_empty() || self.last.iter().any(|last| *place > last);
        let is_next = |place: &&Place| match (&self.last[..], &self.acked) {
            ([], None) => true,
            ([], Some(acked)) => {
                place.1 <= acked.lengths.get(&place.0).copied().unwrap_or_default()
            }
            (last, _) => last.iter().any(|last| **place == (last.0, last.1 + 1)),
        };
        let later = places.iter().filter(is_later).copied().collect();
        (places.iter().filter(is_next).copied().collect(), later)
    }
}

impl Checker {
    pub(crate) fn new(scenario: &Scenario) -> Self {
        Self {
            durable: scenario.durable,
            may_have_holes: scenario.may_have_holes,
            may_refuse: scenario.may_refuse,
            may_expire: scenario.may_expire,
            hears_own: scenario.hears_own,
            publish_timeout: scenario.publish_timeout,
            positions: Positions::new(scenario.history),
            publications: BTreeMap::new(),
            logs: Logs::new(scenario.durable),
            owners: BTreeMap::new(),
            epochs: BTreeMap::new(),
            last_of: BTreeMap::new(),
            spans: BTreeMap::new(),
            confirmed: BTreeSet::new(),
            holes: BTreeMap::new(),
            moment: 0,
        }
    }

    pub(crate) fn publications(&self) -> u64 {
        self.publications.len() as u64
    }

    /// A client says a new publication; returns its number.
    pub(crate) fn said(&mut self, connection: u64, channel: usize) -> u64 {
        let id = self.publications();
        let publication = Publication {
            channel,
            connection,
            said: self.tick(),
            handed: None,
            taken: None,
            places: BTreeMap::new(),
            acked: false,
            refused: false,
        };
        self.publications.insert(id, publication);
        id
    }

    /// The worker begins with the message that a publication is in.
    pub(crate) fn handed(&mut self, id: u64, now: Millis) {
        let moment = self.tick();
        if let Some(publication) = self.publications.get_mut(&id) {
            publication.handed = Some((moment, now));
        }
    }

    /// The worker is done with the message that a publication is in.
    pub(crate) fn taken(&mut self, id: u64, now: Millis) {
        if let Some(publication) = self.publications.get_mut(&id) {
            publication.taken = Some(now);
        }
    }

    pub(crate) fn subscribes(&mut self, worker: usize, connection: u64, channel: usize, cid: u64) {
        let span = Span {
            cid,
            worker,
            opened: self.tick(),
            confirmed: self.confirmed.contains(&(worker, channel)),
            acked: None,
            last: Vec::new(),
            heard: BTreeSet::new(),
            holes_before: self.holes_of(worker, channel),
        };
        self.spans.insert((connection, channel), span);
    }

    pub(crate) fn unsubscribes(&mut self, connection: u64, channel: usize) {
        self.spans.remove(&(connection, channel));
        self.positions.unfollows(connection, channel);
    }

    pub(crate) fn left(&mut self, connection: u64) {
        self.spans.retain(|(other, _), _| *other != connection);
        self.positions.left(connection);
    }

    /// An owner's confirmation has reached the worker.
    pub(crate) fn confirmed(&mut self, worker: usize, channel: usize) {
        self.confirmed.insert((worker, channel));
        for ((_, other), span) in &mut self.spans {
            if *other == channel && span.worker == worker {
                span.confirmed = true;
            }
        }
    }

    /// Whatever a worker's owners confirmed in these channels stands no longer.
    pub(crate) fn unconfirmed(&mut self, worker: usize, is_its: impl Fn(usize) -> bool) {
        self.confirmed
            .retain(|(other, channel)| *other != worker || !is_its(*channel));
    }

    /// A worker has counted holes while it handled news of these channels.
    pub(crate) fn holes(&mut self, worker: usize, channels: &[usize]) -> Result<(), Violation> {
        for channel in channels {
            *self.holes.entry((worker, *channel)).or_default() += 1;
        }
        if self.may_have_holes {
            return Ok(());
        }
        Err(Violation(format!(
            "worker {worker} misses publications of channels {channels:?}, and nothing was lost"
        )))
    }

    /// The machine went down: what was not on its disk is gone, from every log.
    pub(crate) fn power_lost(&mut self) {
        self.logs.lose();
    }

    /// A broker has appended a publication.
    pub(crate) fn appended(
        &mut self,
        owner: (u32, u64),
        appended: &Appended,
        id: u64,
    ) -> Result<(), Violation> {
        let Appended { shard, epoch, .. } = *appended;
        let first = *self.owners.entry((shard, epoch)).or_insert(owner);
        if first != owner {
            return Err(Violation(format!(
                "{first:?} and {owner:?} both accepted for shard {shard} at epoch {epoch}"
            )));
        }
        let highest = self.epochs.entry(shard).or_default();
        if self.durable && epoch < *highest {
            return Err(Violation(format!(
                "{owner:?} accepted for shard {shard} at epoch {epoch}, after {highest}"
            )));
        }
        *highest = epoch.max(*highest);
        let Some(publication) = self.publications.get_mut(&id) else {
            return Err(Violation(format!("{id} was appended and never said")));
        };
        if publication.refused {
            return Err(Violation(format!("{id} was refused and is in a log")));
        }
        let channel = publication.channel;
        let (life, index) = self.logs.place(channel, appended, id)?;
        let Some(publication) = self.publications.get_mut(&id) else {
            return Ok(());
        };
        if publication.places.insert(life, index).is_some() {
            return Err(Violation(format!("{id} was appended twice to c{channel}")));
        }
        let key = (publication.connection, channel, life);
        if let Some(last) = self.last_of.insert(key, id)
            && last > id
        {
            return Err(Violation(format!(
                "{id} was appended to c{channel} after {last}, which its client published later"
            )));
        }
        Ok(())
    }

    /// A client has heard a publication.
    pub(crate) fn heard(
        &mut self,
        connection: u64,
        channel: usize,
        id: u64,
    ) -> Result<(), Violation> {
        let Some(publication) = self.publications.get(&id) else {
            return Err(Violation(format!("{id} was heard and never said")));
        };
        let Some(span) = self.spans.get_mut(&(connection, channel)) else {
            return Err(Violation(format!(
                "connection {connection} heard {id} of c{channel} without a subscription"
            )));
        };
        let places = publication
            .places
            .iter()
            .map(|(life, index)| (*life, *index));
        let places: Vec<Place> = places.collect();
        let (next, later) = span.after_last(&places);
        if later.is_empty() {
            return Err(Violation(format!(
                "connection {connection} heard {id} of c{channel} again or out of order: it is at \
                 {places:?}, the last it heard was at {:?}",
                span.last
            )));
        }
        span.heard.insert(id);
        let is_next = !next.is_empty();
        let last = std::mem::replace(&mut span.last, if is_next { next } else { later });
        let counted = self.holes.get(&(span.worker, channel)).copied();
        if !is_next && counted.unwrap_or_default() <= span.holes_before {
            return Err(Violation(format!(
                "connection {connection} heard {id} of c{channel} at {places:?} after {last:?}: a \
                 hole that nobody counted"
            )));
        }
        Ok(())
    }

    /// A client has heard an answer.
    pub(crate) fn answered(
        &mut self,
        connection: u64,
        call: Call,
        error: Option<&str>,
        now: Millis,
    ) -> Result<(), Violation> {
        let moment = self.tick();
        match (call, error) {
            (Call::Publish(id), error) => self.publish_answered(id, error, now),
            (_, Some(error)) => Err(Violation(format!(
                "connection {connection} got {error} for {call:?}"
            ))),
            (Call::Subscribe(channel, cid), None) => {
                let lengths = self.logs.lengths(channel);
                // It may have been given up meanwhile.
                if let Some(span) = self.spans.get_mut(&(connection, channel))
                    && span.cid == cid
                {
                    if !span.confirmed {
                        return Err(Violation(format!(
                            "connection {connection} has c{channel} and its owner does not"
                        )));
                    }
                    span.acked = Some(Acked { moment, lengths });
                }
                Ok(())
            }
            (
                Call::Handshake | Call::Unsubscribe(_) | Call::Follow(..) | Call::History(_),
                None,
            ) => Ok(()),
        }
    }

    /// A publication that its worker has must be answered in time.
    pub(crate) fn is_overdue(&self, call: Call, now: Millis, grace: Duration) -> bool {
        let Call::Publish(id) = call else {
            return false;
        };
        let taken = self.publications.get(&id).and_then(|it| it.taken);
        taken.is_some_and(|at| now.since(at) > self.publish_timeout + grace)
    }

    /// Whether the connection has heard a publication, as a subscriber.
    pub(crate) fn missing(&self, channel: usize, id: u64) -> Vec<u64> {
        let spans = self.spans.iter();
        spans
            .filter(|((_, other), span)| *other == channel && !span.heard.contains(&id))
            .map(|((connection, _), _)| *connection)
            .collect()
    }

    /// What must hold once everything has drained.
    pub(crate) fn at_rest(&self) -> Result<(), Violation> {
        for ((connection, channel), span) in &self.spans {
            let Some(acked) = &span.acked else {
                return Err(Violation(format!(
                    "connection {connection} waits for its subscription to c{channel}"
                )));
            };
            if self.holes_of(span.worker, *channel) > span.holes_before {
                continue;
            }
            for (id, publication) in &self.publications {
                let concerns = publication.channel == *channel && publication.acked;
                let after_ack = publication.said > acked.moment;
                let own_after_subscribe = self.hears_own
                    && publication.connection == *connection
                    && publication.handed.is_some_and(|(at, _)| at > span.opened);
                if concerns && (after_ack || own_after_subscribe) && !span.heard.contains(id) {
                    return Err(Violation(format!(
                        "connection {connection} never heard {id} of c{channel}, which was \
                         acknowledged (own: {own_after_subscribe}, after its ack: {after_ack})"
                    )));
                }
            }
            self.is_at_the_end(*connection, *channel, span, acked)?;
        }
        self.followers_at_rest()
    }

    /// Whatever was appended since the subscription's ack was heard.
    fn is_at_the_end(
        &self,
        connection: u64,
        channel: usize,
        span: &Span,
        acked: &Acked,
    ) -> Result<(), Violation> {
        let lengths = self.logs.lengths(channel);
        let Some((life, length)) = lengths.last_key_value() else {
            return Ok(());
        };
        let end = (*life, *length - 1);
        let nothing_new = acked.lengths.get(life) == Some(length);
        if nothing_new || span.last.contains(&end) {
            return Ok(());
        }
        Err(Violation(format!(
            "connection {connection} is at {:?} of c{channel}, whose log ends at {end:?}",
            span.last
        )))
    }

    fn publish_answered(
        &mut self,
        id: u64,
        error: Option<&str>,
        now: Millis,
    ) -> Result<(), Violation> {
        let Some(publication) = self.publications.get_mut(&id) else {
            return Err(Violation(format!("{id} was answered and never said")));
        };
        let Some((_, handed)) = publication.handed else {
            return Err(Violation(format!("{id} was answered before it was read")));
        };
        match error {
            None if publication.places.is_empty() => {
                Err(Violation(format!("{id} was acknowledged and is in no log")))
            }
            None => {
                publication.acked = true;
                Ok(())
            }
            Some("PublishRefusedError") if self.may_refuse && publication.places.is_empty() => {
                publication.refused = true;
                Ok(())
            }
            Some("PublishOutcomeUnknownError") if self.may_refuse || self.may_expire => Ok(()),
            Some("PublishOutcomeUnknownError") if now.since(handed) >= self.publish_timeout => {
                Ok(())
            }
            Some(error) => Err(Violation(format!(
                "{id} got {error} after {:?}",
                now.since(handed)
            ))),
        }
    }

    pub(crate) fn may_have_holes(&self) -> bool {
        self.may_have_holes
    }

    pub(crate) fn is_durable(&self) -> bool {
        self.durable
    }

    fn holes_of(&self, worker: usize, channel: usize) -> u64 {
        self.holes
            .get(&(worker, channel))
            .copied()
            .unwrap_or_default()
    }

    fn tick(&mut self) -> u64 {
        self.moment += 1;
        self.moment
    }
}

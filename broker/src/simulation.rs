//! The broker without streams and clocks, for the seeded simulation: whoever
//! has a [`SimBroker`] plays the links around it.
//!
//! Nothing here decides anything, except where an option breaks a rule on
//! purpose. What a broker has appended goes to a [`Journal`], which outlives it
//! or not.

use std::{collections::BTreeMap, convert::Infallible, sync::Arc, task::Waker, time::Duration};

use bytes::Bytes;
use muster_proto::{
    ShardId, View, control,
    link::{BrokerBatch, Hello, Publish, WorkerBatch, worker_frame::Frame},
    shard_of,
};
use muster_wire::Millis;
use rand::TryRng;

use crate::{
    error::LinkError,
    intake::Intake,
    limits::Limits,
    link::{Gate, Link, LinkEnd, Step},
    links::Links,
    table::Table,
    turn::Turn,
};

/// What a simulated broker is configured with.
#[derive(Debug, Clone)]
pub struct BrokerOptions {
    /// How long a publication is retained, room permitting.
    pub tail_age: Duration,
    /// Bytes retained per shard.
    pub tail_bytes_max: usize,
    /// For how long keys are remembered, at least.
    pub key_window: Duration,
    /// Longest data of one publication, in bytes.
    pub data_bytes_max: usize,
    /// Rules that are broken on purpose.
    pub broken: BrokenRules,
}

/// Rules of delivery.md that a broker breaks, to show that they matter.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct BrokenRules {
    /// A1: every publication is taken for a new one.
    pub keys: bool,
    /// A5: what a worker asks for at another epoch is done.
    pub epochs: bool,
    /// A5: what follows a refused publication is taken nevertheless.
    pub attempts: bool,
}

/// A publication that a broker has appended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Appended {
    /// The channel's shard.
    pub shard: ShardId,
    /// The epoch at which the broker has it open.
    pub epoch: u64,
    /// Where.
    pub channel: Bytes,
    /// What.
    pub data: Option<Bytes>,
    producer: Bytes,
    n: u64,
}

/// What outlives brokers: the place of the files that a later broker opens a
/// shard from, with one holder per shard.
#[derive(Debug, Default)]
pub struct Journal {
    is_durable: bool,
    shards: BTreeMap<ShardId, JournalShard>,
}

#[derive(Debug, Default)]
struct JournalShard {
    holder: Option<(u32, u64)>,
    /// At which it was opened last.
    epoch: u64,
    generations: BTreeMap<Bytes, u64>,
    records: Vec<Appended>,
}

/// A worker that broke the link's protocol.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(transparent)]
pub struct WorkerAtFault(#[from] LinkError);

/// What a link has to send.
#[derive(Debug, PartialEq)]
pub enum Pulled {
    /// The next batch.
    Batch(BrokerBatch),
    /// Nothing for now.
    Nothing,
    /// The broker has ended the link.
    Ended,
}

/// A broker that is fed by hand.
#[derive(Debug)]
pub struct SimBroker {
    slot: u32,
    incarnation: u64,
    table: Table,
    links: Links,
    open: BTreeMap<u64, OpenLink>,
    view: View,
    /// The shards that are open, with their epochs.
    shards: BTreeMap<ShardId, u64>,
    broken: BrokenRules,
    data_bytes_max: usize,
    /// Counts frames, and generations where the journal does not.
    counter: u64,
}

#[derive(Debug)]
struct OpenLink {
    link: Arc<Link>,
    intake: Intake,
}

impl Journal {
    /// A journal that keeps what is appended, or one that forgets it with the
    /// broker that appended it.
    #[must_use]
    pub fn new(is_durable: bool) -> Self {
        Self {
            is_durable,
            shards: BTreeMap::new(),
        }
    }

    /// A broker has died: what it held is free.
    pub fn release(&mut self, slot: u32, incarnation: u64) {
        for shard in self.shards.values_mut() {
            if shard.holder == Some((slot, incarnation)) {
                shard.holder = None;
            }
        }
    }

    /// A generation for `channel`: its own, or a new one from `fresh`.
    fn generation(&mut self, channel: &Bytes, fresh: u64) -> u64 {
        if !self.is_durable {
            return fresh;
        }
        let shard = self.shards.entry(shard_of(channel)).or_default();
        *shard.generations.entry(channel.clone()).or_insert(fresh)
    }
}

impl SimBroker {
    /// A broker with no shard open.
    #[must_use]
    pub fn new(slot: u32, incarnation: u64, options: &BrokerOptions) -> Self {
        let limits = Limits {
            tail_age: options.tail_age,
            tail_bytes_max: options.tail_bytes_max,
            key_window: options.key_window,
            producers_max: 1 << 16,
            channel_idle: Duration::from_secs(3600),
        };
        Self {
            slot,
            incarnation,
            table: Table::new(limits, 1 << 16),
            links: Links::default(),
            open: BTreeMap::new(),
            view: View::default(),
            shards: BTreeMap::new(),
            broken: options.broken,
            data_bytes_max: options.data_bytes_max,
            counter: 0,
        }
    }

    /// The orchestrator sent a view; older ones than the present are ignored.
    pub fn handle_view(&mut self, view: &View, journal: &mut Journal, now: Millis) {
        if view.epoch() >= self.view.epoch() {
            self.view = view.clone();
            self.open_shards(journal, now);
        }
    }

    /// Whether shards that are this broker's are still held by another.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        let wanted = self.view.shards_of(self.slot, self.incarnation);
        wanted.count() > self.shards.len()
    }

    /// Closes what is not this broker's any more and opens what is, as far as
    /// nobody else holds it.
    pub fn open_shards(&mut self, journal: &mut Journal, now: Millis) {
        let me = (self.slot, self.incarnation);
        let view = if journal.is_durable {
            without(&self.view, |shard, epoch| {
                let journal = journal.shards.get(&shard);
                journal.is_some_and(|journal| {
                    // A broker with an old view must not open what has been open
                    // at a later epoch.
                    journal.holder.is_some_and(|holder| holder != me) || journal.epoch > epoch
                })
            })
        } else {
            self.view.clone()
        };
        self.table.apply(now, &view, self.slot, self.incarnation);
        let open: BTreeMap<ShardId, u64> = view.shards_of(self.slot, self.incarnation).collect();
        let before = std::mem::replace(&mut self.shards, open);
        if !journal.is_durable {
            return;
        }
        for shard in before.keys() {
            if !self.shards.contains_key(shard)
                && let Some(shard) = journal.shards.get_mut(shard)
            {
                shard.holder = None;
            }
        }
        for (shard, epoch) in &self.shards {
            let open = journal.shards.entry(*shard).or_default();
            (open.holder, open.epoch) = (Some(me), *epoch);
            if before.get(shard) != Some(epoch) {
                self.replay(*shard, *epoch, journal, now);
            }
        }
    }

    /// A worker opens a link.
    ///
    /// # Errors
    /// Another link has its id.
    pub fn open_link(&mut self, hello: &Hello, now: Millis) -> Result<(), WorkerAtFault> {
        let link = Arc::new(Link::new(now));
        link.add_credit(&mut Turn::new(now), hello.credit_bytes);
        self.links.open(hello.link, Arc::clone(&link))?;
        let intake = Intake::new(Arc::clone(&link), self.data_bytes_max);
        self.open.insert(hello.link, OpenLink { link, intake });
        Ok(())
    }

    /// A link is gone.
    pub fn drop_link(&mut self, id: u64, now: Millis) {
        self.links.close(id);
        if let Some(OpenLink { link, .. }) = self.open.remove(&id) {
            link.end(&mut Turn::new(now), LinkEnd::Finished);
            for shard in ShardId::all() {
                self.table.remove_link(now, &link, shard);
            }
        }
    }

    /// Whether the link is read.
    #[must_use]
    pub fn is_reading(&self, id: u64) -> bool {
        self.open
            .get(&id)
            .is_some_and(|open| open.link.gate(Waker::noop()) == Gate::Open)
    }

    /// A batch from a worker; returns what of it was appended.
    ///
    /// # Errors
    /// The worker broke the link's protocol, which ends the link.
    pub fn handle_batch(
        &mut self,
        id: u64,
        batch: WorkerBatch,
        journal: &mut Journal,
        now: Millis,
    ) -> Result<Vec<Appended>, WorkerAtFault> {
        let mut appended = Vec::new();
        let mut turn = Turn::new(now);
        for mut frame in batch.frames {
            self.counter += 1;
            let fresh = self.incarnation << 32 | self.counter;
            let mut generation = Generation(fresh);
            let mut record = None;
            match &mut frame.frame {
                Some(Frame::Publish(publish)) => {
                    self.break_rules(publish);
                    generation.0 = journal.generation(&publish.channel, fresh);
                    record = self.record(publish);
                }
                Some(Frame::Subscribe(subscribe)) => {
                    self.break_epoch(&subscribe.channel, &mut subscribe.shard_epoch);
                    generation.0 = journal.generation(&subscribe.channel, fresh);
                }
                Some(Frame::Hello(_) | Frame::Unsubscribe(_)) | None => {}
            }
            let Some(open) = self.open.get_mut(&id) else {
                break;
            };
            let before = turn.publications;
            let batch = WorkerBatch {
                frames: vec![frame],
            };
            open.intake
                .handle(&mut turn, &mut generation, &self.table, batch)?;
            if turn.publications > before {
                appended.extend(record);
            }
        }
        if journal.is_durable {
            for record in &appended {
                let shard = journal.shards.entry(record.shard).or_default();
                shard.records.push(record.clone());
            }
        }
        Ok(appended)
    }

    /// What is to be sent on a link next.
    #[must_use]
    pub fn pull(&self, id: u64, now: Millis) -> Pulled {
        let Some(OpenLink { link, .. }) = self.open.get(&id) else {
            return Pulled::Ended;
        };
        loop {
            match link.next_step(now, Waker::noop()) {
                Step::Send(batch) => return Pulled::Batch(batch),
                Step::Resume(shard, channel) => {
                    let mut turn = Turn::new(now);
                    self.table.resume(&mut turn, link, shard, &channel);
                }
                Step::Wait => return Pulled::Nothing,
                Step::End(_) => return Pulled::Ended,
            }
        }
    }

    /// Credit from a worker, in bytes of data.
    pub fn add_credit(&self, id: u64, bytes: u64, now: Millis) {
        if let Some(open) = self.open.get(&id) {
            open.link.add_credit(&mut Turn::new(now), bytes);
        }
    }

    /// To be called about once a second.
    pub fn handle_tick(&self, now: Millis) {
        self.table.sweep(now);
        self.links.cut_stuck(now);
    }

    /// Bytes retained, of all open shards together.
    #[must_use]
    pub fn tail_bytes(&self) -> u64 {
        self.table.stats().tail_bytes
    }

    fn break_rules(&self, publish: &mut Publish) {
        if self.broken.keys {
            publish.producer = Bytes::from(format!("p{}", self.counter));
        }
        self.break_epoch(&publish.channel, &mut publish.shard_epoch);
        if self.broken.attempts {
            publish.attempt = u32::try_from(self.counter).unwrap_or(u32::MAX);
        }
    }

    fn break_epoch(&self, channel: &Bytes, epoch: &mut u64) {
        if self.broken.epochs
            && let Some(open) = self.shards.get(&shard_of(channel))
        {
            *epoch = *open;
        }
    }

    fn record(&self, publish: &Publish) -> Option<Appended> {
        let shard = shard_of(&publish.channel);
        Some(Appended {
            shard,
            epoch: *self.shards.get(&shard)?,
            channel: publish.channel.clone(),
            data: publish.data.clone(),
            producer: publish.producer.clone(),
            n: publish.n,
        })
    }

    /// Brings a shard that was just opened to where the journal is.
    fn replay(&self, shard: ShardId, epoch: u64, journal: &Journal, now: Millis) {
        let Some(journal) = journal.shards.get(&shard) else {
            return;
        };
        let mut turn = Turn::new(now);
        for record in &journal.records {
            let publish = Publish {
                channel: record.channel.clone(),
                data: record.data.clone(),
                producer: record.producer.clone(),
                n: record.n,
                shard_epoch: epoch,
                ..Publish::default()
            };
            let generation = journal.generations.get(&record.channel).copied();
            let mut generation = Generation(generation.unwrap_or_default());
            let taken = self.table.publish(&mut turn, &mut generation, &publish);
            debug_assert_eq!(taken, Ok(()), "what was appended once can be again");
        }
    }
}

/// Yields one number, which becomes a channel's generation.
#[derive(Debug)]
struct Generation(u64);

impl TryRng for Generation {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(u32::try_from(self.0 & u64::from(u32::MAX)).unwrap_or_default())
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(self.0)
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        bytes.fill(0);
        Ok(())
    }
}

/// The view with these shards given to nobody that exists.
fn without(view: &View, is_held: impl Fn(ShardId, u64) -> bool) -> View {
    let mut message = control::View::from(view);
    let nobody = u32::try_from(message.brokers.len()).unwrap_or(u32::MAX);
    message.brokers.push(control::BrokerNode {
        slot: u32::MAX,
        incarnation: 0,
        address: "unix:/nobody".into(),
    });
    for (shard, owner) in ShardId::all().zip(&mut message.owners) {
        if is_held(shard, view.shard_epoch(shard)) {
            *owner = nobody;
        }
    }
    if message.owners.is_empty() {
        return view.clone();
    }
    View::try_from(message).unwrap_or_default()
}

//! The broker without streams and clocks, for the seeded simulation: whoever
//! has a [`SimBroker`] plays the links around it.
//!
//! Nothing here decides anything, except where an option breaks a rule on
//! purpose. Shards are opened from a [`Journal`], which outlives brokers or not.

mod disks;

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    sync::Arc,
    task::Waker,
    time::Duration,
};

use bytes::Bytes;
use muster_daemon::config::{History, Namespace};
use muster_proto::{
    ShardId, View,
    link::{
        BrokerBatch, Hello, Publish, ReadRequest, ReadResponse, WorkerBatch, worker_frame::Frame,
    },
    shard_of,
};
use muster_wire::Millis;
use rand::TryRng;

pub use self::disks::Journal;
pub use crate::journal::BrokenRules as BrokenJournal;
use crate::{
    error::LinkError,
    intake::Intake,
    journal::{self, Budget, Options, RecoveryError, Sizes},
    limits::{Histories, Limits},
    link::{Gate, Link, LinkEnd, Step},
    links::Links,
    table::{Source, Table},
    turn::{Joined, Turn},
};

/// What a simulated broker is configured with.
#[derive(Debug, Clone)]
pub struct BrokerOptions {
    /// How long a publication is retained, room permitting.
    pub tail_age: Duration,
    /// Publications that every channel keeps as its history.
    pub history: Option<u64>,
    /// Bytes retained per shard.
    pub tail_bytes_max: usize,
    /// For how long keys are remembered, at least.
    pub key_window: Duration,
    /// Longest data of one publication, in bytes.
    pub data_bytes_max: usize,
    /// Shards are opened from the journal; otherwise from nothing.
    pub is_durable: bool,
    /// Bytes of all journals together.
    pub journal_bytes_max: u64,
    /// The shards that there are channels in. The others are not opened, which
    /// nobody notices, and which most of the time would be spent on.
    pub shards: BTreeSet<ShardId>,
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
    /// A2: publications are taken however long ago they were first sent.
    pub window: bool,
    /// B5: what a link had no credit for is not sent later.
    pub resume: bool,
    /// C1: a shard is opened although another broker has it open.
    pub lock: bool,
    /// B1: a read takes a position of another generation for one of its own.
    pub generations: bool,
    /// Rules of the journal.
    pub journal: BrokenJournal,
}

impl BrokenRules {
    /// Every rule is kept.
    pub const NONE: Self = Self {
        keys: false,
        epochs: false,
        attempts: false,
        window: false,
        resume: false,
        lock: false,
        generations: false,
        journal: BrokenJournal::NONE,
    };
}

/// A publication that a broker has appended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Appended {
    /// The channel's shard.
    pub shard: ShardId,
    /// The epoch at which the broker has it open.
    pub epoch: u64,
    /// Of the channel's log.
    pub generation: u64,
    /// In it.
    pub offset: u64,
    /// What.
    pub data: Option<Bytes>,
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
    limits: Limits,
    journal: Options,
    links: Links,
    open: BTreeMap<u64, OpenLink>,
    view: View,
    /// The shards that it is to have, of those that matter, with their epochs.
    shards: BTreeMap<ShardId, u64>,
    shards_used: BTreeSet<ShardId>,
    /// Those that it has open from a journal.
    shards_open: BTreeSet<ShardId>,
    is_durable: bool,
    broken: BrokenRules,
    data_bytes_max: usize,
    /// Counts frames and generations.
    counter: u64,
}

#[derive(Debug)]
struct OpenLink {
    link: Arc<Link>,
    intake: Intake,
}

impl SimBroker {
    /// A broker with no shard open.
    #[must_use]
    pub fn new(slot: u32, incarnation: u64, options: &BrokerOptions) -> Self {
        let source = match options.is_durable {
            true => Source::Hand,
            false => Source::Nothing,
        };
        let limits = Limits {
            tail_age: options.tail_age,
            histories: Histories::new(options.history.map(keep_last).into_iter().collect()),
            tail_bytes_max: options.tail_bytes_max,
            key_window: options.key_window,
            producers_max: 1 << 16,
            channel_idle: Duration::from_secs(3600),
        };
        Self {
            slot,
            incarnation,
            table: Table::new(limits.clone(), 1 << 16, source),
            limits,
            shards_open: BTreeSet::new(),
            links: Links::default(),
            open: BTreeMap::new(),
            view: View::default(),
            shards: BTreeMap::new(),
            shards_used: options.shards.clone(),
            is_durable: options.is_durable,
            broken: options.broken,
            data_bytes_max: options.data_bytes_max,
            journal: Options {
                is_synced: false,
                budget: Arc::new(Budget::new(options.journal_bytes_max)),
                sizes: Sizes::small(),
                broken: options.broken.journal,
            },
            counter: 0,
        }
    }

    /// The orchestrator sent a view; older ones than the present are ignored.
    /// Returns what turned out to be appended in the shards that opened.
    pub fn handle_view(
        &mut self,
        view: &View,
        journal: &mut Journal,
        now: Millis,
    ) -> Vec<Appended> {
        if view.epoch() < self.view.epoch() {
            return Vec::new();
        }
        self.view = view.clone();
        self.table.apply(now, view, self.slot, self.incarnation);
        let wanted = view.shards_of(self.slot, self.incarnation);
        let wanted = wanted.filter(|(shard, _)| self.shards_used.contains(shard));
        let wanted = wanted.collect();
        let before = std::mem::replace(&mut self.shards, wanted);
        for (shard, epoch) in before {
            // The table has closed it.
            if self.shards.get(&shard) != Some(&epoch) && self.shards_open.remove(&shard) {
                journal.let_go(shard, (self.slot, self.incarnation));
            }
        }
        self.open_shards(journal, now)
    }

    /// Whether shards that are this broker's are still held by another.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        self.is_durable && self.waiting().next().is_some()
    }

    fn waiting(&self) -> impl Iterator<Item = (ShardId, u64)> + '_ {
        let closed = |(shard, _): &(&ShardId, &u64)| !self.shards_open.contains(shard);
        let waiting = self.shards.iter().filter(closed);
        waiting.map(|(shard, epoch)| (*shard, *epoch))
    }

    /// Opens what is this broker's, as far as nobody else holds it.
    pub fn open_shards(&mut self, journal: &mut Journal, now: Millis) -> Vec<Appended> {
        let mut found = Vec::new();
        if !self.is_durable {
            return found;
        }
        let me = (self.slot, self.incarnation);
        for (shard, epoch) in self.waiting().collect::<Vec<_>>() {
            let Some(storage) = journal.take(shard, me, self.broken.lock) else {
                continue;
            };
            let mut unseen = journal.unseen(shard, epoch);
            let (clock, storage) = (journal.clock(now), Box::new(storage));
            let (limits, options) = (&self.limits, self.journal.clone());
            match journal::open(storage, shard, epoch, clock, limits, options) {
                Ok(recovered) => {
                    journal.note_opened(shard, me, &recovered.recovery);
                    if recovered.recovery.is_anew {
                        unseen.clear();
                    }
                    unseen.iter().for_each(|joined| journal.note(joined));
                    self.shards_open.insert(shard);
                    self.table.insert(shard, epoch, recovered);
                }
                // This broker's view is old; or the disk is full, or what is on it
                // is of no use, which shows at the latest when all is to be well.
                Err(
                    RecoveryError::LaterEpoch { .. }
                    | RecoveryError::Write { .. }
                    | RecoveryError::Read { .. }
                    | RecoveryError::Damaged { .. },
                ) => continue,
            }
            found.extend(unseen.into_iter().map(Appended::from));
        }
        found
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
            for shard in &self.shards_used {
                self.table.remove_link(now, &link, *shard);
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
        let mut turn = Turn::watched(now);
        let outcome = self.take(&mut turn, id, batch);
        // Nothing waits for a sync here.
        let _ = self.table.commit(&mut turn);
        outcome?;
        let joined = turn.take_joined();
        joined.iter().for_each(|joined| journal.note(joined));
        Ok(joined.into_iter().map(Appended::from).collect())
    }

    fn take(&mut self, turn: &mut Turn, id: u64, batch: WorkerBatch) -> Result<(), LinkError> {
        for mut frame in batch.frames {
            self.counter += 1;
            let mut generation = Generation(self.incarnation << 32 | self.counter);
            match &mut frame.frame {
                Some(Frame::Publish(publish)) => self.break_rules(publish),
                Some(Frame::Subscribe(subscribe)) => {
                    self.break_epoch(&subscribe.channel, &mut subscribe.shard_epoch);
                }
                Some(Frame::Hello(_) | Frame::Unsubscribe(_)) | None => {}
            }
            let Some(open) = self.open.get_mut(&id) else {
                break;
            };
            let batch = WorkerBatch {
                frames: vec![frame],
            };
            open.intake
                .handle(turn, &mut generation, &self.table, batch)?;
        }
        Ok(())
    }

    /// A worker's read; `None` if the channel's shard is not open here.
    #[must_use]
    pub fn read(&self, request: &ReadRequest) -> Option<ReadResponse> {
        let mut request = request.clone();
        if self.broken.generations {
            let head = self.table.read(&request, 0).ok()?.head;
            if let (Some(after), Some(head)) = (&mut request.after, head) {
                after.generation = head.generation;
            }
        }
        self.table.read(&request, 0).ok()
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
                    if !self.broken.resume {
                        self.table.resume(&mut turn, link, shard, &channel);
                    }
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
        if self.broken.window {
            publish.age_ms = 0;
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
}

/// Every channel keeps its last `count` publications.
fn keep_last(count: u64) -> Namespace {
    Namespace {
        history: Some(History {
            count: Some(count),
            bytes: None,
            age: None,
        }),
        ..Namespace::default()
    }
}

impl From<Joined> for Appended {
    fn from(joined: Joined) -> Self {
        Self {
            shard: joined.shard,
            epoch: joined.epoch,
            generation: joined.position.generation,
            offset: joined.position.offset,
            data: joined.data,
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

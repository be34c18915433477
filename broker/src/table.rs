//! The shards that this broker has open; what its links share.

use std::{
    hash::{BuildHasherDefault, Hasher},
    num::NonZero,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    thread,
};

use dashmap::DashMap;
use muster_proto::{
    SHARDS, ShardId, View,
    control::BrokerStats,
    link::{Publish, ReadRequest, ReadResponse, RefusalReason, Subscribe},
    shard_of,
};
use muster_wire::Millis;
use rand::Rng;
use tracing::error;

use crate::{
    journal::{Home, LockError, OpenShardError, Recovered},
    limits::{ChannelCount, Limits},
    link::Link,
    shard::{Publishing, Shard},
    turn::Turn,
};

/// Threads that read journals when many shards are to be opened.
const OPENING_THREADS_MAX: usize = 4;

/// The broker's open shards.
///
/// No guard leaves this type or lives longer than one call. A shard may call a
/// link while it is locked; a link never calls back.
#[derive(Debug)]
pub(crate) struct Table {
    shards: DashMap<ShardId, Shard, BuildHasherDefault<OwnLock>>,
    source: Source,
    /// The epochs at which shards are to be open here. Held whenever one opens
    /// or closes.
    wanted: Mutex<Wanted>,
    limits: Limits,
    channel_count: Arc<ChannelCount>,
    publications: AtomicU64,
    relayed: AtomicU64,
    /// By shards that were open here.
    history_cut: AtomicU64,
}

/// What a shard is opened from.
#[derive(Debug)]
pub(crate) enum Source {
    /// From nothing: what is in a shard goes with it.
    Nothing,
    Journal(Home),
    /// From whatever [`Table::insert`] is given.
    Hand,
}

/// What a new view has changed here, in shards.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Applied {
    pub(crate) opened: usize,
    pub(crate) closed: usize,
    pub(crate) kept: usize,
}

#[derive(Debug)]
struct Wanted {
    /// By shard.
    epochs: [Option<u64>; SHARDS],
    /// That it could not be opened at that epoch has been logged.
    are_logged: [bool; SHARDS],
}

/// What one look at the shards that are to be opened has achieved.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Opening {
    pub(crate) opened: usize,
    /// Other brokers have them still.
    pub(crate) held: usize,
    /// Their journals are of no use as they are.
    pub(crate) failed: usize,
    pub(crate) bytes: u64,
    pub(crate) publications: u64,
    pub(crate) torn_bytes: u64,
    /// Shards that the machine's crash has cut.
    pub(crate) anew: usize,
}

/// The shard is not open here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NotOpen(pub(crate) ShardId);

impl Table {
    pub(crate) fn new(limits: Limits, channels_max: u64, source: Source) -> Self {
        Self {
            source,
            wanted: Mutex::new(Wanted {
                epochs: [None; SHARDS],
                are_logged: [false; SHARDS],
            }),
            shards: DashMap::with_capacity_and_hasher_and_shard_amount(
                SHARDS,
                BuildHasherDefault::default(),
                SHARDS,
            ),
            limits,
            channel_count: Arc::new(ChannelCount::new(channels_max)),
            publications: AtomicU64::new(0),
            relayed: AtomicU64::new(0),
            history_cut: AtomicU64::new(0),
        }
    }

    /// Closes shards and opens others so that exactly those are open which `view`
    /// gives to this life of this broker. With journals, [`Self::open_waiting`]
    /// does the opening.
    ///
    /// A shard that is open at the view's epoch for it stays as it is; one that
    /// is open at another epoch has had another owner since, so it is opened
    /// anew. Closing a shard ends the subscriptions to its channels.
    pub(crate) fn apply(&self, now: Millis, view: &View, slot: u32, incarnation: u64) -> Applied {
        let mut turn = Turn::new(now);
        let mut wanted = self.lock_wanted();
        wanted.epochs = [None; SHARDS];
        wanted.are_logged = [false; SHARDS];
        for (shard, epoch) in view.shards_of(slot, incarnation) {
            wanted.epochs[shard.index()] = Some(epoch);
        }
        let mut applied = Applied::default();
        for shard in ShardId::all() {
            let wanted = wanted.epochs[shard.index()];
            let open = self.shards.view(&shard, |_, open| open.epoch());
            if open == wanted {
                applied.kept += usize::from(open.is_some());
                continue;
            }
            if let Some((_, open)) = self.shards.remove(&shard) {
                self.history_cut
                    .fetch_add(open.histories().cut(), Ordering::Relaxed);
                open.close(&mut turn);
                applied.closed += 1;
            }
            if let Some(epoch) = wanted {
                applied.opened += 1;
                if matches!(self.source, Source::Nothing) {
                    let count = Arc::clone(&self.channel_count);
                    let open = Shard::open(now, shard, epoch, self.limits.clone(), count);
                    self.shards.insert(shard, open);
                }
            }
        }
        applied
    }

    /// Tries to open the shards that are to be open and are not. Reads their
    /// journals, so it is for a thread that nobody waits for.
    pub(crate) fn open_waiting(&self) -> Opening {
        let Source::Journal(home) = &self.source else {
            return Opening::default();
        };
        let waiting = self.waiting();
        let next = AtomicUsize::new(0);
        let total = Mutex::new(Opening::default());
        let threads = thread::available_parallelism().map_or(1, NonZero::get);
        thread::scope(|scope| {
            for _ in 0..threads.min(OPENING_THREADS_MAX).min(waiting.len()) {
                scope.spawn(|| {
                    while let Some(&(shard, epoch)) =
                        waiting.get(next.fetch_add(1, Ordering::Relaxed))
                    {
                        let opened = self.open_one(home, shard, epoch);
                        let mut total = total.lock().unwrap_or_else(PoisonError::into_inner);
                        total.add(&opened);
                    }
                });
            }
        });
        total.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    /// The shards that are to be open and are not, with their epochs.
    pub(crate) fn waiting(&self) -> Vec<(ShardId, u64)> {
        let wanted = self.lock_wanted();
        let wanted = ShardId::all().zip(wanted.epochs);
        let closed = wanted.filter(|(shard, _)| !self.shards.contains_key(shard));
        closed
            .filter_map(|(shard, epoch)| Some((shard, epoch?)))
            .collect()
    }

    fn open_one(&self, home: &Home, id: ShardId, epoch: u64) -> Opening {
        let recovered = match home.open_shard(id, epoch, &self.limits) {
            Ok(recovered) => recovered,
            Err(OpenShardError::Lock {
                source: LockError::Held,
                ..
            }) => {
                return Opening {
                    held: 1,
                    ..Opening::default()
                };
            }
            Err(failure) => {
                let mut wanted = self.lock_wanted();
                if !std::mem::replace(&mut wanted.are_logged[id.index()], true) {
                    let error: &dyn std::error::Error = &failure;
                    error!(shard = %id, error, "Could not open a shard; trying again and again.");
                }
                return Opening {
                    failed: 1,
                    ..Opening::default()
                };
            }
        };
        self.insert(id, epoch, recovered)
    }

    /// Opens a shard with what its journal has.
    pub(crate) fn insert(&self, id: ShardId, epoch: u64, recovered: Recovered) -> Opening {
        let recovery = recovered.recovery;
        let count = Arc::clone(&self.channel_count);
        let shard = Shard::recover(id, epoch, recovered, count);
        let wanted = self.lock_wanted();
        if wanted.epochs[id.index()] != Some(epoch) {
            // Another view has come meanwhile, and another look follows it.
            shard.close(&mut Turn::new(Millis(0)));
            return Opening::default();
        }
        self.shards.insert(id, shard);
        Opening {
            opened: 1,
            bytes: recovery.bytes,
            publications: recovery.publications,
            torn_bytes: recovery.torn_bytes,
            anew: usize::from(recovery.is_anew),
            ..Opening::default()
        }
    }

    /// Closes every shard, because the broker stops.
    pub(crate) fn close(&self, now: Millis) {
        let mut turn = Turn::new(now);
        let mut wanted = self.lock_wanted();
        wanted.epochs = [None; SHARDS];
        for id in ShardId::all() {
            if let Some((_, shard)) = self.shards.remove(&id) {
                shard.close(&mut turn);
            }
        }
    }

    /// Takes a publication; see [`Shard::publish`]. [`Self::commit`] must follow.
    pub(crate) fn publish(
        &self,
        turn: &mut Turn,
        rng: &mut impl Rng,
        link: &Arc<Link>,
        publish: &Publish,
    ) -> Publishing {
        let shard = shard_of(&publish.channel);
        self.with(shard, |shard| shard.publish(turn, rng, link, publish))
            .unwrap_or(Publishing::Done(Err(RefusalReason::WrongEpoch)))
    }

    /// Writes what the turn has staged, each shard's in one go, and tells
    /// everybody concerned. What is returned has to be synced first, each with
    /// [`Self::sync`].
    #[must_use]
    pub(crate) fn commit(&self, turn: &mut Turn) -> Vec<ShardId> {
        for id in turn.take_touched() {
            // What was staged in a shard that has closed since was refused then.
            let _not_open = self.with(id, |shard| shard.commit(turn));
        }
        turn.take_unsynced()
    }

    /// Syncs what is written in a shard, unless somebody does already, and lets
    /// it join the log. Waits for the disk.
    pub(crate) fn sync(&self, id: ShardId, now: impl Fn() -> Millis) {
        let begin = || self.with(id, |shard| Some((shard.epoch(), shard.begin_sync()?)));
        while let Ok(Some((epoch, unsynced))) = begin() {
            let outcome = unsynced.sync();
            let mut turn = Turn::new(now());
            let _not_open = self.with(id, |shard| {
                if shard.epoch() == epoch {
                    shard.end_sync(&mut turn, &outcome);
                }
            });
            self.count(&turn);
        }
    }

    /// Subscribes the link, or tells it that the shard is not open here, at that
    /// epoch; false in that case.
    pub(crate) fn subscribe(
        &self,
        turn: &mut Turn,
        rng: &mut impl Rng,
        link: &Arc<Link>,
        subscribe: &Subscribe,
    ) -> bool {
        let id = shard_of(&subscribe.channel);
        let found = self.with(id, |shard| shard.subscribe(turn, rng, link, subscribe));
        found.unwrap_or_else(|NotOpen(_)| {
            link.not_owner(turn, subscribe, RefusalReason::Unspecified);
            false
        })
    }

    pub(crate) fn unsubscribe(&self, now: Millis, link: &Arc<Link>, channel: &[u8]) {
        // In a shard that is not open nobody is subscribed.
        let _not_open = self.with(shard_of(channel), |shard| {
            shard.unsubscribe(now, link, channel);
        });
    }

    /// Goes on from the log with a channel in which the link is behind.
    pub(crate) fn resume(&self, turn: &mut Turn, link: &Arc<Link>, id: ShardId, channel: &[u8]) {
        // The subscription of a shard that is not open any more is gone.
        let _not_open = self.with(id, |shard| shard.resume(turn, link, channel));
    }

    /// A range of what is kept of a channel; see [`Shard::read`].
    pub(crate) fn read(
        &self,
        request: &ReadRequest,
        boot_unix_ms: i64,
    ) -> Result<ReadResponse, NotOpen> {
        self.with(shard_of(&request.channel), |shard| {
            shard.read(request, boot_unix_ms)
        })
    }

    /// Lets go of what is old; due about once a second.
    pub(crate) fn sweep(&self, now: Millis) {
        for id in ShardId::all() {
            let _not_open = self.with(id, |shard| shard.sweep(now));
        }
    }

    /// Removes what the link subscribes to in one shard.
    pub(crate) fn remove_link(&self, now: Millis, link: &Arc<Link>, id: ShardId) {
        let _not_open = self.with(id, |shard| shard.remove_link(now, link));
    }

    /// Adds what a turn has done to the totals.
    pub(crate) fn count(&self, turn: &Turn) {
        self.publications
            .fetch_add(turn.publications, Ordering::Relaxed);
        self.relayed.fetch_add(turn.relayed, Ordering::Relaxed);
    }

    /// Totals for the heartbeat, all but the links.
    pub(crate) fn stats(&self) -> BrokerStats {
        let mut shards = 0;
        let (mut tail_bytes, mut history_bytes, mut history_cut) = (0, 0, 0);
        for id in ShardId::all() {
            let counted = self.with(id, |shard| {
                let histories = shard.histories();
                let beyond = histories.bytes();
                tail_bytes += (shard.retained_bytes() - beyond) as u64;
                history_bytes += beyond as u64;
                history_cut += histories.cut();
            });
            shards += u32::from(counted.is_ok());
        }
        BrokerStats {
            shards,
            channels: self.channel_count.get(),
            links: 0,
            publications: self.publications.load(Ordering::Relaxed),
            relayed: self.relayed.load(Ordering::Relaxed),
            tail_bytes,
            history_bytes,
            history_cut: history_cut + self.history_cut.load(Ordering::Relaxed),
        }
    }

    fn lock_wanted(&self) -> MutexGuard<'_, Wanted> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(&self, id: ShardId, act: impl FnOnce(&mut Shard) -> T) -> Result<T, NotOpen> {
        match self.shards.get_mut(&id) {
            Some(mut shard) => Ok(act(&mut shard)),
            None => Err(NotOpen(id)),
        }
    }
}

impl Opening {
    fn add(&mut self, other: &Self) {
        self.opened += other.opened;
        self.held += other.held;
        self.failed += other.failed;
        self.bytes += other.bytes;
        self.publications += other.publications;
        self.torn_bytes += other.torn_bytes;
        self.anew += other.anew;
    }
}

/// Gives each shard a lock of its own: the map picks one of its 256 locks by
/// eight bits of the hash, which are made the shard's number.
#[derive(Debug, Default)]
struct OwnLock(u64);

/// The map drops this many bits from the top (they serve its inner tables) and
/// takes the lock's number from the next ones.
const BITS_ABOVE_LOCK: u32 = 7;

impl Hasher for OwnLock {
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u8(byte);
        }
    }

    fn write_u8(&mut self, number: u8) {
        self.0 = u64::from(number) << (u64::BITS - BITS_ABOVE_LOCK - u8::BITS);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests;

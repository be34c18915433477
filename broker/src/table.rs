//! The shards that this broker has open; what its links share.

use std::{
    hash::{BuildHasherDefault, Hasher},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
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

use crate::{
    limits::{ChannelCount, Limits},
    link::Link,
    shard::Shard,
    turn::Turn,
};

/// The broker's open shards.
///
/// No guard leaves this type or lives longer than one call. A shard may call a
/// link while it is locked; a link never calls back.
#[derive(Debug)]
pub(crate) struct Table {
    shards: DashMap<ShardId, Shard, BuildHasherDefault<OwnLock>>,
    limits: Limits,
    channel_count: Arc<ChannelCount>,
    publications: AtomicU64,
    relayed: AtomicU64,
}

/// What a new view has changed here, in shards.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Applied {
    pub(crate) opened: usize,
    pub(crate) closed: usize,
    pub(crate) kept: usize,
}

/// The shard is not open here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NotOpen(pub(crate) ShardId);

impl Table {
    pub(crate) fn new(limits: Limits, channels_max: u64) -> Self {
        Self {
            shards: DashMap::with_capacity_and_hasher_and_shard_amount(
                SHARDS,
                BuildHasherDefault::default(),
                SHARDS,
            ),
            limits,
            channel_count: Arc::new(ChannelCount::new(channels_max)),
            publications: AtomicU64::new(0),
            relayed: AtomicU64::new(0),
        }
    }

    /// Opens and closes shards so that exactly those are open which `view` gives
    /// to this life of this broker.
    ///
    /// A shard that is open at the view's epoch for it stays as it is; one that
    /// is open at another epoch has had another owner since, so it is opened
    /// anew. Closing a shard ends the subscriptions to its channels.
    pub(crate) fn apply(&self, now: Millis, view: &View, slot: u32, incarnation: u64) -> Applied {
        let mut wanted = [None; SHARDS];
        for (shard, epoch) in view.shards_of(slot, incarnation) {
            wanted[shard.index()] = Some(epoch);
        }
        let mut applied = Applied::default();
        for shard in ShardId::all() {
            let wanted = wanted[shard.index()];
            let open = self.shards.view(&shard, |_, open| open.epoch());
            if open == wanted {
                applied.kept += usize::from(open.is_some());
                continue;
            }
            if self.shards.remove(&shard).is_some() {
                applied.closed += 1;
            }
            if let Some(epoch) = wanted {
                let count = Arc::clone(&self.channel_count);
                let open = Shard::open(now, shard, epoch, self.limits.clone(), count);
                self.shards.insert(shard, open);
                applied.opened += 1;
            }
        }
        applied
    }

    /// Appends and relays a publication; see [`Shard::publish`].
    pub(crate) fn publish(
        &self,
        turn: &mut Turn,
        rng: &mut impl Rng,
        publish: &Publish,
    ) -> Result<(), RefusalReason> {
        let shard = shard_of(&publish.channel);
        self.with(shard, |shard| shard.publish(turn, rng, publish))
            .unwrap_or(Err(RefusalReason::WrongEpoch))
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

    pub(crate) fn read(&self, request: &ReadRequest) -> Result<ReadResponse, NotOpen> {
        self.with(shard_of(&request.channel), |shard| shard.read(request))
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
        let mut tail_bytes = 0;
        for id in ShardId::all() {
            if let Ok(bytes) = self.with(id, |shard| shard.retained_bytes()) {
                shards += 1;
                tail_bytes += bytes as u64;
            }
        }
        BrokerStats {
            shards,
            channels: self.channel_count.get(),
            links: 0,
            publications: self.publications.load(Ordering::Relaxed),
            relayed: self.relayed.load(Ordering::Relaxed),
            tail_bytes,
        }
    }

    fn with<T>(&self, id: ShardId, act: impl FnOnce(&mut Shard) -> T) -> Result<T, NotOpen> {
        match self.shards.get_mut(&id) {
            Some(mut shard) => Ok(act(&mut shard)),
            None => Err(NotOpen(id)),
        }
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

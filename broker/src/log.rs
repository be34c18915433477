//! A shard's log: what has been published, in order, as far as it is kept.
//!
//! This log lives in memory. What has to survive its process is in the journal
//! before it is here: between [`Log::assign`] and [`Log::append`].
//!
//! A channel keeps its *tail*, which is what is young, and, if its namespace
//! says so, a *history*: what has left the tail and is within bounds. Without
//! room for all of it histories go first, the oldest of the shard's before
//! others, so that they never shorten a tail.

mod channel;
mod data;
mod history;

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use bytes::Bytes;
use muster_proto::link::Position;
use muster_wire::Millis;
use slab::Slab;
use tracing::error;

use self::channel::Channel;
pub(crate) use self::{
    channel::{Kept, Moment},
    data::{Data, Stored},
    history::Histories,
};
use crate::{keys::Keys, limits::Limits, room::give_back_room};

/// Channels looked at per [`Log::forget_idle`], at least.
const SWEEP_CHANNELS_MIN: usize = 64;
/// … and the part of all channels that is looked at, if that is more.
const SWEEP_FRACTION: usize = 32;

/// The channels of a shard and their publications.
#[derive(Debug)]
pub(crate) struct Log {
    limits: Limits,
    names: HashMap<Bytes, ChannelKey>,
    channels: Slab<Channel>,
    /// The publications in the tails of all channels, oldest first. Each
    /// channel's part of it is in the same order as the channel's own.
    tails: VecDeque<InTail>,
    /// What is kept beyond the tails.
    histories: Histories,
    /// Bytes kept, in tails and histories.
    retained_bytes: usize,
    keys: Keys,
    /// Where the next search for idle channels begins.
    sweep_from: usize,
}

/// A channel's place in its shard, valid until the channel is forgotten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ChannelKey(usize);

#[derive(Debug)]
struct InTail {
    at: Moment,
    channel: ChannelKey,
}

impl ChannelKey {
    pub(crate) fn new(index: usize) -> Self {
        Self(index)
    }

    pub(crate) fn index(self) -> usize {
        self.0
    }
}

impl Log {
    pub(crate) fn new(now: Millis, limits: Limits) -> Self {
        Self {
            keys: Keys::new(now, limits.key_window, limits.producers_max),
            limits,
            names: HashMap::new(),
            channels: Slab::new(),
            tails: VecDeque::new(),
            histories: Histories::default(),
            retained_bytes: 0,
            sweep_from: 0,
        }
    }

    pub(crate) fn find(&self, name: &[u8]) -> Option<ChannelKey> {
        self.names.get(name).copied()
    }

    /// Begins the log of a channel that is not there.
    pub(crate) fn begin(&mut self, now: Millis, name: &[u8], generation: u64) -> ChannelKey {
        debug_assert!(self.find(name).is_none(), "a live channel keeps its log");
        let name = Bytes::copy_from_slice(name);
        let bounds = self.limits.histories.of(&name);
        let channel = Channel::new(now, name.clone(), generation, bounds);
        let key = ChannelKey(self.channels.insert(channel));
        self.names.insert(name, key);
        key
    }

    /// Gives a publication its channel's next offset.
    pub(crate) fn assign(&mut self, now: Millis, key: ChannelKey) -> u64 {
        let channel = &mut self.channels[key.0];
        channel.assigned += 1;
        channel.used_at = now;
        channel.last_offset + channel.assigned
    }

    /// Takes back the channel's last offset that was assigned.
    pub(crate) fn take_back(&mut self, key: ChannelKey) {
        self.channels[key.0].assigned -= 1;
    }

    /// Keeps the publication whose offset was assigned first, and returns that.
    /// Nobody may be told of a publication before this has returned.
    pub(crate) fn append(
        &mut self,
        at: Moment,
        now: Millis,
        key: ChannelKey,
        data: Option<Bytes>,
    ) -> u64 {
        self.keep(now, key, Kept::new(at, data.map(Data::Held)))
    }

    /// Does the same for one whose data may be elsewhere, which is for channels
    /// without a history only.
    pub(crate) fn keep(&mut self, now: Millis, key: ChannelKey, kept: Kept) -> u64 {
        let at = kept.at;
        let channel = &mut self.channels[key.0];
        channel.assigned -= 1;
        channel.last_offset += 1;
        let offset = channel.last_offset;
        self.retained_bytes += channel.push(kept);
        self.tails.push_back(InTail { at, channel: key });
        self.bound_history(key);
        self.trim(now);
        offset
    }

    /// Continues a channel's log, of which nothing is retained.
    pub(crate) fn resume(
        &mut self,
        now: Millis,
        name: &[u8],
        generation: u64,
        last_offset: u64,
    ) -> ChannelKey {
        let key = self.begin(now, name, generation);
        self.channels[key.0].last_offset = last_offset;
        key
    }

    /// Forgets a channel with what is retained of it.
    pub(crate) fn forget(&mut self, key: ChannelKey) {
        self.histories.remove(key, &self.channels[key.0]);
        let channel = self.channels.remove(key.0);
        self.names.remove(&channel.name);
        self.retained_bytes -= channel.bytes();
        if channel.in_tail() > 0 {
            self.tails.retain(|retained| retained.channel != key);
        }
    }

    pub(crate) fn keys(&self) -> &Keys {
        &self.keys
    }

    pub(crate) fn keys_mut(&mut self) -> &mut Keys {
        &mut self.keys
    }

    /// Whether the key of a publication of this age, in milliseconds, would
    /// still be remembered if it had been appended.
    pub(crate) fn remembers_since(&self, age_ms: u32) -> bool {
        Duration::from_millis(age_ms.into()) <= self.limits.key_window
    }

    pub(crate) fn name(&self, key: ChannelKey) -> &Bytes {
        &self.channels[key.0].name
    }

    /// The position of the channel's last publication.
    pub(crate) fn head(&self, key: ChannelKey) -> Position {
        let channel = &self.channels[key.0];
        Position {
            generation: channel.generation,
            offset: channel.last_offset,
        }
    }

    /// The position of the channel's last publication that has an offset.
    pub(crate) fn assigned(&self, key: ChannelKey) -> Position {
        let channel = &self.channels[key.0];
        Position {
            generation: channel.generation,
            offset: channel.last_offset + channel.assigned,
        }
    }

    /// The position just before the channel's first retained publication.
    pub(crate) fn tail_start(&self, key: ChannelKey) -> Position {
        let channel = &self.channels[key.0];
        Position {
            generation: channel.generation,
            offset: channel.tail_start(),
        }
    }

    /// Whether all that follows `position` is retained.
    pub(crate) fn reaches_back_to(&self, key: ChannelKey, position: Position) -> bool {
        let channel = &self.channels[key.0];
        position.generation == channel.generation
            && (channel.tail_start()..=channel.last_offset).contains(&position.offset)
    }

    /// Reads what is retained after `after` and not in memory, which has to be
    /// done before it is used. If it cannot be read, it is not retained any more,
    /// nor is what is older in the shard: its last publications are in the tails.
    pub(crate) fn load(&mut self, key: ChannelKey, after: u64) {
        let Err((offset, failure)) = self.channels[key.0].load(after) else {
            return;
        };
        let error: &dyn std::error::Error = &failure;
        error!(
            error,
            "Could not read the journal again; what is in it is retained no more."
        );
        while self.channels[key.0].tail_start() < offset && !self.tails.is_empty() {
            self.end_tail();
        }
    }

    /// The retained publications after `offset` with their offsets and data.
    pub(crate) fn after(
        &self,
        key: ChannelKey,
        offset: u64,
    ) -> impl Iterator<Item = (u64, Option<&Bytes>)> {
        let range = self.range(key, offset, u64::MAX);
        range.map(|(offset, kept)| (offset, kept.data()))
    }

    /// The retained publications after `after` and before `before` with their
    /// offsets.
    pub(crate) fn range(
        &self,
        key: ChannelKey,
        after: u64,
        before: u64,
    ) -> impl DoubleEndedIterator<Item = (u64, &Kept)> {
        self.channels[key.0].range(after, before)
    }

    /// Whether the channel keeps a history.
    pub(crate) fn has_history(&self, key: ChannelKey) -> bool {
        self.channels[key.0].history.is_some()
    }

    /// Bytes retained, with what each publication needs beside its data.
    pub(crate) fn retained_bytes(&self) -> usize {
        self.retained_bytes
    }

    /// Publications in the tails: the last ones of the shard.
    pub(crate) fn in_tails(&self) -> usize {
        self.tails.len()
    }

    pub(crate) fn histories(&self) -> &Histories {
        &self.histories
    }

    pub(crate) fn channels(&self) -> usize {
        self.channels.len()
    }

    /// The keys of all channels.
    pub(crate) fn channel_keys(&self) -> impl Iterator<Item = ChannelKey> + '_ {
        self.channels.iter().map(|(index, _)| ChannelKey(index))
    }

    /// Notes that the channel is in use, so that it is not forgotten soon.
    pub(crate) fn touch(&mut self, now: Millis, key: ChannelKey) {
        self.channels[key.0].used_at = now;
    }

    /// Lets go of publications and keys that are old enough, and of those for
    /// which there is no room.
    pub(crate) fn trim(&mut self, now: Millis) {
        self.keys.forget_old(now);
        while let Some(oldest) = self.tails.front() {
            if oldest.at.age(now) <= self.limits.tail_age {
                break;
            }
            self.end_tail();
        }
        while let Some(key) = self.histories.expired(now) {
            self.drop_oldest(key);
        }
        while self.retained_bytes > self.limits.tail_bytes_max {
            if !self.cut_oldest() {
                break;
            }
        }
        give_back_room(&mut self.tails);
    }

    /// Forgets some of the channels that are idle and that `is_free` says
    /// nobody needs; returns how many. Called once a second it has looked at
    /// every channel within half a minute or so.
    pub(crate) fn forget_idle(
        &mut self,
        now: Millis,
        is_free: impl Fn(ChannelKey) -> bool,
    ) -> usize {
        let places = self.channels.capacity();
        let looks = SWEEP_CHANNELS_MIN.max(places / SWEEP_FRACTION).min(places);
        let mut forgotten = 0;
        for step in 0..looks {
            let key = ChannelKey((self.sweep_from + step) % places);
            let idle = self.channels.get(key.0).is_some_and(|channel| {
                let is_free = channel.is_empty() && channel.assigned == 0;
                is_free && now.since(channel.used_at) > self.limits.channel_idle
            });
            if idle && is_free(key) {
                self.forget(key);
                forgotten += 1;
            }
        }
        self.sweep_from = (self.sweep_from + looks).checked_rem(places).unwrap_or(0);
        forgotten
    }
}

#[cfg(test)]
mod tests;

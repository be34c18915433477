//! The disks under the brokers of a simulation, which fill up, tear records and
//! lose what a machine had not written when its power went.

use std::collections::BTreeMap;

use bytes::Bytes;
use muster_proto::ShardId;
use muster_wire::Millis;
use rand::{Rng, RngExt as _};

use crate::{
    journal::{
        Clock, Recovery,
        memory::{Faults, Memory, MemoryDisk},
    },
    turn::Joined,
};

/// A broker: its slot and incarnation.
type Holder = (u32, u64);

/// What outlives brokers: the disks that shards are opened from, with one holder
/// per shard.
#[derive(Debug)]
pub struct Journal {
    shards: BTreeMap<ShardId, JournalShard>,
    faults: Faults,
    boot: u128,
    torn_ends: u64,
}

#[derive(Debug, Default)]
struct JournalShard {
    holder: Option<Holder>,
    disk: MemoryDisk,
    /// What has been seen of each channel: generation and offset.
    seen: BTreeMap<Bytes, (u64, u64)>,
}

impl Default for Journal {
    fn default() -> Self {
        Self {
            shards: BTreeMap::new(),
            faults: Faults::default(),
            boot: 1,
            torn_ends: 0,
        }
    }
}

impl Journal {
    /// A broker has died: what it held is free.
    pub fn release(&mut self, slot: u32, incarnation: u64) {
        for shard in self.shards.values_mut() {
            if shard.holder == Some((slot, incarnation)) {
                shard.holder = None;
            }
        }
    }

    /// So many more bytes fit on every shard's disk; `None`: as many as there are.
    pub fn set_room(&mut self, room: Option<u64>) {
        self.set_faults(Faults {
            room,
            ..Faults::default()
        });
    }

    /// The process that writes to the disks dies in a write, after so many bytes
    /// of a shard; what it writes after that is never written.
    pub fn set_last_bytes(&mut self, bytes: u64) {
        self.set_faults(Faults {
            room: Some(bytes),
            no_truncation: true,
        });
    }

    /// The machine goes down, and with it what it had not written: of each shard
    /// nothing, or the end of its newest segment, from a record's begin or from
    /// anywhere. Every broker must have been released.
    pub fn lose_power(&mut self, rng: &mut impl Rng) {
        self.boot += 1;
        for shard in self.shards.values() {
            match rng.random_range(0..4) {
                0 => {}
                1 => shard
                    .disk
                    .cut(|content| rng.random_range(0..=content.len())),
                _ => shard.disk.cut_records(|ends| rng.random_range(0..ends)),
            }
        }
    }

    /// How often a last record that was not written to its end was found.
    #[must_use]
    pub fn torn_ends(&self) -> u64 {
        self.torn_ends
    }

    /// Bytes on all disks.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.shards.values().map(|shard| shard.disk.bytes()).sum()
    }

    /// What there is of a shard, for a broker that opens it; `None` while
    /// another one has it, unless nobody looks at that.
    pub(super) fn take(
        &mut self,
        shard: ShardId,
        by: Holder,
        is_lock_ignored: bool,
    ) -> Option<Memory> {
        let shard = self.shard(shard);
        let is_free = shard.holder.is_none_or(|holder| holder == by);
        (is_free || is_lock_ignored).then(|| Memory::new(&shard.disk))
    }

    pub(super) fn note_opened(&mut self, shard: ShardId, by: Holder, recovery: &Recovery) {
        self.torn_ends += u64::from(recovery.torn_bytes > 0);
        self.shard(shard).holder = Some(by);
    }

    /// A broker has closed a shard.
    pub(super) fn let_go(&mut self, shard: ShardId, by: Holder) {
        let shard = self.shard(shard);
        if shard.holder == Some(by) {
            shard.holder = None;
        }
    }

    pub(super) fn clock(&self, now: Millis) -> Clock {
        Clock {
            boot: self.boot,
            now,
            wall_ms: now.0,
        }
    }

    /// A publication is in a log.
    pub(super) fn note(&mut self, joined: &Joined) {
        let seen = &mut self.shard(joined.shard).seen;
        seen.insert(joined.channel.clone(), place(joined));
    }

    /// Publications on the disk that have not been noted: whoever wrote them has
    /// died before anybody heard of them.
    pub(super) fn unseen(&mut self, id: ShardId, epoch: u64) -> Vec<Joined> {
        let shard = self.shard(id);
        let mut unseen = shard.disk.publications();
        unseen.retain(|(channel, position, _)| {
            let seen = shard.seen.get(channel);
            seen.is_none_or(|seen| seen.0 != position.generation || seen.1 < position.offset)
        });
        let unseen = unseen.into_iter();
        unseen
            .map(|(channel, position, data)| Joined {
                shard: id,
                epoch,
                channel,
                position,
                data,
            })
            .collect()
    }

    fn set_faults(&mut self, faults: Faults) {
        self.faults = faults;
        for shard in self.shards.values() {
            shard.disk.set_faults(faults);
        }
    }

    fn shard(&mut self, shard: ShardId) -> &mut JournalShard {
        let faults = self.faults;
        self.shards.entry(shard).or_insert_with(|| {
            let shard = JournalShard::default();
            shard.disk.set_faults(faults);
            shard
        })
    }
}

fn place(joined: &Joined) -> (u64, u64) {
    (joined.position.generation, joined.position.offset)
}

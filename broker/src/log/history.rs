//! Histories: what channels keep after it has left their tails.

use std::collections::BTreeSet;

use muster_wire::Millis;

use super::{
    ChannelKey, Log,
    channel::{Channel, Kept, Moment},
};

/// Which channels of a shard keep something beyond their tails.
#[derive(Debug, Default)]
pub(crate) struct Histories {
    /// By the moment of the oldest publication of each.
    oldest: BTreeSet<(Moment, usize)>,
    /// By the moment at which the oldest publication is to go.
    expiring: BTreeSet<(Moment, usize)>,
    /// What is kept beyond the tails counts for this.
    bytes: usize,
    /// Publications of channels with a history that went although they were
    /// within its bounds, because there was no room.
    cut: u64,
}

impl Histories {
    /// Bytes kept, with what each publication needs beside its data.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Publications let go because there was no room.
    pub(crate) fn cut(&self) -> u64 {
        self.cut
    }

    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.oldest.is_empty()
    }

    /// A channel whose oldest publication is too old.
    pub(super) fn expired(&self, now: Millis) -> Option<ChannelKey> {
        let (at, key) = *self.expiring.first()?;
        (at < Moment::from(now)).then_some(ChannelKey(key))
    }

    /// The channel with the oldest publication.
    fn first(&self) -> Option<ChannelKey> {
        self.oldest.first().map(|(_, key)| ChannelKey(*key))
    }

    /// Notes a channel, if it has something beyond its tail.
    fn note(&mut self, key: ChannelKey, channel: &Channel) {
        if let Some(oldest) = channel.oldest_beyond() {
            self.oldest.insert((oldest.at, key.0));
        }
        if let Some(at) = channel.expires_at() {
            self.expiring.insert((at, key.0));
        }
    }

    /// Takes back what [`Self::note`] did, before the channel changes.
    fn unnote(&mut self, key: ChannelKey, channel: &Channel) {
        if let Some(oldest) = channel.oldest_beyond() {
            self.oldest.remove(&(oldest.at, key.0));
        }
        if let Some(at) = channel.expires_at() {
            self.expiring.remove(&(at, key.0));
        }
    }

    /// The channel is going to be forgotten.
    pub(super) fn remove(&mut self, key: ChannelKey, channel: &Channel) {
        self.unnote(key, channel);
        self.bytes -= channel.bytes_beyond();
    }
}

impl Log {
    /// Takes in the publication before the first one that is kept of a channel.
    /// One that is kept already, or is not the one before, is left out.
    pub(crate) fn append_oldest(&mut self, key: ChannelKey, offset: u64, kept: Kept) {
        let channel = &mut self.channels[key.0];
        if offset == 0 || offset != channel.tail_start() {
            return;
        }
        let bytes = kept.bytes();
        self.histories.unnote(key, channel);
        if channel.push_oldest(kept) {
            self.histories.bytes += bytes;
            self.retained_bytes += bytes;
        }
        self.histories.note(key, channel);
        self.bound_history(key);
    }

    /// Shortens histories, the oldest publications first, to half of
    /// `bytes_max` if they need more than that. False if they do not.
    pub(crate) fn cut_histories(&mut self, bytes_max: usize) -> bool {
        if self.histories.bytes <= bytes_max {
            return false;
        }
        while self.histories.bytes > bytes_max / 2 && self.cut_oldest() {}
        true
    }

    /// Lets go of the shard's oldest publication; false if there is none.
    pub(super) fn cut_oldest(&mut self) -> bool {
        if let Some(key) = self.histories.first() {
            self.drop_oldest(key);
            self.histories.cut += 1;
            return true;
        }
        let Some(oldest) = self.tails.pop_front() else {
            return false;
        };
        let channel = &mut self.channels[oldest.channel.0];
        self.histories.cut += u64::from(channel.history.is_some());
        self.retained_bytes -= channel.pop_oldest();
        true
    }

    /// The oldest publication in a tail leaves it.
    pub(super) fn end_tail(&mut self) {
        let Some(oldest) = self.tails.pop_front() else {
            return;
        };
        let channel = &mut self.channels[oldest.channel.0];
        self.histories.unnote(oldest.channel, channel);
        match channel.pass_on() {
            Some(bytes) => self.histories.bytes += bytes,
            None => self.retained_bytes -= channel.pop_oldest(),
        }
        self.histories.note(oldest.channel, channel);
        self.bound_history(oldest.channel);
    }

    /// Lets go of what is beyond a channel's tail and out of bounds.
    pub(super) fn bound_history(&mut self, key: ChannelKey) {
        while self.channels[key.0].is_over() {
            self.drop_oldest(key);
        }
    }

    /// Lets go of the oldest publication beyond a channel's tail.
    pub(super) fn drop_oldest(&mut self, key: ChannelKey) {
        let channel = &mut self.channels[key.0];
        self.histories.unnote(key, channel);
        let bytes = channel.pop_oldest();
        self.histories.note(key, channel);
        self.histories.bytes -= bytes;
        self.retained_bytes -= bytes;
    }
}

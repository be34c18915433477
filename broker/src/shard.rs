//! One open shard: its epoch, its log, and who subscribes to its channels.

use std::sync::Arc;

use bytes::Bytes;
use muster_proto::{
    ShardId,
    link::{Position, Publish, ReadRequest, ReadResponse, RefusalReason, Relay, Subscribe},
};
use muster_wire::Millis;
use rand::Rng;

use crate::{
    limits::{ChannelCount, Limits},
    link::{Link, Offer},
    log::{AppendError, ChannelKey, Log, Publication},
    turn::Turn,
};

/// Bytes that a link which is behind takes of one channel before the next
/// channel has its turn.
const RESUME_BYTES: usize = 16 << 10;
/// Bytes of data in one answer to a range read.
const READ_BYTES_MAX: usize = 1 << 20;
/// Publications in one answer to a range read; they need room beside their data.
const READ_PUBLICATIONS_MAX: usize = 1024;

/// A shard that this broker has open.
#[derive(Debug)]
pub(crate) struct Shard {
    id: ShardId,
    /// The view epoch at which it was opened.
    epoch: u64,
    log: Log,
    /// By channel; shorter than the channels there are when the last ones have
    /// never had any.
    subscribers: Vec<Vec<Subscriber>>,
    channel_count: Arc<ChannelCount>,
}

#[derive(Debug)]
struct Subscriber {
    link: Arc<Link>,
    /// Offset of the last publication put on the link.
    sent: u64,
    /// Goes on from the log when the link asks for it.
    behind: bool,
}

impl Shard {
    pub(crate) fn open(
        now: Millis,
        id: ShardId,
        epoch: u64,
        limits: Limits,
        channel_count: Arc<ChannelCount>,
    ) -> Self {
        Self {
            id,
            epoch,
            log: Log::new(now, limits),
            subscribers: Vec::new(),
            channel_count,
        }
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Appends a publication and relays it to every subscribed link; one that
    /// is known already is neither appended nor relayed again.
    pub(crate) fn publish(
        &mut self,
        turn: &mut Turn,
        rng: &mut impl Rng,
        publish: &Publish,
    ) -> Result<(), RefusalReason> {
        // delivery.md A5.
        if publish.shard_epoch != self.epoch {
            return Err(RefusalReason::WrongEpoch);
        }
        if self.log.knows(&publish.producer, publish.n) {
            return Ok(());
        }
        if !self.log.remembers_since(publish.age_ms) {
            return Err(RefusalReason::Expired);
        }
        let key = self
            .channel(turn.now, rng, &publish.channel)
            .ok_or(RefusalReason::ChannelsFull)?;
        let publication = Publication {
            producer: &publish.producer,
            n: publish.n,
            data: publish.data.as_deref(),
        };
        let appended = self.log.append(turn.now, key, publication)?;
        turn.publications += 1;
        self.relay(turn, key, appended.offset, &appended.data);
        Ok(())
    }

    /// Subscribes the link to a channel, from a position if it has one. False
    /// if the worker means another epoch.
    pub(crate) fn subscribe(
        &mut self,
        turn: &mut Turn,
        rng: &mut impl Rng,
        link: &Arc<Link>,
        subscribe: &Subscribe,
    ) -> bool {
        if subscribe.shard_epoch != self.epoch {
            link.not_owner(turn, subscribe, RefusalReason::Unspecified);
            return false;
        }
        let Some(key) = self.channel(turn.now, rng, &subscribe.channel) else {
            link.not_owner(turn, subscribe, RefusalReason::ChannelsFull);
            return true;
        };
        self.log.touch(turn.now, key);
        self.log.trim(turn.now);
        let head = self.log.head(key);
        let (position, recovered) = match subscribe.after {
            None => (head, true),
            Some(after) if self.log.reaches_back_to(key, after) => (after, true),
            // Whatever is kept is newer than what the worker has: in the same
            // generation by its offset, and one generation follows the other.
            Some(_) => (self.log.tail_start(key), false),
        };
        let behind = position.offset < head.offset;
        let channel = self.log.name(key);
        link.subscribed(turn, channel, position, recovered, subscribe.request);
        if behind {
            link.fall_behind(turn, self.id, channel);
        }
        let subscribers = self.subscribers_mut(key);
        subscribers.retain(|subscriber| !Arc::ptr_eq(&subscriber.link, link));
        subscribers.push(Subscriber {
            link: Arc::clone(link),
            sent: position.offset,
            behind,
        });
        true
    }

    pub(crate) fn unsubscribe(&mut self, now: Millis, link: &Arc<Link>, channel: &[u8]) {
        let Some(key) = self.log.find(channel) else {
            return;
        };
        self.log.touch(now, key);
        if let Some(subscribers) = self.subscribers.get_mut(key.index()) {
            subscribers.retain(|subscriber| !Arc::ptr_eq(&subscriber.link, link));
        }
    }

    /// Goes on from the log with a channel in which the link is behind.
    pub(crate) fn resume(&mut self, turn: &mut Turn, link: &Arc<Link>, channel: &[u8]) {
        let Some(key) = self.log.find(channel) else {
            return;
        };
        let Some(subscriber) = self
            .subscribers
            .get_mut(key.index())
            .into_iter()
            .flatten()
            .find(|subscriber| Arc::ptr_eq(&subscriber.link, link) && subscriber.behind)
        else {
            return; // It has unsubscribed, or subscribed anew, since.
        };
        let (name, head, start) = (
            self.log.name(key),
            self.log.head(key),
            self.log.tail_start(key),
        );
        if subscriber.sent < start.offset {
            link.subscribed(turn, name, start, false, 0);
            subscriber.sent = start.offset;
        }
        let missing = self.log.after(key, subscriber.sent);
        if let Some(sent) = link.catch_up(turn, name, RESUME_BYTES, missing) {
            subscriber.sent = sent;
        }
        subscriber.behind = subscriber.sent < head.offset;
        if subscriber.behind {
            link.fall_behind(turn, self.id, name);
        }
    }

    /// A range of what is retained of a channel.
    pub(crate) fn read(&self, request: &ReadRequest) -> ReadResponse {
        let Some(key) = self.log.find(&request.channel) else {
            return ReadResponse::default();
        };
        let head = self.log.head(key);
        let start = self.log.tail_start(key);
        let after = request.after.unwrap_or(Position {
            generation: start.generation,
            offset: 0,
        });
        let to_offset = match request.to_offset {
            0 => head.offset,
            offset => offset,
        };
        let mut room = usize::try_from(request.bytes_max).unwrap_or(READ_BYTES_MAX);
        if room == 0 || room > READ_BYTES_MAX {
            room = READ_BYTES_MAX;
        }
        let mut publications = Vec::new();
        // Offsets of another generation say nothing about this one's.
        if after.generation == head.generation {
            for (offset, data) in self.log.after(key, after.offset) {
                let bytes = data.as_ref().map_or(0, Bytes::len);
                let full = bytes > room || publications.len() == READ_PUBLICATIONS_MAX;
                if offset > to_offset || (full && !publications.is_empty()) {
                    break;
                }
                room = room.saturating_sub(bytes);
                publications.push(Relay {
                    channel: self.log.name(key).clone(),
                    offset,
                    data: data.clone(),
                });
            }
        }
        ReadResponse {
            head: Some(head),
            complete: self.log.reaches_back_to(key, after),
            publications,
        }
    }

    /// The housekeeping of a quiet moment, due about once a second: lets go of
    /// what is old and of idle channels.
    pub(crate) fn sweep(&mut self, now: Millis) {
        self.log.trim(now);
        let subscribers = &mut self.subscribers;
        let forgotten = self.log.forget_idle(now, |key| {
            subscribers.get(key.index()).is_none_or(Vec::is_empty)
        });
        self.channel_count.give_back(forgotten);
    }

    /// Lets go of all that the link subscribes to, once it has ended.
    pub(crate) fn remove_link(&mut self, now: Millis, link: &Arc<Link>) {
        for (index, subscribers) in self.subscribers.iter_mut().enumerate() {
            let before = subscribers.len();
            subscribers.retain(|subscriber| !Arc::ptr_eq(&subscriber.link, link));
            if subscribers.len() < before {
                self.log.touch(now, ChannelKey::new(index));
            }
        }
    }

    pub(crate) fn retained_bytes(&self) -> usize {
        self.log.retained_bytes()
    }

    /// The channel's key; `None` if it is new and there are too many.
    fn channel(&mut self, now: Millis, rng: &mut impl Rng, name: &[u8]) -> Option<ChannelKey> {
        if let Some(key) = self.log.find(name) {
            return Some(key);
        }
        self.channel_count
            .take()
            .then(|| self.log.begin(now, name, rng.next_u64()))
    }

    fn relay(&mut self, turn: &mut Turn, key: ChannelKey, offset: u64, data: &Option<Bytes>) {
        let Some(subscribers) = self.subscribers.get_mut(key.index()) else {
            return;
        };
        let (id, name) = (self.id, self.log.name(key));
        subscribers.retain_mut(|subscriber| {
            if subscriber.behind {
                return true;
            }
            match subscriber.link.relay(turn, id, name, offset, data) {
                Offer::Accepted => subscriber.sent = offset,
                Offer::Behind => subscriber.behind = true,
                Offer::Gone => return false,
            }
            true
        });
    }

    fn subscribers_mut(&mut self, key: ChannelKey) -> &mut Vec<Subscriber> {
        let index = key.index();
        if index >= self.subscribers.len() {
            self.subscribers.resize_with(index + 1, Vec::new);
        }
        &mut self.subscribers[index]
    }
}

impl Drop for Shard {
    fn drop(&mut self) {
        self.channel_count.give_back(self.log.channels());
    }
}

impl From<AppendError> for RefusalReason {
    fn from(error: AppendError) -> Self {
        match error {
            AppendError::ProducersFull => Self::LogFull,
        }
    }
}

#[cfg(test)]
mod tests;

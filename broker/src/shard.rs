//! One open shard: its epoch, its log, and who subscribes to its channels.

mod read;
mod staged;

use std::{collections::VecDeque, io, sync::Arc};

use bytes::Bytes;
use muster_proto::{
    ShardId,
    link::{Publish, RefusalReason, Subscribe},
};
use muster_wire::Millis;
use rand::Rng;

use self::staged::{Answers, Staged, StagedBody};
use crate::{
    journal::{CommitError, Committed, Journal, Recovered, StagedPublication, Unsynced},
    keys::{KeysFull, Known},
    limits::{ChannelCount, Limits},
    link::{Link, Offer},
    log::{ChannelKey, Histories, Log},
    room::give_back_room,
    turn::{Joined, Turn},
};

/// Bytes that a link which is behind takes of one channel before the next
/// channel has its turn.
const RESUME_BYTES: usize = 16 << 10;

/// A shard that this broker has open.
///
/// A publication is *staged* when it has an offset and its record waits to be
/// written; [`Shard::commit`] writes what is staged, once per turn. What is
/// staged, or written and not yet synced where that is asked for, is visible to
/// nobody: subscriptions, reads and links that catch up see the log, which it
/// joins, in order, once it is as durable as it has to be. The same goes for
/// answers: that to a copy waits until what it is a copy of has joined.
#[derive(Debug)]
pub(crate) struct Shard {
    id: ShardId,
    /// The view epoch at which it was opened.
    epoch: u64,
    log: Log,
    /// Without one, all is lost with this process.
    journal: Option<Journal>,
    /// Not in the log yet, in order.
    staged: VecDeque<Staged>,
    /// Of those, how many are written.
    written: usize,
    /// Of those, how many the sync covers that goes on now; `None` without one.
    syncing: Option<usize>,
    /// By channel; shorter than the channels there are when the last ones have
    /// never had any.
    subscribers: Vec<Vec<Subscriber>>,
    channel_count: Arc<ChannelCount>,
}

/// What became of a publication.
#[must_use]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Publishing {
    /// Its link is answered once the shard is committed.
    Staged,
    Done(Result<(), RefusalReason>),
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
    /// A shard whose log lives as long as it.
    pub(crate) fn open(
        now: Millis,
        id: ShardId,
        epoch: u64,
        limits: Limits,
        channel_count: Arc<ChannelCount>,
    ) -> Self {
        Self::with(id, epoch, Log::new(now, limits), None, channel_count)
    }

    /// A shard that goes on where its journal ends.
    pub(crate) fn recover(
        id: ShardId,
        epoch: u64,
        recovered: Recovered,
        channel_count: Arc<ChannelCount>,
    ) -> Self {
        channel_count.add(recovered.log.channels());
        let journal = Some(recovered.journal);
        Self::with(id, epoch, recovered.log, journal, channel_count)
    }

    fn with(
        id: ShardId,
        epoch: u64,
        log: Log,
        journal: Option<Journal>,
        channel_count: Arc<ChannelCount>,
    ) -> Self {
        Self {
            id,
            epoch,
            log,
            journal,
            staged: VecDeque::new(),
            written: 0,
            syncing: None,
            subscribers: Vec::new(),
            channel_count,
        }
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Stages a publication of the link; one that is known already is not
    /// appended again.
    pub(crate) fn publish(
        &mut self,
        turn: &mut Turn,
        rng: &mut impl Rng,
        link: &Arc<Link>,
        publish: &Publish,
    ) -> Publishing {
        match self.check(publish) {
            Ok(Known::No) => {}
            Ok(Known::Yes) if self.staged.is_empty() => return Publishing::Done(Ok(())),
            // Perhaps of one that is staged only.
            Ok(Known::Yes) => {
                self.staged.push_back(Staged::new(link, publish, None));
                turn.touch(self.id);
                return Publishing::Staged;
            }
            Ok(Known::Perhaps) => return Publishing::Done(Err(RefusalReason::OutcomeUnknown)),
            Err(reason) => {
                // Later ones may be taken, but for one that will be sent again.
                if reason != RefusalReason::WrongEpoch {
                    let keys = self.log.keys_mut();
                    keys.note_refused(&publish.producer, publish.n);
                }
                return Publishing::Done(Err(reason));
            }
        }
        match self.stage(turn, rng, publish) {
            Ok(body) => {
                self.staged
                    .push_back(Staged::new(link, publish, Some(body)));
                turn.touch(self.id);
                Publishing::Staged
            }
            Err(reason) => {
                // Later ones may be taken.
                let keys = self.log.keys_mut();
                keys.note_refused(&publish.producer, publish.n);
                Publishing::Done(Err(reason))
            }
        }
    }

    fn check(&self, publish: &Publish) -> Result<Known, RefusalReason> {
        // delivery.md A5.
        if publish.shard_epoch != self.epoch {
            return Err(RefusalReason::WrongEpoch);
        }
        let known = self.log.keys().knows(&publish.producer, publish.n);
        if known != Known::No {
            return Ok(known);
        }
        if !self.log.remembers_since(publish.age_ms) {
            return Err(RefusalReason::Expired);
        }
        if self.journal.as_ref().is_some_and(Journal::is_broken) {
            // Of those that were refused when it broke, nobody knows.
            let refused = self.log.keys().last(&publish.producer).refused;
            return Err(if publish.n <= refused {
                RefusalReason::OutcomeUnknown
            } else {
                RefusalReason::JournalFailed
            });
        }
        Ok(Known::No)
    }

    fn stage(
        &mut self,
        turn: &Turn,
        rng: &mut impl Rng,
        publish: &Publish,
    ) -> Result<StagedBody, RefusalReason> {
        let key = self
            .channel(turn.now, rng, &publish.channel)
            .ok_or(RefusalReason::ChannelsFull)?;
        let keys = self.log.keys_mut();
        let before = keys
            .remember(&publish.producer, publish.n)
            .map_err(|KeysFull| RefusalReason::LogFull)?;
        // A copy, which shares nothing with the buffer it was received in.
        let data = publish.data.as_deref().map(Bytes::copy_from_slice);
        if let Some(journal) = &mut self.journal {
            let publication = StagedPublication {
                producer: &publish.producer,
                n: publish.n,
                refused: before.refused,
                data: data.as_deref(),
            };
            journal.stage_publication(turn.now, key, &self.log, publication);
        }
        self.log.assign(turn.now, key);
        Ok(StagedBody {
            at: turn.now,
            key,
            data,
            before,
        })
    }

    /// Writes what is staged, then tells everybody; or, where it has to be synced
    /// first, says so to the turn.
    pub(crate) fn commit(&mut self, turn: &mut Turn) {
        let outcome = match &mut self.journal {
            Some(journal) if journal.has_staged() => journal.commit(),
            // Copies only; they wait for what has been written before.
            Some(_) if self.written > 0 => Ok(Committed::Unsynced),
            Some(_) | None => Ok(Committed::Written),
        };
        match outcome {
            Ok(Committed::Written) => self.join(turn, self.staged.len()),
            Ok(Committed::Unsynced) => {
                self.written = self.staged.len();
                turn.needs_sync(self.id);
            }
            Err(error) => self.refuse(turn, &error),
        }
        self.tidy();
    }

    /// Lets the first `count` of what is staged join the log.
    fn join(&mut self, turn: &mut Turn, count: usize) {
        let mut answers = Answers::default();
        for _ in 0..count {
            let Some(staged) = self.staged.pop_front() else {
                break;
            };
            if let Some(body) = staged.body {
                let data = body.data.clone();
                let offset = self
                    .log
                    .append(body.at.into(), turn.now, body.key, body.data);
                turn.publications += 1;
                turn.note_joined(|| self.joined(body.key, data.clone()));
                self.relay(turn, body.key, offset, &data);
            }
            answers.add(turn, staged.link, staged.seq, Ok(()));
        }
        answers.flush(turn);
        self.written = self.written.saturating_sub(count);
        give_back_room(&mut self.staged);
    }

    fn joined(&self, key: ChannelKey, data: Option<Bytes>) -> Joined {
        Joined {
            shard: self.id,
            epoch: self.epoch,
            channel: self.log.name(key).clone(),
            position: self.log.head(key),
            data,
        }
    }

    /// Answers what is staged and could not be written. Neither its offsets nor
    /// its keys are used.
    fn refuse(&mut self, turn: &mut Turn, error: &CommitError) {
        let reason = match error {
            CommitError::Full | CommitError::Write { .. } => RefusalReason::JournalFailed,
            CommitError::Truncate { .. } => RefusalReason::OutcomeUnknown,
        };
        let refused = self.staged.split_off(self.written);
        self.answer_refused(turn, refused, reason);
    }

    fn answer_refused(
        &mut self,
        turn: &mut Turn,
        refused: VecDeque<Staged>,
        reason: RefusalReason,
    ) {
        let takes_back = self.journal.as_ref().is_none_or(Journal::takes_back);
        for staged in refused.iter().rev() {
            if let Some(body) = &staged.body {
                if takes_back {
                    self.log.take_back(body.key);
                }
                self.log.keys_mut().restore(&staged.producer, body.before);
            }
        }
        // All of them before anything is noted, which is about later copies.
        let keys = self.log.keys();
        let outcomes: Vec<_> = refused
            .iter()
            .map(|staged| match keys.knows(&staged.producer, staged.n) {
                // A copy may be of one that is in the log.
                Known::Yes if staged.body.is_none() => Ok(()),
                Known::Yes | Known::No => Err(reason),
                Known::Perhaps => Err(RefusalReason::OutcomeUnknown),
            })
            .collect();
        let mut answers = Answers::default();
        for (staged, outcome) in refused.into_iter().zip(outcomes) {
            if outcome.is_err() {
                let keys = self.log.keys_mut();
                keys.note_refused(&staged.producer, staged.n);
            }
            answers.add(turn, staged.link, staged.seq, outcome);
        }
        answers.flush(turn);
    }

    /// Begins a sync of what is written, if there is something and no other one
    /// goes on. [`Self::end_sync`] must follow.
    pub(crate) fn begin_sync(&mut self) -> Option<Unsynced> {
        let journal = self.journal.as_mut()?;
        if self.syncing.is_some() {
            return None;
        }
        let unsynced = journal.take_unsynced();
        if unsynced.is_empty() && self.written == 0 {
            return None;
        }
        self.syncing = Some(self.written);
        Some(unsynced)
    }

    /// The sync has ended: what it covers joins the log, or nothing more does
    /// until the shard is opened again.
    pub(crate) fn end_sync(&mut self, turn: &mut Turn, outcome: &io::Result<()>) {
        let (Some(covered), Some(journal)) = (self.syncing.take(), &mut self.journal) else {
            return;
        };
        match outcome {
            Ok(()) => {
                journal.remove_outdated();
                self.join(turn, covered);
            }
            Err(error) => {
                journal.break_off(error);
                let refused = std::mem::take(&mut self.staged);
                self.written = 0;
                self.answer_refused(turn, refused, RefusalReason::OutcomeUnknown);
            }
        }
    }

    /// Closes it: another broker will go on. What is staged is refused in a way
    /// that makes the workers send it there.
    pub(crate) fn close(mut self, turn: &mut Turn) {
        let mut answers = Answers::default();
        for staged in self.staged.drain(..) {
            let outcome = Err(RefusalReason::WrongEpoch);
            answers.add(turn, staged.link, staged.seq, outcome);
        }
        answers.flush(turn);
        if let Some(journal) = self.journal.take() {
            journal.close();
        }
    }

    fn tidy(&mut self) {
        if let Some(journal) = &mut self.journal
            && !journal.has_staged()
        {
            let were_cut = journal.histories_max().is_some_and(|bytes_max| {
                let bytes_max = usize::try_from(bytes_max).unwrap_or(usize::MAX);
                self.log.cut_histories(bytes_max)
            });
            journal.tidy(&self.log, self.staged.len(), were_cut);
        }
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
        if self.journal.as_ref().is_some_and(Journal::has_staged) {
            turn.touch(self.id);
        }
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
        self.log.load(key, subscriber.sent);
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

    /// The housekeeping of a quiet moment, due about once a second: lets go of
    /// what is old and of idle channels.
    pub(crate) fn sweep(&mut self, now: Millis) {
        self.log.trim(now);
        let subscribers = &mut self.subscribers;
        let forgotten = self.log.forget_idle(now, |key| {
            subscribers.get(key.index()).is_none_or(Vec::is_empty)
        });
        self.channel_count.give_back(forgotten);
        if let Some(journal) = &mut self.journal {
            journal.heal();
        }
        self.tidy();
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

    /// What is kept beyond the tails.
    pub(crate) fn histories(&self) -> &Histories {
        self.log.histories()
    }

    /// The channel's key; `None` if it is new and there are too many.
    fn channel(&mut self, now: Millis, rng: &mut impl Rng, name: &[u8]) -> Option<ChannelKey> {
        if let Some(key) = self.log.find(name) {
            return Some(key);
        }
        if !self.channel_count.take() {
            return None;
        }
        let key = self.log.begin(now, name, rng.next_u64());
        if let Some(journal) = &mut self.journal {
            journal.stage_channel(key, &self.log);
        }
        Some(key)
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

#[cfg(test)]
mod tests;

//! One link: its credit, what waits to be sent on it, and why it ended.
//!
//! What a link subscribes to stands in the shards and nowhere else. Here stand
//! the frames on their way out and, for a link that has fallen behind, the
//! channels it has to go on with from the log (delivery.md B5).

use std::{
    collections::{HashSet, VecDeque},
    mem,
    sync::{Mutex, MutexGuard, PoisonError},
    task::Waker,
    time::Duration,
};

use bytes::Bytes;
use muster_proto::{
    BATCH_BYTES_MAX, ShardId,
    link::{
        Ack, BrokerBatch, BrokerFrame, NotOwner, Position, Refusal, RefusalReason, Relay,
        Subscribe, Subscribed, broker_frame::Frame,
    },
};
use muster_wire::Millis;

use crate::{error::LinkError, room::give_back_room, turn::Turn};

/// Encoded relays waiting on one link beyond which it goes on from the log.
/// Bounds what many publications without data can fill, which use no credit.
const RELAY_BYTES_MAX: usize = 8 << 20;
/// Answers waiting on one link beyond which no more is read from it.
const ANSWER_BYTES_MAX: usize = 4 << 20;
/// A link that has something to get and makes no progress for this long is cut.
const STUCK_AFTER: Duration = Duration::from_secs(10);

/// Frames of a batch for which there is room from the start.
const BATCH_FRAMES_USUAL: usize = 512;
/// What a frame needs on the wire beside channel and data, at most.
const FRAME_OVERHEAD_BYTES: usize = 48;

/// A link, shared by its streams and the shards it subscribes to.
///
/// No guard leaves this type, and whoever holds a shard may call it, so it
/// never calls a shard.
#[derive(Debug)]
pub(crate) struct Link {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Bytes of data that may be relayed; below zero after the last of it was
    /// exceeded.
    credit: i64,
    /// Answers to publications, which need not wait behind relays.
    answers: VecDeque<Answer>,
    /// Number of the first publication without an answer.
    next_answer: u64,
    /// What is known of that and later ones; empty as long as all are answered
    /// in order.
    early: VecDeque<Option<Result<(), RefusalReason>>>,
    /// Everything whose order matters.
    frames: VecDeque<BrokerFrame>,
    relay_bytes: usize,
    answer_bytes: usize,
    /// Channels to go on with from the log, each once, the next one first.
    behind: VecDeque<(ShardId, Bytes)>,
    behind_names: HashSet<Bytes>,
    /// When something was last sent or came in; or when there first was
    /// something to get.
    progress_at: Millis,
    end: Option<LinkEnd>,
    sender: Option<Waker>,
    /// The reading side waits until fewer answers do.
    paused: bool,
    readers: Vec<Waker>,
}

/// Why a link ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LinkEnd {
    /// The worker has ended it, or is gone.
    Finished,
    Failed(LinkError),
}

/// What became of a publication offered to a link.
#[must_use]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Offer {
    Accepted,
    /// No credit or no room: the link has noted the channel, and goes on from
    /// the log.
    Behind,
    Gone,
}

/// An answer to a publication.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Ack { first_seq: u64, last_seq: u64 },
    Refusal { seq: u64, reason: RefusalReason },
}

/// What the sending side of a link has to do next.
#[derive(Debug, PartialEq)]
pub(crate) enum Step {
    Send(BrokerBatch),
    /// Ask this shard to go on with this channel.
    Resume(ShardId, Bytes),
    /// Nothing until the waker is woken.
    Wait,
    End(LinkEnd),
}

/// Whether the reading side of a link may read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gate {
    Open,
    /// Too many answers wait, until the waker is woken.
    Paused,
    Ended,
}

impl Link {
    pub(crate) fn new(now: Millis) -> Self {
        Self {
            state: Mutex::new(State {
                credit: 0,
                answers: VecDeque::new(),
                next_answer: 1,
                early: VecDeque::new(),
                frames: VecDeque::new(),
                relay_bytes: 0,
                answer_bytes: 0,
                behind: VecDeque::new(),
                behind_names: HashSet::new(),
                progress_at: now,
                end: None,
                sender: None,
                paused: false,
                readers: Vec::new(),
            }),
        }
    }

    /// Offers one new publication.
    pub(crate) fn relay(
        &self,
        turn: &mut Turn,
        shard: ShardId,
        channel: &Bytes,
        offset: u64,
        data: &Option<Bytes>,
    ) -> Offer {
        let mut state = self.lock();
        if state.end.is_some() {
            return Offer::Gone;
        }
        // Where others wait for credit already, this channel queues up with them.
        if !state.behind.is_empty() || !state.has_room() {
            state.fall_behind(turn.now, shard, channel);
            return Offer::Behind;
        }
        state.push_relay(turn.now, channel, offset, data.as_ref());
        turn.relayed += 1;
        turn.wake(state.sender.take());
        Offer::Accepted
    }

    /// Relays what `publications` yields, while there is credit and until
    /// about `bytes_max` bytes of data were taken; returns the last offset.
    pub(crate) fn catch_up<'a>(
        &self,
        turn: &mut Turn,
        channel: &Bytes,
        bytes_max: usize,
        publications: impl Iterator<Item = (u64, Option<&'a Bytes>)>,
    ) -> Option<u64> {
        let mut state = self.lock();
        let mut last_offset = None;
        let mut bytes = 0;
        for (offset, data) in publications {
            if bytes >= bytes_max || !state.has_room() {
                break;
            }
            state.push_relay(turn.now, channel, offset, data);
            turn.relayed += 1;
            bytes += channel.len() + data.map_or(0, Bytes::len) + FRAME_OVERHEAD_BYTES;
            last_offset = Some(offset);
        }
        turn.wake(state.sender.take());
        last_offset
    }

    /// Notes that the link has to go on with this channel from the log.
    pub(crate) fn fall_behind(&self, turn: &mut Turn, shard: ShardId, channel: &Bytes) {
        let mut state = self.lock();
        state.fall_behind(turn.now, shard, channel);
        turn.wake(state.sender.take());
    }

    pub(crate) fn subscribed(
        &self,
        turn: &mut Turn,
        channel: &Bytes,
        position: Position,
        recovered: bool,
        request: u64,
    ) {
        let frame = Frame::Subscribed(Subscribed {
            channel: channel.clone(),
            position: Some(position),
            recovered,
            request,
        });
        self.push_answer_frame(turn, channel.len(), frame);
    }

    /// Says that the channel is not subscribed to here; `reason` is unspecified
    /// when its shard is not open.
    pub(crate) fn not_owner(&self, turn: &mut Turn, subscribe: &Subscribe, reason: RefusalReason) {
        let frame = Frame::NotOwner(NotOwner {
            channel: Bytes::copy_from_slice(&subscribe.channel),
            reason: reason.into(),
            request: subscribe.request,
        });
        self.push_answer_frame(turn, subscribe.channel.len(), frame);
    }

    /// Answers `count` publications from `first_seq` on. They may be answered in
    /// any order and are told to the worker in theirs.
    pub(crate) fn settle(
        &self,
        turn: &mut Turn,
        first_seq: u64,
        count: u64,
        outcome: Result<(), RefusalReason>,
    ) {
        let mut state = self.lock();
        if state.end.is_some() {
            return;
        }
        state.note_first(turn.now);
        if first_seq == state.next_answer && state.early.is_empty() {
            state.push_answers(first_seq, count, outcome);
        } else {
            state.settle_early(first_seq, count, outcome);
        }
        if !state.answers.is_empty() {
            turn.wake(state.sender.take());
        }
    }

    /// Adds credit, in bytes of data.
    pub(crate) fn add_credit(&self, turn: &mut Turn, bytes: u64) {
        let mut state = self.lock();
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        state.credit = state.credit.saturating_add(bytes);
        if bytes > 0 {
            state.progress_at = turn.now;
        }
        if !state.behind.is_empty() {
            turn.wake(state.sender.take());
        }
    }

    /// Ends the link; only the first reason counts, and is returned.
    pub(crate) fn end(&self, turn: &mut Turn, end: LinkEnd) -> LinkEnd {
        let mut state = self.lock();
        let end = state.end.get_or_insert(end).clone();
        if matches!(end, LinkEnd::Failed(_)) {
            state.frames = VecDeque::new();
            state.answers = VecDeque::new();
            state.early = VecDeque::new();
        }
        state.behind = VecDeque::new();
        state.behind_names = HashSet::new();
        turn.wake(state.sender.take());
        for reader in mem::take(&mut state.readers) {
            turn.wake(Some(reader));
        }
        end
    }

    /// What the sending side has to do next; `waker` is woken after `Wait`.
    pub(crate) fn next_step(&self, now: Millis, waker: &Waker) -> Step {
        let mut state = self.lock();
        state.sender = None; // It is awake.
        if let Some(end @ LinkEnd::Failed(_)) = &state.end {
            return Step::End(end.clone());
        }
        // First the log, while a batch has room, so that batches are full.
        if state.has_room()
            && state.relay_bytes < BATCH_BYTES_MAX
            && let Some((shard, channel)) = state.behind.pop_front()
        {
            state.behind_names.remove(&channel);
            give_back_room(&mut state.behind);
            return Step::Resume(shard, channel);
        }
        if let Some(batch) = state.take_batch() {
            state.progress_at = now;
            if state.paused && state.answer_bytes <= ANSWER_BYTES_MAX {
                state.paused = false;
                mem::take(&mut state.readers)
                    .into_iter()
                    .for_each(Waker::wake);
            }
            return Step::Send(batch);
        }
        if let Some(end) = &state.end {
            return Step::End(end.clone());
        }
        state.sender = Some(waker.clone());
        Step::Wait
    }

    /// Whether the reading side may read; `waker` is woken when that changes.
    pub(crate) fn gate(&self, waker: &Waker) -> Gate {
        let mut state = self.lock();
        if state.end.is_some() {
            return Gate::Ended;
        }
        if !state.readers.iter().any(|reader| reader.will_wake(waker)) {
            state.readers.push(waker.clone());
        }
        state.paused = state.answer_bytes > ANSWER_BYTES_MAX;
        if state.paused {
            Gate::Paused
        } else {
            Gate::Open
        }
    }

    /// Whether the link has had something to get for [`STUCK_AFTER`] without
    /// any progress.
    pub(crate) fn is_stuck(&self, now: Millis) -> bool {
        let state = self.lock();
        state.has_something() && now.since(state.progress_at) >= STUCK_AFTER
    }

    fn push_answer_frame(&self, turn: &mut Turn, channel_len: usize, frame: Frame) {
        let mut state = self.lock();
        if state.end.is_some() {
            return;
        }
        state.note_first(turn.now);
        state.answer_bytes += channel_len + FRAME_OVERHEAD_BYTES;
        state.frames.push_back(BrokerFrame { frame: Some(frame) });
        turn.wake(state.sender.take());
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every method leaves the state whole, so a panic elsewhere is no reason
        // to stop serving this link.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn has_room(&self) -> bool {
        self.credit > 0 && self.relay_bytes < RELAY_BYTES_MAX
    }

    fn has_something(&self) -> bool {
        !(self.answers.is_empty() && self.frames.is_empty() && self.behind.is_empty())
    }

    /// To be called before there is something to get.
    fn note_first(&mut self, now: Millis) {
        if !self.has_something() {
            self.progress_at = now;
        }
    }

    fn push_relay(&mut self, now: Millis, channel: &Bytes, offset: u64, data: Option<&Bytes>) {
        self.note_first(now);
        let data_len = data.map_or(0, Bytes::len);
        self.credit -= i64::try_from(data_len).unwrap_or(i64::MAX);
        let relay = Relay {
            channel: channel.clone(),
            offset,
            data: data.cloned(),
        };
        let frame = BrokerFrame {
            frame: Some(Frame::Relay(relay)),
        };
        self.relay_bytes += bytes_max(&frame);
        self.frames.push_back(frame);
    }

    fn fall_behind(&mut self, now: Millis, shard: ShardId, channel: &Bytes) {
        if self.end.is_none() && !self.behind_names.contains(channel) {
            self.note_first(now);
            self.behind_names.insert(channel.clone());
            self.behind.push_back((shard, channel.clone()));
        }
    }

    fn push_answers(&mut self, first_seq: u64, count: u64, outcome: Result<(), RefusalReason>) {
        let last_seq = first_seq + count - 1;
        self.next_answer = last_seq + 1;
        let Err(reason) = outcome else {
            self.push_answer(Answer::Ack {
                first_seq,
                last_seq,
            });
            return;
        };
        for seq in first_seq..=last_seq {
            self.push_answer(Answer::Refusal { seq, reason });
        }
    }

    fn push_answer(&mut self, answer: Answer) {
        let last = self.answers.back_mut();
        match last.and_then(|last| Some((last.merged_with(answer)?, last))) {
            Some((both, last)) => *last = both,
            None => {
                self.answer_bytes += FRAME_OVERHEAD_BYTES;
                self.answers.push_back(answer);
            }
        }
    }

    /// Notes an answer that may have to wait for earlier ones.
    fn settle_early(&mut self, first_seq: u64, count: u64, outcome: Result<(), RefusalReason>) {
        debug_assert!(first_seq >= self.next_answer, "each is answered once");
        let start = usize::try_from(first_seq - self.next_answer).unwrap_or(usize::MAX);
        let end = start + usize::try_from(count).unwrap_or(usize::MAX);
        if self.early.len() < end {
            self.early.resize(end, None);
        }
        self.early
            .range_mut(start..end)
            .for_each(|place| *place = Some(outcome));
        while let Some(Some(outcome)) = self.early.front().copied() {
            self.early.pop_front();
            self.push_answers(self.next_answer, 1, outcome);
        }
        give_back_room(&mut self.early);
    }

    /// At most [`BATCH_BYTES_MAX`] bytes, or one frame; the answers first.
    fn take_batch(&mut self) -> Option<BrokerBatch> {
        let waiting = self.answers.len() + self.frames.len();
        let mut frames = Vec::with_capacity(waiting.min(BATCH_FRAMES_USUAL));
        let mut room = BATCH_BYTES_MAX;
        while room >= FRAME_OVERHEAD_BYTES
            && let Some(answer) = self.take_answer()
        {
            room -= FRAME_OVERHEAD_BYTES;
            frames.push(answer);
        }
        while let Some(frame) = self.frames.front() {
            let bytes = bytes_max(frame);
            if bytes > room && !frames.is_empty() {
                break;
            }
            room = room.saturating_sub(bytes);
            if matches!(frame.frame, Some(Frame::Relay(_))) {
                self.relay_bytes -= bytes;
            } else {
                self.answer_bytes -= bytes;
            }
            frames.extend(self.frames.pop_front());
        }
        give_back_room(&mut self.answers);
        give_back_room(&mut self.frames);
        (!frames.is_empty()).then_some(BrokerBatch { frames })
    }

    fn take_answer(&mut self) -> Option<BrokerFrame> {
        let answer = self.answers.pop_front()?;
        self.answer_bytes -= FRAME_OVERHEAD_BYTES;
        Some(answer.into_frame())
    }
}

impl Answer {
    /// One ack for both, where they are acks that follow each other.
    fn merged_with(self, next: Self) -> Option<Self> {
        match (self, next) {
            (
                Self::Ack {
                    first_seq,
                    last_seq,
                },
                Self::Ack {
                    first_seq: next_first,
                    last_seq: next_last,
                },
            ) if last_seq + 1 == next_first => Some(Self::Ack {
                first_seq,
                last_seq: next_last,
            }),
            (Self::Ack { .. } | Self::Refusal { .. }, _) => None,
        }
    }

    fn into_frame(self) -> BrokerFrame {
        let frame = match self {
            Self::Ack {
                first_seq,
                last_seq,
            } => Frame::Ack(Ack {
                first_seq,
                last_seq,
            }),
            Self::Refusal { seq, reason } => Frame::Refusal(Refusal {
                seq,
                reason: reason.into(),
            }),
        };
        BrokerFrame { frame: Some(frame) }
    }
}

/// What the frame needs in a batch, at most.
fn bytes_max(frame: &BrokerFrame) -> usize {
    let variable = match &frame.frame {
        Some(Frame::Relay(relay)) => {
            relay.channel.len() + relay.data.as_ref().map_or(0, Bytes::len)
        }
        Some(Frame::Subscribed(subscribed)) => subscribed.channel.len(),
        Some(Frame::NotOwner(not_owner)) => not_owner.channel.len(),
        Some(Frame::Ack(_) | Frame::Refusal(_)) | None => 0,
    };
    variable + FRAME_OVERHEAD_BYTES
}

#[cfg(test)]
mod tests;

//! Brings publications to their owners (hop 3, route). Pure: frames for the
//! links and answers for the publishers are taken from it after each event.
//!
//! Publications wait per shard, in order, until their owner has acked them, and
//! are sent again in that order after whatever happened to the link or the view
//! (delivery.md A).

mod hand_over;
mod shard_queue;
mod simulation;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use bytes::Bytes;
use muster_proto::{
    BrokerNode, ShardId, View,
    link::{
        self, Publish, RefusalReason, Subscribe, Unsubscribe, WorkerBatch, WorkerFrame,
        worker_frame::Frame,
    },
    shard_of,
};
use muster_wire::{CallId, ChannelName, Millis, answer::CallError, session::SessionId};

use self::shard_queue::ShardQueue;
use crate::{channels::Position, connection::ConnectionKey};

/// Bytes of one batch, or one frame if that is longer (delivery.md F4).
const BATCH_BYTES_MAX: usize = 64 * 1024;
/// Bytes of publications on the wire beyond which the rest waits its turn.
const OUT_BYTES_MAX: usize = 2 * BATCH_BYTES_MAX;
/// Bytes of requests for one broker beyond which clients that make more of them
/// are not read.
const REQUEST_BYTES_MAX: usize = 1024 * 1024;
/// Bytes a frame takes beside its strings.
const FRAME_OVERHEAD_BYTES: usize = 64;
/// How long a shard rests after its owner refused an epoch, unless a new view
/// comes before.
const EPOCH_RETRY: Duration = Duration::from_millis(50);

/// A publication on its way to the owner.
#[derive(Debug)]
pub(crate) struct Publication {
    pub(crate) channel: ChannelName,
    pub(crate) data: Option<Bytes>,
    /// Who numbers it (delivery.md A1): a client's session, or the id under
    /// which this worker publishes for operators.
    pub(crate) producer: SessionId,
    pub(crate) n: u64,
    pub(crate) waiter: Option<Waiter>,
    pub(crate) accepted: Millis,
}

impl Publication {
    fn bytes(&self) -> usize {
        FRAME_OVERHEAD_BYTES + self.channel.len() + self.data.as_ref().map_or(0, Bytes::len)
    }
}

/// Who waits for the answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Waiter {
    Client(Call),
    /// An operator, by the id of his query.
    Operator(u64),
}

/// The call a client's publication came with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) connection: ConnectionKey,
    pub(crate) cid: CallId,
}

/// What became of a publication whose publisher wants to know.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) waiter: Waiter,
    pub(crate) result: Result<(), CallError>,
}

/// A broker that breaks the link's protocol; the link must be made anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("broker {broker} answered publication {seq}, expected {expected}")]
pub(crate) struct LinkBroken {
    broker: u32,
    seq: u64,
    expected: u64,
}

/// What a new view means for links and subscriptions.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct ViewChange {
    /// Links to brokers that are new, or new incarnations.
    pub(crate) started: Vec<BrokerNode>,
    /// Brokers whose link has no purpose any more.
    pub(crate) stopped: Vec<u32>,
    /// Shards that are open elsewhere, or anew.
    pub(crate) moved: Vec<ShardId>,
}

#[derive(Debug)]
pub(crate) struct Router {
    view: View,
    links: BTreeMap<u32, Link>,
    shards: Vec<ShardQueue>,
    /// Bytes of publications whose shard has no owner.
    unowned_bytes: usize,
    answers: Vec<Answer>,
    window_bytes: usize,
    publish_timeout: Duration,
}

/// This worker's link to one broker.
#[derive(Debug)]
struct Link {
    node: BrokerNode,
    is_up: bool,
    /// The number of the first entry of `in_flight`.
    first_seq: u64,
    in_flight: VecDeque<InFlight>,
    /// Only a little is put on the wire ahead: what a broker does not take stays
    /// in its shard's queue, where it can time out.
    out: VecDeque<Queued>,
    out_bytes: usize,
    /// Publications wait for `out` to become shorter.
    is_starved: bool,
    /// Bytes of all publications kept for this broker, sent or not.
    kept_bytes: usize,
}

/// A frame that waits until its link has room.
#[derive(Debug)]
struct Queued {
    frame: WorkerFrame,
    /// If it is a publication: when that was accepted. How old it is counts when
    /// it leaves (delivery.md A2).
    accepted: Option<Millis>,
}

/// A publication on the wire, by number.
#[derive(Debug)]
struct InFlight {
    shard: ShardId,
    id: u64,
    attempt: u32,
}

impl Router {
    pub(crate) fn new(window_bytes: usize, publish_timeout: Duration) -> Self {
        Self {
            view: View::default(),
            links: BTreeMap::new(),
            shards: std::iter::repeat_with(ShardQueue::default)
                .take(muster_proto::SHARDS)
                .collect(),
            unowned_bytes: 0,
            answers: Vec::new(),
            window_bytes,
            publish_timeout,
        }
    }

    pub(crate) fn view(&self) -> &View {
        &self.view
    }

    /// Links that stand.
    pub(crate) fn links_up(&self) -> usize {
        self.links.values().filter(|link| link.is_up).count()
    }

    /// Whether every broker of the view can be reached.
    pub(crate) fn is_whole(&self) -> bool {
        !self.links.is_empty() && self.links.values().all(|link| link.is_up)
    }

    /// Takes over a view; older ones than the present are ignored.
    pub(crate) fn set_view(&mut self, view: View) -> ViewChange {
        let mut change = ViewChange::default();
        if view.epoch() <= self.view.epoch() {
            return change;
        }
        for node in view.brokers() {
            let known = self
                .links
                .get(&node.slot)
                .is_some_and(|link| link.node == *node);
            if !known {
                self.links.insert(node.slot, Link::new(node.clone()));
                change.started.push(node.clone());
            }
        }
        self.links.retain(|slot, _| {
            let is_wanted = view.brokers().iter().any(|node| node.slot == *slot);
            if !is_wanted {
                change.stopped.push(*slot);
            }
            is_wanted
        });
        for shard in ShardId::all() {
            if view.shard_epoch(shard) != self.view.shard_epoch(shard) {
                self.shards[shard.index()].rewind();
                change.moved.push(shard);
            }
        }
        self.view = view;
        self.count_kept_bytes();
        change
    }

    /// A link stands. What the worker wants of it is to be subscribed to next,
    /// then [`Self::send_all`] sends what is not acked, in order. Returns false
    /// if the view has moved on meanwhile.
    #[must_use]
    pub(crate) fn link_up(&mut self, broker: u32, incarnation: u64) -> bool {
        let Some(link) = self.links.get_mut(&broker) else {
            return false;
        };
        if link.node.incarnation != incarnation {
            return false;
        }
        *link = Link {
            is_up: true,
            kept_bytes: link.kept_bytes,
            ..Link::new(link.node.clone())
        };
        for shard in self.shards_of(broker) {
            self.shards[shard.index()].rewind();
        }
        true
    }

    /// A link broke: everything not acked will be sent again.
    pub(crate) fn link_down(&mut self, broker: u32) {
        if let Some(link) = self.links.get_mut(&broker) {
            *link = Link {
                kept_bytes: link.kept_bytes,
                ..Link::new(link.node.clone())
            };
        }
        for shard in self.shards_of(broker) {
            self.shards[shard.index()].rewind();
        }
    }

    /// Asks the owner for a channel, if it can be reached; otherwise that is to
    /// be done again once its link stands.
    ///
    /// A subscription may overtake publications that wait: nobody can tell.
    pub(crate) fn subscribe(
        &mut self,
        channel: &ChannelName,
        request: u64,
        after: Option<Position>,
    ) {
        let after = after.map(link::Position::from);
        let shard = shard_of(&**channel);
        let shard_epoch = self.view.shard_epoch(shard);
        let attempt = self.shards[shard.index()].attempt();
        self.tell_owner(channel, |channel| {
            Frame::Subscribe(Subscribe {
                channel,
                after,
                shard_epoch,
                request,
                attempt,
            })
        });
    }

    pub(crate) fn unsubscribe(&mut self, channel: &ChannelName) {
        self.tell_owner(channel, |channel| {
            Frame::Unsubscribe(Unsubscribe { channel })
        });
    }

    /// Keeps a publication until its owner has acked it. There is always a
    /// place for it; afterwards [`Self::has_room`] says whether its publisher
    /// may go on.
    pub(crate) fn publish(&mut self, publication: Publication) {
        let shard = shard_of(&*publication.channel);
        let bytes = publication.bytes();
        *self.kept_bytes(shard) += bytes;
        self.shards[shard.index()].push(publication);
        self.send(shard);
    }

    /// Whether more may be asked of the shard's owner now (delivery.md A6).
    pub(crate) fn has_room(&self, shard: ShardId) -> bool {
        let owner = self.view.owner(shard);
        match owner.and_then(|owner| self.links.get(&owner.slot)) {
            Some(link) => link.kept_bytes < self.window_bytes && link.out_bytes < REQUEST_BYTES_MAX,
            None => self.unowned_bytes < self.window_bytes,
        }
    }

    /// Whether `broker` is the owner of `shard`.
    pub(crate) fn is_owner(&self, broker: u32, shard: ShardId) -> bool {
        self.view
            .owner(shard)
            .is_some_and(|owner| owner.slot == broker)
    }

    /// The owner has the link's publications `first..=last`.
    pub(crate) fn ack(&mut self, broker: u32, first: u64, last: u64) -> Result<(), LinkBroken> {
        for seq in first..=last {
            let sent = self.answered(broker, seq)?;
            if let Some(publication) = self.shards[sent.shard.index()].take_answered(sent.id) {
                self.settle(sent.shard, publication, Ok(()));
            }
        }
        Ok(())
    }

    /// The owner will not take a publication of this link, or not yet.
    pub(crate) fn refusal(
        &mut self,
        broker: u32,
        seq: u64,
        reason: RefusalReason,
        now: Millis,
    ) -> Result<(), LinkBroken> {
        let sent = self.answered(broker, seq)?;
        let queue = &mut self.shards[sent.shard.index()];
        let error = match reason {
            RefusalReason::WrongEpoch | RefusalReason::Unspecified => {
                queue.hold(sent.attempt, now + EPOCH_RETRY);
                return Ok(());
            }
            RefusalReason::Expired | RefusalReason::OutcomeUnknown => CallError::outcome_unknown(),
            RefusalReason::JournalFailed => {
                CallError::not_published("The channel's journal cannot be written")
            }
            RefusalReason::LogFull => CallError::not_published("The channel's log is full"),
            RefusalReason::ChannelsFull => {
                CallError::not_published("The cluster has as many channels as it may have")
            }
            RefusalReason::Malformed => {
                CallError::not_published("The channel's owner did not understand the publication")
            }
        };
        if let Some(publication) = queue.take_answered(sent.id) {
            self.settle(sent.shard, publication, Err(error));
        }
        Ok(())
    }

    /// The owner refused a subscription for its epoch: publications wait until
    /// [`Self::release`], and it is to be asked for again before them.
    pub(crate) fn hold(&mut self, shard: ShardId, now: Millis) {
        let queue = &mut self.shards[shard.index()];
        if !queue.is_held() {
            queue.hold(queue.attempt(), now + EPOCH_RETRY);
        }
    }

    /// The shards that have rested and may be sent to again. What is wanted of
    /// them comes first (delivery.md A4), then [`Self::handle_tick`].
    pub(crate) fn release(&mut self, now: Millis) -> Vec<ShardId> {
        ShardId::all()
            .filter(|shard| self.shards[shard.index()].release(now))
            .collect()
    }

    /// Whether something rests until [`Self::release`].
    pub(crate) fn is_holding(&self) -> bool {
        ShardId::all().any(|shard| self.shards[shard.index()].is_held())
    }

    /// Gives up what has waited too long, and sends what has rested.
    pub(crate) fn handle_tick(&mut self, now: Millis) {
        for shard in ShardId::all() {
            while let Some(publication) =
                self.shards[shard.index()].take_older_than(now - self.publish_timeout)
            {
                self.settle(shard, publication, Err(CallError::outcome_unknown()));
            }
            self.send(shard);
        }
    }

    /// After a new view: whatever can go out goes out.
    pub(crate) fn send_all(&mut self) {
        for shard in ShardId::all() {
            self.send(shard);
        }
    }

    /// What publishers are to be told.
    pub(crate) fn take_answers(&mut self) -> Vec<Answer> {
        std::mem::take(&mut self.answers)
    }

    /// The brokers for which something is queued.
    pub(crate) fn pending_links(&self) -> impl Iterator<Item = u32> + '_ {
        self.links
            .iter()
            .filter(|(_, link)| !link.out.is_empty())
            .map(|(slot, _)| *slot)
    }

    /// The next batch for a broker; `None` when nothing is queued.
    pub(crate) fn next_batch(&mut self, broker: u32, now: Millis) -> Option<WorkerBatch> {
        let link = self.links.get_mut(&broker)?;
        let mut frames = Vec::with_capacity(link.out.len().min(256));
        let mut bytes = 0;
        while let Some(queued) = link.out.front() {
            let next = bytes + frame_bytes(&queued.frame);
            if next > BATCH_BYTES_MAX && !frames.is_empty() {
                break;
            }
            bytes = next;
            frames.extend(link.out.pop_front().map(|queued| queued.leave(now)));
        }
        link.out_bytes -= bytes;
        (!frames.is_empty()).then_some(WorkerBatch { frames })
    }

    /// Queues for a broker what waited until it had taken what was queued.
    pub(crate) fn refill(&mut self, broker: u32) {
        let Some(link) = self.links.get_mut(&broker) else {
            return;
        };
        if link.is_starved && link.out_bytes < BATCH_BYTES_MAX {
            link.is_starved = false;
            for shard in self.shards_of(broker) {
                self.send(shard);
            }
        }
    }

    fn shards_of(&self, broker: u32) -> Vec<ShardId> {
        let is_its = |shard: &ShardId| {
            self.view
                .owner(*shard)
                .is_some_and(|node| node.slot == broker)
        };
        ShardId::all().filter(is_its).collect()
    }

    fn tell_owner(&mut self, channel: &ChannelName, frame: impl FnOnce(Bytes) -> Frame) {
        let owner = self.view.owner(shard_of(&**channel)).map(|node| node.slot);
        if let Some(link) = owner.and_then(|slot| self.links.get_mut(&slot))
            && link.is_up
        {
            let channel = Bytes::copy_from_slice(channel.as_bytes());
            link.push(frame(channel), None);
        }
    }

    /// Sends what a shard has to send, if its owner can be reached.
    fn send(&mut self, shard: ShardId) {
        let queue = &mut self.shards[shard.index()];
        if !queue.is_sendable() {
            return;
        }
        let owner = self.view.owner(shard).map(|node| node.slot);
        let Some(link) = owner.and_then(|slot| self.links.get_mut(&slot)) else {
            return;
        };
        if !link.is_up {
            return;
        }
        let shard_epoch = self.view.shard_epoch(shard);
        let attempt = queue.attempt();
        loop {
            if link.out_bytes >= OUT_BYTES_MAX {
                link.is_starved = true;
                break;
            }
            let Some((id, publication)) = queue.send_next() else {
                break;
            };
            let publish = Publish {
                seq: link.first_seq + link.in_flight.len() as u64,
                channel: Bytes::copy_from_slice(publication.channel.as_bytes()),
                data: publication.data.clone(),
                producer: Bytes::copy_from_slice(publication.producer.as_str().as_bytes()),
                n: publication.n,
                shard_epoch,
                age_ms: 0,
                attempt,
            };
            link.in_flight.push_back(InFlight { shard, id, attempt });
            link.push(Frame::Publish(publish), Some(publication.accepted));
        }
    }

    /// The publication that `seq` was, which must be the next to be answered.
    fn answered(&mut self, broker: u32, seq: u64) -> Result<InFlight, LinkBroken> {
        let Some(link) = self.links.get_mut(&broker) else {
            return Err(LinkBroken {
                broker,
                seq,
                expected: 0,
            });
        };
        let expected = link.first_seq;
        if seq == expected
            && let Some(sent) = link.in_flight.pop_front()
        {
            link.first_seq += 1;
            return Ok(sent);
        }
        Err(LinkBroken {
            broker,
            seq,
            expected,
        })
    }

    fn settle(&mut self, shard: ShardId, publication: Publication, result: Result<(), CallError>) {
        *self.kept_bytes(shard) -= publication.bytes();
        if let Some(waiter) = publication.waiter {
            self.answers.push(Answer { waiter, result });
        }
    }

    fn kept_bytes(&mut self, shard: ShardId) -> &mut usize {
        let owner = self.view.owner(shard).map(|node| node.slot);
        match owner.and_then(|slot| self.links.get_mut(&slot)) {
            Some(link) => &mut link.kept_bytes,
            None => &mut self.unowned_bytes,
        }
    }

    fn count_kept_bytes(&mut self) {
        self.unowned_bytes = 0;
        for link in self.links.values_mut() {
            link.kept_bytes = 0;
        }
        for shard in ShardId::all() {
            let bytes = self.shards[shard.index()].bytes();
            *self.kept_bytes(shard) += bytes;
        }
    }
}

impl Link {
    fn new(node: BrokerNode) -> Self {
        Self {
            node,
            is_up: false,
            first_seq: 1,
            in_flight: VecDeque::new(),
            out: VecDeque::new(),
            out_bytes: 0,
            is_starved: false,
            kept_bytes: 0,
        }
    }

    fn push(&mut self, frame: Frame, accepted: Option<Millis>) {
        let frame = WorkerFrame { frame: Some(frame) };
        self.out_bytes += frame_bytes(&frame);
        self.out.push_back(Queued { frame, accepted });
    }
}

impl Queued {
    /// The frame as it is sent now.
    fn leave(mut self, now: Millis) -> WorkerFrame {
        if let (Some(Frame::Publish(publish)), Some(accepted)) =
            (&mut self.frame.frame, self.accepted)
        {
            let age = now.since(accepted).as_millis();
            publish.age_ms = u32::try_from(age).unwrap_or(u32::MAX);
        }
        self.frame
    }
}

fn frame_bytes(frame: &WorkerFrame) -> usize {
    FRAME_OVERHEAD_BYTES
        + match &frame.frame {
            Some(Frame::Publish(publish)) => {
                publish.channel.len() + publish.data.as_ref().map_or(0, Bytes::len)
            }
            Some(
                Frame::Subscribe(Subscribe { channel, .. })
                | Frame::Unsubscribe(Unsubscribe { channel }),
            ) => channel.len(),
            Some(Frame::Hello(_)) | None => 0,
        }
}

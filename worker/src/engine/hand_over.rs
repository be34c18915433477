//! What a hand-over does to this worker's connections and sockets.
//!
//! A connection is *frozen* while another worker has its descriptor, too, and it
//! is not decided yet whose it is: the worker that had it goes on queueing what
//! comes for it, the one that gets it begins to, and neither touches the socket.

use std::{
    collections::HashSet,
    os::fd::{BorrowedFd, OwnedFd},
};

use bytes::Bytes;
use muster_wire::{
    ChannelName,
    snapshot::{ConnectionSnapshot, Place, Snapshots, SnapshotsBuilder, Unacked, Unsent},
};
use tracing::{debug, warn};

use super::{Accepting, Engine};
use crate::{
    addresses::Origin,
    channels::Position,
    connection::{Admission, Connection, ConnectionKey, Interest, Phase},
    handover::{Counters, counters},
    outbox::Outbox,
};

/// Bytes beside the descriptors after which a batch gets no further connection.
const BATCH_BYTES: usize = 1024 * 1024;
/// The first version of snapshots that knows places of clients which want
/// positions.
const FOLLOWERS_SINCE: u32 = 2;
/// Channels in one announcement.
const ANNOUNCED_MAX: usize = 4096;

/// Whether a connection can go to another worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Movable {
    Yes,
    /// It answers a request or waits for an answer that comes soon.
    Later,
    /// It is finished by this worker.
    Never,
}

/// Which connections are wanted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted {
    pub(crate) at_most: usize,
    /// Of their snapshots.
    pub(crate) version: u32,
    /// Answers from the cluster are not waited for.
    pub(crate) is_urgent: bool,
}

/// Frozen connections, to be sent.
#[derive(Debug)]
pub(crate) struct FrozenBatch {
    pub(crate) keys: Vec<ConnectionKey>,
    pub(crate) body: Vec<u8>,
}

/// A connection that was put together here and does not run yet.
#[derive(Debug)]
pub(crate) struct Arrival {
    pub(crate) key: ConnectionKey,
    /// To be published again once it runs.
    pub(crate) unacked: Vec<Unacked>,
}

impl Engine {
    /// From now on clients are left to another worker that uses this one's place
    /// in the accept gate.
    pub(crate) fn give_place(&mut self) {
        self.stop_accepting();
        self.is_gate_ours = false;
    }

    /// From now on clients are left to the others.
    pub(crate) fn leave(&mut self) {
        self.stop_accepting();
    }

    /// Takes clients again after a hand-over that failed.
    pub(crate) fn take_place_back(&mut self) {
        self.is_gate_ours = true;
        self.start_accepting();
    }

    pub(crate) fn is_accepting(&self) -> bool {
        self.accepting != Accepting::No
    }

    /// The descriptor of a connection that is there.
    pub(crate) fn socket(&self, key: ConnectionKey) -> Option<BorrowedFd<'_>> {
        self.connections.peek(key).map(Connection::socket)
    }

    /// Channels, and up to where this worker has them, beginning with the number
    /// after `after`; empty at the end. The number of the last one is second.
    pub(crate) fn announce(&self, after: u32) -> (Vec<Place>, u32) {
        let channels = self.core.channels.all();
        let mut next: Vec<_> = channels.filter(|(number, ..)| *number > after).collect();
        next.sort_unstable_by_key(|(number, ..)| *number);
        next.truncate(ANNOUNCED_MAX);
        let last = next.last().map_or(after, |(number, ..)| *number);
        let place = |(_, channel, position): (u32, &ChannelName, _)| {
            let Position { generation, offset } = position?;
            let channel = channel.clone();
            Some(Place {
                channel,
                generation,
                offset,
            })
        };
        (next.into_iter().filter_map(place).collect(), last)
    }

    /// Freezes connections from `candidates` on; those that cannot go now are left
    /// out, and `later` is set if they may soon.
    pub(crate) fn freeze(
        &mut self,
        candidates: &mut Vec<ConnectionKey>,
        wanted: Wanted,
        later: &mut bool,
    ) -> Option<FrozenBatch> {
        let mut keys = Vec::new();
        let mut builder = SnapshotsBuilder::default();
        while keys.len() < wanted.at_most
            && builder.bytes() < BATCH_BYTES
            && let Some(key) = candidates.pop()
        {
            match self.movable(key, wanted) {
                Movable::Yes => {}
                Movable::Later => {
                    *later = true;
                    continue;
                }
                Movable::Never => continue,
            }
            self.freeze_one(key);
            self.snapshot(key, &mut builder);
            keys.push(key);
        }
        if keys.is_empty() {
            return None;
        }
        let connections = builder.connections_mut();
        let producers = connections.iter().map(|one| *one.session.id()).collect();
        let mut unacked = self.core.router.unacked(&producers);
        for connection in connections {
            let publications = unacked.remove(connection.session.id());
            connection.publications = publications.unwrap_or_default();
        }
        let body = builder.finish(wanted.version);
        Some(FrozenBatch { keys, body })
    }

    fn movable(&self, key: ConnectionKey, wanted: Wanted) -> Movable {
        let Some(connection) = self.connections.peek(key) else {
            return Movable::Never;
        };
        match (&connection.phase, connection.admission) {
            _ if connection.is_frozen => Movable::Never,
            // It is about to be closed.
            _ if connection.is_slow => Movable::Later,
            (Phase::Head { .. }, Admission::Admitted(_)) => Movable::Later,
            // It comes back and resumes at its position.
            (Phase::Open(session), _)
                if wanted.version < FOLLOWERS_SINCE && session.follows_any() =>
            {
                Movable::Never
            }
            (Phase::Open(session), Admission::Admitted(_)) => {
                // Its own publications must not overtake them on another link.
                let waits = session.subscriptions().any(|(_, confirmed)| !confirmed);
                if waits && !wanted.is_urgent && self.core.router.is_whole() {
                    Movable::Later
                } else {
                    Movable::Yes
                }
            }
            (Phase::Closing { .. } | Phase::Echo { .. }, _) | (_, Admission::Refused) => {
                Movable::Never
            }
        }
    }

    fn freeze_one(&mut self, key: ConnectionKey) {
        let now = self.now.millis;
        // It is counted as being in the queue.
        self.connections.settle_broadcast_for(key);
        let Some(connection) = self.connections.get(key) else {
            return;
        };
        if let Some(since) = connection.paused.take()
            && let Some(session) = connection.session()
        {
            session.extend_life(now.since(since));
        }
        connection.has_backlog = false;
        connection.is_frozen = true;
        let removed = self.poller.remove(connection.socket());
        if let Err(error) = removed {
            debug!(%error, "A client's socket was not watched.");
        }
    }

    /// All about a connection but the publications that are not acked.
    fn snapshot(&self, key: ConnectionKey, builder: &mut SnapshotsBuilder) {
        let Some(connection) = self.connections.peek(key) else {
            return;
        };
        let (Phase::Open(session), Admission::Admitted(origin)) =
            (&connection.phase, connection.admission)
        else {
            return;
        };
        let channels = &self.core.channels;
        let names: Vec<_> = session
            .channels()
            .filter_map(|name| Some((channels.number(name)?, name)))
            .collect();
        let name = |number| {
            let mut names = names.iter();
            names
                .find(|(other, _)| *other == number)
                .map(|(_, name)| (*name).clone())
        };
        let outbox = &connection.outbox;
        let unsent: Vec<Unsent> = outbox
            .queued()
            .map(|(frame, droppable)| builder.frame(frame, droppable.and_then(name)))
            .collect();
        builder.push(ConnectionSnapshot {
            session: session.clone(),
            decoder: connection.decoder.clone(),
            unread: connection.unread.clone(),
            unfinished_batch: connection.unfinished.as_deref().cloned(),
            unsent,
            is_begun: outbox.is_begun(),
            places: self.core.places(key, session),
            publications: Vec::new(),
            accepted: connection.accepted,
            origin: origin.address(),
            received_bytes: connection.received_bytes,
            sent_bytes: outbox.sent_bytes(),
        });
    }

    /// Goes on with a frozen connection, where it was or where it came to.
    pub(crate) fn thaw(&mut self, key: ConnectionKey) {
        let now = self.now.millis;
        let head_timeout = self.core.rules.handshake_timeout;
        let Some(connection) = self.connections.get(key) else {
            return;
        };
        if !std::mem::take(&mut connection.is_frozen) {
            return;
        }
        connection.interest = Interest {
            read: true,
            write: false,
        };
        let deadline = connection.deadline(head_timeout).max(now);
        let is_slow = std::mem::take(&mut connection.is_slow);
        if let Err(error) = self.poller.add(connection.socket(), key) {
            warn!(%error, "Cannot watch a client's socket.");
            self.end(key);
            return;
        }
        if is_slow {
            self.connections.mark_slow(key);
        }
        self.wheel.schedule(key, deadline);
        self.connections.mark_dirty(key);
        self.take_in(key, &mut []);
    }

    /// Lets go of a connection that another worker runs, without touching its
    /// socket.
    pub(crate) fn release(&mut self, keys: &[ConnectionKey]) {
        let mut producers = HashSet::new();
        for key in keys {
            let Some(connection) = self.connections.peek(*key) else {
                continue;
            };
            producers.extend(connection.phase.session().map(|session| *session.id()));
            self.end(*key);
        }
        self.core.router.withdraw(&producers);
    }

    /// Whether this worker may have so many more.
    pub(crate) fn has_room_for(&self, connections: usize) -> bool {
        let admitted = self.connections.len() - self.refused;
        admitted + connections <= self.settings.connections_max
    }

    /// Puts connections together that another worker has.
    pub(crate) fn build(
        &mut self,
        snapshots: Snapshots,
        descriptors: Vec<OwnedFd>,
    ) -> Vec<Arrival> {
        let frames: Vec<Vec<(Bytes, Option<u32>)>> = snapshots
            .connections
            .iter()
            .map(|connection| {
                let unsent = connection.unsent.iter();
                unsent.map(|one| (snapshots.frame(one), None)).collect()
            })
            .collect();
        let connections = snapshots.connections.into_iter();
        let mut arrivals = Vec::new();
        for ((snapshot, frames), socket) in connections.zip(frames).zip(descriptors) {
            arrivals.push(self.build_one(snapshot, frames, socket));
        }
        self.publish_load();
        arrivals
    }

    fn build_one(
        &mut self,
        snapshot: ConnectionSnapshot,
        mut frames: Vec<(Bytes, Option<u32>)>,
        socket: OwnedFd,
    ) -> Arrival {
        let ConnectionSnapshot {
            mut session,
            decoder,
            unread,
            unfinished_batch,
            unsent,
            is_begun,
            places,
            publications: unacked,
            accepted,
            origin,
            received_bytes,
            sent_bytes,
        } = snapshot;
        let origin = Origin::of(origin);
        self.addresses.count(origin);
        let key = self.connections.insert(|serial| Connection {
            is_frozen: true,
            decoder,
            unread,
            unfinished: unfinished_batch.map(Box::new),
            received_bytes,
            ..Connection::new(socket, Admission::Admitted(origin), serial, accepted)
        });
        let mut out = std::mem::take(&mut self.out);
        self.core
            .take_over(key, &mut session, places, &mut out, self.now);
        for (frame, unsent) in frames.iter_mut().zip(&unsent) {
            let channel = unsent.droppable.as_deref();
            frame.1 = channel.and_then(|channel| self.core.channels.number(channel));
        }
        if let Some(connection) = self.connections.get(key) {
            connection.outbox = Outbox::restore(frames.into_iter(), is_begun, sent_bytes);
            connection.phase = Phase::Open(session);
        }
        self.send(key, &mut out);
        self.out = out;
        Arrival { key, unacked }
    }

    /// Whether the owners of all channels of these connections have this
    /// worker's subscriptions.
    pub(crate) fn is_subscribed_for(&self, keys: &[ConnectionKey]) -> bool {
        keys.iter().all(|key| {
            let connection = self.connections.peek(*key);
            let session = connection.and_then(|connection| connection.phase.session());
            session.is_none_or(|session| {
                let mut confirmed = session.subscriptions().filter(|(_, confirmed)| *confirmed);
                confirmed.all(|(name, _)| self.core.channels.is_confirmed(name))
            })
        })
    }

    /// Subscribes to channels of connections that are about to come.
    pub(crate) fn keep(&mut self, places: Vec<Place>) {
        for place in places {
            self.core.keep(place);
        }
    }

    /// Whether the owners of all these channels have this worker's
    /// subscriptions.
    pub(crate) fn is_subscribed_to(&self, channels: &[ChannelName]) -> bool {
        channels
            .iter()
            .all(|name| self.core.channels.is_confirmed(name))
    }

    /// No connection comes any more.
    pub(crate) fn let_go(&mut self) {
        self.core.let_go();
    }

    /// Runs a connection that came from another worker: what it had published
    /// goes out before anything is read.
    pub(crate) fn run(&mut self, arrival: Arrival) {
        let Arrival { key, unacked } = arrival;
        let session = self
            .connections
            .peek(key)
            .and_then(|one| one.phase.session());
        if let Some(producer) = session.map(|session| *session.id()) {
            self.core.publish_again(key, producer, unacked);
            self.thaw(key);
        }
    }

    /// Runs connections of a worker that has ended, if it has not touched their
    /// sockets; otherwise closes them, without a status as long as it is known
    /// where the next frame begins. Returns how many run.
    pub(crate) fn judge(&mut self, arrivals: Vec<Arrival>) -> usize {
        let mut running = 0;
        for arrival in arrivals {
            let key = arrival.key;
            let Some(connection) = self.connections.peek(key) else {
                continue;
            };
            let expected = Counters {
                received_bytes: connection.received_bytes,
                sent_bytes: connection.outbox.sent_bytes(),
            };
            match counters::read(connection.socket()) {
                Ok(found) if found == expected => {
                    self.run(arrival);
                    running += 1;
                }
                Ok(found) if found.sent_bytes == expected.sent_bytes => {
                    self.close_frozen(key);
                }
                Ok(_) => self.end(key),
                Err(error) => {
                    warn!(%error, "Cannot tell what another worker did to a client's socket.");
                    self.end(key);
                }
            }
        }
        running
    }

    /// Closes this process's part of connections that another one may have.
    pub(crate) fn abandon(&mut self, keys: &[ConnectionKey]) {
        for key in keys {
            self.end(*key);
        }
    }

    /// All connections there are.
    pub(crate) fn keys(&self) -> Vec<ConnectionKey> {
        self.connections.keys()
    }

    /// How many those are.
    pub(crate) fn len(&self) -> usize {
        self.connections.len()
    }

    /// What the client has said meanwhile is lost, what it is told is not.
    fn close_frozen(&mut self, key: ConnectionKey) {
        if let Some(connection) = self.connections.get(key) {
            connection.unread = Vec::new();
            connection.unfinished = None;
        }
        self.close(key, None, "");
        self.thaw(key);
    }
}

#[cfg(test)]
mod tests;

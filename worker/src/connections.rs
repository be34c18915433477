//! The table of this worker's connections.

use std::collections::VecDeque;

use bytes::Bytes;
use muster_wire::session::Session;
use slab::Slab;

use crate::{
    broadcast::{self, Broadcast},
    connection::{Connection, ConnectionKey},
    core::Clients,
    outbox::{Delivery, Offer, Written},
    stats::Stats,
};

/// Connections that are looked at together before they are written to: what is
/// not in the processor's caches comes at once then, not one after the other.
const AHEAD: usize = 8;

/// All connections, and which of them have something to write.
#[derive(Debug)]
pub(crate) struct Connections {
    slab: Slab<Connection>,
    next_serial: u32,
    outbox_bytes_max: usize,
    /// Have something to write, each once, the next one first.
    dirty: VecDeque<ConnectionKey>,
    /// A publication that came alone and is written past the queues.
    broadcast: Option<Broadcast>,
    /// Did not read what they got, and are to be closed.
    slow: Vec<ConnectionKey>,
    /// Publications queued or written, and given up, since [`Self::count`].
    deliveries: u64,
    dropped: u64,
}

impl Connections {
    pub(crate) fn new(outbox_bytes_max: usize) -> Self {
        Self {
            slab: Slab::new(),
            next_serial: 0,
            outbox_bytes_max,
            dirty: VecDeque::new(),
            broadcast: None,
            slow: Vec::new(),
            deliveries: 0,
            dropped: 0,
        }
    }

    /// From here on; what is queued stays.
    pub(crate) fn set_outbox_bytes_max(&mut self, bytes_max: usize) {
        self.outbox_bytes_max = bytes_max;
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Connection> {
        self.slab.iter().map(|(_, connection)| connection)
    }

    pub(crate) fn len(&self) -> usize {
        self.slab.len()
    }

    pub(crate) fn insert(&mut self, make: impl FnOnce(u32) -> Connection) -> ConnectionKey {
        self.next_serial = self.next_serial.wrapping_add(1);
        let serial = self.next_serial;
        let index = self.slab.insert(make(serial));
        let index = u32::try_from(index).expect("descriptors are 31-bit numbers");
        ConnectionKey { index, serial }
    }

    pub(crate) fn get(&mut self, key: ConnectionKey) -> Option<&mut Connection> {
        self.slab
            .get_mut(key.index as usize)
            .filter(|connection| connection.serial == key.serial)
    }

    /// The same, only to look at.
    pub(crate) fn peek(&self, key: ConnectionKey) -> Option<&Connection> {
        self.slab
            .get(key.index as usize)
            .filter(|connection| connection.serial == key.serial)
    }

    pub(crate) fn remove(&mut self, key: ConnectionKey) -> Option<Connection> {
        self.get(key)?;
        self.slab.try_remove(key.index as usize)
    }

    pub(crate) fn keys(&self) -> Vec<ConnectionKey> {
        let key = |(index, connection): (usize, &Connection)| ConnectionKey {
            index: u32::try_from(index).expect("made by `insert`"),
            serial: connection.serial,
        };
        self.slab.iter().map(key).collect()
    }

    /// The connection whose client knows its session by `id`; a search, for
    /// operators only.
    pub(crate) fn find(&self, id: &str) -> Option<ConnectionKey> {
        self.slab.iter().find_map(|(index, connection)| {
            let matches = connection
                .phase
                .session()
                .is_some_and(|session| session.id().as_str() == id);
            let index = u32::try_from(index).expect("made by `insert`");
            matches.then_some(ConnectionKey {
                index,
                serial: connection.serial,
            })
        })
    }

    /// Those that have a session; a walk through all, for operators only.
    pub(crate) fn sessions(&self) -> impl Iterator<Item = ConnectionKey> + '_ {
        let mut sessions = self.slab.iter();
        std::iter::from_fn(move || {
            let (index, connection) =
                sessions.find(|(_, connection)| connection.phase.session().is_some())?;
            Some(ConnectionKey {
                index: u32::try_from(index).expect("made by `insert`"),
                serial: connection.serial,
            })
        })
    }

    /// The connection will be written to at the end of the turn.
    pub(crate) fn mark_dirty(&mut self, key: ConnectionKey) {
        if let Some(connection) = self.get(key)
            && !connection.is_dirty
        {
            connection.is_dirty = true;
            self.dirty.push_back(key);
        }
    }

    pub(crate) fn has_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// The next connection to write to.
    pub(crate) fn next_dirty(&mut self) -> Option<ConnectionKey> {
        self.dirty.pop_front()
    }

    /// Whether a publication is on its way past the queues.
    pub(crate) fn has_broadcast(&self) -> bool {
        self.broadcast.is_some()
    }

    /// Writes the publication that came alone to up to `share` of those who
    /// have still to get it.
    pub(crate) fn go_on_with_broadcast(&mut self, share: usize) {
        let Some(mut broadcast) = self.broadcast.take() else {
            return;
        };
        for keys in broadcast.next(share).chunks(AHEAD) {
            let mut is_next = [false; AHEAD];
            for (is_next, key) in is_next.iter_mut().zip(keys) {
                *is_next = self.peek(*key).is_some_and(Connection::is_writable);
            }
            for (is_next, key) in is_next.into_iter().zip(keys) {
                self.write_broadcast(*key, &broadcast, is_next);
            }
        }
        self.broadcast = Some(broadcast).filter(|broadcast| !broadcast.is_done());
    }

    fn write_broadcast(&mut self, key: ConnectionKey, broadcast: &Broadcast, is_writable: bool) {
        if !is_writable {
            return self.deliver(key, broadcast.delivery());
        }
        match self.get(key).map(|client| client.write(broadcast.frame())) {
            Some(Written::All) => self.deliveries += 1,
            Some(Written::Part) => {
                self.deliveries += 1;
                self.mark_dirty(key);
            }
            Some(Written::Nothing) => self.deliver(key, broadcast.delivery()),
            None => {}
        }
    }

    /// Adds to the statistics what has become of publications meanwhile.
    pub(crate) fn count(&mut self, stats: &mut Stats) {
        stats.deliveries += std::mem::take(&mut self.deliveries);
        stats.dropped += std::mem::take(&mut self.dropped);
    }

    /// Queues it for all who have still to get it, because something follows.
    pub(crate) fn settle_broadcast(&mut self) {
        if let Some(mut broadcast) = self.broadcast.take() {
            for key in broadcast.next(usize::MAX) {
                self.deliver(key, broadcast.delivery());
            }
        }
    }

    /// Queues it for this client, because something follows there.
    pub(crate) fn settle_broadcast_for(&mut self, key: ConnectionKey) {
        if let Some(mut broadcast) = self.broadcast.take() {
            if broadcast.take_out(key) {
                self.deliver(key, broadcast.delivery());
            }
            self.broadcast = Some(broadcast);
        }
    }

    /// The connection did not read what it got.
    pub(crate) fn mark_slow(&mut self, key: ConnectionKey) {
        if let Some(connection) = self.get(key)
            && !std::mem::replace(&mut connection.is_slow, true)
        {
            self.slow.push(key);
        }
    }

    pub(crate) fn take_slow(&mut self) -> Vec<ConnectionKey> {
        std::mem::take(&mut self.slow)
    }

    /// Lets a connection queue something, and sees to what follows.
    fn queue(
        &mut self,
        key: ConnectionKey,
        act: impl FnOnce(&mut Connection, usize) -> Offer,
    ) -> Option<Offer> {
        let bytes_max = self.outbox_bytes_max;
        let connection = self.get(key)?;
        let offer = act(connection, bytes_max);
        let was_slow = connection.is_slow;
        connection.is_slow |= offer == Offer::Full;
        let is_slow = connection.is_slow;
        let is_dirty = std::mem::replace(&mut connection.is_dirty, true);
        if is_slow && !was_slow {
            self.slow.push(key);
        }
        if !is_dirty {
            self.dirty.push_back(key);
        }
        Some(offer)
    }

    fn deliver(&mut self, key: ConnectionKey, delivery: Delivery<'_>) {
        let mut dropped = 0;
        let offer = self.queue(key, |connection, bytes_max| {
            connection.deliver(delivery, bytes_max, &mut dropped)
        });
        self.dropped += dropped;
        if offer == Some(Offer::Accepted) {
            self.deliveries += 1;
        }
    }
}

impl Clients for Connections {
    fn session(&mut self, key: ConnectionKey) -> Option<&mut Session> {
        self.get(key)?.session()
    }

    fn send(&mut self, key: ConnectionKey, frames: &mut Vec<Bytes>) {
        if !frames.is_empty() {
            self.settle_broadcast_for(key);
        }
        for frame in frames.drain(..) {
            self.queue(key, |connection, bytes_max| {
                connection.offer(frame, bytes_max)
            });
        }
    }

    fn fan_out(&mut self, keys: &[ConnectionKey], delivery: Delivery<'_>, stats: &mut Stats) {
        if keys.is_empty() {
            // Nothing follows a publication that is on its way.
            return;
        }
        let comes_alone = self.broadcast.is_none() && self.dirty.len() < broadcast::CLIENTS_MIN;
        self.settle_broadcast();
        if comes_alone && broadcast::is_worthwhile(keys.len(), delivery.frame.len()) {
            self.broadcast = Some(Broadcast::new(keys.to_vec(), delivery));
            return;
        }
        for key in keys {
            self.deliver(*key, delivery);
        }
        self.count(stats);
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Read as _, os::unix::net::UnixStream};

    use muster_daemon::config::SlowClient;
    use muster_wire::Millis;
    use proptest::prelude::*;

    use super::*;
    use crate::{connection::Admission, outbox::Flush};

    /// What happens to a worker's clients; they are named by their place.
    #[derive(Debug, Clone)]
    enum Event {
        /// A publication comes for all but the first few.
        Publish {
            skip: usize,
        },
        /// A turn ends with room for so many writes past the queues.
        Write {
            share: usize,
        },
        /// Something of its own is queued for one.
        Answer(usize),
        Leave(usize),
        /// Queues are written.
        Flush,
    }

    fn event(clients: usize) -> impl Strategy<Value = Event> {
        prop_oneof![
            3 => (0..clients).prop_map(|skip| Event::Publish { skip: skip / 8 }),
            4 => (0..clients).prop_map(|share| Event::Write { share }),
            1 => (0..clients).prop_map(Event::Answer),
            1 => (0..clients).prop_map(Event::Leave),
            2 => Just(Event::Flush),
        ]
    }

    fn connect(connections: &mut Connections) -> (ConnectionKey, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        for socket in [&ours, &theirs] {
            socket.set_nonblocking(true).unwrap();
        }
        let make = |serial| Connection::new(ours.into(), Admission::Refused, serial, Millis(0));
        (connections.insert(make), theirs)
    }

    /// One turn's writes, as far as the sockets take them.
    fn flush_all(connections: &mut Connections) {
        while let Some(key) = connections.next_dirty() {
            let connection = connections.get(key).unwrap();
            connection.is_dirty = false;
            if connection.flush().unwrap() != Flush::Empty {
                return connections.mark_dirty(key);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn however_it_is_written_each_subscriber_gets_each_publication_once_and_in_order(
            events in prop::collection::vec(event(80), 1..60),
            padding in prop_oneof![Just(0), Just(9000_usize)],
        ) {
            let mut stats = Stats::default();
            let mut connections = Connections::new(usize::MAX);
            let mut clients: Vec<_> = (0..80).map(|_| connect(&mut connections)).collect();
            let mut members: Vec<_> = (0..80).collect();
            let mut expected = vec![Vec::new(); 80];
            let mut got = vec![Vec::new(); 80];
            let mut due = 0;
            for (number, event) in events.into_iter().enumerate() {
                match event {
                    Event::Publish { skip } => {
                        let frame = format!("{number}{}\n", ".".repeat(padding));
                        let frame = Bytes::from(frame);
                        let delivery = Delivery {
                            frame: &frame,
                            channel: 1,
                            slow_client: SlowClient::Close,
                        };
                        let chosen: Vec<_> = members.iter().skip(skip).copied().collect();
                        let keys: Vec<_> = chosen.iter().map(|client| clients[*client].0).collect();
                        connections.fan_out(&keys, delivery, &mut stats);
                        for client in chosen {
                            expected[client].push(number);
                            due += 1;
                        }
                    }
                    Event::Write { share } => {
                        connections.go_on_with_broadcast(share);
                    }
                    Event::Answer(client) => {
                        connections.send(clients[client].0, &mut vec![Bytes::from_static(b"#\n")]);
                    }
                    Event::Leave(client) => {
                        connections.settle_broadcast_for(clients[client].0);
                        members.retain(|member| *member != client);
                    }
                    Event::Flush => flush_all(&mut connections),
                }
            }
            while connections.has_broadcast() {
                connections.go_on_with_broadcast(7);
            }
            for _ in 0..100 {
                flush_all(&mut connections);
                for ((_, socket), got) in clients.iter_mut().zip(&mut got) {
                    let _ = socket.read_to_end(got);
                }
            }
            prop_assert!(!connections.has_dirty());
            connections.count(&mut stats);
            prop_assert_eq!(stats.deliveries, due);
            for (got, expected) in got.into_iter().zip(expected) {
                let numbers: Vec<usize> = String::from_utf8(got)
                    .unwrap()
                    .lines()
                    .filter_map(|line| line.trim_end_matches('.').parse().ok())
                    .collect();
                prop_assert_eq!(numbers, expected);
            }
        }
    }

    #[test]
    fn a_publication_that_comes_alone_for_many_passes_the_queues_and_others_do_not() {
        let mut stats = Stats::default();
        let mut connections = Connections::new(usize::MAX);
        let clients: Vec<_> = (0..40).map(|_| connect(&mut connections)).collect();
        let keys: Vec<_> = clients.iter().map(|(key, _)| *key).collect();
        let frame = Bytes::from_static(b"hello");
        let delivery = Delivery {
            frame: &frame,
            channel: 1,
            slow_client: SlowClient::Close,
        };
        connections.fan_out(&keys[..10], delivery, &mut stats);
        assert!(!connections.has_broadcast(), "ten are few");
        flush_all(&mut connections);
        connections.fan_out(&keys, delivery, &mut stats);
        connections.fan_out(&[], delivery, &mut stats);
        assert!(connections.has_broadcast() && !connections.has_dirty());
        connections.fan_out(&keys, delivery, &mut stats);
        assert!(!connections.has_broadcast(), "the two share their writes");
        assert!(connections.has_dirty());
    }
}

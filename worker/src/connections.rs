//! The table of this worker's connections.

use std::collections::VecDeque;

use bytes::Bytes;
use muster_wire::session::Session;
use slab::Slab;

use crate::{
    connection::{Connection, ConnectionKey},
    core::Clients,
    outbox::{Delivery, Offer},
    stats::Stats,
};

/// All connections, and which of them have something to write.
#[derive(Debug)]
pub(crate) struct Connections {
    slab: Slab<Connection>,
    next_serial: u32,
    outbox_bytes_max: usize,
    /// Have something to write, each once, the next one first.
    dirty: VecDeque<ConnectionKey>,
    /// Did not read what they got, and are to be closed.
    slow: Vec<ConnectionKey>,
}

impl Connections {
    pub(crate) fn new(outbox_bytes_max: usize) -> Self {
        Self {
            slab: Slab::new(),
            next_serial: 0,
            outbox_bytes_max,
            dirty: VecDeque::new(),
            slow: Vec::new(),
        }
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
}

impl Clients for Connections {
    fn session(&mut self, key: ConnectionKey) -> Option<&mut Session> {
        self.get(key)?.session()
    }

    fn send(&mut self, key: ConnectionKey, frames: &mut Vec<Bytes>) {
        for frame in frames.drain(..) {
            self.queue(key, |connection, bytes_max| {
                connection.offer(frame, bytes_max)
            });
        }
    }

    fn fan_out(&mut self, keys: &[ConnectionKey], delivery: Delivery<'_>, stats: &mut Stats) {
        for key in keys {
            let offer = self.queue(*key, |connection, bytes_max| {
                connection.deliver(delivery, bytes_max, &mut stats.dropped)
            });
            if offer == Some(Offer::Accepted) {
                stats.deliveries += 1;
            }
        }
    }
}

//! New connections, and whether this worker takes them.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::fd::OwnedFd,
};

use muster_wire::Millis;
use rustix::{
    io::Errno,
    net::{SocketAddrAny, SocketFlags},
};
use tracing::{error, warn};

use super::{Accepting, Engine, LINGER};
use crate::{
    addresses::Origin,
    connection::{Admission, Connection, ConnectionKey},
    gate::Slot,
    upgrade,
};

/// Connections beyond the limit that are answered properly at a time.
const REFUSALS_MAX: usize = 128;
/// Connections taken in one turn before the gate is looked at again.
const ACCEPTS_MAX: usize = 16;

impl Engine {
    /// From now on clients are taken.
    pub(crate) fn start_accepting(&mut self) {
        if self.accepting == Accepting::No {
            self.accepting = Accepting::Gated;
            self.publish_load();
            self.look_at_gate();
        }
    }

    /// From now on clients are left to the other workers.
    pub(super) fn stop_accepting(&mut self) {
        if self.accepting == Accepting::Yes {
            self.unwatch_listener();
        }
        self.accepting = Accepting::No;
        self.publish_load();
    }

    /// Whether the gate must be looked at again soon: a declined wake-up does
    /// not repeat.
    pub(crate) fn is_gated(&self) -> bool {
        self.accepting == Accepting::Gated
    }

    /// Tells the other workers how many connections this one has.
    pub(crate) fn publish_load(&mut self) {
        let slot = self.gate_slot();
        if let Some(gate) = &self.gate
            && self.is_gate_ours
            && let Err(error) = gate.write(slot)
        {
            error!(%error, "Cannot write the accept gate; connections may spread unevenly.");
            self.gate = None;
        }
    }

    /// Starts or stops watching the listener as the gate says.
    pub(crate) fn look_at_gate(&mut self) {
        let slot = self.gate_slot();
        let allowed = self.gate.as_ref().is_none_or(|gate| {
            // A gate that cannot be read must not stop a worker.
            gate.may_accept(slot, self.now.millis).unwrap_or(true)
        });
        match (self.accepting, allowed) {
            (Accepting::Gated, true) => match self.poller.add_listener(&self.listener) {
                Ok(()) => self.accepting = Accepting::Yes,
                Err(error) => error!(%error, "Cannot watch the listening socket; trying again."),
            },
            (Accepting::Yes, false) => {
                self.unwatch_listener();
                self.accepting = Accepting::Gated;
            }
            (Accepting::Gated, false) | (Accepting::Yes, true) | (Accepting::No, _) => {}
        }
    }

    pub(super) fn accept(&mut self) {
        for _ in 0..ACCEPTS_MAX {
            if self.accepting != Accepting::Yes {
                return;
            }
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            match rustix::net::acceptfrom_with(&self.listener, flags) {
                Ok((socket, address)) => self.admit(socket, origin(address)),
                Err(Errno::AGAIN) => break,
                // The client was gone before it was accepted.
                Err(Errno::CONNABORTED | Errno::INTR) => {}
                Err(error) => {
                    warn!(%error, connections = self.connections.len(), "Cannot accept a connection.");
                    // Level-triggered, so it would come back at once; the next
                    // look at the gate, within milliseconds, tries again.
                    self.unwatch_listener();
                    self.accepting = Accepting::Gated;
                    return;
                }
            }
        }
        self.publish_load();
        self.look_at_gate();
    }

    fn admit(&mut self, socket: OwnedFd, origin: Origin) {
        let admitted = self.connections.len() - self.refused;
        let refusal = if admitted >= self.settings.connections_max {
            Some(upgrade::cluster_full())
        } else if !self.addresses.admit(origin) {
            Some(upgrade::address_full())
        } else {
            None
        };
        let Some(answer) = refusal else {
            let _ = self.take(socket, Admission::Admitted(origin));
            return;
        };
        if self.refused >= REFUSALS_MAX {
            // Whoever does not take the answer at once gets none.
            let _ = rustix::io::write(&socket, &answer);
            return;
        }
        self.refused += 1;
        if let Some(key) = self.take(socket, Admission::Refused) {
            self.refuse(key, answer);
        }
    }

    /// Puts a connection into the table.
    fn take(&mut self, socket: OwnedFd, admission: Admission) -> Option<ConnectionKey> {
        let now = self.now.millis;
        let key = self
            .connections
            .insert(|serial| Connection::new(socket, admission, serial, now));
        let connection = self.connections.get(key)?;
        if let Err(error) = self.poller.add(connection.socket(), key) {
            warn!(%error, "Cannot watch a client's socket.");
            self.end(key);
            return None;
        }
        // The first ping is due before a long time for the handshake is over.
        let rules = &self.core.rules;
        let deadline = now + rules.handshake_timeout.min(rules.ping_interval);
        self.wheel.schedule(key, deadline);
        Some(key)
    }

    /// Answers an HTTP request that does not become a WebSocket.
    pub(super) fn refuse(&mut self, key: ConnectionKey, answer: Vec<u8>) {
        let deadline: Millis = self.now.millis + LINGER;
        if let Some(connection) = self.connections.get(key) {
            let _ = connection.outbox.offer(answer.into(), usize::MAX);
            let session = connection.finish(deadline);
            self.closing(key, session, deadline);
        }
    }

    fn gate_slot(&self) -> Slot {
        let connections = self.connections.len();
        Slot {
            connections: u32::try_from(connections).unwrap_or(u32::MAX),
            accepting: self.accepting != Accepting::No
                && connections - self.refused < self.settings.connections_max,
            written: self.now.millis,
        }
    }

    fn unwatch_listener(&self) {
        if let Err(error) = self.poller.remove_listener(&self.listener) {
            error!(%error, "Cannot stop watching the listening socket.");
        }
    }
}

/// A client's address; a socket of another kind counts as one client.
fn origin(address: Option<SocketAddrAny>) -> Origin {
    let address = address.and_then(|address| SocketAddr::try_from(address).ok());
    Origin::of(address.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |address| address.ip()))
}

//! New connections, and whether this worker takes them.

use muster_wire::Millis;
use rustix::{io::Errno, net::SocketFlags};
use tracing::{error, warn};

use super::{Accepting, Engine, LINGER};
use crate::{connection::Connection, gate::Slot, upgrade};

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
            match rustix::net::accept_with(&self.listener, flags) {
                Ok(socket) => self.admit(socket),
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

    fn admit(&mut self, socket: std::os::fd::OwnedFd) {
        let now = self.now.millis;
        let connections = self.connections.len();
        let is_full = connections >= self.settings.connections_max;
        if connections >= self.settings.connections_max + REFUSALS_MAX {
            // Whoever does not take the answer at once gets none.
            let _ = rustix::io::write(&socket, &upgrade::cluster_full());
            return;
        }
        let key = self
            .connections
            .insert(|serial| Connection::new(socket, serial, now));
        // The first ping is due before a long time for the handshake is over.
        let rules = &self.core.rules;
        let deadline = now + rules.handshake_timeout.min(rules.ping_interval);
        let Some(connection) = self.connections.get(key) else {
            return;
        };
        if let Err(error) = self.poller.add(connection.socket(), key) {
            warn!(%error, "Cannot watch a client's socket.");
            self.connections.remove(key);
            return;
        }
        if is_full {
            self.refuse(key, upgrade::cluster_full());
        } else {
            self.wheel.schedule(key, deadline);
        }
    }

    /// Answers an HTTP request that does not become a WebSocket.
    pub(super) fn refuse(&mut self, key: crate::connection::ConnectionKey, answer: Vec<u8>) {
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
                && connections < self.settings.connections_max,
            written: self.now.millis,
        }
    }

    fn unwatch_listener(&self) {
        if let Err(error) = self.poller.remove_listener(&self.listener) {
            error!(%error, "Cannot stop watching the listening socket.");
        }
    }
}

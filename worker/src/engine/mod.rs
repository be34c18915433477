//! The worker's one thread: sockets, links and clocks around the core.
//!
//! Each turn takes what is ready, lets the core work on it, and ends with one
//! vectored write per connection that has something to get and one batch per
//! link. So batches grow by themselves under load.

mod accept;
mod cluster;
mod hand_over;
mod lifecycle;
mod operate;
mod read;
mod reconfigure;
#[cfg(test)]
pub(crate) mod testing;

use std::{
    collections::{HashMap, VecDeque},
    net::TcpListener,
    time::Duration,
};

use bytes::Bytes;
use muster_wire::{Millis, close::CloseCode, session::Session};
use rand::rngs::StdRng;
use tokio::sync::mpsc;

use self::{cluster::Links, operate::Operators};
pub(crate) use self::{
    hand_over::{Arrival, Wanted},
    lifecycle::{Drain, Pace},
};
use crate::{
    addresses::Addresses,
    connection::{Admission, Connection, ConnectionKey, Interest, Phase},
    connections::Connections,
    core::{Core, Now, Pause},
    gate::Gate,
    link::{LinkEvent, LinkSettings},
    outbox::Flush,
    poller::{Poller, Ready},
    upgrade::{self, UpgradeRules},
    wheel::Wheel,
};

/// Bytes read from one connection in one turn (delivery.md F1).
const READ_BYTES_MAX: usize = 64 * 1024;
/// Connections written to in one turn: about a millisecond (delivery.md F1).
const WRITES_MAX: usize = 128;
/// How long a closing connection may take to get its last bytes.
const LINGER: Duration = Duration::from_secs(2);

/// What a worker needs to know to start.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) upgrade: UpgradeRules,
    pub(crate) connections_max: usize,
    pub(crate) connections_per_address_max: Option<u32>,
    pub(crate) message_bytes_max: usize,
    pub(crate) outbox_bytes_max: usize,
    /// Takes no clients before those of the worker in its slot come.
    pub(crate) is_successor: bool,
    pub(crate) link: LinkSettings,
}

#[derive(Debug)]
pub(crate) struct Engine {
    settings: Settings,
    core: Core,
    connections: Connections,
    addresses: Addresses,
    /// Connections that only get the answer that they are refused.
    refused: usize,
    poller: Poller,
    listener: TcpListener,
    accepting: Accepting,
    gate: Option<Gate>,
    /// Another worker in the same slot writes this one's place in the gate.
    is_gate_ours: bool,
    links: Links,
    operators: Operators,
    wheel: Wheel,
    now: Now,
    rng: StdRng,
    /// One buffer for all reads: an idle connection owns none.
    read_buffer: Vec<u8>,
    /// Have whole messages left over from their turn.
    backlog: VecDeque<ConnectionKey>,
    /// Are not read, by what they wait for.
    paused: HashMap<Pause, Vec<ConnectionKey>>,
    /// Something happened that may have made room for those.
    has_news: bool,
    /// Are not read, because they were too fast.
    slowed: Vec<ConnectionKey>,
    /// Frames for one client, for reuse.
    out: Vec<Bytes>,
    ready: Vec<Ready>,
    due: Vec<ConnectionKey>,
}

/// Whether new connections are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Accepting {
    /// The cluster is not there yet, or the worker is ending.
    No,
    /// The other workers should take them first.
    Gated,
    Yes,
}

impl Engine {
    pub(crate) fn new(
        settings: Settings,
        core: Core,
        listener: TcpListener,
        gate: Option<Gate>,
        link_events: mpsc::Sender<LinkEvent>,
        now: Now,
        mut rng: StdRng,
    ) -> std::io::Result<Self> {
        Ok(Self {
            connections: Connections::new(settings.outbox_bytes_max),
            addresses: Addresses::new(settings.connections_per_address_max),
            refused: 0,
            core,
            poller: Poller::new()?,
            listener,
            accepting: Accepting::No,
            gate,
            is_gate_ours: !settings.is_successor,
            links: Links::new(link_events),
            operators: Operators::new(&mut rng),
            wheel: Wheel::new(now.millis),
            now,
            rng,
            read_buffer: vec![0; READ_BYTES_MAX],
            backlog: VecDeque::new(),
            paused: HashMap::new(),
            has_news: false,
            slowed: Vec::new(),
            out: Vec::new(),
            ready: Vec::new(),
            due: Vec::new(),
            settings,
        })
    }

    /// Waits until sockets are ready. Cancel-safe.
    pub(crate) async fn wait(&mut self) -> std::io::Result<()> {
        self.poller.wait(&mut self.ready).await
    }

    /// Whether there is work that waits for nothing.
    pub(crate) fn has_backlog(&self) -> bool {
        !self.backlog.is_empty() || self.connections.has_dirty() || self.connections.has_broadcast()
    }

    /// Begins a turn.
    pub(crate) fn set_now(&mut self, now: Now) {
        self.now = now;
    }

    /// Works on the sockets that [`Self::wait`] found ready.
    pub(crate) fn handle_ready(&mut self) {
        let mut ready = std::mem::take(&mut self.ready);
        for ready in ready.drain(..) {
            match ready {
                Ready::Listener => self.accept(),
                Ready::Connection {
                    key,
                    read,
                    write,
                    hung_up,
                } => {
                    if write {
                        self.connections.mark_dirty(key);
                    }
                    if read {
                        self.read(key);
                    } else if hung_up {
                        self.lose(key);
                    }
                }
            }
        }
        self.ready = ready;
    }

    /// Ends a turn: leftovers, slow clients, then everything that is queued for
    /// clients and brokers goes out.
    pub(crate) fn finish_turn(&mut self) {
        self.resume_paused();
        self.work_off_backlog();
        for key in self.connections.take_slow() {
            self.cut_slow_client(key);
        }
        self.write();
        self.connections.count(&mut self.core.stats);
        self.send_batches();
        self.send_reads();
    }

    /// A turn's share of what is to be written.
    fn write(&mut self) {
        for written in 0..WRITES_MAX {
            match self.connections.next_dirty() {
                Some(key) => self.flush(key),
                None => {
                    let share = WRITES_MAX - written;
                    return self.connections.go_on_with_broadcast(share);
                }
            }
        }
        // Its turn is behind those who could not be written to in this one.
        self.connections.settle_broadcast();
    }

    fn flush(&mut self, key: ConnectionKey) {
        let Some(connection) = self.connections.get(key) else {
            return;
        };
        connection.is_dirty = false;
        if connection.is_frozen {
            return;
        }
        match connection.flush() {
            Ok(Flush::Empty) if !connection.interest.write => {}
            Ok(flushed) => {
                if flushed == Flush::More {
                    // Its next share in the next turn.
                    self.connections.mark_dirty(key);
                }
                self.watch(key, |interest| interest.write = flushed != Flush::Empty);
            }
            Err(_) => self.lose(key),
        }
    }

    /// Changes what a connection's socket is watched for.
    fn watch(&mut self, key: ConnectionKey, change: impl FnOnce(&mut Interest)) {
        let Some(connection) = self.connections.get(key) else {
            return;
        };
        if connection.is_frozen {
            return;
        }
        let mut interest = connection.interest;
        change(&mut interest);
        if interest != connection.interest {
            connection.interest = interest;
            if self
                .poller
                .modify(connection.socket(), key, interest)
                .is_err()
            {
                self.end(key);
            }
        }
    }

    /// Queues what a session has said.
    fn send(&mut self, key: ConnectionKey, out: &mut Vec<Bytes>) {
        use crate::core::Clients as _;

        self.connections.send(key, out);
    }

    /// Says goodbye to a client.
    fn close(&mut self, key: ConnectionKey, code: Option<CloseCode>, reason: &str) {
        let deadline = self.now.millis + LINGER;
        self.connections.settle_broadcast_for(key);
        match self.connections.get(key) {
            Some(Connection {
                phase: Phase::Head { .. },
                ..
            }) => {
                self.refuse(key, upgrade::closing());
            }
            Some(connection) if !connection.is_closing() => {
                let session = connection.close(code, reason, deadline);
                self.closing(key, session, deadline);
            }
            Some(_) | None => {}
        }
    }

    fn cut_slow_client(&mut self, key: ConnectionKey) {
        let deadline = self.now.millis + LINGER;
        if let Some(connection) = self.connections.get(key)
            && !connection.is_closing()
            // Looked at again once it is not on its way any more.
            && !connection.is_frozen
        {
            let session = connection.cut(CloseCode::POLICY, "slow client", deadline);
            self.core.stats.slow_clients_closed += 1;
            self.core.stats.abnormal_closes += 1;
            self.closing(key, session, deadline);
        }
    }

    /// What follows once a connection is to end: its session is over, it is
    /// read only to see its end, and not for ever.
    fn closing(&mut self, key: ConnectionKey, session: Option<Session>, deadline: Millis) {
        if let Some(session) = session {
            self.core.handle_end(key, &session);
        }
        self.connections.mark_dirty(key);
        self.wheel.schedule(key, deadline);
        self.watch(key, |interest| interest.read = true);
    }

    /// Says goodbye to a client that said so, or that broke a rule.
    fn close_by_protocol(&mut self, key: ConnectionKey, code: Option<CloseCode>) {
        self.core.stats.abnormal_closes += u64::from(code.is_some_and(CloseCode::is_abnormal));
        self.close(key, code, "");
    }

    /// The socket has ended without a goodbye, or after one.
    fn lose(&mut self, key: ConnectionKey) {
        let connection = self.connections.peek(key);
        let was_open = connection.is_some_and(|one| matches!(one.phase, Phase::Open(_)));
        self.core.stats.abnormal_closes += u64::from(was_open);
        self.end(key);
    }

    /// The connection is over; its socket closes.
    fn end(&mut self, key: ConnectionKey) {
        if let Some(mut connection) = self.connections.remove(key) {
            if let Some(session) = connection.session() {
                self.core.handle_end(key, session);
            }
            match connection.admission {
                Admission::Admitted(origin) => self.addresses.release(origin),
                Admission::Refused => self.refused -= 1,
            }
            drop(connection);
            self.publish_load();
            if self.accepting == Accepting::Gated {
                self.look_at_gate();
            }
        }
    }
}

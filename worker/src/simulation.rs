//! The worker without sockets, links and clocks, for the seeded simulation:
//! whoever has a [`SimWorker`] plays the network around it.
//!
//! Nothing here decides anything. It does what the engine does around the same
//! `Core`, in the same order: a client that is paused is not read, and is read
//! again once the reason has gone.

mod clients;

use std::time::Duration;

use bytes::Bytes;
use muster_daemon::config::{History, Namespace};
use muster_proto::{
    BrokerNode, View,
    link::{BrokerBatch, ReadRequest, ReadResponse, WorkerBatch, WorkerFrame, worker_frame::Frame},
};
use muster_wire::{
    Millis,
    session::{Rules, Session, SessionId},
};

use self::clients::SimClients;
use crate::{
    auth::Auth,
    connection::ConnectionKey,
    core::{Clients as _, Core, Ingress, Names, Now},
    namespaces::Namespaces,
    router::{LinkBroken, Router},
};

/// What a simulated worker is configured with.
#[derive(Debug, Clone)]
pub struct WorkerOptions {
    /// Timing and limits of its sessions.
    pub rules: Rules,
    /// Bytes of publications that may wait for one broker.
    pub window_bytes: usize,
    /// How long a publication may wait for its owner.
    pub publish_timeout: Duration,
    /// Every channel has a history that clients may read.
    pub has_history: bool,
    /// Bytes of data that one read brings, but for one publication.
    pub history_bytes_max: u64,
    /// Rules that are broken on purpose.
    pub broken: BrokenRules,
}

/// Rules of delivery.md that a worker breaks, to show that they matter.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct BrokenRules {
    /// B1: every channel is asked for as if nothing of it were known yet.
    pub positions: bool,
    /// B7: followers are not told that something is missing.
    pub holes: bool,
    /// B7: what a follower missed counts as kept, whatever the owner says.
    pub missed: bool,
    /// A4: a batch leaves before the subscriptions in it, which come with the
    /// next one; only where there is one broker and no fault.
    pub order: bool,
}

impl BrokenRules {
    /// Every rule is kept.
    pub const NONE: Self = Self {
        positions: false,
        holes: false,
        missed: false,
        order: false,
    };
}

/// Names one connection of one worker; never means another one later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientKey(ConnectionKey);

/// A broker that broke the link's protocol.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(transparent)]
pub struct BrokerAtFault(#[from] LinkBroken);

/// What a worker has told one of its clients since it was last asked.
#[derive(Debug, PartialEq, Eq)]
pub struct Heard {
    /// The client.
    pub key: ClientKey,
    /// Text messages, in order.
    pub texts: Vec<String>,
    /// The close code, if the connection has ended.
    pub closed: Option<u16>,
}

/// What a view changed for a worker's links.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct LinksChanged {
    /// Brokers to make a link to; an earlier link to the same slot is over.
    pub started: Vec<BrokerNode>,
    /// Slots whose link is over.
    pub stopped: Vec<u32>,
}

/// How full a worker's queues are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkerFill {
    /// Bytes of the publications that wait for their owner's ack.
    pub kept_bytes: usize,
    /// The same as the windows account for it.
    pub accounted_bytes: usize,
    /// Bytes in the fullest window.
    pub window_bytes: usize,
    /// Frames queued for links.
    pub frames: usize,
    /// Clients that are not read.
    pub paused: usize,
    /// Reads that are not answered.
    pub reads: usize,
}

/// A read for a channel's owner.
#[derive(Debug, Clone, PartialEq)]
pub struct SimRead {
    /// Tells the worker's reads apart.
    pub id: u64,
    /// The owner's slot.
    pub broker: u32,
    /// What is asked.
    pub request: ReadRequest,
}

/// A worker that is fed by hand.
#[derive(Debug)]
pub struct SimWorker {
    core: Core,
    clients: SimClients,
    broken: BrokenRules,
    late_subscribes: Vec<WorkerFrame>,
}

impl SimWorker {
    /// A worker that knows no broker yet.
    #[must_use]
    pub fn new(options: WorkerOptions) -> Self {
        let auth = Auth::with_secret(b"simulation", Duration::from_secs(86_400));
        let router = Router::new(options.window_bytes, options.publish_timeout);
        let history = History {
            count: Some(1),
            bytes: None,
            age: None,
        };
        // How much it keeps is the brokers' business.
        let namespace = Namespace {
            history: options.has_history.then_some(history),
            ..Namespace::default()
        };
        let names = Names {
            namespaces: Namespaces::new(vec![namespace]),
            history_bytes_max: options.history_bytes_max,
            ..Names::default()
        };
        Self {
            core: Core::new(options.rules, auth, names, router),
            clients: SimClients::new(options.broken.holes),
            broken: options.broken,
            late_subscribes: Vec::new(),
        }
    }

    /// A client's connection is upgraded; its session id is made of `random`.
    pub fn connect(&mut self, random: [u8; 15], now: Millis) -> ClientKey {
        let id = SessionId::from_random(random);
        let session = Session::new(id, now, now, &self.core.rules);
        self.clients.insert(session)
    }

    /// A client's connection is gone.
    pub fn disconnect(&mut self, key: ClientKey) {
        if let Some(client) = self.clients.remove(key.0) {
            self.core.handle_end(key.0, &client.session);
        }
    }

    /// Whether the client is read; what it says waits in the network otherwise.
    #[must_use]
    pub fn is_reading(&mut self, key: ClientKey) -> bool {
        self.clients
            .get(key.0)
            .is_some_and(|client| client.paused.is_none())
    }

    /// Whether the rest of a message waits until the client is read again.
    #[must_use]
    pub fn is_unfinished(&mut self, key: ClientKey) -> bool {
        self.clients
            .get(key.0)
            .is_some_and(|client| client.unfinished.is_some())
    }

    /// A text message from a client that is read.
    pub fn handle_text(&mut self, key: ClientKey, text: &str, now: Millis) {
        let Some(client) = self.clients.get(key.0) else {
            return;
        };
        client.session.handle_sign_of_life(now, &self.core.rules);
        let mut out = Vec::new();
        let ingress =
            self.core
                .handle_text(key.0, &mut client.session, text, &mut out, present(now));
        self.obey(key.0, ingress, text, &mut out, now);
    }

    /// Reads again from clients for which there is room again; ends each turn.
    pub fn resume(&mut self, now: Millis) {
        let mut paused = Vec::new();
        for (index, client) in &self.clients.by_index {
            if client.paused.is_some() {
                paused.push(ConnectionKey {
                    index: *index,
                    serial: client.serial,
                });
            }
        }
        for key in paused {
            self.resume_client(key, now);
        }
    }

    /// What clients were told since the last call.
    #[must_use]
    pub fn take_heard(&mut self) -> Vec<Heard> {
        std::mem::take(&mut self.clients.heard)
    }

    /// The orchestrator sent a view.
    pub fn handle_view(&mut self, view: View) -> LinksChanged {
        let change = self.core.handle_view(view);
        LinksChanged {
            started: change.started,
            stopped: change.stopped,
        }
    }

    /// A link stands; false if the view has moved on meanwhile.
    pub fn handle_link_up(&mut self, broker: u32, incarnation: u64) -> bool {
        self.core.handle_link_up(broker, incarnation)
    }

    /// A link that stood broke.
    pub fn handle_link_down(&mut self, broker: u32) {
        self.core.handle_link_down(broker);
    }

    /// Whether something is queued for the broker.
    #[must_use]
    pub fn has_batch(&self, broker: u32) -> bool {
        self.core.router.pending_links().any(|slot| slot == broker)
    }

    /// The next batch for a broker whose link has room for one.
    pub fn next_batch(&mut self, broker: u32, now: Millis) -> Option<WorkerBatch> {
        let late = std::mem::take(&mut self.late_subscribes);
        let next = self.core.router.next_batch(broker, now);
        if next.is_none() && late.is_empty() {
            return None;
        }
        let mut batch = next.unwrap_or_default();
        self.core.router.refill(broker);
        sort_subscribes(&mut batch.frames);
        if self.broken.order {
            let is_late =
                |frame: &mut WorkerFrame| matches!(frame.frame, Some(Frame::Subscribe(_)));
            self.late_subscribes = batch.frames.extract_if(.., is_late).collect();
            batch.frames.splice(..0, late);
        }
        if self.broken.positions {
            for frame in &mut batch.frames {
                if let Some(Frame::Subscribe(subscribe)) = &mut frame.frame {
                    subscribe.after = None;
                }
            }
        }
        Some(batch)
    }

    /// A batch from a broker. Returns the bytes it may send anew.
    ///
    /// # Errors
    /// The broker broke the link's protocol.
    pub fn handle_batch(
        &mut self,
        broker: u32,
        batch: BrokerBatch,
        now: Millis,
    ) -> Result<u64, BrokerAtFault> {
        let clients = &mut self.clients;
        Ok(self
            .core
            .handle_batch(broker, batch, clients, present(now))?)
    }

    /// The reads to be brought to their owners, of those that `can_reach` says
    /// can be.
    #[must_use]
    pub fn take_reads(&mut self, can_reach: impl Fn(u32) -> bool) -> Vec<SimRead> {
        let view = self.core.router.view();
        let mut taken = Vec::new();
        self.core.reads.send(|id, question| {
            let broker = view.owner(question.shard())?.slot;
            let request = question.request();
            can_reach(broker).then(|| {
                taken.push(SimRead {
                    id,
                    broker,
                    request,
                });
                broker
            })
        });
        taken
    }

    /// A broker's answer to a read; `None` if it has none.
    pub fn handle_read(&mut self, id: u64, mut response: Option<ReadResponse>, now: Millis) {
        if self.broken.missed
            && let Some(response) = &mut response
        {
            response.complete = true;
        }
        self.core
            .handle_read(id, response, &mut self.clients, present(now));
    }

    /// To be called about every 100 ms.
    pub fn handle_tick(&mut self, now: Millis) {
        let mut due = Vec::new();
        for (index, client) in &mut self.clients.by_index {
            if let Some((_, since)) = &mut client.paused {
                client.session.extend_life(now.since(*since));
                *since = now;
            }
            if now >= client.session.deadline() {
                due.push(ConnectionKey {
                    index: *index,
                    serial: client.serial,
                });
            }
        }
        for key in due {
            self.handle_session_timeout(key, now);
        }
        self.core.handle_tick(&mut self.clients, present(now));
    }

    /// Times that publications were missing for this worker's subscribers.
    #[must_use]
    pub fn holes(&self) -> u64 {
        self.core.stats.holes
    }

    /// Whether every broker of the view can be reached, and owners have all that
    /// clients subscribe to: one that was refused is asked again only later.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        let unconfirmed = self.core.channels.unconfirmed(|_| true);
        self.core.router.is_whole() && unconfirmed.is_empty()
    }

    /// How full the queues are.
    #[must_use]
    pub fn fill(&self) -> WorkerFill {
        let fill = self.core.router.fill();
        let clients = self.clients.by_index.values();
        WorkerFill {
            kept_bytes: fill.kept_bytes,
            accounted_bytes: fill.accounted_bytes,
            window_bytes: fill.window_bytes,
            frames: fill.frames,
            paused: clients.filter(|client| client.paused.is_some()).count(),
            reads: self.core.reads.len(),
        }
    }

    fn resume_client(&mut self, key: ConnectionKey, now: Millis) {
        while let Some(client) = self.clients.get(key)
            && let Some((pause, since)) = client.paused
            && self.core.may_resume(pause, &client.session, present(now))
        {
            client.session.extend_life(now.since(since));
            client.paused = None;
            let Some((text, at)) = client.unfinished.take() else {
                return;
            };
            let mut out = Vec::new();
            let session = &mut client.session;
            let rest = (&*text, at);
            let ingress = self
                .core
                .go_on_with_batch(key, session, rest, &mut out, present(now));
            self.obey(key, ingress, &text, &mut out, now);
        }
    }

    /// What a message, of which something may be left, means for its client.
    fn obey(
        &mut self,
        key: ConnectionKey,
        mut ingress: Ingress,
        text: &str,
        out: &mut Vec<Bytes>,
        now: Millis,
    ) {
        while let Some(client) = self.clients.get(key)
            && let Ingress::Unfinished { at, pause: None } = ingress
        {
            let session = &mut client.session;
            ingress = self
                .core
                .go_on_with_batch(key, session, (text, at), out, present(now));
        }
        self.clients.send(key, out);
        let Some(client) = self.clients.get(key) else {
            return;
        };
        match ingress {
            Ingress::Pause(pause) => client.paused = Some((pause, now)),
            Ingress::Unfinished { at, pause } => {
                client.paused = pause.map(|pause| (pause, now));
                client.unfinished = Some((text.to_owned(), at));
            }
            Ingress::Continue | Ingress::Close(_) => {}
        }
        self.close_if(key, ingress);
    }

    fn handle_session_timeout(&mut self, key: ConnectionKey, now: Millis) {
        let Some(client) = self.clients.get(key) else {
            return;
        };
        let (now, session) = (present(now), &mut client.session);
        let mut out = Vec::new();
        let effect = self
            .core
            .with_session(&mut out, now, |cx| session.handle_timeout(cx));
        let ingress = self.core.apply(key, session, effect, &mut out, now);
        self.clients.send(key, &mut out);
        self.close_if(key, ingress);
    }

    fn close_if(&mut self, key: ConnectionKey, ingress: Ingress) {
        if let Ingress::Close(code) = ingress {
            self.clients.hear(key, Vec::new(), Some(code.0));
            self.disconnect(ClientKey(key));
        }
    }
}

fn present(now: Millis) -> Now {
    Now {
        millis: now,
        unix: 1_700_000_000 + now.0 / 1000,
    }
}

/// The worker lists its channels in the order of a hash map, which no seed
/// repeats; in which order a run of them is asked for means nothing.
fn sort_subscribes(frames: &mut [WorkerFrame]) {
    let name = |frame: &WorkerFrame| match &frame.frame {
        Some(Frame::Subscribe(subscribe)) => Some(subscribe.channel.clone()),
        Some(Frame::Hello(_) | Frame::Unsubscribe(_) | Frame::Publish(_)) | None => None,
    };
    for run in frames.chunk_by_mut(|a, b| name(a).is_some() && name(b).is_some()) {
        run.sort_by_key(name);
    }
}

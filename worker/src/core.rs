//! The worker without its sockets: sessions are fed, publications routed, and
//! what the brokers send is fanned out. Pure; the engine and the simulation
//! drive it.

mod hand_over;

use bytes::Bytes;
use muster_proto::{
    ShardId, View,
    link::{
        BrokerBatch, BrokerFrame, NotOwner, RefusalReason, Relay, Subscribed, broker_frame::Frame,
    },
    shard_of,
};
use muster_wire::{
    ChannelName, Millis,
    answer::{self, CallError},
    close::CloseCode,
    packet::{Batch, Incoming, Packet, Packets},
    session::{Context, Effect, Publish, Rules, Session},
    token::UnixSeconds,
};
use tracing::{debug, warn};

use crate::{
    auth::Auth,
    channels::{Arrival, Channels, Joined},
    connection::ConnectionKey,
    outbox::Delivery,
    reads::Reads,
    router::{Answer, Call, LinkBroken, Publication, Router, ViewChange, Waiter},
    stats::Stats,
};

mod followers;
mod host;
mod reads;

use self::host::SessionHost;
pub(crate) use self::{host::Names, reads::OperatorRead};

/// Packets of one array handled in one turn (delivery.md F1).
const PACKETS_MAX: usize = 64;

/// The clients of a worker, as the core needs them.
pub(crate) trait Clients {
    /// The session on a connection that is still there.
    fn session(&mut self, key: ConnectionKey) -> Option<&mut Session>;

    /// Queues frames for one client, leaving `frames` empty.
    fn send(&mut self, key: ConnectionKey, frames: &mut Vec<Bytes>);

    /// Queues one publication for many clients.
    fn fan_out(&mut self, keys: &[ConnectionKey], delivery: Delivery<'_>, stats: &mut Stats);
}

/// The present: one reading of the clocks for one turn of the worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Now {
    pub(crate) millis: Millis,
    pub(crate) unix: UnixSeconds,
}

/// What a message from a client means for its connection.
#[must_use]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ingress {
    Continue,
    /// Read nothing more from this client until there is room.
    Pause(Pause),
    /// The message is an array of which the bytes from `at` on are left for
    /// another turn, or for when there is room.
    Unfinished {
        at: usize,
        pause: Option<Pause>,
    },
    Close(CloseCode),
}

/// Why nothing is read from a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Pause {
    /// The owner of this shard is behind with acks (delivery.md A6).
    Shard(ShardId),
    /// Its own calls wait for the cluster.
    Answers,
    /// It is faster than it may be (delivery.md F3).
    Rate,
}

#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) rules: Rules,
    pub(crate) auth: Auth,
    pub(crate) names: Names,
    pub(crate) channels: Channels,
    pub(crate) router: Router,
    pub(crate) reads: Reads,
    pub(crate) stats: Stats,
    /// Subscriptions that their owner sent elsewhere; asked for again.
    retries: Vec<ChannelName>,
    /// Something was refused and is to be sent again soon.
    was_refused: bool,
    /// What operators are to be told.
    operator_answers: Vec<OperatorAnswer>,
    operator_reads: Vec<OperatorRead>,
    /// Frames for one client, for reuse.
    out: Vec<Bytes>,
}

/// What became of an operator's publication.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct OperatorAnswer {
    pub(crate) query: u64,
    pub(crate) result: Result<(), CallError>,
}

impl Core {
    pub(crate) fn new(rules: Rules, auth: Auth, names: Names, router: Router) -> Self {
        Self {
            rules,
            auth,
            names,
            channels: Channels::default(),
            router,
            reads: Reads::default(),
            stats: Stats::default(),
            retries: Vec::new(),
            was_refused: false,
            operator_answers: Vec::new(),
            operator_reads: Vec::new(),
            out: Vec::new(),
        }
    }

    /// Lets a session do something; what it says is appended to `out`.
    pub(crate) fn with_session<R>(
        &self,
        out: &mut Vec<Bytes>,
        now: Now,
        act: impl FnOnce(&mut Context<'_>) -> R,
    ) -> R {
        let host = SessionHost {
            auth: &self.auth,
            names: &self.names,
            channels: &self.channels,
        };
        act(&mut Context {
            now: now.millis,
            unix_now: now.unix,
            rules: &self.rules,
            host: &host,
            out,
        })
    }

    /// A text message from a client (hops 1 to 3).
    pub(crate) fn handle_text(
        &mut self,
        key: ConnectionKey,
        session: &mut Session,
        text: &str,
        out: &mut Vec<Bytes>,
        now: Now,
    ) -> Ingress {
        match Incoming::parse(text) {
            Incoming::Pong(version) => {
                let effect = self.with_session(out, now, |cx| session.handle_pong(version, cx));
                let ingress = self.apply(key, session, effect, out, now);
                self.slow_down(session, ingress, now)
            }
            Incoming::Noise => {
                let effect = self.with_session(out, now, |cx| session.handle_noise(cx));
                let ingress = self.apply(key, session, effect, out, now);
                self.slow_down(session, ingress, now)
            }
            Incoming::Packets(Packets::One(packet)) => packet.map_or(Ingress::Continue, |packet| {
                self.handle_packet(key, session, packet, out, now)
            }),
            Incoming::Packets(Packets::Batch(_)) => {
                self.go_on_with_batch(key, session, (text, 0), out, now)
            }
        }
    }

    /// A turn's share of an array of packets, of which a number of bytes is done
    /// with (delivery.md F1).
    pub(crate) fn go_on_with_batch(
        &mut self,
        key: ConnectionKey,
        session: &mut Session,
        (text, at): (&str, usize),
        out: &mut Vec<Bytes>,
        now: Now,
    ) -> Ingress {
        let mut batch = Batch::resume(text, at);
        for _ in 0..PACKETS_MAX {
            let Some(packet) = batch.next() else {
                return Ingress::Continue;
            };
            match self.handle_packet(key, session, packet, out, now) {
                Ingress::Continue => {}
                Ingress::Pause(pause) => {
                    return Ingress::Unfinished {
                        at: batch.position(),
                        pause: Some(pause),
                    };
                }
                other @ (Ingress::Close(_) | Ingress::Unfinished { .. }) => return other,
            }
        }
        Ingress::Unfinished {
            at: batch.position(),
            pause: None,
        }
    }

    fn handle_packet(
        &mut self,
        key: ConnectionKey,
        session: &mut Session,
        packet: Packet<'_>,
        out: &mut Vec<Bytes>,
        now: Now,
    ) -> Ingress {
        let effect = self.with_session(out, now, |cx| session.handle_packet(packet, cx));
        let ingress = self.apply(key, session, effect, out, now);
        self.slow_down(session, ingress, now)
    }

    /// Something came that is no packet.
    pub(crate) fn handle_frame(&self, session: &mut Session, now: Now) -> Ingress {
        session.handle_frame(now.millis, &self.rules);
        self.slow_down(session, Ingress::Continue, now)
    }

    /// Pauses a client that would go on, if it has done enough.
    fn slow_down(&self, session: &Session, ingress: Ingress, now: Now) -> Ingress {
        let pauses = [Pause::Answers, Pause::Rate];
        let due = || {
            let mut pauses = pauses.into_iter();
            pauses.find(|pause| !self.may_resume(*pause, session, now))
        };
        match ingress {
            Ingress::Continue => due().map_or(Ingress::Continue, Ingress::Pause),
            Ingress::Pause(_) | Ingress::Unfinished { .. } | Ingress::Close(_) => ingress,
        }
    }

    /// Carries out what a session wants.
    pub(crate) fn apply(
        &mut self,
        key: ConnectionKey,
        session: &mut Session,
        effect: Effect<'_>,
        out: &mut Vec<Bytes>,
        now: Now,
    ) -> Ingress {
        match effect {
            Effect::Nothing => {}
            Effect::Close(code) => return Ingress::Close(code),
            Effect::Subscribe(channel) => match self.channels.join(&channel, key, || {
                self.names.namespaces.slow_client(&channel)
            }) {
                Joined::Confirmed => {
                    self.with_session(out, now, |cx| session.confirm(&channel, cx));
                }
                Joined::Waiting => {}
                Joined::First => {
                    self.request(&channel);
                    return self.pause_without_room(&channel);
                }
            },
            Effect::Follow { channel, since } => {
                return self.follow((key, session), &channel, since, out, now);
            }
            Effect::Unsubscribe(channel) => {
                self.leave(key, &channel);
                return self.pause_without_room(&channel);
            }
            Effect::Publish(publish) => return self.publish(key, session, publish, now),
            Effect::Read(read) => self.read_for_client(key, session, read, out, now),
        }
        Ingress::Continue
    }

    /// A connection ended: its subscriptions end with it.
    pub(crate) fn handle_end(&mut self, key: ConnectionKey, session: &Session) {
        for channel in session.channels() {
            self.leave(key, channel);
        }
    }

    /// Whether the reason for which a client is not read has gone.
    pub(crate) fn may_resume(&self, pause: Pause, session: &Session, now: Now) -> bool {
        match pause {
            Pause::Rate => !session.is_over_rate(now.millis, &self.rules),
            Pause::Shard(shard) => self.router.has_room(shard),
            Pause::Answers => !session.is_congested(&self.rules),
        }
    }

    /// Everything a broker sent in one go (hop 5). Returns the bytes it may
    /// send anew.
    pub(crate) fn handle_batch(
        &mut self,
        broker: u32,
        batch: BrokerBatch,
        clients: &mut impl Clients,
        now: Now,
    ) -> Result<u64, LinkBroken> {
        let mut relayed_bytes = 0;
        for BrokerFrame { frame } in batch.frames {
            match frame {
                Some(Frame::Relay(relay)) => {
                    relayed_bytes += relay.data.as_ref().map_or(0, Bytes::len) as u64;
                    self.relay(broker, &relay, clients);
                }
                Some(Frame::Ack(ack)) => self.router.ack(broker, ack.first_seq, ack.last_seq)?,
                Some(Frame::Refusal(refusal)) => {
                    let reason = refusal.reason();
                    debug!(broker, ?reason, "A broker refused a publication.");
                    self.was_refused = true;
                    self.router
                        .refusal(broker, refusal.seq, reason, now.millis)?;
                }
                Some(Frame::Subscribed(subscribed)) => {
                    self.subscribed(&subscribed, clients, now);
                }
                Some(Frame::NotOwner(not_owner)) => {
                    self.was_refused = true;
                    self.not_owner(&not_owner, clients, now);
                }
                // A newer broker's, of no consequence for this worker.
                None => {}
            }
        }
        self.answer_publishers(clients);
        Ok(relayed_bytes)
    }

    /// A link stands.
    pub(crate) fn handle_link_up(&mut self, broker: u32, incarnation: u64) -> bool {
        let wanted = self.unconfirm_owned_by(broker);
        let stands = self.router.link_up(broker, incarnation);
        for channel in wanted {
            self.request(&channel);
        }
        self.router.send_all();
        stands
    }

    /// A link broke.
    pub(crate) fn handle_link_down(&mut self, broker: u32) {
        self.unconfirm_owned_by(broker);
        self.router.link_down(broker);
        self.reads.link_down(broker);
    }

    /// The cluster's view changed.
    pub(crate) fn handle_view(&mut self, view: View) -> ViewChange {
        let change = self.router.set_view(view);
        let replaced = change.started.iter().map(|node| node.slot);
        for broker in replaced.chain(change.stopped.iter().copied()) {
            self.reads.link_down(broker);
        }
        let moved = |shard| change.moved.binary_search(&shard).is_ok();
        for channel in self.channels.unconfirm(moved) {
            self.request(&channel);
        }
        self.router.send_all();
        change
    }

    /// Gives up what waited too long and tries again what was refused.
    pub(crate) fn handle_tick(&mut self, clients: &mut impl Clients, now: Now) {
        for channel in std::mem::take(&mut self.retries) {
            self.request(&channel);
        }
        // A subscription that the same owner refused, too, goes out before the
        // publications that came after it, wherever its refusal is.
        let released = self.router.release(now.millis);
        if !released.is_empty() {
            for channel in self.channels.unconfirmed(|shard| released.contains(&shard)) {
                self.request(&channel);
            }
        }
        self.router.handle_tick(now.millis);
        self.answer_publishers(clients);
        self.give_up_reads(clients, now);
        self.was_refused = self.router.is_holding();
    }

    /// Whether the next [`Self::handle_tick`] has something to send again, so
    /// that publishers and subscribers wait for it.
    pub(crate) fn is_urgent(&self) -> bool {
        self.was_refused
    }

    pub(crate) fn leave(&mut self, key: ConnectionKey, channel: &ChannelName) {
        if self.channels.leave(channel, key) {
            self.router.unsubscribe(channel);
        }
    }

    /// Asks the owner for a channel that it does not have.
    fn request(&mut self, channel: &ChannelName) {
        if let Some((request, after)) = self.channels.request(channel) {
            self.router.subscribe(channel, request, after);
        }
    }

    fn pause_without_room(&self, channel: &ChannelName) -> Ingress {
        let shard = shard_of(&**channel);
        if self.router.has_room(shard) {
            Ingress::Continue
        } else {
            Ingress::Pause(Pause::Shard(shard))
        }
    }

    fn publish(
        &mut self,
        key: ConnectionKey,
        session: &Session,
        publish: Publish<'_>,
        now: Now,
    ) -> Ingress {
        let Publish {
            channel,
            data,
            cid,
            n,
        } = publish;
        self.stats.publications += 1;
        let shard = shard_of(&*channel);
        let publication = Publication {
            channel,
            data: data.map(|raw| Bytes::copy_from_slice(raw.get().as_bytes())),
            producer: *session.id(),
            n,
            waiter: cid.map(|cid| {
                Waiter::Client(Call {
                    connection: key,
                    cid,
                })
            }),
            accepted: now.millis,
        };
        self.router.publish(publication);
        if self.router.has_room(shard) {
            Ingress::Continue
        } else {
            Ingress::Pause(Pause::Shard(shard))
        }
    }

    /// Routes an operator's publication; [`Self::take_operator_answers`] says
    /// what became of it. False, and nothing is done, without room for it.
    pub(crate) fn publish_for_operator(&mut self, publication: Publication) -> bool {
        if !self.router.has_room(shard_of(&*publication.channel)) {
            return false;
        }
        self.stats.publications += 1;
        self.router.publish(publication);
        true
    }

    pub(crate) fn take_operator_answers(&mut self) -> Vec<OperatorAnswer> {
        std::mem::take(&mut self.operator_answers)
    }

    fn relay(&mut self, broker: u32, relay: &Relay, clients: &mut impl Clients) {
        let Ok(name) = std::str::from_utf8(&relay.channel) else {
            warn!("A broker relayed a publication of a channel whose name is not UTF-8.");
            return;
        };
        let is_owner = |shard| self.router.is_owner(broker, shard);
        let arrived = self.channels.arrive(name, relay.offset, is_owner);
        let Some(arrived) = arrived else {
            // Unsubscribed, or moved to another owner, meanwhile.
            return;
        };
        match arrived.arrival {
            Arrival::Next => {}
            Arrival::Repeated if arrived.movers.is_empty() => return,
            Arrival::Repeated => {}
            Arrival::AfterHole => self.stats.holes += 1,
        }
        let frame = answer::publication(name, relay.data.as_deref());
        let delivery = Delivery {
            frame: &frame,
            channel: arrived.number,
            slow_client: arrived.slow_client,
        };
        if !arrived.followers.is_empty() {
            let frame = answer::publication_at(name, relay.offset, relay.data.as_deref());
            let delivery = Delivery {
                frame: &frame,
                ..delivery
            };
            clients.fan_out(&arrived.followers, delivery, &mut self.stats);
        }
        clients.fan_out(arrived.subscribers, delivery, &mut self.stats);
        clients.fan_out(&arrived.movers, delivery, &mut self.stats);
    }

    fn subscribed(&mut self, subscribed: &Subscribed, clients: &mut impl Clients, now: Now) {
        let Ok(name) = std::str::from_utf8(&subscribed.channel) else {
            warn!("A broker confirmed a channel whose name is not UTF-8.");
            return;
        };
        let position = subscribed.position.unwrap_or_default().into();
        let (waited, has_hole) =
            self.channels
                .confirm(name, subscribed.request, position, subscribed.recovered);
        if has_hole {
            // Stock clients are not told (delivery.md B7): counted, and logged once
            // a second by whoever reports the statistics.
            self.stats.holes += 1;
            self.tell_hole(name, clients);
        }
        let mut out = std::mem::take(&mut self.out);
        for key in waited {
            if let Some(session) = clients.session(key) {
                self.with_session(&mut out, now, |cx| session.confirm(name, cx));
                clients.send(key, &mut out);
            }
        }
        self.out = out;
        self.start_followers(name, clients, now);
    }

    /// The subscription is asked for again, unless the owner will never have it.
    fn not_owner(&mut self, not_owner: &NotOwner, clients: &mut impl Clients, now: Now) {
        let Ok(name) = ChannelName::try_from(&not_owner.channel[..]) else {
            warn!("A broker refused a channel whose name is none.");
            return;
        };
        if not_owner.reason() == RefusalReason::Unspecified {
            if self.channels.is_current(&name, not_owner.request) {
                self.router.hold(shard_of(&*name), now.millis);
            }
            return;
        }
        let error = CallError::broker(format!(
            "Failed to subscribe socket to the {name} channel - The cluster has as many channels as it may have"
        ));
        let mut out = std::mem::take(&mut self.out);
        for key in self.channels.refuse(&name, not_owner.request) {
            if let Some(session) = clients.session(key) {
                self.with_session(&mut out, now, |cx| session.refuse(&name, &error, cx));
                clients.send(key, &mut out);
            }
        }
        self.out = out;
        // Those who had it before the owner lost it still want it.
        self.retries.push(name);
    }

    fn answer_publishers(&mut self, clients: &mut impl Clients) {
        let mut out = std::mem::take(&mut self.out);
        for Answer { waiter, result } in self.router.take_answers() {
            let Call { connection, cid } = match waiter {
                Waiter::Client(call) => call,
                Waiter::Operator(query) => {
                    self.operator_answers.push(OperatorAnswer { query, result });
                    continue;
                }
            };
            out.push(match &result {
                Ok(()) => answer::success(&cid),
                Err(error) => failed(&mut self.stats, &cid, error),
            });
            clients.send(connection, &mut out);
        }
        self.out = out;
    }

    fn unconfirm_owned_by(&mut self, broker: u32) -> Vec<ChannelName> {
        let router = &self.router;
        self.channels
            .unconfirm(|shard| router.is_owner(broker, shard))
    }
}

fn failed(stats: &mut Stats, cid: &muster_wire::CallId, error: &CallError) -> Bytes {
    stats.publications_failed += 1;
    answer::failure(cid, error)
}

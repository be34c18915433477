//! The server's side of one client's session.
//!
//! A [`Session`] is plain data: it is its own snapshot. It is fed with packets,
//! the time and news from the cluster, queues frames for the client in
//! [`Context::out`], and returns what the worker must do as an [`Effect`].

mod answers;
mod authentication;
mod heartbeat;
mod history;
mod host;
mod id;
mod pace;
mod subscriptions;
#[cfg(test)]
mod tests;

use std::{borrow::Cow, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use self::{answers::Answers, authentication::Token, pace::Pace, subscriptions::Subscriptions};
pub use self::{
    heartbeat::Heartbeat,
    history::{HistoryEntry, HistoryPage, HistoryRead},
    host::{Action, Context, Effect, Host, Publish},
    id::{SESSION_ID_LEN, SessionId},
    pace::Rate,
};
use crate::{
    CallId, ChannelName, Millis, Position,
    answer::{self, CallError},
    close::CloseCode,
    packet::{self, ChannelData, Packet, Version},
};

/// What all sessions of a worker have in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// Longest from TCP accept to `#handshake`; then 4005.
    pub handshake_timeout: Duration,
    /// Time between two pings.
    pub ping_interval: Duration,
    /// A client without a sign of life for this long is closed with 4001; also
    /// the `pingTimeout` it is told.
    pub pong_timeout: Duration,
    /// Channels one session may subscribe to.
    pub channels_max: usize,
    /// Packets a client may send, but for subscriptions.
    pub packets: Rate,
    /// Subscriptions a client may ask for; with a burst of at least
    /// `channels_max`, so that a reconnect, which brings all of a client's at
    /// once, is never slowed by it (delivery.md F3).
    pub subscribes: Rate,
}

/// One client's protocol state, from TCP accept to close.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    id: SessionId,
    phase: Phase,
    token: Option<Token>,
    /// Publications so far.
    published: u64,
    /// Reads of histories so far.
    reads: u64,
    heartbeat: Heartbeat,
    subscriptions: Subscriptions,
    answers: Answers,
    /// Everything the client sent but subscriptions.
    packets: Pace,
    subscribes: Pace,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Phase {
    /// Nothing but `#handshake` is allowed, until then.
    Connecting {
        deadline: Millis,
    },
    Open,
}

impl Session {
    /// A session on a connection that was accepted at `accepted`.
    #[must_use]
    pub fn new(id: SessionId, accepted: Millis, now: Millis, rules: &Rules) -> Self {
        Self {
            id,
            phase: Phase::Connecting {
                deadline: accepted + rules.handshake_timeout,
            },
            token: None,
            published: 0,
            reads: 0,
            heartbeat: Heartbeat::new(now, rules),
            subscriptions: Subscriptions::default(),
            answers: Answers::default(),
            packets: Pace::default(),
            subscribes: Pace::default(),
        }
    }

    /// What the client knows this session by.
    #[must_use]
    pub fn id(&self) -> &SessionId {
        &self.id
    }

    /// Whether `#handshake` is done.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    /// Whether a token stands.
    #[must_use]
    pub fn is_authenticated(&self) -> bool {
        self.token.is_some()
    }

    /// Channels this session wants, confirmed or not.
    pub fn channels(&self) -> impl ExactSizeIterator<Item = &ChannelName> {
        self.subscriptions.names()
    }

    /// The same, and whether the channel's owner has the subscription.
    pub fn subscriptions(&self) -> impl Iterator<Item = (&ChannelName, bool)> {
        self.subscriptions.iter()
    }

    /// Replaces channel names by equal ones, which share their allocation with
    /// other sessions' of the same worker.
    pub fn intern(&mut self, intern: impl Fn(&str) -> Option<ChannelName>) {
        self.subscriptions.intern(intern);
    }

    /// Whether what came from another process keeps this type's invariants.
    pub(crate) fn is_sound(&self) -> bool {
        self.subscriptions.is_sound()
    }

    /// Whether so many answers wait for the cluster that nothing more may be
    /// read from this client for now.
    #[must_use]
    pub fn is_congested(&self, rules: &Rules) -> bool {
        self.answers.len() > rules.channels_max + answers::WAITING_MAX
            || self.answers.pending_reads() >= history::READS_MAX
    }

    /// Whether the client went faster than it may, so that nothing more may be
    /// read from it for now.
    #[must_use]
    pub fn is_over_rate(&self, now: Millis, rules: &Rules) -> bool {
        self.packets.is_over(rules.packets, now) || self.subscribes.is_over(rules.subscribes, now)
    }

    /// Something came that is no packet, and cost time all the same: a WebSocket
    /// ping, or a piece of a message.
    pub fn handle_frame(&mut self, now: Millis, rules: &Rules) {
        self.packets.count(rules.packets, now);
    }

    /// Any bytes from the client are a sign of life (socketcluster.md section 4).
    pub fn handle_sign_of_life(&mut self, now: Millis, rules: &Rules) {
        self.heartbeat.handle_sign_of_life(now, rules);
    }

    /// Time during which the worker itself did not read this client must not
    /// count against it (delivery.md A6).
    pub fn extend_life(&mut self, by: Duration) {
        self.heartbeat.extend(by);
    }

    /// When [`Self::handle_timeout`] wants to be called.
    #[must_use]
    pub fn deadline(&self) -> Millis {
        match self.phase {
            Phase::Connecting { deadline } => deadline.min(self.heartbeat.deadline()),
            Phase::Open => self.heartbeat.deadline(),
        }
    }

    /// Sends a ping that is due, or ends a session that is out of time.
    pub fn handle_timeout(&mut self, cx: &mut Context<'_>) -> Effect<'static> {
        if let Phase::Connecting { deadline } = self.phase
            && cx.now >= deadline
        {
            return Effect::Close(CloseCode::HANDSHAKE_TIMEOUT);
        }
        self.heartbeat.handle_timeout(cx)
    }

    /// The answer to a ping.
    pub fn handle_pong(&mut self, version: Version, cx: &mut Context<'_>) -> Effect<'static> {
        self.packets.count(cx.rules.packets, cx.now);
        if !self.is_open() {
            return Effect::Close(CloseCode::BEFORE_HANDSHAKE);
        }
        self.heartbeat.handle_pong(version);
        self.drop_expired_token(cx);
        Effect::Nothing
    }

    /// A message that holds no packet.
    pub fn handle_noise(&mut self, cx: &mut Context<'_>) -> Effect<'static> {
        self.packets.count(cx.rules.packets, cx.now);
        if self.is_open() {
            Effect::Nothing
        } else {
            Effect::Close(CloseCode::BEFORE_HANDSHAKE)
        }
    }

    /// One packet; the dispatch of socketcluster.md section 2.
    pub fn handle_packet<'a>(&mut self, packet: Packet<'a>, cx: &mut Context<'_>) -> Effect<'a> {
        let event = packet.event.as_deref().unwrap_or_default();
        if event == "#subscribe" {
            self.subscribes.count(cx.rules.subscribes, cx.now);
        } else {
            self.packets.count(cx.rules.packets, cx.now);
        }
        match (event, &packet.cid) {
            ("#handshake", None) => return Effect::Close(CloseCode::BAD_HANDSHAKE),
            ("#handshake", Some(cid)) => {
                self.handshake(cid, packet.data, cx);
                return Effect::Nothing;
            }
            _ if !self.is_open() => return Effect::Close(CloseCode::BEFORE_HANDSHAKE),
            ("#authenticate", None) => return Effect::Close(CloseCode::BAD_HANDSHAKE),
            ("#authenticate", Some(cid)) => {
                self.authenticate(cid, packet.data, cx);
                return Effect::Nothing;
            }
            ("#removeAuthToken", _) => {
                self.token = None;
                return Effect::Nothing;
            }
            _ => {}
        }
        if packet.event.is_none() {
            // An answer to a call of ours (we make none), or nothing at all.
            return Effect::Nothing;
        }
        self.drop_expired_token(cx);
        match event {
            "#publish" => self.publish(packet.data, packet.cid, cx),
            "#subscribe" => self.subscribe(packet.data, packet.cid, cx),
            "#unsubscribe" => self.unsubscribe(packet.data, packet.cid.as_ref(), cx),
            "history" => self.read_history(packet.data, packet.cid.as_ref(), cx),
            other => {
                if other == "#disconnect" {
                    // Only v14 and older send it.
                    self.heartbeat.handle_pong(Version::One);
                }
                if let Some(cid) = &packet.cid {
                    let error = CallError::unknown_procedure(other);
                    self.answers.push(answer::failure(cid, &error), cx.out);
                }
                Effect::Nothing
            }
        }
    }

    /// The channel's owner has the subscription.
    pub fn confirm(&mut self, channel: &str, cx: &mut Context<'_>) {
        self.subscriptions.confirm(channel);
        self.answers.resolve(channel, answer::success, cx.out);
    }

    /// The same for a client that wants positions: the subscription goes on right
    /// after this one. `recovered` is false when what came after the position that
    /// the client had is not kept any more.
    pub fn confirm_at(
        &mut self,
        channel: &str,
        position: Position,
        recovered: bool,
        cx: &mut Context<'_>,
    ) {
        self.subscriptions.confirm(channel);
        let frame = |cid: &CallId| answer::subscribed_at(cid, position, recovered);
        self.answers.resolve(channel, frame, cx.out);
    }

    /// Whether the session subscribes to the channel and wants positions.
    #[must_use]
    pub fn follows(&self, channel: &str) -> bool {
        self.subscriptions.follows(channel)
    }

    /// Whether the session wants positions of any channel.
    #[must_use]
    pub fn follows_any(&self) -> bool {
        self.subscriptions.follows_any()
    }

    /// The channel's owner will not have the subscription.
    pub fn refuse(&mut self, channel: &str, error: &CallError, cx: &mut Context<'_>) {
        self.subscriptions.remove(channel);
        self.answers
            .resolve(channel, |cid| answer::failure(cid, error), cx.out);
    }

    /// The operator ends a subscription; the client will not come back to it by
    /// itself. Returns false if there was none.
    pub fn kick_out(&mut self, channel: &str, message: Option<&str>, cx: &mut Context<'_>) -> bool {
        let removed = self.subscriptions.remove(channel);
        if removed {
            self.answers.resolve(channel, answer::success, cx.out);
            cx.out.push(answer::kick_out(channel, message));
        }
        removed
    }

    fn publish<'a>(
        &mut self,
        data: Option<&'a RawValue>,
        cid: Option<CallId>,
        cx: &mut Context<'_>,
    ) -> Effect<'a> {
        let ChannelData { channel, data, .. } = ChannelData::parse(data);
        match self.allowed_channel(channel, Action::Publish, cx.host) {
            Ok(channel) => {
                self.published += 1;
                Effect::Publish(Publish {
                    channel,
                    data,
                    cid,
                    n: self.published,
                })
            }
            Err(error) => self.answer_failure(cid.as_ref(), &error, cx),
        }
    }

    fn subscribe(
        &mut self,
        data: Option<&RawValue>,
        cid: Option<CallId>,
        cx: &mut Context<'_>,
    ) -> Effect<'static> {
        // Without a cid the reference does not perform it (section 7).
        let Some(cid) = cid else {
            return Effect::Nothing;
        };
        // v14 servers also took a bare string.
        let ChannelData { channel, since, .. } = ChannelData::parse(data);
        let channel = channel.or_else(|| data.and_then(packet::string));
        let channel = match self.allowed_channel(channel, Action::Subscribe, cx.host) {
            Ok(channel) => channel,
            Err(error) => return self.answer_failure(Some(&cid), &error, cx),
        };
        let since = match since.map(history::since).transpose() {
            Ok(since) => since,
            Err(error) => return self.answer_failure(Some(&cid), &error, cx),
        };
        match self.subscriptions.find(&channel) {
            Some(true) => {
                self.answers.push(answer::success(&cid), cx.out);
                Effect::Nothing
            }
            Some(false) => {
                self.answers.wait(cid, channel);
                Effect::Nothing
            }
            None if self.subscriptions.len() >= cx.rules.channels_max => {
                let error = CallError::broker(format!(
                    "Failed to subscribe socket to the {channel} channel - InvalidActionError: \
                     Socket {} tried to exceed the channel subscription limit of {}",
                    self.id, cx.rules.channels_max
                ));
                self.answer_failure(Some(&cid), &error, cx)
            }
            None => {
                self.subscriptions.insert(channel.clone(), since.is_some());
                self.answers.wait(cid, channel.clone());
                match since {
                    None => Effect::Subscribe(channel),
                    Some(since) => Effect::Follow { channel, since },
                }
            }
        }
    }

    fn unsubscribe(
        &mut self,
        data: Option<&RawValue>,
        cid: Option<&CallId>,
        cx: &mut Context<'_>,
    ) -> Effect<'static> {
        let channel = match wanted_channel(data.and_then(packet::string), "Unsubscribe", cx.host) {
            Ok(channel) => channel,
            Err(error) => return self.answer_failure(cid, &error, cx),
        };
        if !self.subscriptions.remove(&channel) {
            let error = CallError::broker(format!(
                "Failed to unsubscribe socket from the {channel} channel - InvalidActionError: \
                 Socket {} tried to unsubscribe from a channel which it is not subscribed to",
                self.id
            ));
            return self.answer_failure(cid, &error, cx);
        }
        // A subscribe that still waits was asked for and is now given up: done.
        self.answers.resolve(&channel, answer::success, cx.out);
        if let Some(cid) = cid {
            self.answers.push(answer::success(cid), cx.out);
        }
        Effect::Unsubscribe(channel)
    }

    fn allowed_channel(
        &self,
        channel: Option<Cow<'_, str>>,
        action: Action,
        host: &dyn Host,
    ) -> Result<ChannelName, CallError> {
        let channel = wanted_channel(channel, action.as_str(), host)?;
        self.check_right(&channel, action, host).map(|()| channel)
    }

    fn check_right(
        &self,
        channel: &ChannelName,
        action: Action,
        host: &dyn Host,
    ) -> Result<(), CallError> {
        let is_authenticated = self.is_authenticated();
        if host.allows(action, channel, is_authenticated) {
            return Ok(());
        }
        // What a client without a token could get by having one, it is told.
        let with_token = !is_authenticated && host.allows(action, channel, true);
        Err(CallError::not_allowed(action, channel, with_token))
    }

    /// A packet without cid fails in silence.
    fn answer_failure(
        &mut self,
        cid: Option<&CallId>,
        error: &CallError,
        cx: &mut Context<'_>,
    ) -> Effect<'static> {
        if let Some(cid) = cid {
            self.answers.push(answer::failure(cid, error), cx.out);
        }
        Effect::Nothing
    }
}

fn wanted_channel(
    channel: Option<Cow<'_, str>>,
    action: &str,
    host: &dyn Host,
) -> Result<ChannelName, CallError> {
    let channel = channel.ok_or_else(|| {
        CallError::invalid_action(format!("{action} channel name was malformatted"))
    })?;
    host.intern(&channel).map_err(|error| {
        CallError::invalid_action(format!("{action} channel name was malformatted: {error}"))
    })
}

//! The client's end of the protocol: one [`Session`] over many connections.
//!
//! The session is fed with what happens (a connection opened or ended, a text
//! arrived, time passed, the application wants something) and says what to do
//! through [`Session::poll_output`], which is to be called until it answers
//! [`Output::Wait`]. It keeps what outlives a connection: the token, the wanted
//! subscriptions, the calls not sent yet, and when to try again.

mod backoff;
mod calls;
mod channels;
mod event;
mod inbound;
mod packet;

use std::{collections::VecDeque, time::Duration};

use serde_json::value::RawValue;

use crate::{ChannelName, Millis, close::CloseCode};

use backoff::Backoff;
pub use backoff::ReconnectConfig;
use calls::{Calls, Kind};
use channels::Channels;
pub use channels::SubscribeOptions;
pub use event::{CallError, CallNumber, Event, Refused, ServerError};
use packet::Outbound;

/// How a session behaves.
#[derive(Debug, Clone)]
pub struct SessionConfig {
    /// The token for the handshake.
    pub token: Option<String>,
    /// How long a call waits for its answer, the time before it could be sent
    /// included.
    pub ack_timeout: Duration,
    /// How long an attempt may take until the handshake is answered.
    pub connect_timeout: Duration,
    /// Calls that may wait for an answer at the same time.
    pub calls_max: usize,
    /// When to connect again; absent: never.
    pub reconnect: Option<ReconnectConfig>,
}

impl Default for SessionConfig {
    fn default() -> Self {
        Self {
            token: None,
            ack_timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(20),
            calls_max: 4096,
            reconnect: Some(ReconnectConfig::default()),
        }
    }
}

/// What the driver must do next.
#[derive(Debug)]
pub enum Output {
    /// Open a connection; then [`Session::handle_opened`] or
    /// [`Session::handle_closed`].
    Connect,
    /// Send a text frame.
    Send(String),
    /// Send a close frame and forget the connection, also one that is still
    /// being opened. Its end is not to be reported.
    Close {
        /// The status.
        code: CloseCode,
        /// Why; may be empty.
        reason: String,
    },
    /// Tell the application.
    Event(Event),
    /// Nothing more to do before something happens or, if given, before
    /// [`Session::handle_timeout`] is due.
    Wait {
        /// When that is.
        until: Option<Millis>,
    },
}

/// The client's end of the protocol, over one connection after the other.
#[derive(Debug)]
pub struct Session {
    config: SessionConfig,
    phase: Phase,
    token: Option<String>,
    is_authenticated: bool,
    calls: Calls,
    channels: Channels,
    backoff: Backoff,
    outputs: VecDeque<Output>,
}

#[derive(Debug, Clone, Copy)]
enum Phase {
    /// Not started.
    New,
    /// Before the next attempt.
    Waiting { until: Millis },
    /// The driver opens a connection.
    Connecting { deadline: Millis },
    /// `#handshake` was sent.
    Handshaking { cid: u64, deadline: Millis },
    /// The handshake was answered.
    Open {
        since: Millis,
        ping_timeout: Duration,
        ping_deadline: Millis,
    },
    /// For good.
    Ended { code: CloseCode },
}

impl Session {
    /// A session that has not started; `seed` is for the jitter between
    /// attempts and should differ between clients.
    #[must_use]
    pub fn new(config: SessionConfig, seed: u64) -> Self {
        Self {
            token: config.token.clone(),
            calls: Calls::new(config.calls_max),
            backoff: Backoff::new(seed),
            config,
            phase: Phase::New,
            is_authenticated: false,
            channels: Channels::default(),
            outputs: VecDeque::new(),
        }
    }

    /// Begins; without effect on a session that has begun.
    pub fn start(&mut self, now: Millis) {
        if matches!(self.phase, Phase::New) {
            self.connect(now);
        }
    }

    /// The connection that [`Output::Connect`] asked for is open.
    pub fn handle_opened(&mut self, now: Millis) {
        // Late news of an attempt already given up.
        let Phase::Connecting { .. } = self.phase else {
            return;
        };
        let cid = self.calls.next_cid();
        self.send(Outbound::handshake(self.token.as_deref(), cid));
        self.phase = Phase::Handshaking {
            cid,
            deadline: now + self.config.connect_timeout,
        };
    }

    /// The connection ended or could not be opened ([`CloseCode::ABNORMAL`]).
    pub fn handle_closed(&mut self, now: Millis, code: CloseCode, reason: &str) {
        match self.phase {
            Phase::Connecting { .. } | Phase::Handshaking { .. } | Phase::Open { .. } => {
                self.lose(now, code, reason);
            }
            Phase::New | Phase::Waiting { .. } | Phase::Ended { .. } => {}
        }
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Millis) {
        for call in self.calls.expire(now) {
            self.answer(call, Err(CallError::Timeout));
        }
        match self.phase {
            Phase::Waiting { until } if until <= now => self.connect(now),
            Phase::Connecting { deadline } if deadline <= now => {
                self.close_and_lose(
                    now,
                    CloseCode::CONNECT_TIMEOUT,
                    "connection attempt timed out",
                );
            }
            Phase::Handshaking { deadline, .. } if deadline <= now => {
                self.close_and_lose(
                    now,
                    CloseCode::HANDSHAKE_FAILED,
                    "handshake was not answered",
                );
            }
            Phase::Open { ping_deadline, .. } if ping_deadline <= now => {
                self.close_and_lose(now, CloseCode::PING_TIMEOUT, "no ping in time");
            }
            Phase::New
            | Phase::Waiting { .. }
            | Phase::Connecting { .. }
            | Phase::Handshaking { .. }
            | Phase::Open { .. }
            | Phase::Ended { .. } => {}
        }
    }

    /// What to do next.
    pub fn poll_output(&mut self) -> Output {
        if let Some(output) = self.outputs.pop_front() {
            return output;
        }
        let deadline = match self.phase {
            Phase::Waiting { until: deadline }
            | Phase::Connecting { deadline }
            | Phase::Handshaking { deadline, .. }
            | Phase::Open {
                ping_deadline: deadline,
                ..
            } => Some(deadline),
            Phase::New | Phase::Ended { .. } => None,
        };
        let until = [deadline, self.calls.next_deadline()]
            .into_iter()
            .flatten()
            .min();
        Output::Wait { until }
    }

    /// Calls a procedure; [`Event::Answered`] brings the answer.
    ///
    /// While there is no connection the call waits for one.
    ///
    /// # Errors
    /// When too many calls wait, or the session has ended.
    pub fn call(
        &mut self,
        now: Millis,
        event: &str,
        data: Option<&RawValue>,
    ) -> Result<CallNumber, Refused> {
        self.begin_call(now, Kind::Plain, |cid| {
            Outbound::event(event, data, Some(cid))
        })
    }

    /// Publishes; [`Event::Answered`] brings the acknowledgement.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn publish(
        &mut self,
        now: Millis,
        channel: &str,
        data: Option<&RawValue>,
    ) -> Result<CallNumber, Refused> {
        self.begin_call(now, Kind::Plain, |cid| {
            Outbound::publish(channel, data, Some(cid))
        })
    }

    /// Authenticates; [`Event::Answered`] brings the outcome. A token that was
    /// accepted is used in later handshakes.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn authenticate(&mut self, now: Millis, token: &str) -> Result<CallNumber, Refused> {
        let kind = Kind::Authenticate {
            token: token.to_owned(),
        };
        self.begin_call(now, kind, |cid| Outbound::authenticate(token, cid))
    }

    /// Forgets the token, here and at the server.
    pub fn deauthenticate(&mut self) {
        if self.is_open() {
            self.send(Outbound::event("#removeAuthToken", None, None));
        }
        self.drop_token();
    }

    /// Sends a one-way packet.
    ///
    /// # Errors
    /// Without a connection, which may be there again later.
    pub fn transmit(&mut self, event: &str, data: Option<&RawValue>) -> Result<(), Refused> {
        self.check_open()?;
        self.send(Outbound::event(event, data, None));
        Ok(())
    }

    /// Publishes without an acknowledgement.
    ///
    /// # Errors
    /// As [`Self::transmit`].
    pub fn transmit_publish(
        &mut self,
        channel: &str,
        data: Option<&RawValue>,
    ) -> Result<(), Refused> {
        self.check_open()?;
        self.send(Outbound::publish(channel, data, None));
        Ok(())
    }

    /// Wants a channel from now on, over all connections.
    ///
    /// [`Event::Subscribed`] follows for each connection that has it,
    /// [`Event::SubscribeFailed`] if the server refuses, which ends the wish. A
    /// channel that is wanted already is left as it is.
    ///
    /// # Errors
    /// Once the session has ended.
    pub fn subscribe(
        &mut self,
        channel: &ChannelName,
        options: SubscribeOptions,
    ) -> Result<(), Refused> {
        if let Phase::Ended { code } = self.phase {
            return Err(Refused::Ended { code });
        }
        self.channels.want(channel, options);
        self.ask_for_channels();
        Ok(())
    }

    /// Wants a channel no longer; nothing of it arrives from now on.
    pub fn unsubscribe(&mut self, channel: &str) {
        if self.channels.forget(channel) && self.is_open() {
            self.send(Outbound::unsubscribe(channel));
        }
    }

    /// Ends the session for good.
    pub fn close(&mut self, code: CloseCode, reason: &str) {
        match self.phase {
            Phase::Connecting { .. } | Phase::Handshaking { .. } | Phase::Open { .. } => {
                self.outputs.push_back(Output::Close {
                    code,
                    reason: reason.to_owned(),
                });
            }
            Phase::New | Phase::Waiting { .. } => {}
            Phase::Ended { .. } => return,
        }
        self.disconnect_calls_and_channels(code);
        self.end(code, reason);
    }

    /// Whether the handshake was answered on the present connection.
    #[must_use]
    pub fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Open { .. })
    }

    /// Whether the server takes the present connection for authenticated.
    #[must_use]
    pub fn is_authenticated(&self) -> bool {
        self.is_authenticated
    }

    /// The token that the next handshake will carry.
    #[must_use]
    pub fn token(&self) -> Option<&str> {
        self.token.as_deref()
    }

    fn connect(&mut self, now: Millis) {
        self.phase = Phase::Connecting {
            deadline: now + self.config.connect_timeout,
        };
        self.outputs.push_back(Output::Connect);
    }

    fn check_open(&self) -> Result<(), Refused> {
        match self.phase {
            Phase::Open { .. } => Ok(()),
            Phase::Ended { code } => Err(Refused::Ended { code }),
            Phase::New
            | Phase::Waiting { .. }
            | Phase::Connecting { .. }
            | Phase::Handshaking { .. } => Err(Refused::NotConnected),
        }
    }

    fn begin_call(
        &mut self,
        now: Millis,
        kind: Kind,
        packet: impl FnOnce(u64) -> String,
    ) -> Result<CallNumber, Refused> {
        if let Phase::Ended { code } = self.phase {
            return Err(Refused::Ended { code });
        }
        self.calls.check_room()?;
        let cid = self.calls.next_cid();
        let deadline = now + self.config.ack_timeout;
        if self.is_open() {
            self.calls.insert(cid, deadline, kind, None);
            self.send(packet(cid));
        } else {
            self.calls.insert(cid, deadline, kind, Some(packet(cid)));
        }
        Ok(CallNumber(cid))
    }

    /// Sends `#subscribe` for each wanted channel that may be asked for.
    fn ask_for_channels(&mut self) {
        if !self.is_open() {
            return;
        }
        for channel in self.channels.to_ask(self.is_authenticated) {
            let cid = self.calls.next_cid();
            if let Some(asked) = self.channels.asked(&channel, cid) {
                let packet = Outbound::subscribe(&channel, asked, cid);
                self.send(packet);
            }
        }
    }

    fn close_and_lose(&mut self, now: Millis, code: CloseCode, reason: &str) {
        self.outputs.push_back(Output::Close {
            code,
            reason: reason.to_owned(),
        });
        self.lose(now, code, reason);
    }

    /// The connection is gone; decides what follows.
    fn lose(&mut self, now: Millis, code: CloseCode, reason: &str) {
        if let (Phase::Open { since, .. }, Some(reconnect)) = (self.phase, &self.config.reconnect) {
            self.backoff.connection_lasted(reconnect, now.since(since));
        }
        self.disconnect_calls_and_channels(code);
        let retry_after = self
            .config
            .reconnect
            .as_ref()
            .and_then(|reconnect| self.backoff.next(reconnect, code.reaction()));
        let Some(retry_after) = retry_after else {
            return self.end(code, reason);
        };
        self.phase = Phase::Waiting {
            until: now + retry_after,
        };
        self.tell(Event::Disconnected {
            code,
            reason: reason.to_owned(),
            retry_after,
        });
    }

    fn disconnect_calls_and_channels(&mut self, code: CloseCode) {
        self.is_authenticated = false;
        self.channels.connection_lost();
        for call in self.calls.connection_lost() {
            self.answer(call, Err(CallError::ConnectionLost { code }));
        }
    }

    fn end(&mut self, code: CloseCode, reason: &str) {
        self.phase = Phase::Ended { code };
        for call in self.calls.drain() {
            self.answer(call, Err(CallError::Ended { code }));
        }
        self.tell(Event::Ended {
            code,
            reason: reason.to_owned(),
        });
    }

    fn drop_token(&mut self) {
        self.token = None;
        self.set_unauthenticated();
    }

    fn set_unauthenticated(&mut self) {
        if self.is_authenticated {
            self.is_authenticated = false;
            self.tell(Event::Deauthenticated);
        }
    }

    fn set_authenticated(&mut self, token: String) {
        self.token = Some(token.clone());
        self.is_authenticated = true;
        self.tell(Event::Authenticated { token });
        self.ask_for_channels();
    }

    fn answer(&mut self, cid: u64, result: Result<Option<Box<RawValue>>, CallError>) {
        self.tell(Event::Answered {
            call: CallNumber(cid),
            result,
        });
    }

    fn tell(&mut self, event: Event) {
        self.outputs.push_back(Output::Event(event));
    }

    fn send(&mut self, packet: String) {
        self.outputs.push_back(Output::Send(packet));
    }
}

//! What arrives from the server.

use std::time::Duration;

use serde_json::value::RawValue;

use super::{
    CallError, Event, Phase, ServerError, Session,
    calls::Kind,
    packet::{
        self, AuthenticateAnswer, BadToken, HandshakeAnswer, Inbound, KickOut, SetAuthToken,
        StatusCode, SubscribedAt,
    },
};
use crate::{Millis, close::CloseCode, packet::ChannelData};

/// Used when the server does not say how long to wait for its pings.
const PING_TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);
/// A shorter one would cut a connection that is well.
const PING_TIMEOUT_MIN: Duration = Duration::from_secs(1);
/// A longer one is as good as none.
const PING_TIMEOUT_MAX: Duration = Duration::from_secs(24 * 60 * 60);

impl Session {
    /// A text frame arrived.
    ///
    /// What is no packet is ignored, as stock clients do. JSON in binary frames
    /// is not for clients; do not pass it on.
    pub fn handle_text(&mut self, now: Millis, text: &str) {
        match text {
            "" => self.handle_ping(now, ""),
            // socketcluster.md section 12: servers of protocol version 1.
            "#1" => self.handle_ping(now, "#2"),
            _ => {
                for packet in packet::packets(text) {
                    self.handle_packet(now, &packet);
                }
            }
        }
    }

    fn handle_ping(&mut self, now: Millis, pong: &str) {
        match &mut self.phase {
            // Only pings count as the server's life, not data.
            Phase::Open {
                ping_timeout,
                ping_deadline,
                ..
            } => *ping_deadline = now + *ping_timeout,
            Phase::Handshaking { .. } => {}
            Phase::New | Phase::Waiting { .. } | Phase::Connecting { .. } | Phase::Ended { .. } => {
                return;
            }
        }
        self.send(pong.to_owned());
    }

    fn handle_packet(&mut self, now: Millis, packet: &Inbound<'_>) {
        match (self.phase, packet.rid()) {
            (Phase::Handshaking { cid, .. }, Some(rid)) if rid == cid => {
                self.handle_handshake_answer(now, packet);
            }
            (Phase::Open { .. }, rid) => match (packet.event(), rid) {
                (Some(event), _) => self.handle_event(&event, packet),
                (None, Some(rid)) => self.handle_answer(rid, packet),
                (None, None) => {}
            },
            // The answer to the handshake comes first; the rest is late news.
            (
                Phase::New
                | Phase::Waiting { .. }
                | Phase::Connecting { .. }
                | Phase::Handshaking { .. }
                | Phase::Ended { .. },
                _,
            ) => {}
        }
    }

    fn handle_handshake_answer(&mut self, now: Millis, packet: &Inbound<'_>) {
        if let Some(error) = packet.error.and_then(ServerError::parse) {
            let status: Option<StatusCode> = serde_json::from_str(error.raw.get()).ok();
            let code = status
                .and_then(|status| status.status_code)
                .map(CloseCode)
                .filter(|code| code.is_sendable())
                .unwrap_or(CloseCode::HANDSHAKE_FAILED);
            let reason = error.message.clone();
            self.tell(Event::HandshakeRefused(error));
            return self.close_and_lose(now, code, &reason);
        }
        let answer = packet
            .data
            .and_then(|data| serde_json::from_str(data.get()).ok());
        let Some(answer): Option<HandshakeAnswer<'_>> = answer else {
            let code = CloseCode::HANDSHAKE_FAILED;
            return self.close_and_lose(now, code, "handshake answer is malformed");
        };
        let ping_timeout = ping_timeout(answer.ping_timeout_ms);
        self.phase = Phase::Open {
            since: now,
            ping_timeout,
            ping_deadline: now + ping_timeout,
        };
        self.is_authenticated = answer.is_authenticated;
        self.tell(Event::Connected {
            id: answer.id,
            is_authenticated: answer.is_authenticated,
        });
        if let Some(error) = answer.auth_error.and_then(ServerError::parse) {
            if is_bad_token(&error) {
                self.token = None;
            }
            self.tell(Event::AuthenticationFailed(error));
        }
        // As stock clients: subscriptions first, then the calls that waited.
        self.ask_for_channels();
        for packet in self.calls.take_unsent() {
            self.send(packet);
        }
    }

    fn handle_answer(&mut self, rid: u64, packet: &Inbound<'_>) {
        let error = packet.error.and_then(ServerError::parse);
        match self.calls.take(rid) {
            Some(Kind::Plain) => {
                let result = match error {
                    Some(error) => Err(CallError::Server(error)),
                    None => Ok(packet.data.map(ToOwned::to_owned)),
                };
                self.answer(rid, result);
            }
            Some(Kind::Authenticate { token }) => {
                self.handle_authenticate_answer(rid, token, error, packet.data);
            }
            None => self.handle_subscribe_answer(rid, error, packet.data),
        }
    }

    fn handle_authenticate_answer(
        &mut self,
        rid: u64,
        token: String,
        error: Option<ServerError>,
        data: Option<&RawValue>,
    ) {
        let answer: Option<AuthenticateAnswer<'_>> =
            data.and_then(|data| serde_json::from_str(data.get()).ok());
        let auth_error = answer.as_ref().and_then(|answer| answer.auth_error);
        match error.or_else(|| auth_error.and_then(ServerError::parse)) {
            Some(error) => {
                // socketcluster.md section 8: a failure undoes an earlier success.
                self.set_unauthenticated();
                self.answer(rid, Err(CallError::Server(error)));
            }
            None => {
                if answer.is_none_or(|answer| answer.is_authenticated) {
                    self.set_authenticated(token);
                } else {
                    self.set_unauthenticated();
                }
                self.answer(rid, Ok(data.map(ToOwned::to_owned)));
            }
        }
    }

    fn handle_subscribe_answer(
        &mut self,
        rid: u64,
        error: Option<ServerError>,
        data: Option<&RawValue>,
    ) {
        match error {
            None => {
                let at: Option<SubscribedAt> = parse(data);
                let position = at.as_ref().and_then(SubscribedAt::position);
                if let Some(channel) = self.channels.accepted(rid, position) {
                    let is_whole = at.is_none_or(|at| at.recovered);
                    self.tell(Event::Subscribed {
                        channel: channel.clone(),
                    });
                    if !is_whole {
                        self.tell(Event::Missed { channel });
                    }
                }
            }
            Some(error) => {
                if let Some(channel) = self.channels.refused(rid) {
                    self.tell(Event::SubscribeFailed { channel, error });
                }
            }
        }
    }

    fn handle_event(&mut self, event: &str, packet: &Inbound<'_>) {
        match event {
            "#publish" => self.handle_publication(packet.data),
            "#kickOut" => self.handle_kick_out(packet.data),
            "#position" => self.handle_position(packet.data),
            "#setAuthToken" => {
                if let Some(SetAuthToken { token }) = parse(packet.data) {
                    self.set_authenticated(token);
                    if let Some(cid) = packet.cid() {
                        self.send(packet::success(cid));
                    }
                }
            }
            "#removeAuthToken" => self.drop_token(),
            _ => match packet.cid() {
                // Stock clients leave the caller waiting; an answer is kinder.
                Some(cid) => self.send(packet::unknown_procedure(cid, event)),
                None => {
                    let data = packet.data.map(ToOwned::to_owned);
                    self.tell(Event::Received {
                        event: event.to_owned(),
                        data,
                    });
                }
            },
        }
    }

    fn handle_publication(&mut self, data: Option<&RawValue>) {
        let ChannelData {
            channel: Some(channel),
            data,
            offset,
            ..
        } = ChannelData::parse(data)
        else {
            return;
        };
        // What nobody wants any more was under way when it was unsubscribed.
        let Some(channel) = self.channels.find(&channel).cloned() else {
            return;
        };
        if let Some(offset) = offset {
            self.channels.reached(&channel, offset);
        }
        self.tell(Event::Publication {
            channel,
            offset,
            data: data.map(ToOwned::to_owned),
        });
    }

    /// Something is missing; the subscription goes on elsewhere.
    fn handle_position(&mut self, data: Option<&RawValue>) {
        let at: Option<SubscribedAt> = parse(data);
        let Some(position) = at.as_ref().and_then(SubscribedAt::position) else {
            return;
        };
        let name = at.and_then(|at| at.channel).unwrap_or_default();
        if self.channels.skipped_to(&name, position)
            && let Some(channel) = self.channels.find(&name).cloned()
        {
            self.tell(Event::Missed { channel });
        }
    }

    fn handle_kick_out(&mut self, data: Option<&RawValue>) {
        let Some(KickOut { channel, message }) = parse(data) else {
            return;
        };
        let Some(channel) = self.channels.find(&channel).cloned() else {
            return;
        };
        self.channels.forget(&channel);
        let message = message.and_then(|message| message.as_str().map(str::to_owned));
        self.tell(Event::KickedOut { channel, message });
    }
}

fn parse<'a, T: serde::Deserialize<'a>>(data: Option<&'a RawValue>) -> Option<T> {
    serde_json::from_str(data?.get()).ok()
}

fn is_bad_token(error: &ServerError) -> bool {
    serde_json::from_str(error.raw.get()).is_ok_and(|BadToken { is_bad_token }| is_bad_token)
}

fn ping_timeout(ms: Option<f64>) -> Duration {
    ms.and_then(|ms| Duration::try_from_secs_f64(ms / 1000.0).ok())
        .map_or(PING_TIMEOUT_DEFAULT, |timeout| {
            timeout.clamp(PING_TIMEOUT_MIN, PING_TIMEOUT_MAX)
        })
}

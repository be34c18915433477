//! What operators ask of a worker: what to do to single connections, what to
//! publish, what there is.

mod history;
mod lists;

use bytes::Bytes;
use muster_proto::control::{
    ClientCommand, ClientResult, PublishRequest, PublishResult, Query, Reply,
    client_command::Action, publish_result::Outcome, query::Request, reply::Answer,
};
use muster_wire::{ChannelName, answer::CallError, close::CloseCode, session::SessionId};
use rand::{Rng, RngExt as _};
use serde_json::value::RawValue;

use super::Engine;
use crate::{
    connection::ConnectionKey,
    core::{Clients as _, OperatorAnswer},
    router::{Publication, Waiter},
};

/// What a worker knows of its operators.
#[derive(Debug)]
pub(super) struct Operators {
    /// Publishes for them (delivery.md A1).
    producer: SessionId,
    /// Publications so far.
    published: u64,
    /// Are to be sent to the orchestrator.
    replies: Vec<Reply>,
}

impl Operators {
    pub(super) fn new(rng: &mut impl Rng) -> Self {
        Self {
            producer: SessionId::from_random(rng.random()),
            published: 0,
            replies: Vec::new(),
        }
    }
}

impl Engine {
    /// Carries out a query; [`Self::take_replies`] has the answer, at once or
    /// once it is known.
    pub(crate) fn operate(&mut self, query: Query) {
        let Query { id, request } = query;
        let answer = match request {
            Some(Request::Client(command)) => Some(Answer::Client(self.act_on_client(command))),
            Some(Request::Publish(publish)) => match self.publish_for_operator(id, &publish) {
                // It comes with the owner's ack.
                Ok(()) => return,
                Err(result) => Some(Answer::Publish(result)),
            },
            Some(Request::History(request)) => match self.read_for_operator(id, request) {
                // It comes with the owner's answer.
                Ok(()) => return,
                Err(result) => Some(Answer::History(result)),
            },
            Some(Request::Channels(request)) => {
                Some(Answer::Channels(self.list_channels(&request)))
            }
            Some(Request::Connections(request)) => {
                Some(Answer::Connections(self.list_connections(&request)))
            }
            // Whoever has the control stream answers it.
            Some(Request::LogFilter(_)) | None => None,
            // And the worker's loop this one.
            Some(Request::Reload(_)) => None,
        };
        self.operators.replies.push(Reply { id, answer });
    }

    /// What operators are to be told now.
    pub(crate) fn take_replies(&mut self) -> Vec<Reply> {
        let mut replies = std::mem::take(&mut self.operators.replies);
        for OperatorAnswer { query, result } in self.core.take_operator_answers() {
            let answer = Some(Answer::Publish(publish_result(result)));
            replies.push(Reply { id: query, answer });
        }
        replies.extend(self.take_reads());
        replies
    }

    fn publish_for_operator(
        &mut self,
        query: u64,
        request: &PublishRequest,
    ) -> Result<(), PublishResult> {
        let channel = ChannelName::try_from(&*request.channel)
            .map_err(|error| refusal(Outcome::Invalid, &format!("the channel's name: {error}")))?;
        let data = checked(&request.data, self.settings.message_bytes_max)?;
        let publication = Publication {
            channel,
            data: Some(data),
            producer: self.operators.producer,
            n: self.operators.published + 1,
            waiter: Some(Waiter::Operator(query)),
            accepted: self.now.millis,
        };
        if !self.core.publish_for_operator(publication) {
            let message = "the channel's owner is behind with what it got before: try again";
            return Err(refusal(Outcome::Refused, message));
        }
        self.operators.published += 1;
        Ok(())
    }

    fn act_on_client(&mut self, command: ClientCommand) -> ClientResult {
        let ClientCommand { connection, action } = command;
        let Some(key) = self.connections.find(&connection) else {
            return ClientResult {
                found: false,
                error: String::new(),
            };
        };
        if self.connections.peek(key).is_some_and(|one| one.is_frozen) {
            return ClientResult {
                found: true,
                error: "the connection is being handed over: try again".to_owned(),
            };
        }
        let result = match action {
            Some(Action::Kick(kick)) => self.kick(key, kick.channel.as_deref(), &kick.message),
            Some(Action::Disconnect(disconnect)) => {
                self.disconnect(key, disconnect.code, &disconnect.reason)
            }
            Some(Action::SetToken(token)) => self.set_token(key, &token.claims),
            Some(Action::RemoveToken(_)) => self.remove_token(key),
            None => Err("this worker does not know the command; update it".to_owned()),
        };
        ClientResult {
            found: true,
            error: result.err().unwrap_or_default(),
        }
    }

    fn kick(
        &mut self,
        key: ConnectionKey,
        channel: Option<&str>,
        message: &str,
    ) -> Result<(), String> {
        let message = Some(message).filter(|message| !message.is_empty());
        let mut out = std::mem::take(&mut self.out);
        let Some(session) = self.connections.session(key) else {
            return Ok(());
        };
        let channels: Vec<_> = session
            .channels()
            .filter(|name| channel.is_none_or(|channel| ***name == *channel))
            .cloned()
            .collect();
        for channel in &channels {
            self.core.with_session(&mut out, self.now, |cx| {
                session.kick_out(channel, message, cx)
            });
            self.core.leave(key, channel);
        }
        self.send(key, &mut out);
        self.out = out;
        match channel {
            Some(channel) if channels.is_empty() => Err(format!(
                "the connection does not subscribe to {channel}; `connections --channel` lists \
                 those that do"
            )),
            _ => Ok(()),
        }
    }

    fn disconnect(&mut self, key: ConnectionKey, code: u32, reason: &str) -> Result<(), String> {
        let code = match code {
            0 => CloseCode::NORMAL,
            code => u16::try_from(code)
                .map(CloseCode)
                .ok()
                .filter(|code| code.is_sendable())
                .ok_or(format!("{code} is no code that a close frame may carry"))?,
        };
        self.close(key, Some(code), reason);
        Ok(())
    }

    fn set_token(&mut self, key: ConnectionKey, claims: &str) -> Result<(), String> {
        let token = self
            .core
            .auth
            .sign(claims, self.now.unix)
            .map_err(|error| error.to_string())?;
        let verified = self
            .core
            .auth
            .verify(&token, self.now.unix)
            .map_err(|error| error.to_string())?;
        let mut out = std::mem::take(&mut self.out);
        let Some(session) = self.connections.session(key) else {
            return Ok(());
        };
        let is_set = self.core.with_session(&mut out, self.now, |cx| {
            session.set_token(&token, verified, cx)
        });
        self.send(key, &mut out);
        self.out = out;
        is_set
            .then_some(())
            .ok_or_else(|| "the connection has not finished its handshake: try again".to_owned())
    }

    fn remove_token(&mut self, key: ConnectionKey) -> Result<(), String> {
        let mut out = std::mem::take(&mut self.out);
        let Some(session) = self.connections.session(key) else {
            return Ok(());
        };
        self.core
            .with_session(&mut out, self.now, |cx| session.remove_token(cx));
        self.send(key, &mut out);
        self.out = out;
        Ok(())
    }
}

/// An operator's data as clients' data would be taken: any JSON, as it is.
fn checked(data: &Bytes, bytes_max: usize) -> Result<Bytes, PublishResult> {
    if data.len() > bytes_max {
        let message = format!(
            "the data has {} bytes, limits.message_bytes_max is {bytes_max}",
            data.len()
        );
        return Err(refusal(Outcome::Invalid, &message));
    }
    match serde_json::from_slice::<&RawValue>(data) {
        Ok(raw) => Ok(data.slice_ref(raw.get().as_bytes())),
        Err(error) => Err(refusal(
            Outcome::Invalid,
            &format!("the data is no JSON: {error}"),
        )),
    }
}

fn publish_result(result: Result<(), CallError>) -> PublishResult {
    match result {
        Ok(()) => refusal(Outcome::Published, ""),
        Err(error) if error == CallError::outcome_unknown() => {
            refusal(Outcome::Unknown, &error.message)
        }
        Err(error) => {
            let message = format!(
                "{}; nothing was published: try again, or raise the limit",
                error.message
            );
            refusal(Outcome::Refused, &message)
        }
    }
}

fn refusal(outcome: Outcome, message: &str) -> PublishResult {
    PublishResult {
        outcome: outcome.into(),
        message: message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_is_any_json_within_the_limit_and_passes_as_it_is() {
        for (data, taken) in [
            ("{\"a\": 1.50}", "{\"a\": 1.50}"),
            (" null\n", "null"),
            ("\"\\ud800\"", "\"\\ud800\""),
        ] {
            let checked = checked(&Bytes::from(data), 1000).unwrap();
            assert_eq!(checked, taken.as_bytes());
        }
        for (data, about) in [
            ("", "no JSON"),
            ("{", "no JSON"),
            ("1 2", "no JSON"),
            ("'a'", "no JSON"),
            ("[1,2,3,4,5,6]", "13 bytes"),
        ] {
            let refused = checked(&Bytes::from(data), 12).unwrap_err();
            assert_eq!(refused.outcome(), Outcome::Invalid);
            assert!(refused.message.contains(about), "{}", refused.message);
        }
        assert!(checked(&Bytes::from_static(b"\"\xff\""), 12).is_err());
    }

    #[test]
    fn an_operator_whose_channel_has_no_room_is_refused_and_nothing_is_kept() {
        use muster_wire::{
            Millis,
            session::{Rate, Rules},
        };
        use std::time::Duration;

        use crate::{
            auth::Auth,
            core::{Core, Names, Now},
            router::Router,
        };

        let second = Duration::from_secs(1);
        let rules = Rules {
            handshake_timeout: second,
            ping_interval: second,
            pong_timeout: second,
            channels_max: 1,
            packets: Rate::new(1, 1),
            subscribes: Rate::new(1, 1),
        };
        let auth = Auth::with_secret(b"a test", second);
        let mut core = Core::new(rules, auth, Names::default(), Router::new(100, second));
        let now = Now {
            millis: Millis(1000),
            unix: 0,
        };
        let mut publish = |n| {
            let publication = Publication {
                channel: ChannelName::try_from("a").unwrap(),
                data: Some(Bytes::from(vec![b'1'; 100])),
                producer: SessionId::from_random([7; 15]),
                n,
                waiter: Some(Waiter::Operator(n)),
                accepted: now.millis,
            };
            core.publish_for_operator(publication)
        };
        assert!(publish(1), "there is always room for one");
        assert!(!publish(2));
        assert_eq!(core.stats.publications, 1);
        core.router.handle_tick(now.millis + second * 2);
    }

    #[test]
    fn an_operator_learns_whether_a_publication_may_still_arrive() {
        for (result, outcome) in [
            (Ok(()), Outcome::Published),
            (Err(CallError::outcome_unknown()), Outcome::Unknown),
            (Err(CallError::not_published("full")), Outcome::Refused),
        ] {
            assert_eq!(publish_result(result).outcome(), outcome);
        }
    }
}

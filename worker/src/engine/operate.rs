//! What operators do to single connections.

use muster_proto::control::{ClientCommand, ClientResult, client_command::Action};
use muster_wire::close::CloseCode;

use super::Engine;
use crate::{connection::ConnectionKey, core::Clients as _};

impl Engine {
    /// Carries out an operator's command if the connection is this worker's.
    pub(crate) fn operate(&mut self, command: ClientCommand) -> ClientResult {
        let ClientCommand {
            id,
            connection,
            action,
        } = command;
        let Some(key) = self.connections.find(&connection) else {
            return ClientResult {
                id,
                found: false,
                error: String::new(),
            };
        };
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
            id,
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
            Some(channel) if channels.is_empty() => {
                Err(format!("the connection does not subscribe to {channel}"))
            }
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
            .ok_or_else(|| "the connection has not finished its handshake".to_owned())
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

//! What a session tells the application.

use std::{fmt, time::Duration};

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::{ChannelName, close::CloseCode};

/// Which call an answer is for; its `cid`, never used twice by a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallNumber(pub u64);

/// What a session tells the application. `data` is raw JSON, absent or present.
#[derive(Debug)]
pub enum Event {
    /// The handshake was answered; wanted channels are being subscribed.
    Connected {
        /// The session's id at the server.
        id: String,
        /// Whether the token was accepted.
        is_authenticated: bool,
    },
    /// The connection ended, or an attempt failed, and another will be made.
    Disconnected {
        /// Why.
        code: CloseCode,
        /// Why, in words; often empty.
        reason: String,
        /// How long until the next attempt.
        retry_after: Duration,
    },
    /// The session is over; nothing follows.
    Ended {
        /// Why.
        code: CloseCode,
        /// Why, in words; often empty.
        reason: String,
    },
    /// The server refused the handshake; the connection ends next.
    HandshakeRefused(ServerError),
    /// A call was answered or will not be any more.
    Answered {
        /// Which one.
        call: CallNumber,
        /// The answer.
        result: Result<Option<Box<RawValue>>, CallError>,
    },
    /// The server has subscribed this connection.
    Subscribed {
        /// To what.
        channel: ChannelName,
    },
    /// The server refused; the channel is not wanted any more.
    SubscribeFailed {
        /// What was refused.
        channel: ChannelName,
        /// Why.
        error: ServerError,
    },
    /// The server removed the subscription; the channel is not wanted any more.
    KickedOut {
        /// From what.
        channel: ChannelName,
        /// The server's word on it.
        message: Option<String>,
    },
    /// Publications on a wanted channel are missing and will not come; others
    /// will. Only of subscriptions that resume.
    Missed {
        /// Where.
        channel: ChannelName,
    },
    /// A publication on a wanted channel.
    Publication {
        /// Where.
        channel: ChannelName,
        /// Its place there, if the subscription resumes and the server knows
        /// positions.
        offset: Option<u64>,
        /// What.
        data: Option<Box<RawValue>>,
    },
    /// A one-way packet from the server's application.
    Received {
        /// Its name.
        event: String,
        /// What it carries.
        data: Option<Box<RawValue>>,
    },
    /// A token is in use: it was accepted, or the server issued it.
    Authenticated {
        /// The token.
        token: String,
    },
    /// The connection is not authenticated any more.
    Deauthenticated,
    /// The token of the handshake was rejected.
    AuthenticationFailed(ServerError),
}

/// Why a call has no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CallError {
    /// None came in time; whether the call had an effect is unknown.
    #[error("no answer in time")]
    Timeout,
    /// The connection ended after the call was sent; whether it had an effect is
    /// unknown.
    #[error("the connection ended with {code} before the answer")]
    ConnectionLost {
        /// How it ended.
        code: CloseCode,
    },
    /// The session ended before the call was sent.
    #[error("the session ended with {code}")]
    Ended {
        /// How it ended.
        code: CloseCode,
    },
    /// The server answered with an error.
    #[error(transparent)]
    Server(#[from] ServerError),
}

/// Why a session does not take a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// As many calls as allowed wait for an answer.
    #[error("{max} calls are waiting for an answer already")]
    TooManyCalls {
        /// The limit.
        max: usize,
    },
    /// One-way packets are not kept for the next connection.
    #[error("not connected")]
    NotConnected,
    /// The session is over.
    #[error("the session ended with {code}")]
    Ended {
        /// How it ended.
        code: CloseCode,
    },
}

/// An error as the server sent it.
#[derive(Debug, Clone, thiserror::Error)]
pub struct ServerError {
    /// Its class, which is what to compare, such as `BrokerError`.
    pub name: Option<String>,
    /// Words for people.
    pub message: String,
    /// All of it, as JSON.
    pub raw: Box<RawValue>,
}

impl ServerError {
    /// Reads what an answer carries as `error`; `null` is no error.
    pub(super) fn parse(raw: &RawValue) -> Option<Self> {
        #[derive(Deserialize)]
        struct Members {
            #[serde(default)]
            name: Option<serde_json::Value>,
            #[serde(default)]
            message: Option<serde_json::Value>,
        }
        if raw.get() == "null" {
            return None;
        }
        let (name, message) = match serde_json::from_str::<Members>(raw.get()) {
            Ok(members) => (string(members.name), string(members.message)),
            // Strings and numbers are their own message.
            Err(_) => (
                None,
                serde_json::from_str(raw.get())
                    .ok()
                    .or(Some(raw.get().to_owned())),
            ),
        };
        // The words that stock clients use.
        let message = message.unwrap_or_else(|| "Invalid error message format".to_owned());
        Some(Self {
            name,
            message,
            raw: raw.to_owned(),
        })
    }
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => write!(f, "{name}: {}", self.message),
            None => f.write_str(&self.message),
        }
    }
}

fn string(value: Option<serde_json::Value>) -> Option<String> {
    value?.as_str().map(str::to_owned)
}

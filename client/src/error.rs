//! What can go wrong.

use std::error::Error as StdError;

use muster_wire::{
    ChannelNameError,
    client::{CallError, Refused, ServerError},
    close::CloseCode,
};

/// Why a method of a client failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The connection could not be opened.
    #[error("cannot connect")]
    Connect(#[source] Box<dyn StdError + Send + Sync>),
    /// The server refused the handshake.
    #[error("the server refused the handshake")]
    HandshakeRefused(#[source] ServerError),
    /// The connection ended before the answer; whether the call had an effect is
    /// unknown.
    #[error("the connection ended with {code} before the answer")]
    ConnectionLost {
        /// How it ended.
        code: CloseCode,
    },
    /// No answer came in time; whether the call had an effect is unknown.
    #[error("no answer in time")]
    Timeout,
    /// The server answered with an error.
    #[error(transparent)]
    Server(ServerError),
    /// As many calls as allowed wait for an answer.
    #[error("{max} calls are waiting for an answer already")]
    TooManyCalls {
        /// The limit.
        max: usize,
    },
    /// There is no connection now, and one-way packets are not kept.
    #[error("not connected")]
    NotConnected,
    /// The client has ended for good.
    #[error("the client ended with {code}")]
    Ended {
        /// How it ended.
        code: CloseCode,
    },
    /// The server ended the subscription before it was acknowledged.
    #[error("kicked out of the channel")]
    KickedOut,
    /// Not a channel name.
    #[error(transparent)]
    ChannelName(#[from] ChannelNameError),
    /// The data cannot be written as JSON.
    #[error("cannot encode the data")]
    Encode(#[source] serde_json::Error),
}

impl From<CallError> for Error {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Timeout => Self::Timeout,
            CallError::ConnectionLost { code } => Self::ConnectionLost { code },
            CallError::Ended { code } => Self::Ended { code },
            CallError::Server(error) => Self::Server(error),
        }
    }
}

impl From<Refused> for Error {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::TooManyCalls { max } => Self::TooManyCalls { max },
            Refused::NotConnected => Self::NotConnected,
            Refused::Ended { code } => Self::Ended { code },
        }
    }
}

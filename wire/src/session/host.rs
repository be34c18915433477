//! What a session and the worker that has it ask of each other.

use bytes::Bytes;
use serde_json::value::RawValue;

use super::{HistoryRead, Rules};
use crate::{
    CallId, ChannelName, ChannelNameError, Millis, Position,
    close::CloseCode,
    token::{TokenError, UnixSeconds, Verified},
};

/// What a client wants to do with a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Send to it.
    Publish,
    /// Hear it.
    Subscribe,
}

impl Action {
    /// For people, as the reference's messages begin.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Publish => "Publish",
            Self::Subscribe => "Subscribe",
        }
    }
}

/// What a session asks of the worker that has it.
pub trait Host {
    /// Checks a token's signature and times; `now` decides about `exp` and
    /// `nbf`, without leeway.
    ///
    /// # Errors
    /// What the client is told.
    fn verify(&self, token: &str, now: UnixSeconds) -> Result<Verified, TokenError>;

    /// The name as the worker keeps it, so that all subscriptions of a channel
    /// share one allocation.
    ///
    /// # Errors
    /// The name is too long.
    fn intern(&self, channel: &str) -> Result<ChannelName, ChannelNameError>;

    /// Whether a client may do that, with a token that stands or without.
    fn allows(&self, action: Action, channel: &str, is_authenticated: bool) -> bool;

    /// How many publications a client may ask for at once of what the channel
    /// keeps; `None` if it keeps nothing for clients to read.
    fn history_limit(&self, channel: &str) -> Option<u32>;
}

/// The present, as a session sees it.
#[expect(
    missing_debug_implementations,
    reason = "borrows a trait object for one call"
)]
pub struct Context<'c> {
    /// For deadlines.
    pub now: Millis,
    /// For tokens.
    pub unix_now: UnixSeconds,
    /// The worker's rules.
    pub rules: &'c Rules,
    /// The worker.
    pub host: &'c dyn Host,
    /// Frames for the client, in order.
    pub out: &'c mut Vec<Bytes>,
}

/// What the worker must do next.
#[derive(Debug)]
#[must_use]
pub enum Effect<'a> {
    /// Nothing.
    Nothing,
    /// Tell [`Session::confirm`](super::Session::confirm) once the channel's owner has the subscription.
    Subscribe(ChannelName),
    /// The same for a client that wants positions: what came after this one first,
    /// then [`Session::confirm_at`](super::Session::confirm_at).
    Follow {
        /// Which channel.
        channel: ChannelName,
        /// The last position that the client has.
        since: Option<Position>,
    },
    /// The session no longer wants the channel.
    Unsubscribe(ChannelName),
    /// Hand the publication to its owner; then, if `cid` is there, answer it.
    Publish(Publish<'a>),
    /// Ask the channel's owner, then tell [`Session::answer_read`](super::Session::answer_read).
    Read(HistoryRead),
    /// Send what is queued and end the connection.
    Close(CloseCode),
}

/// A client's publication.
#[derive(Debug)]
pub struct Publish<'a> {
    /// Where.
    pub channel: ChannelName,
    /// Raw JSON; absent is not the same as `null`.
    pub data: Option<&'a RawValue>,
    /// The call that waits for the acknowledgement.
    pub cid: Option<CallId>,
    /// Counts this session's publications: 1, 2, 3 … (delivery.md A1).
    pub n: u64,
}

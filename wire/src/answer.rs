//! Packets the server sends, as ready frames.

use bytes::Bytes;
use serde::Serialize;

use crate::{CallId, Position, frame, session::Action, token::TokenError};

/// `{"event":"#removeAuthToken"}`: the client forgets its token.
#[must_use]
pub fn remove_auth_token() -> Bytes {
    Bytes::from_static(b"\x81\x1c{\"event\":\"#removeAuthToken\"}")
}

/// `{"event":"#setAuthToken",…}`: the client stores the token.
#[must_use]
pub fn set_auth_token(token: &str) -> Bytes {
    event("#setAuthToken", &SetAuthToken { token })
}

/// `{"event":"#kickOut",…}`: the client leaves the channel.
#[must_use]
pub fn kick_out(channel: &str, message: Option<&str>) -> Bytes {
    event("#kickOut", &KickOut { channel, message })
}

/// A publication as every subscriber gets it; `data` is raw JSON or absent.
#[must_use]
pub fn publication(channel: &str, data: Option<&[u8]>) -> Bytes {
    let channel = json(&channel);
    match data {
        Some(data) => frame::text_frame_from(&[
            b"{\"event\":\"#publish\",\"data\":{\"channel\":",
            &channel,
            b",\"data\":",
            data,
            b"}}",
        ]),
        None => frame::text_frame_from(&[
            b"{\"event\":\"#publish\",\"data\":{\"channel\":",
            &channel,
            b"}}",
        ]),
    }
}

/// The same as a subscriber that wants positions gets it.
#[must_use]
pub fn publication_at(channel: &str, offset: u64, data: Option<&[u8]>) -> Bytes {
    let channel = json(&channel);
    let offset = format!(",\"offset\":{offset}");
    let (comma, data) = match data {
        Some(data) => (&b",\"data\":"[..], data),
        None => (&b""[..], &b""[..]),
    };
    frame::text_frame_from(&[
        b"{\"event\":\"#publish\",\"data\":{\"channel\":",
        &channel,
        comma,
        data,
        offset.as_bytes(),
        b"}}",
    ])
}

/// `{"event":"#position",…}`: something before this position is missing and will
/// not come; for subscribers that want positions.
#[must_use]
pub fn hole(channel: &str, position: Position) -> Bytes {
    let (recovered, channel) = (false, Some(channel));
    let at = SubscribedAt {
        channel,
        position,
        recovered,
    };
    event("#position", &at)
}

/// `{"rid":…,"data":{…}}`: the subscription goes on right after this position.
#[must_use]
pub(crate) fn subscribed_at(cid: &CallId, position: Position, recovered: bool) -> Bytes {
    let channel = None;
    let at = SubscribedAt {
        channel,
        position,
        recovered,
    };
    success_with(cid, &at)
}

#[derive(Serialize)]
struct SubscribedAt<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    channel: Option<&'a str>,
    #[serde(flatten)]
    position: Position,
    recovered: bool,
}

/// Bytes a publication may take in its frame beside its data: header, event and
/// the longest channel name with every byte escaped.
pub const PUBLICATION_OVERHEAD_BYTES_MAX: usize =
    frame::HEADER_BYTES_MAX + 64 + 6 * crate::CHANNEL_NAME_BYTES_MAX;

/// `{"rid":…}`: a call succeeded and has nothing to tell.
#[must_use]
pub fn success(cid: &CallId) -> Bytes {
    frame::text_frame(format!("{{\"rid\":{cid}}}").as_bytes())
}

/// `{"rid":…,"data":…}`.
#[must_use]
pub(crate) fn success_with(cid: &CallId, data: &impl Serialize) -> Bytes {
    success_with_json(cid, &json(data))
}

/// The same of data that is JSON already.
#[must_use]
pub(crate) fn success_with_json(cid: &CallId, data: &[u8]) -> Bytes {
    let head = format!("{{\"rid\":{cid},\"data\":");
    frame::text_frame_from(&[head.as_bytes(), data, b"}"])
}

/// `{"rid":…,"error":…}`.
#[must_use]
pub fn failure(cid: &CallId, error: &CallError) -> Bytes {
    failure_with(cid, error)
}

/// `{"rid":…,"error":…}` for a rejected token.
#[must_use]
pub(crate) fn token_failure(cid: &CallId, error: &TokenError) -> Bytes {
    failure_with(cid, &error.body())
}

/// Why a call failed, as the client gets it (socketcluster.md section 5: clients
/// compare `name`; `message` comes first).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CallError {
    /// For people.
    pub message: String,
    /// For programs.
    pub name: &'static str,
}

impl CallError {
    /// The request itself is wrong.
    #[must_use]
    pub fn invalid_action(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            name: "InvalidActionError",
        }
    }

    /// A subscription could not be made or ended.
    #[must_use]
    pub fn broker(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            name: "BrokerError",
        }
    }

    /// A publication whose owner did not answer in time: it may still be
    /// delivered, or never (delivery.md A6).
    #[must_use]
    pub fn outcome_unknown() -> Self {
        Self {
            message: "The channel's owner did not answer in time; the publication may or may not be delivered".into(),
            name: "PublishOutcomeUnknownError",
        }
    }

    /// A publication the owner did not take.
    #[must_use]
    pub fn not_published(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            name: "PublishRefusedError",
        }
    }

    /// A read of a channel that keeps nothing for clients to read.
    #[must_use]
    pub fn no_history(channel: &str) -> Self {
        Self {
            message: format!("The {channel} channel keeps no history"),
            name: "NoHistoryError",
        }
    }

    /// A read that could not be done now.
    #[must_use]
    pub fn history_unavailable(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            name: "HistoryUnavailableError",
        }
    }

    /// The client may not do that with this channel; `with_token` says that with
    /// a token it might.
    #[must_use]
    pub(crate) fn not_allowed(action: Action, channel: &str, with_token: bool) -> Self {
        let message = match (action, with_token) {
            (Action::Publish, false) => format!("Clients may not publish to the {channel} channel"),
            (Action::Subscribe, false) => {
                format!("Clients may not subscribe to the {channel} channel")
            }
            (Action::Publish, true) => {
                format!("Only authenticated clients may publish to the {channel} channel")
            }
            (Action::Subscribe, true) => {
                format!("Only authenticated clients may subscribe to the {channel} channel")
            }
        };
        Self {
            message,
            name: "NotAllowedError",
        }
    }

    /// A procedure that does not exist. The reference never answers those.
    #[must_use]
    pub(crate) fn unknown_procedure(name: &str) -> Self {
        let shown: String = name.chars().take(100).collect();
        Self {
            message: format!("There is no procedure {shown}"),
            name: "UnknownProcedureError",
        }
    }
}

#[derive(Serialize)]
struct SetAuthToken<'a> {
    token: &'a str,
}

#[derive(Serialize)]
struct KickOut<'a> {
    channel: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<&'a str>,
}

fn event(name: &str, data: &impl Serialize) -> Bytes {
    let head = format!("{{\"event\":\"{name}\",\"data\":");
    frame::text_frame_from(&[head.as_bytes(), &json(data), b"}"])
}

fn failure_with(cid: &CallId, error: &impl Serialize) -> Bytes {
    let head = format!("{{\"rid\":{cid},\"error\":");
    frame::text_frame_from(&[head.as_bytes(), &json(error), b"}"])
}

fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("strings, numbers and flags always serialise")
}

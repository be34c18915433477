//! Packets as a client writes and reads them.

use std::borrow::Cow;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use super::SubscribeOptions;
use crate::position::{Generation, Position};

/// A packet to send.
#[derive(Serialize)]
pub(super) struct Outbound<'a, D> {
    event: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<D>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cid: Option<u64>,
}

#[derive(Serialize)]
struct Handshake<'a> {
    #[serde(rename = "authToken")]
    auth_token: Option<&'a str>,
}

#[derive(Serialize)]
struct OnChannel<'a> {
    channel: &'a str,
    #[serde(rename = "waitForAuth", skip_serializing_if = "std::ops::Not::not")]
    wait_for_auth: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<&'a RawValue>,
    /// `null`: none yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<Option<Position>>,
}

#[derive(Serialize)]
struct Answer {
    rid: serde_json::Number,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<AnswerError>,
}

#[derive(Serialize)]
struct AnswerError {
    message: String,
    name: &'static str,
}

impl Outbound<'_, ()> {
    pub(super) fn handshake(token: Option<&str>, cid: u64) -> String {
        packet(
            "#handshake",
            Some(Handshake { auth_token: token }),
            Some(cid),
        )
    }

    pub(super) fn event(event: &str, data: Option<&RawValue>, cid: Option<u64>) -> String {
        packet(event, data, cid)
    }

    pub(super) fn authenticate(token: &str, cid: u64) -> String {
        packet("#authenticate", Some(token), Some(cid))
    }

    pub(super) fn publish(channel: &str, data: Option<&RawValue>, cid: Option<u64>) -> String {
        packet(
            "#publish",
            Some(OnChannel {
                channel,
                wait_for_auth: false,
                data,
                since: None,
            }),
            cid,
        )
    }

    /// With the last position, if there is one.
    pub(super) fn subscribe(
        channel: &str,
        (options, since): (&SubscribeOptions, Option<Position>),
        cid: u64,
    ) -> String {
        let SubscribeOptions {
            wait_for_auth,
            data,
            resume,
        } = options;
        let data = OnChannel {
            channel,
            wait_for_auth: *wait_for_auth,
            data: data.as_deref(),
            since: resume.then_some(since),
        };
        packet("#subscribe", Some(data), Some(cid))
    }

    /// One-way: the reference's clients do not wait for it either.
    pub(super) fn unsubscribe(channel: &str) -> String {
        packet("#unsubscribe", Some(channel), None)
    }
}

/// The answer to a call from the server that succeeded.
pub(super) fn success(cid: serde_json::Number) -> String {
    json(&Answer {
        rid: cid,
        error: None,
    })
}

/// The answer to a call from the server that nobody handles.
pub(super) fn unknown_procedure(cid: serde_json::Number, event: &str) -> String {
    let message = format!("The client has no procedure {event}");
    json(&Answer {
        rid: cid,
        error: Some(AnswerError {
            message,
            name: "InvalidActionError",
        }),
    })
}

fn packet<D: Serialize>(event: &str, data: Option<D>, cid: Option<u64>) -> String {
    json(&Outbound { event, data, cid })
}

fn json(packet: &impl Serialize) -> String {
    serde_json::to_string(packet).expect("strings, numbers and raw JSON always serialise")
}

/// A packet that arrived.
#[derive(Deserialize)]
pub(super) struct Inbound<'a> {
    #[serde(borrow, default)]
    event: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    pub(super) data: Option<&'a RawValue>,
    #[serde(borrow, default)]
    cid: Option<&'a RawValue>,
    #[serde(borrow, default)]
    rid: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) error: Option<&'a RawValue>,
}

impl<'a> Inbound<'a> {
    pub(super) fn event(&self) -> Option<Cow<'a, str>> {
        crate::packet::string(self.event?)
    }

    /// The number of a call from the server.
    pub(super) fn cid(&self) -> Option<serde_json::Number> {
        serde_json::from_str(self.cid?.get()).ok()
    }

    /// The number of the call that is answered, if it can be one of ours.
    pub(super) fn rid(&self) -> Option<u64> {
        let rid: serde_json::Number = serde_json::from_str(self.rid?.get()).ok()?;
        rid.as_u64().or_else(|| {
            // 7.0 and 7e0 are 7, too.
            let float = rid
                .as_f64()
                .filter(|float| *float >= 0.0 && float.fract() == 0.0)?;
            format!("{float:.0}").parse().ok()
        })
    }
}

/// The packets in a message; what is no packet is left out, as stock clients do.
pub(super) fn packets(text: &str) -> Vec<Inbound<'_>> {
    match text.trim_ascii_start().as_bytes().first() {
        Some(b'{') => serde_json::from_str(text).into_iter().collect(),
        Some(b'[') => {
            let elements: Vec<&RawValue> = serde_json::from_str(text).unwrap_or_default();
            elements
                .into_iter()
                .filter_map(|raw| serde_json::from_str(raw.get()).ok())
                .collect()
        }
        _ => Vec::new(),
    }
}

/// Keeps `null` apart from absent.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    Deserialize::deserialize(deserializer).map(Some)
}

/// `data` of the answer to `#handshake`.
#[derive(Deserialize)]
pub(super) struct HandshakeAnswer<'a> {
    #[serde(default)]
    pub(super) id: String,
    #[serde(rename = "pingTimeout", default)]
    pub(super) ping_timeout_ms: Option<f64>,
    #[serde(rename = "isAuthenticated", default)]
    pub(super) is_authenticated: bool,
    #[serde(rename = "authError", borrow, default)]
    pub(super) auth_error: Option<&'a RawValue>,
}

/// `data` of the answer to `#authenticate`.
#[derive(Deserialize)]
pub(super) struct AuthenticateAnswer<'a> {
    #[serde(rename = "isAuthenticated", default)]
    pub(super) is_authenticated: bool,
    #[serde(rename = "authError", borrow, default)]
    pub(super) auth_error: Option<&'a RawValue>,
}

/// The member of an error that says whether the token is to be dropped.
#[derive(Deserialize)]
pub(super) struct BadToken {
    #[serde(rename = "isBadToken", default)]
    pub(super) is_bad_token: bool,
}

/// The member of a handshake error that says how to close.
#[derive(Deserialize)]
pub(super) struct StatusCode {
    #[serde(rename = "statusCode", default)]
    pub(super) status_code: Option<u16>,
}

/// `data` of the answer to a `#subscribe` with a position, and of `#position`.
#[derive(Deserialize)]
pub(super) struct SubscribedAt {
    pub(super) channel: Option<String>,
    generation: String,
    offset: u64,
    pub(super) recovered: bool,
}

impl SubscribedAt {
    pub(super) fn position(&self) -> Option<Position> {
        let Generation(generation) = self.generation.parse().ok()?;
        let offset = self.offset;
        Some(Position { generation, offset })
    }
}

/// `data` of `#kickOut`.
#[derive(Deserialize)]
pub(super) struct KickOut {
    pub(super) channel: String,
    #[serde(default)]
    pub(super) message: Option<serde_json::Value>,
}

/// `data` of `#setAuthToken`.
#[derive(Deserialize)]
pub(super) struct SetAuthToken {
    pub(super) token: String,
}

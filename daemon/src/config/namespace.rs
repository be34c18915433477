//! Namespaces: what differs for channels whose names begin alike.

use std::{cmp::Reverse, time::Duration};

use serde::{Deserialize, Serialize};

use super::{KeyDoc, duration};
use crate::ByteSize;

/// Options for the channels whose names begin with a prefix. Of several
/// prefixes that fit, the longest one's options count, all of them; a channel
/// that no prefix fits has the defaults.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Namespace {
    /// The empty prefix fits every channel.
    pub prefix: String,
    /// Who may publish from a client.
    #[serde(default)]
    pub publish: Right,
    /// Who may subscribe.
    #[serde(default)]
    pub subscribe: Right,
    /// What becomes of publications for a client that reads too slowly.
    #[serde(default)]
    pub slow_client: SlowClient,
    /// What is kept of each channel for those who read it later; absent: nothing
    /// but the tail.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub history: Option<History>,
}

/// How much of each channel is kept: all of the bounds that are given hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct History {
    /// Publications.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// Bytes of their data.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<ByteSize>,
    /// Time since each was published.
    #[serde(with = "duration::optional", skip_serializing_if = "Option::is_none")]
    pub age: Option<Duration>,
}

/// The namespaces, so that the one whose options count for a channel is the
/// first that fits: the longest prefix.
#[derive(Debug, Default)]
pub struct Namespaces(Vec<Namespace>);

impl Namespaces {
    #[must_use]
    pub fn new(mut namespaces: Vec<Namespace>) -> Self {
        namespaces.sort_by_key(|namespace| Reverse(namespace.prefix.len()));
        Self(namespaces)
    }

    /// The one whose options count for a channel of this name.
    #[must_use]
    pub fn of(&self, channel: &[u8]) -> Option<&Namespace> {
        let mut namespaces = self.0.iter();
        namespaces.find(|namespace| channel.starts_with(namespace.prefix.as_bytes()))
    }
}

/// Who may do something with a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Right {
    #[default]
    Anyone,
    /// Clients with a token that stands.
    Authenticated,
    /// No client; operators may.
    Nobody,
}

/// What happens once more than `limits.outbox_bytes_max` is queued for a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SlowClient {
    /// Its connection is closed with 1008.
    #[default]
    Close,
    /// Its oldest queued publications are dropped.
    DropOldest,
    /// Of each channel only the newest publication stays queued.
    Latest,
}

impl Right {
    /// Whether a client may, with a token that stands or without.
    #[must_use]
    pub fn allows(self, is_authenticated: bool) -> bool {
        match self {
            Self::Anyone => true,
            Self::Authenticated => is_authenticated,
            Self::Nobody => false,
        }
    }
}

/// The keys of a `[[namespace]]`, in the order in which they are printed.
pub(super) const KEYS: &[KeyDoc] = &[
    KeyDoc {
        name: "prefix",
        doc: &["Channels whose names begin with it; the longest prefix that fits counts."],
    },
    KeyDoc {
        name: "publish",
        doc: &["Which clients may publish: `anyone`, `authenticated` or `nobody`."],
    },
    KeyDoc {
        name: "subscribe",
        doc: &["Which clients may subscribe: `anyone`, `authenticated` or `nobody`."],
    },
    KeyDoc {
        name: "slow_client",
        doc: &[
            "Beyond limits.outbox_bytes_max: `close` the client with 1008, `drop_oldest`",
            "publications, or keep only the `latest` of each channel.",
        ],
    },
    KeyDoc {
        name: "history",
        doc: &[
            "What each channel keeps for clients that ask for it, beyond",
            "broker.tail_age: so many publications (`count`), so many `bytes` of data, for",
            "so long (`age`); one of them or several, which then all hold. Absent: nothing.",
        ],
    },
];

//! Close codes, and what a stock client does after each of them.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

/// The status code of a WebSocket close frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct CloseCode(pub u16);

impl CloseCode {
    /// Done; a client stays away.
    pub const NORMAL: Self = Self(1000);
    /// The program at the other end is going away.
    pub const GOING_AWAY: Self = Self(1001);
    /// A frame broke the WebSocket protocol.
    pub const PROTOCOL: Self = Self(1002);
    /// A kind of data that is not understood.
    pub const UNSUPPORTED: Self = Self(1003);
    /// No status was given; only observed, never sent.
    pub const NO_STATUS: Self = Self(1005);
    /// The connection ended without a close frame; only observed, never sent.
    pub const ABNORMAL: Self = Self(1006);
    /// Text that is not UTF-8.
    pub const INVALID_PAYLOAD: Self = Self(1007);
    /// A rule of the application was broken.
    pub const POLICY: Self = Self(1008);
    /// A message is longer than allowed.
    pub const TOO_BIG: Self = Self(1009);
    /// A client misses an extension.
    pub const EXTENSION_MISSING: Self = Self(1010);
    /// An unexpected condition at the server.
    pub const INTERNAL: Self = Self(1011);
    /// The client got no ping in time; sent by clients.
    pub const PING_TIMEOUT: Self = Self(4000);
    /// The client gave no sign of life in time.
    pub const PONG_TIMEOUT: Self = Self(4001);
    /// A token could not be signed.
    pub const TOKEN_NOT_SIGNED: Self = Self(4002);
    /// The client got no usable answer to its handshake; sent by clients.
    pub const HANDSHAKE_FAILED: Self = Self(4003);
    /// The client could not store its token; sent by old clients.
    pub const TOKEN_NOT_STORED: Self = Self(4004);
    /// No `#handshake` came in time.
    pub const HANDSHAKE_TIMEOUT: Self = Self(4005);
    /// No broker for the connection; sent by no current server.
    pub const BROKER_UNAVAILABLE: Self = Self(4006);
    /// The connection attempt took too long; sent by clients.
    pub const CONNECT_TIMEOUT: Self = Self(4007);
    /// The handshake was refused or malformed, or `#authenticate` had no `cid`.
    pub const BAD_HANDSHAKE: Self = Self(4008);
    /// Something arrived before the handshake.
    pub const BEFORE_HANDSHAKE: Self = Self(4009);

    /// Lowest application code after which clients stay away.
    pub const STAY_AWAY_MIN: Self = Self(4500);

    /// Whether it tells of a fault on either side, as opposed to an end that
    /// somebody wanted. The codes of applications, from 3000 up, do not, but for
    /// those that SocketCluster has given a meaning.
    #[must_use]
    pub const fn is_abnormal(self) -> bool {
        match self {
            Self::NORMAL | Self::GOING_AWAY | Self::NO_STATUS => false,
            Self(code) => {
                code < 3000 || (code >= Self::PING_TIMEOUT.0 && code <= Self::BEFORE_HANDSHAKE.0)
            }
        }
    }

    /// What a stock client does after it has seen this code.
    #[must_use]
    pub const fn reaction(self) -> Reaction {
        match self {
            Self::NORMAL => Reaction::Never,
            Self::PING_TIMEOUT | Self::PONG_TIMEOUT | Self::NO_STATUS => Reaction::AtOnce,
            Self(code) if code >= Self::STAY_AWAY_MIN.0 => Reaction::Never,
            Self(_) => Reaction::Delayed,
        }
    }

    /// Whether a close frame may carry this code.
    #[must_use]
    pub const fn is_sendable(self) -> bool {
        // RFC 6455 section 7.4 and the IANA registry, which added 1012 to 1014.
        matches!(self.0, 1000..=1003 | 1007..=1014 | 3000..=4999)
    }
}

impl fmt::Display for CloseCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a stock client does after a close.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reaction {
    /// It stays away.
    Never,
    /// It reconnects immediately.
    AtOnce,
    /// It waits [`STOCK_DELAY_MIN`] to [`STOCK_DELAY_MAX`], then reconnects.
    Delayed,
}

/// Shortest wait of a stock client before a delayed reconnect.
pub const STOCK_DELAY_MIN: Duration = Duration::from_secs(10);
/// Longest wait of a stock client before its first delayed reconnect.
pub const STOCK_DELAY_MAX: Duration = Duration::from_secs(20);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_react_as_the_reference_does() {
        let table = [
            (0, Reaction::Delayed),
            (1000, Reaction::Never),
            (1001, Reaction::Delayed),
            (1002, Reaction::Delayed),
            (1005, Reaction::AtOnce),
            (1006, Reaction::Delayed),
            (1009, Reaction::Delayed),
            (1011, Reaction::Delayed),
            (1012, Reaction::Delayed),
            (4000, Reaction::AtOnce),
            (4001, Reaction::AtOnce),
            (4002, Reaction::Delayed),
            (4005, Reaction::Delayed),
            (4008, Reaction::Delayed),
            (4009, Reaction::Delayed),
            (4100, Reaction::Delayed),
            (4499, Reaction::Delayed),
            (4500, Reaction::Never),
            (4999, Reaction::Never),
        ];
        for (code, reaction) in table {
            assert_eq!(CloseCode(code).reaction(), reaction, "{code}");
        }
    }

    #[test]
    fn an_end_that_somebody_wanted_is_not_abnormal() {
        for code in [1000, 1001, 1005, 3000, 3999, 4010, 4500, 4999] {
            assert!(!CloseCode(code).is_abnormal(), "{code}");
        }
        for code in [
            0, 1002, 1003, 1006, 1007, 1008, 1009, 1011, 4000, 4001, 4005, 4009,
        ] {
            assert!(CloseCode(code).is_abnormal(), "{code}");
        }
    }

    #[test]
    fn codes_that_are_only_observed_are_not_sendable() {
        for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, u16::MAX] {
            assert!(!CloseCode(code).is_sendable(), "{code}");
        }
        for code in [1000, 1003, 1007, 1011, 1014, 3000, 4000, 4999] {
            assert!(CloseCode(code).is_sendable(), "{code}");
        }
    }
}

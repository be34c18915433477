//! Pings, and what silence means (socketcluster.md sections 4 and 12).

use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Context, Effect, Rules};
use crate::{Millis, close::CloseCode, packet::Version};

/// A version 2 ping: an empty text frame.
const PING_TWO: Bytes = Bytes::from_static(b"\x81\x00");
/// A version 1 ping: `#1`.
const PING_ONE: Bytes = Bytes::from_static(b"\x81\x02#1");

/// When to ping, in which version's words, and until when the client counts as
/// alive.
///
/// Which version a client speaks shows with its first pong. The first ping is
/// version 2's; if no pong came by the next, both are sent: JavaScript clients
/// of either version ignore the other's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    version: Option<Version>,
    pinged: bool,
    next_ping: Millis,
    alive_until: Millis,
}

impl Heartbeat {
    pub(super) fn new(now: Millis, rules: &Rules) -> Self {
        Self {
            version: None,
            pinged: false,
            next_ping: now + rules.ping_interval,
            alive_until: now + rules.pong_timeout,
        }
    }

    pub(super) fn deadline(&self) -> Millis {
        self.next_ping.min(self.alive_until)
    }

    pub(super) fn handle_sign_of_life(&mut self, now: Millis, rules: &Rules) {
        self.alive_until = now + rules.pong_timeout;
    }

    pub(super) fn extend(&mut self, by: Duration) {
        self.alive_until = self.alive_until + by;
    }

    pub(super) fn handle_pong(&mut self, version: Version) {
        self.version.get_or_insert(version);
    }

    pub(super) fn handle_timeout(&mut self, cx: &mut Context<'_>) -> Effect<'static> {
        if cx.now >= self.alive_until {
            return Effect::Close(CloseCode::PONG_TIMEOUT);
        }
        if cx.now >= self.next_ping {
            self.next_ping = cx.now + cx.rules.ping_interval;
            match self.version {
                Some(Version::One) => cx.out.push(PING_ONE),
                Some(Version::Two) => cx.out.push(PING_TWO),
                None => {
                    cx.out.push(PING_TWO);
                    if self.pinged {
                        cx.out.push(PING_ONE);
                    }
                }
            }
            self.pinged = true;
        }
        Effect::Nothing
    }
}

//! What the parent and its processes tell each other, one JSON line each.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{clock::Micros, delays::Delays, series::Series};

/// From a child to its parent, in this order.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum ChildMessage {
    /// Every connection stands, or has failed.
    Connected(Connected),
    /// Publishing has ended and everything is answered that will be. The keys are
    /// channel and publisher.
    Published(Vec<(u32, u32, Sent)>),
    /// The end.
    Outcome(Box<Outcome>),
}

/// From the parent to each child, in this order.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum ParentMessage {
    /// Publish from `at` on.
    Start {
        at: Micros,
        window: Window,
        end: Micros,
    },
    /// Stop before the end that was said.
    Stop { at: Micros },
    /// What all processes sent: by channel, then by publisher. The child waits
    /// for what is missing until `until`.
    Settle { sent: Vec<Vec<Sent>>, until: Micros },
}

/// The measured time.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(super) struct Window {
    pub(super) from: Micros,
    pub(super) to: Micros,
}

impl Window {
    pub(super) fn contains(self, at: Micros) -> bool {
        (self.from..self.to).contains(&at)
    }
}

/// What one publisher sent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Sent {
    pub(super) count: u32,
    /// Sequence numbers that were answered with an error or not at all, rising.
    pub(super) not_acked: Vec<u32>,
    pub(super) interval: Micros,
    /// First sequence number and its intended time of every stretch in which the
    /// publisher left nothing out.
    pub(super) stretches: Vec<(u32, Micros)>,
}

impl Sent {
    pub(super) fn is_acked(&self, sequence: u32) -> bool {
        self.not_acked.binary_search(&sequence).is_err()
    }

    /// When a publication was meant to be sent.
    pub(super) fn intended(&self, sequence: u32) -> Option<Micros> {
        intended(&self.stretches, self.interval, sequence)
    }
}

/// When a publication of these stretches was meant to be sent.
pub(super) fn intended(
    stretches: &[(u32, Micros)],
    interval: Micros,
    sequence: u32,
) -> Option<Micros> {
    let after = stretches.partition_point(|(first, _)| *first <= sequence);
    let (first, at) = stretches.get(after.checked_sub(1)?)?;
    Some(at + u64::from(sequence - first) * interval)
}

#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Connected {
    pub(super) ready: u64,
    pub(super) failed: u64,
    pub(super) began: Micros,
    pub(super) ended: Micros,
}

/// What one process saw.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Outcome {
    pub(super) published: u64,
    pub(super) acked: u64,
    /// Publications answered with an error.
    pub(super) errors: u64,
    pub(super) unanswered: u64,
    /// Publications that were due while their publisher had no connection.
    pub(super) skipped: u64,
    pub(super) delivered: u64,
    pub(super) delivered_in_window: u64,
    pub(super) lost: u64,
    pub(super) missed_away: u64,
    pub(super) repeated: u64,
    pub(super) out_of_order: u64,
    pub(super) foreign: u64,
    /// Packets that are neither deliveries, answers nor pings.
    pub(super) unexpected: u64,
    /// By close code; 1006 stands for no close frame.
    pub(super) closed: BTreeMap<u16, u64>,
    pub(super) reconnected: u64,
    pub(super) last_reconnect: Option<Micros>,
    /// What arrived in each second of the window.
    pub(super) series: Series,
    /// From the intended time of sending to the arrival, µs: (value, count).
    pub(super) latency: Vec<(u64, u64)>,
    /// From the intended time of sending to the answer, µs.
    pub(super) acks: Vec<(u64, u64)>,
    /// From the intended to the real time of sending, µs.
    pub(super) lag: Vec<(u64, u64)>,
    /// Longest time in the window in which a channel with a schedule delivered
    /// nothing to this process.
    pub(super) longest_silence: Micros,
    /// How long publications took, by their intended time.
    pub(super) delays: Delays,
    /// By channel, the order in which everything arrived; see `Tally::order`.
    pub(super) orders: BTreeMap<u32, u64>,
    pub(super) order_disagreements: u64,
    /// Processor time in the window.
    pub(super) processor_us: u64,
}

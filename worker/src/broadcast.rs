//! A publication that comes alone, for many clients.
//!
//! Queueing it for each of them and then writing to each visits every
//! connection twice, and between the two the kernel has driven it out of the
//! processor's caches. So it is written at once, past the queues, in shares of
//! one turn like all that is written (delivery.md F1); and as soon as something
//! follows it, it is queued as ever, so that the two share a write.

use bytes::Bytes;
use muster_daemon::config::SlowClient;

use crate::{connection::ConnectionKey, outbox::Delivery};

/// Fewer are in the caches still when they are written to.
pub(crate) const CLIENTS_MIN: usize = 32;
/// Longer frames take the kernel so long that a share would not be a turn's.
const FRAME_BYTES_MAX: usize = 16 * 1024;

/// Whether it is cheaper than to queue.
pub(crate) fn is_worthwhile(clients: usize, frame_bytes: usize) -> bool {
    clients >= CLIENTS_MIN && frame_bytes <= FRAME_BYTES_MAX
}

/// The publication, and who has still to get it.
#[derive(Debug)]
pub(crate) struct Broadcast {
    frame: Bytes,
    channel: u32,
    slow_client: SlowClient,
    remaining: Vec<ConnectionKey>,
}

impl Broadcast {
    pub(crate) fn new(remaining: Vec<ConnectionKey>, delivery: Delivery<'_>) -> Self {
        Self {
            frame: delivery.frame.clone(),
            channel: delivery.channel,
            slow_client: delivery.slow_client,
            remaining,
        }
    }

    pub(crate) fn frame(&self) -> &Bytes {
        &self.frame
    }

    pub(crate) fn delivery(&self) -> Delivery<'_> {
        Delivery {
            frame: &self.frame,
            channel: self.channel,
            slow_client: self.slow_client,
        }
    }

    /// Whether everybody had a turn.
    pub(crate) fn is_done(&self) -> bool {
        self.remaining.is_empty()
    }

    /// Up to `share` clients, who are not named again.
    pub(crate) fn next(&mut self, share: usize) -> Vec<ConnectionKey> {
        let at = self.remaining.len().saturating_sub(share);
        self.remaining.split_off(at)
    }

    /// Whether this client was still to get it; it is not named again.
    pub(crate) fn take_out(&mut self, key: ConnectionKey) -> bool {
        let place = self.remaining.iter().position(|other| *other == key);
        place
            .map(|place| self.remaining.swap_remove(place))
            .is_some()
    }
}

//! What a worker has counted since its start.

/// Reported to the orchestrator once a second.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stats {
    /// Taken from clients.
    pub(crate) publications: u64,
    /// Not acknowledged by their owners.
    pub(crate) publications_failed: u64,
    /// Queued for clients.
    pub(crate) deliveries: u64,
    /// Times that publications were missing for this worker's subscribers.
    pub(crate) holes: u64,
    /// Subscribers that got what they had missed, and those that were told that
    /// they miss something.
    pub(crate) resumed: u64,
    pub(crate) holes_told: u64,
    /// Publications given up for clients that did not read, as their channels'
    /// policies say.
    pub(crate) dropped: u64,
    /// Closed because they did not read.
    pub(crate) slow_clients_closed: u64,
}

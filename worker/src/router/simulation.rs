//! What the simulation wants to see of a router's queues.

use super::Router;

/// How full a router's queues are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fill {
    /// Bytes of the publications that wait for their owner's ack.
    pub(crate) kept_bytes: usize,
    /// The same as the links and the shards without owner account for it.
    pub(crate) accounted_bytes: usize,
    /// The most that is accounted for in one of them.
    pub(crate) window_bytes: usize,
    /// Frames queued for links.
    pub(crate) frames: usize,
}

impl Router {
    pub(crate) fn fill(&self) -> Fill {
        let windows = || {
            let links = self.links.values().map(|link| link.kept_bytes);
            links.chain([self.unowned_bytes])
        };
        Fill {
            kept_bytes: self.shards.iter().map(|shard| shard.bytes()).sum(),
            accounted_bytes: windows().sum(),
            window_bytes: windows().max().unwrap_or_default(),
            frames: self.links.values().map(|link| link.out.len()).sum(),
        }
    }
}

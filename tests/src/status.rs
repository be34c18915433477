//! What `orchestrator status --json` says, as far as tests need it.

use serde::{Deserialize, Deserializer};

/// The state of a cluster.
#[derive(Debug, Clone, Deserialize)]
pub struct Status {
    /// `ADDRESS:PORT` where clients connect.
    pub listen: String,
    /// The orchestrator.
    pub pid: u32,
    /// Workers and brokers.
    pub nodes: Vec<Node>,
    /// A change of the number of brokers that is under way.
    #[serde(default)]
    pub scaling: Option<serde_json::Value>,
}

/// One worker or broker.
#[derive(Debug, Clone, Deserialize)]
pub struct Node {
    /// `worker` or `broker`.
    pub role: String,
    /// 1, 2, 3 …
    pub slot: u32,
    /// 0 while none runs.
    #[serde(deserialize_with = "or_default")]
    pub pid: u32,
    /// `starting`, `ready`, `restarting`, `stopping`.
    pub state: String,
    /// Which life of the slot this is.
    pub incarnation: u64,
    /// How often the slot was started again.
    pub restarts: u32,
    /// How the last process in the slot ended.
    #[serde(default)]
    pub last_exit: Option<String>,
    /// What the node last counted.
    #[serde(default)]
    pub stats: Option<Stats>,
}

/// The counters that tests look at.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Stats {
    /// Open connections (a worker's).
    pub connections: u64,
    /// Publications that came in.
    pub publications: u64,
    /// Shards that are open (a broker's).
    pub shards: u32,
    /// Links that stand.
    pub links: u32,
    /// Clients closed because they read too slowly (a worker's).
    pub slow_clients_closed: u64,
    /// Publications given up for slow clients.
    pub dropped: u64,
    /// Times that publications were missing for a worker's subscribers.
    pub holes: u64,
    /// Times that a subscriber was told that something is missing.
    pub holes_told: u64,
}

impl Status {
    /// A node.
    #[must_use]
    pub fn node(&self, role: &str, slot: u32) -> Option<&Node> {
        self.nodes
            .iter()
            .find(|node| node.role == role && node.slot == slot)
    }

    /// The workers, by slot.
    #[must_use]
    pub fn workers(&self) -> Vec<&Node> {
        let mut workers: Vec<_> = self
            .nodes
            .iter()
            .filter(|node| node.role == "worker")
            .collect();
        workers.sort_by_key(|node| node.slot);
        workers
    }

    /// Shards of the brokers, by slot.
    #[must_use]
    pub fn shards(&self) -> Vec<u32> {
        let mut brokers: Vec<_> = self
            .nodes
            .iter()
            .filter(|node| node.role == "broker")
            .collect();
        brokers.sort_by_key(|node| node.slot);
        let shards = |node: &&Node| node.stats.as_ref().map_or(0, |stats| stats.shards);
        brokers.iter().map(shards).collect()
    }

    /// All processes.
    #[must_use]
    pub fn pids(&self) -> Vec<u32> {
        let nodes = self.nodes.iter().map(|node| node.pid);
        std::iter::once(self.pid)
            .chain(nodes)
            .filter(|pid| *pid != 0)
            .collect()
    }

    /// Whether every node is ready.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.nodes.iter().all(|node| node.state == "ready")
    }
}

/// Null as nothing.
fn or_default<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

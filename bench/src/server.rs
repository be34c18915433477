//! The server that is measured: where it is, its processes and what they use.

use std::{collections::BTreeMap, process::Stdio};

use serde::{Deserialize, Serialize};

use super::{BenchError, Place, clock::Micros, options::RunOptions, procfs};

/// What `status --json` says, as far as it matters here.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Status {
    pid: u32,
    url: String,
    pub(super) nodes: Vec<Node>,
    /// A change of the number of brokers that is under way.
    scaling: Option<serde_json::Value>,
}

/// One worker or broker.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Node {
    /// `worker-1`, `broker-2`.
    pub(super) name: String,
    /// Nothing while none runs.
    pub(super) pid: Option<u32>,
    pub(super) state: String,
    pub(super) incarnation: u64,
    pub(super) uptime_ms: u64,
    role: String,
    /// Nothing until it has said.
    stats: Option<Stats>,
}

#[derive(Debug, Clone, Deserialize)]
struct Stats {
    /// Of workers.
    #[serde(default)]
    connections: u64,
}

/// What `update --json` says, as far as it matters here.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Updated {
    /// Connections that were handed over.
    pub(super) moved: u64,
    /// Connections that could not be.
    pub(super) failed: u64,
    /// How many connections stood still for at most so many microseconds.
    pub(super) pauses: Vec<(u64, u64)>,
    pub(super) pause_p50_us: Micros,
    pub(super) pause_p99_us: Micros,
    pub(super) pause_max_us: Micros,
    pub(super) handing_over_us: Micros,
    pub(super) took_ms: u64,
    /// The last thing that did not go as it should.
    pub(super) note: Option<String>,
}

/// What processes hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(super) struct Holding {
    pub(super) processes: u64,
    pub(super) descriptors: u64,
    /// Resident.
    pub(super) rss_bytes: u64,
    /// What is shared by several, in parts.
    pub(super) pss_bytes: u64,
}

impl Node {
    pub(super) fn is_broker(&self) -> bool {
        self.role == "broker"
    }
}

/// A cluster of ours, or any server.
#[derive(Debug, Clone)]
pub(super) enum Server {
    /// One that can be asked.
    Cluster(Place),
    /// One of which these processes, and those that they start, are known.
    Processes(Vec<u32>),
}

/// What a server's processes use.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Usage {
    pub(super) processor_us: Micros,
    pub(super) pss_bytes: u64,
}

impl Server {
    /// The server that the options mean, and its address.
    pub(super) fn find(options: &RunOptions, place: &Place) -> Result<(Self, String), BenchError> {
        let url = match &options.url {
            Some(url) if place.runtime_dir.is_none() => {
                let server = Self::Processes(options.server_pid.clone());
                return Ok((server, url.clone()));
            }
            url => url,
        };
        let server = Self::Cluster(place.clone());
        let own = server.status()?.map(|status| status.url);
        let url = url.clone().or(own).unwrap_or_default();
        Ok((server, reachable(&url)))
    }

    /// The state of a cluster of ours.
    pub(super) fn status(&self) -> Result<Option<Status>, BenchError> {
        let Self::Cluster(place) = self else {
            return Ok(None);
        };
        let output = place
            .command()
            .args(["status", "--json"])
            .stdin(Stdio::null())
            .output()
            .map_err(BenchError::io("cannot run the orchestrator"))?;
        if !output.status.success() {
            let error = String::from_utf8_lossy(&output.stderr);
            let error = error.trim().trim_start_matches("error: ").to_owned();
            return Err(BenchError::Status(error));
        }
        match serde_json::from_slice(&output.stdout) {
            Ok(status) => Ok(Some(status)),
            Err(error) => Err(BenchError::Status(error.to_string())),
        }
    }

    /// Begins to change the number of brokers of a cluster of ours.
    pub(super) fn scale_brokers(&self, brokers: u32) -> Result<(), BenchError> {
        let scaled = self.scale("--brokers", brokers)?;
        scaled.map_err(BenchError::Scale)
    }

    /// Begins to change the number of some nodes; an error is what a cluster of
    /// ours has against it.
    pub(super) fn scale(&self, nodes: &str, count: u32) -> Result<Result<(), String>, BenchError> {
        let output = self.tell(&["scale", nodes, &count.to_string()])?;
        Ok(output.map(|_| ()))
    }

    /// Updates a cluster of ours, with these arguments; an error is how that
    /// failed.
    pub(super) fn update(
        &self,
        arguments: &[String],
    ) -> Result<Result<Updated, String>, BenchError> {
        let arguments = arguments.iter().map(String::as_str);
        let arguments: Vec<_> = ["update", "--json"].into_iter().chain(arguments).collect();
        let output = self.tell(&arguments)?;
        let updated = output.map(|output| serde_json::from_slice(&output));
        match updated {
            Ok(Ok(updated)) => Ok(Ok(updated)),
            Ok(Err(error)) => Err(BenchError::Status(error.to_string())),
            Err(error) => Ok(Err(error)),
        }
    }

    /// What a verb prints, or says instead.
    fn tell(&self, arguments: &[&str]) -> Result<Result<Vec<u8>, String>, BenchError> {
        let Self::Cluster(place) = self else {
            return Err(BenchError::KillBlindly);
        };
        let output = place
            .command()
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .map_err(BenchError::io("cannot run the orchestrator"))?;
        if output.status.success() {
            return Ok(Ok(output.stdout));
        }
        let error = String::from_utf8_lossy(&output.stderr);
        let error = error.trim().trim_start_matches("error: ");
        Ok(Err(error.to_owned()))
    }

    /// What the processes of a cluster of ours hold, by role.
    pub(super) fn holding(&self) -> Result<BTreeMap<&'static str, Holding>, BenchError> {
        let status = self.status()?.ok_or(BenchError::KillBlindly)?;
        let mut held: BTreeMap<_, Holding> = BTreeMap::new();
        for (role, pid) in status.processes() {
            let of_role = held.entry(role).or_default();
            if let Some((rss_bytes, descriptors)) = procfs::held(pid) {
                of_role.processes += 1;
                of_role.descriptors += descriptors;
                of_role.rss_bytes += rss_bytes;
                of_role.pss_bytes += procfs::pss_bytes(pid).unwrap_or(0);
            }
        }
        Ok(held)
    }

    /// All its processes that are known; none of a server that is only an
    /// address.
    pub(super) fn pids(&self) -> Result<Vec<u32>, BenchError> {
        match self {
            Self::Processes(pids) => Ok(procfs::with_descendants(pids)),
            Self::Cluster(_) => {
                let status = self.status()?;
                Ok(status.map_or_else(Vec::new, |status| status.pids()))
            }
        }
    }
}

impl Status {
    fn pids(&self) -> Vec<u32> {
        self.processes().map(|(_, pid)| pid).collect()
    }

    /// All processes, with their roles.
    fn processes(&self) -> impl Iterator<Item = (&'static str, u32)> + '_ {
        let nodes = self.nodes.iter().filter_map(|node| {
            let role = if node.is_broker() {
                "brokers"
            } else {
                "workers"
            };
            Some((role, node.pid?))
        });
        std::iter::once(("orchestrator", self.pid)).chain(nodes)
    }

    /// How many connections each worker has.
    pub(super) fn connections(&self) -> impl Iterator<Item = u64> + '_ {
        let workers = self.nodes.iter().filter(|node| !node.is_broker());
        workers.map(|node| node.stats.as_ref().map_or(0, |stats| stats.connections))
    }

    pub(super) fn brokers(&self) -> usize {
        self.nodes.iter().filter(|node| node.is_broker()).count()
    }

    pub(super) fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.iter().find(|node| node.name == name)
    }

    pub(super) fn is_whole(&self) -> bool {
        self.scaling.is_none() && self.nodes.iter().all(|node| node.state == "ready")
    }
}

/// What all processes use together; one that ended meanwhile counts nothing.
pub(super) fn usage(pids: &[u32]) -> Usage {
    let processor = pids.iter().filter_map(|pid| procfs::processor_us(*pid));
    let pss = pids.iter().filter_map(|pid| procfs::pss_bytes(*pid));
    Usage {
        processor_us: processor.sum(),
        pss_bytes: pss.sum(),
    }
}

/// A server that listens on every address is on this machine.
fn reachable(url: &str) -> String {
    url.replacen("//0.0.0.0:", "//127.0.0.1:", 1)
        .replacen("//[::]:", "//[::1]:", 1)
}

//! The server that is measured: where it is, its processes and what they use.

use std::process::Stdio;

use serde::Deserialize;

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
        let Self::Cluster(place) = self else {
            return Err(BenchError::KillBlindly);
        };
        let output = place
            .command()
            .args(["scale", "--brokers", &brokers.to_string()])
            .stdin(Stdio::null())
            .output()
            .map_err(BenchError::io("cannot run the orchestrator"))?;
        if output.status.success() {
            return Ok(());
        }
        let error = String::from_utf8_lossy(&output.stderr);
        let error = error.trim().trim_start_matches("error: ");
        Err(BenchError::Scale(error.to_owned()))
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
        let nodes = self.nodes.iter().filter_map(|node| node.pid);
        std::iter::once(self.pid).chain(nodes).collect()
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

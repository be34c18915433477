//! The cluster's processes, as the orchestrator reports them.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use super::{LoadError, clock::Micros, procfs};
use crate::status::Status;

/// Asks for the state of one cluster.
#[derive(Debug, Clone)]
pub(super) struct Cluster {
    orchestrator: PathBuf,
    runtime_dir: PathBuf,
}

/// What a cluster's processes use.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Usage {
    pub(super) processor_us: Micros,
    pub(super) pss_bytes: u64,
}

impl Cluster {
    pub(super) fn new(orchestrator: &Path, runtime_dir: &Path) -> Self {
        Self {
            orchestrator: orchestrator.into(),
            runtime_dir: runtime_dir.into(),
        }
    }

    pub(super) fn status(&self) -> Result<Status, LoadError> {
        let output = Command::new(&self.orchestrator)
            .args(["status", "--json", "--runtime-dir"])
            .arg(&self.runtime_dir)
            // Not a setting of the cluster, which knows no such name.
            .env_remove("MUSTER_ORCHESTRATOR")
            .stdin(Stdio::null())
            .output()
            .map_err(LoadError::io("cannot run the orchestrator"))?;
        if !output.status.success() {
            return Err(LoadError::Status(
                String::from_utf8_lossy(&output.stderr).trim().into(),
            ));
        }
        serde_json::from_slice(&output.stdout).map_err(|error| LoadError::Status(error.to_string()))
    }
}

/// What all processes use together; one that ended meanwhile counts nothing.
pub(super) fn usage(pids: &[u32]) -> Usage {
    Usage {
        processor_us: pids
            .iter()
            .filter_map(|pid| procfs::processor_us(*pid))
            .sum(),
        pss_bytes: pids.iter().filter_map(|pid| procfs::pss_bytes(*pid)).sum(),
    }
}

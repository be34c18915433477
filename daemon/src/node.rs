//! What the orchestrator tells a node when it starts it.

use std::path::PathBuf;

/// Arguments of the `worker` and `broker` roles.
#[derive(Debug, Clone, clap::Args)]
pub struct NodeArgs {
    /// Which of the cluster's workers or brokers this is: 1, 2, 3 …
    #[arg(long, default_value_t = 1)]
    pub slot: u32,
    /// Tells this life of the slot from earlier ones.
    #[arg(long, default_value_t = 0)]
    pub incarnation: u64,
    /// Another process fills the slot: do nothing for clients before it hands its
    /// own over.
    #[arg(long)]
    pub successor: bool,
    /// The cluster's runtime directory, with the orchestrator's socket.
    #[arg(long, value_name = "DIR")]
    pub runtime_dir: PathBuf,
    /// Configuration file.
    #[arg(short, long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

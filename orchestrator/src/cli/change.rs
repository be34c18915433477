//! How a running cluster is to change.

use std::{path::PathBuf, time::Duration};

use super::{BROKERS_MAX, OutputArgs, WORKERS_MAX, values::hold};

/// What the processes are replaced by.
#[derive(Debug, clap::Args)]
pub(crate) struct UpdateArgs {
    /// The program that the new processes run [default: what the others run].
    #[arg(long, value_name = "PATH")]
    pub(crate) binary: Option<PathBuf>,
    /// Workers that are replaced before the others; 0: none [update.canary].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=i64::from(WORKERS_MAX)))]
    pub(crate) canary: Option<u32>,
    /// How long the others wait then, while the new ones are watched, for example
    /// 30s [update.hold].
    #[arg(long, value_name = "TIME", value_parser = hold)]
    pub(crate) hold: Option<Duration>,
    /// Workers that are replaced at the same time after that [update.parallel].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(WORKERS_MAX)))]
    pub(crate) parallel: Option<u32>,
    /// Take the update back that is under way, connections included; ends once
    /// that is through.
    #[arg(long, conflicts_with_all = ["binary", "canary", "hold", "parallel", "status"])]
    pub(crate) abort: bool,
    /// Only show how far an update is, or how the last one ended.
    #[arg(long, conflicts_with_all = ["binary", "canary", "hold", "parallel"])]
    pub(crate) status: bool,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// How many nodes a running cluster is to have.
#[derive(Debug, clap::Args)]
pub(crate) struct ScaleArgs {
    /// Worker processes. More: the new ones get their part of the connections.
    /// Fewer: the highest hand theirs over to the others and end. No client is
    /// disconnected.
    #[arg(long, value_name = "N", required_unless_present = "brokers",
        value_parser = clap::value_parser!(u32).range(1..=i64::from(WORKERS_MAX)))]
    pub(crate) workers: Option<u32>,
    /// Broker processes. More: shards move to the new ones once these are ready
    /// and every worker has a link to them. Fewer: the shards of the highest move
    /// to the others, then those end. One such change at a time; `status` shows it.
    #[arg(long, value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..=i64::from(BROKERS_MAX)))]
    pub(crate) brokers: Option<u32>,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

//! `orchestrator bench`: thousands of cheap WebSocket clients, open-loop
//! publishing, and an account of every publication.
//!
//! One process drives its clients from one thread with epoll; a parent process
//! starts as many of those as are wanted, lets them begin at one instant and
//! adds up what they saw. Publications are sent at the times the plan intends,
//! however slow the server is, and latency counts from the intended time.
#![warn(missing_docs)]

mod blows;
mod churn;
mod clients;
mod clock;
mod conduct;
mod delays;
mod deploy;
mod driver;
mod hostile;
mod interrupt;
mod messages;
mod options;
mod page;
mod parts;
mod plan;
mod procfs;
mod progress;
mod publisher;
mod report;
mod rounds;
mod saturate;
mod series;
mod server;
mod stamp;
mod tally;

use std::{path::PathBuf, process::Command};

pub use self::options::Options;
use self::{clock::micros, conduct::Conductor, options::Scenario, plan::Plan};

/// Where a cluster of ours is looked for.
#[derive(Debug, Clone)]
pub struct Place {
    /// The orchestrator's program; also what the benchmark's processes run.
    pub program: PathBuf,
    /// The cluster's runtime directory, if it is not the usual one.
    pub runtime_dir: Option<PathBuf>,
}

/// Why a run could not be done.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The address is not understood.
    #[error("{0}: not a ws://ADDRESS:PORT/PATH address")]
    Url(String),
    /// Something of the system failed.
    #[error("{what}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// A child process said something else than it should.
    #[error("unexpected message of a child process: {0}")]
    Message(String),
    /// The state of the cluster could not be read.
    #[error("no cluster to measure: {0}; start one with `up`, or name another server with --url")]
    Status(String),
    /// What is to be killed or updated cannot be found without the cluster's state.
    #[error(
        "the scenarios kill and deploy, --kill, --kill-rounds and --stop-rounds need a cluster of ours, not only a --url"
    )]
    KillBlindly,
    /// Somebody ended the run before there was anything to report.
    #[error("interrupted before anything was measured")]
    Interrupted,
    /// The figures would be the benchmark's own.
    #[error(
        "the benchmark itself was the bottleneck: one of its processes used {:.2} of a core; \
         use more --processes, or --force to see the figures all the same",
        cores
    )]
    Bottleneck {
        /// What the busiest process used.
        cores: f64,
    },
    /// A promise was broken; the report says which.
    #[error("not everything arrived once, in order and where it belongs")]
    Unsound,
    /// The cluster refused to change its number of brokers.
    #[error("the brokers cannot be scaled: {0}")]
    Scale(String),
    /// A process that was to be killed does not exist.
    #[error("no {0} runs")]
    NoSuchNode(String),
}

impl BenchError {
    fn io(what: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { what, source }
    }
}

impl Place {
    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        if let Some(dir) = &self.runtime_dir {
            command.arg("--runtime-dir").arg(dir);
        }
        command
    }
}

/// Runs what the options ask for and prints what was found.
///
/// # Errors
/// When the run could not be done at all, or anything that was acknowledged got
/// lost, repeated or out of order.
pub fn run(options: &Options, place: &Place) -> Result<(), BenchError> {
    let Options {
        scenario,
        run,
        child,
    } = options;
    match (child, scenario) {
        (Some(index), Scenario::Churn { clients }) => churn::run_part(run, *clients, *index),
        (Some(index), _) => driver::run(options, *index),
        (None, Scenario::Churn { .. }) => churn::run(Conductor::new(run, place)?),
        (None, Scenario::Saturate { what, p99_ms, .. }) => {
            let limit = micros(p99_ms / 1e3);
            saturate::run(Conductor::new(run, place)?, scenario, *what, limit)
        }
        (None, scenario) => {
            let plan = Plan::new(scenario);
            let mut conductor = Conductor::new(run, place)?;
            conductor.prepare(scenario)?;
            let report = conductor.run(&plan, &[])?;
            report.publish(scenario.name(), run)
        }
    }
}

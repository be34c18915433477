//! The load generator: thousands of cheap WebSocket clients, open-loop
//! publishing, and an account of every publication.
//!
//! One process drives its clients from one thread with epoll; a parent process
//! starts as many of those as are wanted, lets them begin at one instant and
//! adds up what they saw. Publications are sent at the times the plan intends,
//! however slow the cluster is, and latency counts from the intended time.

mod clients;
mod clock;
mod conduct;
mod driver;
mod hostile;
mod messages;
mod options;
mod plan;
mod procfs;
mod publisher;
mod report;
mod rounds;
mod stamp;
mod status;
mod tally;

use std::process::ExitCode;

pub use options::Options;

/// Why a run could not be done.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The address is not understood.
    #[error("{0}: not a ws://HOST:PORT/PATH address")]
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
    #[error("no status of the cluster: {0}")]
    Status(String),
    /// What is to be killed cannot be found without the cluster's state.
    #[error("--kill, --kill-rounds and --stop-rounds need --cluster-runtime-dir")]
    KillBlindly,
    /// A process that was to be killed does not exist.
    #[error("no {0} runs")]
    NoSuchNode(String),
}

impl LoadError {
    fn io(what: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { what, source }
    }
}

/// Runs what the options ask for; the exit code says whether anything that was
/// acknowledged got lost, repeated or out of order.
///
/// # Errors
/// When the run could not be done at all.
pub fn run(options: &Options) -> Result<ExitCode, LoadError> {
    match options.child {
        Some(index) => driver::run(options, index).map(|()| ExitCode::SUCCESS),
        None => conduct::run(options),
    }
}

//! A broker: owns channels, gives each publication its offset, keeps it for a
//! while, and relays it to the workers that listen.
//!
//! A worker's link (`service`) brings frames in (`intake`) to the open shards
//! (`table`, `shard`); a shard appends to its `log` and puts relays on the
//! links that subscribe (`link`), which are woken once per turn (`turn`).

mod error;
mod intake;
mod journal;
mod keys;
mod limits;
mod link;
mod links;
mod listen;
mod log;
#[doc(hidden)]
pub mod measure;
mod node;
mod room;
mod service;
mod shard;
#[doc(hidden)]
pub mod simulation;
mod table;
mod turn;

use muster_daemon::{Config, NodeArgs, cadence};
use tokio::runtime::{Builder, Runtime};

pub use error::BrokerError;
pub use journal::{HomeError, check};
pub use listen::Listen;

/// Runs a broker on a Unix socket until SIGTERM or SIGINT; see [`run_on`].
///
/// # Errors
///
/// As [`run_on`].
pub fn run(args: NodeArgs, config: Config) -> Result<(), BrokerError> {
    run_on(args, config, Listen::Socket)
}

/// Runs a broker that accepts links on `listen` until SIGTERM or SIGINT.
///
/// It joins the orchestrator of the runtime directory and has no shard open
/// until that one has sent a view.
///
/// # Errors
///
/// When it cannot listen, or a part of it stops that never should.
pub fn run_on(args: NodeArgs, config: Config, listen: Listen) -> Result<(), BrokerError> {
    let runtime = runtime(&config).map_err(BrokerError::Runtime)?;
    // A task, so that the heartbeat comes from a thread that does the work.
    let served = runtime.block_on(async { tokio::spawn(node::serve(args, config, listen)).await });
    served.unwrap_or_else(|error| {
        Err(BrokerError::PartStopped {
            part: "the node",
            source: Some(error.into()),
        })
    })
}

fn runtime(config: &Config) -> std::io::Result<Runtime> {
    let mut builder = match usize::try_from(config.broker.threads).unwrap_or(1) {
        0 | 1 => Builder::new_current_thread(),
        threads => {
            let mut builder = Builder::new_multi_thread();
            builder.worker_threads(threads);
            builder
        }
    };
    cadence::pace(&mut builder, config.pacing.wakeup_interval);
    builder.enable_all().build()
}

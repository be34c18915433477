//! A worker as a program of its own, for containers. On one host the
//! orchestrator plays this role itself.

use std::process::ExitCode;

use clap::Parser;
use muster_daemon::{NodeArgs, config, exit, telemetry};

/// A Muster worker: terminates client WebSockets.
#[derive(Debug, Parser)]
#[command(name = "worker", version)]
struct Cli {
    #[command(flatten)]
    node: NodeArgs,
}

fn main() -> ExitCode {
    let Cli { node } = Cli::parse();
    let loaded = match config::load(node.config.as_deref(), std::env::vars_os(), &[]) {
        Ok(loaded) => loaded,
        Err(error) => {
            exit::report(&error);
            return ExitCode::from(exit::CONFIG);
        }
    };
    let identity = telemetry::Identity {
        role: "worker",
        slot: Some(node.slot),
    };
    if let Err(error) = telemetry::init(&loaded.config.log, identity) {
        exit::report(&error);
        return ExitCode::from(exit::CONFIG);
    }
    match muster_worker::run(node, loaded.config) {
        Ok(()) => ExitCode::from(exit::SUCCESS),
        Err(error) => {
            exit::report(&error);
            ExitCode::from(error.exit_code())
        }
    }
}

//! The broker as a binary of its own, for containers.

use std::{net::SocketAddr, process::ExitCode};

use clap::Parser;
use muster_broker::{BrokerError, Listen};
use muster_daemon::{
    NodeArgs,
    config::{self, ConfigError},
    exit,
    telemetry::{self, Identity, TelemetryError},
};

/// Owns channels of a Muster cluster.
#[derive(Debug, Parser)]
#[command(name = "broker", version)]
struct Cli {
    #[command(flatten)]
    node: NodeArgs,
    /// Accept links on TCP instead of a Unix socket in the runtime directory.
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<SocketAddr>,
}

#[derive(Debug, thiserror::Error)]
enum Fatal {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Telemetry(#[from] TelemetryError),
    #[error(transparent)]
    Broker(#[from] BrokerError),
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(fatal) => {
            exit::report(&fatal);
            ExitCode::from(fatal.exit_code())
        }
    }
}

fn run(cli: Cli) -> Result<(), Fatal> {
    let loaded = config::load(cli.node.config.as_deref(), std::env::vars_os(), &[])?;
    let identity = Identity {
        role: "broker",
        slot: Some(cli.node.slot),
    };
    telemetry::init(&loaded.config.log, identity)?;
    let listen = cli.listen.map_or(Listen::Socket, Listen::Tcp);
    muster_broker::run_on(cli.node, loaded.config, listen)?;
    Ok(())
}

impl Fatal {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) | Self::Telemetry(TelemetryError::Filter(_)) => exit::CONFIG,
            Self::Telemetry(TelemetryError::Twice(_)) | Self::Broker(_) => exit::FAILURE,
        }
    }
}

//! What the kernel alone costs; see `muster_tests::floor`.

use std::{
    io::{self, Write as _},
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    process::ExitCode,
};

use clap::Parser;
use muster_daemon::descriptors;
use muster_tests::floor::{self, Settings};

/// A server that does nothing but what the kernel needs, to compare with: measure
/// it with `orchestrator bench SCENARIO --without-acks --url ... --server-pid ...`.
#[derive(Debug, Parser)]
struct Options {
    /// Where clients connect.
    #[arg(long, default_value = "127.0.0.1:8100")]
    listen: SocketAddr,
    /// Two workers and a broker instead of one process.
    #[arg(long)]
    cluster: bool,
    /// Be a worker of the broker at this socket.
    #[arg(long, hide = true)]
    worker_of: Option<PathBuf>,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let settings = Settings {
        listen: options.listen,
    };
    descriptors::raise_limit();
    let result = match options.worker_of {
        Some(broker) => floor::run_worker(&broker),
        None if options.cluster => floor::run_cluster(settings, announce),
        None => floor::run_single(settings, announce),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody is left to tell when standard error is gone.
            let _ = writeln!(io::stderr(), "error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn announce(listener: &TcpListener) {
    if let Ok(addr) = listener.local_addr() {
        let pid = std::process::id();
        let _ = writeln!(io::stdout(), "--url ws://{addr}/ --server-pid {pid}");
    }
}

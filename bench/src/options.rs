//! The command line.

use std::{net::SocketAddr, path::PathBuf, str::FromStr};

use clap::{Args, Subcommand, ValueEnum};

use super::{BenchError, hostile::Flood};

/// What is measured, and how.
#[derive(Debug, Clone, Args)]
pub struct Options {
    #[command(subcommand)]
    pub(super) scenario: Scenario,
    #[command(flatten)]
    pub(super) run: RunOptions,
    /// Which of the parent's processes this is.
    #[arg(long, global = true, hide = true)]
    pub(super) child: Option<u32>,
}

impl Options {
    /// Whether the report is to be JSON.
    #[must_use]
    pub fn json(&self) -> bool {
        self.run.json
    }
}

/// Who connects, subscribes and publishes.
#[derive(Debug, Clone, Subcommand)]
pub(super) enum Scenario {
    /// Connections with one subscription each that do nothing.
    Idle {
        #[arg(long, default_value_t = 1000)]
        connections: u32,
    },
    /// One channel with many subscribers.
    Fanout {
        #[arg(long, default_value_t = 1000)]
        subscribers: u32,
        /// Publications per second, all publishers together.
        #[arg(long, default_value_t = 50.0, value_parser = positive)]
        rate: f64,
        /// Connections that publish; they do not subscribe.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
        publishers: u32,
    },
    /// Many small channels whose members all publish.
    Lobby {
        #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..))]
        lobbies: u32,
        #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
        members: u32,
        /// Publications per second of each member.
        #[arg(long, default_value_t = 1.0, value_parser = positive)]
        rate: f64,
    },
    /// The highest load at which latency stays within a limit: raised step by
    /// step until it does not, then narrowed down.
    Saturate {
        /// What is made more of.
        #[arg(value_enum)]
        what: Shape,
        /// Subscribers of the one channel.
        #[arg(long, default_value_t = 1000)]
        subscribers: u32,
        #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..))]
        lobbies: u32,
        #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
        members: u32,
        /// The limit for the 99th percentile of latency, in milliseconds.
        #[arg(long, default_value_t = 100.0, value_parser = positive)]
        p99_ms: f64,
        /// This step's rate, as `--rate` of the scenario.
        #[arg(long, hide = true, default_value_t = 1.0)]
        step_rate: f64,
    },
    /// Clients that connect, subscribe, close, and begin again.
    Churn {
        /// Clients of each process that do so at a time.
        #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
        clients: u32,
    },
    /// A load, under which brokers are killed with SIGKILL (one, another, all at
    /// once, one that is just coming back), then stopped with SIGSTOP, each when
    /// the cluster is whole again and no faster than a crash loop would be. Ends
    /// when that is done, whatever --duration says. Nothing acknowledged may be
    /// lost, repeated or out of order, and no client disconnected.
    Kill {
        /// One channel with many subscribers instead of lobbies.
        #[arg(long)]
        fanout: bool,
        /// Subscribers of the one channel.
        #[arg(long, default_value_t = 400, requires = "fanout", value_parser = clap::value_parser!(u32).range(1..))]
        subscribers: u32,
        #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
        lobbies: u32,
        #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
        members: u32,
        /// Publications per second of each member [default: 1], or of the one
        /// channel [default: 50].
        #[arg(long, value_parser = positive)]
        rate: Option<f64>,
        /// SIGKILLs [default: 100, with --scale none].
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(..=10_000))]
        kills: Option<u32>,
        /// SIGSTOPs after that [default: 20, with --scale none].
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(..=10_000))]
        stops: Option<u32>,
        /// Before every second signal a broker is added, or taken away again.
        #[arg(long)]
        while_scaling: bool,
        /// Numbers of brokers that the cluster is scaled to in turn, after the
        /// signals: 2,4,3.
        #[arg(long, value_name = "N,N", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=256))]
        scale: Vec<u32>,
    },
    /// A load, under which the cluster is updated again and again, and then scaled.
    /// Ends when that is done, whatever --duration says. Nothing acknowledged may be
    /// lost, repeated or out of order, and no client disconnected.
    Deploy {
        #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
        lobbies: u32,
        #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
        members: u32,
        /// Publications per second of each member.
        #[arg(long, default_value_t = 1.0, value_parser = positive)]
        rate: f64,
        /// Updates [default: 5, with --scale none].
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(..=10_000))]
        updates: Option<u32>,
        /// Between one's end and the next one's beginning.
        #[arg(long, value_name = "SECONDS", default_value_t = 1.0, value_parser = positive)]
        pause: f64,
        /// What the cluster is updated to [default: what it runs].
        #[arg(long, value_name = "PATH")]
        binary: Option<PathBuf>,
        /// How long each update watches its first worker, as in `update --hold`.
        #[arg(long, value_name = "TIME", default_value = "0s")]
        hold: String,
        /// Workers that are replaced at a time, as in `update --parallel`.
        #[arg(long, value_name = "N")]
        parallel: Option<u32>,
        /// Numbers of workers that the cluster is scaled to in turn, after the
        /// updates: 8,2,4.
        #[arg(long, value_name = "N,N", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=256))]
        scale: Vec<u32>,
    },
    /// Many connections, each receiving now and then.
    Hold {
        #[arg(long, default_value_t = 10_000)]
        connections: u32,
        /// Connections that share one channel; the first of them publishes.
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
        group: u32,
        /// Publications per second of each channel.
        #[arg(long, default_value_t = 0.2, value_parser = positive)]
        rate: f64,
    },
}

/// What saturates a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Shape {
    /// As the scenario `fanout`.
    Fanout,
    /// As the scenario `lobby`.
    Lobby,
}

impl Scenario {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Idle { .. } => "idle",
            Self::Fanout { .. } => "fanout",
            Self::Lobby { .. } => "lobby",
            Self::Saturate { .. } => "saturate",
            Self::Churn { .. } => "churn",
            Self::Kill { .. } => "kill",
            Self::Deploy { .. } => "deploy",
            Self::Hold { .. } => "hold",
        }
    }
}

/// What all scenarios have in common. Times are in seconds.
#[derive(Debug, Clone, Args)]
pub(super) struct RunOptions {
    /// Where to connect: `ws://ADDRESS:PORT/PATH` [default: the running cluster].
    #[arg(long, global = true)]
    pub(super) url: Option<String>,
    /// A process of the server at --url, whose processor time and memory, and its
    /// children's, are measured; may come several times.
    #[arg(long, global = true, value_name = "PID", requires = "url")]
    pub(super) server_pid: Vec<u32>,
    /// Measured time.
    #[arg(long, global = true, value_name = "SECONDS", default_value_t = 10.0, value_parser = positive)]
    pub(super) duration: f64,
    /// Publishing before it.
    #[arg(long, global = true, value_name = "SECONDS", default_value_t = 2.0, value_parser = positive)]
    pub(super) warmup: f64,
    /// Longest wait for what is still under way after it.
    #[arg(long, global = true, value_name = "SECONDS", default_value_t = 10.0, value_parser = positive)]
    pub(super) settle: f64,
    /// Bytes added to each publication.
    #[arg(long, global = true, default_value_t = 64)]
    pub(super) payload_bytes: usize,
    /// Processes that share the connections; a process may have 20 000 descriptors
    /// on many systems.
    #[arg(long, global = true, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) processes: u32,
    /// Connect from this many addresses, 127.0.0.2 onwards; one address has about
    /// 28 000 ports.
    #[arg(long, global = true, default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=250))]
    pub(super) source_addresses: u32,
    /// Connections of one process that may be under way at a time.
    #[arg(long, global = true, default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) connecting_max: u32,
    /// Connect again this many seconds (and up to as many more) after a
    /// connection was lost; without it, lost connections stay away.
    #[arg(long, global = true, value_name = "SECONDS", value_parser = positive)]
    pub(super) reconnect: Option<f64>,
    /// Kills a process in the middle of the measured time: `worker-1`, `broker-2`.
    #[arg(long, global = true)]
    pub(super) kill: Option<String>,
    /// Kills this many processes with SIGKILL, one after the other, each when the
    /// cluster is whole again, within the measured time.
    #[arg(long, global = true, default_value_t = 0, conflicts_with = "kill")]
    pub(super) kill_rounds: u32,
    /// After that, stops this many with SIGSTOP.
    #[arg(long, global = true, default_value_t = 0, conflicts_with = "kill")]
    pub(super) stop_rounds: u32,
    /// One more client, which sends as fast as it can.
    #[arg(long, global = true, value_enum)]
    pub(super) flood: Option<Flood>,
    /// More subscribers of the first channel, which read nothing until the end.
    #[arg(long, global = true, default_value_t = 0)]
    pub(super) stalled: u32,
    /// Publish without asking for acknowledgements, for servers that have none.
    #[arg(long, global = true)]
    pub(super) without_acks: bool,
    /// Report also when the benchmark itself was the bottleneck.
    #[arg(long, global = true)]
    pub(super) force: bool,
    /// Write a page with the figures and their plots there.
    #[arg(long, global = true, value_name = "FILE")]
    pub(super) html: Option<PathBuf>,
    /// Print the result as JSON.
    #[arg(long, global = true)]
    pub(super) json: bool,
    /// Makes channel names that no other run uses.
    #[arg(long, global = true, hide = true, default_value_t = 0)]
    pub(super) run_id: u64,
}

impl Options {
    /// Tells this run's channels from those of others.
    pub(super) fn run_id(&self) -> u64 {
        self.run.run_id
    }
}

fn positive(text: &str) -> Result<f64, String> {
    match f64::from_str(text) {
        Ok(value) if value.is_finite() && value > 0.0 => Ok(value),
        _ => Err("not a positive number".into()),
    }
}

/// An address taken apart.
#[derive(Debug, Clone)]
pub(super) struct Target {
    pub(super) addr: SocketAddr,
    pub(super) path: String,
}

impl FromStr for Target {
    type Err = BenchError;

    fn from_str(url: &str) -> Result<Self, BenchError> {
        let error = || BenchError::Url(url.into());
        let rest = url.strip_prefix("ws://").ok_or_else(error)?;
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        let addr = host.parse().map_err(|_| error())?;
        Ok(Self {
            addr,
            path: format!("/{path}"),
        })
    }
}

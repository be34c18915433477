//! The command line.

mod change;
mod up;
mod values;
mod which;

use std::{path::PathBuf, time::Duration};

use clap::{Parser, Subcommand};
use clap_complete::Shell;
use muster_daemon::NodeArgs;

use self::values::{channel_name, claims, close_code, close_reason, data, drain_time};
pub(crate) use self::{
    change::{ScaleArgs, UpdateArgs},
    up::{SettingArgs, Size, UpArgs},
    which::{ChannelsArgs, ConnectionsArgs, HistoryArgs},
};
use crate::journal::JournalVerb;

/// Instead of data: it is read from there.
pub(crate) const STANDARD_INPUT: &str = "-";

/// Slots in the accept gate's memory, hence workers of one cluster.
pub(crate) const WORKERS_MAX: u32 = 256;
/// Shards that brokers share; a broker without one is of no use.
pub(crate) const BROKERS_MAX: u32 = 256;

const EXIT_CODES: &str = "\
Exit codes:
  0   done
  1   not done; the message says why
  2   the command line or the data makes no sense
  3   the outcome is unknown: it may have been done or not
  78  the configuration is at fault";

/// Muster: a realtime cluster for games that speaks the SocketCluster protocol.
#[derive(Debug, Parser)]
#[command(name = "orchestrator", version, propagate_version = true, after_help = EXIT_CODES)]
pub(crate) struct Cli {
    /// Configuration file.
    #[arg(short, long, global = true, value_name = "FILE", env = "MUSTER_CONFIG")]
    pub(crate) config: Option<PathBuf>,
    /// Where the cluster keeps its sockets and its lock [default:
    /// $XDG_RUNTIME_DIR/muster, else muster-UID in the temporary directory].
    #[arg(long, global = true, value_name = "DIR", env = "MUSTER_RUNTIME_DIR")]
    pub(crate) runtime_dir: Option<PathBuf>,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Start a cluster and keep it running until SIGTERM, Ctrl-C or `down`.
    Up(UpArgs),
    /// Show what runs.
    Status {
        #[command(flatten)]
        output: OutputArgs,
    },
    /// End the cluster: close the clients in a paced way, then all processes.
    Down {
        /// Close the clients without a status: they come back at once, to another
        /// host where a load balancer sends them there. Otherwise they are told that
        /// the cluster goes, and wait.
        #[arg(long)]
        drain: bool,
        /// Over how long the clients are spread [default: shutdown.timeout].
        #[arg(long, value_name = "DURATION", requires = "drain", value_parser = drain_time)]
        within: Option<Duration>,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Load the configuration, say whether it is fine, and end.
    CheckConfig {
        #[command(flatten)]
        output: OutputArgs,
        #[command(flatten)]
        settings: SettingArgs,
    },
    /// Print the configuration in effect, with the source of each value.
    PrintConfig {
        /// Print every setting with its documentation and default instead.
        #[arg(long)]
        defaults: bool,
        #[command(flatten)]
        output: OutputArgs,
        #[command(flatten)]
        settings: SettingArgs,
    },
    /// Change the number of workers and brokers while the cluster runs.
    Scale(ScaleArgs),
    /// Replace all workers and brokers, one after the other, and the orchestrator
    /// in place, without a disconnect; ends once that is through.
    Update(UpdateArgs),
    /// Hand connections over from workers that have many to those that have few,
    /// without a disconnect; ends once that is through.
    Rebalance {
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Read the configuration again: what can change while the processes run does,
    /// the rest is named. SIGHUP does the same.
    Reload {
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Take a client's subscription away.
    Kick {
        /// The client's session id.
        #[arg(allow_hyphen_values = true)]
        connection: String,
        /// The channel; without it, all of the client's channels.
        #[arg(allow_hyphen_values = true)]
        channel: Option<String>,
        /// What the client is told.
        #[arg(long, default_value = "", allow_hyphen_values = true)]
        message: String,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Close a client's connection.
    Disconnect {
        /// The client's session id.
        #[arg(allow_hyphen_values = true)]
        connection: String,
        /// The close code; after 1000, and from 4500 up, a stock client stays away.
        #[arg(long, default_value_t = 1000, value_parser = close_code)]
        code: u16,
        /// The close reason, at most 123 bytes.
        #[arg(long, default_value = "", allow_hyphen_values = true, value_parser = close_reason)]
        reason: String,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Publish on a channel; ends once the channel's owner has it.
    Publish {
        /// The channel.
        #[arg(allow_hyphen_values = true, value_parser = channel_name)]
        channel: String,
        /// JSON, for example '{"open":true}'; - reads it from standard input.
        #[arg(value_name = "DATA_JSON", allow_hyphen_values = true, value_parser = data)]
        data: String,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// List the channels that have subscribers, by name.
    Channels {
        #[command(flatten)]
        which: ChannelsArgs,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Show what a channel keeps: its history, or its last seconds.
    History {
        /// The channel.
        #[arg(allow_hyphen_values = true, value_parser = channel_name)]
        channel: String,
        #[command(flatten)]
        which: HistoryArgs,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// List the connections of clients, the oldest first.
    Connections {
        #[command(flatten)]
        which: ConnectionsArgs,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Show or change what all processes of the cluster log, while they run.
    LogFilter {
        /// In the syntax of RUST_LOG, for example info,muster_worker=debug.
        filter: Option<String>,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Set or remove a client's authentication token.
    #[command(subcommand)]
    Token(TokenVerb),
    /// Look after the journal while no broker has it.
    #[command(subcommand)]
    Journal(JournalVerb),
    /// Measure the running cluster, or any SocketCluster server, and account for
    /// every publication.
    Bench(Box<muster_bench::Options>),
    /// Say by the exit code whether this program can go on with the cluster of the
    /// runtime directory; `update` asks.
    #[command(hide = true)]
    TakeoverCheck,
    /// Say what this program speaks, and whether it takes the configuration; an
    /// orchestrator asks before it starts workers from it.
    #[command(hide = true)]
    Probe,
    /// Be a worker; the orchestrator starts these.
    #[command(hide = true)]
    Worker(NodeArgs),
    /// Be a broker; the orchestrator starts these.
    #[command(hide = true)]
    Broker(NodeArgs),
}

#[derive(Debug, Subcommand)]
pub(crate) enum TokenVerb {
    /// Sign a token with these claims and give it to the client.
    Set {
        /// The client's session id.
        #[arg(allow_hyphen_values = true)]
        connection: String,
        /// A JSON object.
        #[arg(value_name = "CLAIMS_JSON", value_parser = claims)]
        claims: String,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Remove the client's token.
    Remove {
        /// The client's session id.
        #[arg(allow_hyphen_values = true)]
        connection: String,
        #[command(flatten)]
        output: OutputArgs,
    },
}

/// How a verb answers.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct OutputArgs {
    /// Print JSON, errors included.
    #[arg(long)]
    pub(crate) json: bool,
}

impl Verb {
    /// Whether answers and errors are to be JSON.
    pub(crate) fn json(&self) -> bool {
        match self {
            Self::Up(_)
            | Self::Completions { .. }
            | Self::TakeoverCheck
            | Self::Probe
            | Self::Worker(_)
            | Self::Broker(_) => false,
            Self::Bench(options) => options.json(),
            Self::Scale(args) => args.json,
            Self::Journal(JournalVerb::Check(args)) => args.output.json,
            Self::Update(args) => args.output.json,
            Self::Status { output }
            | Self::Down { output, .. }
            | Self::Rebalance { output }
            | Self::Reload { output }
            | Self::CheckConfig { output, .. }
            | Self::PrintConfig { output, .. }
            | Self::Kick { output, .. }
            | Self::Disconnect { output, .. }
            | Self::Publish { output, .. }
            | Self::Channels { output, .. }
            | Self::History { output, .. }
            | Self::Connections { output, .. }
            | Self::LogFilter { output, .. }
            | Self::Token(TokenVerb::Set { output, .. } | TokenVerb::Remove { output, .. }) => {
                output.json
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    pub(super) fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_configuration_file_may_stand_before_and_after_the_verb() {
        for line in [
            "orchestrator --config a.toml up",
            "orchestrator up --config a.toml",
            "orchestrator -c a.toml status",
        ] {
            assert_eq!(parse(line).unwrap().config, Some("a.toml".into()), "{line}");
        }
    }

    #[test]
    fn a_node_takes_its_own_arguments() {
        let line =
            "orchestrator worker --slot 3 --incarnation 9 --runtime-dir /r --config /r/config.toml";
        let Verb::Worker(args) = parse(line).unwrap().verb else {
            panic!("not a worker");
        };
        assert_eq!((args.slot, args.incarnation), (3, 9));
        assert_eq!(args.runtime_dir, PathBuf::from("/r"));
        assert_eq!(args.config, Some("/r/config.toml".into()));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for line in [
            "orchestrator",
            "orchestrator up --workers 0",
            "orchestrator up --workers 257",
            "orchestrator up --brokers 257",
            "orchestrator up --adr 127.0.0.1:1",
            "orchestrator disconnect id --code 1005",
            "orchestrator disconnect id --code 65536",
            "orchestrator token set id [1]",
            "orchestrator token set id {",
            "orchestrator worker --slot 1",
            "orchestrator publish lobby",
            "orchestrator publish lobby hello",
            "orchestrator publish lobby {",
            "orchestrator channels --limit 0",
            "orchestrator channels --limit 1001",
            "orchestrator connections --worker 0",
            "orchestrator history",
            "orchestrator history a --limit 1001",
            "orchestrator history a --since 5",
            "orchestrator history a --since c0ffee:5",
            "orchestrator history a --before 00c0ffee00c0ffee:",
            "orchestrator connections --limit many",
            "orchestrator up --json",
            "orchestrator down --within 5s",
            "orchestrator down --drain --within 5",
            "orchestrator down --drain --within 1ms",
            "orchestrator scale",
            "orchestrator scale --workers 0",
            "orchestrator scale --workers 257",
            "orchestrator scale --workers all",
            "orchestrator scale 3",
            "orchestrator update --canary -1",
            "orchestrator update --parallel 0",
            "orchestrator update --hold soon",
            "orchestrator update --hold 25h",
            "orchestrator update --abort --binary /a",
            "orchestrator update --abort --status",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn operator_verbs_take_a_connection() {
        for line in [
            "orchestrator kick id",
            "orchestrator kick id news --message bye",
            "orchestrator disconnect id --code 4500 --reason bye",
            "orchestrator token set id {\"a\":1}",
            "orchestrator token remove id",
            "orchestrator kick -8dxfuyDlYYcx5oaGkYS",
            "orchestrator kick -8dxfuyDlYYcx5oaGkYS -news --message -bye",
            "orchestrator disconnect --code 4500 --8dxfuyDlYYcx5oaGkY",
            "orchestrator token set -_ {}",
            "orchestrator token remove -8",
            "orchestrator publish lobby:7 -1.50",
            "orchestrator publish -lobby -",
            "orchestrator publish lobby {\"a\":1}",
            "orchestrator channels --prefix -lobby: --limit 1000 --after -lobby:7",
            "orchestrator connections --worker 2 --channel -a --limit 1",
            "orchestrator history lobby:7",
            "orchestrator history -a --since 00c0ffee00c0ffee:0 --limit 1 --newest",
            "orchestrator history a --before 00c0ffee00c0ffee:9",
            "orchestrator log-filter",
            "orchestrator log-filter info,muster_worker=debug",
        ] {
            assert!(parse(line).is_ok(), "{line}");
        }
    }

    #[test]
    fn an_update_takes_what_the_configuration_says_otherwise() {
        for line in [
            "orchestrator update",
            "orchestrator update --binary ./new --canary 0 --hold 0s --parallel 4",
            "orchestrator update --canary 2 --hold 1m30s --json",
            "orchestrator update --abort --json",
        ] {
            assert!(parse(line).is_ok(), "{line}");
        }
    }

    #[test]
    fn every_verb_that_answers_has_json() {
        for verb in [
            "status",
            "down",
            "check-config",
            "print-config",
            "journal check",
            "kick id",
            "disconnect id",
            "token set id {}",
            "token remove id",
            "publish a 1",
            "channels",
            "connections",
            "history a",
            "log-filter",
            "reload",
        ] {
            let cli = parse(&format!("orchestrator {verb} --json")).unwrap();
            assert!(cli.verb.json(), "{verb}");
            assert!(!parse(&format!("orchestrator {verb}")).unwrap().verb.json());
        }
    }
}

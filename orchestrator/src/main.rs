//! The orchestrator's command line, and the one place that knows all roles.

mod adoption;
mod announce;
mod answers;
mod calls;
mod cli;
mod cluster;
mod console;
mod control;
mod fleet;
mod gather;
mod journal;
mod leftovers;
mod logs;
mod membership;
mod node;
mod operate;
mod probe;
mod process;
mod program;
mod programs;
mod reexec;
mod reload;
mod scale;
mod service;
mod spawn;
mod state;
mod supervisor;
mod table;
mod up;
mod update;
mod watching;

use std::{
    collections::BTreeMap,
    error::Error,
    ffi::CString,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{CommandFactory as _, Parser as _};
use muster_bench::{BenchError, Place};
use muster_broker::check::{self, Journals};
use muster_daemon::{
    Config, NodeArgs,
    config::{self, ConfigError, Loaded, Override},
    descriptors::{self, DescriptorsError},
    exit,
    runtime_dir::{self, RuntimeDir},
    telemetry::{self, Identity, TelemetryError},
};
use muster_worker::AuthError;

use crate::{
    cli::{Cli, Verb},
    control::OperatorError,
    journal::{CheckArgs, Damage, JournalError, JournalVerb, Report, Shard},
    node::Role,
    operate::DataError,
    reexec::TakeoverError,
    reload::ConfigSource,
    up::UpError,
};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let json = cli.verb.json();
    match run(cli) {
        Ok(()) => ExitCode::from(exit::SUCCESS),
        Err(fatal) => {
            if json {
                let error = answers::error(&exit::chain(&fatal), fatal.exit_code());
                // There is nobody left to tell when stderr is gone.
                let _ = io::stderr().write_all(error.as_bytes());
            } else {
                exit::report(&fatal);
            }
            ExitCode::from(fatal.exit_code())
        }
    }
}

/// Why the program could not do what it was asked.
#[derive(Debug, thiserror::Error)]
enum Fatal {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("invalid configuration")]
    Auth(#[from] AuthError),
    #[error("invalid configuration")]
    Descriptors(#[from] DescriptorsError),
    #[error(transparent)]
    Telemetry(#[from] TelemetryError),
    #[error(transparent)]
    Up(#[from] UpError),
    #[error(transparent)]
    Operator(#[from] OperatorError),
    #[error(transparent)]
    Bench(#[from] BenchError),
    #[error("cannot run as {role}")]
    Node {
        role: Role,
        source: Box<dyn Error + Send + Sync>,
    },
    #[error("cannot run")]
    Runtime(#[source] io::Error),
    #[error("cannot print")]
    Print(#[source] io::Error),
    #[error(transparent)]
    Data(#[from] DataError),
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error("cannot take over")]
    Takeover(#[from] TakeoverError),
    #[error("cannot look at the journal")]
    Check(#[from] check::CheckError),
}

impl Fatal {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) | Self::Auth(_) | Self::Descriptors(_) | Self::Telemetry(_) => {
                exit::CONFIG
            }
            Self::Up(error) => error.exit_code(),
            Self::Operator(error) => error.exit_code(),
            Self::Data(_) => exit::USAGE,
            Self::Journal(error) => error.exit_code(),
            Self::Bench(_)
            | Self::Node { .. }
            | Self::Runtime(_)
            | Self::Print(_)
            | Self::Takeover(_)
            | Self::Check(_) => exit::FAILURE,
        }
    }
}

fn run(cli: Cli) -> Result<(), Fatal> {
    let Cli {
        config: file,
        runtime_dir,
        verb,
    } = cli;
    let file = file.as_deref();
    match verb {
        Verb::Up(args) => {
            let source = ConfigSource {
                file: file.map(Into::into),
                overrides: args.settings.overrides(),
                check_key: |auth| Ok(muster_worker::check_key(auth)?),
            };
            Ok(up::up(source, runtime_dir, &args)?)
        }
        Verb::CheckConfig { output, settings } => {
            check_config(file, &settings.overrides(), output.json)
        }
        Verb::PrintConfig {
            defaults,
            output,
            settings,
        } => print_config(file, &settings.overrides(), defaults, output.json),
        Verb::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "orchestrator", &mut script);
            print(&String::from_utf8_lossy(&script))
        }
        Verb::Journal(JournalVerb::Check(args)) => check_journal(&args, file, runtime_dir),
        Verb::Bench(options) => bench(&options, runtime_dir),
        Verb::TakeoverCheck => {
            let dir = runtime_dir.unwrap_or_else(runtime_dir::default_path);
            let dir = RuntimeDir::open(&dir).map_err(UpError::from)?;
            Ok(reexec::can_take_over(&dir)?)
        }
        Verb::Probe => probe(file),
        Verb::Worker(args) => node(Role::Worker, args, muster_worker::run),
        Verb::Broker(args) => node(Role::Broker, args, muster_broker::run),
        verb @ (Verb::Status { .. }
        | Verb::Down { .. }
        | Verb::Scale(_)
        | Verb::Update(_)
        | Verb::Rebalance { .. }
        | Verb::Reload { .. }
        | Verb::Kick { .. }
        | Verb::Disconnect { .. }
        | Verb::Publish { .. }
        | Verb::Channels { .. }
        | Verb::History { .. }
        | Verb::Connections { .. }
        | Verb::LogFilter { .. }
        | Verb::Token(_)) => tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(Fatal::Runtime)?
            .block_on(operate::operate(verb, runtime_dir)),
    }
}

/// Measures the cluster of the runtime directory, or whatever the options name.
fn bench(options: &muster_bench::Options, runtime_dir: Option<PathBuf>) -> Result<(), Fatal> {
    let program = std::env::current_exe().map_err(Fatal::Runtime)?;
    let place = Place {
        program,
        runtime_dir,
    };
    Ok(muster_bench::run(options, &place)?)
}

/// Reads a journal that no broker has, and puts aside what is damaged if that is
/// asked for.
fn check_journal(
    args: &CheckArgs,
    file: Option<&Path>,
    runtime_dir: Option<PathBuf>,
) -> Result<(), Fatal> {
    let dir = match &args.dir {
        Some(dir) => dir.clone(),
        None => {
            let config = load(file, &[])?.config;
            let runtime_dir = runtime_dir.unwrap_or_else(runtime_dir::default_path);
            check::journal_dir(&config.broker, &runtime_dir)
        }
    };
    let journals = Journals::open(&dir)?;
    let shards = journals.check()?.into_iter().map(Shard::from).collect();
    let mut report = Report::new(dir, shards);
    if args.repair && report.is_damaged() {
        report.confirm(args.yes)?;
        report.repaired(journals.repair()?);
    }
    print(&report.show(args.output.json))?;
    Ok(report.outcome()?)
}

impl From<check::ShardCheck> for Shard {
    fn from(found: check::ShardCheck) -> Self {
        Self {
            shard: found.shard,
            segments: found.segments,
            bytes: found.bytes,
            channels: found.channels,
            publications: found.publications,
            epoch: found.epoch,
            torn_bytes: found.torn_bytes,
            begins_anew: found.is_anew,
            damage: found.damage.map(|damage| Damage {
                file: damage.file,
                offset: damage.offset,
                reason: damage.reason,
                aside: damage.aside,
                begins_anew: damage.is_all,
            }),
        }
    }
}

fn load(file: Option<&Path>, overrides: &[Override]) -> Result<Loaded, ConfigError> {
    config::load(file, std::env::vars_os(), overrides)
}

/// Everything that `up` would refuse about the configuration, without a cluster.
fn check_config(file: Option<&Path>, overrides: &[Override], json: bool) -> Result<(), Fatal> {
    let Loaded { config, .. } = load(file, overrides)?;
    if config.auth.key_file.is_some() || config.auth.public_key_file.is_some() {
        muster_worker::check_key(&config.auth)?;
    }
    descriptors::connections_allowed(&config, descriptors::raise_limit())?;
    if json {
        return print(&answers::config_is_fine(file));
    }
    let file = file.map_or_else(
        || "no file, so the defaults and the environment".to_owned(),
        |file| file.display().to_string(),
    );
    print(&format!("The configuration is fine ({file}).\n"))
}

/// Whether a node could run with this configuration, and what it would speak.
fn probe(file: Option<&Path>) -> Result<(), Fatal> {
    let config = load(file, &[])?.config;
    if config.auth.key_file.is_some() || config.auth.public_key_file.is_some() {
        muster_worker::check_key(&config.auth)?;
    }
    print(&probe::Release::own().to_json())
}

fn print_config(
    file: Option<&Path>,
    overrides: &[Override],
    defaults: bool,
    json: bool,
) -> Result<(), Fatal> {
    if defaults {
        let defaults = Config::default();
        return print(&if json {
            config::json(&defaults, &BTreeMap::new())
        } else {
            config::commented_defaults()
        });
    }
    let Loaded { config, sources } = load(file, overrides)?;
    print(&if json {
        config::json(&config, &sources)
    } else {
        config::effective(&config, &sources)
    })
}

/// Plays a node's role, with the configuration that the orchestrator wrote.
fn node<E: Error + Send + Sync + 'static>(
    role: Role,
    args: NodeArgs,
    run: impl FnOnce(NodeArgs, Config) -> Result<(), E>,
) -> Result<(), Fatal> {
    name_process(role, args.slot);
    let config = load(args.config.as_deref(), &[])?.config;
    let identity = Identity {
        role: role.verb(),
        slot: Some(args.slot),
    };
    telemetry::init(&config.log, identity)?;
    run(args, config).map_err(|error| Fatal::Node {
        role,
        source: Box::new(error),
    })
}

/// What `ps` and `top` show: the program is started through a link, whose name
/// says nothing.
fn name_process(role: Role, slot: u32) {
    let name = CString::new(format!("{role}-{slot}")).expect("the name has no zero byte");
    // Only for the eye.
    let _ = rustix::thread::set_name(&name);
}

/// Prints an answer; a reader that has had enough (`| head`) is no error.
fn print(text: &str) -> Result<(), Fatal> {
    let mut stdout = io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Fatal::Print(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

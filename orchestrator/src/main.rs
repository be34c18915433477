//! The orchestrator's command line, and the one place that knows all roles.

mod announce;
mod calls;
mod cli;
mod cluster;
mod console;
mod control;
mod fleet;
mod leftovers;
mod logs;
mod membership;
mod node;
mod scale;
mod spawn;
mod supervisor;
mod table;
mod up;

use std::{
    error::Error,
    ffi::CString,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{CommandFactory as _, Parser as _};
use muster_bench::{BenchError, Place};
use muster_daemon::{
    Config, NodeArgs,
    auth_key::{self, AuthKeyError},
    config::{self, ConfigError, Loaded, Override},
    descriptors::{self, DescriptorsError},
    exit,
    telemetry::{self, Identity, TelemetryError},
};
use muster_proto::control as pb;

use crate::{
    cli::{Cli, TokenVerb, Verb},
    control::{Operator, OperatorError},
    node::Role,
    scale::ScaleError,
    up::UpError,
};

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::from(exit::SUCCESS),
        Err(fatal) => {
            exit::report(&fatal);
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
    AuthKey(#[from] AuthKeyError),
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
    #[error(transparent)]
    Scale(#[from] ScaleError),
    #[error("cannot run as {role}")]
    Node {
        role: Role,
        source: Box<dyn Error + Send + Sync>,
    },
    #[error("cannot run")]
    Runtime(#[source] io::Error),
    #[error("cannot print")]
    Print(#[source] io::Error),
}

impl Fatal {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) | Self::AuthKey(_) | Self::Descriptors(_) | Self::Telemetry(_) => {
                exit::CONFIG
            }
            Self::Up(error) => error.exit_code(),
            Self::Operator(_)
            | Self::Bench(_)
            | Self::Scale(_)
            | Self::Node { .. }
            | Self::Runtime(_)
            | Self::Print(_) => exit::FAILURE,
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
            let loaded = load(file, &args.settings.overrides())?;
            Ok(up::up(loaded, runtime_dir, &args)?)
        }
        Verb::CheckConfig { settings } => check_config(file, &settings.overrides()),
        Verb::PrintConfig { defaults: true, .. } => print(&config::commented_defaults()),
        Verb::PrintConfig { settings, .. } => {
            let loaded = load(file, &settings.overrides())?;
            print(&config::effective(&loaded.config, &loaded.sources))
        }
        Verb::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "orchestrator", &mut script);
            print(&String::from_utf8_lossy(&script))
        }
        Verb::Bench(options) => bench(&options, runtime_dir),
        Verb::Worker(args) => node(Role::Worker, args, muster_worker::run),
        Verb::Broker(args) => node(Role::Broker, args, muster_broker::run),
        verb @ (Verb::Status { .. }
        | Verb::Down
        | Verb::Scale(_)
        | Verb::Kick { .. }
        | Verb::Disconnect { .. }
        | Verb::Token(_)) => tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(Fatal::Runtime)?
            .block_on(operate(verb, runtime_dir)),
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

fn load(file: Option<&Path>, overrides: &[Override]) -> Result<Loaded, ConfigError> {
    config::load(file, std::env::vars_os(), overrides)
}

/// Everything that `up` would refuse about the configuration, without a cluster.
fn check_config(file: Option<&Path>, overrides: &[Override]) -> Result<(), Fatal> {
    let Loaded { config, .. } = load(file, overrides)?;
    if config.auth.key_file.is_some() || config.auth.public_key_file.is_some() {
        auth_key::read(&config.auth)?;
    }
    descriptors::connections_allowed(&config, descriptors::raise_limit())?;
    let file = file.map_or_else(
        || "no file, so the defaults and the environment".to_owned(),
        |file| file.display().to_string(),
    );
    print(&format!("The configuration is fine ({file}).\n"))
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

/// The verbs that ask a running cluster.
async fn operate(verb: Verb, runtime_dir: Option<PathBuf>) -> Result<(), Fatal> {
    use pb::client_command::Action;

    if let Verb::Scale(args) = verb {
        return print(&scale::scale(&args, runtime_dir).await?);
    }
    let (mut operator, dir) = Operator::connect(runtime_dir).await?;
    let (connection, action) = match verb {
        Verb::Status { json } => {
            let status = operator.status().await?;
            let dir = dir.path().display().to_string();
            return print(&if json {
                table::json(&status, &dir)
            } else {
                table::status(&status, &dir)
            });
        }
        Verb::Down => {
            operator.down().await?;
            drop(operator);
            dir.wait_until_free().map_err(OperatorError::from)?;
            let path = dir.path().display();
            return print(&format!("The cluster at {path} has ended.\n"));
        }
        Verb::Kick {
            connection,
            channel,
            message,
        } => (connection, Action::Kick(pb::Kick { channel, message })),
        Verb::Disconnect {
            connection,
            code,
            reason,
        } => {
            let code = u32::from(code);
            let disconnect = pb::Disconnect { code, reason };
            (connection, Action::Disconnect(disconnect))
        }
        Verb::Token(TokenVerb::Set { connection, claims }) => {
            (connection, Action::SetToken(pb::SetToken { claims }))
        }
        Verb::Token(TokenVerb::Remove { connection }) => {
            (connection, Action::RemoveToken(pb::RemoveToken {}))
        }
        Verb::Up(_)
        | Verb::Scale(_)
        | Verb::CheckConfig { .. }
        | Verb::PrintConfig { .. }
        | Verb::Completions { .. }
        | Verb::Bench(_)
        | Verb::Worker(_)
        | Verb::Broker(_) => unreachable!("these verbs ask no cluster"),
    };
    Ok(operator.act(connection, action).await?)
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

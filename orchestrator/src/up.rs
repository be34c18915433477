//! `up`: everything that must be right before the first node is started, and
//! the way from there.

use std::{
    error::Error,
    ffi::OsStr,
    io::{self, IsTerminal as _},
    net::{SocketAddr, TcpListener},
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

use muster_daemon::{
    Config,
    auth_key::{self, AuthKeyError},
    clock,
    config::{self, ConfigError, LogFormat},
    descriptors::{self, DescriptorsError},
    exit,
    runtime_dir::{self, RuntimeDir, RuntimeDirError, RuntimeLock},
    signals::Signals,
    telemetry::{self, Identity, TelemetryError},
};
use rand::rngs::{SmallRng, StdRng};
use rustix::net::{
    AddressFamily, SocketFlags, SocketType, bind, ipproto, listen, socket_with, sockopt,
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};
use tracing::{info, warn};

use crate::{
    adoption::{self, Adoption},
    cli::{Size, UpArgs},
    cluster::{Cluster, ClusterError, Settings},
    console::{self, Console},
    control::{self, ServeError},
    logs::LineSink,
    reexec::{self, Inherited, Kept},
    reload::{CheckKey, ConfigSource},
    spawn::Spawner,
    state::StateFile,
};

/// Connections that wait to be accepted; the kernel caps it at its own limit.
const BACKLOG: i32 = 4096;
/// Memory of the accept gate: a cache line for each possible worker.
const GATE_BYTES: usize = 64 * 256;
/// Incarnations of one orchestrator; the next one's are higher.
const INCARNATIONS: u64 = 1_000_000;

/// Why a cluster did not start, or ended otherwise than asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UpError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Telemetry(#[from] TelemetryError),
    #[error("cannot start the console's thread")]
    Console(#[source] io::Error),
    #[error(transparent)]
    RuntimeDir(#[from] RuntimeDirError),
    #[error("cannot go on with what the earlier program of this process left")]
    Inherited(#[source] io::Error),
    #[error("cannot look for nodes that an earlier orchestrator left")]
    Adoption(#[source] io::Error),
    #[error("invalid configuration")]
    Descriptors(#[from] DescriptorsError),
    #[error("invalid configuration")]
    AuthKey(#[from] AuthKeyError),
    #[error("invalid configuration")]
    UnusableKey(#[source] Box<dyn Error + Send + Sync>),
    #[error(
        "cannot listen on {addr}: another program has that port: end it, or choose another \
         address with --listen (port 0 takes a free one)"
    )]
    PortInUse { addr: SocketAddr },
    #[error("cannot listen on {addr}: check --listen or listener.addr")]
    Listen { addr: SocketAddr, source: io::Error },
    #[error("cannot serve {}", path.display())]
    Bind { path: PathBuf, source: io::Error },
    #[error("cannot run")]
    Run(#[source] io::Error),
    #[error("the control socket failed; workers and brokers go on, and `up` takes them over")]
    Control(#[source] ServeError),
    #[error(transparent)]
    Cluster(#[from] ClusterError),
}

impl UpError {
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_)
            | Self::Telemetry(_)
            | Self::Descriptors(_)
            | Self::AuthKey(_)
            | Self::UnusableKey(_) => exit::CONFIG,
            Self::Console(_)
            | Self::RuntimeDir(_)
            | Self::Inherited(_)
            | Self::Adoption(_)
            | Self::PortInUse { .. }
            | Self::Listen { .. }
            | Self::Bind { .. }
            | Self::Run(_)
            | Self::Control(_)
            | Self::Cluster(_) => exit::FAILURE,
        }
    }
}

/// Starts a cluster and returns when it has ended.
///
/// # Errors
///
/// What kept it from starting, or made it end.
pub(crate) fn up(
    source: ConfigSource,
    runtime_dir: Option<PathBuf>,
    args: &UpArgs,
) -> Result<(), UpError> {
    let runtime_dir = runtime_dir.unwrap_or_else(runtime_dir::default_path);
    let inherited = reexec::inherited().map_err(UpError::Inherited)?;
    let mut config = if inherited.is_some() {
        // What the nodes run with; the source may be in the middle of a change.
        let file = runtime_dir.join(runtime_dir::CONFIG_NAME);
        config::load(Some(&file), std::iter::empty(), &[])?.config
    } else {
        source.load()?.config
    };
    let terminal = io::stderr().is_terminal();
    config.log.format = telemetry::resolve(config.log.format, terminal);
    let console = Console::start().map_err(UpError::Console)?;
    let identity = Identity {
        role: "orchestrator",
        slot: None,
    };
    let writer = console.clone();
    telemetry::init_with(&config.log.filter, config.log.format, identity, move || {
        writer.clone()
    })?;
    let begin = Begin {
        config,
        source,
        inherited,
    };
    let ended = run(begin, &runtime_dir, args, &console);
    console.finish();
    ended
}

/// What is known at the very beginning.
struct Begin {
    config: Config,
    source: ConfigSource,
    inherited: Option<Inherited>,
}

fn run(begin: Begin, runtime_dir: &Path, args: &UpArgs, console: &Console) -> Result<(), UpError> {
    let Begin {
        config,
        source,
        inherited,
    } = begin;
    let dir = RuntimeDir::create(runtime_dir)?;
    let (lock, sockets) = match inherited {
        Some(Inherited {
            lock,
            listener,
            control,
        }) => (dir.keep_lock(lock)?, Some((listener, control))),
        None => (dir.lock()?, None),
    };
    let prepared = prepare(config, &dir, &lock, sockets, source.check_key)?;
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(UpError::Run)?;
    let text = prepared.config.log.format == LogFormat::Text;
    let table = (text && console::can_redraw()).then(|| console.clone());
    let size = match &prepared.adoption {
        // Nobody has asked for another size since.
        Some(adoption) if prepared.control.is_some() => adoption.state.size,
        Some(adoption) => adoption.size(args),
        None => args.size(cores),
    };
    let ended = runtime.block_on(serve(
        (prepared, source),
        (&dir, &lock),
        size,
        console,
        table,
    ));
    match ended {
        // No node is left, and the next `up` should find no socket of ours.
        Ok(()) | Err(UpError::Cluster(_)) => {
            let removed = dir.remove_sockets(&lock);
            ended?;
            info!("Ended.");
            Ok(removed?)
        }
        // What lives goes on, until the next orchestrator takes it over.
        Err(error) => Err(error),
    }
}

/// What is there before the first node is.
#[derive(Debug)]
struct Prepared {
    config: Config,
    listener: TcpListener,
    listen: SocketAddr,
    /// The control socket, if it is open already.
    control: Option<UnixListener>,
    /// What an earlier orchestrator has left.
    adoption: Option<Adoption>,
}

/// `sockets` are those that the earlier program of this process has left: where
/// clients connect, and the control socket.
fn prepare(
    mut config: Config,
    dir: &RuntimeDir,
    lock: &RuntimeLock,
    sockets: Option<(TcpListener, UnixListener)>,
    check_key: CheckKey,
) -> Result<Prepared, UpError> {
    let limit = descriptors::raise_limit();
    descriptors::connections_allowed(&config, limit)?;
    let (listener, control) = sockets.unzip();
    let mut adoption = adoption::look(dir, listener).map_err(UpError::Adoption)?;
    if control.is_some() {
        reexec::reap_unknown();
    }
    let is_kept = |name: &str| {
        let is_ours = Some(name)
            == dir
                .orchestrator_socket()
                .file_name()
                .and_then(OsStr::to_str);
        control.is_some() && is_ours
    };
    match &adoption {
        Some(adoption) => {
            adoption.log();
            config = adoption.config(&config);
            let kept = |name: &str| is_kept(name) || adoption.owns_socket(name);
            dir.remove_sockets_unless(lock, kept)?;
        }
        None => {
            let mut rng = rand::make_rng::<StdRng>();
            config.auth = auth_key::resolve(&config.auth, dir.path(), &mut rng)?;
            check_key(&config.auth).map_err(UpError::UnusableKey)?;
            dir.remove_sockets_unless(lock, is_kept)?;
        }
    }
    let addr = config.listener.addr;
    let listener = match adoption
        .as_mut()
        .and_then(|adoption| adoption.listener.take())
    {
        Some(listener) => {
            if !adoption::has_gate(&dir.gate_file(), GATE_BYTES).map_err(UpError::Adoption)? {
                warn!(
                    "The accept gate is gone: earlier and later workers share the connections unevenly."
                );
                dir.write(&dir.gate_file(), &[0; GATE_BYTES])?;
            }
            listener
        }
        None => {
            dir.write(&dir.gate_file(), &[0; GATE_BYTES])?;
            bind_listener(addr)?
        }
    };
    let listen = listener
        .local_addr()
        .map_err(|source| UpError::Listen { addr, source })?;
    config.listener.addr = listen;
    dir.write(&dir.config_file(), config.to_toml().as_bytes())?;
    Ok(Prepared {
        config,
        listener,
        listen,
        control,
        adoption,
    })
}

fn bind_listener(addr: SocketAddr) -> Result<TcpListener, UpError> {
    listening_socket(addr).map_err(|source| {
        if source.kind() == io::ErrorKind::AddrInUse {
            UpError::PortInUse { addr }
        } else {
            UpError::Listen { addr, source }
        }
    })
}

/// Binds the one socket that all workers accept from. It is never closed while
/// the cluster runs, so that no restart refuses a connection.
fn listening_socket(addr: SocketAddr) -> io::Result<TcpListener> {
    let family = match addr {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::STREAM, flags, Some(ipproto::TCP))?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    bind(&socket, &addr)?;
    listen(&socket, BACKLOG)?;
    Ok(TcpListener::from(socket))
}

async fn serve(
    (prepared, source): (Prepared, ConfigSource),
    (dir, lock): (&RuntimeDir, &RuntimeLock),
    size: Size,
    console: &Console,
    table: Option<Console>,
) -> Result<(), UpError> {
    let Prepared {
        config,
        listener,
        listen,
        control,
        adoption,
    } = prepared;
    // From here on a signal ends the cluster and not just this process.
    let signals = Signals::listen().map_err(UpError::Run)?;
    let hangup = signal(SignalKind::hangup()).map_err(UpError::Run)?;
    let socket = dir.orchestrator_socket();
    let is_executed_anew = control.is_some();
    let control_socket = match control {
        Some(control) => control,
        None => control::bind(&socket).map_err(|source| UpError::Bind {
            path: socket.clone(),
            source,
        })?,
    };
    let kept = Kept::of(lock, &listener, &control_socket).map_err(UpError::Run)?;
    if adoption.is_none() {
        info!(%listen, workers = size.workers, brokers = size.brokers, "Starting the cluster.");
    }
    // Also when the clock was set back.
    let known = adoption
        .as_ref()
        .map_or(0, |adoption| adoption.state.incarnation);
    let settings = Settings {
        size,
        listen,
        path: config.listener.path.clone(),
        runtime_dir: dir.path().into(),
        shutdown_timeout: config.shutdown.timeout,
        publish_timeout: config.link.publish_timeout,
        supervision: config.supervision.clone(),
        update: config.update.clone(),
        incarnation: (clock::unix_seconds() * INCARNATIONS).max(known),
        terminal: io::stderr().is_terminal(),
        table,
        kept: Some(Arc::new(kept)),
        is_executed_anew,
        source,
        config: config.clone(),
    };
    let spawner = Spawner {
        runtime_dir: dir.path().into(),
        config_file: dir.config_file(),
        listener,
        sink: LineSink {
            console: console.clone(),
            format: config.log.format,
        },
    };
    let (requests, inbox) = mpsc::channel(control::REQUESTS_CAP);
    let rng: SmallRng = rand::make_rng();
    let state_file = StateFile::new(dir.clone());
    let now = clock::now();
    let mut cluster = Cluster::new(settings, spawner, state_file, now, rng);
    if let Some(adoption) = adoption {
        cluster.adopt(now, adoption);
    }
    tokio::select! {
        ended = cluster.run(inbox, signals, hangup) => Ok(ended?),
        served = control::serve(control_socket, requests) => match served {
            Ok(()) => unreachable!("a listener's stream of connections does not end"),
            Err(error) => Err(UpError::Control(error)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prepare_in(dir: &RuntimeDir, config: Config) -> Result<Prepared, UpError> {
        let lock = dir.lock().unwrap();
        prepare(config, dir, &lock, None, |auth| {
            match auth.public_key_file {
                Some(_) => Err("that is no key".into()),
                None => Ok(()),
            }
        })
    }

    fn on_a_free_port() -> Config {
        let mut config = Config::default();
        config.listener.addr = SocketAddr::from(([127, 0, 0, 1], 0));
        config
    }

    fn runtime_dir() -> (tempfile::TempDir, RuntimeDir) {
        let parent = tempfile::tempdir().unwrap();
        let dir = RuntimeDir::create(&parent.path().join("run")).unwrap();
        (parent, dir)
    }

    #[test]
    fn nodes_find_the_whole_configuration_in_the_runtime_directory() {
        let (_parent, dir) = runtime_dir();
        let prepared = prepare_in(&dir, on_a_free_port()).unwrap();
        assert_ne!(prepared.listen.port(), 0);
        let written = config::load(Some(&dir.config_file()), std::iter::empty(), &[]);
        assert_eq!(written.unwrap().config, prepared.config);
        assert_eq!(prepared.config.listener.addr, prepared.listen);
        assert!(prepared.config.auth.key_file.unwrap().exists());
        let gate = std::fs::read(dir.gate_file()).unwrap();
        assert_eq!(gate, vec![0; GATE_BYTES]);
    }

    #[test]
    fn a_port_in_use_is_refused_by_address_with_what_to_do() {
        let (_parent, dir) = runtime_dir();
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut config = Config::default();
        config.listener.addr = taken.local_addr().unwrap();
        let error = prepare_in(&dir, config).unwrap_err();
        assert!(matches!(error, UpError::PortInUse { .. }));
        let message = error.to_string();
        assert!(message.contains(&taken.local_addr().unwrap().to_string()));
        assert!(message.contains("--listen"), "{message}");
    }

    #[test]
    fn an_address_of_another_machine_is_refused() {
        let (_parent, dir) = runtime_dir();
        let mut config = Config::default();
        config.listener.addr = SocketAddr::from(([192, 0, 2, 1], 0));
        let error = prepare_in(&dir, config).unwrap_err();
        assert!(matches!(error, UpError::Listen { .. }), "{error}");
        assert_eq!(error.exit_code(), exit::FAILURE);
    }

    #[test]
    fn a_missing_key_file_is_a_fault_of_the_configuration() {
        let (_parent, dir) = runtime_dir();
        let mut config = on_a_free_port();
        config.auth.key_file = Some("/nonexistent/auth.key".into());
        let error = prepare_in(&dir, config).unwrap_err();
        assert_eq!(error.exit_code(), exit::CONFIG);
        let message = exit::chain(&error);
        assert!(message.contains("auth.key_file"), "{message}");
        assert!(message.contains("/nonexistent/auth.key"), "{message}");
    }

    #[test]
    fn a_key_that_workers_cannot_use_is_a_fault_of_the_configuration() {
        let (_parent, dir) = runtime_dir();
        let file = dir.path().join("jwt.pem");
        std::fs::write(&file, "hello").unwrap();
        let mut config = on_a_free_port();
        config.auth.public_key_file = Some(file);
        let error = prepare_in(&dir, config).unwrap_err();
        assert_eq!(error.exit_code(), exit::CONFIG);
        let message = exit::chain(&error);
        assert_eq!(message, "invalid configuration: that is no key");
    }

    #[test]
    fn more_connections_than_descriptors_are_refused() {
        let (_parent, dir) = runtime_dir();
        let mut config = on_a_free_port();
        config.limits.connections_max = Some(u32::MAX);
        let error = prepare_in(&dir, config).unwrap_err();
        assert_eq!(error.exit_code(), exit::CONFIG);
        let message = exit::chain(&error);
        assert!(message.contains("limits.connections_max"), "{message}");
    }
}

//! A Muster worker: terminates client WebSockets, routes their publications to
//! the brokers and fans out what comes back. One thread owns all connections.

mod addresses;
mod adoption;
mod auth;
mod broadcast;
mod channels;
mod connection;
mod connections;
mod core;
mod engine;
mod gate;
mod handover;
mod link;
mod namespaces;
mod outbox;
mod poller;
mod reads;
mod router;
mod serve;
#[doc(hidden)]
pub mod simulation;
mod stats;
mod upgrade;
mod wheel;

use std::{
    io::{self, IsTerminal as _},
    net::{SocketAddr, TcpListener},
    os::fd::AsFd as _,
};

use muster_daemon::{Config, NodeArgs, cadence, clock, descriptors, exit, runtime_dir};
use muster_wire::{
    answer::PUBLICATION_OVERHEAD_BYTES_MAX,
    session::{Rate, Rules},
};
use rand::{SeedableRng as _, rngs::StdRng};
use socket2::SockRef;
use tokio::sync::mpsc;

pub use self::auth::{AuthError, check_key};
use self::{
    auth::Auth,
    core::{Core, Names, Now},
    engine::{Engine, Settings},
    gate::Gate,
    link::LinkSettings,
    namespaces::Namespaces,
    router::Router,
    upgrade::UpgradeRules,
};

/// Serves an echo endpoint under this path, for conformance tests of the frame
/// codec. Not part of the configuration, because no cluster should have it.
const ECHO_PATH_VARIABLE: &str = "MUSTER_TEST_ECHO_PATH";
/// News from all links that wait for the worker's loop; more waits in the
/// streams, which tells the brokers to slow down.
const LINK_EVENTS_CAP: usize = 256;
/// Other workers that want to hand connections over and are not listened to yet.
const OFFERS_CAP: usize = 8;
/// Bytes that the kernel takes for a client before it can send them: a ping must
/// not wait behind megabytes (delivery.md F2).
const NOTSENT_BYTES_MAX: u32 = 64 * 1024;
/// The part of a client's outbox that one answer with publications may take, so
/// that all that it may ask for at once have room.
const HISTORY_OUTBOX_PART: u64 = 8;
/// Bytes a frame between processes may have beside one client message.
const ENVELOPE_BYTES_MAX: usize = 128 * 1024;

/// Why a worker cannot run.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The keys cannot be used.
    #[error("invalid configuration")]
    Auth(#[from] AuthError),
    /// Too few descriptors.
    #[error("invalid configuration")]
    Descriptors(#[from] descriptors::DescriptorsError),
    /// The shared file of the accept gate.
    #[error("cannot open the accept gate {path}")]
    Gate {
        /// The file.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The listening socket.
    #[error("cannot listen on {addr}")]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// Something the worker's loop cannot do without.
    #[error("cannot run")]
    Run(#[from] io::Error),
    /// The control task ended, which it never should.
    #[error("lost the control stream's task")]
    ControlEnded,
}

impl WorkerError {
    /// What the process exits with.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Auth(_) | Self::Descriptors(_) => exit::CONFIG,
            Self::Gate { .. } | Self::Listen { .. } | Self::Run(_) | Self::ControlEnded => {
                exit::FAILURE
            }
        }
    }
}

/// Runs a worker until it is told to end.
///
/// Standard input is the listening socket where the orchestrator (or inetd)
/// gave one; otherwise the configured address is bound.
///
/// # Errors
/// What kept it from starting, or from going on.
#[expect(
    clippy::needless_pass_by_value,
    reason = "a process's entry point owns its inputs"
)]
pub fn run(args: NodeArgs, config: Config) -> Result<(), WorkerError> {
    let descriptors = descriptors::raise_limit();
    let connections_max = descriptors::connections_allowed(&config, descriptors)?;
    let auth = Auth::load(&config.auth)?;
    let listener = listener(config.listener.addr)?;
    let gate = gate(&args)?;
    let rules = rules(&config);
    let names = names(&config);
    let router = Router::new(
        config.link.window_bytes.as_usize(),
        config.link.publish_timeout,
    );
    let core = Core::new(rules, auth, names, router);
    let settings = settings(&args, &config, connections_max as usize);
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    cadence::pace(&mut runtime, config.pacing.wakeup_interval);
    let runtime = runtime.enable_all().build()?;
    runtime.block_on(async {
        let (events, link_events) = mpsc::channel(LINK_EVENTS_CAP);
        let (offers, offered) = mpsc::channel(OFFERS_CAP);
        let _adoption = adoption::keep(&args, &listener, offers);
        let rng = StdRng::from_rng(&mut rand::make_rng::<StdRng>());
        let engine = Engine::new(settings, core, listener, gate, events, now(), rng)?;
        serve::serve(engine, link_events, offered, &args, &config).await
    })
}

fn rules(config: &Config) -> Rules {
    let limits = &config.limits;
    let rate = limits.messages_per_second;
    let packets = Rate::new(rate.rate, rate.burst);
    Rules {
        handshake_timeout: config.listener.handshake_timeout,
        ping_interval: config.heartbeat.ping_interval,
        pong_timeout: config.heartbeat.pong_timeout,
        channels_max: limits.channels_per_connection_max as usize,
        packets,
        subscribes: packets.with_burst_of(limits.channels_per_connection_max),
    }
}

fn names(config: &Config) -> Names {
    Names {
        namespaces: Namespaces::new(config.namespace.clone()),
        bytes_max: config.limits.channel_name_bytes_max as usize,
        history_publications_max: config.limits.history_publications_max,
        history_bytes_max: config.limits.outbox_bytes_max.0 / HISTORY_OUTBOX_PART,
    }
}

fn settings(args: &NodeArgs, config: &Config, connections_max: usize) -> Settings {
    let message_bytes_max = config.limits.message_bytes_max.as_usize();
    Settings {
        upgrade: UpgradeRules {
            path: config.listener.path.clone(),
            origins: config.listener.origins.clone(),
            head_bytes_max: config.listener.head_bytes_max.as_usize(),
            echo_path: std::env::var(ECHO_PATH_VARIABLE).ok(),
        },
        connections_max,
        connections_per_address_max: config.limits.connections_per_address_max,
        message_bytes_max,
        outbox_bytes_max: config.limits.outbox_bytes_max.as_usize(),
        is_successor: args.successor,
        link: LinkSettings {
            worker_slot: args.slot,
            worker_incarnation: args.incarnation,
            credit_bytes: config.link.credit_bytes.0,
            frame_bytes_max: message_bytes_max
                + PUBLICATION_OVERHEAD_BYTES_MAX
                + ENVELOPE_BYTES_MAX,
        },
    }
}

fn listener(addr: SocketAddr) -> Result<TcpListener, WorkerError> {
    let fail = |source| WorkerError::Listen { addr, source };
    let stdin = io::stdin();
    let listener = if !stdin.is_terminal() && is_listening(&stdin) {
        TcpListener::from(stdin.as_fd().try_clone_to_owned().map_err(fail)?)
    } else {
        TcpListener::bind(addr).map_err(fail)?
    };
    prepare(&listener).map_err(fail)?;
    Ok(listener)
}

/// Sets what every accepted socket inherits.
fn prepare(listener: &TcpListener) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let socket = SockRef::from(listener);
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_notsent_lowat(NOTSENT_BYTES_MAX)
}

fn is_listening(socket: &impl std::os::fd::AsFd) -> bool {
    rustix::net::sockopt::socket_acceptconn(socket).unwrap_or(false)
}

/// A worker that was started by hand has no others to share with.
fn gate(args: &NodeArgs) -> Result<Option<Gate>, WorkerError> {
    let path = runtime_dir::gate_file(&args.runtime_dir);
    match Gate::open(&path, args.slot) {
        Ok(gate) => Ok(Some(gate)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(WorkerError::Gate {
            path: path.display().to_string(),
            source,
        }),
    }
}

pub(crate) fn now() -> Now {
    Now {
        millis: clock::now(),
        unix: clock::unix_seconds(),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;

    #[test]
    fn accepted_sockets_send_at_once_and_keep_little_in_the_kernel() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        prepare(&listener).unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        listener.set_nonblocking(false).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        let socket = SockRef::from(&accepted);
        assert!(socket.tcp_nodelay().unwrap());
        assert_eq!(socket.tcp_notsent_lowat().unwrap(), NOTSENT_BYTES_MAX);
    }
}

//! A release that is no good: it joins, takes over and then serves badly. What
//! is the matter with it stands in `MUSTER_TEST_FAULT`; it shows once the file
//! `MUSTER_TEST_FAULT_AFTER` is there, if one is named.
//!
//! It is the real worker, and what is done to it comes from outside of that: the
//! worker has no switch for any of this. For everything but `worker` it is the
//! orchestrator at `MUSTER_TEST_PROGRAM`.

use std::{
    error::Error,
    fs,
    io::{self, Write as _},
    os::{fd::OwnedFd, unix::process::CommandExt as _},
    path::Path,
    process::{Command, ExitCode, Stdio},
    thread,
    time::Duration,
};

use clap::Parser;
use muster_daemon::{NodeArgs, config, telemetry};
use rustix::{
    net::{Shutdown, getpeername, shutdown},
    process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open},
};

/// Time in which no client comes any more before a fault begins.
const CALM: Duration = Duration::from_millis(300);
/// Connections that are cut at most.
const CUTS_MAX: usize = 12;
/// Memory that is leaked at most, in pieces.
const LEAKS_MAX: usize = 40;
const LEAK_BYTES: usize = 10 << 20;

#[derive(Debug, Parser)]
enum Cli {
    Worker(NodeArgs),
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody is left to tell when standard error is gone.
            let _ = writeln!(io::stderr(), "error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_none_or(|verb| verb != "worker") {
        let program = std::env::var_os("MUSTER_TEST_PROGRAM").ok_or("no MUSTER_TEST_PROGRAM")?;
        let arguments = std::env::args_os().skip(1);
        return Err(Command::new(program).args(arguments).exec().into());
    }
    let Cli::Worker(args) = Cli::parse();
    let config = config::load(args.config.as_deref(), std::env::vars_os(), &[])?.config;
    let identity = telemetry::Identity {
        role: "worker",
        slot: Some(args.slot),
    };
    telemetry::init(&config.log, identity)?;
    let fault = std::env::var("MUSTER_TEST_FAULT")?;
    if fault == "dies_while_it_warms_up" {
        std::process::abort();
    }
    thread::spawn(move || misbehave(&fault));
    Ok(muster_worker::run(args, config)?)
}

/// Once it has clients, and no more come.
fn misbehave(fault: &str) {
    let after = std::env::var_os("MUSTER_TEST_FAULT_AFTER");
    let may_begin = || after.as_ref().is_none_or(|file| Path::new(file).exists());
    let mut count = 0;
    loop {
        thread::sleep(CALM);
        let before = std::mem::replace(&mut count, clients().len());
        if count > 0 && count == before && may_begin() {
            break;
        }
    }
    match fault {
        "leaks" => leak(),
        "stalls" => stall(),
        "cuts" => cut(),
        "dies" => std::process::abort(),
        _ => {}
    }
}

fn leak() {
    let mut leaked = Vec::new();
    for _ in 0..LEAKS_MAX {
        leaked.push(vec![1_u8; LEAK_BYTES]);
        thread::sleep(Duration::from_millis(100));
    }
    loop {
        thread::park();
        drop(leaked.pop());
    }
}

/// Stands still for most of the time, as long as it lives.
fn stall() {
    let pid = std::process::id();
    let script =
        format!("while kill -STOP {pid} && sleep 1.2 && kill -CONT {pid}; do sleep 0.3; done");
    let mut helper = Command::new("sh");
    helper
        .args(["-c", &script])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0);
    if let Ok(mut helper) = helper.spawn() {
        // It ends when this process has.
        let _ = helper.wait();
    }
}

/// Cuts one client after the other off.
fn cut() {
    for _ in 0..CUTS_MAX {
        if let Some(client) = clients().pop() {
            // It may have gone by itself.
            let _ = shutdown(&client, Shutdown::Both);
        }
        thread::sleep(Duration::from_millis(100));
    }
}

/// The sockets of clients: those with a peer that has an address.
fn clients() -> Vec<OwnedFd> {
    let own = || pidfd_open(getpid(), PidfdFlags::empty());
    let Ok(own) = own() else {
        return Vec::new();
    };
    let fds = fs::read_dir("/proc/self/fd").into_iter().flatten();
    let fds = fds.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let copies = fds.filter_map(|fd| pidfd_getfd(&own, fd, PidfdGetfdFlags::empty()).ok());
    let is_client = |socket: &OwnedFd| {
        let peer = getpeername(socket).ok().flatten();
        peer.is_some_and(|peer| std::net::SocketAddr::try_from(peer).is_ok())
    };
    copies.filter(is_client).collect()
}

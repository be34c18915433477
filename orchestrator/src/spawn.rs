//! Makes processes: a node is this same binary in another role.

use std::{
    ffi::OsString,
    fs::OpenOptions,
    io,
    net::TcpListener,
    os::{
        fd::AsFd as _,
        unix::{fs::OpenOptionsExt as _, process::ExitStatusExt as _},
    },
    path::PathBuf,
    process::{ExitStatus, Stdio},
    sync::Arc,
};

use muster_daemon::notify;
use rustix::{
    fs::{OFlags, fcntl_setfl},
    pipe::{PipeFlags, pipe_with},
    process::Signal,
};
use tokio::{
    net::unix::pipe,
    process::{Child, Command},
    time::{Instant, timeout_at},
};
use tracing::warn;

use crate::{
    logs::{LineSink, read_until},
    node::{NodeId, Role},
    process::Process,
    program::Program,
    supervisor::Exit,
};

/// Settings are in the file that nodes are given; variables would win over it.
const SETTINGS_PREFIX: &str = "MUSTER_";
const FILTER_VARIABLE: &str = "RUST_LOG";
/// What the test suites use reaches nodes.
const TEST_PREFIX: &str = "MUSTER_TEST_";

/// Everything that a node is started with.
#[derive(Debug)]
pub(crate) struct Spawner {
    pub(crate) runtime_dir: PathBuf,
    pub(crate) config_file: PathBuf,
    /// Workers get it as their standard input, as from inetd.
    pub(crate) listener: TcpListener,
    pub(crate) sink: LineSink,
}

/// A process that has just been started.
#[derive(Debug)]
pub(crate) struct Started {
    pub(crate) pid: u32,
    child: Child,
    stderr: pipe::Receiver,
}

/// How a process ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) node: NodeId,
    pub(crate) incarnation: u64,
    pub(crate) exit: Exit,
}

impl Spawner {
    /// Starts a node.
    ///
    /// It has a process group of its own, so that Ctrl-C reaches only the
    /// orchestrator, and a stderr that never blocks it: when the orchestrator
    /// stands still or is gone, its log lines are lost and it goes on. Nor does
    /// it end when the orchestrator fails: the next one takes it over.
    ///
    /// # Errors
    ///
    /// When the system has no process or descriptor left.
    pub(crate) fn start(
        &self,
        program: &Program,
        node: NodeId,
        incarnation: u64,
    ) -> io::Result<Started> {
        let (stderr, write_end) = pipe_with(PipeFlags::CLOEXEC)?;
        fcntl_setfl(&write_end, OFlags::NONBLOCK)?;
        let stderr = pipe::Receiver::from_owned_fd(stderr)?;
        let stdin = match node.role {
            Role::Worker | Role::Successor => {
                Stdio::from(self.listener.as_fd().try_clone_to_owned()?)
            }
            Role::Broker => Stdio::null(),
        };
        let mut command = Command::new(program.executable());
        command
            .arg0("orchestrator")
            .arg(node.role.verb())
            .args(["--slot", &node.slot.to_string()])
            .args(["--incarnation", &incarnation.to_string()])
            .arg("--runtime-dir")
            .arg(&self.runtime_dir)
            .arg("--config")
            .arg(&self.config_file)
            .args((node.role == Role::Successor).then_some("--successor"))
            .stdin(stdin)
            .stdout(Stdio::null())
            .stderr(Stdio::from(write_end))
            .process_group(0);
        without_settings(&mut command);
        let child = command.spawn()?;
        let pid = child
            .id()
            .expect("a child that nobody waited for has a pid");
        Ok(Started { pid, child, stderr })
    }

    /// Passes on the node's log lines until it ends, and says how it did.
    pub(crate) fn attend(
        &self,
        node: NodeId,
        incarnation: u64,
        started: Started,
    ) -> impl Future<Output = Ended> + use<> {
        let Started {
            mut child, stderr, ..
        } = started;
        let end = async move {
            match child.wait().await {
                Ok(status) => describe(status),
                Err(error) => format!("unknown status: {error}"),
            }
        };
        attend(self.sink.clone(), node, incarnation, Some(stderr), end)
    }

    /// The same for a node that an earlier orchestrator started: its log lines
    /// from now on, and that it has ended, but not how.
    pub(crate) fn attend_adopted(
        &self,
        node: NodeId,
        incarnation: u64,
        process: Arc<Process>,
    ) -> impl Future<Output = Ended> + use<> {
        let stderr = reopen_stderr(process.pid).inspect_err(|error| {
            warn!(%node, %error, "The log of a node that was taken over cannot be read.");
        });
        let end = async move {
            match process.wait().await {
                Ok(Some(status)) => describe(status),
                Ok(None) => "exit unknown (adopted)".to_owned(),
                Err(error) => {
                    // What cannot be watched must not live beside its successor.
                    process.signal(Signal::KILL);
                    format!("cannot be watched: {error}")
                }
            }
        };
        attend(self.sink.clone(), node, incarnation, stderr.ok(), end)
    }
}

/// Passes on what a node logs until it ends.
async fn attend(
    sink: LineSink,
    node: NodeId,
    incarnation: u64,
    stderr: Option<pipe::Receiver>,
    end: impl Future<Output = String>,
) -> Ended {
    let mut last_line = None;
    let status = {
        let lines = async {
            if let Some(stderr) = stderr {
                sink.pass_on(node, stderr, &mut last_line).await;
            }
        };
        let (mut lines, mut end) = (std::pin::pin!(lines), std::pin::pin!(end));
        let mut lines_ended = false;
        let status = loop {
            tokio::select! {
                status = &mut end => break status,
                () = &mut lines, if !lines_ended => lines_ended = true,
            }
        };
        if !lines_ended {
            // Whether all was read or the time was up is the same here.
            let _ = timeout_at(read_until(Instant::now()), lines).await;
        }
        status
    };
    Ended {
        node,
        incarnation,
        exit: Exit { status, last_line },
    }
}

/// The reading end of the pipe that a node's stderr is. Its former reader is
/// gone, but the pipe is there while the node has its own end.
fn reopen_stderr(pid: u32) -> io::Result<pipe::Receiver> {
    let mut options = OpenOptions::new();
    // Without a reader yet, and without waiting for a writer.
    options
        .read(true)
        .custom_flags(i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or_default());
    pipe::Receiver::from_file(options.open(format!("/proc/{pid}/fd/2"))?)
}

/// Keeps variables from a process that are not for nodes.
pub(crate) fn without_settings(command: &mut Command) {
    for variable in foreign_variables() {
        command.env_remove(variable);
    }
}

/// Variables that are not for nodes.
fn foreign_variables() -> impl Iterator<Item = OsString> {
    std::env::vars_os().map(|(name, _)| name).filter(|name| {
        let name = name.to_string_lossy();
        let setting = name.starts_with(SETTINGS_PREFIX) || name == FILTER_VARIABLE;
        let manager = notify::VARIABLES.contains(&name.as_ref());
        (setting && !name.starts_with(TEST_PREFIX)) || manager
    })
}

/// `exit code 1`, `signal 9 (SIGKILL)`.
pub(crate) fn describe(status: ExitStatus) -> String {
    if let Some(code) = status.code() {
        return format!("exit code {code}");
    }
    let Some(signal) = status.signal() else {
        return status.to_string();
    };
    let name = match signal {
        1 => "SIGHUP",
        2 => "SIGINT",
        3 => "SIGQUIT",
        4 => "SIGILL",
        6 => "SIGABRT",
        7 => "SIGBUS",
        8 => "SIGFPE",
        9 => "SIGKILL",
        11 => "SIGSEGV",
        13 => "SIGPIPE",
        15 => "SIGTERM",
        31 => "SIGSYS",
        _ => return format!("signal {signal}"),
    };
    format!("signal {signal} ({name})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_described_by_code_or_by_signal_with_its_name() {
        assert_eq!(describe(ExitStatus::from_raw(1 << 8)), "exit code 1");
        assert_eq!(describe(ExitStatus::from_raw(9)), "signal 9 (SIGKILL)");
        assert_eq!(describe(ExitStatus::from_raw(40)), "signal 40");
    }
}

//! Makes processes: a node is this same binary in another role.

use std::{
    ffi::OsString,
    io,
    net::TcpListener,
    os::{fd::AsFd as _, unix::process::ExitStatusExt as _},
    path::PathBuf,
    process::{ExitStatus, Stdio},
};

use rustix::{
    fs::{OFlags, fcntl_setfl},
    pipe::{PipeFlags, pipe_with},
};
use tokio::{
    net::unix::pipe,
    process::{Child, Command},
    time::{Instant, timeout_at},
};

use crate::{
    logs::{LineSink, read_until},
    node::{NodeId, Role},
    supervisor::Exit,
};

/// The program that runs now, even if the file at its path is another by now.
const OWN_PROGRAM: &str = "/proc/self/exe";
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
    /// stands still or is gone, its log lines are lost and it goes on.
    ///
    /// # Errors
    ///
    /// When the system has no process or descriptor left.
    pub(crate) fn start(&self, node: NodeId, incarnation: u64) -> io::Result<Started> {
        let (stderr, write_end) = pipe_with(PipeFlags::CLOEXEC)?;
        fcntl_setfl(&write_end, OFlags::NONBLOCK)?;
        let stderr = pipe::Receiver::from_owned_fd(stderr)?;
        let stdin = match node.role {
            Role::Worker => Stdio::from(self.listener.as_fd().try_clone_to_owned()?),
            Role::Broker => Stdio::null(),
        };
        let mut command = Command::new(OWN_PROGRAM);
        command
            .arg0("orchestrator")
            .arg(node.role.verb())
            .args(["--slot", &node.slot.to_string()])
            .args(["--incarnation", &incarnation.to_string()])
            .arg("--runtime-dir")
            .arg(&self.runtime_dir)
            .arg("--config")
            .arg(&self.config_file)
            .stdin(stdin)
            .stdout(Stdio::null())
            .stderr(Stdio::from(write_end))
            .process_group(0)
            .kill_on_drop(true);
        for variable in settings_variables() {
            command.env_remove(variable);
        }
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
        let sink = self.sink.clone();
        let Started {
            mut child, stderr, ..
        } = started;
        async move {
            let mut last_line = None;
            let status = {
                let mut lines = std::pin::pin!(sink.pass_on(node, stderr, &mut last_line));
                let mut lines_ended = false;
                let status = loop {
                    tokio::select! {
                        status = child.wait() => break status,
                        () = &mut lines, if !lines_ended => lines_ended = true,
                    }
                };
                if !lines_ended {
                    // Whether all was read or the time was up is the same here.
                    let _ = timeout_at(read_until(Instant::now()), lines).await;
                }
                status
            };
            let status = match status {
                Ok(status) => describe(status),
                Err(error) => format!("unknown status: {error}"),
            };
            Ended {
                node,
                incarnation,
                exit: Exit { status, last_line },
            }
        }
    }
}

fn settings_variables() -> impl Iterator<Item = OsString> {
    std::env::vars_os().map(|(name, _)| name).filter(|name| {
        let name = name.to_string_lossy();
        let setting = name.starts_with(SETTINGS_PREFIX) || name == FILTER_VARIABLE;
        setting && !name.starts_with(TEST_PREFIX)
    })
}

/// `exit code 1`, `signal 9 (SIGKILL)`.
fn describe(status: ExitStatus) -> String {
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

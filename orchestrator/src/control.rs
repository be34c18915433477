//! The orchestrator's services on its Unix socket: nodes join here, operators
//! ask here. Only the files below this one see tonic.

mod client;
mod operators;
mod server;

use std::{path::PathBuf, time::Duration};

use muster_proto::control as pb;
use tokio::sync::{mpsc, oneshot};

pub(crate) use self::{
    client::{Operator, OperatorError},
    operators::LIMIT_MAX as LIST_LIMIT_MAX,
    server::{ServeError, bind, serve},
};
use crate::{
    calls::{Gathered, NotAsked},
    membership::Joined,
    reload::{Reload, ReloadError},
};

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
    Leave { stream: u64 },
    Status {
        answer: oneshot::Sender<pb::StatusResponse>,
    },
    Down {
        how: Ending,
        answer: oneshot::Sender<()>,
    },
    /// Something for nodes to answer.
    Query {
        request: pb::query::Request,
        whom: Whom,
        answer: oneshot::Sender<Result<Gathered, NotAsked>>,
    },
    Scale {
        goal: Goal,
        answer: oneshot::Sender<Result<pb::ScaleResponse, ScaleRefused>>,
    },
    /// Replace all processes; with this program, if one is named.
    Update {
        wish: UpdateWish,
        answer: oneshot::Sender<Result<(), UpdateRefused>>,
    },
    /// Take that back.
    AbortUpdate {
        answer: oneshot::Sender<Result<(), AbortRefused>>,
    },
    /// Even the workers out; answered once that is through.
    Rebalance {
        answer: oneshot::Sender<Result<pb::RebalanceResponse, RebalanceRefused>>,
    },
    /// Read the configuration again.
    Reload {
        answer: oneshot::Sender<Result<Reload, ReloadError>>,
    },
    UpdateStatus {
        answer: oneshot::Sender<pb::UpdateStatusResponse>,
    },
}

/// How the clients of a cluster that ends are closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// They are told that it goes; stock clients wait before they try again.
    GoAway,
    /// So that they come back at once, elsewhere, spread over the time given or
    /// that of the configuration.
    Drain(Option<Duration>),
}

/// Who is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Whom {
    /// Every worker that is there.
    Workers,
    /// The worker in this slot.
    Worker(u32),
    /// Some worker that is ready.
    AnyWorker,
    /// Workers and brokers.
    Everyone,
}

/// Why a node may not join.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no such node was started here")]
pub(crate) struct JoinRefused;

/// How many nodes there are to be; absent: as many as there are. Within the
/// limits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Goal {
    pub(crate) workers: Option<u32>,
    pub(crate) brokers: Option<u32>,
}

/// Why the number of nodes does not change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ScaleRefused {
    #[error("the cluster is ending")]
    Ending,
    #[error("the cluster is being updated: `update --status` shows how far that is")]
    Updating,
    #[error("the cluster is starting: brokers can be scaled once every node has been ready")]
    Starting,
    #[error(
        "brokers are being scaled from {from} to {to} already: wait until `status` says it no more"
    )]
    Busy { from: u32, to: u32 },
    #[error(
        "the brokers that would stay end again and again, so nobody could take the shards: see \
         `status` for the reason"
    )]
    Failing,
}

/// How workers are to be replaced; absent: as the configuration says. Within the
/// limits.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct UpdateWish {
    /// An absolute path; absent: what runs now.
    pub(crate) program: Option<PathBuf>,
    pub(crate) canary: Option<u32>,
    pub(crate) hold: Option<Duration>,
    pub(crate) parallel: Option<u32>,
}

/// Why no update is taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AbortRefused {
    #[error("no update is under way: `update --status` shows how the last one ended")]
    None,
    #[error("the cluster is ending")]
    Ending,
}

/// Why no update begins.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UpdateRefused {
    #[error("the cluster is ending")]
    Ending,
    #[error("the cluster is starting: update it once every node has been ready")]
    Starting,
    #[error("an update is under way: `update --status` shows how far it is")]
    Busy,
    #[error(
        "the number of workers or brokers is being changed: wait until `status` shows none that \
         drains and no scaling"
    )]
    Scaling,
    #[error("connections are being handed over: try again in a moment")]
    HandingOver,
    #[error("{0}; nothing was replaced")]
    Config(String),
    #[error("{} cannot be run: {reason}", program.display())]
    Program { program: PathBuf, reason: String },
}

/// Why the workers are not evened out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RebalanceRefused {
    #[error("the cluster is ending")]
    Ending,
    #[error("the cluster is starting: try again once every node has been ready")]
    Starting,
    #[error("the cluster is being updated: `update --status` shows how far that is")]
    Updating,
}

#[cfg(test)]
mod tests;

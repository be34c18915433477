//! The asking side: what the verbs of the command line use.

use std::{error::Error as _, io, path::PathBuf};

use bytes::Bytes;
use muster_daemon::{
    exit,
    runtime_dir::{self, RuntimeDir, RuntimeDirError},
};
use muster_proto::{
    CONTROL_MESSAGE_BYTES_MAX,
    control::{self as pb, client_command::Action, operator_client::OperatorClient},
};
use tokio::net::UnixStream;
use tonic::{
    Code,
    transport::{Channel, Endpoint},
};

use super::{Goal, UpdateWish};

/// Why an operator got no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OperatorError {
    #[error("no cluster runs at {}: start one with `orchestrator up`", path.display())]
    NotRunning { path: PathBuf },
    #[error("cannot reach the orchestrator at {}", path.display())]
    Reach { path: PathBuf, source: io::Error },
    #[error("cannot reach the orchestrator")]
    Connect(#[from] tonic::transport::Error),
    #[error(transparent)]
    RuntimeDir(#[from] RuntimeDirError),
    #[error("{0}")]
    Refused(String),
    #[error("no client has the session id {0}: it is gone; `connections` lists those there are")]
    UnknownConnection(String),
    #[error("the worker refused: {0}")]
    Client(String),
    #[error("{0}")]
    Invalid(String),
    #[error("the outcome is unknown: {0}")]
    OutcomeUnknown(String),
}

impl OperatorError {
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::NotRunning { .. }
            | Self::Reach { .. }
            | Self::Connect(_)
            | Self::RuntimeDir(_)
            | Self::Refused(_)
            | Self::UnknownConnection(_)
            | Self::Client(_) => exit::FAILURE,
            Self::Invalid(_) => exit::USAGE,
            Self::OutcomeUnknown(_) => exit::OUTCOME_UNKNOWN,
        }
    }
}

/// A running cluster's operator service.
#[derive(Debug)]
pub(crate) struct Operator {
    client: OperatorClient<Channel>,
}

impl Operator {
    /// Connects to the cluster at `path`, or where it is by default.
    ///
    /// # Errors
    ///
    /// When none runs there or it cannot be reached.
    pub(crate) async fn connect(
        path: Option<PathBuf>,
    ) -> Result<(Self, RuntimeDir), OperatorError> {
        let path = path.unwrap_or_else(runtime_dir::default_path);
        let dir = match RuntimeDir::open(&path) {
            Ok(dir) => dir,
            Err(RuntimeDirError::Missing { path }) => {
                return Err(OperatorError::NotRunning { path });
            }
            Err(error) => return Err(error.into()),
        };
        let socket = dir.orchestrator_socket();
        // Asked first, because its error says more than the channel's.
        match UnixStream::connect(&socket).await {
            Ok(_) => {}
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                ) =>
            {
                return Err(OperatorError::NotRunning { path });
            }
            Err(source) => {
                return Err(OperatorError::Reach {
                    path: socket,
                    source,
                });
            }
        }
        let endpoint = Endpoint::from_shared(format!("unix:{}", socket.display()))?;
        let client = OperatorClient::new(endpoint.connect().await?)
            .max_decoding_message_size(CONTROL_MESSAGE_BYTES_MAX);
        Ok((Self { client }, dir))
    }

    pub(crate) async fn status(&mut self) -> Result<pb::StatusResponse, OperatorError> {
        let answer = self.client.status(pb::StatusRequest {}).await;
        Ok(answer.map_err(refused)?.into_inner())
    }

    /// Begins to end the cluster; with `drain`, clients are to come back elsewhere
    /// within so many milliseconds (0: as configured).
    pub(crate) async fn down(&mut self, drain: Option<u64>) -> Result<(), OperatorError> {
        let request = pb::DownRequest {
            drain_within_ms: drain,
        };
        let answer = self.client.down(request).await;
        answer.map(|_| ()).map_err(refused)
    }

    /// Begins to change the number of workers, of brokers, or of both.
    pub(crate) async fn scale(&mut self, goal: Goal) -> Result<pb::ScaleResponse, OperatorError> {
        let Goal { workers, brokers } = goal;
        let request = pb::ScaleRequest { workers, brokers };
        let answer = self.client.scale(request).await;
        Ok(answer.map_err(refused)?.into_inner())
    }

    /// Begins to replace all workers.
    pub(crate) async fn update(&mut self, wish: UpdateWish) -> Result<(), OperatorError> {
        let program = wish.program.unwrap_or_default();
        let program = program.into_os_string().into_string();
        let program = program.map_err(|program| {
            let program = program.to_string_lossy().into_owned();
            OperatorError::Invalid(format!("the path {program} is no text"))
        })?;
        let hold = wish.hold.map(|hold| hold.as_millis());
        let request = pb::UpdateRequest {
            program,
            canary: wish.canary,
            hold_ms: hold.map(|hold| u64::try_from(hold).unwrap_or(u64::MAX)),
            parallel: wish.parallel,
        };
        let answer = self.client.update(request).await;
        answer.map(|_| ()).map_err(refused)
    }

    /// Begins to take the update back that is under way.
    pub(crate) async fn abort_update(&mut self) -> Result<(), OperatorError> {
        let answer = self.client.abort_update(pb::AbortUpdateRequest {}).await;
        answer.map(|_| ()).map_err(refused)
    }

    /// Evens the workers out; ends when that is through.
    pub(crate) async fn rebalance(&mut self) -> Result<pb::RebalanceResponse, OperatorError> {
        let answer = self.client.rebalance(pb::RebalanceRequest {}).await;
        Ok(answer.map_err(refused)?.into_inner())
    }

    /// Has the configuration read again.
    pub(crate) async fn reload(&mut self) -> Result<pb::ReloadResponse, OperatorError> {
        let answer = self.client.reload(pb::ReloadRequest {}).await;
        Ok(answer.map_err(refused)?.into_inner())
    }

    /// How the update is that is under way, or how the last one ended.
    pub(crate) async fn update_status(
        &mut self,
    ) -> Result<pb::UpdateStatusResponse, OperatorError> {
        let answer = self.client.update_status(pb::UpdateStatusRequest {}).await;
        Ok(answer.map_err(refused)?.into_inner())
    }

    /// Has something done to one client.
    pub(crate) async fn act(
        &mut self,
        connection: String,
        action: Action,
    ) -> Result<(), OperatorError> {
        let command = pb::ClientCommand {
            connection: connection.clone(),
            action: Some(action),
        };
        let result = self.client.client(command).await.map_err(refused)?;
        let pb::ClientResult { found, error } = result.into_inner();
        match (found, error.as_str()) {
            (false, _) => Err(OperatorError::UnknownConnection(connection)),
            (true, "") => Ok(()),
            (true, _) => Err(OperatorError::Client(error)),
        }
    }

    pub(crate) async fn publish(
        &mut self,
        channel: String,
        data: Bytes,
    ) -> Result<(), OperatorError> {
        let request = pb::PublishRequest { channel, data };
        let answer = self.client.publish(request).await;
        answer.map(|_| ()).map_err(refused)
    }

    pub(crate) async fn history(
        &mut self,
        request: pb::HistoryRequest,
    ) -> Result<pb::HistoryResponse, OperatorError> {
        let answer = self.client.history(request).await;
        Ok(answer.map_err(refused)?.into_inner())
    }

    pub(crate) async fn channels(
        &mut self,
        request: pb::ChannelsRequest,
    ) -> Result<pb::ChannelsResponse, OperatorError> {
        let answer = self.client.channels(request).await;
        Ok(answer.map_err(refused)?.into_inner())
    }

    pub(crate) async fn connections(
        &mut self,
        request: pb::ConnectionsRequest,
    ) -> Result<pb::ConnectionsResponse, OperatorError> {
        let answer = self.client.connections(request).await;
        Ok(answer.map_err(refused)?.into_inner())
    }

    /// Changes the log filter, or only asks for it.
    pub(crate) async fn log_filter(
        &mut self,
        filter: Option<String>,
    ) -> Result<pb::LogFilterResponse, OperatorError> {
        let answer = self
            .client
            .log_filter(pb::LogFilterRequest { filter })
            .await;
        Ok(answer.map_err(refused)?.into_inner())
    }
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "it maps an error, which is passed by value"
)]
fn refused(status: tonic::Status) -> OperatorError {
    let message = match status.message() {
        "" => status.code().description().to_owned(),
        message => message.to_owned(),
    };
    if status.source().is_some() {
        // Not the orchestrator's answer but the end of the connection: whether it
        // had done it by then, nobody knows.
        return OperatorError::OutcomeUnknown(format!("lost the orchestrator: {message}"));
    }
    if status.code() == Code::DeadlineExceeded {
        return OperatorError::OutcomeUnknown(message);
    }
    if status.code() == Code::InvalidArgument {
        return OperatorError::Invalid(message);
    }
    OperatorError::Refused(message)
}

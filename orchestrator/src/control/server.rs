//! The served side: turns streams and calls into [`Request`]s.

use std::{
    convert::Infallible,
    fs,
    io::{self, ErrorKind},
    os::unix::{fs::PermissionsExt as _, net},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use muster_proto::{
    CONTROL_MESSAGE_BYTES_MAX, CONTROL_VERSION,
    control::{
        self as pb, node_report::Report, nodes_server::NodesServer, operator_server::OperatorServer,
    },
};
use tokio::{
    net::UnixListener,
    sync::{mpsc, oneshot},
    time::timeout,
};
use tokio_stream::{
    Stream, StreamExt as _,
    wrappers::{ReceiverStream, UnixListenerStream},
};
use tonic::{
    Response, Status, Streaming,
    body::Body,
    codegen::{BoxFuture, Service, async_trait, http},
    server::NamedService,
    transport::Server,
};
use tracing::debug;

use super::{COMMANDS_CAP, JoinRefused, Request};
use crate::{
    membership::Joined,
    node::{NodeId, Role},
};

/// Longest that a node may take from opening its stream to `Hello`.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);

/// Why the control socket is no longer served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    #[error(transparent)]
    Server(#[from] tonic::transport::Error),
    #[error(transparent)]
    Socket(#[from] io::Error),
}

/// Binds the control socket, for this user alone.
///
/// # Errors
///
/// When the socket cannot be made.
pub(crate) fn bind(path: &Path) -> io::Result<net::UnixListener> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let listener = net::UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Serves nodes and operators; never returns while the socket works.
///
/// # Errors
///
/// When the socket can no longer be served.
pub(crate) async fn serve(
    listener: net::UnixListener,
    requests: mpsc::Sender<Request>,
) -> Result<(), ServeError> {
    listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(listener)?;
    let service = Control {
        requests,
        streams: Arc::default(),
    };
    let both = Both {
        nodes: NodesServer::new(service.clone())
            .max_decoding_message_size(CONTROL_MESSAGE_BYTES_MAX),
        operator: OperatorServer::new(service).max_decoding_message_size(CONTROL_MESSAGE_BYTES_MAX),
    };
    let connections = UnixListenerStream::new(listener);
    let served = Server::builder().serve_with_incoming(both, connections);
    Ok(served.await?)
}

/// Both services on one socket.
#[derive(Debug, Clone)]
struct Both {
    nodes: NodesServer<Control>,
    operator: OperatorServer<Control>,
}

impl Service<http::Request<Body>> for Both {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<http::Response<Body>, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let service = request.uri().path().split('/').nth(1);
        if service == Some(<NodesServer<Control> as NamedService>::NAME) {
            self.nodes.call(request)
        } else {
            // Also answers what is unknown.
            self.operator.call(request)
        }
    }
}

#[derive(Debug, Clone)]
pub(super) struct Control {
    requests: mpsc::Sender<Request>,
    /// Streams opened so far.
    streams: Arc<AtomicU64>,
}

impl Control {
    /// Sends a request and waits for its answer.
    pub(super) async fn ask<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<T>) -> Request,
    ) -> Result<T, Status> {
        let (answer, answered) = oneshot::channel();
        self.requests
            .send(request(answer))
            .await
            .map_err(|_| Status::unavailable("the cluster is ending"))?;
        answered.await.map_err(|_| {
            Status::deadline_exceeded(
                "the cluster ended before it answered: the outcome is unknown",
            )
        })
    }
}

#[async_trait]
impl pb::nodes_server::Nodes for Control {
    type JoinStream =
        std::pin::Pin<Box<dyn Stream<Item = Result<pb::NodeCommand, Status>> + Send + 'static>>;

    async fn join(
        &self,
        request: tonic::Request<Streaming<pb::NodeReport>>,
    ) -> Result<Response<Self::JoinStream>, Status> {
        let mut reports = request.into_inner();
        let hello = timeout(HELLO_TIMEOUT, reports.message())
            .await
            .map_err(|_| Status::deadline_exceeded("no hello"))??;
        let Some(pb::NodeReport {
            report: Some(Report::Hello(hello)),
        }) = hello
        else {
            return Err(Status::invalid_argument("the first report must be a hello"));
        };
        let pid = hello.pid;
        let node = joined(hello)?;
        let stream = self.streams.fetch_add(1, Ordering::Relaxed) + 1;
        let (commands, outgoing) = mpsc::channel(COMMANDS_CAP);
        self.ask(|answer| Request::Join {
            node,
            pid,
            stream,
            commands,
            answer,
        })
        .await?
        .map_err(|refused: JoinRefused| Status::failed_precondition(refused.to_string()))?;
        tokio::spawn(pass_on_reports(self.requests.clone(), stream, reports));
        let outgoing = ReceiverStream::new(outgoing).map(|command| {
            Ok(pb::NodeCommand {
                command: Some(command),
            })
        });
        Ok(Response::new(Box::pin(outgoing)))
    }
}

/// Ends with the stream, and says so.
async fn pass_on_reports(
    requests: mpsc::Sender<Request>,
    stream: u64,
    mut reports: Streaming<pb::NodeReport>,
) {
    loop {
        let report = match reports.message().await {
            Ok(Some(pb::NodeReport {
                report: Some(report),
            })) => report,
            // A report of a later release.
            Ok(Some(pb::NodeReport { report: None })) => continue,
            Ok(None) => break,
            Err(status) => {
                debug!(stream, error = %status, "A control stream broke.");
                break;
            }
        };
        if requests
            .send(Request::Report { stream, report })
            .await
            .is_err()
        {
            return;
        }
    }
    // Nobody needs to know once the cluster has ended.
    let _ = requests.send(Request::Leave { stream }).await;
}

fn joined(hello: pb::Hello) -> Result<Joined, Status> {
    if hello.version != CONTROL_VERSION {
        return Err(Status::failed_precondition(format!(
            "node speaks version {} of the control protocol, this orchestrator {CONTROL_VERSION}",
            hello.version
        )));
    }
    let Some(role) = Role::from_message(hello.role) else {
        return Err(Status::invalid_argument("a node is a worker or a broker"));
    };
    if role == Role::Broker && hello.address.is_empty() {
        return Err(Status::invalid_argument(
            "a broker must say where it takes links",
        ));
    }
    Ok(Joined {
        id: NodeId {
            role,
            slot: hello.slot,
        },
        incarnation: hello.incarnation,
        address: hello.address,
        epoch: hello.epoch,
    })
}

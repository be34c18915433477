//! A node's side of the control stream.

use std::{path::PathBuf, time::Duration};

use muster_proto::{
    CONTROL_MESSAGE_BYTES_MAX,
    control::{
        Hello, LogFilterRequest, LogFilterResult, NodeCommand, NodeReport, Query, Ready, Reply,
        ViewApplied, node_command::Command, node_report::Report, nodes_client::NodesClient, query,
        reply,
    },
};
use rand::rngs::SmallRng;
use tokio::{
    sync::mpsc::{self, error::TrySendError},
    time::{sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tracing::{debug, info};

use crate::{backoff::Backoff, exit::chain, grpc, telemetry};

/// Reports that a node has sent and this file has not taken yet. They are also
/// taken while the orchestrator is away, so a node never waits for it.
const REPORTS_CAP: usize = 64;
/// Commands received and not yet taken; beyond it the stream is not read.
const COMMANDS_CAP: usize = 64;
/// Reports on their way out. An orchestrator that stands still misses
/// heartbeats beyond this; if it is due anything else, the stream is begun anew.
const OUTGOING_CAP: usize = 64;
/// A restarted orchestrator should know its nodes at once, and nobody is
/// harmed by a connection attempt on a Unix socket.
const RECONNECT_MIN: Duration = Duration::from_millis(50);
const RECONNECT_MAX: Duration = Duration::from_secs(1);
/// An orchestrator that does not answer within this is tried again.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A node's end of the control stream, whether or not it stands.
#[derive(Debug)]
pub struct ControlHandle {
    /// Reports to the orchestrator. While it is away they are dropped, but
    /// `Ready` and the last `ViewApplied` are repeated when it is back.
    pub reports: mpsc::Sender<Report>,
    pub commands: mpsc::Receiver<Command>,
}

/// Keeps a node joined to the orchestrator that listens on `socket`.
///
/// Queries about the log filter are answered here; everything else is the
/// node's. The future never ends: it reconnects (with back-off) whenever the stream
/// breaks, says `hello` with the highest epoch seen, and repeats `Ready` and
/// the last `ViewApplied` if they had been reported.
pub fn control(socket: PathBuf, hello: Hello) -> (ControlHandle, impl Future<Output = ()>) {
    let (reports, inbox) = mpsc::channel(REPORTS_CAP);
    let (commands, receiver) = mpsc::channel(COMMANDS_CAP);
    let handle = ControlHandle {
        reports,
        commands: receiver,
    };
    let standing = Standing {
        hello,
        ready: false,
        applied: None,
    };
    let control = Control {
        socket,
        standing,
        inbox,
        commands,
    };
    (handle, control.run())
}

/// What a new orchestrator must hear first.
#[derive(Debug, Clone)]
struct Standing {
    hello: Hello,
    ready: bool,
    applied: Option<ViewApplied>,
}

impl Standing {
    fn note_report(&mut self, report: &Report) {
        match report {
            Report::Ready(Ready {}) => self.ready = true,
            Report::ViewApplied(applied) => {
                self.note_epoch(applied.epoch);
                self.applied = Some(*applied);
            }
            Report::Hello(_) | Report::Heartbeat(_) | Report::Reply(_) | Report::HandedOver(_) => {}
        }
    }

    fn note_command(&mut self, command: &Command) {
        match command {
            Command::View(view) => self.note_epoch(view.epoch),
            Command::Query(_)
            | Command::Drain(_)
            | Command::HandOver(_)
            | Command::CallOff(_)
            | Command::TakePlace(_) => {}
        }
    }

    fn note_epoch(&mut self, epoch: u64) {
        self.hello.epoch = self.hello.epoch.max(epoch);
    }

    fn opening(&self) -> Vec<Report> {
        let applied = self.applied.map(Report::ViewApplied);
        let ready = self.ready.then_some(Report::Ready(Ready {}));
        [Some(Report::Hello(self.hello.clone())), applied, ready]
            .into_iter()
            .flatten()
            .collect()
    }
}

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
enum StreamEnd {
    #[error("cannot reach the orchestrator")]
    Connect(#[from] tonic::transport::Error),
    #[error("the orchestrator does not answer")]
    Timeout,
    #[error("the orchestrator refused")]
    Refused(#[source] Box<tonic::Status>),
    #[error("the stream broke")]
    Broken(#[source] Box<tonic::Status>),
    #[error("the orchestrator closed the stream")]
    Closed,
    #[error("the orchestrator does not read")]
    Stuck,
}

struct Control {
    socket: PathBuf,
    standing: Standing,
    inbox: mpsc::Receiver<Report>,
    commands: mpsc::Sender<Command>,
}

impl Control {
    async fn run(mut self) {
        let mut rng: SmallRng = rand::make_rng();
        let mut backoff = Backoff::new(RECONNECT_MIN, RECONNECT_MAX);
        loop {
            let connected = self.connect().await;
            let end = match connected {
                Ok((outgoing, incoming)) => {
                    backoff.reset();
                    info!("Joined the orchestrator.");
                    let end = self.exchange(outgoing, incoming).await;
                    info!(reason = chain(&end), "Lost the orchestrator.");
                    end
                }
                Err(end) => end,
            };
            debug!(
                reason = chain(&end),
                "The control stream is down, trying again."
            );
            let wait = backoff.next(&mut rng);
            self.taking_reports(sleep(wait)).await;
        }
    }

    async fn connect(
        &mut self,
    ) -> Result<(mpsc::Sender<NodeReport>, Streaming<NodeCommand>), StreamEnd> {
        let (outgoing, stream) = mpsc::channel(OUTGOING_CAP);
        let opening = self.standing.opening();
        let uri = format!("unix:{}", self.socket.display());
        let attempt = async {
            let channel = grpc::connect(&uri, |endpoint| endpoint).await?;
            for report in opening {
                let report = NodeReport {
                    report: Some(report),
                };
                outgoing
                    .try_send(report)
                    .expect("the opening is shorter than the channel");
            }
            let incoming = NodesClient::new(channel)
                .max_decoding_message_size(CONTROL_MESSAGE_BYTES_MAX)
                .join(ReceiverStream::new(stream))
                .await
                .map_err(|status| StreamEnd::Refused(Box::new(status)))?;
            Ok((outgoing, incoming.into_inner()))
        };
        self.taking_reports(timeout(CONNECT_TIMEOUT, attempt))
            .await
            .unwrap_or(Err(StreamEnd::Timeout))
    }

    /// Carries reports and commands until the stream ends. A node that is slow
    /// to take commands can still report.
    async fn exchange(
        &mut self,
        outgoing: mpsc::Sender<NodeReport>,
        mut incoming: Streaming<NodeCommand>,
    ) -> StreamEnd {
        // Reports made while connecting are in `standing`, but came too late
        // for the opening; saying them twice does no harm.
        for report in self.standing.opening().into_iter().skip(1) {
            if send(&outgoing, report).is_err() {
                return StreamEnd::Stuck;
            }
        }
        let mut waiting: Option<Command> = None;
        loop {
            let has_command = waiting.is_some();
            tokio::select! {
                Some(report) = self.inbox.recv() => {
                    self.standing.note_report(&report);
                    if send(&outgoing, report).is_err() {
                        return StreamEnd::Stuck;
                    }
                }
                permit = self.commands.reserve(), if has_command => {
                    // Otherwise the node no longer listens: it is ending.
                    if let (Ok(permit), Some(command)) = (permit, waiting.take()) {
                        permit.send(command);
                    }
                }
                command = incoming.message(), if !has_command => match command {
                    Ok(Some(NodeCommand { command: Some(Command::Query(Query {
                        id,
                        request: Some(query::Request::LogFilter(request)),
                    })) })) => {
                        let reply = Report::Reply(change_log_filter(id, &request));
                        if send(&outgoing, reply).is_err() {
                            return StreamEnd::Stuck;
                        }
                    }
                    Ok(Some(NodeCommand { command: Some(command) })) => {
                        self.standing.note_command(&command);
                        waiting = Some(command);
                    }
                    // A command of a later release.
                    Ok(Some(NodeCommand { command: None })) => {}
                    Ok(None) => return StreamEnd::Closed,
                    Err(status) => return StreamEnd::Broken(Box::new(status)),
                },
            }
        }
    }

    /// Runs `future`, meanwhile taking reports so that the node never waits.
    async fn taking_reports<F: Future>(&mut self, future: F) -> F::Output {
        let mut future = std::pin::pin!(future);
        loop {
            tokio::select! {
                output = &mut future => return output,
                Some(report) = self.inbox.recv() => self.standing.note_report(&report),
            }
        }
    }
}

/// The one query that every node answers in the same way.
fn change_log_filter(id: u64, request: &LogFilterRequest) -> Reply {
    let changed = request
        .filter
        .as_deref()
        .map_or(Ok(()), telemetry::set_filter);
    let error = changed.map_or_else(|error| chain(&error), |()| String::new());
    Reply {
        id,
        answer: Some(reply::Answer::LogFilter(LogFilterResult { error })),
    }
}

/// Sends a report; a heartbeat for which there is no room is left out.
fn send(outgoing: &mpsc::Sender<NodeReport>, report: Report) -> Result<(), StreamEnd> {
    let expendable = matches!(report, Report::Heartbeat(_));
    let report = NodeReport {
        report: Some(report),
    };
    match outgoing.try_send(report) {
        Ok(()) => Ok(()),
        Err(TrySendError::Full(_)) if expendable => Ok(()),
        Err(TrySendError::Full(_) | TrySendError::Closed(_)) => Err(StreamEnd::Stuck),
    }
}

#[cfg(test)]
mod tests;

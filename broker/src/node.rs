//! The broker as a node of its cluster: applies views, reports, stops.

use std::{sync::Arc, time::Duration};

use muster_daemon::{
    Config, NodeArgs, clock,
    control::{ControlHandle, control},
    runtime_dir::orchestrator_socket,
    signals::{Signals, Stop},
};
use muster_proto::{
    CONTROL_VERSION, View,
    control::{
        Heartbeat, Hello, Ready, Role, ViewApplied, heartbeat::Stats, node_command::Command,
        node_report::Report,
    },
};
use tokio::{
    task::JoinSet,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::{
    BrokerError, Listen,
    limits::Limits,
    links::Links,
    listen::{Bound, bind},
    service::LinkService,
    table::Table,
};

/// Between heartbeats, and between two rounds of housekeeping.
const TICK: Duration = Duration::from_secs(1);
/// Links have nothing to finish; this is for the last bytes on their way.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// Serves until a signal comes, or until a part stops that never should.
pub(crate) async fn serve(
    args: NodeArgs,
    config: Config,
    listen: Listen,
) -> Result<(), BrokerError> {
    let mut signals = Signals::listen().map_err(BrokerError::Runtime)?;
    let Bound {
        listener,
        address,
        file,
    } = bind(&args, listen).await?;
    info!(address, "Accepting links.");
    let table = Arc::new(Table::new(Limits::new(&config), config.broker.channels_max));
    let links = Arc::new(Links::default());
    let data_bytes_max = config.limits.message_bytes_max.as_usize();
    let service = LinkService::new(Arc::clone(&table), Arc::clone(&links), data_bytes_max);

    let stop = CancellationToken::new();
    let mut parts = JoinSet::new();
    parts.spawn(link_server(
        service.serve(listener, stop.clone().cancelled_owned()),
    ));
    let socket = orchestrator_socket(&args.runtime_dir);
    let (handle, joined) = control(socket, hello(&args, address));
    parts.spawn(async move {
        joined.await;
        Ok("the control stream")
    });

    let mut node = Node {
        args,
        table,
        links,
        control: handle,
        epoch: None,
    };
    tokio::select! {
        outcome = node.run() => outcome?,
        outcome = parts.join_next() => return Err(stopped(outcome)),
        _ = signals.next() => {}
    }
    info!("Stopping.");
    stop.cancel();
    node.links.stop(clock::now());
    drop(file);
    let ended = timeout(STOP_TIMEOUT, parts.join_next());
    tokio::select! {
        outcome = ended => if outcome.is_err() {
            warn!("Links did not end in time.");
        },
        // A second one: at once.
        Stop::AtOnce | Stop::Graceful = signals.next() => {}
    }
    Ok(())
}

fn hello(args: &NodeArgs, address: String) -> Hello {
    Hello {
        version: CONTROL_VERSION,
        role: Role::Broker.into(),
        slot: args.slot,
        incarnation: args.incarnation,
        pid: std::process::id(),
        release: env!("CARGO_PKG_VERSION").into(),
        address,
        epoch: 0,
    }
}

type Part = Result<&'static str, BrokerError>;

async fn link_server<E>(serve: impl Future<Output = Result<(), E>>) -> Part
where
    E: std::error::Error + Send + Sync + 'static,
{
    let part = "the link server";
    serve
        .await
        .map(|()| part)
        .map_err(|error| BrokerError::PartStopped {
            part,
            source: Some(error.into()),
        })
}

/// Why the broker cannot go on when this part has ended.
fn stopped(part: Option<Result<Part, tokio::task::JoinError>>) -> BrokerError {
    match part {
        Some(Ok(Err(error))) => error,
        Some(Ok(Ok(part))) => BrokerError::PartStopped { part, source: None },
        Some(Err(error)) => BrokerError::PartStopped {
            part: "a task",
            source: Some(error.into()),
        },
        None => BrokerError::PartStopped {
            part: "every task",
            source: None,
        },
    }
}

struct Node {
    args: NodeArgs,
    table: Arc<Table>,
    links: Arc<Links>,
    control: ControlHandle,
    /// Of the view that was applied last.
    epoch: Option<u64>,
}

impl Node {
    async fn run(&mut self) -> Result<(), BrokerError> {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                command = self.control.commands.recv() => match command {
                    Some(Command::View(view)) => self.take_view(view).await,
                    Some(Command::Client(command)) => {
                        debug!(id = command.id, "Ignored a command for workers.");
                    }
                    Some(Command::Drain(_)) => debug!("Ignored a command for workers."),
                    None => return Err(BrokerError::PartStopped {
                        part: "the control stream",
                        source: None,
                    }),
                },
                _ = tick.tick() => self.tick(),
            }
        }
    }

    async fn take_view(&mut self, message: muster_proto::control::View) {
        let view = match View::try_from(message) {
            Ok(view) => view,
            Err(error) => {
                error!(%error, "Refused a view.");
                return;
            }
        };
        let epoch = view.epoch();
        if self.epoch.is_some_and(|known| epoch < known) {
            debug!(epoch, "Ignored a view that is out of date.");
            return;
        }
        let NodeArgs {
            slot, incarnation, ..
        } = self.args;
        let applied = self.table.apply(clock::now(), &view, slot, incarnation);
        info!(
            epoch,
            opened = applied.opened,
            closed = applied.closed,
            kept = applied.kept,
            "Cluster view applied."
        );
        let first = self.epoch.replace(epoch).is_none();
        self.report(Report::ViewApplied(ViewApplied { epoch }))
            .await;
        if first {
            self.report(Report::Ready(Ready {})).await;
        }
    }

    fn tick(&self) {
        let now = clock::now();
        self.table.sweep(now);
        for link in self.links.cut_stuck(now) {
            warn!(link, "Cut a link that made no progress.");
        }
        let mut stats = self.table.stats();
        stats.links = u32::try_from(self.links.len()).unwrap_or(u32::MAX);
        let heartbeat = Report::Heartbeat(Heartbeat {
            stats: Some(Stats::Broker(stats)),
        });
        // One that finds no room is as good as one that comes late.
        let _ = self.control.reports.try_send(heartbeat);
    }

    async fn report(&self, report: Report) {
        // If the control stream has ended, so will the broker, in `serve`.
        let _ = self.control.reports.send(report).await;
    }
}

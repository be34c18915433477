//! The broker as a node of its cluster: applies views, reports, stops.

use std::{sync::Arc, time::Duration};

use muster_daemon::{
    Config, NodeArgs, clock,
    config::{BrokerConfig, Fsync},
    control::{ControlHandle, control},
    descriptors,
    runtime_dir::orchestrator_socket,
    signals::{Signals, Stop},
};
use muster_proto::{
    CONTROL_VERSION, ShardId, View,
    control::{
        Heartbeat, Hello, Ready, Role, ViewApplied, heartbeat::Stats, node_command::Command,
        node_report::Report,
    },
};
use tokio::{
    sync::{Notify, mpsc},
    task::JoinSet,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::{
    BrokerError, Listen,
    journal::Home,
    limits::Limits,
    links::Links,
    listen::{Bound, bind},
    service::LinkService,
    table::{Opening, Source, Table},
};

/// Between heartbeats, and between two rounds of housekeeping.
const TICK: Duration = Duration::from_secs(1);
/// Between two looks at shards that another broker still has.
const HELD_RETRY: Duration = Duration::from_millis(1);
/// Between two looks at shards whose journals could not be opened.
const FAILED_RETRY: Duration = Duration::from_secs(1);
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
    descriptors::raise_limit();
    let home = Home::open(&config.broker, &args.runtime_dir)?;
    info!(dir = %home.dir().display(), "The journal is here.");
    let epoch = home.highest_epoch()?;
    let sync_interval = sync_interval(&config.broker);
    let table = Arc::new(Table::new(
        Limits::new(&config),
        config.broker.channels_max,
        Source::Journal(home),
    ));
    let links = Arc::new(Links::default());
    let data_bytes_max = config.limits.message_bytes_max.as_usize();
    let service = LinkService::new(Arc::clone(&table), Arc::clone(&links), data_bytes_max);

    let stop = CancellationToken::new();
    let mut parts = JoinSet::new();
    parts.spawn(link_server(
        service.serve(listener, stop.clone().cancelled_owned()),
    ));
    let socket = orchestrator_socket(&args.runtime_dir);
    let (handle, joined) = control(socket, hello(&args, address, epoch));
    parts.spawn(async move {
        joined.await;
        Ok("the control stream")
    });

    let (opened_tx, opened) = mpsc::channel(1);
    let views = Arc::new(Notify::new());
    parts.spawn(opener(Arc::clone(&table), Arc::clone(&views), opened_tx));
    if let Some(every) = sync_interval {
        parts.spawn(syncer(Arc::clone(&table), every));
    }
    let mut node = Node {
        args,
        table,
        links,
        control: handle,
        views,
        opened,
        epoch: None,
        reported: None,
    };
    tokio::select! {
        outcome = node.run() => outcome?,
        outcome = parts.join_next() => return Err(stopped(outcome)),
        _ = signals.next() => {}
    }
    info!("Stopping.");
    stop.cancel();
    node.links.stop(clock::now());
    node.table.close(clock::now());
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

fn hello(args: &NodeArgs, address: String, epoch: u64) -> Hello {
    Hello {
        version: CONTROL_VERSION,
        role: Role::Broker.into(),
        slot: args.slot,
        incarnation: args.incarnation,
        pid: std::process::id(),
        release: env!("CARGO_PKG_VERSION").into(),
        address,
        epoch,
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

/// Opens shards after each view, again and again until all of them are open.
///
/// Their journals are read by threads of their own, and those that other brokers
/// hold are waited for, so that links and heartbeats go on meanwhile.
async fn opener(table: Arc<Table>, views: Arc<Notify>, opened: mpsc::Sender<Opening>) -> Part {
    let part = "the opening of shards";
    loop {
        views.notified().await;
        let mut is_first = true;
        loop {
            let its = Arc::clone(&table);
            let look = tokio::task::spawn_blocking(move || its.open_waiting()).await;
            let look = look.map_err(|error| BrokerError::PartStopped {
                part,
                source: Some(error.into()),
            })?;
            if (is_first || look.opened > 0) && opened.send(look).await.is_err() {
                return Ok(part);
            }
            let pause = match look {
                Opening { held: 1.., .. } => HELD_RETRY,
                Opening { failed: 1.., .. } => FAILED_RETRY,
                Opening { .. } => break,
            };
            is_first = timeout(pause, views.notified()).await.is_ok();
        }
    }
}

/// Syncs every shard now and then.
async fn syncer(table: Arc<Table>, every: Duration) -> Part {
    let part = "the syncing of journals";
    let mut tick = interval(every);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let its = Arc::clone(&table);
        let sync = move || ShardId::all().for_each(|shard| its.sync(shard, clock::now));
        tokio::task::spawn_blocking(sync)
            .await
            .map_err(|error| BrokerError::PartStopped {
                part,
                source: Some(error.into()),
            })?;
    }
}

/// Between two looks at what is to be synced; with `always` nothing waits for
/// it but the removal of old segments.
fn sync_interval(config: &BrokerConfig) -> Option<Duration> {
    match config.fsync {
        Fsync::Never => None,
        Fsync::Interval | Fsync::Always => Some(config.fsync_interval),
    }
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
    /// Tells of views, and what came of it.
    views: Arc<Notify>,
    opened: mpsc::Receiver<Opening>,
    /// Of the view that came last.
    epoch: Option<u64>,
    /// Of the view that was reported as applied last.
    reported: Option<u64>,
}

impl Node {
    async fn run(&mut self) -> Result<(), BrokerError> {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                command = self.control.commands.recv() => match command {
                    Some(Command::View(view)) => self.take_view(view),
                    Some(Command::Query(query)) => {
                        debug!(id = query.id, "Ignored a query for workers.");
                    }
                    Some(Command::Drain(_) | Command::HandOver(_) | Command::CallOff(_) | Command::TakePlace(_)) => {
                        debug!("Ignored a command for workers.");
                    }
                    None => return Err(BrokerError::PartStopped {
                        part: "the control stream",
                        source: None,
                    }),
                },
                Some(opening) = self.opened.recv() => self.report_opened(&opening).await,
                _ = tick.tick() => self.tick(),
            }
        }
    }

    fn take_view(&mut self, message: muster_proto::control::View) {
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
            opening = applied.opened,
            closed = applied.closed,
            kept = applied.kept,
            "Cluster view applied."
        );
        self.epoch = Some(epoch);
        self.views.notify_one();
    }

    /// Says that the view is applied once every shard that can be open is.
    async fn report_opened(&mut self, opening: &Opening) {
        if *opening != Opening::default() {
            info!(
                opened = opening.opened,
                held = opening.held,
                failed = opening.failed,
                bytes = opening.bytes,
                publications = opening.publications,
                torn_bytes = opening.torn_bytes,
                anew = opening.anew,
                "Opened shards."
            );
        }
        let Some(epoch) = self.epoch else {
            return;
        };
        if self.reported == Some(epoch) {
            return;
        }
        let is_first = self.reported.replace(epoch).is_none();
        self.report(Report::ViewApplied(ViewApplied { epoch }))
            .await;
        if is_first {
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

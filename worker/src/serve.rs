//! The loop of a worker: waits for whatever comes next and gives it to the
//! engine.

use std::{os::fd::OwnedFd, time::Duration};

use muster_daemon::{
    Config, NodeArgs, cadence,
    config::ShutdownConfig,
    control::{ControlHandle, control},
    exit::chain,
    runtime_dir,
    signals::{Signals, Stop},
};
use muster_proto::{
    CONTROL_VERSION, View,
    control::{
        self as pb, Hello, Query, Ready, Role, ViewApplied, node_command::Command,
        node_report::Report, query::Request, reply::Answer,
    },
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};
use tracing::{debug, error, info};

use crate::{
    WorkerError,
    engine::{Drain, Engine, Pace},
    handover::Handovers,
    link::LinkEvent,
    now,
};

/// How often a worker that ends closes some of its connections.
const DRAIN_TICK: Duration = Duration::from_millis(100);
/// How often those who were too fast are looked at again. What they may do by
/// then they do at once, so that must be little.
const PACE_TICK: Duration = Duration::from_millis(5);
/// Bytes of publications fanned out in one turn, before what they left in the
/// clients' outboxes is written.
const LINK_BYTES_MAX: usize = 256 * 1024;
/// What a batch counts for beside them.
const LINK_EVENT_BYTES: usize = 4 * 1024;
/// The part of the time between two ticks by which one may come early, in a turn
/// that there is anyway.
const TICK_EARLY_PART: u32 = 4;
/// Time between two heartbeats.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// A worker takes clients when its links stand, or after this time without
/// them: then publications wait, but clients need not.
const LINKS_PATIENCE: Duration = Duration::from_secs(2);

/// Where a worker is in its life.
#[derive(Debug)]
enum Phase {
    /// Waits for the first view and the links.
    Starting {
        give_up: Option<Instant>,
    },
    Serving,
    Draining(Drain),
}

/// A running worker: the engine, and what tells it what to do.
struct Worker {
    engine: Engine,
    handovers: Handovers,
    control: ControlHandle,
    shutdown: ShutdownConfig,
    /// Takes clients only when the worker in its slot hands its own over.
    is_successor: bool,
    phase: Phase,
    last_tick: Instant,
    next_pace: Instant,
    next_heartbeat: Instant,
    /// The most that a tick was late since the last heartbeat.
    lag: Duration,
}

/// Serves clients until told to end and every connection is closed.
pub(crate) async fn serve(
    engine: Engine,
    mut link_events: mpsc::Receiver<LinkEvent>,
    offered: mpsc::Receiver<OwnedFd>,
    args: &NodeArgs,
    config: &Config,
) -> Result<(), WorkerError> {
    let mut signals = Signals::listen()?;
    let socket = runtime_dir::orchestrator_socket(&args.runtime_dir);
    let (control, control_task) = control(socket, hello(args));
    let mut control_task = std::pin::pin!(control_task);
    let mut worker = Worker {
        engine,
        handovers: Handovers::new(args, offered),
        control,
        shutdown: config.shutdown.clone(),
        is_successor: args.successor,
        phase: Phase::Starting { give_up: None },
        last_tick: Instant::now(),
        next_pace: Instant::now(),
        next_heartbeat: Instant::now(),
        lag: Duration::ZERO,
    };
    // Kept from turn to turn: a timer that is made anew wakes up the thread that
    // makes it.
    let mut tick = std::pin::pin!(sleep_until(worker.next_tick()));
    while !worker.is_drained() {
        if tick.deadline() != worker.next_tick() {
            tick.as_mut().reset(worker.next_tick());
        }
        let handover_at = worker.next_handover();
        tokio::select! {
            ready = worker.engine.wait() => {
                ready?;
                worker.engine.set_now(now());
                worker.engine.handle_ready();
            }
            Some(event) = link_events.recv() => {
                worker.engine.set_now(now());
                let mut bytes = worker.engine.handle_link(event);
                while bytes < LINK_BYTES_MAX {
                    let Ok(event) = link_events.try_recv() else { break };
                    bytes += LINK_EVENT_BYTES + worker.engine.handle_link(event);
                }
            }
            Some(command) = worker.control.commands.recv() => worker.obey(command),
            () = &mut tick => worker.handle_tick(),
            news = worker.handovers.next() => {
                worker.engine.set_now(now());
                worker.handovers.handle(news, &mut worker.engine);
            }
            () = wait_until(handover_at) => {
                worker.engine.set_now(now());
            }
            () = sleep_until(worker.next_pace), if worker.engine.has_slowed() => {
                worker.engine.set_now(now());
                worker.engine.resume_slowed();
                worker.next_pace = Instant::now() + PACE_TICK;
            }
            stop = signals.next() => match stop {
                Stop::Graceful => worker.begin_drain(),
                Stop::AtOnce => break,
            },
            () = &mut control_task => return Err(WorkerError::ControlEnded),
            () = std::future::ready(()), if worker.engine.has_backlog() => {
                worker.engine.set_now(now());
            }
        }
        worker.finish_turn();
        // The links' and the control stream's tasks have their turn.
        tokio::task::yield_now().await;
    }
    info!("Worker ended.");
    Ok(())
}

impl Worker {
    fn handle_tick(&mut self) {
        let late = Instant::now().duration_since(self.next_tick());
        self.lag = self.lag.max(late);
        self.engine.set_now(now());
        self.engine.handle_tick();
        let now = Instant::now();
        if now >= self.next_heartbeat {
            self.next_heartbeat = now + HEARTBEAT;
            self.report_heartbeat();
        }
        if let Phase::Draining(drain) = &mut self.phase {
            self.engine.go_on_draining(drain);
        }
        self.last_tick = now;
    }

    /// What follows on whatever came.
    fn finish_turn(&mut self) {
        if self.is_tick_near() {
            self.handle_tick();
        }
        self.start_serving();
        self.engine.finish_turn();
        self.go_on_handing_over();
        cadence::hurry(self.handovers.is_under_way());
        self.reply();
    }

    fn next_tick(&self) -> Instant {
        self.last_tick + self.tick_interval()
    }

    fn tick_interval(&self) -> Duration {
        match self.phase {
            Phase::Draining(_) => DRAIN_TICK,
            Phase::Starting { .. } | Phase::Serving => self.engine.tick_interval(),
        }
    }

    /// Whether a tick now saves a turn of its own.
    fn is_tick_near(&self) -> bool {
        let interval = self.tick_interval();
        self.last_tick.elapsed() >= interval - interval / TICK_EARLY_PART
    }

    fn obey(&mut self, command: Command) {
        self.engine.set_now(now());
        match command {
            Command::View(view) => match View::try_from(view) {
                Ok(view) => {
                    let epoch = self.engine.handle_view(view);
                    self.report(Report::ViewApplied(ViewApplied { epoch }));
                    if let Phase::Starting { give_up } = &mut self.phase {
                        give_up.get_or_insert(Instant::now() + LINKS_PATIENCE);
                    }
                }
                Err(error) => error!(%error, "The orchestrator sent a view that makes no sense."),
            },
            Command::Query(Query {
                id,
                request: Some(Request::Reload(reload)),
            }) => self.reload(id, &reload),
            Command::Query(query) => self.engine.operate(query),
            Command::Drain(pb::Drain { within_ms }) => {
                info!(within_ms, "Closing the connections, to end.");
                self.handovers.stop(&mut self.engine);
                let drain = self.engine.begin_to_leave(Duration::from_millis(within_ms));
                self.phase = Phase::Draining(drain);
            }
            Command::HandOver(order) => self.handovers.begin(order, &mut self.engine),
            Command::CallOff(pb::CallOff { id }) => self.handovers.call_off(id, &mut self.engine),
            Command::TakePlace(pb::TakePlace {}) => self.take_place(),
        }
    }

    /// Takes over another configuration, as far as that needs no new process.
    fn reload(&mut self, id: u64, reload: &pb::ReloadConfig) {
        let reloaded = Config::from_toml(&reload.config)
            .map_err(|error| chain(&error))
            .and_then(|config| {
                let taken = self.engine.reconfigure(&config);
                self.shutdown = config.shutdown;
                taken.map_err(|error| chain(&error))
            });
        match &reloaded {
            Ok(()) => info!("Another configuration is in effect."),
            Err(error) => error!(error, "The configuration stays as it is."),
        }
        let error = reloaded.err().unwrap_or_default();
        let answer = Some(Answer::Reload(pb::ReloadResult { error }));
        self.report(Report::Reply(pb::Reply { id, answer }));
    }

    /// Another worker's end leaves the slot to this one.
    fn take_place(&mut self) {
        self.is_successor = false;
        if matches!(self.phase, Phase::Serving) && !self.handovers.is_giving() {
            self.engine.take_place_back();
        }
    }

    fn next_handover(&self) -> Option<Instant> {
        let wait = self.handovers.wake_at()?.since(now().millis);
        Some(Instant::now() + wait)
    }

    fn go_on_handing_over(&mut self) {
        if let Some(report) = self.handovers.finish_turn(&mut self.engine) {
            if report.done {
                // What is decided next is decided by how many are left.
                self.report_heartbeat();
            }
            self.report(Report::HandedOver(report));
        }
    }

    /// Tells operators what has come out meanwhile.
    fn reply(&mut self) {
        for reply in self.engine.take_replies() {
            self.report(Report::Reply(reply));
        }
    }

    /// Takes clients once the cluster is there.
    fn start_serving(&mut self) {
        let Phase::Starting {
            give_up: Some(give_up),
        } = self.phase
        else {
            return;
        };
        if self.engine.is_whole() || Instant::now() >= give_up {
            self.phase = Phase::Serving;
            if !self.is_successor {
                self.engine.start_accepting();
            }
            self.report(Report::Ready(Ready {}));
            info!("Worker takes clients.");
        }
    }

    fn begin_drain(&mut self) {
        info!("Closing the connections.");
        let shutdown = &self.shutdown;
        self.engine.set_now(now());
        self.handovers.stop(&mut self.engine);
        let pace = Pace::GoAway {
            per_second: shutdown.closes_per_second,
            timeout: shutdown.timeout,
        };
        let drain = self.engine.begin_drain(pace);
        self.phase = Phase::Draining(drain);
    }

    fn is_drained(&self) -> bool {
        matches!(&self.phase, Phase::Draining(drain) if self.engine.is_drained(drain))
    }

    fn report_heartbeat(&mut self) {
        let lag = std::mem::take(&mut self.lag);
        self.report(Report::Heartbeat(self.engine.heartbeat(lag)));
    }

    fn report(&self, report: Report) {
        if self.control.reports.try_send(report).is_err() {
            // The orchestrator is away or slow; state is repeated when it is back.
            debug!("Could not report to the orchestrator.");
        }
    }
}

/// Waits for that moment, or for ever.
async fn wait_until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

fn hello(args: &NodeArgs) -> Hello {
    Hello {
        version: CONTROL_VERSION,
        role: Role::Worker.into(),
        slot: args.slot,
        incarnation: args.incarnation,
        pid: std::process::id(),
        release: env!("CARGO_PKG_VERSION").to_owned(),
        address: String::new(),
        epoch: 0,
    }
}

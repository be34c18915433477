//! The running cluster: one task that owns everything the orchestrator knows
//! and obeys its decisions.

mod adopt;
mod brokers;
mod hung;
mod lives;
mod operate;
mod orders;
mod rebalance;
mod reload;
mod scale;
mod serve;
mod update;
mod update_brokers;
mod update_orchestrator;

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use muster_daemon::{
    Config, clock,
    config::{SupervisionConfig, UpdateConfig},
    signals::{Signals, Stop},
};
use muster_proto::control::{self as pb, node_command::Command, node_report::Report};
use muster_wire::Millis;
use rand::rngs::SmallRng;
use rustix::process::{Pid, Signal as Number, kill_process};
use tokio::{
    signal::unix::Signal,
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep},
};
use tracing::{info, warn};

use crate::{
    announce::announce,
    calls::{Calls, Gathered, NotAsked},
    cli::Size,
    console::Console,
    control::{Ending, JoinRefused, Request},
    fleet::Fleet,
    membership::{Joined, Membership, Tell},
    node::{NodeId, Role},
    probe::ProbeError,
    process::Process,
    reexec::Kept,
    reload::ConfigSource,
    service::{Due, Service},
    spawn::{Ended, Spawner},
    state::StateFile,
    supervisor::{Event, Exit, Phase, Resize, TURN_MAX, Turns},
    table,
};

/// What a worker may take beyond `shutdown.timeout` before it is killed.
const WORKER_GRACE: Duration = Duration::from_secs(2);
/// Longest that a broker may take to end.
const BROKER_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest that a killed process may take to be gone; only a process in
/// uninterruptible sleep does.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);
const TABLE_INTERVAL: Duration = Duration::from_secs(1);

/// What the cluster is and how it ends.
#[derive(Debug)]
pub(crate) struct Settings {
    /// The goal; `scale` changes it.
    pub(crate) size: Size,
    pub(crate) listen: SocketAddr,
    pub(crate) path: String,
    pub(crate) runtime_dir: PathBuf,
    pub(crate) shutdown_timeout: Duration,
    /// How long a publication may take before its outcome is unknown.
    pub(crate) publish_timeout: Duration,
    pub(crate) supervision: SupervisionConfig,
    pub(crate) update: UpdateConfig,
    /// Incarnations of this cluster's nodes come after it.
    pub(crate) incarnation: u64,
    /// Somebody started it from a terminal, and it ends with that.
    pub(crate) terminal: bool,
    /// Where a table is wanted.
    pub(crate) table: Option<Console>,
    /// What a program gets that is executed in the place of this one.
    pub(crate) kept: Option<Arc<Kept>>,
    /// Nodes and clients are those of an earlier program of this process.
    pub(crate) is_executed_anew: bool,
    /// Where the configuration can be read again.
    pub(crate) source: ConfigSource,
    /// What nodes are started with.
    pub(crate) config: Config,
}

/// Why a cluster ended otherwise than asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClusterError {
    #[error("{node} does not start: {exit}")]
    DoesNotStart { node: NodeId, exit: Exit },
    #[error("ended at once by a second signal: clients were cut off")]
    CutShort,
    #[error("{} processes could not be killed: {}", pids.len(), pids.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))]
    Unkillable { pids: Vec<u32> },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Some node has never been ready.
    Starting,
    Running,
    /// Clients are being closed.
    EndingWorkers {
        until: Millis,
    },
    EndingBrokers {
        until: Millis,
    },
    /// Everything was killed and must be gone soon.
    Killing {
        until: Millis,
    },
}

/// All roles; brokers before those that need them.
const ROLES: [Role; 3] = [Role::Broker, Role::Worker, Role::Successor];

/// Where the outcome of a query goes; one who gave up needs none.
type Operator = oneshot::Sender<Result<Gathered, NotAsked>>;

/// Everything the orchestrator knows.
#[derive(Debug)]
pub(crate) struct Cluster {
    settings: Settings,
    spawner: Spawner,
    fleet: Fleet,
    membership: Membership,
    /// A change of the number of brokers that is under way.
    resize: Option<Resize>,
    calls: Calls<Operator>,
    orders: orders::Orders,
    /// The update that is under way, or the last one.
    update: Option<update::Run>,
    /// What comes in it after the workers.
    following: Option<update_brokers::Following>,
    /// The end of the one before this process.
    last_update: Option<pb::UpdateStatusResponse>,
    /// It is not told before the nodes are back, or this moment is.
    rejoin_until: Option<Millis>,
    /// It has failed to execute another program in this process.
    is_to_be_renewed: bool,
    rebalance: rebalance::Rebalance,
    /// What an update's failure brings back.
    config_before: Option<Config>,
    /// Workers may have been started with another configuration than they are to
    /// have.
    has_reloaded: bool,
    children: JoinSet<Ended>,
    /// Programs that are asked whether they fit.
    probes: JoinSet<Result<Option<String>, ProbeError>>,
    /// Nodes that an earlier orchestrator started.
    adopted: BTreeMap<NodeId, Arc<Process>>,
    state_file: StateFile,
    service: Service,
    stage: Stage,
    failure: Option<ClusterError>,
    started: Millis,
    turns: Turns,
    rng: SmallRng,
}

impl Cluster {
    pub(crate) fn new(
        settings: Settings,
        spawner: Spawner,
        state_file: StateFile,
        now: Millis,
        rng: SmallRng,
    ) -> Self {
        Self {
            fleet: Fleet::new(settings.size, settings.incarnation, &settings.supervision),
            membership: Membership::new(settings.size.brokers),
            resize: None,
            calls: Calls::after(operate::first_query(settings.incarnation)),
            orders: orders::Orders::after(operate::first_query(settings.incarnation)),
            update: None,
            following: None,
            last_update: None,
            rejoin_until: None,
            is_to_be_renewed: false,
            rebalance: rebalance::Rebalance::default(),
            config_before: None,
            has_reloaded: false,
            settings,
            spawner,
            children: JoinSet::new(),
            probes: JoinSet::new(),
            adopted: BTreeMap::new(),
            state_file,
            service: Service::new(),
            stage: Stage::Starting,
            failure: None,
            started: now,
            turns: Turns::new(now),
            rng,
        }
    }

    /// Starts the nodes and keeps them running until the cluster is to end;
    /// returns once no process is left.
    pub(crate) async fn run(
        mut self,
        mut requests: mpsc::Receiver<Request>,
        mut signals: Signals,
        mut hangup: Signal,
    ) -> Result<(), ClusterError> {
        let mut table = interval(TABLE_INTERVAL);
        table.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let has_table = self.settings.table.is_some();
        // Kept from turn to turn: a timer that is made anew wakes up the thread
        // that makes it.
        let mut turn = std::pin::pin!(sleep(TURN_MAX));
        loop {
            self.advance(clock::now());
            self.save();
            if self.is_over() {
                self.hide_table();
                return self.failure.map_or(Ok(()), Err);
            }
            let wait = self.wake_at().map_or(TURN_MAX, |at| at.since(clock::now()));
            turn.as_mut().reset(Instant::now() + wait.min(TURN_MAX));
            tokio::select! {
                stop = signals.next() => self.stop(clock::now(), stop),
                _ = hangup.recv() => self.hang_up(clock::now()),
                Some(request) = requests.recv() => self.handle(clock::now(), request),
                Some(ended) = self.children.join_next() => match ended {
                    Ok(ended) => self.ended(clock::now(), ended),
                    Err(error) => warn!(%error, "A task that attends a node ended."),
                },
                // One that was cut off is asked by an update that is over.
                Some(Ok(found)) = self.probes.join_next() => self.looked_at(found),
                due = self.service.due() => match due {
                    Due::Beat => self.beat(),
                    Due::Orphans => self.reap(),
                },
                _ = table.tick(), if has_table => self.show_table(clock::now()),
                () = &mut turn => {}
            }
        }
    }

    /// Does what is due.
    fn advance(&mut self, now: Millis) {
        self.forgive_silence(now);
        for role in ROLES {
            for id in self.fleet.ids(role) {
                self.feed(now, id, Event::Woken);
            }
        }
        self.await_rejoin(now);
        self.advance_update(now);
        self.renew(now);
        self.advance_rebalance();
        self.set_brokers_aside(now);
        self.retire_workers();
        self.resize_brokers(now);
        let tells = self.membership.time(now);
        self.tell(tells);
        let late = self.calls.time(now);
        operate::conclude(late);
        self.advance_stage(now);
    }

    fn advance_stage(&mut self, now: Millis) {
        let ready = |phase| matches!(phase, Phase::Ready { .. });
        let stopped = |phase| phase == Phase::Stopped;
        match self.stage {
            Stage::Starting
                if self.fleet.all(Role::Broker, ready)
                    && self.fleet.all(Role::Worker, ready)
                    && self.membership.is_published() =>
            {
                self.stage = Stage::Running;
                announce(&self.settings);
                self.service.ready();
            }
            Stage::EndingWorkers { .. }
                if self.fleet.all(Role::Worker, stopped)
                    && self.fleet.all(Role::Successor, stopped) =>
            {
                let until = now + BROKER_TIMEOUT;
                self.stage = Stage::EndingBrokers { until };
                self.stop_role(now, Role::Broker);
            }
            Stage::EndingWorkers { until } | Stage::EndingBrokers { until } if until <= now => {
                self.kill_all(now);
            }
            Stage::Killing { until } if until <= now => {
                let nodes = self.fleet.nodes();
                let lives = nodes.filter_map(|(_, node)| node.slot.life());
                let pids = lives.map(|life| life.pid).collect();
                self.failure = Some(ClusterError::Unkillable { pids });
                self.children.abort_all();
            }
            Stage::Starting
            | Stage::Running
            | Stage::EndingWorkers { .. }
            | Stage::EndingBrokers { .. }
            | Stage::Killing { .. } => {}
        }
    }

    fn is_over(&self) -> bool {
        let stopped = |phase| phase == Phase::Stopped;
        let all = ROLES.iter().all(|role| self.fleet.all(*role, stopped));
        let given_up = matches!(self.failure, Some(ClusterError::Unkillable { .. }));
        all || given_up
    }

    fn wake_at(&self) -> Option<Millis> {
        let stage = match self.stage {
            Stage::Starting | Stage::Running => None,
            Stage::EndingWorkers { until }
            | Stage::EndingBrokers { until }
            | Stage::Killing { until } => Some(until),
        };
        let times = [
            stage,
            self.fleet.wake_at(),
            self.membership.wake_at(),
            self.resize.and_then(|resize| resize.wake_at()),
            self.calls.wake_at(),
            self.update_wake_at(),
            self.following_wake_at(),
        ];
        times.into_iter().flatten().min()
    }

    fn handle(&mut self, now: Millis, request: Request) {
        match request {
            Request::Join {
                mut node,
                pid,
                stream,
                commands,
                answer,
            } => {
                let life = (node.incarnation, pid);
                let joined = self.fleet.join(node.id, life, stream, commands);
                // A node that is gone again also ends its stream.
                let _ = answer.send(joined.map(|_| ()).ok_or(JoinRefused));
                match joined {
                    Some(id) => {
                        node.id = id;
                        self.joined(now, &node);
                    }
                    None => {
                        warn!(node = %node.id, pid, "Refused a node that was not started here.");
                    }
                }
            }
            Request::Report { stream, report } => {
                if let Some(id) = self.fleet.of_stream(stream) {
                    self.reported(now, id, report);
                }
            }
            Request::Leave { stream } => {
                if let Some(id) = self.fleet.of_stream(stream) {
                    self.leave(id);
                }
            }
            Request::Status { answer } => {
                // An operator that gave up needs no answer, here and below.
                let _ = answer.send(self.status(now));
            }
            Request::Down { how, answer } => {
                match how {
                    Ending::GoAway => self.stop(now, Stop::Graceful),
                    Ending::Drain(within) => self.drain(now, within),
                }
                let _ = answer.send(());
            }
            Request::Query {
                request,
                whom,
                answer,
            } => self.query(now, &request, whom, answer),
            Request::Scale { goal, answer } => {
                let _ = answer.send(self.scale(now, goal));
            }
            Request::Update { wish, answer } => {
                let _ = answer.send(self.begin_update(now, wish));
            }
            Request::AbortUpdate { answer } => {
                let _ = answer.send(self.abort_update(now));
            }
            Request::Reload { answer } => {
                let _ = answer.send(self.reload());
            }
            Request::Rebalance { answer } => self.begin_rebalance(now, answer),
            Request::UpdateStatus { answer } => {
                let _ = answer.send(self.update_status(now));
            }
        }
    }

    fn joined(&mut self, now: Millis, node: &Joined) {
        self.tell_log_filter(node.id);
        self.tell_config(node.id);
        // Nodes that are ending need no view.
        if matches!(self.stage, Stage::Starting | Stage::Running) {
            let tells = self.membership.joined(now, node);
            self.tell(tells);
            self.remind_to_drain(now, node.id);
            self.remind_of_orders(node.id);
            if node.id.role == Role::Worker {
                self.tell_to_take_place(node.id.slot);
            }
        }
    }

    fn reported(&mut self, now: Millis, id: NodeId, report: Report) {
        match report {
            // It was said when the stream began.
            Report::Hello(_) => {}
            Report::Ready(pb::Ready {}) => {
                let life = self.fleet.get_mut(id).and_then(|node| node.slot.life());
                if let Some(life) = life {
                    let incarnation = life.incarnation;
                    self.feed(now, id, Event::Ready { incarnation });
                }
            }
            Report::Heartbeat(heartbeat) => {
                if let Some(node) = self.fleet.get_mut(id) {
                    node.heartbeat(now, heartbeat);
                }
                self.feed(now, id, Event::Heartbeat);
            }
            Report::ViewApplied(applied) => {
                if let Some(node) = self.fleet.get_mut(id) {
                    node.view_applied(applied.epoch);
                }
                let tells = self.membership.applied(id, applied.epoch);
                self.tell(tells);
            }
            Report::Reply(reply) => operate::conclude(self.calls.answered(id, reply)),
            Report::HandedOver(report) => self.handed_over(now, &report),
        }
    }

    fn leave(&mut self, id: NodeId) {
        self.fleet.leave(id);
        let tells = self.membership.left(id);
        self.tell(tells);
        operate::conclude(self.calls.left(id));
    }

    fn stop(&mut self, now: Millis, stop: Stop) {
        match (stop, self.stage) {
            (Stop::Graceful, Stage::Starting | Stage::Running) => {
                let timeout = self.settings.shutdown_timeout;
                info!(?timeout, "Ending: closing the clients.");
                self.begin_end(now);
            }
            (Stop::Graceful, Stage::EndingWorkers { .. } | Stage::EndingBrokers { .. }) => {}
            (
                Stop::AtOnce,
                Stage::Starting
                | Stage::Running
                | Stage::EndingWorkers { .. }
                | Stage::EndingBrokers { .. },
            ) => {
                self.failure.get_or_insert(ClusterError::CutShort);
                self.kill_all(now);
            }
            (Stop::Graceful | Stop::AtOnce, Stage::Killing { .. }) => {}
        }
    }

    /// The terminal is gone, or somebody asks for a reload.
    fn hang_up(&mut self, now: Millis) {
        if self.settings.terminal {
            self.stop(now, Stop::Graceful);
        } else {
            self.reload_for_nobody();
        }
    }

    fn begin_end(&mut self, now: Millis) {
        let until = now + self.settings.shutdown_timeout + WORKER_GRACE;
        self.stage = Stage::EndingWorkers { until };
        self.service.stopping();
        self.stop_role(now, Role::Worker);
        self.stop_role(now, Role::Successor);
    }

    fn stop_role(&mut self, now: Millis, role: Role) {
        for id in self.fleet.ids(role) {
            self.feed(now, id, Event::Stop);
        }
    }

    fn kill_all(&mut self, now: Millis) {
        let until = now + KILL_TIMEOUT;
        self.stage = Stage::Killing { until };
        self.service.stopping();
        for role in ROLES {
            self.stop_role(now, role);
        }
        for (id, node) in self.fleet.nodes() {
            if let Some(life) = node.slot.life() {
                warn!(node = %id, pid = life.pid, "Killing a node.");
                self.signal(id, life.pid, Number::KILL);
            }
        }
    }

    fn tell(&mut self, tells: Vec<Tell>) {
        for tell in tells {
            let ids = match tell {
                Tell::One(id) => vec![id],
                Tell::All(role) => {
                    self.save();
                    let epoch = self.membership.view().epoch();
                    info!(epoch, to = %role, "Telling the view.");
                    let also = (role == Role::Worker).then_some(Role::Successor);
                    let of_role = |role| {
                        let slots = self.fleet.joined(role).into_iter();
                        slots.map(move |slot| NodeId { role, slot })
                    };
                    let roles = [role].into_iter().chain(also);
                    roles.flat_map(of_role).collect()
                }
            };
            for id in ids {
                let view = Command::View(self.membership.view().into());
                if !self.fleet.send(id, view) {
                    // It joins again and is then told.
                    warn!(node = %id, "A node does not take its view.");
                    self.leave(id);
                }
            }
        }
    }

    fn status(&self, now: Millis) -> pb::StatusResponse {
        let uptime = now.since(self.started).as_millis();
        let nodes = self.fleet.nodes();
        pb::StatusResponse {
            listen: self.settings.listen.to_string(),
            path: self.settings.path.clone(),
            epoch: self.membership.view().epoch(),
            pid: std::process::id(),
            release: env!("CARGO_PKG_VERSION").into(),
            uptime_ms: u64::try_from(uptime).unwrap_or(u64::MAX),
            nodes: nodes.map(|(id, node)| node.status(id, now)).collect(),
            scaling: self.scaling(),
        }
    }

    fn show_table(&self, now: Millis) {
        if let Some(console) = &self.settings.table {
            let rates = self.fleet.nodes().map(|(_, node)| node.rate());
            let rates: Vec<_> = rates.collect();
            console.table(table::live(&self.status(now), &rates));
        }
    }

    fn hide_table(&self) {
        if let Some(console) = &self.settings.table {
            console.table(Vec::new());
        }
    }
}

/// Signals a child that has not been reaped; one that just was is fine too.
fn signal(pid: u32, signal: Number) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    if let Some(pid) = pid
        && let Err(error) = kill_process(pid, signal)
    {
        info!(pid = pid.as_raw_nonzero().get(), %error, "A node was gone already.");
    }
}

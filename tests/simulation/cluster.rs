//! The simulated cluster: nodes, the paths between them, and what may happen to
//! either. Which of it happens when is the scheduler's business.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use muster_broker::simulation::{BrokerOptions, Journal, SimBroker};
use muster_proto::{
    BrokerNode, LINK_VERSION, View,
    link::{BrokerBatch, Hello, WorkerBatch},
};
use muster_wire::{
    Millis,
    session::{Rate, Rules},
};
use muster_worker::simulation::{SimWorker, WorkerOptions};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use crate::{
    checker::{Checker, Violation},
    client::Client,
    reads::Read,
    scenario::Scenario,
    transcript::Transcript,
};

/// As the engine's and the broker's clocks tick.
pub(crate) const WORKER_TICK: Duration = Duration::from_millis(100);
pub(crate) const BROKER_TICK: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) scenario: Scenario,
    pub(crate) rng: StdRng,
    pub(crate) now: Millis,
    pub(crate) worker_tick_at: Millis,
    pub(crate) broker_tick_at: Millis,
    pub(crate) workers: Vec<Worker>,
    /// By slot.
    pub(crate) brokers: BTreeMap<u32, Broker>,
    /// By id, which only grows.
    pub(crate) links: BTreeMap<u64, Link>,
    pub(crate) next_link: u64,
    /// On their way, in no order.
    pub(crate) reads: Vec<Read>,
    pub(crate) next_connection: u64,
    pub(crate) clients: Vec<Client>,
    pub(crate) journal: Journal,
    /// Bytes that still fit on each disk, if that is limited.
    pub(crate) room: Option<u64>,
    /// The orchestrator's newest view.
    pub(crate) view: View,
    /// The slots that are in it.
    pub(crate) in_view: BTreeSet<u32>,
    pub(crate) incarnations: u64,
    pub(crate) checker: Checker,
    pub(crate) transcript: Transcript,
}

#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) sim: SimWorker,
    /// Views on their way.
    pub(crate) control: VecDeque<View>,
    /// The newest view it has.
    pub(crate) view: View,
    /// The link to each slot, standing or being made.
    pub(crate) links: BTreeMap<u32, u64>,
}

/// A slot for brokers.
#[derive(Debug)]
pub(crate) struct Broker {
    pub(crate) incarnation: u64,
    /// The process, while it lives.
    pub(crate) sim: Option<SimBroker>,
    pub(crate) control: VecDeque<View>,
}

/// A link with what is on its way on it.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) worker: usize,
    pub(crate) slot: u32,
    pub(crate) incarnation: u64,
    pub(crate) worker_side: WorkerSide,
    pub(crate) broker_side_open: bool,
    /// Carries nothing new; either end notices when it does.
    pub(crate) is_cut: bool,
    pub(crate) to_broker: VecDeque<WorkerBatch>,
    pub(crate) to_worker: VecDeque<BrokerBatch>,
    pub(crate) credits: VecDeque<u64>,
    /// Bytes handled by the worker and not yet credited.
    pub(crate) owed: u64,
    /// Bytes the broker has sent beyond the credit it was given.
    pub(crate) uncredited: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WorkerSide {
    Connecting,
    Up,
    Closed,
}

impl Cluster {
    pub(crate) fn new(scenario: &Scenario, seed: u64, keep_transcript: bool) -> Self {
        let clients = (0..scenario.clients).map(|index| Client {
            worker: index % scenario.workers,
            connection: None,
        });
        let mut cluster = Self {
            rng: StdRng::seed_from_u64(seed),
            now: Millis(0),
            worker_tick_at: Millis(0) + WORKER_TICK,
            broker_tick_at: Millis(0) + BROKER_TICK,
            workers: (0..scenario.workers)
                .map(|_| Worker::new(scenario))
                .collect(),
            brokers: BTreeMap::new(),
            links: BTreeMap::new(),
            next_link: 1,
            reads: Vec::new(),
            next_connection: 1,
            clients: clients.collect(),
            journal: Journal::default(),
            room: None,
            view: View::default(),
            in_view: (1..=scenario.brokers).collect(),
            incarnations: 0,
            checker: Checker::new(scenario),
            transcript: Transcript::new(keep_transcript),
            scenario: scenario.clone(),
        };
        for slot in 1..=scenario.brokers {
            cluster.start_broker(slot);
        }
        cluster.publish_view();
        cluster
    }

    /// A broker process starts in a slot, with nothing but the journal.
    pub(crate) fn start_broker(&mut self, slot: u32) {
        self.incarnations += 1;
        let options = broker_options(&self.scenario);
        let broker = Broker {
            incarnation: self.incarnations,
            sim: Some(SimBroker::new(slot, self.incarnations, &options)),
            control: VecDeque::new(),
        };
        self.brokers.insert(slot, broker);
    }

    /// A broker process dies; its links end, and what was on them is lost.
    pub(crate) fn kill_broker(&mut self, slot: u32) {
        let Some(broker) = self.brokers.get_mut(&slot) else {
            return;
        };
        broker.sim = None;
        broker.control.clear();
        self.journal.release(slot, broker.incarnation);
        let links = self.links.values_mut();
        for link in links.filter(|link| link.slot == slot) {
            link.is_cut = true;
            link.broker_side_open = false;
            link.to_broker.clear();
            link.credits.clear();
        }
    }

    /// A worker process dies, and with it every connection it has. The next one
    /// knows nothing but the newest view, which is on its way.
    pub(crate) fn restart_worker(&mut self, index: usize) {
        for client in self.clients.iter_mut().filter(|it| it.worker == index) {
            if let Some(connection) = client.connection.take() {
                self.checker.left(connection.serial);
            }
        }
        for link in self.links.values_mut().filter(|it| it.worker == index) {
            link.close_worker_side();
        }
        self.drop_reads_of(index);
        self.checker.unconfirmed(index, |_| true);
        let mut worker = Worker::new(&self.scenario);
        worker.control.push_back(self.view.clone());
        self.workers[index] = worker;
    }

    /// The orchestrator makes the next view and sends it to every node.
    pub(crate) fn publish_view(&mut self) {
        let nodes: Vec<BrokerNode> = self
            .in_view
            .iter()
            .map(|slot| BrokerNode {
                slot: *slot,
                incarnation: self.brokers[slot].incarnation,
                address: format!("unix:/{slot}"),
            })
            .collect();
        self.view = View::next(&self.view, nodes);
        for worker in &mut self.workers {
            worker.control.push_back(self.view.clone());
        }
        for broker in self.brokers.values_mut() {
            if broker.sim.is_some() {
                broker.control.push_back(self.view.clone());
            }
        }
    }

    /// A worker hears of a view.
    pub(crate) fn worker_hears_view(&mut self, index: usize, view: View) {
        let worker = &mut self.workers[index];
        let moved = |channel: usize| {
            let shard = muster_proto::shard_of(crate::client::channel_name(channel));
            view.shard_epoch(shard) != worker.view.shard_epoch(shard)
        };
        if view.epoch() > worker.view.epoch() {
            self.checker.unconfirmed(index, moved);
            worker.view = view.clone();
        }
        let change = worker.sim.handle_view(view);
        let started = change.started.iter().map(|node| node.slot);
        for slot in started.chain(change.stopped.iter().copied()) {
            if let Some(id) = worker.links.remove(&slot)
                && let Some(link) = self.links.get_mut(&id)
            {
                link.close_worker_side();
            }
        }
    }

    /// A worker calls a broker of its view that it has no link to. Returns false
    /// if that broker cannot be reached.
    pub(crate) fn connect(&mut self, index: usize, slot: u32) -> Result<bool, Violation> {
        let worker = &mut self.workers[index];
        let node = worker.view.brokers().iter().find(|node| node.slot == slot);
        let (Some(node), Some(broker)) = (node, self.brokers.get_mut(&slot)) else {
            return Ok(false);
        };
        let Some(sim) = &mut broker.sim else {
            return Ok(false);
        };
        if node.incarnation != broker.incarnation || worker.links.contains_key(&slot) {
            return Ok(false);
        }
        let id = self.next_link;
        self.next_link += 1;
        let hello = Hello {
            version: LINK_VERSION,
            link: id,
            worker_slot: u32::try_from(index).unwrap_or_default(),
            worker_incarnation: 1,
            credit_bytes: self.scenario.credit_bytes,
        };
        sim.open_link(&hello, self.now)
            .map_err(|error| Violation(error.to_string()))?;
        worker.links.insert(slot, id);
        self.links.insert(
            id,
            Link {
                worker: index,
                slot,
                incarnation: broker.incarnation,
                worker_side: WorkerSide::Connecting,
                broker_side_open: true,
                is_cut: false,
                to_broker: VecDeque::new(),
                to_worker: VecDeque::new(),
                credits: VecDeque::new(),
                owed: 0,
                uncredited: 0,
            },
        );
        Ok(true)
    }

    /// A link breaks. Of what is on its way some may still arrive, until the end
    /// it goes to notices.
    pub(crate) fn cut(&mut self, id: u64) {
        let (rng, links) = (&mut self.rng, &mut self.links);
        if let Some(link) = links.get_mut(&id) {
            link.is_cut = true;
            link.to_broker
                .truncate(rng.random_range(0..=link.to_broker.len()));
            link.to_worker
                .truncate(rng.random_range(0..=link.to_worker.len()));
            link.credits.clear();
        }
    }

    /// The worker notices that a link is gone.
    pub(crate) fn worker_notices(&mut self, id: u64) {
        let Some(link) = self.links.get_mut(&id) else {
            return;
        };
        let (index, slot, was) = (link.worker, link.slot, link.worker_side);
        if was == WorkerSide::Closed {
            return;
        }
        link.close_worker_side();
        let worker = &mut self.workers[index];
        worker.links.remove(&slot);
        if was == WorkerSide::Up {
            let view = &worker.view;
            self.checker.unconfirmed(index, |channel| {
                let shard = muster_proto::shard_of(crate::client::channel_name(channel));
                view.owner(shard).is_some_and(|owner| owner.slot == slot)
            });
            worker.sim.handle_link_down(slot);
        }
    }

    /// The broker notices that a link is gone.
    pub(crate) fn broker_notices(&mut self, id: u64) {
        let Some(link) = self.links.get_mut(&id) else {
            return;
        };
        link.is_cut = true;
        link.broker_side_open = false;
        link.to_broker.clear();
        link.credits.clear();
        if let Some(sim) = live(&mut self.brokers, link) {
            sim.drop_link(id, self.now);
        }
    }

    /// The clock goes on; what is due is done.
    pub(crate) fn advance(&mut self, by: Duration) -> Result<(), Violation> {
        self.now = self.now + by;
        if self.now >= self.worker_tick_at {
            self.worker_tick_at = self.now + WORKER_TICK;
            for index in 0..self.workers.len() {
                self.workers[index].sim.handle_tick(self.now);
                self.end_worker_turn(index)?;
                self.check_bounds(index)?;
            }
            self.check_time_outs()?;
        }
        if self.now >= self.broker_tick_at {
            self.broker_tick_at = self.now + BROKER_TICK;
            for broker in self.brokers.values_mut() {
                if let Some(sim) = &broker.sim {
                    sim.handle_tick(self.now);
                }
            }
        }
        Ok(())
    }

    fn check_time_outs(&self) -> Result<(), Violation> {
        let grace = WORKER_TICK * 2 + Duration::from_millis(self.scenario.step_ms);
        for client in &self.clients {
            let connection = client.connection.iter();
            for call in connection.flat_map(|connection| connection.calls()) {
                if self.checker.is_overdue(call, self.now, grace) {
                    return Err(Violation(format!("{call:?} was not answered in time")));
                }
            }
        }
        Ok(())
    }
}

impl Worker {
    fn new(scenario: &Scenario) -> Self {
        Self {
            sim: SimWorker::new(worker_options(scenario)),
            control: VecDeque::new(),
            view: View::default(),
            links: BTreeMap::new(),
        }
    }
}

impl Link {
    pub(crate) fn is_over(&self) -> bool {
        self.worker_side == WorkerSide::Closed && !self.broker_side_open
    }

    fn close_worker_side(&mut self) {
        self.worker_side = WorkerSide::Closed;
        self.is_cut = true;
        self.to_worker.clear();
    }
}

/// The process at the broker's end of a link, if it still lives.
pub(crate) fn live<'b>(
    brokers: &'b mut BTreeMap<u32, Broker>,
    link: &Link,
) -> Option<&'b mut SimBroker> {
    brokers
        .get_mut(&link.slot)
        .filter(|broker| broker.incarnation == link.incarnation)
        .and_then(|broker| broker.sim.as_mut())
}

fn worker_options(scenario: &Scenario) -> WorkerOptions {
    WorkerOptions {
        rules: Rules {
            handshake_timeout: Duration::from_secs(3600),
            ping_interval: Duration::from_millis(700),
            pong_timeout: Duration::from_secs(30),
            channels_max: 100,
            packets: Rate::new(1000, 10_000),
            subscribes: Rate::new(1000, 10_000),
        },
        window_bytes: scenario.window_bytes,
        publish_timeout: scenario.publish_timeout,
        has_history: scenario.history.is_some(),
        history_bytes_max: scenario.history_bytes_max,
        broken: scenario.broken.worker,
    }
}

fn broker_options(scenario: &Scenario) -> BrokerOptions {
    BrokerOptions {
        tail_age: scenario.tail_age,
        history: scenario.history,
        tail_bytes_max: scenario.tail_bytes_max,
        key_window: scenario.key_window,
        data_bytes_max: 1 << 20,
        is_durable: scenario.durable,
        journal_bytes_max: 1 << 30,
        shards: (0..scenario.channels)
            .map(|channel| muster_proto::shard_of(crate::client::channel_name(channel)))
            .collect(),
        broken: scenario.broken.broker,
    }
}

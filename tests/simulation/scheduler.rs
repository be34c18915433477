//! What happens next: one event after another, chosen by the scenario's weights
//! among those that can happen. Everything comes from one seed.

use std::time::Duration;

use rand::RngExt as _;

use crate::{
    checker::Violation,
    cluster::{Cluster, WorkerSide},
    positions::Question,
    scenario::Weights,
};

/// Tries to find something that can happen.
const TRIES: usize = 20;
/// Of those who subscribe, how many want positions; of those, how many go on from
/// one that they have.
const FOLLOWING: f64 = 0.5;
const RESUMING: f64 = 0.8;
/// How often a client that says something reads a history, too.
const READING: f64 = 0.2;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Client,
    Uplink,
    Leave,
    WorkerSends,
    BrokerReceives,
    BrokerSends,
    WorkerReceives,
    Credit,
    Read,
    Connect,
    Cut,
    Notice,
    HearView,
    ChangeView,
    Kill,
    Restart,
    RestartWorker,
    Disks,
    LosePower,
}

fn choices(weights: &Weights) -> [(Kind, u32); 19] {
    [
        (Kind::Client, weights.client),
        (Kind::Uplink, weights.uplink),
        (Kind::Leave, weights.leave),
        (Kind::WorkerSends, weights.worker_sends),
        (Kind::BrokerReceives, weights.broker_receives),
        (Kind::BrokerSends, weights.broker_sends),
        (Kind::WorkerReceives, weights.worker_receives),
        (Kind::Credit, weights.credit),
        (Kind::Read, weights.read),
        (Kind::Connect, weights.connect),
        (Kind::Cut, weights.cut),
        (Kind::Notice, weights.notice),
        (Kind::HearView, weights.hear_view),
        (Kind::ChangeView, weights.change_view),
        (Kind::Kill, weights.kill),
        (Kind::Restart, weights.restart),
        (Kind::RestartWorker, weights.restart_worker),
        (Kind::Disks, weights.disks),
        (Kind::LosePower, weights.lose_power),
    ]
}

impl Cluster {
    /// Lets one thing happen.
    pub(crate) fn step(&mut self) -> Result<(), Violation> {
        let pause = self.rng.random_range(0..=self.scenario.step_ms);
        self.advance(Duration::from_millis(pause))?;
        for _ in 0..TRIES {
            let kind = self.pick_kind();
            if self.happen(kind)? {
                return Ok(());
            }
        }
        Ok(())
    }

    fn pick_kind(&mut self) -> Kind {
        let choices = choices(&self.scenario.weights);
        let total = choices.iter().map(|(_, weight)| weight).sum();
        let mut point = self.rng.random_range(0..total);
        for (kind, weight) in choices {
            if point < weight {
                return kind;
            }
            point -= weight;
        }
        Kind::Client
    }

    /// Returns false if nothing of this kind can happen.
    fn happen(&mut self, kind: Kind) -> Result<bool, Violation> {
        match kind {
            Kind::Client => Ok(self.client_acts()),
            Kind::Uplink => self.any_client(Self::uplink),
            Kind::Leave => self.any_client(Self::client_leaves),
            Kind::WorkerSends => self.any_link(|it, id| Ok(it.worker_sends(id))),
            Kind::BrokerReceives => self.any_link(Self::broker_receives),
            Kind::BrokerSends => self.any_link(Self::broker_sends),
            Kind::WorkerReceives => self.any_link(Self::worker_receives),
            Kind::Credit => self.any_link(|it, id| Ok(it.credit(id))),
            Kind::Read => self.read_goes_on(),
            Kind::Connect => self.connect_somewhere(),
            Kind::Cut => self.any_link(|it, id| Ok(it.cut_if_whole(id))),
            Kind::Notice => self.any_link(|it, id| Ok(it.one_end_notices(id))),
            Kind::HearView => self.a_node_hears_of_a_view(),
            Kind::ChangeView => Ok(self.change_view()),
            Kind::Kill => self.kill_somewhere(),
            Kind::Disks => Ok(self.fill_or_free_disks()),
            Kind::LosePower => {
                self.lose_power();
                Ok(true)
            }
            Kind::Restart => Ok(self.restart_somewhere()),
            Kind::RestartWorker => Ok(self.restart_a_worker()),
        }
    }

    /// The first of the links, from a random one on, of which something happens.
    fn any_link(
        &mut self,
        mut happen: impl FnMut(&mut Self, u64) -> Result<bool, Violation>,
    ) -> Result<bool, Violation> {
        let mut ids: Vec<u64> = self.links.keys().copied().collect();
        if ids.is_empty() {
            return Ok(false);
        }
        let first = self.rng.random_range(0..ids.len());
        ids.rotate_left(first);
        for id in ids {
            if happen(self, id)? {
                self.links.retain(|_, link| !link.is_over());
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn any_client(
        &mut self,
        mut happen: impl FnMut(&mut Self, usize) -> Result<bool, Violation>,
    ) -> Result<bool, Violation> {
        let count = self.clients.len();
        let first = self.rng.random_range(0..count);
        for index in (0..count).map(|step| (first + step) % count) {
            if happen(self, index)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// A client connects, subscribes, unsubscribes or publishes.
    fn client_acts(&mut self) -> bool {
        let client = self.rng.random_range(0..self.clients.len());
        if self.clients[client].connection.is_none() {
            let random = self.rng.random();
            self.client_connects(client, random);
            return true;
        }
        let channel = self.rng.random_range(0..self.scenario.channels);
        let Some(connection) = &mut self.clients[client].connection else {
            return false;
        };
        if !connection.has_room() {
            return false;
        }
        let toggles = match self.rng.random_range(0..100) {
            0..22 => true,
            22..30 => !connection.wants.contains(&channel),
            _ => false,
        };
        let mut packets = Vec::new();
        if toggles {
            let wants = connection.wants.contains(&channel);
            let follows = !wants && self.scenario.has_followers && self.rng.random_bool(FOLLOWING);
            packets.push(match (wants, follows) {
                (true, _) => connection.unsubscribe(channel),
                (false, true) => {
                    let known = self.checker.positions.known(client, channel);
                    let since = known.filter(|_| self.rng.random_bool(RESUMING));
                    connection.follow(channel, since)
                }
                (false, false) => connection.subscribe(channel),
            });
        }
        if self.scenario.history.is_some() && self.rng.random_bool(READING) {
            let known = self.checker.positions.known(client, channel);
            packets.push(connection.read(Question {
                channel,
                since: known.filter(|_| self.rng.random_bool(0.5)),
                limit: self.rng.random_range(1..=12),
                newest_first: self.rng.random_bool(0.5),
            }));
        }
        let publications = match self.rng.random_range(0..10) {
            0..7 if toggles => 0,
            0..8 => 1,
            _ => self.rng.random_range(1..=5),
        };
        for _ in 0..publications {
            let id = self.checker.said(connection.serial, channel);
            let bytes = self.rng.random_range(self.scenario.data_bytes.clone());
            let acked = self.rng.random_bool(0.8);
            packets.push(connection.publish(channel, id, bytes, acked));
        }
        if packets.is_empty() {
            return false;
        }
        if self.rng.random_bool(0.5) {
            connection.say(packets);
        } else {
            packets
                .into_iter()
                .for_each(|packet| connection.say(vec![packet]));
        }
        true
    }

    fn connect_somewhere(&mut self) -> Result<bool, Violation> {
        let found = self.any_link(|it, id| Ok(it.worker_hears_up(id)))?;
        if found {
            return Ok(true);
        }
        let workers = self.workers.len();
        let first = self.rng.random_range(0..workers);
        for index in (0..workers).map(|step| (first + step) % workers) {
            let slots: Vec<u32> = self.brokers.keys().copied().collect();
            for slot in slots {
                if self.connect(index, slot)? {
                    let line = || format!("worker {index} calls broker {slot}");
                    self.transcript.line(self.now, line);
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    fn cut_if_whole(&mut self, id: u64) -> bool {
        if self.links.get(&id).is_none_or(|link| link.is_cut) {
            return false;
        }
        self.cut(id);
        self.transcript.fault("link cut");
        self.transcript
            .line(self.now, || format!("link {id} breaks"));
        true
    }

    fn one_end_notices(&mut self, id: u64) -> bool {
        let Some(link) = self.links.get(&id).filter(|link| link.is_cut) else {
            return false;
        };
        let is_workers = link.worker_side != WorkerSide::Closed
            && (!link.broker_side_open || self.rng.random_bool(0.5));
        if is_workers {
            self.worker_notices(id);
        } else {
            self.broker_notices(id);
        }
        self.transcript.line(self.now, || {
            let end = if is_workers { "worker" } else { "broker" };
            format!("the {end} of link {id} notices that it is gone")
        });
        true
    }

    /// Mostly the next view; now and then a later one first, or one twice.
    fn a_node_hears_of_a_view(&mut self) -> Result<bool, Violation> {
        let slots: Vec<u32> = self.brokers.keys().copied().collect();
        let nodes = self.workers.len() + slots.len();
        let first = self.rng.random_range(0..nodes);
        for node in (0..nodes).map(|step| (first + step) % nodes) {
            let queue = match node.checked_sub(self.workers.len()) {
                None => &mut self.workers[node].control,
                Some(broker) => match self.brokers.get_mut(&slots[broker]) {
                    Some(broker) => &mut broker.control,
                    None => continue,
                },
            };
            if queue.is_empty() {
                continue;
            }
            let index = match self.rng.random_bool(0.2) {
                true => self.rng.random_range(0..queue.len()),
                false => 0,
            };
            let Some(view) = queue.get(index).cloned() else {
                continue;
            };
            if index > 0 {
                self.transcript.fault("view overtook another");
            }
            if self.rng.random_bool(0.2) {
                self.transcript.fault("view repeated");
            } else {
                queue.remove(index);
            }
            let epoch = view.epoch();
            self.transcript
                .line(self.now, || format!("node {node} hears of view {epoch}"));
            match node.checked_sub(self.workers.len()) {
                None => {
                    self.worker_hears_view(node, view);
                    self.end_worker_turn(node)?;
                }
                Some(broker) => self.broker_hears_view(slots[broker], &view)?,
            }
            return Ok(true);
        }
        self.open_waiting_shards()
    }

    pub(crate) fn broker_hears_view(
        &mut self,
        slot: u32,
        view: &muster_proto::View,
    ) -> Result<(), Violation> {
        let Some(broker) = self.brokers.get_mut(&slot) else {
            return Ok(());
        };
        let owner = (slot, broker.incarnation);
        let Some(sim) = &mut broker.sim else {
            return Ok(());
        };
        let found = sim.handle_view(view, &mut self.journal, self.now);
        self.note_appended(owner, found)
    }

    /// Shards that their earlier owners have let go are opened. Returns whether
    /// any was waited for.
    pub(crate) fn open_waiting_shards(&mut self) -> Result<bool, Violation> {
        let mut found = Vec::new();
        let mut waited = false;
        for (slot, broker) in &mut self.brokers {
            if let Some(sim) = broker.sim.as_mut().filter(|sim| sim.is_waiting()) {
                let owner = (*slot, broker.incarnation);
                found.push((owner, sim.open_shards(&mut self.journal, self.now)));
                waited = true;
            }
        }
        for (owner, appended) in found {
            self.note_appended(owner, appended)?;
        }
        Ok(waited)
    }

    /// Other slots are in the view, of those whose brokers live.
    fn change_view(&mut self) -> bool {
        let live = self.brokers.iter().filter(|(_, it)| it.sim.is_some());
        let live: Vec<u32> = live.map(|(slot, _)| *slot).collect();
        if live.is_empty() {
            return false;
        }
        self.in_view.clear();
        for slot in &live {
            if self.rng.random_bool(0.6) {
                self.in_view.insert(*slot);
            }
        }
        if self.in_view.is_empty() {
            self.in_view.insert(live[0]);
        }
        self.publish_view();
        self.transcript.fault("view changed");
        let (slots, epoch) = (&self.in_view, self.view.epoch());
        self.transcript
            .line(self.now, || format!("view {epoch}: brokers {slots:?}"));
        true
    }

    fn kill_somewhere(&mut self) -> Result<bool, Violation> {
        let live = self.brokers.iter().filter(|(_, it)| it.sim.is_some());
        let live: Vec<u32> = live.map(|(slot, _)| *slot).collect();
        if live.is_empty() {
            return Ok(false);
        }
        let slot = live[self.rng.random_range(0..live.len())];
        if self.scenario.durable && self.rng.random_bool(0.5) {
            self.die_in_a_write(slot)?;
        }
        self.kill_broker(slot);
        self.transcript.fault("broker killed");
        self.transcript
            .line(self.now, || format!("broker {slot} dies"));
        Ok(true)
    }

    fn restart_a_worker(&mut self) -> bool {
        let index = self.rng.random_range(0..self.workers.len());
        self.restart_worker(index);
        self.transcript.fault("worker killed");
        self.transcript
            .line(self.now, || format!("worker {index} dies and is back"));
        true
    }

    pub(crate) fn restart_somewhere(&mut self) -> bool {
        let dead = self.brokers.iter().find(|(_, it)| it.sim.is_none());
        let Some(slot) = dead.map(|(slot, _)| *slot) else {
            return false;
        };
        self.start_broker(slot);
        self.in_view.insert(slot);
        self.publish_view();
        let epoch = self.view.epoch();
        self.transcript.line(self.now, || {
            format!("broker {slot} is back, which is view {epoch}")
        });
        true
    }
}

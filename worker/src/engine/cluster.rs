//! The worker's side of the cluster: links, the view, what is reported.

use std::{collections::HashMap, time::Duration};

use muster_proto::{
    BrokerNode, View,
    control::{Heartbeat, WorkerStats, heartbeat},
    link::BrokerBatch,
};
use rand::SeedableRng as _;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;
use tracing::{error, info, warn};

use super::Engine;
use crate::{
    link::{LinkEvent, LinkRead, LinkSender, run_link},
    stats::memory_bytes,
};

/// One link per broker of the view.
#[derive(Debug)]
pub(super) struct Links {
    events: mpsc::Sender<LinkEvent>,
    by_broker: HashMap<u32, Link>,
}

#[derive(Debug)]
struct Link {
    incarnation: u64,
    /// Ends with the link.
    _task: AbortOnDropHandle<()>,
    sender: Option<LinkSender>,
}

impl Links {
    pub(super) fn new(events: mpsc::Sender<LinkEvent>) -> Self {
        Self {
            events,
            by_broker: HashMap::new(),
        }
    }

    /// News of an earlier incarnation's link are stale.
    fn current(&mut self, broker: u32, incarnation: u64) -> Option<&mut Link> {
        self.by_broker
            .get_mut(&broker)
            .filter(|link| link.incarnation == incarnation)
    }
}

impl Engine {
    /// Takes over a view that the orchestrator sent; returns its epoch.
    pub(crate) fn handle_view(&mut self, view: View) -> u64 {
        self.has_news = true;
        let epoch = view.epoch();
        let change = self.core.handle_view(view);
        for broker in change.stopped {
            self.links.by_broker.remove(&broker);
        }
        for node in change.started {
            self.start_link(node);
        }
        info!(epoch, moved = change.moved.len(), "Cluster view changed.");
        epoch
    }

    /// Whether every broker can be reached.
    pub(crate) fn is_whole(&self) -> bool {
        self.core.router.is_whole()
    }

    /// Returns the bytes of publications it brought.
    pub(crate) fn handle_link(&mut self, event: LinkEvent) -> usize {
        self.has_news = true;
        match event {
            LinkEvent::Up {
                broker,
                incarnation,
                link,
            } => {
                if let Some(current) = self.links.current(broker, incarnation) {
                    current.sender = Some(link);
                    if self.core.handle_link_up(broker, incarnation) {
                        info!(broker, incarnation, "A link stands.");
                    }
                }
            }
            LinkEvent::Batch {
                broker,
                incarnation,
                batch,
            } => {
                return self.handle_batch(broker, incarnation, batch);
            }
            LinkEvent::Read { id, response } => {
                let clients = &mut self.connections;
                self.core.handle_read(id, response, clients, self.now);
            }
            LinkEvent::Down {
                broker,
                incarnation,
            } => {
                if let Some(link) = self.links.current(broker, incarnation) {
                    link.sender = None;
                    self.core.handle_link_down(broker);
                    warn!(
                        broker,
                        incarnation, "A link broke; publications wait for it."
                    );
                }
            }
        }
        0
    }

    fn handle_batch(&mut self, broker: u32, incarnation: u64, batch: BrokerBatch) -> usize {
        if self.links.current(broker, incarnation).is_none() {
            return 0;
        }
        let handled = self
            .core
            .handle_batch(broker, batch, &mut self.connections, self.now);
        let bytes = match handled {
            Ok(bytes) => bytes,
            Err(error) => {
                error!(%error, "A broker broke the link's protocol; making the link anew.");
                self.restart_link(broker);
                return 0;
            }
        };
        let link = self.links.current(broker, incarnation);
        if let Some(sender) = link.and_then(|link| link.sender.as_mut()) {
            sender.credit(bytes);
        }
        usize::try_from(bytes).unwrap_or(usize::MAX)
    }

    /// Hands what is queued for the brokers to the links that stand.
    pub(super) fn send_batches(&mut self) {
        let pending: Vec<u32> = self.core.router.pending_links().collect();
        for broker in pending {
            let link = self.links.by_broker.get(&broker);
            let Some(sender) = link.and_then(|link| link.sender.as_ref()) else {
                continue;
            };
            // Without a permit everything stays with the router.
            while let Some(permit) = sender.reserve() {
                match self.core.router.next_batch(broker, self.now.millis) {
                    Some(batch) => permit.send(batch),
                    None => break,
                }
                self.core.router.refill(broker);
            }
        }
    }

    /// Hands reads to the links of the channels' owners.
    pub(super) fn send_reads(&mut self) {
        let (links, view) = (&self.links, self.core.router.view());
        self.core.reads.send(|id, question| {
            let owner = view.owner(question.shard())?.slot;
            let sender = links.by_broker.get(&owner)?.sender.as_ref()?;
            let request = question.request();
            sender.reserve_read()?.send(LinkRead { id, request });
            Some(owner)
        });
    }

    /// `lag` is the most that the worker was late since the one before.
    pub(crate) fn heartbeat(&self, lag: Duration) -> Heartbeat {
        let stats = &self.core.stats;
        let stats = WorkerStats {
            connections: self.connections.len() as u64,
            subscriptions: self.core.channels.subscriptions() as u64,
            channels: self.core.channels.len() as u64,
            publications: stats.publications,
            deliveries: stats.deliveries,
            holes: stats.holes,
            links: u32::try_from(self.core.router.links_up()).unwrap_or(u32::MAX),
            slow_clients_closed: stats.slow_clients_closed,
            dropped: stats.dropped,
            resumed: stats.resumed,
            holes_told: stats.holes_told,
            abnormal_closes: stats.abnormal_closes,
            lag_us: u64::try_from(lag.as_micros()).unwrap_or(u64::MAX),
            memory_bytes: memory_bytes(),
        };
        Heartbeat {
            stats: Some(heartbeat::Stats::Worker(stats)),
        }
    }

    fn start_link(&mut self, node: BrokerNode) {
        let (broker, incarnation) = (node.slot, node.incarnation);
        let rng = rand::rngs::StdRng::from_rng(&mut self.rng);
        let link = run_link(
            node,
            self.settings.link.clone(),
            self.links.events.clone(),
            rng,
        );
        let task = AbortOnDropHandle::new(tokio::spawn(link));
        self.links.by_broker.insert(
            broker,
            Link {
                incarnation,
                _task: task,
                sender: None,
            },
        );
    }

    fn restart_link(&mut self, broker: u32) {
        self.core.handle_link_down(broker);
        let node = self
            .core
            .router
            .view()
            .brokers()
            .iter()
            .find(|node| node.slot == broker);
        if let Some(node) = node.cloned() {
            self.start_link(node);
        }
    }
}

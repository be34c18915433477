//! The nodes of the cluster as the orchestrator knows them: slot, stream and
//! figures.

mod node;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use muster_daemon::config::SupervisionConfig;
use muster_proto::control::node_command::Command;
use muster_wire::Millis;
use tokio::sync::mpsc;

use self::node::NodeStream;
pub(crate) use self::node::{Node, Rate};
use crate::{
    cli::Size,
    node::{NodeId, Role},
    program::Program,
    supervisor::{Patience, Phase, Slot},
};

/// All nodes.
#[derive(Debug)]
pub(crate) struct Fleet {
    nodes: BTreeMap<NodeId, Node>,
    streams: HashMap<u64, NodeId>,
    supervision: SupervisionConfig,
    /// Incarnations of slots that are added come after it.
    incarnation: u64,
    /// What slots that are added run.
    program: Arc<Program>,
}

impl Fleet {
    /// As many slots as `size` says, none of them filled yet.
    pub(crate) fn new(size: Size, incarnation: u64, supervision: &SupervisionConfig) -> Self {
        let mut fleet = Self {
            nodes: BTreeMap::new(),
            streams: HashMap::new(),
            supervision: supervision.clone(),
            incarnation,
            program: Program::own().into(),
        };
        let workers = (1..=size.workers).map(|slot| (Role::Worker, slot));
        let brokers = (1..=size.brokers).map(|slot| (Role::Broker, slot));
        for (role, slot) in workers.chain(brokers) {
            fleet.add(NodeId { role, slot });
        }
        fleet
    }

    /// Adds a slot, which is then filled. False when there is one already.
    pub(crate) fn add(&mut self, id: NodeId) -> bool {
        let patience = patience(id.role, &self.supervision);
        let incarnation = self.incarnation;
        let is_new = !self.nodes.contains_key(&id);
        let program = Arc::clone(&self.program);
        let node = || Node::new(Slot::new(incarnation, patience), program);
        self.nodes.entry(id).or_insert_with(node);
        is_new
    }

    /// Adds a successor of the worker in a slot, which runs `program`; whether that
    /// is the new one of an update. False when there is one already, or no such
    /// worker.
    pub(crate) fn add_successor(&mut self, slot: u32, program: Arc<Program>, is_new: bool) -> bool {
        let Some(worker) = self.nodes.get(&worker(slot)) else {
            return false;
        };
        // Never an incarnation that the slot had, or will have.
        self.incarnation = self.incarnation.max(worker.slot.incarnation());
        let is_added = self.add(successor(slot));
        if let Some(node) = self.nodes.get_mut(&successor(slot)) {
            node.program = program;
            node.is_new = is_new;
        }
        is_added
    }

    /// Removes a successor whose process has ended.
    pub(crate) fn remove_successor(&mut self, slot: u32) {
        self.remove(successor(slot));
        if let Some(worker) = self.nodes.get_mut(&worker(slot)) {
            worker.slot.skip_to(self.incarnation);
        }
    }

    /// The successor fills the slot from now on; the worker's process has ended.
    pub(crate) fn promote(&mut self, slot: u32) {
        self.leave(worker(slot));
        let Some(mut node) = self.nodes.remove(&successor(slot)) else {
            return;
        };
        if let Some(stream) = &node.stream {
            self.streams.insert(stream.number, worker(slot));
        }
        if let Some(earlier) = self.nodes.remove(&worker(slot)) {
            node.slot.succeed(&earlier.slot);
        }
        self.nodes.insert(worker(slot), node);
    }

    /// How long all nodes may be silent from now on.
    pub(crate) fn set_supervision(&mut self, supervision: &SupervisionConfig) {
        self.supervision = supervision.clone();
        for (id, node) in &mut self.nodes {
            node.slot.set_patience(patience(id.role, supervision));
        }
    }

    /// What slots that are added run.
    pub(crate) fn program(&self) -> &Arc<Program> {
        &self.program
    }

    /// What new slots run from now on.
    pub(crate) fn set_program(&mut self, program: Arc<Program>) {
        self.program = program;
    }

    /// No update is under way any more.
    pub(crate) fn forget_new(&mut self) {
        for node in self.nodes.values_mut() {
            node.is_new = false;
        }
    }

    /// The node that this life of a worker or broker fills now.
    pub(crate) fn of_life(&self, id: NodeId, incarnation: u64) -> Option<NodeId> {
        let ids = match id.role {
            Role::Worker | Role::Successor => [worker(id.slot), successor(id.slot)],
            Role::Broker => [id, id],
        };
        ids.into_iter().find(|id| {
            let node = self.nodes.get(id);
            let life = node.and_then(|node| node.slot.life());
            life.is_some_and(|life| life.incarnation == incarnation)
        })
    }

    /// Removes a slot without a process.
    pub(crate) fn remove(&mut self, id: NodeId) {
        self.leave(id);
        if let Some(node) = self.nodes.remove(&id) {
            // Whoever fills the slot one day is another.
            self.incarnation = self.incarnation.max(node.slot.incarnation());
        }
    }

    pub(crate) fn get(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(&id)
    }

    pub(crate) fn get_mut(&mut self, id: NodeId) -> Option<&mut Node> {
        self.nodes.get_mut(&id)
    }

    pub(crate) fn nodes(&self) -> impl Iterator<Item = (NodeId, &Node)> {
        self.nodes.iter().map(|(id, node)| (*id, node))
    }

    pub(crate) fn ids(&self, role: Role) -> Vec<NodeId> {
        let ids = self.nodes.keys().copied();
        ids.filter(|id| id.role == role).collect()
    }

    /// True when every node of the role is in a phase that `holds`.
    pub(crate) fn all(&self, role: Role, holds: impl Fn(Phase) -> bool) -> bool {
        let mut nodes = self.nodes.iter().filter(|(id, _)| id.role == role);
        nodes.all(|(_, node)| holds(node.slot.phase()))
    }

    /// Gives a node its stream, and says which it is; an earlier one ends. `None`
    /// when no such life was started here.
    pub(crate) fn join(
        &mut self,
        id: NodeId,
        (incarnation, pid): (u64, u32),
        number: u64,
        commands: mpsc::Sender<Command>,
    ) -> Option<NodeId> {
        let id = self.of_life(id, incarnation)?;
        let node = self.nodes.get_mut(&id)?;
        let life = node.slot.life()?;
        if life.incarnation != incarnation || life.pid != pid {
            return None;
        }
        if let Some(earlier) = node.stream.replace(NodeStream { number, commands }) {
            self.streams.remove(&earlier.number);
        }
        self.streams.insert(number, id);
        Some(id)
    }

    /// The node whose current stream this is.
    pub(crate) fn of_stream(&self, number: u64) -> Option<NodeId> {
        self.streams.get(&number).copied()
    }

    /// Ends a node's stream.
    pub(crate) fn leave(&mut self, id: NodeId) {
        if let Some(stream) = self.nodes.get_mut(&id).and_then(|node| node.stream.take()) {
            self.streams.remove(&stream.number);
        }
    }

    /// Sends a command. False when the node does not take it.
    pub(crate) fn send(&self, id: NodeId, command: Command) -> bool {
        let stream = self.nodes.get(&id).and_then(|node| node.stream.as_ref());
        stream.is_some_and(|stream| stream.commands.try_send(command).is_ok())
    }

    pub(crate) fn joined(&self, role: Role) -> BTreeSet<u32> {
        let joined = self.nodes.iter().filter(|(_, node)| node.stream.is_some());
        let of_role = joined.filter(|(id, _)| id.role == role);
        of_role.map(|(id, _)| id.slot).collect()
    }

    /// Slots of the role that are in a crash loop.
    pub(crate) fn crash_looping(&self, role: Role) -> BTreeSet<u32> {
        let looping = self
            .nodes
            .iter()
            .filter(|(_, node)| node.slot.is_crash_loop());
        let of_role = looping.filter(|(id, _)| id.role == role);
        of_role.map(|(id, _)| id.slot).collect()
    }

    /// Every incarnation of a slot that is not there any more is below or equal.
    pub(crate) fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// Whether every worker that is ready has applied the view of this epoch and
    /// has links to its brokers since.
    pub(crate) fn is_linked(&self, epoch: u64, brokers: usize) -> bool {
        let workers = self.nodes.iter().filter(|(id, _)| id.role == Role::Worker);
        let mut ready =
            workers.filter(|(_, node)| matches!(node.slot.phase(), Phase::Ready { .. }));
        ready.all(|(_, node)| {
            let links = node.links.and_then(|links| usize::try_from(links).ok());
            node.applied == epoch && links.is_some_and(|links| links >= brokers)
        })
    }

    /// The earliest time at which a slot has something to do.
    pub(crate) fn wake_at(&self) -> Option<Millis> {
        let times = self.nodes.values().filter_map(|node| node.slot.wake_at());
        times.min()
    }
}

fn worker(slot: u32) -> NodeId {
    NodeId {
        role: Role::Worker,
        slot,
    }
}

fn successor(slot: u32) -> NodeId {
    NodeId {
        role: Role::Successor,
        slot,
    }
}

fn patience(role: Role, supervision: &SupervisionConfig) -> Patience {
    Patience {
        starting: supervision.start_timeout,
        ready: match role {
            Role::Worker | Role::Successor => supervision.worker_hung_after,
            Role::Broker => supervision.broker_hung_after,
        },
    }
}

#[cfg(test)]
mod tests {
    use muster_proto::control::{self as pb, heartbeat};
    use rand::{SeedableRng as _, rngs::SmallRng};

    use super::*;
    use crate::supervisor::{Action, Event};

    pub(super) const ID: NodeId = NodeId {
        role: Role::Worker,
        slot: 1,
    };

    pub(super) fn fleet() -> Fleet {
        let size = Size {
            workers: 2,
            brokers: 1,
        };
        let mut fleet = Fleet::new(size, 0, &SupervisionConfig::default());
        let mut rng = SmallRng::seed_from_u64(1);
        let node = fleet.get_mut(ID).unwrap();
        let start = node.slot.handle(Millis(0), Event::Woken, &mut rng);
        assert_eq!(start, Action::Start { incarnation: 1 });
        let started = Event::Started { pid: 77 };
        assert_eq!(
            node.slot.handle(Millis(0), started, &mut rng),
            Action::Nothing
        );
        fleet
    }

    #[test]
    fn only_a_life_that_was_started_here_may_join() {
        let mut fleet = fleet();
        let (commands, _inbox) = mpsc::channel(1);
        for (id, life) in [
            (ID, (2, 77)),
            (ID, (1, 78)),
            (NodeId { slot: 2, ..ID }, (1, 77)),
            (NodeId { slot: 9, ..ID }, (1, 77)),
        ] {
            assert_eq!(fleet.join(id, life, 1, commands.clone()), None);
        }
        assert_eq!(fleet.join(ID, (1, 77), 1, commands), Some(ID));
        assert_eq!(fleet.joined(Role::Worker), BTreeSet::from([1]));
    }

    #[test]
    fn a_second_stream_of_a_node_replaces_the_first() {
        let mut fleet = fleet();
        let (first, mut first_inbox) = mpsc::channel(1);
        let (second, mut second_inbox) = mpsc::channel(1);
        fleet.join(ID, (1, 77), 1, first).unwrap();
        fleet.join(ID, (1, 77), 2, second).unwrap();
        assert_eq!(fleet.of_stream(1), None);
        assert_eq!(fleet.of_stream(2), Some(ID));
        assert!(fleet.send(ID, Command::View(pb::View::default())));
        assert!(second_inbox.try_recv().is_ok());
        assert!(first_inbox.try_recv().is_err());
        fleet.leave(ID);
        assert!(!fleet.send(ID, Command::View(pb::View::default())));
        assert_eq!(fleet.of_stream(2), None);
    }

    #[test]
    fn a_slot_that_is_removed_and_added_again_has_later_incarnations() {
        let mut fleet = fleet();
        assert!(!fleet.add(ID));
        fleet.remove(ID);
        assert!(fleet.get_mut(ID).is_none());
        assert!(fleet.add(ID));
        let mut rng = SmallRng::seed_from_u64(1);
        let slot = &mut fleet.get_mut(ID).unwrap().slot;
        let start = slot.handle(Millis(0), Event::Woken, &mut rng);
        assert_eq!(start, Action::Start { incarnation: 2 });
    }

    #[test]
    fn a_worker_is_linked_by_what_it_said_after_it_applied_the_view() {
        let mut fleet = fleet();
        assert!(fleet.is_linked(3, 2), "none is ready");
        let mut rng = SmallRng::seed_from_u64(1);
        let node = fleet.get_mut(ID).unwrap();
        let ready = Event::Ready { incarnation: 1 };
        let _ = node.slot.handle(Millis(0), ready, &mut rng);
        let with_links = |links| pb::Heartbeat {
            stats: Some(heartbeat::Stats::Worker(pb::WorkerStats {
                links,
                ..pb::WorkerStats::default()
            })),
        };
        for (links, is_linked) in [(None, false), (Some(1), false), (Some(2), true)] {
            let node = fleet.get_mut(ID).unwrap();
            match links {
                None => {
                    node.heartbeat(Millis(0), with_links(9));
                    node.view_applied(3);
                }
                Some(links) => node.heartbeat(Millis(0), with_links(links)),
            }
            assert_eq!(fleet.is_linked(3, 2), is_linked, "{links:?}");
        }
        assert!(!fleet.is_linked(4, 2), "another view");
    }
}

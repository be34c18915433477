//! Who is in the cluster, and which view they are told when.
//!
//! Brokers hear of a view first and open their shards; workers follow once
//! every broker that is there has done so, or the time for it is up. A broker
//! that is away keeps its shards: it comes back in place.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use muster_proto::{BrokerNode, View};
use muster_wire::Millis;

use crate::node::{NodeId, Role};

/// Longest that workers wait for a broker to open its shards. A worker whose
/// view is ahead of a broker is refused by it and sends again, so going on
/// costs little.
const APPLY_TIMEOUT: Duration = Duration::from_secs(2);

/// A node that has joined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Joined {
    pub(crate) id: NodeId,
    pub(crate) incarnation: u64,
    /// Where a broker takes links.
    pub(crate) address: String,
    /// The highest view epoch that the node has seen.
    pub(crate) epoch: u64,
}

/// Views to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tell {
    /// Send the current view to this node.
    One(NodeId),
    /// Send the current view to every joined node of the role.
    All(Role),
}

/// The members and the view.
#[derive(Debug)]
pub(crate) struct Membership {
    /// Brokers that the cluster is to have; no view before all have been seen.
    brokers_wanted: usize,
    /// Every broker slot's latest life, also while it is away.
    brokers: BTreeMap<u32, BrokerNode>,
    /// Slots of the brokers that are joined now.
    present: BTreeSet<u32>,
    view: View,
    /// The highest epoch that any node has named.
    epoch_seen: u64,
    publishing: Option<Publishing>,
}

/// A view that brokers have been told and workers have not.
#[derive(Debug)]
struct Publishing {
    /// Broker slots that have not applied it.
    missing: BTreeSet<u32>,
    until: Millis,
}

impl Membership {
    pub(crate) fn new(brokers_wanted: u32) -> Self {
        Self {
            brokers_wanted: usize::try_from(brokers_wanted).unwrap_or(usize::MAX),
            brokers: BTreeMap::new(),
            present: BTreeSet::new(),
            view: View::default(),
            epoch_seen: 0,
            publishing: None,
        }
    }

    /// Goes on with the view of an earlier orchestrator, so that brokers which
    /// live keep their shards. `is_slot` says which brokers the cluster has.
    pub(crate) fn resume(&mut self, view: View, is_slot: impl Fn(u32) -> bool) {
        let (kept, gone): (Vec<_>, Vec<_>) = view
            .brokers()
            .iter()
            .cloned()
            .partition(|broker| is_slot(broker.slot));
        // With a broker that will not come back the view cannot stay: as if a
        // node had seen a later one, the next that joins brings the next.
        self.epoch_seen = view.epoch() + u64::from(!gone.is_empty());
        self.brokers = kept
            .into_iter()
            .map(|broker| (broker.slot, broker))
            .collect();
        self.view = view;
    }

    /// The current view; epoch 0 before the first.
    pub(crate) fn view(&self) -> &View {
        &self.view
    }

    /// True once workers have been told the current view.
    pub(crate) fn is_published(&self) -> bool {
        self.view.epoch() > 0 && self.publishing.is_none()
    }

    /// Where the latest life of a broker took links.
    pub(crate) fn address(&self, id: NodeId) -> Option<&str> {
        let broker = (id.role == Role::Broker).then(|| self.brokers.get(&id.slot));
        broker.flatten().map(|broker| broker.address.as_str())
    }

    /// When to call [`Membership::time`].
    pub(crate) fn wake_at(&self) -> Option<Millis> {
        self.publishing.as_ref().map(|publishing| publishing.until)
    }

    pub(crate) fn joined(&mut self, now: Millis, node: &Joined) -> Vec<Tell> {
        self.epoch_seen = self.epoch_seen.max(node.epoch);
        let ahead = self.epoch_seen > self.view.epoch();
        let changed = match node.id.role {
            Role::Worker => false,
            Role::Broker => self.note_broker(node),
        };
        if (changed || ahead) && self.brokers.len() >= self.brokers_wanted {
            return self.publish(now);
        }
        match node.id.role {
            _ if self.view.epoch() == 0 => Vec::new(),
            Role::Worker if !self.is_published() => Vec::new(),
            Role::Worker | Role::Broker => vec![Tell::One(node.id)],
        }
    }

    /// A broker's stream broke. It may still serve, so it stays in the view.
    pub(crate) fn left(&mut self, id: NodeId) -> Vec<Tell> {
        match id.role {
            Role::Worker => Vec::new(),
            Role::Broker => {
                self.present.remove(&id.slot);
                self.no_longer_missing(id.slot)
            }
        }
    }

    pub(crate) fn applied(&mut self, id: NodeId, epoch: u64) -> Vec<Tell> {
        match id.role {
            Role::Broker if epoch == self.view.epoch() => self.no_longer_missing(id.slot),
            Role::Worker | Role::Broker => Vec::new(),
        }
    }

    pub(crate) fn time(&mut self, now: Millis) -> Vec<Tell> {
        match &self.publishing {
            Some(publishing) if publishing.until <= now => self.publish_to_workers(),
            Some(_) | None => Vec::new(),
        }
    }

    /// True when this is another life than the one known.
    fn note_broker(&mut self, node: &Joined) -> bool {
        self.present.insert(node.id.slot);
        let broker = BrokerNode {
            slot: node.id.slot,
            incarnation: node.incarnation,
            address: node.address.clone(),
        };
        let before = self.brokers.insert(node.id.slot, broker.clone());
        before.is_none_or(|before| before != broker)
    }

    fn publish(&mut self, now: Millis) -> Vec<Tell> {
        let brokers = self.brokers.values().cloned();
        self.view = View::next_above(self.epoch_seen, &self.view, brokers);
        self.epoch_seen = self.view.epoch();
        self.publishing = Some(Publishing {
            missing: self.present.clone(),
            until: now + APPLY_TIMEOUT,
        });
        vec![Tell::All(Role::Broker)]
    }

    fn no_longer_missing(&mut self, slot: u32) -> Vec<Tell> {
        let Some(publishing) = &mut self.publishing else {
            return Vec::new();
        };
        publishing.missing.remove(&slot);
        if publishing.missing.is_empty() {
            self.publish_to_workers()
        } else {
            Vec::new()
        }
    }

    fn publish_to_workers(&mut self) -> Vec<Tell> {
        self.publishing = None;
        vec![Tell::All(Role::Worker)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Millis = Millis(1_000);

    fn broker(slot: u32, incarnation: u64) -> Joined {
        Joined {
            id: broker_id(slot),
            incarnation,
            address: format!("unix:/run/broker-{slot}.sock"),
            epoch: 0,
        }
    }

    fn broker_id(slot: u32) -> NodeId {
        NodeId {
            role: Role::Broker,
            slot,
        }
    }

    fn worker(slot: u32) -> Joined {
        Joined {
            id: NodeId {
                role: Role::Worker,
                slot,
            },
            incarnation: 1,
            address: String::new(),
            epoch: 0,
        }
    }

    /// Two brokers whose first view is published.
    fn published() -> Membership {
        let mut membership = Membership::new(2);
        let _ = membership.joined(NOW, &broker(1, 1));
        let _ = membership.joined(NOW, &broker(2, 1));
        let _ = membership.applied(broker_id(1), 1);
        let _ = membership.applied(broker_id(2), 1);
        assert!(membership.is_published());
        membership
    }

    #[test]
    fn the_first_view_waits_for_every_broker() {
        let mut membership = Membership::new(2);
        assert_eq!(membership.joined(NOW, &worker(1)), []);
        assert_eq!(membership.joined(NOW, &broker(2, 1)), []);
        assert_eq!(membership.view().epoch(), 0);
        let told = membership.joined(NOW, &broker(1, 1));
        assert_eq!(told, [Tell::All(Role::Broker)]);
        assert_eq!(membership.view().epoch(), 1);
        assert_eq!(membership.view().brokers().len(), 2);
    }

    #[test]
    fn workers_are_told_once_every_broker_has_applied() {
        let mut membership = Membership::new(2);
        let _ = membership.joined(NOW, &broker(1, 1));
        let _ = membership.joined(NOW, &broker(2, 1));
        assert_eq!(membership.applied(broker_id(1), 1), []);
        // A worker that comes meanwhile waits as well.
        assert_eq!(membership.joined(NOW, &worker(1)), []);
        let told = membership.applied(broker_id(2), 1);
        assert_eq!(told, [Tell::All(Role::Worker)]);
        assert_eq!(membership.applied(broker_id(2), 1), []);
    }

    #[test]
    fn a_broker_that_does_not_apply_holds_the_workers_up_for_a_bounded_time() {
        let mut membership = Membership::new(1);
        let _ = membership.joined(NOW, &broker(1, 1));
        let until = membership.wake_at().unwrap();
        assert_eq!(until, NOW + APPLY_TIMEOUT);
        assert_eq!(membership.time(NOW), []);
        assert_eq!(membership.time(until), [Tell::All(Role::Worker)]);
        assert_eq!(membership.wake_at(), None);
    }

    #[test]
    fn a_broker_that_leaves_holds_nobody_up_and_keeps_its_shards() {
        let mut membership = Membership::new(2);
        let _ = membership.joined(NOW, &broker(1, 1));
        let _ = membership.joined(NOW, &broker(2, 1));
        let _ = membership.applied(broker_id(1), 1);
        let told = membership.left(broker_id(2));
        assert_eq!(told, [Tell::All(Role::Worker)]);
        assert_eq!(membership.view().brokers().len(), 2);
    }

    #[test]
    fn another_life_of_a_broker_is_another_view_with_the_same_owners() {
        let mut membership = published();
        let before = membership.view().clone();
        assert_eq!(membership.left(broker_id(1)), []);
        assert_eq!(membership.view(), &before, "being away changes nothing");
        let told = membership.joined(NOW, &broker(1, 2));
        assert_eq!(told, [Tell::All(Role::Broker)]);
        let after = membership.view();
        assert_eq!(after.epoch(), 2);
        for shard in muster_proto::ShardId::all() {
            let (old, new) = (before.owner(shard).unwrap(), after.owner(shard).unwrap());
            assert_eq!(old.slot, new.slot);
            let reopened = after.shard_epoch(shard) == 2;
            assert_eq!(reopened, new.slot == 1);
        }
    }

    #[test]
    fn the_same_life_that_joins_again_is_told_the_view_and_changes_nothing() {
        let mut membership = published();
        let _ = membership.left(broker_id(1));
        let mut again = broker(1, 1);
        again.epoch = 1;
        let told = membership.joined(NOW, &again);
        assert_eq!(told, [Tell::One(broker_id(1))]);
        assert_eq!(membership.view().epoch(), 1);
    }

    #[test]
    fn a_worker_that_joins_later_is_told_the_view() {
        let mut membership = published();
        let joined = worker(3);
        let id = joined.id;
        assert_eq!(membership.joined(NOW, &joined), [Tell::One(id)]);
    }

    #[test]
    fn a_node_that_has_seen_a_later_view_makes_the_next_one_later_still() {
        let mut membership = published();
        let mut ahead = worker(1);
        ahead.epoch = 40;
        let told = membership.joined(NOW, &ahead);
        assert_eq!(told, [Tell::All(Role::Broker)]);
        assert_eq!(membership.view().epoch(), 41);
    }

    #[test]
    fn an_earlier_orchestrators_view_stays_while_its_brokers_are_the_same() {
        let view = published().view().clone();
        let mut membership = Membership::new(2);
        membership.resume(view.clone(), |_| true);
        for node in [broker(2, 1), worker(1), broker(1, 1)] {
            let again = Joined { epoch: 1, ..node };
            let told = membership.joined(NOW, &again);
            assert_eq!(told, [Tell::One(again.id)]);
        }
        assert_eq!(membership.view(), &view);
    }

    #[test]
    fn a_broker_that_died_with_the_orchestrator_is_replaced_in_its_view() {
        let before = published().view().clone();
        let mut membership = Membership::new(2);
        membership.resume(before.clone(), |_| true);
        let _ = membership.joined(NOW, &broker(1, 1));
        let told = membership.joined(NOW, &broker(2, 2));
        assert_eq!(told, [Tell::All(Role::Broker)]);
        let after = membership.view();
        assert_eq!(after.epoch(), 2);
        for shard in muster_proto::ShardId::all() {
            let is_kept = after.shard_epoch(shard) == before.shard_epoch(shard);
            assert_eq!(is_kept, after.owner(shard).unwrap().slot == 1);
        }
    }

    #[test]
    fn a_broker_that_the_cluster_no_longer_has_leaves_the_view() {
        let mut membership = Membership::new(1);
        membership.resume(published().view().clone(), |slot| slot == 1);
        let told = membership.joined(NOW, &broker(1, 1));
        assert_eq!(told, [Tell::All(Role::Broker)]);
        assert_eq!(membership.view().brokers().len(), 1);
        assert!(membership.view().epoch() > 1);
    }

    #[test]
    fn an_answer_to_an_earlier_view_does_not_count() {
        let mut membership = published();
        let _ = membership.joined(NOW, &broker(1, 2));
        assert_eq!(membership.applied(broker_id(1), 1), []);
        assert_eq!(membership.applied(broker_id(2), 2), []);
        let told = membership.applied(broker_id(1), 2);
        assert_eq!(told, [Tell::All(Role::Worker)]);
    }

    #[test]
    fn two_brokers_that_restart_one_after_the_other_need_one_publication_to_workers() {
        let mut membership = published();
        let _ = membership.left(broker_id(1));
        let _ = membership.left(broker_id(2));
        let _ = membership.joined(NOW, &broker(1, 2));
        let _ = membership.joined(NOW, &broker(2, 2));
        assert_eq!(membership.applied(broker_id(1), 2), []);
        assert_eq!(membership.applied(broker_id(1), 3), []);
        let told = membership.applied(broker_id(2), 3);
        assert_eq!(told, [Tell::All(Role::Worker)]);
    }
}

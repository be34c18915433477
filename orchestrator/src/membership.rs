//! Who is in the cluster, and which view they are told when.
//!
//! Brokers hear of a view first and open their shards; workers follow once
//! every broker that is there has done so, or the time for it is up. A broker
//! that is away keeps its shards: it comes back in place. Only one that is set
//! aside, because it ends again and again, loses them to the others.

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
    /// Slots of the brokers that are to own nothing.
    aside: BTreeSet<u32>,
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
            aside: BTreeSet::new(),
            view: View::default(),
            epoch_seen: 0,
            publishing: None,
        }
    }

    /// Goes on with the view of an earlier orchestrator, so that brokers which
    /// live keep their shards. `is_slot` says which brokers the cluster has.
    pub(crate) fn resume(&mut self, view: View, is_slot: impl Fn(u32) -> bool) {
        self.epoch_seen = view.epoch();
        let brokers = view.brokers().iter().cloned();
        let kept = brokers.filter(|broker| is_slot(broker.slot));
        self.brokers = kept.map(|broker| (broker.slot, broker)).collect();
        if !self.brokers.is_empty() {
            // Those that are not in it were set aside, or are new.
            self.brokers_wanted = self.brokers_wanted.min(self.brokers.len());
            self.view = view;
        }
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
        if node.id.role == Role::Broker {
            self.note_broker(node);
        }
        if self.is_outdated() {
            return self.publish(now);
        }
        match node.id.role {
            _ if self.view.epoch() == 0 => Vec::new(),
            Role::Worker if !self.is_published() => Vec::new(),
            Role::Worker | Role::Broker => vec![Tell::One(node.id)],
        }
    }

    /// From now on exactly these broker slots are set aside.
    pub(crate) fn set_aside(&mut self, now: Millis, slots: BTreeSet<u32>) -> Vec<Tell> {
        self.aside = slots;
        if self.view.epoch() > 0 && self.is_outdated() {
            self.publish(now)
        } else {
            Vec::new()
        }
    }

    /// The broker slots that are set aside.
    pub(crate) fn aside(&self) -> &BTreeSet<u32> {
        &self.aside
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

    fn note_broker(&mut self, node: &Joined) {
        self.present.insert(node.id.slot);
        let broker = BrokerNode {
            slot: node.id.slot,
            incarnation: node.incarnation,
            address: node.address.clone(),
        };
        self.brokers.insert(node.id.slot, broker);
    }

    /// Whether the view is not the one that there should be.
    fn is_outdated(&self) -> bool {
        let may_change = self.view.epoch() > 0 || self.brokers.len() >= self.brokers_wanted;
        let is_ahead = self.epoch_seen > self.view.epoch();
        may_change && (is_ahead || self.owners() != self.view.brokers())
    }

    /// The brokers that are to own the shards. Somebody must: when all are set
    /// aside, nothing moves any more.
    fn owners(&self) -> Vec<BrokerNode> {
        let of = |keep: &dyn Fn(u32) -> bool| -> Vec<BrokerNode> {
            let brokers = self.brokers.values();
            let kept = brokers.filter(|broker| keep(broker.slot));
            kept.cloned().collect()
        };
        let owners = of(&|slot| !self.aside.contains(&slot));
        if !owners.is_empty() {
            return owners;
        }
        let view = self.view.brokers();
        let before = of(&|slot| view.iter().any(|broker| broker.slot == slot));
        if before.is_empty() {
            of(&|_| true)
        } else {
            before
        }
    }

    fn publish(&mut self, now: Millis) -> Vec<Tell> {
        let brokers = self.owners();
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

    fn owned(membership: &Membership, slot: u32) -> usize {
        let view = membership.view();
        muster_proto::ShardId::all()
            .filter(|shard| view.owner(*shard).unwrap().slot == slot)
            .count()
    }

    #[test]
    fn the_shards_of_a_broker_that_is_set_aside_move_to_the_others_until_it_is_back() {
        let mut membership = published();
        let before = membership.view().clone();
        assert_eq!(membership.left(broker_id(1)), []);
        let told = membership.set_aside(NOW, BTreeSet::from([1]));
        assert_eq!(told, [Tell::All(Role::Broker)]);
        assert_eq!(membership.view().epoch(), 2);
        assert_eq!(owned(&membership, 2), muster_proto::SHARDS);
        let told = membership.applied(broker_id(2), 2);
        assert_eq!(told, [Tell::All(Role::Worker)]);
        for shard in muster_proto::ShardId::all() {
            let moved = before.owner(shard).unwrap().slot == 1;
            let epoch = membership.view().shard_epoch(shard);
            assert_eq!(epoch, if moved { 2 } else { 1 }, "only what moved reopens");
        }
        // It is told the view, so that it can become ready, and owns nothing.
        let told = membership.joined(NOW, &broker(1, 5));
        assert_eq!(told, [Tell::One(broker_id(1))]);
        assert_eq!(membership.view().epoch(), 2);
        assert_eq!(membership.set_aside(NOW, BTreeSet::from([1])), []);

        let told = membership.set_aside(NOW, BTreeSet::new());
        assert_eq!(told, [Tell::All(Role::Broker)]);
        let after = membership.view();
        assert_eq!(after.epoch(), 3);
        for shard in muster_proto::ShardId::all() {
            let (old, new) = (before.owner(shard).unwrap(), after.owner(shard).unwrap());
            assert_eq!(old.slot, new.slot, "each broker has its shards back");
        }
        assert_eq!(membership.applied(broker_id(2), 3), [], "1 is missing");
        let told = membership.applied(broker_id(1), 3);
        assert_eq!(told, [Tell::All(Role::Worker)]);
    }

    #[test]
    fn the_last_broker_never_loses_its_shards() {
        let mut membership = Membership::new(1);
        let _ = membership.joined(NOW, &broker(1, 1));
        let _ = membership.applied(broker_id(1), 1);
        assert_eq!(membership.set_aside(NOW, BTreeSet::from([1])), []);
        assert_eq!(owned(&membership, 1), muster_proto::SHARDS);
        let told = membership.joined(NOW, &broker(1, 2));
        assert_eq!(told, [Tell::All(Role::Broker)], "it is back in place");

        let mut membership = published();
        let _ = membership.set_aside(NOW, BTreeSet::from([1]));
        assert_eq!(membership.set_aside(NOW, BTreeSet::from([1, 2])), []);
        assert_eq!(owned(&membership, 2), muster_proto::SHARDS);
        // The first that is fine again gets them.
        let told = membership.set_aside(NOW, BTreeSet::from([2]));
        assert_eq!(told, [Tell::All(Role::Broker)]);
        assert_eq!(owned(&membership, 1), muster_proto::SHARDS);
    }

    #[test]
    fn brokers_that_are_set_aside_at_the_same_time_leave_the_shards_where_they_are() {
        let mut membership = published();
        let before = membership.view().clone();
        assert_eq!(membership.set_aside(NOW, BTreeSet::from([1, 2])), []);
        assert_eq!(membership.view(), &before);
    }

    #[test]
    fn nobody_is_set_aside_before_the_first_view() {
        let mut membership = Membership::new(2);
        let _ = membership.joined(NOW, &broker(1, 1));
        assert_eq!(membership.set_aside(NOW, BTreeSet::from([1])), []);
        assert_eq!(membership.view().epoch(), 0);
    }
}

//! Who is in the cluster, and which view they are told when.
//!
//! Brokers hear of a view first and open their shards; workers follow once
//! every broker that is there has done so, or the time for it is up. A broker
//! that is away keeps its shards: it comes back in place. Only one that is set
//! aside, because it ends again and again, loses them to the others.
//!
//! A broker that is added is in the view, so that workers link to it, and owns
//! nothing until it is admitted. One that is to go leaves the view, is told so
//! like the others, and lives on until they have taken over.

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
    /// Slots of brokers that workers link to, and that own nothing yet.
    idle: BTreeSet<u32>,
    /// Slots of brokers that are to go.
    leaving: BTreeSet<u32>,
    /// The latest epoch that each broker slot's latest life has applied.
    applied: BTreeMap<u32, u64>,
    view: View,
    /// Over which slots the view's shards are assigned.
    owning: BTreeSet<u32>,
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
            idle: BTreeSet::new(),
            leaving: BTreeSet::new(),
            applied: BTreeMap::new(),
            view: View::default(),
            owning: BTreeSet::new(),
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
            self.owning = view.owning();
            self.view = view;
        }
    }

    /// These slots are to be filled and to own nothing yet. To be called before
    /// one of them joins; changes nothing by itself.
    pub(crate) fn expect(&mut self, slots: BTreeSet<u32>) {
        self.idle = slots;
    }

    /// Those that were expected get their share of the shards.
    pub(crate) fn admit(&mut self, now: Millis) -> Vec<Tell> {
        self.idle.clear();
        self.publish_if_outdated(now)
    }

    /// These brokers lose their shards to the others and leave the view; they
    /// hear of views until they are [forgotten](Self::forget).
    pub(crate) fn dismiss(&mut self, now: Millis, slots: BTreeSet<u32>) -> Vec<Tell> {
        self.idle.retain(|slot| !slots.contains(slot));
        self.leaving = slots;
        self.publish_if_outdated(now)
    }

    /// A broker that was dismissed has ended.
    pub(crate) fn forget(&mut self, slot: u32) {
        self.leaving.remove(&slot);
        self.brokers.remove(&slot);
        self.present.remove(&slot);
        self.applied.remove(&slot);
    }

    /// Whether every broker of the view, and every one that is to go, has opened
    /// and closed what the view says.
    pub(crate) fn is_applied(&self) -> bool {
        let slots = self.view.brokers().iter().map(|broker| broker.slot);
        let mut slots = slots.chain(self.leaving.iter().copied());
        slots.all(|slot| self.applied.get(&slot) == Some(&self.view.epoch()))
    }

    /// Whether this life of a broker has its shards, and workers know it.
    pub(crate) fn has_shards(&self, slot: u32, incarnation: u64) -> bool {
        let is_life =
            |broker: &BrokerNode| broker.slot == slot && broker.incarnation == incarnation;
        self.is_published()
            && self.view.brokers().iter().any(is_life)
            && self.applied.get(&slot) == Some(&self.view.epoch())
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
            Role::Worker | Role::Successor if !self.is_published() => Vec::new(),
            Role::Worker | Role::Successor | Role::Broker => vec![Tell::One(node.id)],
        }
    }

    /// From now on exactly these broker slots are set aside.
    pub(crate) fn set_aside(&mut self, now: Millis, slots: BTreeSet<u32>) -> Vec<Tell> {
        self.aside = slots;
        self.publish_if_outdated(now)
    }

    /// The broker slots that are set aside.
    pub(crate) fn aside(&self) -> &BTreeSet<u32> {
        &self.aside
    }

    /// A broker's stream broke. It may still serve, so it stays in the view.
    pub(crate) fn left(&mut self, id: NodeId) -> Vec<Tell> {
        match id.role {
            Role::Worker | Role::Successor => Vec::new(),
            Role::Broker => {
                self.present.remove(&id.slot);
                self.no_longer_missing(id.slot)
            }
        }
    }

    pub(crate) fn applied(&mut self, id: NodeId, epoch: u64) -> Vec<Tell> {
        if id.role == Role::Broker {
            self.applied.insert(id.slot, epoch);
        }
        match id.role {
            Role::Broker if epoch == self.view.epoch() => self.no_longer_missing(id.slot),
            Role::Worker | Role::Successor | Role::Broker => Vec::new(),
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
        // It says so again if it has applied one.
        self.applied.remove(&node.id.slot);
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
        may_change && (is_ahead || self.is_composed_otherwise())
    }

    fn is_composed_otherwise(&self) -> bool {
        let owners = self.owners();
        let slots = |brokers: &[BrokerNode]| -> BTreeSet<u32> {
            brokers.iter().map(|broker| broker.slot).collect()
        };
        if slots(&owners) != self.owning {
            return true;
        }
        let mut members = owners;
        members.extend(self.idle());
        members.sort_by_key(|broker| broker.slot);
        members.dedup_by_key(|broker| broker.slot);
        members != self.view.brokers()
    }

    /// The brokers that are to own the shards. Somebody must: when all are set
    /// aside, nothing moves any more.
    fn owners(&self) -> Vec<BrokerNode> {
        let of = |keep: &dyn Fn(u32) -> bool| -> Vec<BrokerNode> {
            let brokers = self.brokers.values();
            let staying = brokers.filter(|broker| !self.leaving.contains(&broker.slot));
            let kept = staying.filter(|broker| keep(broker.slot));
            kept.cloned().collect()
        };
        let owners = of(&|slot| !self.aside.contains(&slot) && !self.idle.contains(&slot));
        if !owners.is_empty() {
            return owners;
        }
        let before = of(&|slot| self.owning.contains(&slot));
        if before.is_empty() {
            of(&|_| true)
        } else {
            before
        }
    }

    /// The brokers that are to be in the view and to own nothing.
    fn idle(&self) -> impl Iterator<Item = BrokerNode> {
        let brokers = self.brokers.values();
        let idle = brokers.filter(|broker| {
            self.idle.contains(&broker.slot) && !self.aside.contains(&broker.slot)
        });
        idle.cloned()
    }

    fn publish_if_outdated(&mut self, now: Millis) -> Vec<Tell> {
        if self.view.epoch() > 0 && self.is_outdated() {
            self.publish(now)
        } else {
            Vec::new()
        }
    }

    fn publish(&mut self, now: Millis) -> Vec<Tell> {
        let owners = self.owners();
        self.owning = owners.iter().map(|broker| broker.slot).collect();
        self.view = View::next_with_idle(self.epoch_seen, &self.view, owners, self.idle());
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
mod tests;

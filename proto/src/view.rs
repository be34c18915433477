//! The view: the agreed map from shard to owner.

use std::collections::BTreeSet;

use crate::{SHARDS, ShardId, assign, control};

/// One life of one broker, and where its links are accepted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct BrokerNode {
    /// Which of the cluster's brokers: 1, 2, 3 …
    pub slot: u32,
    /// Tells this life of the slot from earlier ones.
    pub incarnation: u64,
    /// `unix:/path` or `http://host:port`.
    pub address: String,
}

/// Which broker owns which shard, since which epoch.
///
/// The default is the view before the first one: epoch 0, no brokers, no shard
/// has an owner.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct View {
    epoch: u64,
    /// By slot, each slot once.
    brokers: Vec<BrokerNode>,
    /// By shard number; empty when there are no brokers, else [`SHARDS`].
    ownerships: Vec<Ownership>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ownership {
    /// Index into `View::brokers`.
    broker: usize,
    /// The view epoch at which the owner opened the shard.
    epoch: u64,
}

/// Why a message is no view.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ViewError {
    /// `owners` has not one entry per shard (none without brokers).
    #[error("view with {brokers} brokers has {len} owners instead of {expected}")]
    OwnersLen {
        /// Brokers in the view.
        brokers: usize,
        /// Entries found.
        len: usize,
        /// Entries there should be.
        expected: usize,
    },
    /// `shard_epochs` has not one entry per shard (none without brokers).
    #[error("view with {brokers} brokers has {len} shard epochs instead of {expected}")]
    ShardEpochsLen {
        /// Brokers in the view.
        brokers: usize,
        /// Entries found.
        len: usize,
        /// Entries there should be.
        expected: usize,
    },
    /// An owner's index is not below the number of brokers.
    #[error("owner of shard {shard} is number {owner} of {brokers} brokers")]
    OwnerOutOfRange {
        /// The shard concerned.
        shard: ShardId,
        /// The index found.
        owner: u32,
        /// Brokers in the view.
        brokers: usize,
    },
    /// A shard was opened at an epoch that is still to come.
    #[error("shard {shard} is open since epoch {shard_epoch}, after the view's {epoch}")]
    ShardEpochAhead {
        /// The shard concerned.
        shard: ShardId,
        /// Its epoch.
        shard_epoch: u64,
        /// The view's epoch.
        epoch: u64,
    },
    /// Two brokers claim one slot.
    #[error("slot {slot} appears twice")]
    SlotRepeated {
        /// The slot concerned.
        slot: u32,
    },
    /// A broker cannot be reached.
    #[error("broker in slot {slot} has no address")]
    AddressMissing {
        /// The slot concerned.
        slot: u32,
    },
}

impl View {
    /// The view that follows `previous` when `live` are the brokers there are.
    ///
    /// A shard keeps its epoch while its owner's slot and incarnation stay the
    /// same; otherwise it gets the new view's epoch (delivery.md A5). Of
    /// several entries with one slot the highest incarnation counts.
    #[must_use]
    pub fn next(previous: &Self, live: impl IntoIterator<Item = BrokerNode>) -> Self {
        Self::at(previous.epoch.saturating_add(1), previous, live, [])
    }

    /// Like [`View::next`], with an epoch above `known` too: for an
    /// orchestrator that finds nodes which have seen later views than it has.
    #[must_use]
    pub fn next_above(
        known: u64,
        previous: &Self,
        live: impl IntoIterator<Item = BrokerNode>,
    ) -> Self {
        Self::next_with_idle(known, previous, live, [])
    }

    /// Like [`View::next_above`], with brokers besides that own nothing: workers
    /// link to them before any shard moves there. A slot that is also among
    /// `live` is not idle, and without `live` there are no idle brokers either.
    #[must_use]
    pub fn next_with_idle(
        known: u64,
        previous: &Self,
        live: impl IntoIterator<Item = BrokerNode>,
        idle: impl IntoIterator<Item = BrokerNode>,
    ) -> Self {
        let epoch = previous.epoch.max(known).saturating_add(1);
        Self::at(epoch, previous, live, idle)
    }

    fn at(
        epoch: u64,
        previous: &Self,
        live: impl IntoIterator<Item = BrokerNode>,
        idle: impl IntoIterator<Item = BrokerNode>,
    ) -> Self {
        let live = one_per_slot(live);
        let owning: Vec<u32> = live.iter().map(|broker| broker.slot).collect();
        let mut brokers = live;
        if !owning.is_empty() {
            let idle = idle.into_iter();
            brokers.extend(idle.filter(|broker| !owning.contains(&broker.slot)));
        }
        let brokers = one_per_slot(brokers);
        let ownerships = assign(&owning).map_or_else(Vec::new, |owners| {
            let place = |shard: ShardId| {
                let owner = owners[shard.index()];
                let broker = brokers
                    .binary_search_by_key(&owner, |broker| broker.slot)
                    .expect("an owner is one of the slots that were given");
                let epoch = match previous.owner(shard) {
                    Some(owner) if owner.is_same_life(&brokers[broker]) => {
                        previous.shard_epoch(shard)
                    }
                    Some(_) | None => epoch,
                };
                Ownership { broker, epoch }
            };
            ShardId::all().map(place).collect()
        });
        Self {
            epoch,
            brokers,
            ownerships,
        }
    }

    /// The slots of the brokers that own at least one shard.
    #[must_use]
    pub fn owning(&self) -> BTreeSet<u32> {
        let slot = |ownership: &Ownership| self.brokers[ownership.broker].slot;
        self.ownerships.iter().map(slot).collect()
    }

    /// The view's number; later views have higher ones.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The brokers, each slot once.
    #[must_use]
    pub fn brokers(&self) -> &[BrokerNode] {
        &self.brokers
    }

    /// The broker that has `shard` open; `None` in a view without brokers.
    #[must_use]
    pub fn owner(&self, shard: ShardId) -> Option<&BrokerNode> {
        self.ownerships
            .get(shard.index())
            .map(|ownership| &self.brokers[ownership.broker])
    }

    /// The view epoch at which the owner opened `shard`; 0 without an owner.
    #[must_use]
    pub fn shard_epoch(&self, shard: ShardId) -> u64 {
        self.ownerships
            .get(shard.index())
            .map_or(0, |ownership| ownership.epoch)
    }

    /// The shards that this life of this slot owns, with their epochs.
    pub fn shards_of(
        &self,
        slot: u32,
        incarnation: u64,
    ) -> impl Iterator<Item = (ShardId, u64)> + '_ {
        ShardId::all()
            .zip(&self.ownerships)
            .filter(move |(_, ownership)| {
                let owner = &self.brokers[ownership.broker];
                owner.slot == slot && owner.incarnation == incarnation
            })
            .map(|(shard, ownership)| (shard, ownership.epoch))
    }
}

impl BrokerNode {
    fn is_same_life(&self, other: &Self) -> bool {
        self.slot == other.slot && self.incarnation == other.incarnation
    }
}

fn one_per_slot(live: impl IntoIterator<Item = BrokerNode>) -> Vec<BrokerNode> {
    let mut brokers: Vec<BrokerNode> = live.into_iter().collect();
    brokers.sort_by_key(|broker| (broker.slot, !broker.incarnation));
    brokers.dedup_by_key(|broker| broker.slot);
    brokers
}

impl From<&View> for control::View {
    fn from(view: &View) -> Self {
        let owner = |ownership: &Ownership| {
            u32::try_from(ownership.broker).expect("there is one broker per 32-bit slot at most")
        };
        Self {
            epoch: view.epoch,
            brokers: view.brokers.iter().map(control::BrokerNode::from).collect(),
            owners: view.ownerships.iter().map(owner).collect(),
            shard_epochs: view.ownerships.iter().map(|o| o.epoch).collect(),
        }
    }
}

impl From<&BrokerNode> for control::BrokerNode {
    fn from(broker: &BrokerNode) -> Self {
        Self {
            slot: broker.slot,
            incarnation: broker.incarnation,
            address: broker.address.clone(),
        }
    }
}

impl TryFrom<control::View> for View {
    type Error = ViewError;

    fn try_from(message: control::View) -> Result<Self, ViewError> {
        check_lengths(&message)?;
        let order = order_by_slot(&message.brokers)?;
        let brokers = message.brokers.len();
        let ownership = |(shard, (&owner, &shard_epoch))| {
            let index = usize::try_from(owner).unwrap_or(usize::MAX);
            let broker = *order.get(index).ok_or(ViewError::OwnerOutOfRange {
                shard,
                owner,
                brokers,
            })?;
            if shard_epoch > message.epoch {
                return Err(ViewError::ShardEpochAhead {
                    shard,
                    shard_epoch,
                    epoch: message.epoch,
                });
            }
            Ok(Ownership {
                broker,
                epoch: shard_epoch,
            })
        };
        let ownerships = ShardId::all()
            .zip(message.owners.iter().zip(&message.shard_epochs))
            .map(ownership)
            .collect::<Result<_, _>>()?;
        let brokers = message.brokers.into_iter().map(|broker| BrokerNode {
            slot: broker.slot,
            incarnation: broker.incarnation,
            address: broker.address,
        });
        Ok(Self {
            epoch: message.epoch,
            brokers: one_per_slot(brokers),
            ownerships,
        })
    }
}

fn check_lengths(message: &control::View) -> Result<(), ViewError> {
    let brokers = message.brokers.len();
    let expected = if brokers == 0 { 0 } else { SHARDS };
    let len = message.owners.len();
    if len != expected {
        return Err(ViewError::OwnersLen {
            brokers,
            len,
            expected,
        });
    }
    let len = message.shard_epochs.len();
    if len != expected {
        return Err(ViewError::ShardEpochsLen {
            brokers,
            len,
            expected,
        });
    }
    Ok(())
}

/// For each index into `brokers` the index it has once they are sorted by slot.
fn order_by_slot(brokers: &[control::BrokerNode]) -> Result<Vec<usize>, ViewError> {
    if let Some(broker) = brokers.iter().find(|broker| broker.address.is_empty()) {
        return Err(ViewError::AddressMissing { slot: broker.slot });
    }
    let mut by_slot: Vec<usize> = (0..brokers.len()).collect();
    by_slot.sort_by_key(|&index| brokers[index].slot);
    if let Some(pair) = by_slot
        .windows(2)
        .find(|pair| brokers[pair[0]].slot == brokers[pair[1]].slot)
    {
        let slot = brokers[pair[0]].slot;
        return Err(ViewError::SlotRepeated { slot });
    }
    let mut order = vec![0; brokers.len()];
    for (to, from) in by_slot.into_iter().enumerate() {
        order[from] = to;
    }
    Ok(order)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn broker(slot: u32, incarnation: u64) -> BrokerNode {
        BrokerNode {
            slot,
            incarnation,
            address: format!("unix:/run/broker-{slot}-{incarnation}.sock"),
        }
    }

    fn view() -> View {
        View::next(&View::default(), [broker(1, 1), broker(2, 1)])
    }

    fn refused(change: impl FnOnce(&mut control::View)) -> ViewError {
        let mut message = control::View::from(&view());
        change(&mut message);
        View::try_from(message).unwrap_err()
    }

    #[test]
    fn without_brokers_no_shard_has_an_owner() {
        let empty = View::try_from(control::View::default()).unwrap();
        assert_eq!(empty, View::default());
        assert!(ShardId::all().all(|shard| empty.owner(shard).is_none()));
        assert!(ShardId::all().all(|shard| empty.shard_epoch(shard) == 0));

        let emptied = View::next(&view(), []);
        assert_eq!(emptied.epoch(), 2);
        assert!(ShardId::all().all(|shard| emptied.owner(shard).is_none()));
    }

    #[test]
    fn a_shard_keeps_its_epoch_while_the_same_life_of_its_owner_has_it() {
        let first = view();
        let second = View::next(&first, [broker(1, 1), broker(2, 1), broker(3, 1)]);
        assert_eq!(second.epoch(), 2);
        for shard in ShardId::all() {
            let moved = second.owner(shard).unwrap().slot != first.owner(shard).unwrap().slot;
            assert_eq!(second.shard_epoch(shard), if moved { 2 } else { 1 });
        }
        assert!(ShardId::all().any(|shard| second.shard_epoch(shard) == 1));
    }

    #[test]
    fn a_restarted_owner_keeps_its_shards_at_a_new_epoch() {
        let first = view();
        let second = View::next(&first, [broker(1, 2), broker(2, 1)]);
        for shard in ShardId::all() {
            let slot = second.owner(shard).unwrap().slot;
            assert_eq!(slot, first.owner(shard).unwrap().slot);
            assert_eq!(second.shard_epoch(shard), if slot == 1 { 2 } else { 1 });
        }
        assert_eq!(second.shards_of(1, 1).count(), 0);
        let of_both = second.shards_of(1, 2).count() + second.shards_of(2, 1).count();
        assert_eq!(of_both, SHARDS);
    }

    #[test]
    fn a_shard_that_comes_back_to_an_owner_does_so_at_a_new_epoch() {
        let first = view();
        let second = View::next(&first, [broker(2, 1)]);
        let third = View::next(&second, [broker(1, 1), broker(2, 1)]);
        assert!(third.shards_of(1, 1).all(|(_, epoch)| epoch == 3));
    }

    #[test]
    fn an_idle_broker_is_in_the_view_and_owns_nothing() {
        let first = view();
        let idle = [broker(3, 1), broker(2, 7)];
        let second = View::next_with_idle(0, &first, [broker(1, 1), broker(2, 1)], idle);
        assert_eq!(second.epoch(), 2);
        let slots = |view: &View| view.brokers().iter().map(|b| b.slot).collect::<Vec<_>>();
        assert_eq!(slots(&second), [1, 2, 3]);
        assert_eq!(second.owning(), BTreeSet::from([1, 2]));
        for shard in ShardId::all() {
            assert_eq!(second.owner(shard), first.owner(shard));
            assert_eq!(second.shard_epoch(shard), 1, "nothing is opened again");
        }
        let message = control::View::from(&second);
        assert_eq!(View::try_from(message).unwrap(), second);
        let nobody = View::next_with_idle(0, &second, [], [broker(3, 1)]);
        assert!(slots(&nobody).is_empty());
    }

    #[test]
    fn the_next_epoch_is_above_any_that_is_known() {
        assert_eq!(View::next_above(40, &view(), [broker(1, 1)]).epoch(), 41);
        assert_eq!(View::next_above(0, &view(), [broker(1, 1)]).epoch(), 2);
    }

    #[test]
    fn of_two_lives_of_one_slot_the_later_counts() {
        let view = View::next(&View::default(), [broker(1, 5), broker(1, 9), broker(1, 7)]);
        assert_eq!(view.brokers(), [broker(1, 9)]);
    }

    #[test]
    fn a_message_with_the_wrong_number_of_shards_is_no_view() {
        let error = refused(|message| _ = message.owners.pop());
        assert!(matches!(error, ViewError::OwnersLen { len: 255, .. }));
        let error = refused(|message| message.shard_epochs.push(1));
        assert!(matches!(error, ViewError::ShardEpochsLen { len: 257, .. }));
        let error = refused(|message| message.brokers.clear());
        assert!(matches!(error, ViewError::OwnersLen { expected: 0, .. }));
    }

    #[test]
    fn a_message_that_contradicts_itself_is_no_view() {
        let error = refused(|message| message.owners[7] = 2);
        assert!(matches!(error, ViewError::OwnerOutOfRange { owner: 2, .. }));
        let error = refused(|message| message.shard_epochs[0] = 2);
        assert!(matches!(error, ViewError::ShardEpochAhead { .. }));
        let error = refused(|message| message.brokers[1].slot = 1);
        assert_eq!(error, ViewError::SlotRepeated { slot: 1 });
        let error = refused(|message| message.brokers[1].address.clear());
        assert_eq!(error, ViewError::AddressMissing { slot: 2 });
    }

    #[test]
    fn the_order_of_the_brokers_in_a_message_does_not_matter() {
        let mut message = control::View::from(&view());
        message.brokers.reverse();
        for owner in &mut message.owners {
            *owner = 1 - *owner;
        }
        assert_eq!(View::try_from(message), Ok(view()));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn a_view_survives_the_wire(lives in proptest::collection::vec((1_u32..9, 0_u64..3), 0..8)) {
            let mut view = View::default();
            for life in &lives {
                view = View::next(&view, lives.iter().filter(|l| *l != life).map(|&(s, i)| broker(s, i)));
                prop_assert_eq!(View::try_from(control::View::from(&view)), Ok(view.clone()));
            }
        }
    }
}

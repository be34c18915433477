//! Which broker should own which shard: rendezvous hashing with bounded load.
//!
//! Every (shard, broker) pair has a weight, a hash of both. The pairs are taken
//! from the heaviest to the lightest; a pair is accepted when its shard has no
//! owner yet and its broker has room. So the outcome depends on the set of
//! slots alone, every shard prefers the same brokers whoever else is there,
//! and no broker has more than [`shards_per_broker_max`].

use xxhash_rust::xxh3::xxh3_64;

use crate::{SHARDS, ShardId};

/// The slot of the broker that owns each shard, by shard number; `None` when
/// there are no brokers.
///
/// The order of `slots` and repetitions in it have no influence.
#[must_use]
pub fn assign(slots: &[u32]) -> Option<[u32; SHARDS]> {
    let mut slots = slots.to_vec();
    slots.sort_unstable();
    slots.dedup();
    let room = shards_per_broker_max(slots.len())?;

    let mut loads = vec![0_usize; slots.len()];
    let mut owners = [None; SHARDS];
    for (_, shard, broker) in pairs_by_weight(&slots) {
        if owners[shard].is_none() && loads[broker] < room {
            owners[shard] = Some(slots[broker]);
            loads[broker] += 1;
        }
    }
    Some(owners.map(|owner| owner.expect("the room of all brokers together holds every shard")))
}

/// Most shards one of `brokers` brokers may own; `None` when there are none.
///
/// That is 1.1 times the mean, rounded down, or the mean, rounded up, where
/// that is more (with many brokers a whole number within 1.1 of the mean need
/// not exist).
#[must_use]
pub fn shards_per_broker_max(brokers: usize) -> Option<usize> {
    let bound = (SHARDS * 11).checked_div(brokers.checked_mul(10)?)?;
    Some(bound.max(SHARDS.div_ceil(brokers)))
}

/// Every (weight, shard, broker), the heaviest first; `broker` is an index.
fn pairs_by_weight(slots: &[u32]) -> Vec<(u64, usize, usize)> {
    let mut pairs = Vec::with_capacity(SHARDS * slots.len());
    for shard in ShardId::all().map(ShardId::index) {
        for (broker, &slot) in slots.iter().enumerate() {
            pairs.push((weight(shard, slot), shard, broker));
        }
    }
    // Equal weights are settled by the smaller shard, then the smaller slot.
    pairs.sort_unstable_by_key(|&(weight, shard, broker)| (!weight, shard, broker));
    pairs
}

/// How much `shard` belongs to the broker in `slot`.
fn weight(shard: usize, slot: u32) -> u64 {
    let mut pair = [0; 12];
    pair[..8].copy_from_slice(&(shard as u64).to_le_bytes());
    pair[8..].copy_from_slice(&slot.to_le_bytes());
    xxh3_64(&pair)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn slots(count: std::ops::Range<usize>) -> impl Strategy<Value = Vec<u32>> {
        proptest::collection::btree_set(any::<u32>(), count)
            .prop_map(BTreeSet::into_iter)
            .prop_map(Iterator::collect)
    }

    fn load(owners: &[u32; SHARDS], slot: u32) -> usize {
        owners.iter().filter(|&&owner| owner == slot).count()
    }

    fn moves(from: &[u32; SHARDS], to: &[u32; SHARDS]) -> usize {
        from.iter().zip(to).filter(|(from, to)| from != to).count()
    }

    #[test]
    fn without_brokers_nothing_is_assigned() {
        assert_eq!(assign(&[]), None);
        assert_eq!(shards_per_broker_max(0), None);
    }

    #[test]
    fn no_broker_may_own_over_1_1_times_the_mean_where_whole_numbers_allow_it() {
        for brokers in 1..=2 * SHARDS {
            let max = shards_per_broker_max(brokers).unwrap();
            let possible = SHARDS.div_ceil(brokers) * brokers * 10 <= SHARDS * 11;
            let kept = max * brokers * 10 <= SHARDS * 11;
            assert_eq!(possible, kept, "{brokers} brokers, at most {max} each");
        }
    }

    #[test]
    fn with_as_many_brokers_as_shards_each_owns_one() {
        let slots: Vec<u32> = (1..=256).collect();
        let owners: BTreeSet<u32> = assign(&slots).unwrap().into_iter().collect();
        assert_eq!(owners.len(), SHARDS);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn every_broker_keeps_within_the_bound(slots in slots(1..40)) {
            let owners = assign(&slots).unwrap();
            let max = shards_per_broker_max(slots.len()).unwrap();
            for &slot in &slots {
                prop_assert!(load(&owners, slot) <= max);
            }
            prop_assert!(owners.iter().all(|owner| slots.contains(owner)));
        }

        #[test]
        fn the_order_of_the_brokers_has_no_influence(
            (slots, shuffled) in slots(1..10).prop_flat_map(|slots| {
                (Just(slots.clone()), Just(slots).prop_shuffle())
            })
        ) {
            prop_assert_eq!(assign(&slots), assign(&shuffled));
        }

        // No assignment within the bound moves fewer shards than the broker
        // that goes had. Measured over 2,800 removals from sets of 2 to 12
        // random slots, in multiples of the mean load: 1.00 on average for 2
        // or 3 brokers, 1.10 for 8, 1.20 for 12; 1.54 in the worst case.
        #[test]
        fn a_broker_that_comes_or_goes_moves_few_shards(slots in slots(2..13)) {
            let all = assign(&slots).unwrap();
            let mean = SHARDS.div_ceil(slots.len());
            for &gone in &slots {
                let rest: Vec<u32> = slots.iter().copied().filter(|&slot| slot != gone).collect();
                let without = assign(&rest).unwrap();
                let moved = moves(&all, &without);
                prop_assert!(moved >= load(&all, gone));
                prop_assert!(
                    moved * 10 <= mean * 18,
                    "{moved} moves, the mean is {mean}, {} brokers",
                    slots.len()
                );
            }
        }
    }
}

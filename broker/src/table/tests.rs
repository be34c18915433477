//! How views open and close shards.

use std::{collections::HashSet, hash::BuildHasher as _};

use bytes::Bytes;
use muster_proto::BrokerNode;
use rand::{SeedableRng, rngs::StdRng};

use super::*;

const NOW: Millis = Millis(0);

fn table() -> Table {
    Table::new(Limits::for_tests(), 1000, Source::Nothing)
}

fn next(previous: &View, brokers: &[(u32, u64)]) -> View {
    let node = |&(slot, incarnation)| BrokerNode {
        slot,
        incarnation,
        address: "unix:/nowhere".into(),
    };
    View::next(previous, brokers.iter().map(node))
}

fn publish(table: &Table, channel: &str, n: u64, shard_epoch: u64) -> Result<(), RefusalReason> {
    let publish = Publish {
        seq: 1,
        channel: Bytes::copy_from_slice(channel.as_bytes()),
        data: None,
        producer: Bytes::from_static(b"p"),
        n,
        shard_epoch,
        age_ms: 0,
        attempt: 0,
    };
    let mut rng = StdRng::seed_from_u64(n);
    let mut turn = Turn::new(NOW);
    let link = Arc::new(Link::new(NOW));
    let publishing = table.publish(&mut turn, &mut rng, &link, &publish);
    assert_eq!(table.commit(&mut turn), []);
    table.count(&turn);
    match publishing {
        Publishing::Done(outcome) => outcome,
        Publishing::Staged => Ok(()),
    }
}

fn head(table: &Table, channel: &str) -> Option<u64> {
    let request = ReadRequest {
        channel: Bytes::copy_from_slice(channel.as_bytes()),
        ..ReadRequest::default()
    };
    Some(table.read(&request, 0).ok()?.head?.offset)
}

#[test]
fn exactly_the_shards_that_the_view_gives_are_open() {
    let table = table();
    let one = next(&View::default(), &[(1, 1)]);
    let applied = table.apply(NOW, &one, 1, 1);
    assert_eq!((applied.opened, applied.closed, applied.kept), (256, 0, 0));

    let two = next(&one, &[(1, 1), (2, 1)]);
    let ours = two.shards_of(1, 1).count();
    let applied = table.apply(NOW, &two, 1, 1);
    let expected = (0, 256 - ours, ours);
    assert_eq!((applied.opened, applied.closed, applied.kept), expected);
    assert_eq!(usize::try_from(table.stats().shards).unwrap(), ours);

    // The view is for another life of this slot.
    let three = next(&two, &[(1, 2), (2, 1)]);
    assert_eq!(table.apply(NOW, &three, 1, 1).closed, ours);
    assert_eq!(publish(&table, "a", 1, 1), Err(RefusalReason::WrongEpoch));
}

#[test]
fn a_shard_keeps_its_state_while_its_epoch_stays_and_loses_it_otherwise() {
    let table = table();
    let one = next(&View::default(), &[(1, 1)]);
    table.apply(NOW, &one, 1, 1);
    let channels: Vec<String> = (0..20).map(|channel| channel.to_string()).collect();
    for (n, channel) in (1..).zip(&channels) {
        publish(&table, channel, n, 1).unwrap();
    }
    let two = next(&one, &[(1, 1), (2, 1)]);
    let three = next(&two, &[(1, 1)]);
    for view in [&two, &three] {
        table.apply(NOW, view, 1, 1);
    }
    for channel in &channels {
        let stayed = two.owner(shard_of(channel)).unwrap().slot == 1;
        assert_eq!(head(&table, channel), stayed.then_some(1));
        let epoch = three.shard_epoch(shard_of(channel));
        assert_eq!(epoch, if stayed { 1 } else { 3 });
        publish(&table, channel, 100, epoch).unwrap();
    }
}

#[test]
fn a_view_that_was_passed_over_does_not_save_a_shard_that_was_elsewhere() {
    let table = table();
    let one = next(&View::default(), &[(1, 1)]);
    table.apply(NOW, &one, 1, 1);
    publish(&table, "a", 1, 1).unwrap();
    // The broker only sees the first and the last of these.
    let elsewhere = next(&one, &[(2, 1)]);
    let back = next(&elsewhere, &[(1, 1)]);
    let applied = table.apply(NOW, &back, 1, 1);
    assert_eq!((applied.opened, applied.closed), (256, 256));
    assert_eq!(head(&table, "a"), None);
}

#[test]
fn channels_of_closed_shards_make_room_for_others() {
    let table = table();
    let one = next(&View::default(), &[(1, 1)]);
    table.apply(NOW, &one, 1, 1);
    for n in 1..=10 {
        publish(&table, &n.to_string(), n, 1).unwrap();
    }
    let stats = table.stats();
    assert_eq!((stats.channels, stats.publications), (10, 10));
    assert!(stats.tail_bytes > 0);
    table.apply(NOW, &next(&one, &[]), 1, 1);
    let stats = table.stats();
    assert_eq!((stats.shards, stats.channels, stats.tail_bytes), (0, 0, 0));
}

#[test]
fn every_shard_has_a_lock_of_its_own() {
    let hasher = BuildHasherDefault::<OwnLock>::default();
    let locks: HashSet<u64> = ShardId::all()
        .map(|shard| (hasher.hash_one(shard) << 7) >> 56)
        .collect();
    assert_eq!(locks.len(), SHARDS);
}

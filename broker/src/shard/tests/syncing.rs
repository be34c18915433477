//! What a shard promises while its journal waits for the disk, and when that
//! fails.

use std::io;

use super::*;
use crate::journal::{
    self, Budget, Clock, Options, Sizes,
    memory::{Faults, Memory, MemoryDisk},
};

/// A bench whose shard has a journal.
fn journaled(disk: &MemoryDisk, is_synced: bool) -> Bench {
    let mut bench = Bench::new();
    let clock = Clock {
        boot: 1,
        now: Millis(0),
        wall_ms: 0,
    };
    let options = Options {
        is_synced,
        budget: Arc::new(Budget::new(1 << 30)),
        sizes: Sizes::small(),
        broken: journal::BrokenRules::default(),
    };
    let (id, storage) = (ShardId::new(7), Box::new(Memory::new(disk)));
    let recovered =
        journal::open(storage, id, EPOCH, clock, &Limits::for_tests(), options).unwrap();
    let count = Arc::new(ChannelCount::new(1000));
    bench.shard = Shard::recover(id, EPOCH, recovered, count);
    bench
}

impl Bench {
    /// Stages a publication of `link` and commits it.
    fn stage(&mut self, link: &Arc<Link>, seq: u64, n: u64, data: &str) -> Publishing {
        let publish = Publish {
            seq,
            ..publication("p", n, "a", data)
        };
        self.turn(|shard, turn, rng| {
            let publishing = shard.publish(turn, rng, link, &publish);
            shard.commit(turn);
            publishing
        })
    }

    fn end_sync(&mut self, outcome: &io::Result<()>) {
        self.turn(|shard, turn, _| shard.end_sync(turn, outcome));
    }
}

/// First and last number of acks, numbers and reasons of refusals.
fn answers(frames: Vec<Frame>) -> Vec<(u64, u64, Option<RefusalReason>)> {
    let answer = |frame| match frame {
        Frame::Ack(ack) => (ack.first_seq, ack.last_seq, None),
        Frame::Refusal(refusal) => (refusal.seq, refusal.seq, Some(refusal.reason())),
        other => panic!("{other:?} is no answer"),
    };
    frames.into_iter().map(answer).collect()
}

#[test]
fn nobody_hears_of_a_publication_before_it_is_synced() {
    let mut bench = journaled(&MemoryDisk::default(), true);
    let (publisher, subscriber) = (bench.link(0), bench.link(PLENTY));
    bench.subscribe(&subscriber, "a", None);
    bench.subscribed(&subscriber);
    assert_eq!(bench.stage(&publisher, 1, 1, "1"), Publishing::Staged);
    let first = bench.shard.begin_sync().expect("something is written");
    assert_eq!(bench.stage(&publisher, 2, 2, "2"), Publishing::Staged);
    // A copy waits for what it is a copy of.
    assert_eq!(bench.stage(&publisher, 3, 2, "2"), Publishing::Staged);
    assert!(bench.shard.begin_sync().is_none(), "one goes on");
    assert_eq!(bench.relayed(&subscriber), []);
    assert!(bench.pull_all(&publisher).is_empty());
    let late = bench.link(PLENTY);
    bench.subscribe(&late, "a", None);
    assert_eq!(bench.subscribed(&late).0.offset, 0);

    bench.end_sync(&first.sync());
    assert_eq!(bench.relayed(&subscriber), numbered(1..=1));
    assert_eq!(answers(bench.pull_all(&publisher)), [(1, 1, None)]);
    let second = bench.shard.begin_sync().expect("the rest is written");
    bench.end_sync(&second.sync());
    assert_eq!(bench.relayed(&subscriber), numbered(2..=2));
    assert_eq!(answers(bench.pull_all(&publisher)), [(2, 3, None)]);
    assert_eq!(bench.relayed(&late), numbered(1..=2));
    assert!(bench.shard.begin_sync().is_none(), "all is synced");
}

#[test]
fn after_a_sync_that_failed_nothing_more_is_taken_until_the_shard_is_opened_again() {
    let disk = MemoryDisk::default();
    let mut bench = journaled(&disk, true);
    let publisher = bench.link(0);
    let _ = bench.stage(&publisher, 1, 1, "1");
    bench.shard.begin_sync().expect("something is written");
    let failed = Err(io::ErrorKind::StorageFull.into());
    bench.end_sync(&failed);
    let unknown = Some(RefusalReason::OutcomeUnknown);
    assert_eq!(answers(bench.pull_all(&publisher)), [(1, 1, unknown)]);
    let refused = |reason| Publishing::Done(Err(reason));
    let again = bench.stage(&publisher, 2, 1, "1");
    assert_eq!(again, refused(RefusalReason::OutcomeUnknown));
    let next = bench.stage(&publisher, 3, 2, "2");
    assert_eq!(next, refused(RefusalReason::JournalFailed));
    drop(bench);
    let mut bench = journaled(&disk, true);
    let known = bench.stage(&bench.link(0), 1, 1, "1");
    assert_eq!(known, Publishing::Done(Ok(())), "it was in the journal");
}

#[test]
fn a_full_disk_refuses_all_of_a_turn_and_uses_neither_offsets_nor_keys() {
    let disk = MemoryDisk::default();
    let mut bench = journaled(&disk, false);
    let (publisher, subscriber) = (bench.link(0), bench.link(PLENTY));
    bench.subscribe(&subscriber, "a", None);
    bench.subscribed(&subscriber);
    let _ = bench.stage(&publisher, 1, 1, "1");
    assert_eq!(answers(bench.pull_all(&publisher)), [(1, 1, None)]);
    disk.set_faults(Faults {
        room: Some(40),
        no_truncation: false,
    });
    let publish = |seq, n, data: &str| Publish {
        seq,
        ..publication("p", n, "a", data)
    };
    let turn = [publish(2, 2, "2"), publish(3, 1, "1"), publish(4, 3, "3")];
    bench.turn(|shard, of, rng| {
        for publish in &turn {
            let _ = shard.publish(of, rng, &publisher, publish);
        }
        shard.commit(of);
    });
    let failed = Some(RefusalReason::JournalFailed);
    // The copy is of one that is in the log.
    let expected = [(2, 2, failed), (3, 3, None), (4, 4, failed)];
    assert_eq!(answers(bench.pull_all(&publisher)), expected);
    disk.set_faults(Faults::default());
    let _ = bench.stage(&publisher, 5, 4, "2");
    assert_eq!(answers(bench.pull_all(&publisher)), [(5, 5, None)]);
    assert_eq!(bench.relayed(&subscriber), numbered(1..=2));
    // A copy of what was refused is not taken for one that is in the log.
    let copy = bench.stage(&publisher, 6, 3, "3");
    let unknown = Publishing::Done(Err(RefusalReason::OutcomeUnknown));
    assert_eq!(copy, unknown);
}

#[test]
fn what_waits_when_its_shard_closes_is_to_be_sent_to_the_next_owner_which_knows_it() {
    let disk = MemoryDisk::default();
    let mut bench = journaled(&disk, true);
    let publisher = bench.link(0);
    let _ = bench.stage(&publisher, 1, 1, "1");
    let Bench { shard, .. } = bench;
    shard.close(&mut Turn::new(Millis(0)));
    let mut bench = journaled(&disk, true);
    let moved = Some(RefusalReason::WrongEpoch);
    assert_eq!(answers(bench.pull_all(&publisher)), [(1, 1, moved)]);
    let known = bench.stage(&bench.link(0), 1, 1, "1");
    assert_eq!(known, Publishing::Done(Ok(())));
}

#[test]
fn a_link_is_told_of_what_it_misses_because_the_journal_cannot_be_read_again() {
    let disk = MemoryDisk::default();
    let mut bench = journaled(&disk, false);
    let (publisher, subscriber) = (bench.link(0), bench.link(0));
    bench.subscribe(&subscriber, "a", None);
    let (start, _) = bench.subscribed(&subscriber);
    for n in 1..=30 {
        let staged = bench.stage(&publisher, n, n, &n.to_string());
        assert_eq!(staged, Publishing::Staged);
    }
    drop(bench);
    let mut bench = journaled(&disk, false);
    let (newest, _) = disk.newest().unwrap();
    assert!(newest > 2, "everything is in the newest segment");
    disk.put(newest - 1, b"no segment".to_vec());
    let link = bench.link(PLENTY);
    bench.subscribe(&link, "a", Some(start));
    assert_eq!(bench.subscribed(&link), (start, true));
    let position = bench.hole(&link, 30);
    assert_eq!(position.generation, start.generation);
    assert!((1..30).contains(&position.offset), "{}", position.offset);
}

//! What a journal promises: whatever fails wherever, what was acknowledged is
//! there again, and nothing else is.

use std::time::Duration;

use bytes::Bytes;
use muster_proto::link::Position;
use proptest::prelude::*;

use super::{
    format::{HEADER_BYTES, Record, decode},
    memory::{Faults, Memory, MemoryDisk},
    recovery::{Damage, Recovery},
    *,
};
use crate::{
    keys::{Known, Last},
    limits::Limits,
};

mod files;
mod histories;
mod stored;

const SHARD: ShardId = ShardId::new(7);
const CHANNELS: [&str; 3] = ["", "a", "b"];

fn options() -> Options {
    Options {
        is_synced: false,
        budget: Arc::new(Budget::new(1 << 30)),
        sizes: Sizes::small(),
        broken: BrokenRules::default(),
    }
}

fn clock(now: u64) -> Clock {
    Clock {
        boot: 1,
        now: Millis(now),
        wall_ms: 1_000_000 + now,
    }
}

/// A channel: its name, its position, and what is retained.
type Content = (Bytes, Position, Vec<(u64, Option<Bytes>)>);

/// A shard's log and journal on a disk, used as a shard does.
struct Bench {
    disk: MemoryDisk,
    log: Log,
    journal: Journal,
    recovery: Recovery,
    now: Millis,
    n: u64,
}

impl Bench {
    fn open(disk: &MemoryDisk, epoch: u64, clock: Clock) -> Result<Self, RecoveryError> {
        Self::open_with(disk, epoch, clock, &Limits::for_tests(), options())
    }

    fn open_with(
        disk: &MemoryDisk,
        epoch: u64,
        clock: Clock,
        limits: &Limits,
        options: Options,
    ) -> Result<Self, RecoveryError> {
        let storage = Box::new(Memory::new(disk));
        let recovered = open(storage, SHARD, epoch, clock, limits, options)?;
        Ok(Self {
            disk: disk.clone(),
            n: recovered.log.keys().last(b"p").n,
            log: recovered.log,
            journal: recovered.journal,
            recovery: recovered.recovery,
            now: clock.now,
        })
    }

    fn new() -> Self {
        Self::open(&MemoryDisk::default(), 1, clock(0)).unwrap()
    }

    /// Publishes a group in one commit.
    fn publish(&mut self, group: &[(&str, &str)]) -> Result<(), CommitError> {
        let mut staged = Vec::new();
        for (channel, data) in group {
            self.n += 1;
            let key = match self.log.find(channel.as_bytes()) {
                Some(key) => key,
                None => {
                    let key = self.log.begin(self.now, channel.as_bytes(), 1000 + self.n);
                    self.journal.stage_channel(key, &self.log);
                    key
                }
            };
            let before = self.log.keys_mut().remember(b"p", self.n).unwrap();
            let publication = StagedPublication {
                producer: b"p",
                n: self.n,
                refused: before.refused,
                data: Some(data.as_bytes()),
            };
            let (log, now) = (&self.log, self.now);
            self.journal.stage_publication(now, key, log, publication);
            self.log.assign(self.now, key);
            staged.push((key, Bytes::copy_from_slice(data.as_bytes()), before, self.n));
        }
        let outcome = self.journal.commit();
        if outcome.is_err() {
            for (key, _, before, _) in staged.iter().rev() {
                self.log.take_back(*key);
                self.log.keys_mut().restore(b"p", *before);
            }
            for (_, _, _, n) in staged {
                self.log.keys_mut().note_refused(b"p", n);
            }
            return outcome.map(|_| ());
        }
        for (key, data, ..) in staged {
            self.log.append(self.now.into(), self.now, key, Some(data));
        }
        self.journal.tidy(&self.log, 0, false);
        Ok(())
    }

    /// Every channel, by name.
    fn content(&mut self) -> Vec<Content> {
        let keys: Vec<_> = self.log.channel_keys().collect();
        let mut content: Vec<_> = keys
            .into_iter()
            .map(|key| {
                self.log.load(key, 0);
                let retained = self.log.after(key, 0);
                let retained = retained.map(|(offset, data)| (offset, data.cloned()));
                (
                    self.log.name(key).clone(),
                    self.log.head(key),
                    retained.collect(),
                )
            })
            .collect();
        content.sort_by(|(a, ..), (b, ..)| a.cmp(b));
        content
    }

    /// The same disk after SIGKILL.
    fn killed(self) -> MemoryDisk {
        self.disk.clone()
    }

    fn damage_of(disk: &MemoryDisk) -> (u64, Damage) {
        match Self::open(disk, 9, clock(0)) {
            Err(RecoveryError::Damaged { at, damage, .. }) => (at, damage),
            other => panic!("{other:?} instead of damage"),
        }
    }
}

impl std::fmt::Debug for Bench {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Bench").field(&self.recovery).finish()
    }
}

/// Where the records of a segment begin, and its end.
fn boundaries(sequence: u64, segment: &[u8]) -> Vec<usize> {
    let mut at = HEADER_BYTES;
    let mut all = vec![at];
    while let Some((_, end)) = decode(segment, sequence, at).unwrap() {
        at = end;
        all.push(at);
    }
    all
}

#[test]
fn what_was_committed_is_there_again_with_its_keys() {
    let mut bench = Bench::new();
    bench
        .publish(&[("a", "1"), ("b", "1"), ("a", "2")])
        .unwrap();
    bench.publish(&[("", "null")]).unwrap();
    let (content, n) = (bench.content(), bench.n);
    let mut again = Bench::open(&bench.killed(), 2, clock(5)).unwrap();
    assert_eq!(again.content(), content);
    assert_eq!(again.log.keys().knows(b"p", n), Known::Yes);
    assert_eq!(again.log.keys().knows(b"p", n + 1), Known::No);
    assert_eq!(
        (again.recovery.publications, again.recovery.torn_bytes),
        (4, 0)
    );
}

#[test]
fn retention_counts_the_time_that_the_journal_was_closed() {
    let mut bench = Bench::new();
    bench.publish(&[("a", "1")]).unwrap();
    bench.now = Millis(20_000);
    bench.publish(&[("a", "2")]).unwrap();
    let mut again = Bench::open(&bench.killed(), 2, clock(35_000)).unwrap();
    let retained = &again.content()[0].2;
    assert_eq!(retained, &[(2, Some(Bytes::from_static(b"2")))]);
}

#[test]
fn after_another_boot_ages_follow_the_wall_clock() {
    let mut bench = Bench::new();
    bench.now = Millis(100_000);
    bench.publish(&[("a", "1")]).unwrap();
    let disk = bench.disk.clone();
    bench.journal.close();
    // 20 s later by the wall clock, 5 s after the start of the machine.
    let clock = |seconds: u64| Clock {
        boot: 2,
        now: Millis(5_000),
        wall_ms: 1_000_000 + 100_000 + seconds * 1000,
    };
    let mut again = Bench::open(&disk, 2, clock(20)).unwrap();
    assert_eq!(again.content()[0].2.len(), 1);
    assert!(!again.recovery.is_anew);
}

#[test]
fn a_crash_of_the_machine_begins_new_generations_unless_all_was_synced() {
    for is_synced in [false, true] {
        let options = || Options {
            is_synced,
            ..options()
        };
        let disk = MemoryDisk::default();
        let mut bench =
            Bench::open_with(&disk, 1, clock(0), &Limits::for_tests(), options()).unwrap();
        bench.publish(&[("a", "1")]).unwrap();
        drop(bench);
        let other_boot = Clock {
            boot: 2,
            ..clock(10)
        };
        let mut again =
            Bench::open_with(&disk, 2, other_boot, &Limits::for_tests(), options()).unwrap();
        assert_eq!(again.recovery.is_anew, !is_synced);
        assert_eq!(again.content().is_empty(), !is_synced);
        // The epoch is not forgotten.
        drop(again);
        let earlier = Bench::open(&disk, 1, other_boot).unwrap_err();
        assert!(matches!(
            earlier,
            RecoveryError::LaterEpoch { found: 2, .. }
        ));
    }
}

#[test]
fn a_shard_that_a_crash_of_the_machine_has_cut_anywhere_opens_anew() {
    let mut bench = Bench::new();
    bench.publish(&[("a", "1"), ("b", "2")]).unwrap();
    let (sequence, whole) = bench.disk.newest().unwrap();
    drop(bench);
    let other_boot = Clock {
        boot: 2,
        ..clock(10)
    };
    let zeros = vec![0; whole.len()];
    let cuts = (0..=whole.len()).map(|len| whole[..len].to_vec());
    for content in cuts.chain([zeros]) {
        let disk = MemoryDisk::default();
        disk.put(sequence, content);
        let mut bench = Bench::open(&disk, 2, other_boot).unwrap();
        assert!(bench.recovery.is_anew);
        bench.publish(&[("a", "3")]).unwrap();
        drop(bench);
        assert!(Bench::open(&disk, 3, other_boot).is_ok());
    }
}

#[test]
fn a_shard_is_not_opened_at_an_epoch_before_its_last() {
    let disk = Bench::open(&MemoryDisk::default(), 5, clock(0))
        .unwrap()
        .killed();
    let error = Bench::open(&disk, 4, clock(0)).unwrap_err();
    assert!(matches!(
        error,
        RecoveryError::LaterEpoch { found: 5, epoch: 4 }
    ));
    Bench::open(&disk, 5, clock(0)).unwrap();
}

#[test]
fn old_segments_go_and_neither_keys_nor_positions_go_with_them() {
    let mut bench = Bench::new();
    bench.publish(&[("b", "1")]).unwrap();
    for _ in 0..200 {
        bench.publish(&[("a", "some data")]).unwrap();
        bench.now = bench.now + Duration::from_millis(500);
        bench.log.trim(bench.now);
    }
    assert!(bench.disk.bytes() < 10_000, "{} bytes", bench.disk.bytes());
    let (content, n, now) = (bench.content(), bench.n, bench.now);
    let mut again = Bench::open(&bench.killed(), 2, clock(now.0)).unwrap();
    assert_eq!(again.content(), content);
    assert_eq!(again.log.keys().knows(b"p", n), Known::Yes);
    let b = again.log.find(b"b").unwrap();
    assert_eq!(again.log.head(b).offset, 1);
}

#[test]
fn a_quiet_journal_lets_go_of_everything_that_is_not_retained() {
    let mut bench = Bench::new();
    for _ in 0..4 {
        bench.publish(&[("a", &"x".repeat(80))]).unwrap();
    }
    let before = bench.disk.bytes();
    bench.now = Millis(100_000);
    bench.log.trim(bench.now);
    bench.journal.tidy(&bench.log, 0, false);
    assert!(
        bench.disk.bytes() < before / 2,
        "{} bytes",
        bench.disk.bytes()
    );
}

#[test]
fn the_budget_is_shared_by_open_shards_and_given_back() {
    let budget = Arc::new(Budget::new(256 * 2000));
    let options = || Options {
        budget: Arc::clone(&budget),
        ..options()
    };
    let disk = MemoryDisk::default();
    let mut bench = Bench::open_with(&disk, 1, clock(0), &Limits::for_tests(), options()).unwrap();
    let data = "x".repeat(500);
    let outcome = (0..10).find_map(|_| bench.publish(&[("a", &data)]).err());
    assert!(matches!(outcome, Some(CommitError::Full)), "{outcome:?}");
    bench.now = Millis(100_000);
    bench.log.trim(bench.now);
    bench.journal.tidy(&bench.log, 0, false);
    bench.publish(&[("a", &data)]).unwrap();
    drop(bench);
    assert!(!budget.has_room(1), "no shard is open");
    assert_eq!(budget.used.load(Ordering::Relaxed), 0);
}

#[test]
fn a_failed_write_that_cannot_be_taken_back_breaks_the_journal_until_it_can() {
    let mut bench = Bench::new();
    bench.publish(&[("a", "1")]).unwrap();
    let faults = Faults {
        room: Some(30),
        no_truncation: true,
    };
    bench.disk.set_faults(faults);
    let error = bench.publish(&[("a", "2")]).unwrap_err();
    assert!(matches!(error, CommitError::Truncate { .. }), "{error}");
    assert!(bench.journal.is_broken());
    bench.journal.heal();
    assert!(bench.journal.is_broken(), "it still cannot be cut");
    bench.disk.set_faults(Faults::default());
    bench.journal.heal();
    assert!(!bench.journal.is_broken());
    bench.publish(&[("a", "3")]).unwrap();
    let content = bench.content();
    let mut again = Bench::open(&bench.killed(), 2, clock(0)).unwrap();
    assert_eq!(again.content(), content);
}

#[test]
fn damage_anywhere_but_at_the_end_is_refused_with_its_place() {
    let mut bench = Bench::new();
    bench.publish(&[("a", "1")]).unwrap();
    bench.publish(&[("a", "2")]).unwrap();
    let disk = bench.killed();
    let (sequence, whole) = disk.newest().unwrap();
    let records = boundaries(sequence, &whole);
    // The last record is the end: it cannot be told from one that was torn.
    for pair in records.windows(2).rev().skip(1) {
        for byte in pair[0]..pair[1] {
            let mut damaged = whole.clone();
            damaged[byte] ^= 0x10;
            disk.put(sequence, damaged);
            let (at, damage) = Bench::damage_of(&disk);
            assert_eq!(at, pair[0] as u64, "byte {byte}");
            assert!(matches!(damage, Damage::Record(_)), "{damage}");
        }
    }
    for byte in 0..HEADER_BYTES {
        let mut damaged = whole.clone();
        damaged[byte] ^= 0x10;
        disk.put(sequence, damaged);
        let (at, damage) = Bench::damage_of(&disk);
        assert!(at == 0 && matches!(damage, Damage::Header(_)), "{damage}");
    }
}

#[test]
fn a_missing_segment_is_damage() {
    let mut bench = Bench::new();
    for _ in 0..20 {
        bench.publish(&[("a", &"x".repeat(100))]).unwrap();
    }
    let storage = Memory::new(&bench.disk);
    let sequences = storage.segments().unwrap();
    assert!(sequences.len() > 2, "{sequences:?}");
    Memory::new(&bench.disk).remove(sequences[1]).unwrap();
    let (_, damage) = Bench::damage_of(&bench.disk);
    assert_eq!(damage, Damage::Missing);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Groups of publications, of which writes fail after so many bytes; then
    /// the process dies, perhaps in the midst of a write.
    #[test]
    fn whatever_write_fails_exactly_what_was_acknowledged_is_there_again(
        groups in proptest::collection::vec(
            (
                proptest::collection::vec((0..CHANNELS.len(), 0_usize..120), 1..5),
                proptest::option::weighted(0.3, 0_u64..400),
            ),
            1..40,
        ),
        last_bytes in 0_u64..400,
    ) {
        let mut bench = Bench::new();
        let group_of = |group: &[(usize, usize)]| -> Vec<(&str, String)> {
            group.iter().map(|(channel, bytes)| (CHANNELS[*channel], "x".repeat(*bytes))).collect()
        };
        let mut epoch = 1;
        for (group, room) in &groups {
            let faults = Faults { room: *room, no_truncation: false };
            bench.disk.set_faults(faults);
            let group = group_of(group);
            let group: Vec<_> = group.iter().map(|(channel, data)| (*channel, data.as_str())).collect();
            let before = bench.content();
            let outcome = bench.publish(&group);
            if outcome.is_err() {
                prop_assert!(room.is_some());
                let heads = |content: &[(Bytes, Position, Vec<_>)]| -> Vec<u64> {
                    content.iter().map(|(_, position, _)| position.offset).filter(|it| *it > 0).collect()
                };
                prop_assert_eq!(heads(&bench.content()), heads(&before));
            }
            bench.disk.set_faults(Faults::default());
            if bench.n.is_multiple_of(7) {
                epoch += 1;
                let content: Vec<_> = bench.content().into_iter().filter(|it| it.1.offset > 0).collect();
                let last = bench.log.keys().last(b"p");
                bench = Bench::open(&bench.killed(), epoch, clock(0)).unwrap();
                let found: Vec<_> = bench.content().into_iter().filter(|it| it.1.offset > 0).collect();
                prop_assert_eq!(found, content);
                prop_assert_eq!(bench.log.keys().last(b"p").n, last.n);
                bench.n = bench.n.max(last.n).max(last.refused);
            }
        }
        let content: Vec<_> = bench.content().into_iter().filter(|it| it.1.offset > 0).collect();
        bench.disk.set_faults(Faults { room: Some(last_bytes), no_truncation: true });
        let torn = bench.publish(&[("a", "not acknowledged")]).is_err();
        bench.disk.set_faults(Faults::default());
        let mut again = Bench::open(&bench.killed(), epoch + 1, clock(0)).unwrap();
        let found: Vec<_> = again.content().into_iter().filter(|it| it.1.offset > 0).collect();
        if torn && found != content {
            // The record may be whole although its writer never heard so.
            prop_assert!(again.recovery.publications > 0);
        } else if torn {
            prop_assert_eq!(found, content);
        }
    }

    #[test]
    fn a_torn_tail_is_cut_and_counted(cut in 1_usize..200) {
        let mut bench = Bench::new();
        bench.publish(&[("a", "1"), ("b", "2")]).unwrap();
        bench.publish(&[("a", "a publication that is somewhat longer than others")]).unwrap();
        let disk = bench.killed();
        let (sequence, whole) = disk.newest().unwrap();
        let checkpoint = whole.len() - 200;
        let len = whole.len() - cut.min(whole.len() - checkpoint);
        disk.put(sequence, whole[..len].to_vec());
        let records = boundaries_until(sequence, &whole, len);
        match Bench::open(&disk, 2, clock(0)) {
            Ok(again) => {
                let last = *records.last().unwrap();
                prop_assert_eq!(again.recovery.torn_bytes, (len - last) as u64);
                let again = Bench::open(&again.killed(), 3, clock(0)).unwrap();
                prop_assert_eq!(again.recovery.torn_bytes, 0, "it was cut");
            }
            // Of the only segment not even the beginning is whole.
            Err(RecoveryError::Damaged { .. }) => {}
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn records_read_as_they_were_written(
        producer in proptest::collection::vec(any::<u8>(), 1..128),
        data in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..300)),
        (n, refused, offset, at, base) in any::<(u64, u64, u64, u64, u32)>(),
    ) {
        let record = Record::Publication(Publication {
            channel: 3, offset, at, producer: &producer, n, refused, data: data.as_deref(),
        });
        let base = usize::try_from(base % 1000).unwrap();
        let mut segment = vec![0; base];
        let mut buffer = Vec::new();
        encode(&mut buffer, 5, base as u64, &record);
        segment.extend_from_slice(&buffer);
        let (found, end) = decode(&segment, 5, base).unwrap().unwrap();
        prop_assert_eq!(found, record);
        prop_assert_eq!(end, segment.len());
        prop_assert!(decode(&segment, 6, base).is_err(), "it is of another segment");
    }
}

fn boundaries_until(sequence: u64, segment: &[u8], len: usize) -> Vec<usize> {
    let all = boundaries(sequence, segment);
    all.into_iter().filter(|at| *at <= len).collect()
}

#[test]
fn what_was_refused_stays_known_as_such_over_a_restart() {
    let mut bench = Bench::new();
    bench.publish(&[("a", "1")]).unwrap();
    bench.disk.set_faults(Faults {
        room: Some(0),
        no_truncation: false,
    });
    bench.publish(&[("a", "refused")]).unwrap_err();
    bench.disk.set_faults(Faults::default());
    bench.publish(&[("a", "2")]).unwrap();
    let again = Bench::open(&bench.killed(), 2, clock(0)).unwrap();
    assert_eq!(again.log.keys().last(b"p"), Last { n: 3, refused: 2 });
    assert_eq!(again.log.keys().knows(b"p", 2), Known::Perhaps);
}

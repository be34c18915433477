//! Histories outlive brokers and segments.

use muster_daemon::config::History;

use super::*;
use crate::limits::Histories;

const COUNT: History = History {
    count: Some(6),
    bytes: None,
    age: None,
};
const AGE: History = History {
    count: None,
    bytes: None,
    age: Some(Duration::from_secs(200)),
};

/// The channels `a` and `b` have histories, `` has none.
fn limits() -> Limits {
    Limits {
        histories: Histories::for_tests(&[("a", COUNT), ("b", AGE)]),
        ..Limits::for_tests()
    }
}

fn open_at(disk: &MemoryDisk, epoch: u64, clock: Clock) -> Bench {
    Bench::open_with(disk, epoch, clock, &limits(), options()).unwrap()
}

/// What is in the journal and not in the log yet, as while a sync goes on.
type Held = Vec<(Millis, ChannelKey, Bytes)>;

impl Bench {
    /// Journals one publication, which joins the log with [`Self::join`].
    fn hold(&mut self, held: &mut Held, channel: &str, data: &str) {
        self.n += 1;
        let name = channel.as_bytes();
        let key = self.log.find(name).unwrap_or_else(|| {
            let key = self.log.begin(self.now, name, 1000 + self.n);
            self.journal.stage_channel(key, &self.log);
            key
        });
        let _ = self.log.keys_mut().remember(b"p", self.n).unwrap();
        let publication = StagedPublication {
            producer: b"p",
            n: self.n,
            refused: 0,
            data: Some(data.as_bytes()),
        };
        let (log, now) = (&self.log, self.now);
        self.journal.stage_publication(now, key, log, publication);
        self.log.assign(self.now, key);
        self.journal.commit().unwrap();
        held.push((self.now, key, Bytes::copy_from_slice(data.as_bytes())));
        self.journal.tidy(&self.log, held.len(), false);
    }

    fn join(&mut self, held: &mut Held) {
        for (at, key, data) in held.drain(..) {
            self.log.append(at.into(), self.now, key, Some(data));
        }
        self.journal.tidy(&self.log, 0, false);
    }

    fn pass(&mut self, millis: u64, unapplied: usize) {
        self.now = self.now + Duration::from_millis(millis);
        self.log.trim(self.now);
        self.journal.tidy(&self.log, unapplied, false);
    }
}

#[derive(Debug, Clone)]
enum Op {
    Publish(usize, usize),
    Hold(usize, usize),
    Join,
    Pass(u64),
    Kill,
    Cut(usize),
}

fn op() -> impl Strategy<Value = Op> {
    let publication = || (0..CHANNELS.len(), 0_usize..90);
    prop_oneof![
        8 => publication().prop_map(|(channel, bytes)| Op::Publish(channel, bytes)),
        4 => publication().prop_map(|(channel, bytes)| Op::Hold(channel, bytes)),
        2 => Just(Op::Join),
        4 => (0_u64..25_000).prop_map(Op::Pass),
        2 => Just(Op::Kill),
        1 => (0_usize..2000).prop_map(Op::Cut),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn recovery_gives_exactly_what_was_kept(ops in prop::collection::vec(op(), 0..120)) {
        let mut bench = open_at(&MemoryDisk::default(), 1, clock(0));
        let mut held = Held::new();
        let mut is_cut = false;
        for (index, op) in ops.iter().enumerate() {
            match *op {
                Op::Publish(channel, bytes) => {
                    bench.hold(&mut held, CHANNELS[channel], &format!("{index:0bytes$}"));
                    bench.join(&mut held);
                }
                Op::Hold(channel, bytes) => {
                    bench.hold(&mut held, CHANNELS[channel], &format!("{index:0bytes$}"));
                }
                Op::Join => bench.join(&mut held),
                Op::Pass(millis) => bench.pass(millis, held.len()),
                Op::Cut(bytes_max) => {
                    let were_cut = bench.log.cut_histories(bytes_max);
                    is_cut |= were_cut;
                    bench.journal.tidy(&bench.log, held.len(), were_cut);
                }
                Op::Kill => {
                    // What is on its way is in the journal and not visible yet.
                    bench.join(&mut held);
                    let (content, now, epoch) = (bench.content(), bench.now, bench.journal.opened.epoch);
                    bench = open_at(&bench.killed(), epoch + 1, clock(now.0));
                    let again = bench.content();
                    if is_cut {
                        // What was cut may still stand in a segment.
                        prop_assert_eq!(content.len(), again.len());
                        for ((name, head, kept), (_, head_again, kept_again)) in content.iter().zip(&again) {
                            prop_assert_eq!(head, head_again, "{:?}", name);
                            prop_assert!(kept_again.ends_with(kept), "{:?}", name);
                        }
                    } else {
                        prop_assert_eq!(content, again);
                    }
                }
            }
        }
    }
}

#[test]
fn a_history_outlives_the_segments_it_was_written_to() {
    let mut bench = open_at(&MemoryDisk::default(), 1, clock(0));
    for number in 1..=6 {
        bench.publish(&[("a", &number.to_string())]).unwrap();
    }
    // Another channel fills and empties many segments.
    for _ in 0..300 {
        bench
            .publish(&[("", "some data that is soon gone")])
            .unwrap();
        bench.pass(500, 0);
    }
    assert!(bench.disk.bytes() < 12_000, "{} bytes", bench.disk.bytes());
    let (content, now) = (bench.content(), bench.now);
    let a = &content[1];
    assert_eq!((a.1.offset, a.2.len()), (6, 6));
    for epoch in 2..5 {
        let mut again = open_at(&bench.disk, epoch, clock(now.0));
        assert_eq!(again.content(), content);
    }
}

#[test]
fn a_history_keeps_its_ages_over_starts_of_the_machine() {
    let disk = MemoryDisk::default();
    let mut bench = open_at(&disk, 1, clock(0));
    bench.publish(&[("b", "1")]).unwrap();
    bench.pass(40_000, 0);
    bench.journal.close();
    for (epoch, seconds, kept) in [(2, 100, 1), (3, 199, 1), (4, 201, 0)] {
        // The machine has been up for a second, again and again.
        let clock = Clock {
            boot: epoch.into(),
            now: Millis(1000),
            wall_ms: 1_000_000 + seconds * 1000,
        };
        let mut again = open_at(&disk, epoch, clock);
        assert_eq!(again.content()[0].2.len(), kept, "after {seconds} s");
        again.journal.rotate(&again.log, 0);
        again.journal.close();
    }
}

#[test]
fn what_is_no_history_any_more_goes() {
    let disk = MemoryDisk::default();
    let mut bench = open_at(&disk, 1, clock(0));
    bench.publish(&[("a", "1")]).unwrap();
    bench.pass(40_000, 0);
    bench.journal.rotate(&bench.log, 0);
    bench.pass(0, 0);
    assert_eq!(bench.content()[0].2.len(), 1);
    let now = bench.now.0;
    drop(bench);
    let mut again = Bench::open(&disk, 2, clock(now)).unwrap();
    assert_eq!(again.content()[0].1.offset, 1);
    assert!(again.content()[0].2.is_empty());
}

#[test]
fn a_shard_is_told_to_cut_histories_once_three_quarters_are_taken() {
    let budget = Budget::new(256 * 4000);
    budget.open.store(2, Ordering::Relaxed);
    budget.add(6000);
    assert_eq!(budget.histories_max(), None);
    budget.add(1);
    assert_eq!(budget.histories_max(), Some(1000));
    budget.open.store(3, Ordering::Relaxed);
    assert_eq!(budget.histories_max(), None);
}

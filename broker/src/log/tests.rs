//! What is kept of random publications, beside what should be.

use muster_daemon::{ByteSize, config::History};
use proptest::prelude::*;

use super::*;
use crate::limits::Histories as Bounds;

const NONE: History = History {
    count: None,
    bytes: None,
    age: None,
};
const COUNT: History = History {
    count: Some(5),
    ..NONE
};
const BYTES: History = History {
    bytes: Some(ByteSize(300)),
    ..NONE
};
const AGE: History = History {
    age: Some(Duration::from_secs(100)),
    ..NONE
};
const ALL: History = History {
    count: Some(20),
    bytes: Some(ByteSize(800)),
    age: Some(Duration::from_secs(300)),
};
const CHANNELS: [(&str, History); 5] = [
    ("none", NONE),
    ("count", COUNT),
    ("bytes", BYTES),
    ("age", AGE),
    ("all", ALL),
];

fn limits(tail_bytes_max: usize) -> Limits {
    Limits {
        histories: Bounds::for_tests(&CHANNELS[1..]),
        tail_bytes_max,
        ..Limits::for_tests()
    }
}

/// A log, and everything that was ever published in it.
struct Model {
    log: Log,
    now: Millis,
    /// By channel.
    published: Vec<Vec<(Millis, usize)>>,
}

impl Model {
    fn new(tail_bytes_max: usize) -> Self {
        Self {
            log: Log::new(Millis(0), limits(tail_bytes_max)),
            now: Millis(0),
            published: vec![Vec::new(); CHANNELS.len()],
        }
    }

    fn publish(&mut self, channel: usize, bytes: usize) {
        let name = CHANNELS[channel].0.as_bytes();
        let key = match self.log.find(name) {
            Some(key) => key,
            None => self.log.begin(self.now, name, 1),
        };
        self.log.assign(self.now, key);
        let data = Some(Bytes::from(vec![b'1'; bytes]));
        self.log.append(self.now.into(), self.now, key, data);
        self.published[channel].push((self.now, bytes));
    }

    fn pass(&mut self, millis: u64) {
        self.now = self.now + Duration::from_millis(millis);
        self.log.trim(self.now);
    }

    /// How many of a channel's publications should be kept, with room for all.
    fn expected(&self, channel: usize) -> usize {
        let History { count, bytes, age } = CHANNELS[channel].1;
        let newest_first = || self.published[channel].iter().rev();
        let tail_age = Duration::from_secs(30);
        let in_tail = newest_first().take_while(|(at, _)| self.now.since(*at) <= tail_age);
        let in_tail = in_tail.count();
        if CHANNELS[channel].1 == NONE {
            return in_tail;
        }
        let mut sum = 0;
        let in_history = newest_first()
            .take(count.map_or(usize::MAX, |count| usize::try_from(count).unwrap()))
            .take_while(|(at, _)| age.is_none_or(|age| self.now.since(*at) <= age))
            .take_while(|(_, size)| {
                sum += size;
                bytes.is_none_or(|bytes| sum <= bytes.as_usize())
            });
        in_history.count().max(in_tail)
    }

    fn kept(&self, channel: usize) -> Vec<(u64, Moment, usize)> {
        let Some(key) = self.log.find(CHANNELS[channel].0.as_bytes()) else {
            return Vec::new();
        };
        let kept = self.log.range(key, 0, u64::MAX);
        kept.map(|(offset, kept)| (offset, kept.at, kept.data().unwrap().len()))
            .collect()
    }

    /// The last publications of each channel, each as it was, and no hole;
    /// returns how many are missing.
    fn check(&self) -> usize {
        let mut missing = 0;
        let mut bytes = 0;
        for (channel, published) in self.published.iter().enumerate() {
            let kept = self.kept(channel);
            let expected = self.expected(channel);
            assert!(kept.len() <= expected, "{:?}", CHANNELS[channel]);
            missing += expected - kept.len();
            bytes += kept.iter().map(|(_, _, size)| size + 112).sum::<usize>();
            let start = published.len() - kept.len();
            let last = (1..).zip(published).skip(start);
            let last = last.map(|(offset, (at, size))| (offset, Moment::from(*at), *size));
            assert!(last.eq(kept), "{:?}", CHANNELS[channel]);
        }
        assert_eq!(self.log.retained_bytes(), bytes);
        assert!(self.log.histories().bytes() <= bytes);
        assert!(bytes <= self.log.limits.tail_bytes_max);
        missing
    }
}

#[derive(Debug, Clone)]
enum Op {
    Publish { channel: usize, bytes: usize },
    Pass { millis: u64 },
    Cut { bytes_max: usize },
    Forget { channel: usize },
}

fn op() -> impl Strategy<Value = Op> {
    let channel = 0..CHANNELS.len();
    prop_oneof![
        12 => (channel, 0_usize..150).prop_map(|(channel, bytes)| Op::Publish { channel, bytes }),
        4 => (0_u64..40_000).prop_map(|millis| Op::Pass { millis }),
    ]
}

fn any_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        12 => op(),
        1 => (0_usize..3000).prop_map(|bytes_max| Op::Cut { bytes_max }),
        1 => (0..CHANNELS.len()).prop_map(|channel| Op::Forget { channel }),
    ]
}

fn act(model: &mut Model, op: &Op) {
    match *op {
        Op::Publish { channel, bytes } => model.publish(channel, bytes),
        Op::Pass { millis } => model.pass(millis),
        Op::Cut { bytes_max } => {
            let had = model.log.histories().bytes();
            assert_eq!(model.log.cut_histories(bytes_max), had > bytes_max);
            assert!(model.log.histories().bytes() <= bytes_max);
        }
        Op::Forget { channel } => {
            if let Some(key) = model.log.find(CHANNELS[channel].0.as_bytes()) {
                model.log.forget(key);
                model.published[channel].clear();
            }
        }
    }
}

proptest! {
    #[test]
    fn with_room_exactly_the_tail_and_what_is_within_the_bounds_is_kept(
        ops in prop::collection::vec(op(), 0..200)
    ) {
        let mut model = Model::new(1 << 20);
        for op in &ops {
            act(&mut model, op);
            prop_assert_eq!(model.check(), 0);
        }
        prop_assert_eq!(model.log.histories().cut(), 0);
    }

    #[test]
    fn without_room_the_newest_are_kept_and_what_is_cut_is_counted(
        ops in prop::collection::vec(any_op(), 0..200)
    ) {
        let mut model = Model::new(3000);
        for op in &ops {
            act(&mut model, op);
            model.check();
        }
    }
}

#[test]
fn histories_give_way_before_any_tail_the_oldest_first() {
    let mut model = Model::new(2000);
    model.publish(4, 100);
    model.pass(1000);
    model.publish(3, 100);
    model.pass(31_000);
    for _ in 0..7 {
        model.publish(0, 100); // 212 bytes each.
    }
    assert_eq!((model.kept(4).len(), model.kept(3).len()), (1, 1));
    model.publish(0, 100);
    assert_eq!((model.kept(4).len(), model.kept(3).len()), (0, 1));
    model.publish(0, 100);
    assert_eq!((model.kept(4).len(), model.kept(3).len()), (0, 0));
    assert_eq!(model.log.histories().cut(), 2);
    assert_eq!(model.kept(0).len(), 9);
    model.publish(0, 100);
    assert_eq!((model.kept(0).len(), model.log.histories().cut()), (9, 2));
}

#[test]
fn what_was_published_before_the_machine_started_has_its_age() {
    let mut model = Model::new(1 << 20);
    let key = model.log.begin(model.now, b"age", 1);
    for (at, offset) in [(-101_000, 1), (-99_000, 2)] {
        model.log.assign(model.now, key);
        let data = Some(Bytes::from_static(b"1"));
        let appended = model.log.append(Moment(at), Millis(0), key, data);
        assert_eq!(appended, offset);
    }
    let kept = model.kept(3);
    assert_eq!(kept, [(2, Moment(-99_000), 1)]);
}

//! Random histories of a shard and three workers that check what they get.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

/// One step of a random history.
#[derive(Debug, Clone)]
enum Op {
    Publish {
        channel: usize,
        bytes: usize,
    },
    PublishAgain,
    Subscribe {
        link: usize,
        channel: usize,
        anew: bool,
    },
    Unsubscribe {
        link: usize,
        channel: usize,
    },
    Credit {
        link: usize,
        bytes: u64,
    },
    Pull {
        link: usize,
    },
    Pass {
        millis: u64,
    },
}

const LINKS: usize = 3;
const CHANNELS: [&str; 4] = ["", "a", "b", "c"];

fn op() -> impl Strategy<Value = Op> {
    let link = 0..LINKS;
    let channel = 0..CHANNELS.len();
    prop_oneof![
        6 => (channel.clone(), 0_usize..400).prop_map(|(channel, bytes)| Op::Publish { channel, bytes }),
        1 => Just(Op::PublishAgain),
        2 => (link.clone(), channel.clone(), any::<bool>())
            .prop_map(|(link, channel, anew)| Op::Subscribe { link, channel, anew }),
        1 => (link.clone(), channel).prop_map(|(link, channel)| Op::Unsubscribe { link, channel }),
        3 => (link.clone(), 0_u64..600).prop_map(|(link, bytes)| Op::Credit { link, bytes }),
        4 => link.prop_map(|link| Op::Pull { link }),
        1 => (0_u64..8000).prop_map(|millis| Op::Pass { millis }),
    ]
}

/// What one worker has seen of one channel.
#[derive(Debug, Clone, Default)]
struct Seen {
    /// Answers to `Subscribe` that are still to come.
    unanswered: usize,
    subscribed: bool,
    position: Option<Position>,
}

/// A shard, and workers that check whatever they are sent.
struct History {
    bench: Bench,
    links: Vec<Arc<Link>>,
    seen: HashMap<(usize, usize), Seen>,
    /// By channel: what was published, by offset.
    published: Vec<Vec<usize>>,
    last: Option<Publish>,
    /// Credit given and data received, by link.
    given: [u64; LINKS],
    received: [u64; LINKS],
    holes: usize,
    tail_bytes_max: usize,
}

impl History {
    fn new(tail_bytes_max: usize) -> Self {
        let long = Duration::from_secs(86_400);
        let limits = Limits {
            tail_bytes_max,
            key_window: long,
            channel_idle: long,
            ..Limits::for_tests()
        };
        let bench = Bench::with(limits, 1000);
        Self {
            links: (0..LINKS).map(|_| bench.link(0)).collect(),
            bench,
            seen: HashMap::new(),
            published: vec![Vec::new(); CHANNELS.len()],
            last: None,
            given: [0; LINKS],
            received: [0; LINKS],
            holes: 0,
            tail_bytes_max,
        }
    }

    fn act(&mut self, op: &Op) {
        match *op {
            Op::Publish { channel, bytes } => {
                self.bench.n += 1;
                let data = "x".repeat(bytes);
                let publish = publication("p", self.bench.n, CHANNELS[channel], &data);
                self.publish(&publish);
                self.published[channel].push(bytes);
                self.last = Some(publish);
            }
            Op::PublishAgain => {
                if let Some(publish) = self.last.clone() {
                    self.publish(&publish);
                }
            }
            Op::Subscribe {
                link,
                channel,
                anew,
            } => {
                let seen = self.seen.entry((link, channel)).or_default();
                // A worker that waits for an answer does not know its position.
                if seen.unanswered > 0 {
                    return;
                }
                seen.unanswered += 1;
                seen.subscribed = true;
                let after = if anew { None } else { seen.position };
                let to = Arc::clone(&self.links[link]);
                self.bench.subscribe(&to, CHANNELS[channel], after);
            }
            Op::Unsubscribe { link, channel } => {
                self.seen.entry((link, channel)).or_default().subscribed = false;
                let (now, to) = (self.bench.now, &self.links[link]);
                let name = CHANNELS[channel].as_bytes();
                self.bench.shard.unsubscribe(now, to, name);
            }
            Op::Credit { link, bytes } => {
                self.given[link] += bytes;
                self.links[link].add_credit(&mut Turn::new(self.bench.now), bytes);
            }
            Op::Pull { link } => _ = self.pull(link),
            Op::Pass { millis } => {
                self.bench.now = self.bench.now + Duration::from_millis(millis);
                self.bench.sweep(1);
            }
        }
        assert!(self.bench.shard.retained_bytes() <= self.tail_bytes_max);
    }

    fn publish(&mut self, publish: &Publish) {
        assert_eq!(self.bench.take(publish), Ok(()));
    }

    fn pull(&mut self, link: usize) -> bool {
        let to = Arc::clone(&self.links[link]);
        let frames = self.bench.pull(&to);
        let some = !frames.is_empty();
        for frame in frames {
            self.check(link, frame);
        }
        some
    }

    fn check(&mut self, link: usize, frame: Frame) {
        match frame {
            Frame::Subscribed(subscribed) => {
                let seen = self.seen_mut(link, &subscribed.channel);
                if seen.unanswered > 0 {
                    seen.unanswered -= 1;
                } else if seen.subscribed {
                    assert!(!subscribed.recovered, "only a hole comes unasked");
                }
                seen.position = subscribed.position;
                self.holes += usize::from(!subscribed.recovered);
            }
            Frame::Relay(relay) => {
                assert!(
                    self.received[link] < self.given[link],
                    "relayed without credit"
                );
                let bytes = relay.data.map_or(0, |data| data.len());
                self.received[link] += bytes as u64;
                let seen = self.seen_mut(link, &relay.channel);
                // What was on its way when the worker unsubscribed still comes.
                let position = seen.position.as_mut().unwrap();
                assert_eq!(relay.offset, position.offset + 1, "{:?}", relay.channel);
                position.offset += 1;
                let index = usize::try_from(relay.offset - 1).unwrap();
                let channel = channel_index(&relay.channel);
                assert_eq!(self.published[channel][index], bytes);
            }
            other => panic!("unexpected {other:?}"),
        }
    }

    fn seen_mut(&mut self, link: usize, channel: &[u8]) -> &mut Seen {
        self.seen.entry((link, channel_index(channel))).or_default()
    }

    /// With all the credit in the world everybody has everything.
    fn finish(&mut self) {
        for link in 0..LINKS {
            self.act(&Op::Credit {
                link,
                bytes: 1 << 40,
            });
            while self.pull(link) {}
        }
        for ((_, channel), seen) in &self.seen {
            if seen.subscribed {
                let last = self.published[*channel].len() as u64;
                assert_eq!(seen.position.unwrap().offset, last);
            }
        }
    }
}

fn channel_index(name: &[u8]) -> usize {
    CHANNELS
        .iter()
        .position(|channel| channel.as_bytes() == name)
        .unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn with_room_in_the_log_every_link_gets_everything_once_and_in_order(
        ops in proptest::collection::vec(op(), 0..120)
    ) {
        let mut history = History::new(1 << 20);
        for op in &ops {
            match op {
                Op::Pass { .. } => {}
                op => history.act(op),
            }
        }
        history.finish();
        prop_assert_eq!(history.holes, 0);
    }

    #[test]
    fn without_room_in_the_log_holes_are_told_and_the_rest_comes_once_and_in_order(
        ops in proptest::collection::vec(op(), 0..200)
    ) {
        let mut history = History::new(2000);
        for op in &ops {
            history.act(op);
        }
        history.finish();
    }
}

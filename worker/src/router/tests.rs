//! The router against brokers that restart, links that break and views that
//! move shards, under a seeded scheduler.

use std::collections::{HashMap, VecDeque};

use muster_proto::link::Ack;
use muster_wire::session::SessionId;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use super::*;

const TIMEOUT: Duration = Duration::from_secs(5);
const CLIENTS: u32 = 4;
const CHANNELS: [&str; 6] = ["a", "b", "c", "d", "e", "f"];

/// A broker, reduced to what the router relies on: it takes a publication of an
/// epoch that is its own, once, and answers in order. What it has taken
/// outlives it, as the journal will.
#[derive(Debug, Default)]
struct Broker {
    /// What the link has brought and the broker has not looked at.
    inbox: VecDeque<WorkerFrame>,
    /// What the broker has said and the link has not brought.
    outbox: VecDeque<Said>,
    link_stands: bool,
    next_seq: u64,
    /// The last attempt that was refused, by shard.
    refused: HashMap<usize, u32>,
}

#[derive(Debug)]
enum Said {
    Ack(Ack),
    Refusal(u64),
}

#[derive(Debug, Default)]
struct Logs {
    /// By shard: (client, n) in the order of offsets.
    logs: HashMap<usize, Vec<(SessionId, u64)>>,
    last_n: HashMap<(usize, SessionId), u64>,
}

struct Cluster {
    rng: StdRng,
    router: Router,
    now: Millis,
    /// The newest view. The worker may lag behind it, and so may the brokers.
    view: View,
    brokers_view: View,
    brokers: BTreeMap<u32, Broker>,
    incarnations: u64,
    logs: Logs,
    published: HashMap<(SessionId, u64), Millis>,
    next_n: HashMap<u32, u64>,
    answered: HashMap<u64, bool>,
    next_cid: u64,
}

impl Cluster {
    fn new(seed: u64) -> Self {
        let mut cluster = Self {
            rng: StdRng::seed_from_u64(seed),
            router: Router::new(1 << 20, TIMEOUT),
            now: Millis(1000),
            view: View::default(),
            brokers_view: View::default(),
            brokers: BTreeMap::new(),
            incarnations: 0,
            logs: Logs::default(),
            published: HashMap::new(),
            next_n: HashMap::new(),
            answered: HashMap::new(),
            next_cid: 0,
        };
        cluster.change_view();
        cluster
    }

    fn step(&mut self) {
        self.now = self.now + Duration::from_millis(self.rng.random_range(0..20));
        match self.rng.random_range(0..100) {
            0..40 => self.publish(),
            40..60 => self.carry_to_brokers(),
            60..75 => self.let_a_broker_work(),
            75..88 => self.carry_to_worker(),
            88..92 => self.cut_a_link(),
            92..96 => self.mend_a_link(),
            96..97 => self.change_view(),
            97..98 => self.brokers_view = self.view.clone(),
            _ => self.hear_of_the_view(),
        }
        self.router.release(self.now);
        self.router.handle_tick(self.now);
        self.take_answers();
    }

    fn publish(&mut self) {
        let client = self.rng.random_range(0..CLIENTS);
        let n = self.next_n.entry(client).or_default();
        *n += 1;
        let producer = SessionId::from_random([u8::try_from(client).unwrap(); 15]);
        let cid = self.next_cid;
        self.next_cid += 1;
        let channel = CHANNELS[self.rng.random_range(0..CHANNELS.len())];
        // The last one publishes for operators.
        let waiter = if client == CLIENTS - 1 {
            Waiter::Operator(cid)
        } else {
            Waiter::Client(Call {
                connection: ConnectionKey {
                    index: client,
                    serial: 0,
                },
                cid: CallId::from_json(&cid.to_string()).unwrap(),
            })
        };
        let publication = Publication {
            channel: ChannelName::try_from(channel).unwrap(),
            data: None,
            producer,
            n: *n,
            waiter: Some(waiter),
            accepted: self.now,
        };
        self.published.insert((producer, *n), self.now);
        self.router.publish(publication);
    }

    fn carry_to_brokers(&mut self) {
        for (slot, broker) in &mut self.brokers {
            while broker.link_stands && self.rng.random_bool(0.7) {
                match self.router.next_batch(*slot, self.now) {
                    Some(batch) => broker.inbox.extend(batch.frames),
                    None => break,
                }
                self.router.refill(*slot);
            }
        }
    }

    fn let_a_broker_work(&mut self) {
        let Some(slot) = self.pick_broker() else {
            return;
        };
        let broker = self.brokers.get_mut(&slot).unwrap();
        for _ in 0..self.rng.random_range(0..8) {
            let Some(WorkerFrame { frame: Some(frame) }) = broker.inbox.pop_front() else {
                return;
            };
            let Frame::Publish(publish) = frame else {
                continue;
            };
            assert_eq!(publish.seq, broker.next_seq, "a hole in the link's numbers");
            broker.next_seq += 1;
            let shard = shard_of(&publish.channel);
            let view = &self.brokers_view;
            let is_owner = view.owner(shard).is_some_and(|owner| owner.slot == slot);
            let is_current = is_owner && view.shard_epoch(shard) == publish.shard_epoch;
            if !is_current || broker.refused.get(&shard.index()) == Some(&publish.attempt) {
                broker.refused.insert(shard.index(), publish.attempt);
                broker.outbox.push_back(Said::Refusal(publish.seq));
                continue;
            }
            let client = (0..CLIENTS)
                .map(|client| SessionId::from_random([u8::try_from(client).unwrap(); 15]))
                .find(|id| id.as_str().as_bytes() == publish.producer);
            let producer = client.unwrap();
            let last = self
                .logs
                .last_n
                .entry((shard.index(), producer))
                .or_default();
            if publish.n > *last {
                *last = publish.n;
                self.logs
                    .logs
                    .entry(shard.index())
                    .or_default()
                    .push((producer, publish.n));
            }
            let ack = Ack {
                first_seq: publish.seq,
                last_seq: publish.seq,
            };
            broker.outbox.push_back(Said::Ack(ack));
        }
    }

    fn carry_to_worker(&mut self) {
        let Some(slot) = self.pick_broker() else {
            return;
        };
        let broker = self.brokers.get_mut(&slot).unwrap();
        for _ in 0..self.rng.random_range(0..8) {
            match broker.outbox.pop_front() {
                Some(Said::Ack(ack)) => self.router.ack(slot, ack.first_seq, ack.last_seq).unwrap(),
                Some(Said::Refusal(seq)) => {
                    self.router
                        .refusal(slot, seq, RefusalReason::WrongEpoch, self.now)
                        .unwrap();
                }
                None => return,
            }
        }
    }

    fn cut_a_link(&mut self) {
        let Some(slot) = self.pick_broker() else {
            return;
        };
        // What the broker has already taken stays taken; the rest is lost.
        *self.brokers.get_mut(&slot).unwrap() = Broker::default();
        self.router.link_down(slot);
    }

    fn mend_a_link(&mut self) {
        let Some(slot) = self.pick_broker() else {
            return;
        };
        let incarnation = self
            .router
            .links
            .get(&slot)
            .map(|link| link.node.incarnation);
        let stands = self.brokers[&slot].link_stands;
        if let (Some(incarnation), false) = (incarnation, stands)
            && self.router.link_up(slot, incarnation)
        {
            self.router.send_all();
            let broker = self.brokers.get_mut(&slot).unwrap();
            *broker = Broker {
                link_stands: true,
                next_seq: 1,
                ..Broker::default()
            };
        }
    }

    /// One to three brokers, each perhaps a new incarnation; the worker may
    /// hear of it later.
    fn change_view(&mut self) {
        let count = self.rng.random_range(1..=3);
        let nodes: Vec<BrokerNode> = (1..=count)
            .map(|slot| {
                let known = self.view.brokers().iter().find(|node| node.slot == slot);
                match known {
                    Some(node) if self.rng.random_bool(0.7) => node.clone(),
                    _ => {
                        self.incarnations += 1;
                        let incarnation = self.incarnations;
                        BrokerNode {
                            slot,
                            incarnation,
                            address: format!("unix:/{incarnation}"),
                        }
                    }
                }
            })
            .collect();
        self.view = View::next(&self.view, nodes);
        if self.rng.random_bool(0.5) {
            self.hear_of_the_view();
        }
    }

    fn hear_of_the_view(&mut self) {
        let change = self.router.set_view(self.view.clone());
        for node in change.started {
            self.brokers.insert(node.slot, Broker::default());
        }
        for slot in change.stopped {
            self.brokers.remove(&slot);
        }
        self.router.send_all();
    }

    fn take_answers(&mut self) {
        for Answer { waiter, result } in self.router.take_answers() {
            let cid = match waiter {
                Waiter::Client(call) => call.cid.to_string().parse().unwrap(),
                Waiter::Operator(query) => query,
            };
            assert_eq!(
                self.answered.insert(cid, result.is_ok()),
                None,
                "answered twice"
            );
        }
    }

    /// Everything works from now on; returns once nothing is kept any more.
    fn settle(&mut self) {
        self.hear_of_the_view();
        self.brokers_view = self.view.clone();
        for _ in 0..20_000 {
            if self.kept_bytes() == 0 && self.router.is_whole() {
                break;
            }
            self.mend_a_link();
            self.carry_to_brokers();
            self.let_a_broker_work();
            self.carry_to_worker();
            self.now = self.now + Duration::from_millis(5);
            self.router.release(self.now);
            self.router.handle_tick(self.now);
            self.take_answers();
        }
        assert_eq!(
            self.kept_bytes(),
            0,
            "publications are kept that nobody waits for"
        );
        assert!(self.router.links.values().all(|link| link.kept_bytes == 0));
        assert_eq!(self.router.unowned_bytes, 0);
    }

    fn kept_bytes(&self) -> usize {
        self.router.shards.iter().map(ShardQueue::bytes).sum()
    }

    fn pick_broker(&mut self) -> Option<u32> {
        let slots: Vec<u32> = self.brokers.keys().copied().collect();
        (!slots.is_empty()).then(|| slots[self.rng.random_range(0..slots.len())])
    }
}

#[test]
fn every_publication_is_answered_once_and_logged_once_in_its_publishers_order() {
    for seed in 0..200 {
        let mut cluster = Cluster::new(seed);
        for _ in 0..400 {
            cluster.step();
        }
        cluster.settle();
        assert_eq!(
            cluster.answered.len() as u64,
            cluster.next_cid,
            "seed {seed}: unanswered"
        );
        let mut logged = 0;
        for log in cluster.logs.logs.values() {
            let mut last: HashMap<SessionId, u64> = HashMap::new();
            for (producer, n) in log {
                let last = last.entry(*producer).or_default();
                assert!(n > last, "seed {seed}: {n} came after {last}");
                *last = *n;
                logged += 1;
            }
        }
        let acked = cluster.answered.values().filter(|acked| **acked).count();
        assert!(
            logged >= acked,
            "seed {seed}: {acked} acked, {logged} logged"
        );
        assert!(acked > 0, "seed {seed}: nothing was acked");
    }
}

#[test]
fn without_time_outs_everything_published_is_logged_whatever_happens() {
    for seed in 1000..1100 {
        let mut cluster = Cluster::new(seed);
        cluster.router.publish_timeout = Duration::from_secs(3600);
        for _ in 0..400 {
            cluster.step();
        }
        cluster.settle();
        let logged: usize = cluster.logs.logs.values().map(Vec::len).sum();
        assert_eq!(logged, cluster.published.len(), "seed {seed}");
        assert!(cluster.answered.values().all(|acked| *acked), "seed {seed}");
    }
}

#[test]
fn a_full_window_closes_for_its_broker_only_and_opens_with_acks() {
    let mut cluster = Cluster::new(7);
    cluster.incarnations = 10;
    let nodes = [1, 2].map(|slot| BrokerNode {
        slot,
        incarnation: 10 + u64::from(slot),
        address: format!("unix:/{slot}"),
    });
    cluster.view = View::next(&cluster.view, nodes);
    cluster.hear_of_the_view();
    cluster.router.window_bytes = 1000;
    let owner =
        |cluster: &Cluster, channel: &str| cluster.view.owner(shard_of(channel)).unwrap().slot;
    let busy = "a";
    let other = CHANNELS
        .iter()
        .find(|name| owner(&cluster, name) != owner(&cluster, busy))
        .unwrap();
    for n in 1..20 {
        let publication = Publication {
            channel: ChannelName::try_from(busy).unwrap(),
            data: Some(Bytes::from_static(&[b'1'; 100])),
            producer: SessionId::from_random([0; 15]),
            n,
            waiter: None,
            accepted: cluster.now,
        };
        cluster.router.publish(publication);
    }
    assert!(!cluster.router.has_room(shard_of(busy)));
    assert!(cluster.router.has_room(shard_of(other)));
    cluster.settle();
    assert!(cluster.router.has_room(shard_of(busy)));
}

#[test]
fn a_batch_is_at_most_64_kib_or_one_frame() {
    let mut cluster = Cluster::new(8);
    cluster.hear_of_the_view();
    cluster.settle();
    for n in 1..200 {
        let len = if n == 100 { 200_000 } else { 1500 };
        let publication = Publication {
            channel: ChannelName::try_from("a").unwrap(),
            data: Some(Bytes::from(vec![b'1'; len])),
            producer: SessionId::from_random([0; 15]),
            n,
            waiter: None,
            accepted: cluster.now,
        };
        cluster.router.publish(publication);
    }
    let slot = cluster.router.pending_links().next().unwrap();
    let mut frames = 0;
    while let Some(batch) = cluster.router.next_batch(slot, cluster.now) {
        cluster.router.refill(slot);
        frames += batch.frames.len();
        let bytes: usize = batch.frames.iter().map(frame_bytes).sum();
        assert!(
            bytes <= BATCH_BYTES_MAX || batch.frames.len() == 1,
            "{bytes}"
        );
    }
    assert_eq!(frames, 199);
}

#[test]
fn a_publication_is_as_old_as_it_is_when_it_leaves() {
    let mut cluster = Cluster::new(10);
    cluster.hear_of_the_view();
    cluster.settle();
    let accepted = cluster.now;
    let publication = Publication {
        channel: ChannelName::try_from("a").unwrap(),
        data: None,
        producer: SessionId::from_random([0; 15]),
        n: 1,
        waiter: None,
        accepted,
    };
    cluster.router.publish(publication);
    let slot = cluster.router.pending_links().next().unwrap();
    // The link has no room for three seconds.
    let later = accepted + Duration::from_secs(3);
    let batch = cluster.router.next_batch(slot, later).unwrap();
    let Some(Frame::Publish(publish)) = &batch.frames[0].frame else {
        panic!("{batch:?}");
    };
    assert_eq!(publish.age_ms, 3000);
}

#[test]
fn an_owner_that_answers_out_of_order_breaks_its_link() {
    let mut cluster = Cluster::new(9);
    cluster.hear_of_the_view();
    cluster.settle();
    assert!(cluster.router.ack(1, 5, 5).is_err());
    assert!(
        cluster
            .router
            .refusal(1, 1, RefusalReason::Expired, cluster.now)
            .is_err()
    );
    assert!(cluster.router.ack(77, 1, 1).is_err());
}

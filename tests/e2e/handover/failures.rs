//! Processes that are killed or stand still in the middle of a hand-over.

use std::time::Duration;

use muster_tests::{
    Cluster, eventually, patience,
    raw::{Closed, Raw},
    tools,
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use rustix::process::Signal;
use serde_json::Value;
use tokio::{sync::watch, task::JoinSet, time::sleep};

use super::update;
use crate::json;

/// Listeners; several batches on each of two workers.
const LISTENERS: usize = 300;
/// Connections of a batch.
const BATCH: u64 = 63;

/// Who is hit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    /// The worker that hands over.
    Worker,
    /// The one that takes over.
    Successor,
}

/// Clients that hear every number, and one that publishes them.
pub(super) struct Listeners {
    tasks: JoinSet<Heard>,
    publisher: tokio::task::JoinHandle<u64>,
    ending: watch::Sender<bool>,
}

/// What one client has heard, up to the end of its connection if that ended.
struct Heard {
    numbers: Vec<u64>,
    client: Result<Raw, Closed>,
}

impl Listeners {
    pub(super) async fn start(cluster: &Cluster) -> Self {
        let mut publisher = on_worker_two(cluster).await;
        let (ending, ended) = watch::channel(false);
        let mut tasks = JoinSet::new();
        for _ in 0..LISTENERS {
            let mut client = Raw::connect(&cluster.url()).await;
            client.subscribe("numbers").await;
            tasks.spawn(listen(client));
        }
        let publisher = tokio::spawn(async move {
            let mut n: u64 = 0;
            while !*ended.borrow() {
                n += 1;
                publisher.publish("numbers", &n.to_string()).await;
                sleep(Duration::from_millis(1)).await;
            }
            publisher.publish("numbers", &u64::MAX.to_string()).await;
            n
        });
        Self {
            tasks,
            publisher,
            ending,
        }
    }

    /// Those that are still connected; each has heard everything in order, the
    /// others everything up to their end.
    pub(super) async fn end(self) -> (Vec<Raw>, usize) {
        self.ending.send(true).expect("the publisher lives");
        let last = self.publisher.await.expect("the publisher lives");
        let (mut alive, mut closed) = (Vec::new(), 0);
        for Heard { numbers, client } in self.tasks.join_all().await {
            let first = numbers.first().copied().unwrap_or(1);
            let rising = numbers.iter().zip(first..).all(|(heard, n)| *heard == n);
            assert!(rising, "{numbers:?}");
            match client {
                Ok(client) => {
                    let heard = numbers.last().copied().unwrap_or(0);
                    assert_eq!(heard, last, "of {last}");
                    alive.push(client);
                }
                Err(_) => closed += 1,
            }
        }
        (alive, closed)
    }
}

/// A client of the worker that nobody hits.
async fn on_worker_two(cluster: &Cluster) -> Raw {
    loop {
        let client = Raw::connect(&cluster.url()).await;
        let list = cluster.verb(&["connections", "--json", "--worker", "2", "--limit", "1000"]);
        let list = list.await;
        let list = json(&String::from_utf8_lossy(&list.stdout));
        let clients = list["connections"].as_array().expect("a list");
        if clients.iter().any(|one| one["connection"] == *client.id) {
            return client;
        }
    }
}

async fn listen(mut client: Raw) -> Heard {
    let mut numbers: Vec<u64> = Vec::new();
    loop {
        match client.try_receive().await {
            Err(closed) => {
                return Heard {
                    numbers,
                    client: Err(closed),
                };
            }
            Ok(text) => {
                let packet: Value = json(&text);
                match packet["data"]["data"].as_u64() {
                    Some(u64::MAX) => {
                        return Heard {
                            numbers,
                            client: Ok(client),
                        };
                    }
                    Some(n) => numbers.push(n),
                    None => panic!("a number was expected, not {text}"),
                }
            }
        }
    }
}

/// Waits for the pid of the successor of worker 1 that is started next.
async fn successor(cluster: &Cluster, seen: usize) -> u32 {
    eventually("a successor starts", patience(), async || {
        let log = cluster.log();
        let mut lines = log
            .lines()
            .filter(|line| line.contains("\"successor-1\"") && line.contains("Node started."));
        let line = lines.nth(seen).ok_or("none has started")?;
        let pid = json(line)["fields"]["pid"].as_u64().ok_or("no pid")?;
        u32::try_from(pid).map_err(|error| error.to_string())
    })
    .await
}

/// Updates, and hits somebody in the middle of it, or shortly before or after.
/// What `update --status` says then.
async fn update_and_hit(
    cluster: &Cluster,
    victim: Victim,
    signals: &[(Signal, Duration)],
    round: usize,
    rng: &mut StdRng,
) -> Value {
    let before = cluster.status().await.expect("the cluster runs");
    let worker = before.node("worker", 1).expect("there is one").pid;
    let delay = Duration::from_micros(rng.random_range(5_000..40_000));
    let hit = async {
        let successor = successor(cluster, round).await;
        let pid = match victim {
            Victim::Worker => worker,
            Victim::Successor => successor,
        };
        sleep(delay).await;
        for (signal, pause) in signals {
            Cluster::signal_process(pid, *signal);
            sleep(*pause).await;
        }
    };
    let (output, ()) = tokio::join!(cluster.verb(&["update", "--json"]), hit);
    let status = cluster.verb(&["update", "--status", "--json"]).await;
    let status = json(&String::from_utf8_lossy(&status.stdout));
    tools::say(&format!("{victim:?} after {delay:?}: {status}"));
    assert_eq!(
        output.status.success(),
        status["state"] == "done",
        "{output:?}"
    );
    status
}

fn rng() -> StdRng {
    let seed = std::env::var("MUSTER_TEST_SEED").ok();
    let seed = seed.and_then(|seed| seed.parse().ok());
    let seed: u64 = seed.unwrap_or_else(|| rand::make_rng::<StdRng>().random());
    tools::say(&format!("MUSTER_TEST_SEED={seed}"));
    StdRng::seed_from_u64(seed)
}

#[tokio::test]
async fn whoever_stands_still_for_a_while_loses_no_client() {
    let cluster = Cluster::start(2, 1).await;
    let listeners = Listeners::start(&cluster).await;
    let mut rng = rng();
    let pause = Duration::from_millis(1500);
    let signals = [(Signal::STOP, pause), (Signal::CONT, Duration::ZERO)];
    let victims = [Victim::Successor, Victim::Worker]
        .into_iter()
        .cycle()
        .take(4);
    for (round, victim) in victims.enumerate() {
        let status = update_and_hit(&cluster, victim, &signals, round, &mut rng).await;
        assert_eq!(status["state"], "done", "{status}");
    }
    let (alive, closed) = listeners.end().await;
    assert_eq!((alive.len(), closed), (LISTENERS, 0));
    cluster.down().await;
}

#[tokio::test]
async fn a_successor_that_stands_still_for_long_gives_everything_back() {
    let cluster = Cluster::start(2, 1).await;
    let listeners = Listeners::start(&cluster).await;
    let mut rng = rng();
    // Longer than it may take to answer, shorter than it may after the commit.
    let pause = Duration::from_millis(4200);
    let signals = [(Signal::STOP, pause), (Signal::CONT, Duration::ZERO)];
    for round in 0..2 {
        let victim = Victim::Successor;
        let _status = update_and_hit(&cluster, victim, &signals, round, &mut rng).await;
    }
    let (alive, closed) = listeners.end().await;
    assert_eq!((alive.len(), closed), (LISTENERS, 0));
    // Whatever came of those, the next one goes through.
    assert_eq!(update(&cluster).await["state"], "done");
    cluster.down().await;
}

#[tokio::test]
async fn a_successor_that_is_killed_takes_only_what_it_had_with_it() {
    let cluster = Cluster::start(2, 1).await;
    let mut rng = rng();
    for round in 0..3 {
        let listeners = Listeners::start(&cluster).await;
        let kill = [(Signal::KILL, Duration::ZERO)];
        let status = update_and_hit(&cluster, Victim::Successor, &kill, round, &mut rng).await;
        let (alive, closed) = listeners.end().await;
        assert_eq!(alive.len() + closed, LISTENERS);
        let moved = status["moved"].as_u64().expect("a number");
        assert!(closed as u64 <= moved + BATCH, "{closed} of {moved}");
        cluster.has_workers(2).await;
    }
    assert_eq!(update(&cluster).await["state"], "done");
    cluster.down().await;
}

#[tokio::test]
async fn a_worker_that_is_killed_while_it_hands_over_takes_only_what_it_had_with_it() {
    let cluster = Cluster::start(2, 1).await;
    let mut rng = rng();
    for round in 0..3 {
        let listeners = Listeners::start(&cluster).await;
        let kill = [(Signal::KILL, Duration::ZERO)];
        update_and_hit(&cluster, Victim::Worker, &kill, round, &mut rng).await;
        let (alive, closed) = listeners.end().await;
        assert_eq!(alive.len() + closed, LISTENERS);
        cluster.has_workers(2).await;
    }
    assert_eq!(update(&cluster).await["state"], "done");
    cluster.down().await;
}

#[tokio::test]
async fn an_orchestrator_that_is_killed_in_the_middle_is_succeeded_by_one_that_finishes_the_slot() {
    let mut cluster = Cluster::start(2, 1).await;
    let listeners = Listeners::start(&cluster).await;
    let mut rng = rng();
    for round in 0..3 {
        let delay = Duration::from_micros(rng.random_range(1_000..40_000));
        {
            let killed = async {
                successor(&cluster, round).await;
                sleep(delay).await;
                cluster.signal(Signal::KILL);
            };
            let (_output, ()) = tokio::join!(cluster.verb(&["update"]), killed);
        }
        cluster.ended().await;
        tools::say(&format!("the orchestrator after {delay:?}"));
        cluster.begin_up_again();
        cluster.has_workers(2).await;
    }
    let (alive, closed) = listeners.end().await;
    assert_eq!((alive.len(), closed), (LISTENERS, 0));
    assert_eq!(update(&cluster).await["state"], "done");
    cluster.down().await;
}

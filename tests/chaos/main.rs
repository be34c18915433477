//! A cluster of real processes under everything that can happen to it at once:
//! nodes are killed, stopped for a moment, stopped until they count as hung; the
//! orchestrator is killed, and another one takes over; clients flood, stay half
//! open, do not read; garbage comes in through the Unix sockets. Meanwhile stock
//! clients and ones of our own publish numbered messages, an operator does with
//! the command line, and `checker.rs` judges what every one of them saw.
//!
//! What happens comes from a seed, which is printed; when exactly, and so what
//! it hits, does not. `MUSTER_TEST_SEED` sets the seed, `MUSTER_TEST_CHAOS_S` how
//! long it goes on (30 s), `MUSTER_TEST_CHAOS_RATE` the publications per second
//! (200).

mod checker;
mod client;
mod conduct;
mod hostile;
mod operator;
mod record;
mod report;
mod script;
mod stock;

use std::{sync::Arc, time::Duration};

use muster_tests::{Cluster, eventually, patience, tools};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep},
};

use crate::{
    checker::{Verdict, judge},
    client::{Client, Phase, Plan},
    conduct::{Conductor, Course},
    record::{Journal, What},
    report::Report,
    script::Script,
    stock::Stock,
};

const WORKERS: u32 = 3;
const BROKERS: u32 = 2;
const CHANNELS: usize = 8;
/// Clients of our own, and stock ones, which count from there.
const RAW_CLIENTS: u32 = 24;
const STOCK_CLIENTS: u32 = 8;
/// Found to hang sooner than by default, so that it fits into the time.
const CONFIG: &str = "[supervision]\nworker_hung_after = \"3s\"\nbroker_hung_after = \"2s\"";
/// Nothing is done to the cluster for this long at the beginning and the end.
const CALM: Duration = Duration::from_secs(2);
/// What was published last has arrived after this.
const ARRIVAL: Duration = Duration::from_secs(4);

/// How a run is set up.
#[derive(Debug, Clone, Copy)]
struct Setup {
    seed: u64,
    duration: Duration,
    /// Publications per second, of all clients.
    rate: f64,
}

impl Setup {
    fn from_environment() -> Self {
        let number = |name: &str| {
            let value = std::env::var(name).ok()?;
            Some(
                value
                    .parse::<u64>()
                    .unwrap_or_else(|error| panic!("{name}: {error}")),
            )
        };
        let seed = number("MUSTER_TEST_SEED");
        let seconds = number("MUSTER_TEST_CHAOS_S").unwrap_or(30);
        let rate = u32::try_from(number("MUSTER_TEST_CHAOS_RATE").unwrap_or(200));
        Self {
            seed: seed.unwrap_or_else(|| rand::make_rng::<StdRng>().random()),
            duration: Duration::from_secs(seconds),
            rate: f64::from(rate.expect("a rate").max(1)),
        }
    }

    /// Who publishes and subscribes where.
    fn plans(&self, clients: std::ops::Range<u32>) -> Vec<Plan> {
        let all = f64::from(RAW_CLIENTS + STOCK_CLIENTS);
        let plan = |client: u32| {
            let number = usize::try_from(client).expect("a small number");
            let mut subscribes = vec![number % CHANNELS, (number * 3 + 1) % CHANNELS];
            subscribes.dedup();
            Plan {
                client,
                publishes: (number / 2) % CHANNELS,
                subscribes,
                interval: Duration::from_secs_f64(all / self.rate),
            }
        };
        clients.map(plan).collect()
    }
}

#[tokio::test]
async fn under_chaos_nothing_acknowledged_is_lost_and_only_clients_of_dead_workers_are_cut_off() {
    let setup = Setup::from_environment();
    tools::say(&format!("MUSTER_TEST_SEED={}", setup.seed));
    let mut cluster = Cluster::builder(WORKERS, BROKERS)
        .config(CONFIG)
        .start()
        .await;
    let (course, verdict, has_stock) = run(&mut cluster, setup).await;
    let status = cluster.status().await.expect("the cluster runs");
    let slow = status.nodes.iter().flat_map(|node| &node.stats);
    let report = Report {
        seed: setup.seed,
        course: &course,
        verdict: &verdict,
        slow_clients: slow.map(|stats| stats.slow_clients_closed).sum(),
        has_stock,
    };
    let text = report.to_string();
    tools::say(&text);
    assert!(
        course.problems.is_empty() && verdict.problems.is_empty(),
        "the report above has PROBLEMs; replay with MUSTER_TEST_SEED={}",
        setup.seed
    );
    assert!(!cluster.log().contains("Panicked"), "a node panicked");
    eventually("the cluster is whole", patience(), async || {
        let status = cluster.status().await?;
        if status.is_whole() {
            Ok(())
        } else {
            Err(format!("{status:?}"))
        }
    })
    .await;
    // A run in which little happens proves little.
    let expected = setup.rate * setup.duration.as_secs_f64();
    let published = u32::try_from(verdict.published).expect("a small number");
    assert!(f64::from(published) > expected / 3.0, "{text}");
    // The clients of a worker that hangs go on publishing until it is replaced.
    assert!(verdict.acknowledged * 4 > verdict.published * 3, "{text}");
    assert!(verdict.due > verdict.acknowledged, "{text}");
    cluster.down().await;
}

async fn run(cluster: &mut Cluster, setup: Setup) -> (Course, Verdict, bool) {
    let journal = Arc::new(Journal::default());
    let (phase, watched) = watch::channel(Phase::Publishing);
    let mut clients = JoinSet::new();
    for plan in setup.plans(0..RAW_CLIENTS) {
        let client = Client {
            plan,
            url: cluster.url(),
            journal: Arc::clone(&journal),
            phase: watched.clone(),
            published: 0,
        };
        clients.spawn(client.run());
    }
    let plans = setup.plans(RAW_CLIENTS..RAW_CLIENTS + STOCK_CLIENTS);
    let mut stock = Stock::start(&cluster.url(), &plans, Arc::clone(&journal));
    let count = RAW_CLIENTS as usize + if stock.is_some() { plans.len() } else { 0 };
    eventually("everybody is connected", patience(), async || match journal
        .count(|what| matches!(what, What::Connected { .. }))
    {
        connected if connected >= count => Ok(()),
        connected => Err(format!("{connected} of {count}")),
    })
    .await;

    let runtime_dir = cluster.runtime_dir();
    let until = Instant::now() + setup.duration;
    let mut conductor = Conductor::new(cluster).await;
    sleep(CALM).await;
    let script = Script::new(StdRng::seed_from_u64(setup.seed), WORKERS, BROKERS);
    let play = async {
        conductor.play(script, setup.seed, until - CALM).await;
        sleep(CALM).await;
        let _ = phase.send(Phase::Listening);
    };
    tokio::join!(
        play,
        operator::publish(runtime_dir, Arc::clone(&journal), watched.clone())
    );
    if let Some(stock) = &mut stock {
        stock.listen().await;
    }
    sleep(ARRIVAL).await;
    let course = conductor.finish().await;
    let _ = phase.send(Phase::Over);
    let has_stock = stock.is_some();
    if let Some(stock) = stock {
        stock.end().await;
    }
    while let Some(ended) = clients.join_next().await {
        ended.expect("a client does not panic");
    }
    let verdict = judge(journal.take(), &course.circumstances);
    (course, verdict, has_stock)
}

//! Running scenarios: which seeds, what is printed, how a failure is replayed.

use std::{
    collections::BTreeMap,
    fmt,
    num::NonZero,
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crate::{checker::Violation, cluster::Cluster, scenario::Scenario};

/// Seeds per scenario unless the environment says otherwise.
const SEEDS: u64 = 12;

/// What a run that went well amounted to.
#[derive(Debug, Default, Clone)]
struct Outcome {
    seeds: u64,
    events: u64,
    publications: u64,
    faults: BTreeMap<&'static str, u64>,
    took: Duration,
}

/// Runs scenarios on every core, and fails with a transcript of the first
/// violation.
pub(crate) fn hold(scenarios: &[Scenario]) {
    let wanted = std::env::var("MUSTER_SIM_SCENARIO").ok();
    let is_wanted = |scenario: &&Scenario| wanted.as_ref().is_none_or(|it| it == scenario.name);
    let scenarios: Vec<&Scenario> = scenarios.iter().filter(is_wanted).collect();
    let seeds = seeds();
    let each = usize::try_from(seeds.end - seeds.start).unwrap_or(usize::MAX);
    let started = now();
    let has_failed = AtomicBool::new(false);
    let outcomes = on_every_core(scenarios.len() * each, |index| {
        if has_failed.load(Ordering::Relaxed) {
            return Ok(Outcome::default());
        }
        let seed = seeds.start + (index % each) as u64;
        run(scenarios[index / each], seed).map_err(|violation| {
            has_failed.store(true, Ordering::Relaxed);
            (seed, violation)
        })
    });
    let mut total = Outcome::default();
    for (scenario, outcomes) in scenarios.iter().zip(outcomes.chunks(each)) {
        let mut sum = Outcome::default();
        for outcome in outcomes {
            match outcome {
                Ok(outcome) => sum.add(outcome),
                Err((seed, violation)) => fail(scenario, *seed, violation),
            }
        }
        println!("{}: {sum}", scenario.name);
        total.add(&sum);
    }
    println!(
        "{} seeds in {:.1} s: {total}",
        total.seeds,
        started.elapsed().as_secs_f64()
    );
}

/// Does `count` things on as many threads as there are cores; what comes out is
/// in order.
pub(crate) fn on_every_core<T: Send>(count: usize, act: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(BTreeMap::new());
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    thread::scope(|scope| {
        for _ in 0..threads.min(count) {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= count {
                        break;
                    }
                    let outcome = act(index);
                    done.lock()
                        .expect("no thread panics")
                        .insert(index, outcome);
                }
            });
        }
    });
    let done = done.into_inner().expect("no thread panics");
    done.into_values().collect()
}

/// Runs seeds that once showed a bug.
pub(crate) fn hold_again(scenario: &Scenario, seeds: &[u64]) {
    for seed in seeds {
        if let Err(violation) = run(scenario, *seed) {
            fail(scenario, *seed, &violation);
        }
    }
}

fn seeds() -> Range<u64> {
    let number = |name: &str| -> Option<u64> {
        let value = std::env::var(name).ok()?;
        Some(value.parse().expect("a number of seeds, or a seed"))
    };
    match number("MUSTER_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("MUSTER_SIM_SEEDS").unwrap_or(SEEDS),
    }
}

/// The first seed below `seeds` that shows a violation.
pub(crate) fn find_violation(scenario: &Scenario, seeds: u64) -> Option<(u64, Violation)> {
    (0..seeds).find_map(|seed| Some((seed, run(scenario, seed).err()?)))
}

/// Everything that happens in a run, as text.
pub(crate) fn transcript(scenario: &Scenario, seed: u64) -> String {
    let mut cluster = Cluster::new(scenario, seed, true);
    let outcome = run_to_end(&mut cluster);
    format!("{}{outcome:?}", cluster.transcript)
}

fn run(scenario: &Scenario, seed: u64) -> Result<Outcome, Violation> {
    let started = now();
    let mut cluster = Cluster::new(scenario, seed, false);
    run_to_end(&mut cluster)?;
    let mut faults = cluster.transcript.faults;
    if cluster.journal.torn_ends() > 0 {
        faults.insert("journal's end torn", cluster.journal.torn_ends());
    }
    Ok(Outcome {
        seeds: 1,
        events: scenario.steps as u64,
        publications: cluster.checker.publications(),
        faults,
        took: started.elapsed(),
    })
}

fn run_to_end(cluster: &mut Cluster) -> Result<(), Violation> {
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        for _ in 0..cluster.scenario.steps {
            cluster.step()?;
        }
        cluster.finish()
    }));
    outcome.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        Err(Violation(format!("panicked: {}", text.unwrap_or("?"))))
    })
}

/// Runs the seed once more, this time with a transcript.
fn fail(scenario: &Scenario, seed: u64, violation: &Violation) -> ! {
    let mut cluster = Cluster::new(scenario, seed, true);
    let again = run_to_end(&mut cluster).err();
    println!("{}", cluster.transcript);
    let replay = format!(
        "MUSTER_SIM_SCENARIO={} MUSTER_SIM_SEED={seed} cargo test -p muster-tests --test simulation",
        scenario.name
    );
    assert_eq!(
        again.as_ref(),
        Some(violation),
        "the seed does not replay: {replay}"
    );
    panic!("{violation}\nreplay: {replay}");
}

#[expect(clippy::disallowed_methods, reason = "for the speed that is printed")]
fn now() -> Instant {
    Instant::now()
}

impl Outcome {
    fn add(&mut self, other: &Self) {
        self.seeds += other.seeds;
        self.events += other.events;
        self.publications += other.publications;
        for (kind, count) in &other.faults {
            *self.faults.entry(kind).or_default() += count;
        }
        self.took += other.took;
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} seeds, {:.0} per second and core, {} events, {} publications",
            self.seeds,
            self.seeds as f64 / self.took.as_secs_f64(),
            self.events,
            self.publications
        )?;
        self.faults
            .iter()
            .try_for_each(|(kind, count)| write!(f, ", {kind} {count}"))
    }
}

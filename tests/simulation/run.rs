//! Running scenarios: which seeds, what is printed, how a failure is replayed.

use std::{
    collections::BTreeMap,
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    time::Instant,
};

use crate::{checker::Violation, cluster::Cluster, scenario::Scenario};

/// Seeds per scenario unless the environment says otherwise.
const SEEDS: u64 = 12;

/// What a run that went well amounted to.
#[derive(Debug, Default)]
struct Outcome {
    publications: u64,
    faults: BTreeMap<&'static str, u64>,
}

/// Runs a scenario, and fails with a transcript at the first violation.
pub(crate) fn hold(scenario: &Scenario) {
    let wanted = std::env::var("MUSTER_SIM_SCENARIO").ok();
    if wanted.is_some_and(|name| name != scenario.name) {
        return;
    }
    let seeds = seeds();
    let count = seeds.end - seeds.start;
    let started = now();
    let mut total = Outcome::default();
    for seed in seeds {
        match run(scenario, seed) {
            Ok(outcome) => total.add(outcome),
            Err(violation) => fail(scenario, seed, &violation),
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    println!(
        "{}: {count} seeds, {:.0} per second, {} publications, {:?}",
        scenario.name,
        count as f64 / seconds,
        total.publications,
        total.faults
    );
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
    let mut cluster = Cluster::new(scenario, seed, false);
    run_to_end(&mut cluster)?;
    Ok(Outcome {
        publications: cluster.checker.publications(),
        faults: cluster.transcript.faults,
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
    fn add(&mut self, other: Self) {
        self.publications += other.publications;
        for (kind, count) in other.faults {
            *self.faults.entry(kind).or_default() += count;
        }
    }
}

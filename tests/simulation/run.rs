//! Running scenarios: which seeds, what is printed, how a failure is replayed.

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    time::Instant,
};

use crate::{
    checker::Violation,
    cluster::Cluster,
    scenario::{self, Scenario},
};

/// Seeds per scenario unless the environment says otherwise.
const SEEDS: u64 = 40;

/// Which runs to make.
#[derive(Debug)]
pub(crate) struct Plan {
    scenarios: Vec<Scenario>,
    seeds: std::ops::Range<u64>,
}

impl Plan {
    pub(crate) fn from_env() -> Self {
        let number = |name: &str| -> Option<u64> {
            let value = std::env::var(name).ok()?;
            Some(value.parse().expect("a number of seeds, or a seed"))
        };
        let wanted = std::env::var("MUSTER_SIM_SCENARIO").ok();
        let mut scenarios = scenario::all();
        scenarios.retain(|it| wanted.as_ref().is_none_or(|name| *name == it.name));
        assert!(!scenarios.is_empty(), "there is no scenario {wanted:?}");
        let seeds = match number("MUSTER_SIM_SEED") {
            Some(seed) => seed..seed + 1,
            None => 0..number("MUSTER_SIM_SEEDS").unwrap_or(SEEDS),
        };
        Self { scenarios, seeds }
    }
}

/// What a run that went well amounted to.
#[derive(Debug, Default)]
struct Outcome {
    publications: u64,
    faults: BTreeMap<&'static str, u64>,
}

/// Runs the plan, and fails with a transcript at the first violation.
pub(crate) fn hold(plan: &Plan) {
    for scenario in &plan.scenarios {
        let started = now();
        let mut total = Outcome::default();
        for seed in plan.seeds.clone() {
            match run(scenario, seed) {
                Ok(outcome) => total.add(outcome),
                Err(violation) => fail(scenario, seed, &violation),
            }
        }
        let seconds = started.elapsed().as_secs_f64();
        let seeds = plan.seeds.end - plan.seeds.start;
        println!(
            "{:<11} {seeds} seeds, {:.0} per second, {} publications, {:?}",
            scenario.name,
            seeds as f64 / seconds,
            total.publications,
            total.faults
        );
    }
}

/// The first seed below `seeds` that shows a violation.
pub(crate) fn find_violation(scenario: &Scenario, seeds: u64) -> Option<(u64, Violation)> {
    (0..seeds).find_map(|seed| Some((seed, run(scenario, seed).err()?)))
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
        "MUSTER_SIM_SCENARIO={} MUSTER_SIM_SEED={seed} cargo test -p muster-tests --test simulation \
         -- --nocapture everything",
        scenario.name
    );
    assert_eq!(again.as_ref(), Some(violation), "the seed does not replay: {replay}");
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

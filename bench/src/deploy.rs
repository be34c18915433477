//! The cluster is updated, or changes its number of workers, under load: one
//! thing after the other.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    thread,
    time::Duration,
};

use serde::Serialize;

use super::{
    BenchError,
    clock::{Micros, SECOND, now},
    delays::Delays,
    driver::histogram,
    interrupt::Interrupt,
    options::Scenario,
    report::{Quantiles, float, print_quantiles},
    server::{Holding, Server, Status, Updated},
};

/// Between two looks at a cluster that changes its size.
const INTERVAL: Duration = Duration::from_millis(50);
/// Longest that this may take.
const SCALE_TIMEOUT: Micros = 60 * SECOND;

/// What the cluster is told to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    Update,
    Workers(u32),
}

/// What came of one order. Times are in microseconds.
#[derive(Debug, Serialize)]
pub(super) struct Step {
    /// `update`, `to 8 workers`.
    pub(super) what: String,
    /// Why it did not go as it should.
    pub(super) error: Option<String>,
    /// From the order to its end.
    pub(super) took_us: Micros,
    /// Longest time from the intended sending of a publication that was under
    /// way then to its delivery or its answer, of any client.
    pub(super) seen_pause_us: Option<Micros>,
    /// What the cluster says of it; of an update only.
    pub(super) updated: Option<Updated>,
    /// What its processes held at the end, by role.
    pub(super) held: BTreeMap<&'static str, Holding>,
    #[serde(skip)]
    at: Micros,
    #[serde(skip)]
    until: Micros,
}

/// What came of all of them.
#[derive(Debug, Serialize)]
pub(super) struct Deployed {
    pub(super) steps: Vec<Step>,
    /// Connections that went from one process to another in updates.
    pub(super) moved: u64,
    /// Connections that could not.
    pub(super) failed: u64,
    /// How long those that moved stood still, as the cluster says.
    pub(super) pause_us: Quantiles,
    /// Of the steps.
    pub(super) seen_pause_us: Quantiles,
    /// While connections were handed over, from one worker to another.
    pub(super) moved_per_second: f64,
    /// Over whole updates.
    pub(super) moved_per_second_of_update: f64,
    /// Of updates.
    pub(super) update_us: Quantiles,
    /// What the cluster's processes held before the first and after the last, by
    /// role; with the same clients.
    pub(super) before: BTreeMap<&'static str, Holding>,
    pub(super) after: BTreeMap<&'static str, Holding>,
}

/// What was done, and what was held before.
#[derive(Debug)]
pub(super) struct Steps {
    before: BTreeMap<&'static str, Holding>,
    steps: Vec<Step>,
}

/// What the scenario `deploy` has the cluster do; nothing for any other.
pub(super) fn orders(scenario: &Scenario) -> Vec<Order> {
    let Scenario::Deploy { updates, scale, .. } = scenario else {
        return Vec::new();
    };
    let updates = updates.unwrap_or(if scale.is_empty() { 5 } else { 0 });
    let updates = (0..updates).map(|_| Order::Update);
    let scale = scale.iter().map(|workers| Order::Workers(*workers));
    updates.chain(scale).collect()
}

/// Does one thing after the other, with `pause` between them; the first that
/// fails is the last.
pub(super) fn run(
    server: &Server,
    interrupt: &Interrupt,
    (orders, pause): (&[Order], Micros),
    update: &[String],
    mut passing: impl FnMut(usize),
) -> Result<Steps, BenchError> {
    let before = server.holding()?;
    let mut steps = Vec::new();
    for (turn, order) in orders.iter().enumerate() {
        passing(turn);
        if !interrupt.sleep_until(now() + pause, || {}) {
            break;
        }
        let step = step(server, *order, update)?;
        let is_over = step.error.is_some();
        steps.push(step);
        if is_over {
            break;
        }
    }
    Ok(Steps { before, steps })
}

fn step(server: &Server, order: Order, update: &[String]) -> Result<Step, BenchError> {
    let at = now();
    let (what, outcome) = match order {
        Order::Update => ("update".to_owned(), server.update(update)?.map(Some)),
        Order::Workers(workers) => (
            format!("to {workers} workers"),
            scale(server, workers)?.map(|()| None),
        ),
    };
    let until = now();
    let (error, updated) = match outcome {
        Ok(updated) => (None, updated),
        Err(error) => (Some(error), None),
    };
    let took = updated.as_ref().map(|updated| updated.took_ms * 1000);
    Ok(Step {
        what,
        error,
        took_us: took.unwrap_or(until - at),
        seen_pause_us: None,
        updated,
        held: server.holding()?,
        at,
        until,
    })
}

/// Waits until there are so many workers, and clients are spread evenly.
fn scale(server: &Server, workers: u32) -> Result<Result<(), String>, BenchError> {
    if let Err(error) = server.scale("--workers", workers)? {
        return Ok(Err(error));
    }
    let until = now() + SCALE_TIMEOUT;
    while now() < until {
        let status = server.status()?.ok_or(BenchError::KillBlindly)?;
        if status.is_whole() && is_spread(&status, workers) {
            return Ok(Ok(()));
        }
        thread::sleep(INTERVAL);
    }
    let seconds = SCALE_TIMEOUT / SECOND;
    Ok(Err(format!(
        "there are not {workers} workers with even shares after {seconds} s"
    )))
}

fn is_spread(status: &Status, workers: u32) -> bool {
    let connections: Vec<u64> = status.connections().collect();
    let least = connections.iter().min().copied().unwrap_or(0);
    let most = connections.iter().max().copied().unwrap_or(0);
    // The cluster itself leaves a fiftieth.
    connections.len() == workers as usize && most - least <= most / 20 + 8
}

impl Steps {
    /// Adds up; `delays` are what the clients saw.
    pub(super) fn finish(self, delays: &Delays) -> Deployed {
        let Self { before, mut steps } = self;
        let (mut pauses, mut seen, mut took) = (histogram(), histogram(), histogram());
        let (mut moved, mut failed, mut handing_over_us, mut updating_us) = (0, 0, 0, 0);
        for step in &mut steps {
            step.seen_pause_us = delays.longest(step.at, step.until);
            if let Some(pause) = step.seen_pause_us {
                seen.saturating_record(pause);
            }
            let Some(updated) = &step.updated else {
                continue;
            };
            took.saturating_record(step.took_us);
            updating_us += step.took_us;
            handing_over_us += updated.handing_over_us;
            moved += updated.moved;
            failed += updated.failed;
            for (pause, count) in &updated.pauses {
                pauses.saturating_record_n(*pause, *count);
            }
        }
        let after = steps
            .last()
            .map_or_else(|| before.clone(), |step| step.held.clone());
        Deployed {
            moved,
            failed,
            pause_us: Quantiles::new(&pauses),
            seen_pause_us: Quantiles::new(&seen),
            moved_per_second: per_second(moved, handing_over_us),
            moved_per_second_of_update: per_second(moved, updating_us),
            update_us: Quantiles::new(&took),
            before,
            after,
            steps,
        }
    }
}

fn per_second(count: u64, micros: Micros) -> f64 {
    if micros == 0 {
        0.0
    } else {
        float(count) * float(SECOND) / float(micros)
    }
}

impl Deployed {
    /// Whether everything went as it should.
    pub(super) fn is_sound(&self) -> bool {
        self.failed == 0 && self.failures() == 0
    }

    /// Steps that failed.
    pub(super) fn failures(&self) -> usize {
        let errors = self.steps.iter().filter(|step| step.error.is_some());
        errors.count()
    }

    /// Writes it for people.
    pub(super) fn print(&self, out: &mut impl Write) -> io::Result<()> {
        for step in &self.steps {
            let seconds = float(step.took_us) / float(SECOND);
            match (&step.error, &step.updated) {
                (Some(error), _) => writeln!(out, "{:<13} failed: {error}", step.what)?,
                (None, Some(updated)) => writeln!(
                    out,
                    "{:<13} {seconds:.2} s, {} moved in {:.0} ms, {} failed, pause p99 {:.1} ms, max {:.1}",
                    step.what,
                    updated.moved,
                    float(updated.handing_over_us) / 1e3,
                    updated.failed,
                    float(updated.pause_p99_us) / 1e3,
                    float(updated.pause_max_us) / 1e3
                )?,
                (None, None) => writeln!(out, "{:<13} {seconds:.2} s", step.what)?,
            }
        }
        writeln!(
            out,
            "moved         {} connections, {} failed; {:.0} per second of handing over, {:.0} of updating",
            self.moved, self.failed, self.moved_per_second, self.moved_per_second_of_update
        )?;
        print_quantiles(out, "update", &self.update_us)?;
        print_quantiles(out, "pause", &self.pause_us)?;
        print_quantiles(out, "pause seen", &self.seen_pause_us)?;
        for (role, before) in &self.before {
            let after = self.after.get(role).copied().unwrap_or_default();
            let mib = |bytes: u64| float(bytes) / 1_048_576.0;
            writeln!(
                out,
                "{role:<13} {} descriptors, {} before; PSS {:.1} MiB, {:.1} before; RSS {:.1}, {:.1}",
                after.descriptors,
                before.descriptors,
                mib(after.pss_bytes),
                mib(before.pss_bytes),
                mib(after.rss_bytes),
                mib(before.rss_bytes)
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deploy(updates: Option<u32>, scale: &[u32]) -> Scenario {
        Scenario::Deploy {
            lobbies: 1,
            members: 1,
            rate: 1.0,
            updates,
            pause: 1.0,
            binary: None,
            hold: "0s".into(),
            parallel: None,
            scale: scale.into(),
        }
    }

    #[test]
    fn with_a_list_of_sizes_nothing_is_updated_unless_asked_for() {
        assert_eq!(orders(&deploy(None, &[])), [Order::Update; 5]);
        let sizes = [Order::Workers(8), Order::Workers(2)];
        assert_eq!(orders(&deploy(None, &[8, 2])), sizes);
        let both = [Order::Update, sizes[0], sizes[1]];
        assert_eq!(orders(&deploy(Some(1), &[8, 2])), both);
        assert!(orders(&Scenario::Idle { connections: 1 }).is_empty());
    }

    fn update(moved: u64, took_ms: u64, at: Micros) -> Step {
        Step {
            what: "update".into(),
            error: None,
            took_us: took_ms * 1000,
            seen_pause_us: None,
            updated: Some(Updated {
                moved,
                failed: 0,
                pauses: vec![(1000, moved - 1), (9000, 1)],
                pause_p50_us: 1000,
                pause_p99_us: 1000,
                pause_max_us: 9000,
                handing_over_us: took_ms * 500,
                took_ms,
                note: None,
            }),
            held: BTreeMap::from([("workers", Holding::default())]),
            at,
            until: at + took_ms * 1000,
        }
    }

    #[test]
    fn updates_are_added_up_and_one_that_failed_breaks_the_promise() {
        let mut delays = Delays::default();
        delays.record(50_000, 57_000);
        let steps = Steps {
            before: BTreeMap::new(),
            steps: vec![update(1000, 200, 0), update(3000, 200, SECOND)],
        };
        let deployed = steps.finish(&delays);
        assert_eq!((deployed.moved, deployed.pause_us.count), (4000, 4000));
        assert!((deployed.moved_per_second - 20_000.0).abs() < 1.0);
        assert!((deployed.moved_per_second_of_update - 10_000.0).abs() < 1.0);
        assert!(deployed.pause_us.max.abs_diff(9000) < 10);
        let seen: Vec<_> = deployed
            .steps
            .iter()
            .map(|step| step.seen_pause_us)
            .collect();
        assert_eq!(seen, [Some(7000), None]);
        assert!(deployed.after.contains_key("workers") && deployed.is_sound());

        let failed = Step {
            error: Some("no".into()),
            updated: None,
            ..update(1, 1, 0)
        };
        let (before, steps) = (BTreeMap::new(), vec![failed]);
        assert!(!Steps { before, steps }.finish(&delays).is_sound());
    }
}

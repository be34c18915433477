//! The cluster is updated, or changes its number of workers, under load: one
//! thing after the other.

use std::{collections::BTreeMap, thread, time::Duration};

use serde::Serialize;

use super::{
    BenchError,
    clock::{Micros, SECOND, now},
    delays::Delays,
    driver::histogram,
    interrupt::Interrupt,
    options::Scenario,
    report::{Quantiles, float},
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
}

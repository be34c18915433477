//! The highest load at which latency stays within a limit.

use std::{
    fs,
    io::{self, Write as _},
};

use serde::Serialize;

use super::{
    BenchError,
    clock::Micros,
    conduct::Conductor,
    options::{Scenario, Shape},
    page,
    plan::Plan,
    report::{Report, float},
};

/// Publications per second of the first step, by all publishers together.
const FIRST_RATE: f64 = 20.0;
/// From one step to the next while all is well.
const GROWTH: f64 = 1.6;
/// Steps between the last that was well and the first that was not.
const BISECTIONS: u32 = 4;
/// No server here gets this far.
const STEPS_MAX: u32 = 30;
/// Ever smaller loads that are tried when the first is too much already.
const DESCENTS_MAX: usize = 4;
/// Of what was asked for, this much must arrive in time.
const SHARE_MIN: f64 = 0.97;

/// One load, and how the server bore it.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Step {
    pub(super) rate: f64,
    pub(super) asked_deliveries_per_second: f64,
    pub(super) deliveries_per_second: f64,
    pub(super) p50_us: u64,
    pub(super) p99_us: u64,
    pub(super) max_us: u64,
    pub(super) server_seconds_per_million: Option<f64>,
    pub(super) server_pss_bytes: Option<u64>,
    /// Why that was too much; nothing if it was not.
    pub(super) failed: Option<&'static str>,
}

/// What a search found.
#[derive(Debug, Serialize)]
pub(super) struct Search {
    pub(super) scenario: &'static str,
    pub(super) p99_limit_us: Micros,
    /// In the order in which they were tried.
    pub(super) steps: Vec<Step>,
    /// The last step that went well, by load.
    pub(super) best: Option<Step>,
}

/// Raises the load until it is too much, then looks for the limit in between.
pub(super) fn run(
    mut conductor: Conductor<'_>,
    scenario: &Scenario,
    what: Shape,
    p99_limit_us: Micros,
) -> Result<(), BenchError> {
    let mut search = Search {
        scenario: match what {
            Shape::Fanout => "fanout",
            Shape::Lobby => "lobby",
        },
        p99_limit_us,
        steps: Vec::new(),
        best: None,
    };
    let (mut good, mut bad) = (None, None);
    let mut bisections = 0;
    for _ in 0..STEPS_MAX {
        let rate = match (good, bad) {
            (None, None) => first_rate(scenario, what),
            (Some(good), None) => good * GROWTH,
            (None, Some(bad)) => bad / GROWTH,
            (Some(good), Some(bad)) => f64::midpoint(good, bad),
        };
        let plan = Plan::new(&at_rate(scenario, rate));
        let extra = ["--step-rate".to_owned(), rate.to_string()];
        let report = match conductor.run(&plan, &extra) {
            Err(BenchError::Interrupted) => break,
            other => other?,
        };
        if conductor.interrupt.is_set() {
            break;
        }
        let step = Step::new(rate, &report, p99_limit_us);
        *(if step.failed.is_none() {
            &mut good
        } else {
            &mut bad
        }) = Some(rate);
        if !conductor.run.json {
            step.print()
                .map_err(BenchError::io("cannot print a step"))?;
        }
        let best = search.best.as_ref().map_or(0.0, |best| best.rate);
        if step.failed.is_none() && step.rate > best {
            search.best = Some(step.clone());
        }
        search.steps.push(step);
        if good.is_none() && search.steps.len() > DESCENTS_MAX {
            break;
        }
        if good.is_some() && bad.is_some() {
            bisections += 1;
            if bisections > BISECTIONS {
                break;
            }
        }
    }
    search.publish(&conductor)
}

fn first_rate(scenario: &Scenario, what: Shape) -> f64 {
    match (what, scenario) {
        // Each member publishes; all together at the same rate to begin with.
        (
            Shape::Lobby,
            Scenario::Saturate {
                lobbies, members, ..
            },
        ) => 100.0 * FIRST_RATE / f64::from(lobbies * members),
        _ => FIRST_RATE,
    }
}

fn at_rate(scenario: &Scenario, rate: f64) -> Scenario {
    let mut scenario = scenario.clone();
    if let Scenario::Saturate { step_rate, .. } = &mut scenario {
        *step_rate = rate;
    }
    scenario
}

impl Step {
    fn new(rate: f64, report: &Report, p99_limit_us: Micros) -> Self {
        let asked = report.expected_deliveries_per_second;
        let failed = [
            (
                report.connects.failed > 0,
                "not all clients got a connection",
            ),
            (
                !report.is_sound(),
                "not everything arrived once and in order",
            ),
            (!report.closed.is_empty(), "clients were cut off"),
            (report.errors + report.unanswered > 0, "publications failed"),
            (
                report.bottleneck().is_some(),
                "the benchmark was the bottleneck",
            ),
            (report.latency_us.p99 > p99_limit_us, "too late"),
            (
                report.deliveries_per_second < SHARE_MIN * asked,
                "too little arrived",
            ),
        ];
        Self {
            rate,
            asked_deliveries_per_second: asked,
            deliveries_per_second: report.deliveries_per_second,
            p50_us: report.latency_us.p50,
            p99_us: report.latency_us.p99,
            max_us: report.latency_us.max,
            server_seconds_per_million: report
                .server
                .as_ref()
                .and_then(|server| server.seconds_per_million_deliveries),
            server_pss_bytes: report.memory.as_ref().map(|memory| memory.held_bytes),
            failed: failed
                .into_iter()
                .find_map(|(is_true, what)| is_true.then_some(what)),
        }
    }

    fn print(&self) -> io::Result<()> {
        let mut out = io::stdout().lock();
        let ms = |micros| float(micros) / 1e3;
        write!(
            out,
            "{:>10.0} of {:>10.0} deliveries/s, p50 {:>8.2} ms, p99 {:>8.2} ms",
            self.deliveries_per_second,
            self.asked_deliveries_per_second,
            ms(self.p50_us),
            ms(self.p99_us),
        )?;
        if let Some(seconds) = self.server_seconds_per_million {
            write!(out, ", {seconds:>6.2} s per million")?;
        }
        match self.failed {
            Some(why) => writeln!(out, ": {why}"),
            None => writeln!(out),
        }
    }
}

impl Search {
    fn publish(&self, conductor: &Conductor<'_>) -> Result<(), BenchError> {
        let mut out = io::stdout().lock();
        let printed = if conductor.run.json {
            serde_json::to_writer_pretty(&mut out, self)
                .map_err(io::Error::from)
                .and_then(|()| writeln!(out))
        } else {
            match &self.best {
                Some(best) => writeln!(
                    out,
                    "\nat most {:.0} deliveries/s with a p99 within {:.0} ms",
                    best.deliveries_per_second,
                    float(self.p99_limit_us) / 1e3
                ),
                None => writeln!(out, "\nno load was borne within the limit"),
            }
        };
        printed.map_err(BenchError::io("cannot print the report"))?;
        if let Some(path) = &conductor.run.html {
            fs::write(path, page::of_search(self))
                .map_err(BenchError::io("cannot write the page"))?;
        }
        Ok(())
    }
}

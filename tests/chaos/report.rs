//! The report of a run, for people.

use std::fmt;

use crate::{
    checker::{Count, Verdict},
    conduct::Course,
};

/// Everything that a run tells.
#[derive(Debug)]
pub(crate) struct Report<'r> {
    pub(crate) seed: u64,
    pub(crate) course: &'r Course,
    pub(crate) verdict: &'r Verdict,
    pub(crate) slow_clients: u64,
    pub(crate) has_stock: bool,
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            course, verdict, ..
        } = self;
        writeln!(f, "chaos, MUSTER_TEST_SEED={}", self.seed)?;
        for round in &course.rounds {
            let nuisance = format!("{:?}", round.step.nuisance);
            write!(
                f,
                "  {:<42} beside {nuisance:<20}",
                round.step.blow.to_string()
            )?;
            if let Some(replaced) = round.replaced_ms {
                write!(f, "  replaced after {replaced:>5} ms")?;
            }
            if let Some(whole) = round.whole_ms {
                write!(f, "  whole after {whole:>5} ms")?;
            }
            writeln!(f)?;
        }
        for stall in &course.stalls {
            writeln!(f, "  the machine stood still: {stall}")?;
        }
        if !self.has_stock {
            writeln!(f, "  without stock clients")?;
        }
        let Verdict {
            published,
            acknowledged,
            deliveries,
            due,
            unknown,
            connections,
            ended_with_worker,
            cut,
            ..
        } = verdict;
        let kept = connections - ended_with_worker - cut;
        writeln!(
            f,
            "  connections  {connections}: {kept} kept, {ended_with_worker} ended with their worker, {cut} cut off"
        )?;
        writeln!(
            f,
            "  publications {published}: {acknowledged} acknowledged, {unknown} ended with their connection"
        )?;
        writeln!(
            f,
            "  deliveries   {deliveries}, of which {due} were due; slow clients closed {}",
            self.slow_clients
        )?;
        for (name, count) in [
            ("lost", verdict.lost),
            ("repeated", verdict.repeated),
            ("out of order", verdict.out_of_order),
        ] {
            writeln!(f, "  {name:<12} {count}")?;
        }
        for (name, Count { outside, around }) in [
            ("failed", verdict.failed),
            ("unanswered", verdict.unanswered),
        ] {
            writeln!(
                f,
                "  {name:<12} {outside}, and {around} around the deaths of brokers"
            )?;
        }
        for problem in course.problems.iter().chain(&verdict.problems) {
            writeln!(f, "  PROBLEM {problem}")?;
        }
        Ok(())
    }
}

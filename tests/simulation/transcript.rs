//! What happened: the last events as text, and faults by kind.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
};

use muster_wire::Millis;

/// Lines kept, unless `MUSTER_SIM_LINES` says otherwise.
const LINES: usize = 120;

/// Keeps lines only when asked to, because most runs need none.
#[derive(Debug, Default)]
pub(crate) struct Transcript {
    /// Zero: nothing is kept.
    lines_max: usize,
    lines: VecDeque<String>,
    pub(crate) faults: BTreeMap<&'static str, u64>,
}

impl Transcript {
    pub(crate) fn new(is_on: bool) -> Self {
        let wanted = std::env::var("MUSTER_SIM_LINES").ok();
        let lines = wanted.map_or(LINES, |lines| lines.parse().expect("a number of lines"));
        Self {
            lines_max: if is_on { lines } else { 0 },
            ..Self::default()
        }
    }

    pub(crate) fn line(&mut self, now: Millis, line: impl FnOnce() -> String) {
        if self.lines_max > 0 {
            if self.lines.len() == self.lines_max {
                self.lines.pop_front();
            }
            self.lines.push_back(format!("{:>7} {}", now.0, line()));
        }
    }

    /// What is no fault, but rare enough to be counted.
    pub(crate) fn count(&mut self, kind: &'static str) {
        self.fault(kind);
    }

    pub(crate) fn fault(&mut self, kind: &'static str) {
        *self.faults.entry(kind).or_default() += 1;
    }
}

impl fmt::Display for Transcript {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.lines {
            writeln!(f, "  {line}")?;
        }
        Ok(())
    }
}

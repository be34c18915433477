//! What happened: the last events as text, and faults by kind.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
};

use muster_wire::Millis;

const LINES_MAX: usize = 120;

/// Keeps lines only when asked to, because most runs need none.
#[derive(Debug, Default)]
pub(crate) struct Transcript {
    is_on: bool,
    lines: VecDeque<String>,
    pub(crate) faults: BTreeMap<&'static str, u64>,
}

impl Transcript {
    pub(crate) fn new(is_on: bool) -> Self {
        Self {
            is_on,
            ..Self::default()
        }
    }

    pub(crate) fn line(&mut self, now: Millis, line: impl FnOnce() -> String) {
        if self.is_on {
            if self.lines.len() == LINES_MAX {
                self.lines.pop_front();
            }
            self.lines.push_back(format!("{:>7} {}", now.0, line()));
        }
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

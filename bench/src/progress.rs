//! How far a run is, for whoever watches it on a terminal.

use std::io::{self, IsTerminal as _, Write as _};

use super::clock::{Micros, now};

const BAR_CELLS: usize = 30;

/// One line on standard error, written over and over; nothing where no terminal
/// is.
#[derive(Debug)]
pub(super) struct Progress {
    is_shown: bool,
    last: String,
}

impl Progress {
    pub(super) fn new() -> Self {
        Self {
            is_shown: io::stderr().is_terminal(),
            last: String::new(),
        }
    }

    /// What is being done, without an end in sight.
    pub(super) fn show(&mut self, what: &str) {
        self.write(what.to_owned());
    }

    /// What is being done, and how much of its time has passed.
    pub(super) fn show_time(&mut self, what: &str, (from, to): (Micros, Micros)) {
        let whole = to.saturating_sub(from).max(1);
        let passed = now().saturating_sub(from).min(whole);
        let full = usize::try_from(passed * BAR_CELLS as u64 / whole).unwrap_or(0);
        let bar = "#".repeat(full) + &"-".repeat(BAR_CELLS - full);
        let seconds = |micros: Micros| micros / 1_000_000;
        self.write(format!(
            "{what} [{bar}] {} of {} s",
            seconds(passed),
            seconds(whole)
        ));
    }

    /// Makes room for other output.
    pub(super) fn clear(&mut self) {
        self.write(String::new());
    }

    fn write(&mut self, line: String) {
        if self.is_shown && line != self.last {
            // Progress that cannot be shown is no reason to stop.
            let _ = write!(io::stderr(), "\r\x1b[K{line}").and_then(|()| io::stderr().flush());
            self.last = line;
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

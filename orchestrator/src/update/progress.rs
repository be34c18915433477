//! How far an update is, while somebody waits for it: one line that is drawn
//! anew on a terminal, a line for each step elsewhere.

use std::io::{self, Write as _};

use muster_proto::control as pb;

use super::{brokers_under_way, pauses};
use crate::console;

/// Shows how far an update is, on standard error.
#[derive(Debug)]
pub(super) struct Progress {
    mode: Mode,
    /// What was said last where steps are lines.
    said: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Redrawn,
    Lines,
    Silent,
}

impl Progress {
    /// Programs that read JSON find nothing but errors on standard error.
    pub(super) fn new(json: bool) -> Self {
        let mode = match (console::can_redraw(), json) {
            (true, _) => Mode::Redrawn,
            (false, false) => Mode::Lines,
            (false, true) => Mode::Silent,
        };
        Self {
            mode,
            said: String::new(),
        }
    }

    pub(super) fn show(&mut self, status: &pb::UpdateStatusResponse) {
        match self.mode {
            Mode::Silent => {}
            Mode::Redrawn => write(&format!("\r\x1b[K{}", line(status, true))),
            Mode::Lines => {
                let line = line(status, false);
                if line != self.said {
                    write(&format!("{line}\n"));
                    self.said = line;
                }
            }
        }
    }

    /// Something that stays.
    pub(super) fn say(&mut self, text: &str) {
        match self.mode {
            Mode::Silent => {}
            Mode::Redrawn => write(&format!("\r\x1b[K{text}\n")),
            Mode::Lines => write(&format!("{text}\n")),
        }
    }

    /// Leaves the terminal as it was.
    pub(super) fn end(&self) {
        if self.mode == Mode::Redrawn {
            write("\r\x1b[K");
        }
    }
}

/// Somebody who has gone away needs no progress.
fn write(text: &str) {
    let mut stderr = io::stderr().lock();
    let _ = stderr
        .write_all(text.as_bytes())
        .and_then(|()| stderr.flush());
}

/// What is being done; with `figures` also what changes all the time.
fn line(status: &pb::UpdateStatusResponse, figures: bool) -> String {
    let mut line = match status.phase.as_str() {
        "checking" => "Looking at the program".to_owned(),
        "canary" => format!("The first of {} workers", status.workers),
        "holding" if figures => format!(
            "Watching the new workers for {} s more ({} of {})",
            status.hold_left_ms.div_ceil(1000),
            status.workers_done,
            status.workers
        ),
        "holding" => format!(
            "Watching the new workers ({} of {})",
            status.workers_done, status.workers
        ),
        "rolling_back" => format!("Taking back: {} are back", status.workers_returned),
        _ => format!("{} of {} workers done", status.workers_done, status.workers),
    };
    if let Some(following) = &status.following {
        line += &brokers_under_way(following);
    }
    for step in &status.steps {
        line += &format!(", worker-{} is {}", step.slot, step.step.replace('_', " "));
    }
    if figures && status.moved > 0 {
        line += &format!("; {} connections, {}", status.moved, pauses(status));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(phase: &str) -> pb::UpdateStatusResponse {
        pb::UpdateStatusResponse {
            state: "running".into(),
            phase: phase.into(),
            workers: 4,
            ..pb::UpdateStatusResponse::default()
        }
    }

    #[test]
    fn a_line_says_what_is_done_to_which_workers() {
        let mut replacing = status("replacing");
        replacing.workers_done = 1;
        for (slot, step) in [(2, "starting"), (3, "handing_over")] {
            let step = step.into();
            replacing.steps.push(pb::UpdateStep { slot, step });
        }
        replacing.moved = 99;
        (replacing.pause_p50_us, replacing.pause_max_us) = (1_200, 30_000);
        assert_eq!(
            line(&replacing, true),
            "1 of 4 workers done, worker-2 is starting, worker-3 is handing over; 99 connections, \
             pauses 1.2 ms (half of them), 0.0 ms (99 of 100), 30.0 ms (the longest)"
        );
        assert_eq!(
            line(&replacing, false),
            "1 of 4 workers done, worker-2 is starting, worker-3 is handing over"
        );
    }

    #[test]
    fn who_watches_sees_how_long() {
        let mut holding = status("holding");
        (holding.workers_done, holding.hold_left_ms) = (1, 28_001);
        assert_eq!(
            line(&holding, true),
            "Watching the new workers for 29 s more (1 of 4)"
        );
        assert_eq!(line(&holding, false), "Watching the new workers (1 of 4)");
        let mut back = status("rolling_back");
        back.workers_returned = 2;
        assert_eq!(line(&back, false), "Taking back: 2 are back");
    }
}

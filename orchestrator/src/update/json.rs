//! An update for programs.

use std::time::Duration;

use muster_proto::{Pauses, control as pb};
use serde::Serialize;

/// The field names are part of the interface.
#[derive(Serialize)]
struct Update<'a> {
    state: &'a str,
    error: Option<&'a str>,
    /// Null unless it is running.
    slot: Option<u32>,
    step: Option<&'a str>,
    phase: Option<&'a str>,
    /// All slots whose turn it is.
    steps: Vec<Step<'a>>,
    hold_left_ms: u64,
    workers_done: u32,
    workers: u32,
    workers_returned: u32,
    stuck: Vec<Stuck<'a>>,
    aborted: bool,
    moved: u64,
    failed: u64,
    pause_p50_us: u64,
    pause_p99_us: u64,
    pause_max_us: u64,
    /// How many stood still for at most so many microseconds.
    pauses: Vec<(u64, u64)>,
    handing_over_us: u64,
    took_ms: u64,
    note: Option<&'a str>,
    /// Null before the workers are through.
    following: Option<Following<'a>>,
}

/// What comes after the workers.
#[derive(Serialize)]
struct Following<'a> {
    slot: Option<u32>,
    step: Option<&'a str>,
    brokers_done: u32,
    brokers: u32,
    pause_max_us: u64,
    orchestrator_done: bool,
}

#[derive(Serialize)]
struct Step<'a> {
    slot: u32,
    step: &'a str,
}

/// A worker that could not be taken back.
#[derive(Serialize)]
struct Stuck<'a> {
    slot: u32,
    reason: &'a str,
}

impl<'a> From<&'a pb::UpdateFollowing> for Following<'a> {
    fn from(following: &'a pb::UpdateFollowing) -> Self {
        Self {
            slot: Some(following.slot).filter(|slot| *slot > 0),
            step: given(&following.step),
            brokers_done: following.brokers_done,
            brokers: following.brokers,
            pause_max_us: following.pause_max_us,
            orchestrator_done: following.orchestrator_done,
        }
    }
}

fn given(text: &str) -> Option<&str> {
    Some(text).filter(|text| !text.is_empty())
}

/// How it is, or how it ended.
pub(super) fn json(status: &pb::UpdateStatusResponse) -> String {
    let max = Duration::from_micros(status.pause_max_us);
    let pauses = Pauses::received(status.pauses.clone(), max);
    let micros = |pause: Duration| u64::try_from(pause.as_micros()).unwrap_or(u64::MAX);
    let update = Update {
        state: &status.state,
        error: given(&status.error),
        slot: Some(status.slot).filter(|slot| *slot > 0),
        step: given(&status.step),
        phase: given(&status.phase),
        steps: status
            .steps
            .iter()
            .map(|pb::UpdateStep { slot, step }| Step { slot: *slot, step })
            .collect(),
        hold_left_ms: status.hold_left_ms,
        workers_done: status.workers_done,
        workers: status.workers,
        workers_returned: status.workers_returned,
        stuck: status
            .stuck
            .iter()
            .map(|pb::UpdateStuck { slot, reason }| Stuck {
                slot: *slot,
                reason,
            })
            .collect(),
        aborted: status.aborted,
        moved: status.moved,
        failed: status.failed,
        pause_p50_us: status.pause_p50_us,
        pause_p99_us: status.pause_p99_us,
        pause_max_us: status.pause_max_us,
        pauses: pauses
            .steps()
            .map(|(pause, count)| (micros(pause), count))
            .collect(),
        handing_over_us: status.handing_over_us,
        took_ms: status.took_ms,
        note: given(&status.note),
        following: status.following.as_ref().map(Following::from),
    };
    let json = serde_json::to_string_pretty(&update);
    json.expect("text and numbers are always JSON") + "\n"
}

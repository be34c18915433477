//! The verb `update`: what it asks for and what it prints.

use std::{path::PathBuf, time::Duration};

use muster_proto::{Pauses, control as pb};
use serde::Serialize;
use tokio::time::sleep;

use crate::{
    cli::UpdateArgs,
    control::{Operator, OperatorError},
    watching,
};

/// Between two looks at how far it is.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Updates the cluster and returns what to print once that is over, or at once
/// where only the state is asked for.
///
/// # Errors
///
/// When the cluster refuses, cannot be reached, or the update fails.
pub(crate) async fn update(
    args: &UpdateArgs,
    runtime_dir: Option<PathBuf>,
) -> Result<String, OperatorError> {
    let (mut operator, _) = Operator::connect(runtime_dir.clone()).await?;
    if !args.status {
        let program = args.binary.as_ref().map(std::path::absolute).transpose();
        let program = program.map_err(|error| OperatorError::Invalid(error.to_string()))?;
        operator.update(program).await?;
    }
    let mut status = operator.update_status().await?;
    while !args.status && status.state == "running" {
        sleep(LOOK_AGAIN).await;
        status = watching::update_status(&mut operator, runtime_dir.as_ref()).await?;
    }
    if !args.status && status.state == "failed" {
        return Err(OperatorError::Refused(failure(&status)));
    }
    Ok(if args.output.json {
        json(&status)
    } else {
        text(&status)
    })
}

fn failure(status: &pb::UpdateStatusResponse) -> String {
    format!(
        "the update failed after {} of {} workers: {}; the cluster goes on with the workers that \
         run",
        status.workers_done, status.workers, status.error
    )
}

fn text(status: &pb::UpdateStatusResponse) -> String {
    let mut text = match status.state.as_str() {
        "none" => return "No update has been made since this orchestrator was started.\n".into(),
        "running" => format!("An update is under way: {}.\n", under_way(status)),
        "failed" => format!("The last update failed. {}\n", sentence(&failure(status))),
        _ => format!(
            "{} workers were updated in {}.\n",
            status.workers_done,
            seconds(status.took_ms * 1000)
        ),
    };
    text += &format!(
        "Connections handed over: {}; each stood still for {} (half of them), {} (99 of 100), {} \
         (the longest).\n",
        status.moved,
        seconds(status.pause_p50_us),
        seconds(status.pause_p99_us),
        seconds(status.pause_max_us)
    );
    if let Some(following) = &status.following {
        text += &brokers(following);
    }
    if status.failed > 0 {
        text += &format!("Could not be handed over: {}\n", status.failed);
    }
    if !status.note.is_empty() {
        text += &format!("Last trouble: {}\n", status.note);
    }
    text
}

/// How far it is.
fn under_way(status: &pb::UpdateStatusResponse) -> String {
    let step = |step: &str| step.replace('_', " ");
    match &status.following {
        None => format!(
            "{} of {} workers done, worker-{} is {}",
            status.workers_done,
            status.workers,
            status.slot,
            step(&status.step)
        ),
        Some(following) if following.slot > 0 => format!(
            "the workers and {} of {} brokers done, broker-{} is {}",
            following.brokers_done,
            following.brokers,
            following.slot,
            step(&following.step)
        ),
        Some(_) => "workers and brokers done, the orchestrator executes its program".into(),
    }
}

/// What was done after the workers.
fn brokers(following: &pb::UpdateFollowing) -> String {
    let mut text = format!(
        "{} of {} brokers were updated; the channels of one stood still for at most {}.\n",
        following.brokers_done,
        following.brokers,
        seconds(following.pause_max_us)
    );
    if following.orchestrator_done {
        text += "The orchestrator was updated.\n";
    }
    text
}

fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    let first = letters.next().map(|first| first.to_uppercase().to_string());
    first.unwrap_or_default() + letters.as_str() + "."
}

/// `1.2 ms`, `3.4 s`.
fn seconds(micros: u64) -> String {
    if micros < 1_000_000 {
        format!("{}.{} ms", micros / 1000, micros / 100 % 10)
    } else {
        format!("{}.{} s", micros / 1_000_000, micros / 100_000 % 10)
    }
}

/// The field names are part of the interface.
fn json(status: &pb::UpdateStatusResponse) -> String {
    #[derive(Serialize)]
    struct Update<'a> {
        state: &'a str,
        error: Option<&'a str>,
        /// Null unless it is running.
        slot: Option<u32>,
        step: Option<&'a str>,
        workers_done: u32,
        workers: u32,
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
    #[derive(Serialize)]
    struct Following<'a> {
        slot: Option<u32>,
        step: Option<&'a str>,
        brokers_done: u32,
        brokers: u32,
        pause_max_us: u64,
        orchestrator_done: bool,
    }
    fn given(text: &str) -> Option<&str> {
        Some(text).filter(|text| !text.is_empty())
    }
    let max = Duration::from_micros(status.pause_max_us);
    let pauses = Pauses::received(status.pauses.clone(), max);
    let micros = |pause: Duration| u64::try_from(pause.as_micros()).unwrap_or(u64::MAX);
    let update = Update {
        state: &status.state,
        error: given(&status.error),
        slot: Some(status.slot).filter(|slot| *slot > 0),
        step: given(&status.step),
        workers_done: status.workers_done,
        workers: status.workers,
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
        following: status.following.as_ref().map(|following| Following {
            slot: Some(following.slot).filter(|slot| *slot > 0),
            step: given(&following.step),
            brokers_done: following.brokers_done,
            brokers: following.brokers,
            pause_max_us: following.pause_max_us,
            orchestrator_done: following.orchestrator_done,
        }),
    };
    let json = serde_json::to_string_pretty(&update);
    json.expect("text and numbers are always JSON") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(state: &str) -> pb::UpdateStatusResponse {
        pb::UpdateStatusResponse {
            state: state.into(),
            workers_done: 2,
            workers: 4,
            moved: 9_999,
            pause_p50_us: 1_250,
            pause_p99_us: 4_900,
            pause_max_us: 1_500_000,
            pauses: vec![0, 9_000, 999],
            handing_over_us: 400_000,
            took_ms: 2_345,
            following: (state == "done").then(|| pb::UpdateFollowing {
                brokers_done: 2,
                brokers: 2,
                pause_max_us: 83_210,
                orchestrator_done: true,
                ..pb::UpdateFollowing::default()
            }),
            ..pb::UpdateStatusResponse::default()
        }
    }

    #[test]
    fn people_read_what_was_done_and_how_long_connections_stood_still() {
        let text = text(&status("done"));
        assert_eq!(
            text,
            "2 workers were updated in 2.3 s.\n\
             Connections handed over: 9999; each stood still for 1.2 ms (half of them), 4.9 ms \
             (99 of 100), 1.5 s (the longest).\n\
             2 of 2 brokers were updated; the channels of one stood still for at most 83.2 ms.\n\
             The orchestrator was updated.\n"
        );
    }

    #[test]
    fn people_read_how_far_it_is_and_why_it_failed() {
        let mut running = status("running");
        (running.slot, running.step) = (3, "handing_over".into());
        let shown = text(&running);
        assert!(
            shown.contains("2 of 4 workers done, worker-3 is handing over"),
            "{shown}"
        );
        running.following = Some(pb::UpdateFollowing {
            slot: 2,
            step: "putting_back".into(),
            brokers_done: 1,
            brokers: 2,
            ..pb::UpdateFollowing::default()
        });
        let shown = text(&running);
        assert!(
            shown.contains("1 of 2 brokers done, broker-2 is putting back"),
            "{shown}"
        );
        let mut failed = status("failed");
        failed.error = "exit code 1".into();
        (failed.failed, failed.note) = (7, "no room".into());
        let shown = text(&failed);
        for part in [
            "after 2 of 4",
            "exit code 1; ",
            "over: 7",
            "trouble: no room",
        ] {
            assert!(shown.contains(part), "{part}: {shown}");
        }
        assert!(text(&status("none")).contains("No update"));
    }

    #[test]
    fn programs_read_the_same() {
        let json: serde_json::Value = serde_json::from_str(&json(&status("done"))).unwrap();
        assert_eq!(
            json,
            serde_json::json!({
                "state": "done",
                "error": null,
                "slot": null,
                "step": null,
                "workers_done": 2,
                "workers": 4,
                "moved": 9_999,
                "failed": 0,
                "pause_p50_us": 1_250,
                "pause_p99_us": 4_900,
                "pause_max_us": 1_500_000,
                "pauses": [[113, 9_000], [128, 999]],
                "handing_over_us": 400_000,
                "took_ms": 2_345,
                "note": null,
                "following": {
                    "slot": null,
                    "step": null,
                    "brokers_done": 2,
                    "brokers": 2,
                    "pause_max_us": 83_210,
                    "orchestrator_done": true,
                },
            })
        );
    }
}

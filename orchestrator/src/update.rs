//! The verb `update`: what it asks for and what it prints.

mod json;
mod progress;

use std::{io, path::PathBuf, time::Duration};

use muster_proto::control as pb;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::sleep,
};

use self::{json::json, progress::Progress};
use crate::{
    cli::UpdateArgs,
    control::{Operator, OperatorError, UpdateWish},
    watching,
};

/// Between two looks at how far it is.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Updates the cluster and returns what to print once that is over, or at once
/// where only the state is asked for. Ctrl-C has it taken back.
///
/// # Errors
///
/// When the cluster refuses, cannot be reached, or the update fails.
pub(crate) async fn update(
    args: &UpdateArgs,
    runtime_dir: Option<PathBuf>,
) -> Result<String, OperatorError> {
    let (mut operator, _) = Operator::connect(runtime_dir.clone()).await?;
    let json_wanted = args.output.json;
    if args.status {
        return Ok(shown(&operator.update_status().await?, json_wanted));
    }
    if args.abort {
        operator.abort_update().await?;
    } else {
        let program = args.binary.as_ref().map(std::path::absolute).transpose();
        let program = program.map_err(|error| OperatorError::Invalid(error.to_string()))?;
        let wish = UpdateWish {
            program,
            canary: args.canary,
            hold: args.hold,
            parallel: args.parallel,
        };
        operator.update(wish).await?;
    }
    let watched = watch(&mut operator, runtime_dir.as_ref(), args.abort, json_wanted);
    let status = watched.await?;
    let is_as_asked = args.abort && status.aborted && status.stuck.is_empty();
    if status.state == "failed" && !is_as_asked {
        return Err(OperatorError::Refused(failure(&status)));
    }
    Ok(shown(&status, json_wanted))
}

/// Waits until the update is over. The first Ctrl-C aborts it, unless that has
/// been asked for; the next one leaves.
async fn watch(
    operator: &mut Operator,
    runtime_dir: Option<&PathBuf>,
    mut is_aborted: bool,
    json: bool,
) -> Result<pb::UpdateStatusResponse, OperatorError> {
    let listens = |error: io::Error| OperatorError::Invalid(format!("no signals: {error}"));
    let mut interrupts = signal(SignalKind::interrupt()).map_err(listens)?;
    let mut progress = Progress::new(json);
    loop {
        let status = watching::update_status(operator, runtime_dir).await?;
        if status.state != "running" {
            progress.end();
            return Ok(status);
        }
        progress.show(&status);
        tokio::select! {
            () = sleep(LOOK_AGAIN) => {}
            _ = interrupts.recv() => {
                if is_aborted {
                    progress.end();
                    return Err(OperatorError::OutcomeUnknown(
                        "the update is still being taken back: `update --status` shows what \
                         becomes of it".into(),
                    ));
                }
                is_aborted = true;
                progress.say("Taking the update back; another Ctrl-C leaves that to the cluster.");
                match operator.abort_update().await {
                    // It is over meanwhile.
                    Ok(()) | Err(OperatorError::Refused(_)) => {}
                    Err(error) => return Err(error),
                }
            }
        }
    }
}

fn shown(status: &pb::UpdateStatusResponse, is_json: bool) -> String {
    if is_json { json(status) } else { text(status) }
}

/// Why it failed, and what became of it.
fn failure(status: &pb::UpdateStatusResponse) -> String {
    let mut text = format!("the update failed: {}; ", status.error);
    match (status.workers_returned, status.stuck.is_empty()) {
        (0, true) => text += "no worker was replaced, all that run go on",
        (returned, true) => {
            text += &format!(
                "rolled back: the workers that were replaced ({returned} of {}) run the earlier \
                 program again",
                status.workers
            );
        }
        (returned, false) => {
            text += &format!("rolled back: {returned}, but not all: ");
            let stuck = status.stuck.iter();
            let stuck = stuck.map(|one| {
                format!(
                    "worker-{} goes on as it is, because {}",
                    one.slot, one.reason
                )
            });
            text += &stuck.collect::<Vec<_>>().join("; ");
        }
    }
    text
}

fn text(status: &pb::UpdateStatusResponse) -> String {
    let mut text = match status.state.as_str() {
        "none" => return "No update has been made since this orchestrator was started.\n".into(),
        "running" => format!("An update is under way{}.\n", under_way(status)),
        "failed" if status.aborted && status.stuck.is_empty() => format!(
            "The update was aborted: the workers that were replaced ({} of {}) run the earlier \
             program again.\n",
            status.workers_returned, status.workers
        ),
        "failed" => format!("The last update failed. {}\n", sentence(&failure(status))),
        _ => format!(
            "{} workers were updated in {}.\n",
            status.workers_done,
            seconds(status.took_ms * 1000)
        ),
    };
    text += &format!(
        "Connections handed over: {}; {}.\n",
        status.moved,
        pauses(status)
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
    let words = |name: &str| name.replace('_', " ");
    let mut text = format!(
        " ({}): {} of {} workers done",
        words(&status.phase),
        status.workers_done,
        status.workers
    );
    for step in &status.steps {
        text += &format!(", worker-{} is {}", step.slot, words(&step.step));
    }
    if let Some(following) = &status.following {
        text += &brokers_under_way(following);
    }
    text
}

fn brokers_under_way(following: &pb::UpdateFollowing) -> String {
    let mut text = format!(
        ", {} of {} brokers",
        following.brokers_done, following.brokers
    );
    if following.slot > 0 {
        let step = following.step.replace('_', " ");
        text += &format!(", broker-{} is {step}", following.slot);
    }
    text
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

/// How long connections stood still.
fn pauses(status: &pb::UpdateStatusResponse) -> String {
    format!(
        "pauses {} (half of them), {} (99 of 100), {} (the longest)",
        seconds(status.pause_p50_us),
        seconds(status.pause_p99_us),
        seconds(status.pause_max_us)
    )
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
             Connections handed over: 9999; pauses 1.2 ms (half of them), 4.9 ms (99 of 100), \
             1.5 s (the longest).\n\
             2 of 2 brokers were updated; the channels of one stood still for at most 83.2 ms.\n\
             The orchestrator was updated.\n"
        );
    }

    #[test]
    fn people_read_how_far_it_is() {
        let mut running = status("running");
        running.phase = "replacing".into();
        running.steps.push(pb::UpdateStep {
            slot: 3,
            step: "handing_over".into(),
        });
        let shown = text(&running);
        let expected = "(replacing): 2 of 4 workers done, worker-3 is handing over.";
        assert!(shown.contains(expected), "{shown}");
        running.phase = "brokers".into();
        running.steps.clear();
        running.following = Some(pb::UpdateFollowing {
            slot: 2,
            step: "putting_back".into(),
            brokers_done: 1,
            brokers: 2,
            ..pb::UpdateFollowing::default()
        });
        let shown = text(&running);
        let expected = "workers done, 1 of 2 brokers, broker-2 is putting back.";
        assert!(shown.contains(expected), "{shown}");
        assert!(text(&status("none")).contains("No update"));
    }

    #[test]
    fn people_read_why_it_failed_and_what_became_of_it() {
        let mut failed = status("failed");
        failed.error = "exit code 1".into();
        (failed.failed, failed.note) = (7, "no room".into());
        let shown = text(&failed);
        for part in [
            "failed: exit code 1; no worker was replaced",
            "over: 7",
            "trouble: no room",
        ] {
            assert!(shown.contains(part), "{part}: {shown}");
        }
        failed.workers_returned = 2;
        let shown = text(&failed);
        assert!(shown.contains("rolled back: the workers"), "{shown}");
        assert!(shown.contains("(2 of 4) run the earlier"), "{shown}");
        failed.stuck.push(pb::UpdateStuck {
            slot: 3,
            reason: "no memory".into(),
        });
        let shown = text(&failed);
        let part = "not all: worker-3 goes on as it is, because no memory";
        assert!(shown.contains(part), "{shown}");
    }

    #[test]
    fn what_was_aborted_as_asked_is_no_failure() {
        let mut aborted = status("failed");
        (aborted.aborted, aborted.workers_returned) = (true, 1);
        let shown = text(&aborted);
        assert!(shown.starts_with("The update was aborted: "), "{shown}");
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
                "phase": null,
                "steps": [],
                "hold_left_ms": 0,
                "workers_done": 2,
                "workers": 4,
                "workers_returned": 0,
                "stuck": [],
                "aborted": false,
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

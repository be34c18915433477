//! The verb `scale`: what it asks for and what it prints.

use std::path::PathBuf;

use muster_proto::control as pb;
use serde::Serialize;

use crate::{
    cli::ScaleArgs,
    control::{Operator, OperatorError},
    node::{NodeId, Role},
};

/// Why a cluster is not scaled.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ScaleError {
    #[error(
        "the number of brokers cannot be changed while the cluster runs: end it with \
         `orchestrator down` and start it with `orchestrator up --brokers {0}`"
    )]
    Brokers(u32),
    #[error(transparent)]
    Operator(#[from] OperatorError),
}

/// Begins to scale, and returns what to print.
///
/// # Errors
///
/// When brokers are to be scaled, or the cluster refuses or cannot be reached.
pub(crate) async fn scale(
    args: &ScaleArgs,
    runtime_dir: Option<PathBuf>,
) -> Result<String, ScaleError> {
    if let Some(brokers) = args.brokers {
        return Err(ScaleError::Brokers(brokers));
    }
    let workers = args.workers.unwrap_or_default();
    let (mut operator, _) = Operator::connect(runtime_dir).await?;
    let answer = operator.scale(workers).await?;
    Ok(if args.json {
        json(&answer)
    } else {
        text(&answer)
    })
}

fn text(answer: &pb::ScaleResponse) -> String {
    let mut text = match answer.workers {
        1 => "The cluster is to have 1 worker.\n".to_owned(),
        workers => format!("The cluster is to have {workers} workers.\n"),
    };
    if !answer.starting.is_empty() {
        let names = names(&answer.starting).join(", ");
        text += &format!("Starting: {names}\n");
    }
    if !answer.draining.is_empty() {
        let names = names(&answer.draining).join(", ");
        let seconds = answer.within_ms.div_ceil(1000);
        text += &format!("Ending, clients are closed within {seconds} s: {names}\n");
    }
    text
}

/// The field names are part of the interface.
fn json(answer: &pb::ScaleResponse) -> String {
    #[derive(Serialize)]
    struct Scale {
        workers: u32,
        starting: Vec<String>,
        draining: Vec<String>,
        within_ms: u64,
    }
    let scale = Scale {
        workers: answer.workers,
        starting: names(&answer.starting),
        draining: names(&answer.draining),
        within_ms: answer.within_ms,
    };
    let json = serde_json::to_string_pretty(&scale);
    json.expect("text and numbers are always JSON") + "\n"
}

fn names(slots: &[u32]) -> Vec<String> {
    let role = Role::Worker;
    let name = |slot: &u32| NodeId { role, slot: *slot }.to_string();
    slots.iter().map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(starting: &[u32], draining: &[u32]) -> pb::ScaleResponse {
        pb::ScaleResponse {
            workers: 3,
            starting: starting.into(),
            draining: draining.into(),
            within_ms: 20_500,
        }
    }

    #[test]
    fn people_read_which_workers_come_and_go() {
        assert_eq!(
            text(&answer(&[2, 3], &[])),
            "The cluster is to have 3 workers.\nStarting: worker-2, worker-3\n"
        );
        assert_eq!(
            text(&answer(&[], &[4])),
            "The cluster is to have 3 workers.\n\
             Ending, clients are closed within 21 s: worker-4\n"
        );
    }

    #[test]
    fn programs_read_the_same() {
        let json: serde_json::Value = serde_json::from_str(&json(&answer(&[2], &[4]))).unwrap();
        assert_eq!(
            json,
            serde_json::json!({
                "workers": 3,
                "starting": ["worker-2"],
                "draining": ["worker-4"],
                "within_ms": 20_500,
            })
        );
    }
}

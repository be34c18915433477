//! The verb `scale`: what it asks for and what it prints.

use std::path::PathBuf;

use muster_proto::control as pb;
use serde::Serialize;

use crate::{
    cli::ScaleArgs,
    control::{Goal, Operator, OperatorError},
    node::{NodeId, Role},
};

/// Begins to scale, and returns what to print.
///
/// # Errors
///
/// When the cluster refuses or cannot be reached.
pub(crate) async fn scale(
    args: &ScaleArgs,
    runtime_dir: Option<PathBuf>,
) -> Result<String, OperatorError> {
    let goal = Goal {
        workers: args.workers,
        brokers: args.brokers,
    };
    let (mut operator, _) = Operator::connect(runtime_dir).await?;
    let answer = operator.scale(goal).await?;
    Ok(if args.json {
        json(&answer)
    } else {
        text(&answer)
    })
}

fn text(answer: &pb::ScaleResponse) -> String {
    let mut text = format!(
        "The cluster is to have {} and {}.\n",
        counted(answer.workers, "worker"),
        counted(answer.brokers, "broker")
    );
    let starting = starting(answer);
    if !starting.is_empty() {
        text += &format!("Starting: {}\n", starting.join(", "));
    }
    if !answer.draining.is_empty() {
        let names = names(Role::Worker, &answer.draining).join(", ");
        text += &format!("Ending once the others have their clients: {names}\n");
    }
    if !answer.brokers_ending.is_empty() {
        let names = names(Role::Broker, &answer.brokers_ending).join(", ");
        text += &format!("Ending once the others have their shards: {names}\n");
    }
    text
}

fn counted(count: u32, what: &str) -> String {
    match count {
        1 => format!("1 {what}"),
        count => format!("{count} {what}s"),
    }
}

/// The field names are part of the interface.
fn json(answer: &pb::ScaleResponse) -> String {
    #[derive(Serialize)]
    struct Scale {
        workers: u32,
        brokers: u32,
        starting: Vec<String>,
        draining: Vec<String>,
        within_ms: u64,
    }
    let mut draining = names(Role::Worker, &answer.draining);
    draining.append(&mut names(Role::Broker, &answer.brokers_ending));
    let scale = Scale {
        workers: answer.workers,
        brokers: answer.brokers,
        starting: starting(answer),
        draining,
        within_ms: answer.within_ms,
    };
    let json = serde_json::to_string_pretty(&scale);
    json.expect("text and numbers are always JSON") + "\n"
}

fn starting(answer: &pb::ScaleResponse) -> Vec<String> {
    let mut starting = names(Role::Worker, &answer.starting);
    starting.append(&mut names(Role::Broker, &answer.brokers_starting));
    starting
}

fn names(role: Role, slots: &[u32]) -> Vec<String> {
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
            brokers: 1,
            ..pb::ScaleResponse::default()
        }
    }

    #[test]
    fn people_read_which_nodes_come_and_go() {
        let mut comes = answer(&[2, 3], &[]);
        (comes.brokers, comes.brokers_starting) = (2, vec![2]);
        assert_eq!(
            text(&comes),
            "The cluster is to have 3 workers and 2 brokers.\n\
             Starting: worker-2, worker-3, broker-2\n"
        );
        let mut goes = answer(&[], &[4]);
        goes.brokers_ending = vec![2];
        assert_eq!(
            text(&goes),
            "The cluster is to have 3 workers and 1 broker.\n\
             Ending once the others have their clients: worker-4\n\
             Ending once the others have their shards: broker-2\n"
        );
    }

    #[test]
    fn programs_read_the_same() {
        let mut answer = answer(&[2], &[4]);
        answer.brokers_ending = vec![2];
        let json: serde_json::Value = serde_json::from_str(&json(&answer)).unwrap();
        assert_eq!(
            json,
            serde_json::json!({
                "workers": 3,
                "brokers": 1,
                "starting": ["worker-2"],
                "draining": ["worker-4", "broker-2"],
                "within_ms": 20_500,
            })
        );
    }
}

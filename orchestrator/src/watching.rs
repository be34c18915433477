//! Watching an update from outside, across the moment in which the orchestrator
//! executes its new program and its connections end.

use std::{path::PathBuf, time::Duration};

use muster_proto::control as pb;
use tokio::time::{Instant, sleep};

use crate::control::{Operator, OperatorError};

/// Longest that an orchestrator may be away while an update is under way.
const AWAY_MAX: Duration = Duration::from_secs(30);
/// The same where nobody listens: it has not executed its program but ended, and
/// somebody may start the next one.
const GONE_MAX: Duration = Duration::from_secs(3);
/// Between two attempts to reach it.
const TRY_AGAIN: Duration = Duration::from_millis(50);

/// How the update is; connects anew where that is needed.
///
/// # Errors
///
/// When the orchestrator refuses, or is away for too long.
pub(crate) async fn update_status(
    operator: &mut Operator,
    runtime_dir: Option<&PathBuf>,
) -> Result<pb::UpdateStatusResponse, OperatorError> {
    let lost = Instant::now();
    let mut answer = operator.update_status().await;
    loop {
        match answer {
            Err(error) if lost.elapsed() < away_max(&error) => {}
            answered => return answered,
        }
        sleep(TRY_AGAIN).await;
        answer = match Operator::connect(runtime_dir.cloned()).await {
            Ok((anew, _)) => {
                *operator = anew;
                operator.update_status().await
            }
            Err(error) => Err(error),
        };
    }
}

/// To ask changes nothing, so it may be done again whatever became of it.
fn away_max(error: &OperatorError) -> Duration {
    match error {
        OperatorError::NotRunning { .. } => GONE_MAX,
        OperatorError::Reach { .. }
        | OperatorError::Connect(_)
        | OperatorError::OutcomeUnknown(_) => AWAY_MAX,
        OperatorError::RuntimeDir(_)
        | OperatorError::Refused(_)
        | OperatorError::UnknownConnection(_)
        | OperatorError::Client(_)
        | OperatorError::Invalid(_) => Duration::ZERO,
    }
}

//! An operator who publishes with the command line, one after the other.

use std::{path::PathBuf, sync::Arc, time::Duration};

use muster_tests::orchestrator;
use serde_json::json;
use tokio::{sync::watch, time::sleep};

use crate::{
    CHANNELS,
    client::Phase,
    record::{Journal, OPERATOR, What, channel_name},
};

/// Between two publications.
const PAUSE: Duration = Duration::from_millis(250);

/// Publishes until the clients only listen. A verb that fails has an unknown
/// outcome here, whatever it says.
pub(crate) async fn publish(
    runtime_dir: PathBuf,
    journal: Arc<Journal>,
    phase: watch::Receiver<Phase>,
) {
    for n in 1.. {
        if *phase.borrow() != Phase::Publishing {
            return;
        }
        let channel = usize::try_from(n).unwrap_or_default() % CHANNELS;
        let data = json!({"p": OPERATOR, "n": n}).to_string();
        journal.note(OPERATOR, What::Published { n, channel });
        let output = orchestrator::command()
            .arg("--runtime-dir")
            .arg(&runtime_dir)
            .args(["publish", &channel_name(channel), &data])
            .output()
            .await
            .expect("the orchestrator's program runs");
        if output.status.success() {
            journal.note(OPERATOR, What::Answered { n, error: None });
        }
        sleep(PAUSE).await;
    }
}

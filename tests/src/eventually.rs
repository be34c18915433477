//! Waiting for what another process does.

use std::time::Duration;

use tokio::time::{Instant, sleep};

const PATIENCE_DEFAULT: Duration = Duration::from_secs(20);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// How long tests wait for anything: `MUSTER_TEST_PATIENCE_S` seconds, 20 by
/// default.
#[must_use]
pub fn patience() -> Duration {
    std::env::var("MUSTER_TEST_PATIENCE_S")
        .ok()
        .and_then(|text| text.parse().ok())
        .map_or(PATIENCE_DEFAULT, Duration::from_secs)
}

/// Looks again and again until `look` finds something, and returns that.
///
/// # Panics
/// When it finds nothing in time; with what it found instead last.
pub async fn eventually<T>(
    what: &str,
    patience: Duration,
    mut look: impl AsyncFnMut() -> Result<T, String>,
) -> T {
    let deadline = Instant::now() + patience;
    loop {
        match look().await {
            Ok(found) => return found,
            Err(instead) if Instant::now() >= deadline => {
                panic!("{what}: not within {patience:?}; last: {instead}")
            }
            Err(_) => sleep(LOOK_AGAIN).await,
        }
    }
}

//! Values that an argument may have.

use std::time::Duration;

use muster_daemon::config::HOLD_MAX;
use muster_wire::ChannelName;

use super::STANDARD_INPUT;

/// What may stand in a close frame (RFC 6455 section 7.4).
pub(super) fn close_code(text: &str) -> Result<u16, String> {
    let code: u16 = text
        .parse()
        .map_err(|_| "a close code is a number".to_owned())?;
    match code {
        1000..=1003 | 1007..=1014 | 3000..=4999 => Ok(code),
        _ => Err("a close code is 1000 to 1003, 1007 to 1014, or 3000 to 4999".into()),
    }
}

pub(super) fn close_reason(text: &str) -> Result<String, String> {
    const REASON_BYTES_MAX: usize = 123;
    if text.len() > REASON_BYTES_MAX {
        return Err(format!(
            "a close reason is at most {REASON_BYTES_MAX} bytes"
        ));
    }
    Ok(text.into())
}

/// At least a second: what comes back at once should not come all at once.
pub(super) fn drain_time(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if (Duration::from_secs(1)..=Duration::from_secs(24 * 3600)).contains(&time) {
        Ok(time)
    } else {
        Err("a drain takes 1s to 24h".into())
    }
}

pub(super) fn hold(text: &str) -> Result<Duration, String> {
    let hold = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if hold > HOLD_MAX {
        return Err(format!("at most {}", humantime::format_duration(HOLD_MAX)));
    }
    Ok(hold)
}

pub(super) fn channel_name(text: &str) -> Result<String, String> {
    match ChannelName::try_from(text) {
        Ok(_) => Ok(text.into()),
        Err(error) => Err(error.to_string()),
    }
}

pub(super) fn data(text: &str) -> Result<String, String> {
    if text == STANDARD_INPUT {
        return Ok(text.into());
    }
    match serde_json::from_str::<&serde_json::value::RawValue>(text) {
        Ok(_) => Ok(text.into()),
        Err(error) => Err(format!(
            "the data is no JSON: {error}; a text needs its own quotes: '\"hello\"'"
        )),
    }
}

pub(super) fn claims(text: &str) -> Result<String, String> {
    match serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(text) {
        Ok(_) => Ok(text.into()),
        Err(error) => Err(format!("the claims are not a JSON object: {error}")),
    }
}

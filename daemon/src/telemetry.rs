//! Logs: one line per event on stderr, as text or JSON, with who wrote it.
//!
//! A log line is never worth waiting for: what cannot be written now is lost,
//! and a reader that is gone changes nothing.

mod filter;
mod format;
mod stderr;

use std::io::{IsTerminal as _, stderr as std_stderr};

use tracing::error;
use tracing_subscriber::{
    Registry,
    fmt::{self as subscriber, MakeWriter},
    layer::SubscriberExt as _,
    util::{SubscriberInitExt as _, TryInitError},
};

pub use self::filter::{FilterError, filter, set_filter};

use self::{format::LineFormat, stderr::Stderr};
use crate::config::{LogConfig, LogFormat};

/// Who writes the log lines of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// `orchestrator`, `worker` or `broker`.
    pub role: &'static str,
    pub slot: Option<u32>,
}

/// Why logging did not start.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    #[error("invalid configuration: log.filter")]
    Filter(#[from] FilterError),
    #[error("logging was already set up")]
    Twice(#[from] TryInitError),
}

/// Logs to stderr from here on, panics included.
///
/// # Errors
///
/// When the filter cannot be parsed or logging was already set up.
pub fn init(log: &LogConfig, identity: Identity) -> Result<(), TelemetryError> {
    let format = resolve(log.format, std_stderr().is_terminal());
    init_with(&log.filter, format, identity, || Stderr)
}

/// Logs to `writer` from here on, panics included; `auto` is JSON.
///
/// # Errors
///
/// When the filter cannot be parsed or logging was already set up.
pub fn init_with<W>(
    filter: &str,
    format: LogFormat,
    identity: Identity,
    writer: W,
) -> Result<(), TelemetryError>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let lines = subscriber::layer()
        .with_ansi(false)
        .event_format(LineFormat { format, identity })
        .with_writer(writer);
    let (filter, handle) = filter::reloadable(filter)?;
    Registry::default().with(filter).with(lines).try_init()?;
    handle.install();
    log_panics();
    Ok(())
}

/// What `auto` means for a stderr that is or is not a terminal.
#[must_use]
pub fn resolve(format: LogFormat, terminal: bool) -> LogFormat {
    match (format, terminal) {
        (LogFormat::Auto, true) => LogFormat::Text,
        (LogFormat::Auto, false) => LogFormat::Json,
        (LogFormat::Text | LogFormat::Json, _) => format,
    }
}

/// A panic is an event like others, on one line.
fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let payload = panic.payload();
        let text = payload.downcast_ref::<&str>().copied();
        let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
        let place = panic.location().map(ToString::to_string);
        let backtrace = std::backtrace::Backtrace::capture();
        let backtrace = (backtrace.status() == std::backtrace::BacktraceStatus::Captured)
            .then(|| backtrace.to_string());
        error!(place, panic = text, backtrace, "Panicked.");
    }));
}

//! What nodes log: read from their stderr line by line and passed on.

use muster_daemon::config::LogFormat;
use serde::Deserialize;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, BufReader},
    time::Instant,
};
use tracing::warn;

use crate::{console::Console, node::NodeId};

/// Longest line that is passed on whole; a longer one is passed on in pieces.
const LINE_BYTES_MAX: usize = 16 * 1024;
/// Of a node's last line, this much is kept for the message about its end.
const LAST_LINE_CHARS_MAX: usize = 300;

/// Passes on a node's lines.
#[derive(Debug, Clone)]
pub(crate) struct LineSink {
    pub(crate) console: Console,
    /// The format that nodes log in: text or JSON.
    pub(crate) format: LogFormat,
}

impl LineSink {
    /// Passes on the lines of `node` until its stderr ends, keeping the last
    /// one in `last`. Cancel-safe up to the line being read.
    pub(crate) async fn pass_on(
        &self,
        node: NodeId,
        stderr: impl AsyncRead + Unpin,
        last: &mut Option<String>,
    ) {
        let mut reader = BufReader::new(stderr);
        let mut line = Vec::new();
        loop {
            let (taken, complete) = match reader.fill_buf().await {
                Ok([]) | Err(_) => break,
                Ok(bytes) => {
                    let room = LINE_BYTES_MAX - line.len();
                    let bytes = &bytes[..bytes.len().min(room)];
                    let end = bytes.iter().position(|byte| *byte == b'\n');
                    let taken = end.map_or(bytes.len(), |end| end + 1);
                    line.extend_from_slice(&bytes[..taken]);
                    (taken, end.is_some() || line.len() >= LINE_BYTES_MAX)
                }
            };
            reader.consume(taken);
            if complete {
                self.line(node, &line, last);
                line.clear();
            }
        }
        if !line.is_empty() {
            self.line(node, &line, last);
        }
    }

    fn line(&self, node: NodeId, line: &[u8], last: &mut Option<String>) {
        let line = String::from_utf8_lossy(line);
        let line = line.trim_end();
        if line.is_empty() {
            return;
        }
        if is_log_line(line, self.format) {
            self.console.line(format!("{line}\n").into_bytes());
        } else {
            // Not from the logger: a last word before the end, for the most part.
            warn!(%node, line, "A node wrote to stderr.");
        }
        *last = Some(gist(line).chars().take(LAST_LINE_CHARS_MAX).collect());
    }
}

/// True for what a node's logger wrote, which names its node itself.
fn is_log_line(line: &str, format: LogFormat) -> bool {
    match format {
        LogFormat::Json | LogFormat::Auto => line.starts_with("{\"timestamp\":"),
        LogFormat::Text => {
            let time = line.split(' ').next().unwrap_or_default();
            time.len() >= 20 && time.ends_with('Z') && time.as_bytes()[4] == b'-'
        }
    }
}

/// A log line without what is known anyway: when and by whom it was written.
fn gist(line: &str) -> String {
    #[derive(Deserialize)]
    struct Line {
        message: String,
        #[serde(default)]
        fields: serde_json::Map<String, serde_json::Value>,
    }
    if is_log_line(line, LogFormat::Text) {
        let words = line.split(' ').filter(|word| !word.is_empty()).skip(3);
        return words.collect::<Vec<_>>().join(" ");
    }
    match serde_json::from_str::<Line>(line) {
        Ok(Line { message, fields }) => {
            let fields = fields
                .iter()
                .map(|(name, value)| format!(" {name}={value}"));
            message + &fields.collect::<String>()
        }
        Err(_) => line.to_owned(),
    }
}

/// When the lines of a node that has ended must have been read: something it
/// started may keep its stderr open.
pub(crate) fn read_until(exited: Instant) -> Instant {
    const REST_TIMEOUT: std::time::Duration = std::time::Duration::from_millis(500);
    exited + REST_TIMEOUT
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "2026-11-24T04:44:42.123456Z  INFO worker-1 View changed. epoch=3";
    const JSON: &str = r#"{"timestamp":"2026-11-24T04:44:42.123456Z","level":"INFO","role":"worker","slot":1,"target":"t","message":"View changed.","fields":{"epoch":3}}"#;

    #[test]
    fn log_lines_are_told_from_other_output() {
        assert!(is_log_line(TEXT, LogFormat::Text));
        assert!(is_log_line(JSON, LogFormat::Json));
        for line in ["", "error: no such file", "Zürich", "äöüäöüäöüäöüäöüZ"] {
            assert!(!is_log_line(line, LogFormat::Text), "{line}");
            assert!(!is_log_line(line, LogFormat::Json), "{line}");
        }
    }

    #[test]
    fn the_gist_of_a_line_is_its_message_and_fields() {
        assert_eq!(gist(TEXT), "View changed. epoch=3");
        assert_eq!(gist(JSON), "View changed. epoch=3");
        assert_eq!(gist("error: gone"), "error: gone");
    }

    #[tokio::test]
    async fn the_last_line_is_kept_whole_or_cut_and_endless_lines_are_bounded() {
        let sink = LineSink {
            console: Console::start().unwrap(),
            format: LogFormat::Json,
        };
        let node = NodeId {
            role: crate::node::Role::Worker,
            slot: 1,
        };
        let mut last = None;
        let text = format!("{}\nfirst\n\nlast words", "x".repeat(3 * LINE_BYTES_MAX));
        sink.pass_on(node, text.as_bytes(), &mut last).await;
        assert_eq!(last.as_deref(), Some("last words"));
    }
}

//! How an event becomes a line.

use std::{
    error::Error,
    fmt::{self, Write as _},
};

use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    fmt::{
        FmtContext, FormatEvent, FormatFields,
        format::Writer,
        time::{FormatTime as _, SystemTime},
    },
    registry::LookupSpan,
};

use super::Identity;
use crate::{config::LogFormat, exit};

/// Formats each event as one line.
///
/// Text: `2026-11-24T04:44:42.123456Z  INFO worker-1 View changed. epoch=3`.
/// JSON: `timestamp`, `level`, `role`, `slot`, `target`, `message`, `fields`.
#[derive(Debug)]
pub(super) struct LineFormat {
    pub(super) format: LogFormat,
    pub(super) identity: Identity,
}

impl<S, N> FormatEvent<S, N> for LineFormat
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut time = String::new();
        SystemTime.format_time(&mut Writer::new(&mut time))?;
        let json = match self.format {
            LogFormat::Text => false,
            LogFormat::Json | LogFormat::Auto => true,
        };
        let mut fields = Fields {
            json,
            ..Fields::default()
        };
        event.record(&mut fields);
        let Identity { role, slot } = self.identity;
        let (level, target) = (event.metadata().level(), event.metadata().target());
        let Fields { message, text, .. } = fields;
        if json {
            let (time, message) = (quoted(&time), quoted(&message));
            write!(
                writer,
                r#"{{"timestamp":{time},"level":"{level}","role":"{role}","#
            )?;
            if let Some(slot) = slot {
                write!(writer, r#""slot":{slot},"#)?;
            }
            let target = quoted(target);
            writeln!(
                writer,
                r#""target":{target},"message":{message},"fields":{{{text}}}}}"#
            )
        } else {
            let slot = slot.map(|slot| format!("-{slot}")).unwrap_or_default();
            let message = plain(&message);
            writeln!(writer, "{time} {level:>5} {role}{slot} {message}{text}")
        }
    }
}

/// The fields of an event, written as they come.
#[derive(Default)]
struct Fields {
    json: bool,
    message: String,
    text: String,
}

impl Fields {
    /// `value` is JSON.
    fn push(&mut self, field: &Field, value: &str) {
        let name = field.name();
        let pushed = if self.json {
            let comma = if self.text.is_empty() { "" } else { "," };
            write!(self.text, "{comma}{}:{value}", quoted(name))
        } else {
            write!(self.text, " {name}={value}")
        };
        pushed.expect("writing to a string never fails");
    }

    fn push_text(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            value.clone_into(&mut self.message);
        } else if self.json {
            self.push(field, &quoted(value));
        } else {
            self.push(field, &word(value));
        }
    }
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        if value.is_finite() {
            self.push(field, &value.to_string());
        } else {
            self.push_text(field, &value.to_string());
        }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.push(field, &value.to_string());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.push(field, &value.to_string());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.push(field, &value.to_string());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.push_text(field, value);
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        self.push_text(field, &exit::chain(value));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.push_text(field, &format!("{value:?}"));
    }
}

/// A JSON string.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// A text value: quoted only where it would not read as one word.
fn word(text: &str) -> String {
    let bare = |c: char| !c.is_whitespace() && !c.is_control() && !matches!(c, '"' | '=');
    if !text.is_empty() && text.chars().all(bare) {
        text.to_owned()
    } else {
        format!("{text:?}")
    }
}

/// A message without what would break the line or drive a terminal.
fn plain(text: &str) -> String {
    if text.chars().any(char::is_control) {
        text.chars()
            .flat_map(|c| {
                let escaped = c.is_control().then(|| c.escape_default());
                let kept = (!c.is_control()).then_some(c);
                escaped.into_iter().flatten().chain(kept)
            })
            .collect()
    } else {
        text.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{Arc, Mutex},
    };

    use tracing::info;
    use tracing_subscriber::{Registry, layer::SubscriberExt as _};

    use super::*;

    #[derive(Debug, Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: LogFormat, slot: Option<u32>, log: impl FnOnce()) -> String {
        let sink = Sink::default();
        let lines = {
            let sink = sink.clone();
            tracing_subscriber::fmt::layer()
                .with_ansi(false)
                .event_format(LineFormat {
                    format,
                    identity: Identity {
                        role: "worker",
                        slot,
                    },
                })
                .with_writer(move || sink.clone())
        };
        tracing::subscriber::with_default(Registry::default().with(lines), log);
        let bytes = sink.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_text_line_names_time_level_writer_message_and_fields() {
        let line = logged(LogFormat::Text, Some(3), || {
            info!(epoch = 7, path = "/a b", name = "x", "View changed.");
        });
        let (time, rest) = line.split_once(' ').unwrap();
        assert!(time.ends_with('Z') && time.contains('T'), "{line}");
        assert_eq!(
            rest,
            " INFO worker-3 View changed. epoch=7 path=\"/a b\" name=x\n"
        );
    }

    #[test]
    fn a_json_line_is_one_object_with_typed_fields() {
        let line = logged(LogFormat::Json, Some(3), || {
            info!(
                epoch = 7,
                whole = true,
                text = "a\n\"b\"",
                "View\u{1b}changed."
            );
        });
        assert_eq!(line.lines().count(), 1);
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["level"], "INFO");
        assert_eq!(value["role"], "worker");
        assert_eq!(value["slot"], 3);
        assert_eq!(value["message"], "View\u{1b}changed.");
        assert_eq!(value["fields"]["epoch"], 7);
        assert_eq!(value["fields"]["whole"], true);
        assert_eq!(value["fields"]["text"], "a\n\"b\"");
    }

    #[test]
    fn a_role_without_slots_has_none_in_its_lines() {
        let text = logged(LogFormat::Text, None, || info!("Ready."));
        assert!(text.ends_with(" INFO worker Ready.\n"), "{text}");
        let json = logged(LogFormat::Json, None, || info!("Ready."));
        assert!(!json.contains("slot"), "{json}");
    }

    #[test]
    fn control_characters_cannot_break_a_text_line_or_drive_the_terminal() {
        let line = logged(LogFormat::Text, None, || {
            info!(name = "a\u{1b}[2Jb", "One\nTwo\u{1b}[31m");
        });
        assert_eq!(line.lines().count(), 1);
        assert!(!line.contains('\u{1b}'), "{line:?}");
    }

    #[test]
    fn an_error_field_has_its_whole_chain() {
        let error = crate::config::ConfigError::Read {
            path: "a.toml".into(),
            source: io::Error::other("gone"),
        };
        let line = logged(LogFormat::Text, None, || {
            info!(error = &error as &dyn Error, "Failed.");
        });
        assert!(line.contains("a.toml: gone"), "{line}");
    }
}

//! What the verbs say, for people and as JSON. The names in the JSON are part of
//! the interface: docs/src/reference/operator.md.

mod history;

use std::path::Path;

use muster_proto::control::{self as pb, client_command::Action};
use serde::Serialize;

pub(crate) use self::history::history;
use crate::table::{aligned, uptime};

/// An error, for programs: one line.
pub(crate) fn error(message: &str, exit_code: u8) -> String {
    #[derive(Serialize)]
    struct Error<'a> {
        error: &'a str,
        exit_code: u8,
    }
    let error = Error {
        error: message,
        exit_code,
    };
    serde_json::to_string(&error).expect("text and numbers are always JSON") + "\n"
}

pub(crate) fn config_is_fine(file: Option<&Path>) -> String {
    #[derive(Serialize)]
    struct Fine {
        fine: bool,
        file: Option<String>,
    }
    let file = file.map(|file| file.display().to_string());
    json_text(&Fine { fine: true, file })
}

pub(crate) fn ended(runtime_dir: &str, json: bool) -> String {
    #[derive(Serialize)]
    struct Ended<'a> {
        ended: bool,
        runtime_dir: &'a str,
    }
    if json {
        return json_text(&Ended {
            ended: true,
            runtime_dir,
        });
    }
    format!("The cluster at {runtime_dir} has ended.\n")
}

pub(crate) fn published(channel: &str, json: bool) -> String {
    #[derive(Serialize)]
    struct Published<'a> {
        published: bool,
        channel: &'a str,
    }
    if json {
        return json_text(&Published {
            published: true,
            channel,
        });
    }
    format!("Published on {}.\n", shown(channel))
}

pub(crate) fn rebalanced(answer: &pb::RebalanceResponse, json: bool) -> String {
    #[derive(Serialize)]
    struct Rebalanced<'a> {
        moved: u64,
        failed: u64,
        error: Option<&'a str>,
    }
    let error = Some(answer.error.as_str()).filter(|error| !error.is_empty());
    let pb::RebalanceResponse { moved, failed, .. } = *answer;
    if json {
        return json_text(&Rebalanced {
            moved,
            failed,
            error,
        });
    }
    let mut text = match moved {
        0 => "The workers are even enough.\n".to_owned(),
        1 => "1 connection was handed over.\n".to_owned(),
        moved => format!("{moved} connections were handed over.\n"),
    };
    if failed > 0 {
        text += &format!("Could not be handed over, and stayed: {failed}\n");
    }
    if let Some(error) = error {
        text += &format!("It ended before it was through: {error}\n");
    }
    text
}

/// What was done to a client.
pub(crate) fn done(connection: &str, action: &Action, json: bool) -> String {
    #[derive(Serialize)]
    struct Done<'a> {
        done: &'static str,
        connection: &'a str,
        #[serde(flatten)]
        more: More<'a>,
    }
    #[derive(Serialize)]
    #[serde(untagged)]
    enum More<'a> {
        Kick { channel: Option<&'a str> },
        Disconnect { code: u32, reason: &'a str },
        Token {},
    }
    let (done, text, more) = match action {
        Action::Kick(kick) => {
            let channel = kick.channel.as_deref();
            let from = channel.map_or_else(|| "all its channels".to_owned(), shown);
            let text = format!("Kicked {connection} out of {from}.\n");
            ("kick", text, More::Kick { channel })
        }
        Action::Disconnect(disconnect) => {
            let (code, reason) = (disconnect.code, &*disconnect.reason);
            let text = format!("Disconnected {connection} with {code}.\n");
            ("disconnect", text, More::Disconnect { code, reason })
        }
        Action::SetToken(_) => {
            let text = format!("Gave {connection} its token.\n");
            ("token set", text, More::Token {})
        }
        Action::RemoveToken(_) => {
            let text = format!("Took the token of {connection} away.\n");
            ("token remove", text, More::Token {})
        }
    };
    if json {
        return json_text(&Done {
            done,
            connection,
            more,
        });
    }
    text
}

pub(crate) fn channels(answer: &pb::ChannelsResponse, json: bool) -> String {
    #[derive(Serialize)]
    struct Channels<'a> {
        channels: Vec<Channel<'a>>,
        cut: bool,
        silent: &'a [String],
    }
    #[derive(Serialize)]
    struct Channel<'a> {
        channel: &'a str,
        subscribers: u64,
    }
    let pb::ChannelsResponse {
        channels,
        cut,
        silent,
    } = answer;
    if json {
        let channels = channels.iter().map(|count| Channel {
            channel: &count.channel,
            subscribers: count.subscribers,
        });
        return json_text(&Channels {
            channels: channels.collect(),
            cut: *cut,
            silent,
        });
    }
    let rows = channels.iter();
    let rows = rows.map(|count| vec![shown(&count.channel), count.subscribers.to_string()]);
    let mut text = lines(&aligned(&["CHANNEL", "SUBSCRIBERS"], 1, rows.collect()));
    if *cut {
        let last = channels.last().map(|count| shown(&count.channel));
        text.push_str(&format!(
            "\nThere are more: --limit, --prefix, or --after {}.\n",
            last.unwrap_or_default()
        ));
    }
    text + &missing(silent)
}

pub(crate) fn connections(answer: &pb::ConnectionsResponse, json: bool) -> String {
    if json {
        return connections_json(answer);
    }
    let total: u64 = answer.workers.iter().map(|count| count.connections).sum();
    let rows = answer.connections.iter().map(|one| {
        let token = if one.authenticated { "yes" } else { "no" };
        vec![
            one.connection.clone(),
            one.remote.clone(),
            token.to_owned(),
            format!("worker-{}", one.worker),
            uptime(one.age_ms),
            one.channels.to_string(),
            one.queued_bytes.to_string(),
        ]
    });
    let heads = [
        "CONNECTION",
        "REMOTE",
        "TOKEN",
        "WORKER",
        "AGE",
        "CHANNELS",
        "QUEUED",
    ];
    let mut text = lines(&aligned(&heads, 4, rows.collect()));
    if answer.cut {
        text.push_str(&format!(
            "\n{} of {total}: --limit, --worker or --channel show others.\n",
            answer.connections.len()
        ));
    }
    text + &missing(&answer.silent)
}

fn connections_json(answer: &pb::ConnectionsResponse) -> String {
    #[derive(Serialize)]
    struct Connections<'a> {
        connections: Vec<Connection<'a>>,
        cut: bool,
        silent: &'a [String],
        workers: Vec<Worker>,
    }
    #[derive(Serialize)]
    struct Connection<'a> {
        connection: &'a str,
        worker: u32,
        /// Null when the client is gone already.
        remote: Option<&'a str>,
        authenticated: bool,
        age_ms: u64,
        channels: u32,
        queued_bytes: u64,
    }
    #[derive(Serialize)]
    struct Worker {
        worker: u32,
        connections: u64,
    }
    let connections = answer.connections.iter().map(|one| Connection {
        connection: &one.connection,
        worker: one.worker,
        remote: Some(&*one.remote).filter(|remote| !remote.is_empty()),
        authenticated: one.authenticated,
        age_ms: one.age_ms,
        channels: one.channels,
        queued_bytes: one.queued_bytes,
    });
    let workers = answer.workers.iter().map(|count| Worker {
        worker: count.worker,
        connections: count.connections,
    });
    json_text(&Connections {
        connections: connections.collect(),
        cut: answer.cut,
        silent: &answer.silent,
        workers: workers.collect(),
    })
}

pub(crate) fn log_filter(answer: &pb::LogFilterResponse, json: bool) -> String {
    #[derive(Serialize)]
    struct Filter<'a> {
        filter: &'a str,
        silent: &'a [String],
    }
    let pb::LogFilterResponse { filter, silent } = answer;
    if json {
        return json_text(&Filter { filter, silent });
    }
    let mut text = format!("{filter}\n");
    if !silent.is_empty() {
        text.push_str(&format!(
            "Not confirmed by {}; they are told again when they are back.\n",
            silent.join(", ")
        ));
    }
    text
}

pub(crate) fn reloaded(answer: &pb::ReloadResponse, json: bool) -> String {
    #[derive(Serialize)]
    struct Reloaded<'a> {
        changed: &'a [String],
        needs_update: &'a [String],
        fixed: &'a [String],
        silent: &'a [String],
    }
    let pb::ReloadResponse {
        changed,
        needs_update,
        fixed,
        silent,
    } = answer;
    if json {
        return json_text(&Reloaded {
            changed,
            needs_update,
            fixed,
            silent,
        });
    }
    let mut text = if changed.is_empty() {
        "Nothing has changed that changes at once; key files were read again.\n".to_owned()
    } else {
        format!("In effect: {}\n", changed.join(", "))
    };
    for (keys, what) in [
        (needs_update, "Takes new processes, so see `update`"),
        (fixed, "Takes `down` and `up`"),
        (silent, "Not confirmed, and told again later"),
    ] {
        if !keys.is_empty() {
            text += &format!("{what}: {}\n", keys.join(", "));
        }
    }
    text
}

/// What is not in a list because nobody knows it now.
fn missing(silent: &[String]) -> String {
    if silent.is_empty() {
        return String::new();
    }
    let silent = silent.join(", ");
    format!("\nWithout {silent}, which did not answer: try again, or see `status`.\n")
}

/// A name that clients chose, so that a terminal does nothing but show it.
fn shown(name: &str) -> String {
    let plain = |c: char| matches!(c, '"' | '\'' | '\\');
    let chars = name.chars().map(|c| {
        if plain(c) {
            c.to_string()
        } else {
            c.escape_debug().to_string()
        }
    });
    chars.collect()
}

fn lines(rows: &[String]) -> String {
    rows.join("\n") + "\n"
}

fn json_text(answer: &impl Serialize) -> String {
    let json = serde_json::to_string_pretty(answer);
    json.expect("text and numbers are always JSON") + "\n"
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn value(text: &str) -> Value {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn a_channel_name_cannot_command_a_terminal() {
        let answer = pb::ChannelsResponse {
            channels: vec![pb::ChannelCount {
                channel: "a\u{1b}[2J\n\u{202e}\"Grüße\\".into(),
                subscribers: 3,
            }],
            ..pb::ChannelsResponse::default()
        };
        let text = channels(&answer, false);
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.contains(r#"a\u{1b}[2J\n\u{202e}"Grüße\"#), "{text}");
        let json = value(&channels(&answer, true));
        assert_eq!(json["channels"][0]["channel"], answer.channels[0].channel);
    }

    #[test]
    fn a_list_that_was_cut_or_lacks_a_worker_says_so() {
        let mut answer = pb::ChannelsResponse {
            channels: vec![pb::ChannelCount {
                channel: "b".into(),
                subscribers: 3,
            }],
            ..pb::ChannelsResponse::default()
        };
        let text = channels(&answer, false);
        assert!(
            !text.contains("more") && !text.contains("Without"),
            "{text}"
        );
        answer.cut = true;
        answer.silent = vec!["worker-2".into()];
        let text = channels(&answer, false);
        assert!(text.contains("--after b"), "{text}");
        assert!(text.contains("Without worker-2"), "{text}");
        let json = value(&channels(&answer, true));
        assert_eq!(
            (&json["cut"], &json["silent"]),
            (&json!(true), &json!(["worker-2"]))
        );
    }

    #[test]
    fn what_was_done_to_a_client_is_said_in_both_ways() {
        let kick = |channel: Option<&str>| {
            Action::Kick(pb::Kick {
                channel: channel.map(Into::into),
                message: String::new(),
            })
        };
        let all = kick(None);
        assert_eq!(
            done("id", &all, false),
            "Kicked id out of all its channels.\n"
        );
        assert_eq!(
            value(&done("id", &kick(Some("a")), true)),
            json!({"done": "kick", "connection": "id", "channel": "a"})
        );
        let disconnect = Action::Disconnect(pb::Disconnect {
            code: 4500,
            reason: "bye".into(),
        });
        assert_eq!(
            value(&done("id", &disconnect, true)),
            json!({"done": "disconnect", "connection": "id", "code": 4500, "reason": "bye"})
        );
        let remove = Action::RemoveToken(pb::RemoveToken {});
        assert_eq!(
            value(&done("id", &remove, true)),
            json!({"done": "token remove", "connection": "id"})
        );
    }

    #[test]
    fn an_error_is_one_line_of_json() {
        let text = error("cannot\nread \"it\"", 3);
        assert_eq!(text.lines().count(), 1);
        assert_eq!(
            value(&text),
            json!({"error": "cannot\nread \"it\"", "exit_code": 3})
        );
    }
}

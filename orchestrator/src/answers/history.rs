//! What the verb `history` says.

use std::time::{Duration, SystemTime};

use muster_proto::control as pb;
use muster_wire::{
    Position,
    session::{HistoryEntry, HistoryPage},
};

use super::{lines, shown};
use crate::table::aligned;

/// Characters of one publication's data that are shown to people.
const DATA_CHARS_MAX: usize = 200;

/// In JSON, clients get the same members.
pub(crate) fn history(
    channel: &str,
    newest_first: bool,
    answer: pb::HistoryResponse,
    json: bool,
) -> String {
    let page = HistoryPage::from(answer);
    if json {
        let channel = serde_json::to_string(channel).expect("text is always JSON");
        let members = page.to_json();
        let members = String::from_utf8_lossy(&members[1..]);
        return format!("{{\"channel\":{channel},{members}\n");
    }
    let Some(head) = page.head else {
        return format!("Nobody knows {}.\n", shown(channel));
    };
    let rows = page.publications.iter();
    let rows = rows.map(|one| vec![one.offset.to_string(), time(one.time_ms), data(one)]);
    let mut text = lines(&aligned(&["OFFSET", "TIME", "DATA"], 3, rows.collect()));
    text.push_str(&format!("\nThe newest position is {head}.\n"));
    if let (true, Some(last)) = (page.more, page.publications.last()) {
        let (flag, offset) = (if newest_first { "before" } else { "since" }, last.offset);
        let from = Position { offset, ..head };
        text.push_str(&format!("There are more: --limit, or --{flag} {from}.\n"));
    }
    if !page.complete {
        text.push_str("Not all that was asked for is kept.\n");
    }
    text
}

fn time(time_ms: i64) -> String {
    let since = Duration::from_millis(u64::try_from(time_ms).unwrap_or_default());
    let at = SystemTime::UNIX_EPOCH.checked_add(since);
    at.map_or_else(
        || time_ms.to_string(),
        |at| humantime::format_rfc3339_millis(at).to_string(),
    )
}

fn data(entry: &HistoryEntry) -> String {
    let Some(data) = &entry.data else {
        return "-".into();
    };
    let text = String::from_utf8_lossy(data);
    let mut chars = text.chars();
    let first: String = chars.by_ref().take(DATA_CHARS_MAX).collect();
    let more = if chars.next().is_some() { "…" } else { "" };
    shown(&first) + more
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer() -> pb::HistoryResponse {
        pb::HistoryResponse {
            head: Some(pb::HistoryPosition {
                generation: 0xc0_ffee,
                offset: 9,
            }),
            complete: true,
            more: false,
            publications: vec![
                pb::HistoryEntry {
                    offset: 7,
                    data: Some("{\n\"a\": 1.50,\"s\":\"\\ud800\u{1b}\"}".into()),
                    time_ms: 1_700_000_000_123,
                },
                pb::HistoryEntry {
                    offset: 8,
                    data: None,
                    time_ms: 1_700_000_000_456,
                },
            ],
        }
    }

    #[test]
    fn publications_are_shown_in_a_table_that_commands_no_terminal() {
        let text = history("lobby:7", false, answer(), false);
        let rows: Vec<_> = text.lines().collect();
        assert_eq!(rows.len(), 5, "{text}");
        assert_eq!(
            rows[1],
            r#"7       2023-11-14T22:13:20.123Z  {\n"a": 1.50,"s":"\ud800\u{1b}"}"#
        );
        assert_eq!(rows[2], "8       2023-11-14T22:13:20.456Z  -");
        assert_eq!(rows[4], "The newest position is 0000000000c0ffee:9.");
    }

    #[test]
    fn what_is_missing_and_how_to_go_on_is_said() {
        let cut = || pb::HistoryResponse {
            more: true,
            complete: false,
            ..answer()
        };
        let text = history("a", false, cut(), false);
        assert!(text.contains("--since 0000000000c0ffee:8"), "{text}");
        assert!(
            text.contains("Not all that was asked for is kept"),
            "{text}"
        );
        let text = history("a", true, cut(), false);
        assert!(text.contains("--before 0000000000c0ffee:8"), "{text}");
        let nobody = history("a\n", false, pb::HistoryResponse::default(), false);
        assert_eq!(nobody, "Nobody knows a\\n.\n");
    }

    #[test]
    fn long_data_is_cut_for_people() {
        let long = pb::HistoryResponse {
            publications: vec![pb::HistoryEntry {
                offset: 7,
                data: Some("\"ä".repeat(1000).into()),
                time_ms: 0,
            }],
            ..answer()
        };
        let text = history("a", false, long, false);
        let row = text.lines().nth(1).unwrap();
        assert!(row.ends_with("\"ä…"), "{row}");
        assert!(row.chars().count() < 250, "{row}");
    }

    #[test]
    fn programs_get_the_data_as_it_is() {
        let text = history("a\"", true, answer(), true);
        assert!(
            text.starts_with(
                "{\"channel\":\"a\\\"\",\"generation\":\"0000000000c0ffee\",\"offset\":9,"
            ),
            "{text}"
        );
        assert!(
            text.contains("{\n\"a\": 1.50,\"s\":\"\\ud800\u{1b}\"}"),
            "{text}"
        );
    }
}

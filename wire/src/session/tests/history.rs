//! What clients read of what channels keep.

use super::*;

const AT: &str = r#"{"generation":"00c0ffee00c0ffee","offset":17}"#;

fn call(arguments: &str) -> String {
    format!(r#"{{"event":"history","data":{arguments},"cid":7}}"#)
}

fn page() -> HistoryPage {
    HistoryPage {
        head: Some(Position {
            generation: 0xc0_ffee,
            offset: 9,
        }),
        complete: true,
        more: false,
        publications: vec![
            HistoryEntry {
                offset: 8,
                time_ms: 1000,
                data: Some("{\"a\": 1.50, \"s\":\"\\ud800\"}".into()),
            },
            HistoryEntry {
                offset: 9,
                time_ms: 2000,
                data: None,
            },
        ],
    }
}

#[test]
fn a_read_has_defaults_and_takes_positions_limit_and_order() {
    for (arguments, expected) in [
        (
            r#"{"channel":"kept"}"#.to_owned(),
            "kept since - before - limit 100 newest_first false",
        ),
        (
            format!(r#"{{"order":"newest","limit":200,"channel":"k\u0065pt","since":{AT}}}"#),
            "kept since 00c0ffee00c0ffee:17 before - limit 200 newest_first true",
        ),
        (
            format!(r#"{{"channel":"kept","before":{AT},"order":"oldest","limit":1}}"#),
            "kept since - before 00c0ffee00c0ffee:17 limit 1 newest_first false",
        ),
        // As the answer of a channel that is empty has it, and absent in JavaScript.
        (
            r#"{"channel":"kept","since":{"generation":null,"offset":0},"before":null,"limit":null}"#.to_owned(),
            "kept since - before - limit 100 newest_first false",
        ),
    ] {
        let mut client = Client::open();
        let said = client.say(&call(&arguments));
        assert_eq!(said, [format!("read 1: {expected}")], "{arguments}");
    }
}

/// Arguments that make no sense, and what the answer says of them.
const INVALID: &[(&str, &str)] = &[
    ("null", "history: invalid type: null"),
    ("\"kept\"", "history: invalid type: string"),
    ("{}", "history: missing field `channel`"),
    (r#"{"channel":"\ud800"}"#, "history: "),
    (
        r#"{"channel":"kept","limit":0}"#,
        "limit 0 is not between 1 and 200",
    ),
    (
        r#"{"channel":"kept","limit":201}"#,
        "limit 201 is not between 1 and 200",
    ),
    (r#"{"channel":"kept","limit":-1}"#, "history: invalid value"),
    (
        r#"{"channel":"kept","order":"both"}"#,
        "unknown variant `both`",
    ),
    (r#"{"channel":"kept","form":1}"#, "unknown field `form`"),
    (
        r#"{"channel":"kept","since":5}"#,
        "history: invalid type: integer `5`",
    ),
    (
        r#"{"channel":"kept","since":{"generation":"1","offset":2}}"#,
        "history: a generation is 16 hexadecimal digits",
    ),
];

fn assert_refused(arguments: &str, name: &str, about: &str) {
    let mut client = Client::open();
    let said = client.say(&call(arguments));
    assert_eq!(said.len(), 1, "{arguments}: {said:?}");
    assert!(said[0].starts_with(r#"{"rid":7,"error":"#), "{said:?}");
    assert!(said[0].contains(&format!(r#""name":"{name}""#)), "{said:?}");
    assert!(said[0].contains(about), "{said:?}");
    assert_eq!(client.session.pending_reads().count(), 0);
}

#[test]
fn a_read_that_makes_no_sense_is_answered_with_what_is_wrong() {
    for (arguments, about) in INVALID {
        assert_refused(arguments, "InvalidActionError", about);
    }
}

#[test]
fn a_read_of_what_is_not_kept_or_may_not_be_read_is_refused() {
    for (channel, name, about) in [
        (
            "lost",
            "NoHistoryError",
            "The lost channel keeps no history",
        ),
        (
            "deaf-kept",
            "NotAllowedError",
            "Only authenticated clients may subscribe",
        ),
        ("shut-kept", "NotAllowedError", "Clients may not subscribe"),
    ] {
        assert_refused(&format!(r#"{{"channel":"{channel}"}}"#), name, about);
    }
}

#[test]
fn a_read_without_a_call_is_not_performed() {
    let mut client = Client::open();
    let said = client.say(r#"{"event":"history","data":{"channel":"kept"}}"#);
    assert!(said.is_empty(), "{said:?}");
}

#[test]
fn what_is_kept_is_answered_as_it_came_and_once() {
    let mut client = Client::open();
    client.say(&call(r#"{"channel":"kept"}"#));
    let ((), said) = client.with(|session, cx| session.answer_read(1, Ok(&page()), cx));
    assert_eq!(
        said,
        [concat!(
            r#"{"rid":7,"data":{"generation":"0000000000c0ffee","offset":9,"complete":true,"#,
            r#""more":false,"publications":[{"offset":8,"time":1000,"data":{"a": 1.50, "s":"\ud800"}},"#,
            r#"{"offset":9,"time":2000}]}}"#
        )]
    );
    let ((), said) = client.with(|session, cx| session.answer_read(1, Ok(&page()), cx));
    assert!(said.is_empty(), "{said:?}");
    client.say(&call(r#"{"channel":"kept"}"#));
    let empty = HistoryPage::default();
    let ((), said) = client.with(|session, cx| session.answer_read(2, Ok(&empty), cx));
    let nothing =
        r#"{"generation":null,"offset":0,"complete":false,"more":false,"publications":[]}"#;
    assert_eq!(said, [format!(r#"{{"rid":7,"data":{nothing}}}"#)]);
}

#[test]
fn answers_come_in_the_order_of_the_calls_whichever_is_ready_first() {
    let mut client = Client::open();
    client.say(&call(r#"{"channel":"kept"}"#));
    client.say(r##"{"event":"#subscribe","data":{"channel":"a"},"cid":8}"##);
    client.say(r#"{"event":"history","data":{"channel":"kept"},"cid":9}"#);
    let error = CallError::history_unavailable("later");
    let ((), said) = client.with(|session, cx| session.answer_read(2, Err(&error), cx));
    assert!(said.is_empty(), "{said:?}");
    let ((), said) = client.with(|session, cx| session.confirm("a", cx));
    assert!(said.is_empty(), "{said:?}");
    assert_eq!(client.session.pending_reads().count(), 1);
    let ((), said) = client.with(|session, cx| session.answer_read(1, Ok(&page()), cx));
    let rids: Vec<_> = said.iter().map(|said| &said[..8]).collect();
    assert_eq!(rids, [r#"{"rid":7"#, r#"{"rid":8"#, r#"{"rid":9"#]);
}

#[test]
fn a_client_with_four_reads_under_way_is_not_read_until_one_is_answered() {
    let mut client = Client::open();
    for _ in 0..3 {
        client.say(&call(r#"{"channel":"kept"}"#));
    }
    assert!(!client.session.is_congested(&RULES));
    client.say(&call(r#"{"channel":"kept"}"#));
    assert!(client.session.is_congested(&RULES));
    client.with(|session, cx| session.answer_read(3, Ok(&page()), cx));
    assert!(!client.session.is_congested(&RULES));
    let reads: Vec<_> = client.session.pending_reads().map(reading).collect();
    assert_eq!(reads.len(), 3);
}

#[test]
fn a_subscriber_that_wants_positions_says_the_last_it_has_and_is_told_where_it_goes_on() {
    let mut client = Client::open();
    let subscribe =
        |members: &str| format!(r##"{{"event":"#subscribe","data":{{{members}}},"cid":7}}"##);
    let said = client.say(&subscribe(r#""channel":"a","since":null"#));
    assert_eq!(said, ["follow a since nothing"]);
    assert!(client.session.follows("a"));
    let position = Position {
        generation: 0xc0_ffee,
        offset: 9,
    };
    let ((), said) = client.with(|session, cx| session.confirm_at("a", position, true, cx));
    let expected =
        r#"{"rid":7,"data":{"generation":"0000000000c0ffee","offset":9,"recovered":true}}"#;
    assert_eq!(said, [expected]);
    let said = client.say(&subscribe(&format!(r#""channel":"b","since":{AT}"#)));
    assert_eq!(said, ["follow b since 00c0ffee00c0ffee:17"]);
    let mut client = Client::open();
    let said = client.say(&subscribe(r#""channel":"c","since":3"#));
    assert!(
        said[0].contains("Subscribe since was malformatted"),
        "{said:?}"
    );
    assert!(!client.session.follows("c"));
    client.say(&subscribe(r#""channel":"d","data":{"since":null}"#));
    assert!(
        !client.session.follows("d"),
        "what an application passes means nothing"
    );
}

#[test]
fn publications_and_holes_with_positions_look_like_this() {
    let position = Position {
        generation: 1,
        offset: 2,
    };
    for (frame, expected) in [
        (
            answer::publication_at("a\"", 5, Some(b"[1]")),
            r##"{"event":"#publish","data":{"channel":"a\"","data":[1],"offset":5}}"##,
        ),
        (
            answer::publication_at("a", 5, None),
            r##"{"event":"#publish","data":{"channel":"a","offset":5}}"##,
        ),
        (
            answer::hole("a", position),
            concat!(
                r##"{"event":"#position","data":{"channel":"a","##,
                r#""generation":"0000000000000001","offset":2,"recovered":false}}"#
            ),
        ),
    ] {
        assert_eq!(payload(&frame), expected);
    }
}

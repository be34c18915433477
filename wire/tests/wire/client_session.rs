//! The client's session: handshake, calls, tokens, pings, reconnecting.

use std::time::Duration;

use muster_wire::{
    Millis,
    client::{
        CallError, CallNumber, Event, Output, ReconnectConfig, Refused, Session, SessionConfig,
    },
    close::CloseCode,
};
use serde_json::value::RawValue;

const ANSWER: &str = r#"{"rid":1,"data":{"id":"s1","pingTimeout":20000,"isAuthenticated":false}}"#;

/// A session and the time it lives in.
pub(crate) struct Bench {
    pub(crate) session: Session,
    pub(crate) now: Millis,
}

/// What a session wanted, in short.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Did {
    Connect,
    Send(String),
    Close(u16),
    Event(String),
}

impl Bench {
    pub(crate) fn new(config: SessionConfig) -> Self {
        let mut bench = Self {
            session: Session::new(config, 42),
            now: Millis(1_000),
        };
        bench.session.start(bench.now);
        assert_eq!(bench.did(), [Did::Connect]);
        bench
    }

    /// A session whose handshake was answered with [`ANSWER`].
    pub(crate) fn open(config: SessionConfig) -> Self {
        let mut bench = Self::new(config);
        bench.session.handle_opened(bench.now);
        assert!(matches!(&*bench.did(), [Did::Send(_)]));
        bench.receive(ANSWER);
        assert_eq!(bench.did(), [event("connected s1 false")]);
        bench
    }

    pub(crate) fn receive(&mut self, text: &str) {
        self.session.handle_text(self.now, text);
    }

    pub(crate) fn lose(&mut self, code: u16) {
        self.session.handle_closed(self.now, CloseCode(code), "");
    }

    pub(crate) fn pass(&mut self, duration: Duration) {
        self.now = self.now + duration;
        self.session.handle_timeout(self.now);
    }

    /// Everything until there is nothing to do.
    pub(crate) fn did(&mut self) -> Vec<Did> {
        let mut did = Vec::new();
        loop {
            did.push(match self.session.poll_output() {
                Output::Connect => Did::Connect,
                Output::Send(text) => Did::Send(text),
                Output::Close { code, .. } => Did::Close(code.0),
                Output::Event(event) => Did::Event(describe(event)),
                Output::Wait { .. } => return did,
            });
        }
    }

    pub(crate) fn waits_for(&mut self) -> Option<Duration> {
        let output = self.session.poll_output();
        let Output::Wait { until } = output else {
            panic!("there was {output:?} to do");
        };
        until.map(|until| until.since(self.now))
    }
}

fn describe(event: Event) -> String {
    let json = |data: Option<Box<RawValue>>| data.map_or("-".to_owned(), |raw| raw.to_string());
    match event {
        Event::Connected {
            id,
            is_authenticated,
        } => format!("connected {id} {is_authenticated}"),
        Event::Disconnected { code, .. } => format!("disconnected {code}"),
        Event::Ended { code, .. } => format!("ended {code}"),
        Event::HandshakeRefused(error) => format!("refused {error}"),
        Event::Answered {
            call,
            result: Ok(data),
        } => format!("answered {} {}", call.0, json(data)),
        Event::Answered {
            call,
            result: Err(error),
        } => format!("failed {} {error}", call.0),
        Event::Subscribed { channel } => format!("subscribed {channel}"),
        Event::SubscribeFailed { channel, error } => format!("not subscribed {channel} {error}"),
        Event::KickedOut { channel, message } => format!("kicked {channel} {message:?}"),
        Event::Missed { channel } => format!("missed {channel}"),
        Event::Publication {
            channel,
            data,
            offset: None,
        } => format!("publication {channel} {}", json(data)),
        Event::Publication {
            channel,
            data,
            offset: Some(offset),
        } => format!("publication {channel} {} at {offset}", json(data)),
        Event::Received { event, data } => format!("received {event} {}", json(data)),
        Event::Authenticated { token } => format!("authenticated {token}"),
        Event::Deauthenticated => "deauthenticated".to_owned(),
        Event::AuthenticationFailed(error) => format!("token rejected {error}"),
    }
}

pub(crate) fn event(text: &str) -> Did {
    Did::Event(text.to_owned())
}

pub(crate) fn send(text: &str) -> Did {
    Did::Send(text.to_owned())
}

fn raw(json: &str) -> Box<RawValue> {
    RawValue::from_string(json.to_owned()).unwrap()
}

fn with_token(token: &str) -> SessionConfig {
    SessionConfig {
        token: Some(token.to_owned()),
        ..SessionConfig::default()
    }
}

#[test]
fn the_handshake_carries_the_token_or_null() {
    for (config, token) in [
        (SessionConfig::default(), "null"),
        (with_token("t"), "\"t\""),
    ] {
        let mut bench = Bench::new(config);
        bench.session.handle_opened(bench.now);
        let packet =
            format!(r##"{{"event":"#handshake","data":{{"authToken":{token}}},"cid":1}}"##);
        assert_eq!(bench.did(), [send(&packet)]);
    }
}

#[test]
fn a_rejected_token_is_reported_and_dropped_only_if_it_is_bad() {
    for (is_bad, left) in [(true, None), (false, Some("t"))] {
        let mut bench = Bench::new(with_token("t"));
        bench.session.handle_opened(bench.now);
        bench.did();
        bench.receive(&format!(
            r#"{{"rid":1,"data":{{"id":"s","isAuthenticated":false,"authError":
            {{"message":"jwt expired","name":"AuthTokenExpiredError","isBadToken":{is_bad}}}}}}}"#
        ));
        let rejected = event("token rejected AuthTokenExpiredError: jwt expired");
        assert_eq!(bench.did(), [event("connected s false"), rejected]);
        assert_eq!(bench.session.token(), left);
    }
}

#[test]
fn a_refused_handshake_closes_with_its_status_code_or_4003() {
    for (status, code, ends) in [
        ("", 4003, false),
        (r#","statusCode":4008"#, 4008, false),
        (r#","statusCode":4501"#, 4501, true),
    ] {
        let mut bench = Bench::new(SessionConfig::default());
        bench.session.handle_opened(bench.now);
        bench.did();
        bench.receive(&format!(
            r#"{{"rid":1,"error":{{"message":"no"{status}}}}}"#
        ));
        let end = if ends {
            format!("ended {code}")
        } else {
            format!("disconnected {code}")
        };
        assert_eq!(
            bench.did(),
            [event("refused no"), Did::Close(code), event(&end)]
        );
    }
}

#[test]
fn a_handshake_answer_without_data_closes_with_4003() {
    let mut bench = Bench::new(SessionConfig::default());
    bench.session.handle_opened(bench.now);
    bench.did();
    bench.receive(r#"{"rid":1}"#);
    assert_eq!(bench.did(), [Did::Close(4003), event("disconnected 4003")]);
}

#[test]
fn attempts_that_take_too_long_are_given_up() {
    let mut bench = Bench::new(SessionConfig::default());
    assert_eq!(bench.waits_for(), Some(Duration::from_secs(20)));
    bench.pass(Duration::from_secs(20));
    assert_eq!(bench.did(), [Did::Close(4007), event("disconnected 4007")]);

    let mut bench = Bench::new(SessionConfig::default());
    bench.session.handle_opened(bench.now);
    bench.did();
    bench.pass(Duration::from_secs(20));
    assert_eq!(bench.did(), [Did::Close(4003), event("disconnected 4003")]);
}

#[test]
fn pings_are_answered_in_their_version_and_only_they_keep_the_connection() {
    let mut bench = Bench::open(SessionConfig::default());
    for (ping, pong) in [("", ""), ("#1", "#2")] {
        bench.pass(Duration::from_secs(15));
        bench.receive(ping);
        assert_eq!(bench.did(), [send(pong)]);
        assert_eq!(bench.waits_for(), Some(Duration::from_secs(20)));
    }
    bench.pass(Duration::from_secs(15));
    bench.receive(r#"{"event":"data"}"#);
    assert_eq!(bench.did(), [event("received data -")]);
    bench.pass(Duration::from_secs(5));
    assert_eq!(bench.did(), [Did::Close(4000), event("disconnected 4000")]);
    assert_eq!(bench.waits_for(), Some(Duration::ZERO));
}

#[test]
fn a_ping_timeout_that_makes_no_sense_is_corrected() {
    for (ms, seconds) in [
        ("0", 1),
        ("-5", 30),
        ("1e300", 30),
        ("1e12", 86_400),
        ("null", 30),
    ] {
        let mut bench = Bench::new(SessionConfig::default());
        bench.session.handle_opened(bench.now);
        bench.did();
        bench.receive(&format!(
            r#"{{"rid":1,"data":{{"id":"s","pingTimeout":{ms}}}}}"#
        ));
        assert_eq!(bench.did(), [event("connected s false")]);
        assert_eq!(
            bench.waits_for(),
            Some(Duration::from_secs(seconds)),
            "{ms}"
        );
    }
}

#[test]
fn calls_get_their_own_answers_with_data_as_it_is() {
    let mut bench = Bench::open(SessionConfig::default());
    let first = bench
        .session
        .call(bench.now, "sum", Some(&raw("[1,2.50]")))
        .unwrap();
    let second = bench.session.call(bench.now, "say \"x\"", None).unwrap();
    assert_eq!((first, second), (CallNumber(2), CallNumber(3)));
    let sent = [
        send(r#"{"event":"sum","data":[1,2.50],"cid":2}"#),
        send(r#"{"event":"say \"x\"","cid":3}"#),
    ];
    assert_eq!(bench.did(), sent);
    bench.receive(r#"[{"rid":3,"data":"\ud83d"},{"rid":99,"data":1},7,null,{"rid":2.0}]"#);
    assert_eq!(
        bench.did(),
        [event(r#"answered 3 "\ud83d""#), event("answered 2 -")]
    );
}

#[test]
fn null_is_an_answer_and_a_null_error_is_none() {
    let mut bench = Bench::open(SessionConfig::default());
    bench.session.call(bench.now, "a", None).unwrap();
    bench.session.call(bench.now, "b", None).unwrap();
    bench.did();
    bench.receive(r#"{"rid":2,"data":null}"#);
    bench.receive(r#"{"rid":3,"error":null,"data":{}}"#);
    assert_eq!(
        bench.did(),
        [event("answered 2 null"), event("answered 3 {}")]
    );
}

#[test]
fn errors_keep_name_message_and_everything_else() {
    let mut bench = Bench::open(SessionConfig::default());
    for error in [
        r#"{"message":"m","name":"N","x":[1]}"#,
        r#""text""#,
        r#"{"message":5}"#,
        "17",
    ] {
        let call = bench.session.call(bench.now, "a", None).unwrap();
        bench.did();
        bench.receive(&format!(r#"{{"rid":{},"error":{error}}}"#, call.0));
        let Output::Event(Event::Answered {
            result: Err(CallError::Server(server)),
            ..
        }) = bench.session.poll_output()
        else {
            panic!("an error was sent")
        };
        assert_eq!(server.raw.get(), error);
        let shown = server.to_string();
        let expected = match error {
            r#""text""# => "text",
            "17" => "17",
            r#"{"message":5}"# => "Invalid error message format",
            _ => "N: m",
        };
        assert_eq!(shown, expected);
    }
}

#[test]
fn a_call_without_an_answer_times_out_and_a_late_answer_is_ignored() {
    let mut bench = Bench::open(SessionConfig::default());
    bench.session.call(bench.now, "a", None).unwrap();
    bench.did();
    assert_eq!(bench.waits_for(), Some(Duration::from_secs(10)));
    bench.pass(Duration::from_millis(9_999));
    assert_eq!(bench.did(), []);
    bench.pass(Duration::from_millis(1));
    assert_eq!(bench.did(), [event("failed 2 no answer in time")]);
    bench.receive(r#"{"rid":2}"#);
    assert_eq!(bench.did(), []);
}

#[test]
fn calls_are_limited_and_a_place_is_free_again_after_the_answer() {
    let mut bench = Bench::open(SessionConfig {
        calls_max: 1,
        ..SessionConfig::default()
    });
    bench.session.call(bench.now, "a", None).unwrap();
    let refused = bench.session.call(bench.now, "b", None);
    assert_eq!(refused, Err(Refused::TooManyCalls { max: 1 }));
    bench.receive(r#"{"rid":2}"#);
    bench.session.call(bench.now, "c", None).unwrap();
}

#[test]
fn calls_made_without_a_connection_are_sent_on_the_next_one() {
    let mut bench = Bench::new(SessionConfig::default());
    bench.session.call(bench.now, "early", None).unwrap();
    bench
        .session
        .publish(bench.now, "c", Some(&raw("1")))
        .unwrap();
    assert_eq!(
        bench.session.transmit("now", None),
        Err(Refused::NotConnected)
    );
    bench.session.handle_opened(bench.now);
    assert!(matches!(&*bench.did(), [Did::Send(handshake)] if handshake.contains("\"cid\":3")));
    bench.receive(r#"{"rid":3,"data":{"id":"s","isAuthenticated":true}}"#);
    let did = [
        event("connected s true"),
        send(r#"{"event":"early","cid":1}"#),
        send(r##"{"event":"#publish","data":{"channel":"c","data":1},"cid":2}"##),
    ];
    assert_eq!(bench.did(), did);
}

#[test]
fn a_lost_connection_fails_what_was_sent_and_keeps_what_was_not() {
    let mut bench = Bench::open(SessionConfig::default());
    bench.session.call(bench.now, "sent", None).unwrap();
    bench.did();
    bench.lose(1006);
    bench.session.call(bench.now, "kept", None).unwrap();
    let lost = "failed 2 the connection ended with 1006 before the answer";
    assert_eq!(bench.did(), [event(lost), event("disconnected 1006")]);
    let wait = bench.waits_for().unwrap();
    assert!(
        (Duration::from_millis(200)..=Duration::from_secs(1)).contains(&wait),
        "{wait:?}"
    );
    bench.pass(wait);
    assert_eq!(bench.did(), [Did::Connect]);
    bench.session.handle_opened(bench.now);
    bench.did();
    bench.receive(r#"{"rid":4,"data":{"id":"s2"}}"#);
    assert_eq!(
        bench.did(),
        [
            event("connected s2 false"),
            send(r#"{"event":"kept","cid":3}"#)
        ]
    );
}

#[test]
fn one_way_packets_have_no_number() {
    let mut bench = Bench::open(SessionConfig::default());
    bench.session.transmit("e", Some(&raw("null"))).unwrap();
    bench.session.transmit_publish("c", None).unwrap();
    let sent = [
        send(r#"{"event":"e","data":null}"#),
        send(r##"{"event":"#publish","data":{"channel":"c"}}"##),
    ];
    assert_eq!(bench.did(), sent);
}

#[test]
fn a_token_that_was_accepted_is_used_from_then_on() {
    let mut bench = Bench::open(SessionConfig::default());
    bench.session.authenticate(bench.now, "tok").unwrap();
    assert_eq!(
        bench.did(),
        [send(r##"{"event":"#authenticate","data":"tok","cid":2}"##)]
    );
    bench.receive(r#"{"rid":2,"data":{"isAuthenticated":true,"authError":null}}"#);
    assert!(bench.session.is_authenticated());
    let answered = event(r#"answered 2 {"isAuthenticated":true,"authError":null}"#);
    assert_eq!(bench.did(), [event("authenticated tok"), answered]);
    bench.lose(4001);
    assert!(!bench.session.is_authenticated());
    bench.pass(Duration::ZERO);
    bench.session.handle_opened(bench.now);
    let handshake = send(r##"{"event":"#handshake","data":{"authToken":"tok"},"cid":3}"##);
    assert_eq!(
        bench.did(),
        [event("disconnected 4001"), Did::Connect, handshake]
    );
}

#[test]
fn a_failed_authentication_undoes_an_earlier_one() {
    for answer in [
        r#""error":{"message":"bad","name":"AuthTokenInvalidError","isBadToken":true}"#,
        r#""data":{"isAuthenticated":false,"authError":{"message":"bad","name":"AuthTokenInvalidError"}}"#,
    ] {
        let mut bench = Bench::open(SessionConfig::default());
        bench.receive(r##"{"event":"#setAuthToken","data":{"token":"old"}}"##);
        bench.session.authenticate(bench.now, "new").unwrap();
        bench.did();
        bench.receive(&format!(r#"{{"rid":2,{answer}}}"#));
        let failed = event("failed 2 AuthTokenInvalidError: bad");
        assert_eq!(bench.did(), [event("deauthenticated"), failed]);
        bench.receive(r##"{"event":"#removeAuthToken"}"##);
        assert_eq!(bench.session.token(), None);
        assert_eq!(bench.did(), []);
    }
}

#[test]
fn a_token_from_the_server_is_kept_and_acknowledged_if_asked() {
    let mut bench = Bench::open(SessionConfig::default());
    bench.receive(r##"{"event":"#setAuthToken","data":{"token":"t"},"cid":7}"##);
    assert_eq!(
        bench.did(),
        [event("authenticated t"), send(r#"{"rid":7}"#)]
    );
    bench.receive(r##"{"event":"#removeAuthToken","data":null}"##);
    assert_eq!(bench.did(), [event("deauthenticated")]);
    assert_eq!(bench.session.token(), None);
}

#[test]
fn forgetting_the_token_is_told_to_the_server() {
    let mut bench = Bench::open(SessionConfig::default());
    bench.receive(r##"{"event":"#setAuthToken","data":{"token":"t"}}"##);
    bench.did();
    bench.session.deauthenticate();
    assert_eq!(
        bench.did(),
        [
            send(r##"{"event":"#removeAuthToken"}"##),
            event("deauthenticated")
        ]
    );
}

#[test]
fn calls_from_the_server_are_answered_at_once_with_an_error() {
    let mut bench = Bench::open(SessionConfig::default());
    bench.receive(r#"{"event":"ask","data":1,"cid":5}"#);
    let error = r#"{"rid":5,"error":{"message":"The client has no procedure ask","name":"InvalidActionError"}}"#;
    assert_eq!(bench.did(), [send(error)]);
}

#[test]
fn noise_is_ignored() {
    let mut bench = Bench::open(SessionConfig::default());
    for text in [
        "#2",
        "{",
        "[",
        "null",
        "7",
        "\"x\"",
        "{}",
        "[[{}]]",
        r#"{"event":5}"#,
        r#"{"rid":"2"}"#,
    ] {
        bench.receive(text);
        assert_eq!(bench.did(), [], "{text}");
    }
}

#[test]
fn final_closes_end_the_session_and_everything_in_it() {
    for code in [1000, 4500, 4999] {
        let mut bench = Bench::open(SessionConfig::default());
        bench.session.call(bench.now, "a", None).unwrap();
        bench.did();
        bench.lose(code);
        let lost = format!("failed 2 the connection ended with {code} before the answer");
        assert_eq!(bench.did(), [event(&lost), event(&format!("ended {code}"))]);
        assert_eq!(bench.waits_for(), None);
        let refused = bench.session.call(bench.now, "b", None);
        assert_eq!(
            refused,
            Err(Refused::Ended {
                code: CloseCode(code)
            })
        );
    }
}

#[test]
fn closing_ends_the_session_whatever_it_was_doing() {
    let mut bench = Bench::open(SessionConfig::default());
    bench.session.close(CloseCode::NORMAL, "");
    assert_eq!(bench.did(), [Did::Close(1000), event("ended 1000")]);
    bench.session.close(CloseCode::NORMAL, "");
    bench.lose(1006);
    assert_eq!(bench.did(), []);

    let mut bench = Bench::open(SessionConfig::default());
    bench.lose(1006);
    bench.session.call(bench.now, "kept", None).unwrap();
    bench.did();
    bench.session.close(CloseCode::NORMAL, "");
    assert_eq!(
        bench.did(),
        [
            event("failed 2 the session ended with 1000"),
            event("ended 1000")
        ]
    );
    bench.pass(Duration::from_secs(100));
    assert_eq!(bench.did(), []);
}

#[test]
fn without_reconnecting_any_close_ends_the_session() {
    let mut bench = Bench::open(SessionConfig {
        reconnect: None,
        ..SessionConfig::default()
    });
    bench.lose(4001);
    assert_eq!(bench.did(), [event("ended 4001")]);
}

#[test]
fn a_server_that_closes_at_once_is_asked_ever_more_slowly() {
    let config = SessionConfig::default();
    let ReconnectConfig { max, .. } = config.reconnect.unwrap();
    let mut bench = Bench::new(config);
    let mut waits = Vec::new();
    for cid in 1..12 {
        bench.session.handle_opened(bench.now);
        bench.receive(&format!(r#"{{"rid":{cid},"data":{{"id":"s"}}}}"#));
        bench.lose(4001);
        bench.did();
        let wait = bench.waits_for().unwrap();
        waits.push(wait);
        bench.pass(wait);
        assert_eq!(bench.did(), [Did::Connect]);
    }
    assert_eq!(waits[0], Duration::ZERO);
    assert!(waits[3] >= Duration::from_millis(1_600), "{waits:?}");
    assert_eq!(waits[10], max);
}

#[test]
fn a_connection_that_lasted_starts_the_schedule_anew() {
    let mut bench = Bench::new(SessionConfig::default());
    for cid in 1..5 {
        bench.session.handle_opened(bench.now);
        bench.receive(&format!(r#"{{"rid":{cid},"data":{{"id":"s"}}}}"#));
        bench.pass(Duration::from_secs(5));
        bench.lose(4001);
        bench.did();
        assert_eq!(bench.waits_for(), Some(Duration::ZERO));
        bench.pass(Duration::ZERO);
        assert_eq!(bench.did(), [Did::Connect]);
    }
}

//! Transcripts: what a client says, what it hears, what the worker must do.

mod authentication;
mod history;
mod limits;
mod subscriptions;

use std::{cell::RefCell, time::Duration};

use bytes::Bytes;

use super::*;
use crate::{
    ChannelNameError,
    packet::Incoming,
    token::{TokenError, UnixSeconds, Verified},
};

const RULES: Rules = Rules {
    handshake_timeout: Duration::from_secs(10),
    ping_interval: Duration::from_secs(8),
    pong_timeout: Duration::from_secs(20),
    channels_max: 3,
    packets: Rate::new(10, PACKETS_BURST),
    subscribes: Rate::new(10, 5000),
};
const PACKETS_BURST: u32 = 5000;
const START: Millis = Millis(1_000_000);
const UNIX: UnixSeconds = 1_700_000_000;

/// Accepts `good`, and `until:N` as a token that expires at N.
struct TestHost;

impl Host for TestHost {
    fn verify(&self, token: &str, now: UnixSeconds) -> Result<Verified, TokenError> {
        match token.split_once(':') {
            None if token == "good" => Ok(Verified { expires: None }),
            Some(("until", expires)) => match expires.parse().unwrap() {
                expiry if now >= expiry => Err(TokenError::Expired { expiry }),
                expires => Ok(Verified {
                    expires: Some(expires),
                }),
            },
            Some(("from", date)) => Err(TokenError::NotBefore {
                date: date.parse().unwrap(),
            }),
            _ => Err(TokenError::Invalid("invalid signature")),
        }
    }

    fn intern(&self, channel: &str) -> Result<ChannelName, ChannelNameError> {
        ChannelName::try_from(channel)
    }

    /// `deaf…` and `mute…` need a token; nobody may do anything with `shut…`.
    fn allows(&self, action: Action, channel: &str, is_authenticated: bool) -> bool {
        let prefix = match action {
            Action::Publish => "mute",
            Action::Subscribe => "deaf",
        };
        !channel.starts_with("shut") && (is_authenticated || !channel.starts_with(prefix))
    }

    /// What has `kept` in its name keeps a history.
    fn history_limit(&self, channel: &str) -> Option<u32> {
        channel.contains("kept").then_some(200)
    }
}

fn reading(read: &HistoryRead) -> String {
    let shown = |position: Option<Position>| {
        position.map_or("-".to_owned(), |position| position.to_string())
    };
    format!(
        "{}: {} since {} before {} limit {} newest_first {}",
        read.id,
        read.channel,
        shown(read.since),
        shown(read.before),
        read.limit,
        read.newest_first
    )
}

struct Client {
    session: Session,
    now: Millis,
    unix: UnixSeconds,
}

impl Client {
    fn connecting() -> Self {
        let id = SessionId::from_random([7; 15]);
        Self {
            session: Session::new(id, START, START, &RULES),
            now: START,
            unix: UNIX,
        }
    }

    fn open() -> Self {
        let mut client = Self::connecting();
        client.say(r##"{"event":"#handshake","data":{"authToken":null},"cid":1}"##);
        client
    }

    fn with<R>(
        &mut self,
        act: impl FnOnce(&mut Session, &mut Context<'_>) -> R,
    ) -> (R, Vec<String>) {
        let mut out = Vec::new();
        let mut cx = Context {
            now: self.now,
            unix_now: self.unix,
            rules: &RULES,
            host: &TestHost,
            out: &mut out,
        };
        let result = act(&mut self.session, &mut cx);
        (result, out.iter().map(payload).collect())
    }

    /// What the client hears, then what the worker must do.
    fn say(&mut self, text: &str) -> Vec<String> {
        let effects = RefCell::new(Vec::new());
        let ((), mut heard) = self.with(|session, cx| {
            let keep = |effect: Effect<'_>| {
                effects.borrow_mut().extend(match effect {
                    Effect::Nothing => None,
                    Effect::Subscribe(name) => Some(format!("subscribe {name}")),
                    Effect::Follow { channel, since } => Some(format!(
                        "follow {channel} since {}",
                        since.map_or("nothing".to_owned(), |since| since.to_string())
                    )),
                    Effect::Unsubscribe(name) => Some(format!("unsubscribe {name}")),
                    Effect::Publish(Publish {
                        channel,
                        data,
                        cid,
                        n,
                    }) => Some(format!(
                        "publish {channel} {} n={n} cid={}",
                        data.map_or("absent", RawValue::get),
                        cid.map_or("none".into(), |cid| cid.to_string())
                    )),
                    Effect::Read(read) => Some(format!("read {}", reading(&read))),
                    Effect::Close(code) => Some(format!("close {code}")),
                });
            };
            match Incoming::parse(text) {
                Incoming::Pong(version) => keep(session.handle_pong(version, cx)),
                Incoming::Noise => keep(session.handle_noise(cx)),
                Incoming::Packets(packets) => {
                    for packet in packets {
                        keep(session.handle_packet(packet, cx));
                    }
                }
            }
        });
        heard.extend(effects.into_inner());
        heard
    }

    fn confirm(&mut self, channel: &str) -> Vec<String> {
        self.with(|session, cx| session.confirm(channel, cx)).1
    }

    fn wait(&mut self, duration: Duration) -> Vec<String> {
        self.now = self.now + duration;
        let (effect, mut heard) = self.with(|session, cx| session.handle_timeout(cx));
        if let Effect::Close(code) = effect {
            heard.push(format!("close {code}"));
        }
        heard
    }
}

/// The text of an unmasked text frame.
fn payload(frame: &Bytes) -> String {
    assert_eq!(frame[0], 0x81, "not a whole text frame");
    let skip = match frame[1] {
        126 => 4,
        127 => 10,
        len => {
            assert_eq!(usize::from(len), frame.len() - 2);
            2
        }
    };
    String::from_utf8(frame[skip..].to_vec()).unwrap()
}

const REMOVE: &str = r##"{"event":"#removeAuthToken"}"##;

#[test]
fn payloads_pass_as_they_came() {
    let mut client = Client::open();
    for data in [
        r#""\ud83d""#,
        "1.0",
        "12345678901234567890",
        "1e2",
        r#"{"b":1,"a":2,"b":3}"#,
        "null",
        &"[".repeat(1000)
            .chars()
            .chain("]".repeat(1000).chars())
            .collect::<String>(),
    ] {
        let heard = client.say(&format!(
            r##"{{"data":{{"data":{data},"channel":"a"}},"event":"#publish"}}"##
        ));
        assert!(
            heard[0].starts_with(&format!("publish a {data} n=")),
            "{data}"
        );
    }
    let heard = client.say("\r\n{ \"event\" : \"\\u0023publish\" ,\r\n \"data\" : { \"channel\" : \"a\\u0062\" , \"x\" : 1 } , \"\\ud800\":0 }");
    assert!(heard[0].starts_with("publish ab absent"), "{heard:?}");
}

#[test]
fn an_open_session_ignores_what_means_nothing() {
    let mut client = Client::open();
    for text in [
        "{",
        "hello",
        "#1",
        "[1,",
        "5",
        "null",
        "{}",
        r#"{"event":5,"cid":1}"#,
        r#"{"rid":99}"#,
        r#"{"event":"chat","data":1}"#,
        r##"{"event":"#disconnect","data":{}}"##,
    ] {
        assert!(client.say(text).is_empty(), "{text}");
    }
}

#[test]
fn unknown_procedures_are_answered_at_once_and_a_cid_that_is_no_number_is_none() {
    let mut client = Client::open();
    assert!(client.say(r#"{"event":"x","cid":-1.5e3}"#)[0].starts_with(r#"{"rid":-1.5e3,"error""#));
    assert!(client.say(r#"{"event":"x","cid":"a"}"#).is_empty());
    assert!(client.say(r#"{"event":"x","cid":1e999}"#).is_empty());
}

#[test]
fn publications_count_up_whatever_their_cid() {
    let mut client = Client::open();
    for n in 1..4 {
        let heard = client.say(r##"{"event":"#publish","data":{"channel":"a"},"cid":1}"##);
        assert_eq!(heard, [format!("publish a absent n={n} cid=1")]);
    }
}

#[test]
fn a_client_without_a_handshake_is_closed_with_4005_and_pinged_until_then() {
    let mut client = Client::connecting();
    assert_eq!(client.wait(Duration::from_secs(8)), [""]);
    assert_eq!(client.session.deadline(), START + RULES.handshake_timeout);
    assert_eq!(client.wait(Duration::from_secs(2)), ["close 4005"]);
}

#[test]
fn a_client_is_pinged_in_its_own_words_once_they_are_known() {
    let mut client = Client::open();
    assert_eq!(client.wait(RULES.ping_interval), [""]);
    client.session.handle_sign_of_life(client.now, &RULES);
    assert_eq!(
        client.wait(RULES.ping_interval),
        ["", "#1"],
        "no pong yet: both"
    );
    client.say("#2");
    client.session.handle_sign_of_life(client.now, &RULES);
    assert_eq!(client.wait(RULES.ping_interval), ["#1"]);

    let mut client = Client::open();
    client.wait(RULES.ping_interval);
    client.say("");
    client.session.handle_sign_of_life(client.now, &RULES);
    assert_eq!(client.wait(RULES.ping_interval), [""]);

    let mut client = Client::open();
    client.say(r##"{"event":"#disconnect"}"##);
    assert_eq!(client.wait(RULES.ping_interval), ["#1"]);
}

#[test]
fn a_silent_client_is_closed_with_4001_and_time_it_was_not_read_does_not_count() {
    let mut client = Client::open();
    client.wait(Duration::from_secs(19));
    assert_eq!(client.wait(Duration::from_secs(1)), ["close 4001"]);

    let mut client = Client::open();
    client.session.extend_life(Duration::from_secs(5));
    client.wait(Duration::from_secs(24));
    assert_eq!(client.wait(Duration::from_secs(1)), ["close 4001"]);
}

#[test]
fn an_operator_sets_and_removes_tokens_and_kicks() {
    let mut client = Client::connecting();
    let verified = Verified {
        expires: Some(UNIX + 1),
    };
    assert!(
        !client
            .with(|session, cx| session.set_token("t", verified, cx))
            .0,
        "before the handshake"
    );
    let mut client = Client::open();
    let (set, heard) = client.with(|session, cx| session.set_token("t", verified, cx));
    assert!(set && client.session.is_authenticated());
    assert_eq!(
        heard,
        [r##"{"event":"#setAuthToken","data":{"token":"t"}}"##]
    );
    assert_eq!(
        client.with(|session, cx| session.remove_token(cx)).1,
        [REMOVE]
    );

    client.say(r##"{"event":"#subscribe","data":{"channel":"a"},"cid":2}"##);
    client.confirm("a");
    let (kicked, heard) = client.with(|session, cx| session.kick_out("a", Some("bye"), cx));
    assert!(kicked);
    assert_eq!(
        heard,
        [r##"{"event":"#kickOut","data":{"channel":"a","message":"bye"}}"##]
    );
    assert!(!client.with(|session, cx| session.kick_out("a", None, cx)).0);
}

#[test]
fn a_session_is_its_own_snapshot() {
    let mut client = Client::open();
    client.say(r##"{"event":"#authenticate","data":"until:1800000000","cid":2}"##);
    client.say(r##"{"event":"#subscribe","data":{"channel":"a"},"cid":3}"##);
    client.confirm("a");
    client.say(r##"{"event":"#subscribe","data":{"channel":"b"},"cid":4.5}"##);
    client.say(r#"{"event":"x","cid":5}"#);
    client.say(r##"{"event":"#publish","data":{"channel":"a"},"cid":6}"##);
    let stored = serde_json::to_string(&client.session).unwrap();
    let restored: Session = serde_json::from_str(&stored).unwrap();
    assert_eq!(restored, client.session);
    client.session = restored;
    assert_eq!(client.confirm("b")[0], r#"{"rid":4.5}"#);
    assert!(client.say(r##"{"event":"#publish","data":{"channel":"a"}}"##)[0].contains("n=2"));
}

#[test]
fn a_client_whose_calls_all_wait_is_congested() {
    let mut client = Client::open();
    client.say(r##"{"event":"#subscribe","data":{"channel":"a"},"cid":2}"##);
    let mut calls = 0;
    while !client.session.is_congested(&RULES) {
        client.say(r#"{"event":"x","cid":3}"#);
        calls += 1;
        assert!(calls < 10_000, "answers are not bounded");
    }
    client.confirm("a");
    assert!(!client.session.is_congested(&RULES));
}

//! The client's session: subscriptions over connections.

use std::time::Duration;

use muster_wire::{
    ChannelName,
    client::{SessionConfig, SubscribeOptions},
    close::CloseCode,
};
use serde_json::value::RawValue;

use crate::client_session::{Bench, Did, event, send};

fn name(name: &str) -> ChannelName {
    ChannelName::try_from(name).unwrap()
}

fn subscribe(bench: &mut Bench, channel: &str) {
    bench
        .session
        .subscribe(&name(channel), SubscribeOptions::default())
        .unwrap();
}

/// A session that is subscribed to `channel`.
fn subscribed(channel: &str) -> Bench {
    let mut bench = Bench::open(SessionConfig::default());
    subscribe(&mut bench, channel);
    bench.receive(r#"{"rid":2}"#);
    let did = bench.did();
    assert_eq!(did.last(), Some(&event(&format!("subscribed {channel}"))));
    bench
}

fn reconnect(bench: &mut Bench, cid: u64) {
    bench.lose(4001);
    bench.pass(Duration::from_secs(20));
    bench.session.handle_opened(bench.now);
    bench.did();
    bench.receive(&format!(r#"{{"rid":{cid},"data":{{"id":"again"}}}}"#));
}

#[test]
fn a_subscription_is_asked_for_once_and_brings_publications() {
    let mut bench = Bench::open(SessionConfig::default());
    subscribe(&mut bench, "a\"b");
    subscribe(&mut bench, "a\"b");
    let packet = r##"{"event":"#subscribe","data":{"channel":"a\"b"},"cid":2}"##;
    assert_eq!(bench.did(), [send(packet)]);
    bench.receive(r#"{"rid":2}"#);
    bench
        .receive(r##"{"event":"#publish","data":{"channel":"a\"b","data":{"x":1.0},"offset":7}}"##);
    bench.receive(r##"{"event":"#publish","data":{"channel":"a\"b"}}"##);
    bench.receive(r##"{"event":"#publish","data":{"channel":"other","data":1}}"##);
    bench.receive(r##"{"event":"#publish","data":{"channel":5,"data":1}}"##);
    bench.receive(r##"{"event":"#publish"}"##);
    let did = [
        event("subscribed a\"b"),
        event("publication a\"b {\"x\":1.0} at 7"),
        event("publication a\"b -"),
    ];
    assert_eq!(bench.did(), did);
}

#[test]
fn wanted_channels_are_asked_for_again_on_each_connection() {
    let mut bench = subscribed("a");
    subscribe(&mut bench, "unanswered");
    bench.did();
    reconnect(&mut bench, 4);
    let did = [
        event("connected again false"),
        send(r##"{"event":"#subscribe","data":{"channel":"a"},"cid":5}"##),
        send(r##"{"event":"#subscribe","data":{"channel":"unanswered"},"cid":6}"##),
    ];
    assert_eq!(bench.did(), did);
    bench.receive(r#"{"rid":3}"#);
    assert_eq!(
        bench.did(),
        [],
        "an answer of the connection before means nothing"
    );
    bench.receive(r#"{"rid":5}"#);
    assert_eq!(bench.did(), [event("subscribed a")]);
}

#[test]
fn channels_come_before_the_calls_that_waited() {
    let mut bench = Bench::new(SessionConfig::default());
    bench.session.publish(bench.now, "a", None).unwrap();
    subscribe(&mut bench, "a");
    bench.session.handle_opened(bench.now);
    bench.did();
    bench.receive(r#"{"rid":2,"data":{"id":"s"}}"#);
    let did = [
        event("connected s false"),
        send(r##"{"event":"#subscribe","data":{"channel":"a"},"cid":3}"##),
        send(r##"{"event":"#publish","data":{"channel":"a"},"cid":1}"##),
    ];
    assert_eq!(bench.did(), did);
}

#[test]
fn a_refused_subscription_is_not_tried_again() {
    let mut bench = Bench::open(SessionConfig::default());
    subscribe(&mut bench, "a");
    bench.did();
    bench.receive(r#"{"rid":2,"error":{"name":"BrokerError","message":"full"}}"#);
    assert_eq!(bench.did(), [event("not subscribed a BrokerError: full")]);
    reconnect(&mut bench, 3);
    assert_eq!(bench.did(), [event("connected again false")]);
}

#[test]
fn unsubscribing_is_one_way_and_final() {
    let mut bench = subscribed("a");
    bench.session.unsubscribe("a");
    bench.session.unsubscribe("a");
    assert_eq!(
        bench.did(),
        [send(r##"{"event":"#unsubscribe","data":"a"}"##)]
    );
    bench.receive(r##"{"event":"#publish","data":{"channel":"a","data":1}}"##);
    assert_eq!(bench.did(), []);
    reconnect(&mut bench, 3);
    assert_eq!(bench.did(), [event("connected again false")]);
}

#[test]
fn unsubscribing_before_the_answer_ignores_it() {
    let mut bench = Bench::open(SessionConfig::default());
    subscribe(&mut bench, "a");
    bench.session.unsubscribe("a");
    bench.did();
    bench.receive(r#"{"rid":2}"#);
    assert_eq!(bench.did(), []);
    subscribe(&mut bench, "a");
    let packet = r##"{"event":"#subscribe","data":{"channel":"a"},"cid":3}"##;
    assert_eq!(bench.did(), [send(packet)]);
}

#[test]
fn a_late_refusal_does_not_end_a_newer_wish() {
    let mut bench = Bench::open(SessionConfig::default());
    subscribe(&mut bench, "a");
    bench.session.unsubscribe("a");
    subscribe(&mut bench, "a");
    bench.did();
    bench.receive(r#"{"rid":2,"error":"no"}"#);
    assert_eq!(bench.did(), []);
    bench.receive(r#"{"rid":3}"#);
    assert_eq!(bench.did(), [event("subscribed a")]);
}

#[test]
fn after_a_kick_out_the_channel_is_not_wanted_any_more() {
    let mut bench = subscribed("a");
    bench.receive(r##"{"event":"#kickOut","data":{"channel":"a","message":"bye"}}"##);
    bench.receive(r##"{"event":"#kickOut","data":{"channel":"unknown"}}"##);
    assert_eq!(bench.did(), [event("kicked a Some(\"bye\")")]);
    reconnect(&mut bench, 3);
    assert_eq!(bench.did(), [event("connected again false")]);
}

#[test]
fn a_channel_that_waits_for_authentication_is_asked_for_after_it() {
    let mut bench = Bench::open(SessionConfig::default());
    let data = RawValue::from_string("[1]".to_owned()).unwrap();
    let options = SubscribeOptions {
        wait_for_auth: true,
        data: Some(data),
        ..SubscribeOptions::default()
    };
    bench.session.subscribe(&name("a"), options).unwrap();
    assert_eq!(bench.did(), []);
    bench.receive(r##"{"event":"#setAuthToken","data":{"token":"t"}}"##);
    let packet =
        r##"{"event":"#subscribe","data":{"channel":"a","waitForAuth":true,"data":[1]},"cid":2}"##;
    assert_eq!(bench.did(), [event("authenticated t"), send(packet)]);
}

#[test]
fn an_ended_session_takes_no_subscription() {
    let mut bench = Bench::open(SessionConfig::default());
    bench.session.close(CloseCode::NORMAL, "");
    assert_eq!(bench.did(), [Did::Close(1000), event("ended 1000")]);
    assert!(
        bench
            .session
            .subscribe(&name("a"), SubscribeOptions::default())
            .is_err()
    );
}

#[test]
fn a_subscription_that_resumes_says_where_it_was_and_tells_what_is_missing() {
    let mut bench = Bench::open(SessionConfig::default());
    let options = SubscribeOptions {
        resume: true,
        ..SubscribeOptions::default()
    };
    bench.session.subscribe(&name("a"), options).unwrap();
    let asked = |since: &str, cid: u64| {
        send(&format!(
            r##"{{"event":"#subscribe","data":{{"channel":"a","since":{since}}},"cid":{cid}}}"##
        ))
    };
    let at = |generation: u64, offset: u64| {
        format!(r#""generation":"{generation:016x}","offset":{offset}"#)
    };
    let publication = |offset: u64| {
        format!(r##"{{"event":"#publish","data":{{"channel":"a","data":1,"offset":{offset}}}}}"##)
    };
    assert_eq!(bench.did(), [asked("null", 2)]);
    // The first publication overtakes the answer.
    bench.receive(&publication(6));
    bench.receive(&format!(
        r#"{{"rid":2,"data":{{{},"recovered":true}}}}"#,
        at(7, 5)
    ));
    bench.receive(&publication(7));
    let did = [
        event("publication a 1 at 6"),
        event("subscribed a"),
        event("publication a 1 at 7"),
    ];
    assert_eq!(bench.did(), did);

    reconnect(&mut bench, 3);
    let since = format!("{{{}}}", at(7, 7));
    assert!(bench.did().contains(&asked(&since, 4)));
    bench.receive(&format!(
        r#"{{"rid":4,"data":{{{},"recovered":false}}}}"#,
        at(8, 2)
    ));
    assert_eq!(bench.did(), [event("subscribed a"), event("missed a")]);
    bench.receive(&publication(3));
    bench.receive(&format!(
        r##"{{"event":"#position","data":{{"channel":"a",{},"recovered":false}}}}"##,
        at(9, 1)
    ));
    for nonsense in [
        r##"{"event":"#position"}"##,
        r##"{"event":"#position","data":{"channel":"a","generation":"x","offset":1,"recovered":false}}"##,
        r##"{"event":"#position","data":{"channel":"b","generation":"0000000000000001","offset":1,"recovered":false}}"##,
    ] {
        bench.receive(nonsense);
    }
    assert_eq!(
        bench.did(),
        [event("publication a 1 at 3"), event("missed a")]
    );
    reconnect(&mut bench, 5);
    let since = format!("{{{}}}", at(9, 1));
    assert!(bench.did().contains(&asked(&since, 6)));
}

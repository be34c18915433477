//! Channels that clients subscribe to.

use super::*;

#[test]
fn a_subscription_is_answered_when_its_owner_has_it() {
    let mut client = Client::open();
    assert_eq!(
        client.say(r##"{"event":"#subscribe","data":{"channel":"a","waitForAuth":true},"cid":2}"##),
        ["subscribe a"]
    );
    assert_eq!(client.confirm("a"), [r#"{"rid":2}"#]);
    // Again: acknowledged at once, one subscription.
    assert_eq!(
        client.say(r##"{"event":"#subscribe","data":{"channel":"a"},"cid":3}"##),
        [r#"{"rid":3}"#]
    );
    assert_eq!(
        client.say(r##"{"event":"#unsubscribe","data":"a","cid":4}"##),
        [r#"{"rid":4}"#, "unsubscribe a"]
    );
    assert_eq!(
        client.say(r##"{"event":"#unsubscribe","data":"a","cid":5}"##),
        [
            r#"{"rid":5,"error":{"message":"Failed to unsubscribe socket from the a channel - InvalidActionError: Socket BwcHBwcHBwcHBwcHBwcH tried to unsubscribe from a channel which it is not subscribed to","name":"BrokerError"}}"#
        ]
    );
}

#[test]
fn calls_are_answered_in_request_order_but_a_publish_does_not_wait() {
    let mut client = Client::open();
    client.say(r##"{"event":"#subscribe","data":{"channel":"a"},"cid":2}"##);
    client.say(r##"{"event":"#subscribe","data":{"channel":"b"},"cid":3}"##);
    assert!(client.say(r#"{"event":"nothing","cid":4}"#).is_empty());
    assert_eq!(
        client.say(r##"{"event":"#publish","data":{"channel":"a"},"cid":5}"##),
        ["publish a absent n=1 cid=5"]
    );
    assert!(client.confirm("b").is_empty());
    assert_eq!(
        client.confirm("a"),
        [
            r#"{"rid":2}"#,
            r#"{"rid":3}"#,
            r#"{"rid":4,"error":{"message":"There is no procedure nothing","name":"UnknownProcedureError"}}"#
        ]
    );
}

#[test]
fn a_subscription_given_up_before_its_owner_answered_is_done() {
    let mut client = Client::open();
    client.say(r##"{"event":"#subscribe","data":{"channel":"a"},"cid":2}"##);
    assert_eq!(
        client.say(r##"{"event":"#unsubscribe","data":"a","cid":3}"##),
        [r#"{"rid":2}"#, r#"{"rid":3}"#, "unsubscribe a"]
    );
    assert!(client.confirm("a").is_empty());
}

#[test]
fn a_subscription_its_owner_refuses_fails_and_is_gone() {
    let mut client = Client::open();
    client.say(r##"{"event":"#subscribe","data":{"channel":"a"},"cid":2}"##);
    let error = CallError::broker("no");
    let ((), heard) = client.with(|session, cx| session.refuse("a", &error, cx));
    assert_eq!(
        heard,
        [r#"{"rid":2,"error":{"message":"no","name":"BrokerError"}}"#]
    );
    assert_eq!(client.session.channels().len(), 0);
}

#[test]
fn a_subscription_beyond_the_limit_fails_and_one_that_stands_does_not() {
    let mut client = Client::open();
    for (cid, channel) in ["a", "b", "c"].iter().enumerate() {
        client.say(&format!(
            r##"{{"event":"#subscribe","data":{{"channel":"{channel}"}},"cid":{cid}}}"##
        ));
        client.confirm(channel);
    }
    let heard = client.say(r##"{"event":"#subscribe","data":{"channel":"d"},"cid":9}"##);
    assert!(
        heard[0].contains("tried to exceed the channel subscription limit of 3")
            && heard[0].contains("BrokerError"),
        "{heard:?}"
    );
    assert_eq!(
        client.say(r##"{"event":"#subscribe","data":{"channel":"a"},"cid":10}"##),
        [r#"{"rid":10}"#]
    );
}

#[test]
fn words_of_javascript_prototypes_are_ordinary_channels() {
    for channel in ["__proto__", "constructor", "", "hasOwnProperty"] {
        let mut client = Client::open();
        let text = format!(r##"{{"event":"#unsubscribe","data":"{channel}","cid":2}}"##);
        assert!(client.say(&text)[0].contains("BrokerError"));
        let text =
            format!(r##"{{"event":"#subscribe","data":{{"channel":"{channel}"}},"cid":3}}"##);
        assert_eq!(client.say(&text), [format!("subscribe {channel}")]);
    }
}

#[test]
fn channel_names_that_are_none_are_told_with_a_cid_and_ignored_without() {
    let long = format!(r#"{{"channel":"{}"}}"#, "x".repeat(513));
    for data in [
        "null",
        "{}",
        r#"{"channel":5}"#,
        r#"{"channel":"\ud800"}"#,
        "[]",
        &long,
    ] {
        let mut client = Client::open();
        for (event, word) in [("#publish", "Publish"), ("#subscribe", "Subscribe")] {
            let heard = client.say(&format!(r#"{{"event":"{event}","data":{data},"cid":2}}"#));
            assert_eq!(heard.len(), 1, "{event} {data}");
            assert!(
                heard[0].starts_with(&format!(
                    r#"{{"rid":2,"error":{{"message":"{word} channel name was malformatted"#
                )),
                "{heard:?}"
            );
            assert!(heard[0].contains("InvalidActionError"));
            assert!(
                client
                    .say(&format!(r#"{{"event":"{event}","data":{data}}}"#))
                    .is_empty()
            );
        }
        assert!(
            client.say(&format!(
                r##"{{"event":"#unsubscribe","data":{data},"cid":2}}"##
            ))[0]
                .contains("Unsubscribe channel name was malformatted")
        );
    }
}

#[test]
fn a_subscribe_without_a_cid_is_not_performed() {
    let mut client = Client::open();
    assert!(
        client
            .say(r##"{"event":"#subscribe","data":{"channel":"a"}}"##)
            .is_empty()
    );
    assert_eq!(client.session.channels().len(), 0);
}

//! What a client may not do, and how fast it may do the rest.

use super::*;

#[test]
fn a_client_without_the_right_is_told_what_it_lacks_and_nothing_is_done() {
    let mut client = Client::open();
    for (request, message) in [
        (
            r##""#publish","data":{"channel":"mute:1"}"##,
            "Only authenticated clients may publish to the mute:1 channel",
        ),
        (
            r##""#subscribe","data":{"channel":"deaf:1"}"##,
            "Only authenticated clients may subscribe to the deaf:1 channel",
        ),
        (
            r##""#publish","data":{"channel":"shut"}"##,
            "Clients may not publish to the shut channel",
        ),
        (
            r##""#subscribe","data":{"channel":"shut"}"##,
            "Clients may not subscribe to the shut channel",
        ),
    ] {
        let heard = client.say(&format!(r#"{{"event":{request},"cid":2}}"#));
        let expected =
            format!(r#"{{"rid":2,"error":{{"message":"{message}","name":"NotAllowedError"}}}}"#);
        assert_eq!(heard, [expected]);
    }
    assert_eq!(client.session.channels().len(), 0);
    // Without a cid it fails in silence.
    let heard = client.say(r##"{"event":"#publish","data":{"channel":"shut"}}"##);
    assert!(heard.is_empty(), "{heard:?}");
    // What failed has no number in the order of its publications.
    let heard = client.say(r##"{"event":"#publish","data":{"channel":"deaf:1"},"cid":3}"##);
    assert_eq!(heard, ["publish deaf:1 absent n=1 cid=3"]);
}

#[test]
fn a_token_gives_the_right_and_its_loss_takes_it() {
    let mut client = Client::open();
    client.say(r##"{"event":"#authenticate","data":"good","cid":2}"##);
    let publish = r##"{"event":"#publish","data":{"channel":"mute:1"},"cid":3}"##;
    assert_eq!(client.say(publish), ["publish mute:1 absent n=1 cid=3"]);
    client.say(r##"{"event":"#removeAuthToken"}"##);
    assert!(client.say(publish)[0].contains("NotAllowedError"));
}

/// Says `text` until the client is over its rate; how often that took.
fn say_until_over(client: &mut Client, text: &str) -> u32 {
    for count in 1..=20_000 {
        client.say(text);
        if client.session.is_over_rate(client.now, &RULES) {
            return count;
        }
    }
    panic!("it is never over its rate");
}

#[test]
fn whatever_a_client_sends_counts_and_time_makes_it_good() {
    for text in [
        "",
        "noise",
        r#"{"event":"nothing"}"#,
        r#"{"rid":1}"#,
        r##"{"event":"#publish","data":{"channel":"a"}}"##,
        r##"{"event":"#unsubscribe","data":"a"}"##,
    ] {
        let mut client = Client::open();
        let count = say_until_over(&mut client, text);
        // The handshake was one, too.
        assert_eq!(count, PACKETS_BURST, "{text}");
        client.now = client.now + Duration::from_millis(100);
        assert!(!client.session.is_over_rate(client.now, &RULES), "{text}");
        assert_eq!(say_until_over(&mut client, text), 1);
    }
}

#[test]
fn subscriptions_have_a_share_of_their_own_that_takes_a_reconnect() {
    let mut client = Client::open();
    let rules = Rules {
        channels_max: 1000,
        packets: Rate::new(1, 2),
        subscribes: Rate::new(1, 2).with_burst_of(1000),
        ..RULES
    };
    let subscribe = |client: &mut Client, number: usize| {
        let text =
            format!(r##"{{"event":"#subscribe","data":{{"channel":"{number}"}},"cid":{number}}}"##);
        let Incoming::Packets(packet::Packets::One(Some(packet))) = Incoming::parse(&text) else {
            panic!("it is one packet");
        };
        let mut out = Vec::new();
        let mut cx = Context {
            now: client.now,
            unix_now: UNIX,
            rules: &rules,
            host: &TestHost,
            out: &mut out,
        };
        let effect = client.session.handle_packet(packet, &mut cx);
        assert!(matches!(effect, Effect::Subscribe(_)), "{effect:?}");
    };
    for number in 0..1000 {
        subscribe(&mut client, number);
        assert!(!client.session.is_over_rate(client.now, &rules), "{number}");
    }
}

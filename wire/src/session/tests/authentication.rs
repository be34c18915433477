//! The handshake, and tokens that clients bring.

use super::*;

#[test]
fn a_handshake_is_answered_with_id_ping_timeout_and_state() {
    let id = "BwcHBwcHBwcHBwcHBwcH";
    let expected = format!(
        r#"{{"rid":7,"data":{{"id":"{id}","pingTimeout":20000,"isAuthenticated":false}}}}"#
    );
    for data in [
        r#","data":{"authToken":null}"#,
        r#","data":{}"#,
        r#","data":null"#,
        r#","data":3"#,
        "",
        r#","data":{"authToken":""}"#,
    ] {
        let mut client = Client::connecting();
        let heard = client.say(&format!(r##"{{"event":"#handshake"{data},"cid":7}}"##));
        assert_eq!(heard, [expected.as_str()], "{data}");
        assert!(client.session.is_open());
    }
}

#[test]
fn a_second_handshake_gets_the_same_answer_and_changes_nothing() {
    let mut client = Client::connecting();
    let first = client.say(r##"{"event":"#handshake","data":{"authToken":"good"},"cid":1}"##);
    client.say(r##"{"event":"#subscribe","data":{"channel":"a"},"cid":2}"##);
    client.confirm("a");
    let second = client.say(r##"{"event":"#handshake","data":{"authToken":null},"cid":1}"##);
    assert_eq!(first, second);
    assert_eq!(client.session.channels().len(), 1);
}

#[test]
fn a_good_token_authenticates_and_a_bad_one_never_fails_the_handshake() {
    let mut client = Client::connecting();
    let heard = client.say(r##"{"event":"#handshake","data":{"authToken":"good"},"cid":1}"##);
    assert!(
        heard[0].ends_with(r#""isAuthenticated":true}}"#),
        "{heard:?}"
    );
    assert_eq!(heard.len(), 1);

    let mut client = Client::connecting();
    let heard = client.say(r##"{"event":"#handshake","data":{"authToken":"bad"},"cid":1}"##);
    assert!(
        heard[0].ends_with(r#""isAuthenticated":false,"authError":{"message":"invalid signature","name":"AuthTokenInvalidError","isBadToken":true}}}"#),
        "{heard:?}"
    );
    assert_eq!(heard[1], REMOVE);

    let mut client = Client::connecting();
    let heard = client.say(r##"{"event":"#handshake","data":{"authToken":5},"cid":1}"##);
    assert!(
        heard[0].contains(r#""name":"AuthTokenError","isBadToken":true"#),
        "{heard:?}"
    );
}

#[test]
fn what_comes_before_the_handshake_closes_with_4009() {
    for text in [
        "",
        "#2",
        "hello",
        "{}",
        "[null]",
        r##"{"event":"#publish","data":{"channel":"a"}}"##,
        r##"{"event":"#authenticate"}"##,
        r#"{"rid":1}"#,
    ] {
        let mut client = Client::connecting();
        assert_eq!(client.say(text), ["close 4009"], "{text}");
    }
}

#[test]
fn a_handshake_or_authenticate_without_a_number_closes_with_4008() {
    for cid in ["", r#","cid":null"#, r#","cid":"1""#] {
        let mut client = Client::connecting();
        assert_eq!(
            client.say(&format!(r##"{{"event":"#handshake"{cid}}}"##)),
            ["close 4008"]
        );
        let mut client = Client::open();
        assert_eq!(
            client.say(&format!(
                r##"{{"event":"#authenticate","data":"good"{cid}}}"##
            )),
            ["close 4008"]
        );
    }
}

#[test]
fn a_handshake_and_what_follows_may_share_an_array() {
    let mut client = Client::connecting();
    let heard = client.say(
        r##"[{"event":"#handshake","cid":1},null,[],5,{"event":"#publish","data":{"channel":"a","data":1}}]"##,
    );
    assert_eq!(heard[1..], ["publish a 1 n=1 cid=none"]);
}

#[test]
fn authenticate_follows_the_references_table() {
    let mut client = Client::open();
    let mut say = |data: &str| {
        client.say(&format!(
            r##"{{"event":"#authenticate","data":{data},"cid":2}}"##
        ))
    };
    assert_eq!(
        say(r#""good""#),
        [r#"{"rid":2,"data":{"isAuthenticated":true,"authError":null}}"#]
    );
    assert_eq!(
        say(r#""bad""#),
        [
            r#"{"rid":2,"error":{"message":"invalid signature","name":"AuthTokenInvalidError","isBadToken":true}}"#,
            REMOVE
        ]
    );
    assert_eq!(
        say(r#""until:5""#),
        [
            r#"{"rid":2,"error":{"message":"jwt expired","name":"AuthTokenExpiredError","isBadToken":true,"expiry":"1970-01-01T00:00:05.000Z"}}"#,
            REMOVE
        ]
    );
    assert_eq!(
        say(r#""from:9""#),
        [
            r#"{"rid":2,"data":{"isAuthenticated":false,"authError":{"message":"jwt not active","name":"AuthTokenNotBeforeError","isBadToken":false,"date":"1970-01-01T00:00:09.000Z"}}}"#
        ]
    );
    assert_eq!(
        say("{}"),
        [
            r#"{"rid":2,"error":{"message":"Invalid token format - Token must be a string","name":"AuthTokenError","isBadToken":true}}"#,
            REMOVE
        ]
    );
    for absent in ["null", r#""""#] {
        assert!(
            say(absent)[0]
                .contains(r#""message":"jwt must be provided","name":"AuthTokenInvalidError""#)
        );
    }
}

#[test]
fn any_failure_ends_an_earlier_authentication() {
    let mut client = Client::open();
    client.say(r##"{"event":"#authenticate","data":"good","cid":2}"##);
    assert!(client.session.is_authenticated());
    client.say(r##"{"event":"#authenticate","data":"from:9","cid":3}"##);
    assert!(!client.session.is_authenticated());
}

#[test]
fn a_client_that_gives_up_its_token_is_not_answered() {
    let mut client = Client::open();
    client.say(r##"{"event":"#authenticate","data":"good","cid":2}"##);
    assert!(
        client
            .say(r##"{"event":"#removeAuthToken","cid":3}"##)
            .is_empty()
    );
    assert!(!client.session.is_authenticated());
}

#[test]
fn an_expired_token_is_noticed_on_pongs_and_events_and_the_request_is_still_executed() {
    for (text, follows) in [
        ("", None),
        (
            r##"{"event":"#publish","data":{"channel":"a"}}"##,
            Some("publish a absent n=1 cid=none"),
        ),
    ] {
        let mut client = Client::open();
        let token = format!(
            r##"{{"event":"#authenticate","data":"until:{}","cid":2}}"##,
            UNIX + 1
        );
        client.say(&token);
        client.unix = UNIX + 1;
        assert!(!client.say(text).contains(&REMOVE.to_owned()), "not yet");
        client.session.published = 0;
        client.unix = UNIX + 2;
        let expected: Vec<&str> = [REMOVE].into_iter().chain(follows).collect();
        assert_eq!(client.say(text), expected);
        assert!(!client.session.is_authenticated());
    }
}

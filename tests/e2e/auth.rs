//! Tokens.

use jsonwebtoken::Algorithm;
use muster_tests::{
    Cluster, Raw,
    cluster::AUTH_KEY,
    tokens::{seconds, sign, sign_with},
};
use serde_json::{Value, json as value};

use crate::{error_name, json};

/// Tokens that are refused: with the error's name and whether the client is to
/// forget them.
fn bad_tokens() -> Vec<(Value, &'static str, bool)> {
    let good = sign(AUTH_KEY, &value!({"exp": seconds(60)}));
    let (signed, _) = good.rsplit_once('.').expect("a token has a signature");
    let (_, claims) = signed.split_once('.').expect("a token has claims");
    vec![
        (
            value!(sign(AUTH_KEY, &value!({"exp": seconds(0)}))),
            "AuthTokenExpiredError",
            true,
        ),
        (
            value!(sign(AUTH_KEY, &value!({"exp": seconds(-100)}))),
            "AuthTokenExpiredError",
            true,
        ),
        (
            value!(sign(b"another key", &value!({}))),
            "AuthTokenInvalidError",
            true,
        ),
        (value!(format!("{signed}.")), "AuthTokenInvalidError", true),
        // {"alg":"none"}
        (
            value!(format!("eyJhbGciOiJub25lIn0.{claims}.")),
            "AuthTokenInvalidError",
            true,
        ),
        (value!("nonsense"), "AuthTokenInvalidError", true),
        (value!("a.b.c"), "AuthTokenInvalidError", true),
        (
            value!(sign(AUTH_KEY, &value!({"exp": "soon"}))),
            "AuthTokenInvalidError",
            true,
        ),
        (
            value!(sign(AUTH_KEY, &value!({"nbf": "late"}))),
            "AuthTokenInvalidError",
            true,
        ),
        (
            value!(sign(AUTH_KEY, &value!({"nbf": seconds(600)}))),
            "AuthTokenNotBeforeError",
            false,
        ),
        (value!(5), "AuthTokenError", true),
        (value!({"token": 1}), "AuthTokenError", true),
    ]
}

fn good_tokens() -> Vec<String> {
    vec![
        sign(AUTH_KEY, &value!({"username": "bob", "exp": seconds(60)})),
        sign_with(Algorithm::HS384, AUTH_KEY, &value!({"exp": seconds(60)})),
        sign_with(Algorithm::HS512, AUTH_KEY, &value!({"exp": seconds(60)})),
        sign(AUTH_KEY, &value!({})),
        sign(
            AUTH_KEY,
            &value!({"aud": "a", "iss": "b", "sub": "c", "jti": "d", "nbf": seconds(-1)}),
        ),
    ]
}

#[tokio::test]
async fn good_tokens_authenticate_at_the_handshake_and_on_demand() {
    let cluster = Cluster::start(1, 1).await;
    for token in good_tokens() {
        let (_, data) = Raw::connect_with(&cluster.url(), &value!(token)).await;
        assert_eq!(data["isAuthenticated"], true, "{data}");
        assert!(data.get("authError").is_none(), "{data}");
        let mut client = Raw::connect(&cluster.url()).await;
        let answer = client
            .call("#authenticate", &value!(token).to_string())
            .await;
        let expected = r#"{"rid":2,"data":{"isAuthenticated":true,"authError":null}}"#;
        assert_eq!(json(&answer), json(expected));
    }
}

#[tokio::test]
async fn a_bad_token_at_the_handshake_is_reported_and_then_removed() {
    let cluster = Cluster::start(1, 1).await;
    for (token, name, is_bad) in bad_tokens() {
        let (mut client, data) = Raw::connect_with(&cluster.url(), &token).await;
        assert_eq!(data["isAuthenticated"], false, "{data}");
        let error = &data["authError"];
        assert_eq!(error["name"], name, "{token}: {data}");
        assert_eq!(error["isBadToken"], is_bad, "{token}: {data}");
        assert!(error["message"].is_string(), "{data}");
        assert_eq!(
            error["expiry"].is_string(),
            name == "AuthTokenExpiredError",
            "{data}"
        );
        assert_eq!(
            error["date"].is_string(),
            name == "AuthTokenNotBeforeError",
            "{data}"
        );
        removal_follows(&mut client, is_bad).await;
    }
}

#[tokio::test]
async fn a_bad_token_on_demand_is_refused_and_then_removed() {
    let cluster = Cluster::start(1, 1).await;
    let good = value!(sign(AUTH_KEY, &value!({})));
    let mut tokens = bad_tokens();
    tokens.push((Value::Null, "AuthTokenInvalidError", true));
    tokens.push((value!(""), "AuthTokenInvalidError", true));
    for (token, name, is_bad) in tokens {
        let (mut client, _) = Raw::connect_with(&cluster.url(), &good).await;
        let answer = client.call("#authenticate", &token.to_string()).await;
        if is_bad {
            assert_eq!(error_name(&answer), name, "{token}: {answer}");
        } else {
            let answer = json(&answer);
            assert_eq!(answer["data"]["isAuthenticated"], false, "{answer}");
            assert_eq!(answer["data"]["authError"]["name"], name, "{answer}");
        }
        removal_follows(&mut client, is_bad).await;
    }
}

/// The next packet is `#removeAuthToken`, or there is none.
async fn removal_follows(client: &mut Raw, expected: bool) {
    if expected {
        assert_eq!(json(&client.receive().await)["event"], "#removeAuthToken");
    }
    client.send(r#"{"event":"nothing","cid":99}"#).await;
    assert!(client.receive().await.starts_with(r#"{"rid":99,"#));
}

#[tokio::test]
async fn a_token_that_ran_out_is_removed_and_the_request_that_showed_it_is_executed() {
    let cluster = Cluster::start(1, 1).await;
    let token = sign(AUTH_KEY, &value!({"exp": seconds(2)}));
    let (mut client, data) = Raw::connect_with(&cluster.url(), &value!(token)).await;
    assert_eq!(data["isAuthenticated"], true);
    client.subscribe("a").await;
    let mut published = 0;
    loop {
        published += 1;
        client.publish("a", &published.to_string()).await;
        let text = client.receive().await;
        if text.contains("#removeAuthToken") {
            break;
        }
        assert!(published < 1_000_000, "it should run out");
    }
    // The publication behind the removal, and everything later.
    assert_eq!(client.delivery().await.1.unwrap(), published.to_string());
    client.publish("a", "0").await;
    assert_eq!(client.delivery().await.1.unwrap(), "0");
}

#[tokio::test]
async fn a_token_that_ran_out_is_noticed_by_the_next_pong() {
    let cluster = Cluster::builder(1, 1)
        .config("[heartbeat]\nping_interval = \"200ms\"\npong_timeout = \"10s\"")
        .start()
        .await;
    let token = sign(AUTH_KEY, &value!({"exp": seconds(2)}));
    let (mut client, _) = Raw::connect_with(&cluster.url(), &value!(token)).await;
    assert_eq!(json(&client.receive().await)["event"], "#removeAuthToken");
}

#[tokio::test]
async fn a_trailing_newline_is_not_part_of_the_key() {
    let cluster = Cluster::builder(1, 1)
        .key(&[AUTH_KEY, b"\n"].concat())
        .start()
        .await;
    let token = value!(sign(AUTH_KEY, &value!({})));
    let (_, data) = Raw::connect_with(&cluster.url(), &token).await;
    assert_eq!(data["isAuthenticated"], true, "{data}");
}

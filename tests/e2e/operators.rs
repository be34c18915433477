//! What an operator's verbs do to a client.

use muster_tests::{Cluster, Raw, cluster::AUTH_KEY, raw::Closed};
use serde_json::json as value;

use crate::{json, on_every_worker};

#[tokio::test]
async fn a_client_is_kicked_out_of_a_channel_or_of_all_whichever_worker_has_it() {
    let cluster = Cluster::start(2, 2).await;
    for mut client in on_every_worker(&cluster).await {
        for channel in ["a", "b", "c"] {
            client.subscribe(channel).await;
        }
        cluster.kick(&client.id, Some("a"), "bye").await;
        let packet = json(&client.receive().await);
        assert_eq!(packet["event"], "#kickOut");
        assert_eq!(packet["data"], value!({"channel": "a", "message": "bye"}));
        client.publish("a", "1").await;
        client.publish("b", "2").await;
        assert_eq!(
            client.delivery().await.0,
            "b",
            "there is no subscription to a any more"
        );

        cluster.kick(&client.id, None, "").await;
        let mut channels = Vec::new();
        for _ in 0..2 {
            let packet = json(&client.receive().await);
            assert_eq!(packet["event"], "#kickOut");
            channels.push(packet["data"]["channel"].as_str().unwrap().to_owned());
        }
        channels.sort();
        assert_eq!(channels, ["b", "c"]);
        client.subscribe("a").await;
    }
}

#[tokio::test]
async fn a_client_is_disconnected_with_the_code_and_reason_given() {
    let cluster = Cluster::start(2, 1).await;
    for (code, reason) in [(1000, ""), (4100, "maintenance"), (4500, "banned")] {
        let mut client = Raw::connect(&cluster.url()).await;
        cluster.disconnect(&client.id, code, reason).await;
        assert_eq!(
            client.closed().await,
            Closed {
                code,
                reason: reason.to_owned()
            }
        );
    }
}

#[tokio::test]
async fn a_token_given_by_an_operator_is_good_on_the_next_connection_and_can_be_taken_away() {
    let cluster = Cluster::start(2, 1).await;
    let mut client = Raw::connect(&cluster.url()).await;
    cluster
        .set_token(&client.id, &value!({"username": "bob", "n": 1.50}))
        .await;
    let packet = json(&client.receive().await);
    assert_eq!(packet["event"], "#setAuthToken");
    let token = packet["data"]["token"].clone();
    let (mut next, data) = Raw::connect_with(&cluster.url(), &token).await;
    assert_eq!(data["isAuthenticated"], true, "{data}");
    cluster.remove_token(&next.id).await;
    assert_eq!(json(&next.receive().await)["event"], "#removeAuthToken");
}

#[tokio::test]
async fn a_token_without_an_own_expiry_lasts_as_long_as_configured() {
    let cluster = Cluster::builder(1, 1)
        .config("[auth]\ntoken_expiry = \"100s\"")
        .start()
        .await;
    let mut client = Raw::connect(&cluster.url()).await;
    for (claims, lasts) in [
        (value!({}), true),
        (value!({"exp": 4_000_000_000_u64}), false),
    ] {
        cluster.set_token(&client.id, &claims).await;
        let packet = json(&client.receive().await);
        let token = packet["data"]["token"].as_str().unwrap();
        let mut validation = jsonwebtoken::Validation::default();
        validation.required_spec_claims.clear();
        let key = jsonwebtoken::DecodingKey::from_secret(AUTH_KEY);
        let decoded = jsonwebtoken::decode::<serde_json::Value>(token, &key, &validation).unwrap();
        let claims = decoded.claims;
        let life = claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap();
        assert_eq!(life == 100, lasts, "{claims}");
    }
}

#[tokio::test]
async fn a_verb_for_a_client_that_is_not_there_says_so() {
    let cluster = Cluster::start(1, 1).await;
    for arguments in [
        &["kick", "nobody"][..],
        &["disconnect", "nobody"],
        &["token", "remove", "nobody"],
        &["token", "set", "nobody", "{}"],
    ] {
        let output = cluster.verb(arguments).await;
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {output:?}");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(
            error.starts_with("error: ") && error.contains("nobody"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn session_ids_can_be_given_to_a_verb_as_they_are() {
    let cluster = Cluster::start(1, 1).await;
    // An id may begin with any of its characters; a hyphen is one of 64.
    for _ in 0..400 {
        let client = Raw::connect(&cluster.url()).await;
        if client.id.starts_with('-') {
            let output = cluster.verb(&["kick", &client.id]).await;
            assert!(output.status.success(), "{}: {output:?}", client.id);
            return;
        }
    }
    // None does, then: the chance to meet none of 400 is one in five hundred.
}

//! Connecting, authenticating, reconnecting, ending.

use futures_util::StreamExt;
use muster_client::{Client, CloseCode, Error, Event, ReconnectConfig};
use serde_json::{Value, json};

use crate::server::Server;

const ENDED: CloseCode = CloseCode::NORMAL;

#[tokio::test]
async fn connecting_waits_for_the_handshake_which_carries_the_token() {
    let server = Server::bind().await;
    let (client, (_accepted, token)) =
        tokio::join!(server.client().token("t").connect(), server.open());
    client.unwrap();
    assert_eq!(token, "t");
}

#[tokio::test]
async fn a_first_attempt_that_fails_is_an_error() {
    let server = Server::bind().await;
    let url = server.url();
    drop(server);
    let error = Client::builder(&url).connect().await.unwrap_err();
    assert!(matches!(error, Error::Connect(_)), "{error:?}");
    let error = Client::builder("no url").connect().await.unwrap_err();
    assert!(matches!(error, Error::Connect(_)), "{error:?}");
}

#[tokio::test]
async fn a_refused_handshake_is_an_error_with_the_servers_words() {
    let server = Server::bind().await;
    let refuse = async {
        let mut accepted = server.accept().await;
        let packet = accepted.expect("#handshake").await;
        accepted
            .refuse(&packet, json!({"message": "full", "statusCode": 4008}))
            .await;
        accepted.closed().await
    };
    let (client, code) = tokio::join!(server.client().connect(), refuse);
    let error = client.unwrap_err();
    assert!(
        matches!(&error, Error::HandshakeRefused(e) if e.message == "full"),
        "{error:?}"
    );
    assert_eq!(code, CloseCode::BAD_HANDSHAKE);
}

#[tokio::test]
async fn a_lazy_client_connects_as_soon_as_the_server_lets_it() {
    let server = Server::bind().await;
    let client = server.client().connect_lazily().unwrap();
    let mut events = client.events().await.unwrap();
    assert!(matches!(
        client.transmit("e", &1).await,
        Err(Error::NotConnected)
    ));
    drop(server.accept().await);
    let event = events.next().await;
    assert!(matches!(
        event,
        Some(Event::Disconnected {
            code: CloseCode::ABNORMAL,
            ..
        })
    ));
    let _accepted = server.open().await;
    let event = events.next().await;
    assert!(
        matches!(
            event,
            Some(Event::Connected {
                is_authenticated: false,
                ..
            })
        ),
        "{event:?}"
    );
}

#[tokio::test]
async fn a_lost_connection_is_replaced_and_the_token_is_used_again() {
    let server = Server::bind().await;
    let (client, mut accepted) = server.pair(server.client()).await;
    let mut events = client.events().await.unwrap();
    let (authenticated, ()) = tokio::join!(client.authenticate("tok"), async {
        let packet = accepted.expect("#authenticate").await;
        assert_eq!(packet["data"], "tok");
        accepted
            .answer(&packet, json!({"isAuthenticated": true, "authError": null}))
            .await;
    });
    authenticated.unwrap();
    drop(accepted);
    let (_accepted, token) = server.open().await;
    assert_eq!(token, "tok");
    let event = events.next().await;
    assert!(matches!(event, Some(Event::Authenticated { token }) if token == "tok"));
    let event = events.next().await;
    assert!(matches!(
        event,
        Some(Event::Disconnected {
            code: CloseCode::ABNORMAL,
            ..
        })
    ));
    let event = events.next().await;
    assert!(matches!(
        event,
        Some(Event::Connected {
            is_authenticated: true,
            ..
        })
    ));
}

#[tokio::test]
async fn the_code_of_a_close_is_told() {
    for (code, told) in [(Some(4001), 4001), (None, 1005)] {
        let server = Server::bind().await;
        let (client, accepted) = server.pair(server.client()).await;
        let mut events = client.events().await.unwrap();
        accepted.close(code).await;
        let event = events.next().await;
        let Some(Event::Disconnected {
            code, retry_after, ..
        }) = event
        else {
            panic!("{event:?}")
        };
        assert_eq!(code, CloseCode(told));
        assert!(retry_after.is_zero(), "both let clients come back at once");
        server.open().await;
    }
}

#[tokio::test]
async fn a_rejected_token_is_told_and_the_connection_is_open() {
    let server = Server::bind().await;
    let client = server.client().token("bad").connect_lazily().unwrap();
    let mut events = client.events().await.unwrap();
    let mut accepted = server.accept().await;
    let packet = accepted.expect("#handshake").await;
    let error = json!({"name": "AuthTokenInvalidError", "message": "no", "isBadToken": true});
    accepted
        .answer(&packet, json!({"id": "s", "authError": error}))
        .await;
    assert!(matches!(events.next().await, Some(Event::Connected { .. })));
    assert!(
        matches!(events.next().await, Some(Event::AuthenticationFailed(e)) if e.message == "no")
    );
    drop(accepted);
    assert_eq!(server.open().await.1, Value::Null);
}

#[tokio::test]
async fn closing_says_goodbye_and_ends_the_client() {
    let server = Server::bind().await;
    let (client, accepted) = server.pair(server.client()).await;
    let mut events = client.events().await.unwrap();
    let ((), code) = tokio::join!(client.close(), accepted.closed());
    assert_eq!(code, CloseCode::NORMAL);
    assert!(matches!(
        events.next().await,
        Some(Event::Ended { code: ENDED, .. })
    ));
    assert!(events.next().await.is_none());
    assert!(matches!(
        client.call("e", &1).await,
        Err(Error::Ended { code: ENDED })
    ));
    client.close().await;
}

#[tokio::test]
async fn dropping_the_last_handle_closes() {
    let server = Server::bind().await;
    let (client, accepted) = server.pair(server.client()).await;
    let other = client.clone();
    drop(client);
    other.transmit("still", &1).await.unwrap();
    drop(other);
    assert_eq!(accepted.closed().await, CloseCode::NORMAL);
}

#[tokio::test]
async fn a_close_that_means_stay_away_ends_the_client() {
    let server = Server::bind().await;
    let (client, accepted) = server.pair(server.client()).await;
    accepted.close(Some(4500)).await;
    let error = client.publish("c", &1).await.unwrap_err();
    assert!(
        matches!(
            error,
            Error::Ended {
                code: CloseCode(4500)
            } | Error::ConnectionLost {
                code: CloseCode(4500)
            }
        ),
        "{error:?}"
    );
    client.close().await;
    let error = client.publish("c", &1).await.unwrap_err();
    assert!(
        matches!(
            error,
            Error::Ended {
                code: CloseCode(4500)
            }
        ),
        "{error:?}"
    );
}

#[tokio::test]
async fn without_reconnecting_the_first_close_ends_the_client() {
    let server = Server::bind().await;
    let (client, accepted) = server
        .pair(server.client().reconnect(None::<ReconnectConfig>))
        .await;
    let mut events = client.events().await.unwrap();
    drop(accepted);
    assert!(matches!(
        events.next().await,
        Some(Event::Ended {
            code: CloseCode::ABNORMAL,
            ..
        })
    ));
}

#[tokio::test]
async fn a_message_beyond_the_limit_ends_the_connection() {
    let server = Server::bind().await;
    let (client, mut accepted) = server.pair(server.client().message_bytes_max(100)).await;
    let mut events = client.events().await.unwrap();
    accepted
        .send(json!({"event": "big", "data": "x".repeat(200)}))
        .await;
    assert!(matches!(
        events.next().await,
        Some(Event::Disconnected { .. })
    ));
    server.open().await;
    assert!(matches!(events.next().await, Some(Event::Connected { .. })));
}

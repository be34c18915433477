//! Packets: calls and answers, batches, odd and broken ones.

use muster_tests::{Cluster, Raw};
use tokio_tungstenite::tungstenite::Message;

use crate::json;

#[tokio::test]
async fn unknown_procedures_are_answered_at_once_with_an_error() {
    let cluster = Cluster::start(1, 1).await;
    let mut client = Raw::connect(&cluster.url()).await;
    for name in ["nothing", "", "#unknown", "publish"] {
        let answer = json(&client.call(name, r#"{"a":1}"#).await);
        assert!(answer["error"]["message"].is_string(), "{answer}");
        assert!(
            answer.get("data").is_none_or(serde_json::Value::is_null),
            "{answer}"
        );
    }
}

#[tokio::test]
async fn any_number_is_a_call_id() {
    let cluster = Cluster::start(1, 1).await;
    let mut client = Raw::connect(&cluster.url()).await;
    for cid in [
        "0",
        "-1",
        "1.5",
        "1e2",
        "-0.25E-3",
        "9007199254740991",
        "12345678901234567890",
    ] {
        client
            .send(&format!(
                r##"{{"event":"#publish","data":{{"channel":"a"}},"cid":{cid}}}"##
            ))
            .await;
        let answer = json(&client.receive().await);
        let sent: f64 = cid.parse().unwrap();
        assert_eq!(answer["rid"].as_f64(), Some(sent), "{cid}: {answer}");
        assert!(answer.get("error").is_none(), "{answer}");
    }
}

#[tokio::test]
async fn a_call_id_that_is_no_number_makes_a_packet_one_way_or_is_repeated() {
    let cluster = Cluster::start(1, 1).await;
    let mut client = Raw::connect(&cluster.url()).await;
    for cid in ["null", "true", "[1]", "{}"] {
        client
            .send(&format!(r#"{{"event":"nothing","cid":{cid}}}"#))
            .await;
    }
    assert!(
        client
            .call("nothing", "1")
            .await
            .starts_with(r#"{"rid":2,"#)
    );
    client.send(r#"{"event":"nothing","cid":99}"#).await;
    assert!(
        client.receive().await.starts_with(r#"{"rid":99,"#),
        "nothing came before"
    );
}

#[tokio::test]
async fn what_is_no_packet_is_ignored() {
    let cluster = Cluster::start(1, 1).await;
    let mut client = Raw::connect(&cluster.url()).await;
    let broken = [
        "{",
        "[",
        "{]",
        "nonsense",
        "null",
        "0",
        "true",
        r#""text""#,
        "{}",
        "[]",
        "[[[]]]",
        "[null,1,{}]",
        r#"{"event":null}"#,
        r#"{"event":1,"cid":1}"#,
        r#"{"rid":5}"#,
        r#"{"rid":"x","error":1}"#,
        r##"{"event":"#publish","data":{"channel":"a"},"cid":3"##,
        "{\"event\":\"\u{1}\"}",
        "\u{feff}{}",
        "#2",
        "#3",
        r##"{"event":"#disconnect","data":{"code":1000}}"##,
        r##"{"event":"#removeAuthToken","cid":8}"##,
    ];
    for text in broken {
        client.send(text).await;
    }
    client.send(r#"{"event":"nothing","cid":99}"#).await;
    assert!(
        client.receive().await.starts_with(r#"{"rid":99,"#),
        "nothing came before"
    );
}

#[tokio::test]
async fn order_of_members_and_whitespace_do_not_matter() {
    let cluster = Cluster::start(1, 1).await;
    let mut client = Raw::open(&cluster.url()).await;
    client
        .send("\r\n{\r\n  \"cid\" : 1,\r\n\t\"extra\": [1, {\"cid\": 5}],\r\n  \"data\": {\"more\": 1, \"authToken\": null},\r\n  \"event\": \"\\u0023handshake\"\r\n}\r\n")
        .await;
    let answer = json(&client.receive().await);
    assert_eq!(answer["rid"], 1);
    assert!(answer["data"]["id"].is_string());
}

#[tokio::test]
async fn a_handshake_needs_no_data() {
    let cluster = Cluster::start(1, 1).await;
    for data in [
        "",
        r#","data":null"#,
        r#","data":5"#,
        r#","data":{}"#,
        r#","data":{"authToken":""}"#,
    ] {
        let mut client = Raw::open(&cluster.url()).await;
        client
            .send(&format!(r##"{{"event":"#handshake","cid":7{data}}}"##))
            .await;
        let answer = json(&client.receive().await);
        assert_eq!(answer["rid"], 7);
        assert_eq!(answer["data"]["isAuthenticated"], false, "{answer}");
        assert_eq!(answer["data"]["pingTimeout"], 20_000, "{answer}");
        assert!(answer["data"].get("authError").is_none(), "{answer}");
    }
}

#[tokio::test]
async fn a_second_handshake_is_answered_with_the_same_id_and_changes_nothing() {
    let cluster = Cluster::start(1, 1).await;
    let mut client = Raw::connect(&cluster.url()).await;
    client.subscribe("a").await;
    let answer = json(&client.call("#handshake", r#"{"authToken":null}"#).await);
    assert_eq!(answer["data"]["id"], client.id.as_str());
    client.publish("a", "1").await;
    assert_eq!(client.delivery().await.0, "a");
}

#[tokio::test]
async fn handshake_and_more_may_come_in_one_batch() {
    let cluster = Cluster::start(1, 1).await;
    let mut client = Raw::open(&cluster.url()).await;
    client
        .send(
            r##"[{"event":"#handshake","data":{"authToken":null},"cid":1},
                {"event":"#subscribe","data":{"channel":"a"},"cid":2},
                null, 5, [{"event":"nothing","cid":9}], {"event":7,"cid":8},
                {"event":"#publish","data":{"channel":"a","data":"batched"},"cid":3},
                {"event":"nothing","cid":4}]"##,
        )
        .await;
    let answer = client.receive().await;
    assert!(
        answer.starts_with(r#"{"rid":1,"#),
        "the handshake's answer is first: {answer}"
    );
    let mut rest = Vec::new();
    for _ in 0..4 {
        rest.push(client.receive().await);
    }
    let at = |start: &str| rest.iter().position(|text| text.starts_with(start));
    assert!(
        at(r#"{"rid":2}"#).unwrap() < at(r#"{"rid":4,"#).unwrap(),
        "{rest:?}"
    );
    assert!(at(r#"{"rid":3}"#).is_some(), "{rest:?}");
    assert!(rest.iter().any(|text| text.contains("batched")), "{rest:?}");
}

#[tokio::test]
async fn a_long_batch_is_executed_whole_and_in_order() {
    const CALLS: usize = 2000;
    let cluster = Cluster::start(1, 1).await;
    let mut client = Raw::connect(&cluster.url()).await;
    client.subscribe("a").await;
    let packets: Vec<_> = (0..CALLS)
        .map(|n| format!(r##"{{"event":"#publish","data":{{"channel":"a","data":{n}}}}}"##))
        .collect();
    client.send(&format!("[{}]", packets.join(","))).await;
    for n in 0..CALLS {
        assert_eq!(client.delivery().await.1.unwrap(), n.to_string());
    }
}

#[tokio::test]
async fn answers_other_than_to_publications_come_in_the_order_of_the_calls() {
    let cluster = Cluster::start(1, 1).await;
    let mut client = Raw::connect(&cluster.url()).await;
    for n in 0..50 {
        client
            .send(&format!(
                r##"{{"event":"#subscribe","data":{{"channel":"c{n}"}},"cid":{}}}"##,
                10 + 3 * n
            ))
            .await;
        client
            .send(&format!(r#"{{"event":"nothing","cid":{}}}"#, 11 + 3 * n))
            .await;
        client
            .send(&format!(
                r##"{{"event":"#authenticate","data":"x","cid":{}}}"##,
                12 + 3 * n
            ))
            .await;
    }
    let mut rids = Vec::new();
    while rids.len() < 150 {
        if let Some(rid) = json(&client.receive().await)["rid"].as_u64() {
            rids.push(rid);
        }
    }
    assert_eq!(rids, (10..160).collect::<Vec<_>>());
}

#[tokio::test]
async fn json_in_binary_frames_is_understood_and_answered_as_text() {
    let cluster = Cluster::start(1, 1).await;
    let mut client = Raw::open(&cluster.url()).await;
    let handshake = br##"{"event":"#handshake","data":{"authToken":null},"cid":1}"##;
    client
        .send_message(Message::binary(handshake.to_vec()))
        .await;
    assert!(client.receive().await.starts_with(r#"{"rid":1,"data":"#));
}

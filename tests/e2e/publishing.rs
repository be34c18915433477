//! Channels: subscriptions, publications, what arrives where.

use muster_tests::{Cluster, Raw};

use crate::{error_name, everybody_hears_everybody, on_every_worker};

#[tokio::test]
async fn publications_cross_between_all_workers_and_brokers() {
    let cluster = Cluster::start(2, 2).await;
    let mut clients = on_every_worker(&cluster).await;
    let channels: Vec<_> = (0..32).map(|n| format!("channel {n}")).collect();
    for client in &mut clients {
        for channel in &channels {
            client.subscribe(channel).await;
        }
    }
    everybody_hears_everybody(&mut clients, &channels, "once").await;
    cluster.down().await;
}

#[tokio::test]
async fn an_acknowledged_subscription_misses_nothing_from_another_worker() {
    let cluster = Cluster::start(2, 2).await;
    let mut clients = on_every_worker(&cluster).await;
    let count = clients.len();
    for n in 0..100 {
        let channel = format!("fresh {n}");
        clients[n % count].subscribe(&channel).await;
        clients[(n + 1) % count]
            .publish(&channel, &n.to_string())
            .await;
        assert_eq!(
            clients[n % count].delivery().await,
            (channel, Some(n.to_string()))
        );
    }
}

#[tokio::test]
async fn data_arrives_byte_for_byte() {
    let cluster = Cluster::start(1, 1).await;
    let mut client = Raw::connect(&cluster.url()).await;
    client.subscribe("a").await;
    let deep = format!("{}1{}", "[".repeat(5000), "]".repeat(5000));
    let texts = [
        "null",
        "true",
        "1.0",
        "-0",
        "1e400",
        "123456789012345678901234567890",
        r#""half \ud83d a pair""#,
        r#""\u0000\/\u00e9é""#,
        r#"{"b":1,"a":2,"b":3}"#,
        r#"{"__proto__":{"x":1},"constructor":null}"#,
        r#"[1,"two",[],{}]"#,
        deep.as_str(),
    ];
    for text in texts {
        client.publish("a", text).await;
        assert_eq!(
            client.delivery().await,
            ("a".to_owned(), Some(text.to_owned()))
        );
    }
}

#[tokio::test]
async fn absent_data_stays_absent_and_other_members_do_not_travel() {
    let cluster = Cluster::start(1, 1).await;
    let mut client = Raw::connect(&cluster.url()).await;
    client.subscribe("a").await;
    client.call("#publish", r#"{"channel":"a"}"#).await;
    assert_eq!(client.delivery().await, ("a".to_owned(), None));
    client
        .call("#publish", r#"{"data":1,"secret":"x","channel":"a"}"#)
        .await;
    let text = client.receive().await;
    assert!(
        text.contains(r#""data":1"#) && !text.contains("secret"),
        "{text}"
    );
}

#[tokio::test]
async fn words_that_are_special_elsewhere_are_ordinary_channel_names() {
    let cluster = Cluster::start(2, 1).await;
    let mut clients = on_every_worker(&cluster).await;
    let names = [
        "__proto__",
        "constructor",
        "toString",
        "hasOwnProperty",
        "",
        " ",
        "#publish",
        "a\"\\\n\u{0}",
    ];
    let names = names.map(String::from);
    for client in &mut clients {
        for name in &names {
            // Nobody is subscribed before it subscribes.
            let name = serde_json::to_string(name).unwrap();
            let answer = client.call("#unsubscribe", &name).await;
            assert_eq!(error_name(&answer), "BrokerError");
        }
        for name in &names {
            client.subscribe(name).await;
        }
    }
    everybody_hears_everybody(&mut clients, &names, "once").await;
}

#[tokio::test]
async fn a_name_is_compared_without_its_escapes() {
    let cluster = Cluster::start(1, 1).await;
    let mut client = Raw::connect(&cluster.url()).await;
    client
        .call("#subscribe", r#"{"channel":"\u0061\/é"}"#)
        .await;
    client
        .call("#publish", r#"{"channel":"a/\u00e9","data":1}"#)
        .await;
    assert_eq!(
        client.delivery().await,
        ("a/é".to_owned(), Some("1".to_owned()))
    );
}

#[tokio::test]
async fn what_is_no_channel_name_is_refused_by_name_and_ignored_without_a_call_id() {
    let cluster = Cluster::start(1, 1).await;
    let mut client = Raw::connect(&cluster.url()).await;
    let too_long = format!(r#""{}""#, "x".repeat(513));
    for name in ["1", "null", "{}", r#""\ud83d""#, &too_long] {
        for (event, data) in [
            ("#subscribe", format!(r#"{{"channel":{name}}}"#)),
            ("#publish", format!(r#"{{"channel":{name},"data":1}}"#)),
            ("#unsubscribe", name.to_owned()),
        ] {
            let answer = client.call(event, &data).await;
            assert_eq!(error_name(&answer), "InvalidActionError", "{event} {name}");
            client
                .send(&format!(r#"{{"event":"{event}","data":{data}}}"#))
                .await;
        }
    }
    // All of it was silent: the next packet is the next answer.
    client.send(r#"{"event":"nothing","cid":77}"#).await;
    assert!(client.receive().await.starts_with(r#"{"rid":77,"#));
}

#[tokio::test]
async fn a_second_subscription_is_acknowledged_and_delivers_once() {
    let cluster = Cluster::start(1, 1).await;
    let mut client = Raw::connect(&cluster.url()).await;
    client.subscribe("a").await;
    client.subscribe("a").await;
    client.publish("a", "1").await;
    client.publish("a", "2").await;
    assert_eq!(client.delivery().await.1.unwrap(), "1");
    assert_eq!(client.delivery().await.1.unwrap(), "2");
    assert_eq!(client.call("#unsubscribe", r#""a""#).await, r#"{"rid":6}"#);
    let answer = client.call("#unsubscribe", r#""a""#).await;
    assert_eq!(error_name(&answer), "BrokerError");
}

#[tokio::test]
async fn packets_without_a_call_id_are_executed_but_not_answered_and_do_not_subscribe() {
    let cluster = Cluster::start(1, 1).await;
    let mut client = Raw::connect(&cluster.url()).await;
    client.subscribe("a").await;
    client
        .send(r##"{"event":"#subscribe","data":{"channel":"b"}}"##)
        .await;
    client
        .send(r##"{"event":"#publish","data":{"channel":"b","data":"not subscribed"}}"##)
        .await;
    client
        .send(r##"{"event":"#publish","data":{"channel":"a","data":1}}"##)
        .await;
    assert_eq!(
        client.delivery().await,
        ("a".to_owned(), Some("1".to_owned()))
    );
    client
        .send(r##"{"event":"#unsubscribe","data":"a"}"##)
        .await;
    client
        .send(r##"{"event":"#publish","data":{"channel":"a","data":2}}"##)
        .await;
    assert_eq!(
        client.call("nothing", "null").await.split(',').next(),
        Some(r#"{"rid":3"#)
    );
}

#[tokio::test]
async fn channels_beyond_the_limit_are_refused_until_one_is_given_back() {
    let cluster = Cluster::builder(1, 1)
        .config("[limits]\nchannels_per_connection_max = 2")
        .start()
        .await;
    let mut client = Raw::connect(&cluster.url()).await;
    client.subscribe("a").await;
    client.subscribe("b").await;
    let answer = client.call("#subscribe", r#"{"channel":"c"}"#).await;
    assert_eq!(error_name(&answer), "BrokerError");
    client.call("#unsubscribe", r#""a""#).await;
    client.subscribe("c").await;
    client.publish("c", "1").await;
    assert_eq!(client.delivery().await.0, "c");
}

#[tokio::test]
async fn one_publisher_is_seen_in_order_by_subscribers_of_all_workers() {
    const PUBLICATIONS: u32 = 3000;
    let cluster = Cluster::start(2, 2).await;
    let mut clients = on_every_worker(&cluster).await;
    for client in &mut clients {
        client.subscribe("a").await;
    }
    for n in 0..PUBLICATIONS {
        let cid = if n % 3 == 0 {
            format!(r#","cid":{}"#, n + 1000)
        } else {
            String::new()
        };
        let packet =
            format!(r##"{{"event":"#publish","data":{{"channel":"a","data":{n}}}{cid}}}"##);
        clients[0].send(&packet).await;
    }
    clients[0]
        .answer(&(PUBLICATIONS - 3 + 1000).to_string())
        .await;
    for (at, client) in clients.iter_mut().enumerate() {
        let mut n = 0;
        while n < PUBLICATIONS {
            let text = client.receive().await;
            if at == 0 && text.starts_with(r#"{"rid":"#) {
                continue;
            }
            assert!(
                text.contains(&format!(r#""data":{n}}}"#)),
                "{n} was expected: {text}"
            );
            n += 1;
        }
    }
}

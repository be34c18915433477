//! Channels that keep a history: what is kept, who reads it and how, and what it
//! outlives.

use muster_tests::{Cluster, Raw, cluster::AUTH_KEY, eventually, patience, tokens::sign};
use rustix::process::Signal;
use serde_json::{Value, json as value};

use crate::{error_name, json};

/// The tail is short, so that what is kept is kept as a history.
const CONFIG: &str = r#"
[broker]
tail_age = "100ms"

[[namespace]]
prefix = "room:"
history = { count = 50 }

[[namespace]]
prefix = "short:"
history = { count = 3 }

[[namespace]]
prefix = "members:"
history = { age = "10m" }
subscribe = "authenticated"
"#;

async fn cluster(workers: u32, brokers: u32) -> Cluster {
    let builder = Cluster::builder(workers, brokers).key(AUTH_KEY);
    builder.config(CONFIG).start().await
}

/// What the call `history` is answered.
async fn read(client: &mut Raw, arguments: &Value) -> Value {
    let answer = json(&client.call("history", &arguments.to_string()).await);
    assert_eq!(answer.get("error"), None, "{arguments}: {answer}");
    answer["data"].clone()
}

async fn refusal(client: &mut Raw, arguments: &Value) -> String {
    error_name(&client.call("history", &arguments.to_string()).await)
}

fn offsets(page: &Value) -> Vec<u64> {
    let publications = page["publications"].as_array().expect("a list");
    let offsets = publications.iter().map(|one| one["offset"].as_u64());
    offsets.map(|offset| offset.expect("a number")).collect()
}

/// A page without what may differ by a millisecond between two brokers.
fn without_times(mut page: Value) -> Value {
    let publications = page["publications"].as_array_mut().expect("a list");
    for one in publications {
        one.as_object_mut().expect("an object").remove("time");
    }
    page
}

async fn operator(cluster: &Cluster, arguments: &[&str]) -> Value {
    let output = cluster.verb(&[arguments, &["--json"]].concat()).await;
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    json(&String::from_utf8_lossy(&output.stdout))
}

#[tokio::test]
async fn a_history_is_read_by_position_in_both_orders_and_in_pages() {
    let cluster = cluster(2, 2).await;
    let mut client = Raw::connect(&cluster.url()).await;
    let empty = read(&mut client, &value!({"channel": "room:1"})).await;
    let nothing = value!({"generation": null, "offset": 0, "complete": true, "more": false,
        "publications": []});
    assert_eq!(empty, nothing);
    for n in 1..=9 {
        client.publish("room:1", &n.to_string()).await;
    }
    client
        .send(r##"{"event":"#publish","data":{"channel":"room:1"}}"##)
        .await;
    client.publish("room:1", "null").await;
    let raw = r#"{"n": 1.50, "s":"\ud800"}"#;
    client.publish("room:2", raw).await;
    let as_it_came = client.call("history", r#"{"channel":"room:2"}"#).await;
    assert!(
        as_it_came.contains(&format!(r#""data":{raw}}}]"#)),
        "{as_it_came}"
    );

    // What a client got for an empty channel is where it goes on.
    let first =
        value!({"channel": "room:1", "limit": 4, "since": {"generation": null, "offset": 0}});
    let first = read(&mut client, &first).await;
    assert_eq!(offsets(&first), [1, 2, 3, 4]);
    let (generation, head) = (&first["generation"], &first["offset"]);
    assert_eq!(
        (head, &first["complete"], &first["more"]),
        (&value!(11), &value!(true), &value!(true))
    );
    assert_eq!(first["publications"][2]["data"], 3);
    let time = first["publications"][2]["time"].as_i64().expect("a time");
    let now = std::time::UNIX_EPOCH.elapsed().expect("a clock");
    let age_ms = i64::try_from(now.as_millis()).expect("not far away") - time;
    assert!((-1000..60_000).contains(&age_ms), "{age_ms} ms");

    let at = |offset: u64| value!({"generation": generation, "offset": offset});
    let rest = value!({"channel": "room:1", "since": at(4)});
    let rest = read(&mut client, &rest).await;
    assert_eq!(offsets(&rest), [5, 6, 7, 8, 9, 10, 11]);
    assert_eq!(
        (&rest["more"], &rest["complete"]),
        (&value!(false), &value!(true))
    );
    assert_eq!(
        rest["publications"][5].get("data"),
        None,
        "absent is not null"
    );

    let newest = value!({"channel": "room:1", "order": "newest", "limit": 3});
    let newest = read(&mut client, &newest).await;
    assert_eq!(
        (offsets(&newest), &newest["more"]),
        (vec![11, 10, 9], &value!(true))
    );
    let earlier = value!({"channel": "room:1", "order": "newest", "before": at(9), "since": at(5)});
    let earlier = read(&mut client, &earlier).await;
    assert_eq!(
        (offsets(&earlier), &earlier["more"]),
        (vec![8, 7, 6], &value!(false))
    );

    let other =
        value!({"channel": "room:1", "since": {"generation": "00000000000000aa", "offset": 2}});
    let other = read(&mut client, &other).await;
    assert_eq!(
        (offsets(&other), &other["complete"]),
        (vec![], &value!(false))
    );
    cluster.down().await;
}

#[tokio::test]
async fn a_read_is_refused_by_right_by_limit_and_where_nothing_is_kept() {
    let cluster = Cluster::builder(1, 1)
        .key(AUTH_KEY)
        .config(&format!("[limits]\nhistory_publications_max = 5\n{CONFIG}"))
        .start()
        .await;
    let mut guest = Raw::connect(&cluster.url()).await;
    let token = value!(sign(AUTH_KEY, &value!({"name": "bob"})));
    let (mut member, _) = Raw::connect_with(&cluster.url(), &token).await;
    for _ in 0..8 {
        member.publish("members:1", "1").await;
    }
    let members = value!({"channel": "members:1"});
    assert_eq!(refusal(&mut guest, &members).await, "NotAllowedError");
    let page = read(&mut member, &members).await;
    assert_eq!((offsets(&page).len(), &page["more"]), (5, &value!(true)));
    for (arguments, name) in [
        (
            value!({"channel": "members:1", "limit": 6}),
            "InvalidActionError",
        ),
        (
            value!({"channel": "members:1", "limit": 0}),
            "InvalidActionError",
        ),
        (
            value!({"channel": "members:1", "order": "up"}),
            "InvalidActionError",
        ),
        (
            value!({"channel": "members:1", "since": 3}),
            "InvalidActionError",
        ),
        (value!({"channel": "x".repeat(513)}), "InvalidActionError"),
        (value!(null), "InvalidActionError"),
        (value!({"channel": "lobby"}), "NoHistoryError"),
    ] {
        assert_eq!(refusal(&mut member, &arguments).await, name, "{arguments}");
    }
    // Many at once are all answered, in order.
    for cid in 100..160 {
        let call = format!(
            r#"{{"event":"history","data":{{"channel":"members:1","limit":1}},"cid":{cid}}}"#
        );
        member.send(&call).await;
    }
    for cid in 100..160 {
        let answer = json(&member.receive().await);
        assert_eq!(answer["rid"], cid, "{answer}");
        assert_eq!(offsets(&answer["data"]), [1]);
    }
    cluster.down().await;
}

#[tokio::test]
async fn a_history_outlives_all_brokers_every_move_and_the_cluster() {
    let mut cluster = cluster(2, 2).await;
    let channels: Vec<String> = (0..12).map(|n| format!("room:{n}")).collect();
    let mut client = Raw::connect(&cluster.url()).await;
    for n in 0..70 {
        for channel in &channels {
            client
                .publish(channel, &format!(r#"["{channel}",{n}]"#))
                .await;
        }
    }
    let mut before = Vec::new();
    for channel in &channels {
        let page = bounded(&mut client, channel, 50).await;
        let expected: Vec<u64> = (21..=70).collect();
        assert_eq!(offsets(&page), expected);
        before.push(page);
    }
    let stays = async |client: &mut Raw, when: &str| {
        for (channel, before) in channels.iter().zip(&before) {
            let page = read(client, &value!({"channel": channel})).await;
            assert_eq!(without_times(page), *before, "{channel} {when}");
        }
    };
    let status = cluster.status().await.unwrap();
    for slot in [1, 2] {
        cluster.signal_node("broker", slot, Signal::KILL).await;
    }
    stays(&mut client, "as its brokers are killed").await;
    for slot in [1, 2] {
        cluster.replaced(status.node("broker", slot).unwrap()).await;
    }
    stays(&mut client, "after all brokers were killed").await;
    for brokers in [4, 1] {
        cluster.scale_brokers(brokers).await;
        stays(&mut client, "while shards move").await;
        eventually("the brokers are scaled", patience(), async || match cluster
            .status()
            .await?
            .scaling
        {
            None => Ok(()),
            Some(scaling) => Err(format!("{scaling}")),
        })
        .await;
        stays(&mut client, "after shards have moved").await;
    }
    let output = cluster.verb(&["down"]).await;
    assert!(output.status.success(), "{output:?}");
    cluster.ended().await;
    cluster.up_again(2, |same| same.size(1, 1)).await;
    let mut client = Raw::connect(&cluster.url()).await;
    stays(&mut client, "after down and up").await;
    // And it goes on where it was.
    client.publish(&channels[0], "1").await;
    let page = read(
        &mut client,
        &value!({"channel": channels[0], "order": "newest", "limit": 1}),
    )
    .await;
    assert_eq!(
        (offsets(&page), &page["generation"]),
        (vec![71], &before[0]["generation"])
    );
    cluster.down().await;
}

/// Waits until what is beyond the tail is within the namespace's bounds.
async fn bounded(client: &mut Raw, channel: &str, count: usize) -> Value {
    let arguments = value!({"channel": channel});
    eventually("what is out of bounds goes", patience(), async || {
        let page = read(client, &arguments).await;
        match offsets(&page).len() {
            kept if kept == count => Ok(without_times(page)),
            kept => Err(format!("{channel} keeps {kept}")),
        }
    })
    .await
}

#[tokio::test]
async fn what_is_out_of_bounds_goes_and_a_position_before_it_is_told_so() {
    let cluster = cluster(1, 1).await;
    let mut client = Raw::connect(&cluster.url()).await;
    for n in 1..=10 {
        client.publish("short:1", &n.to_string()).await;
    }
    let page = bounded(&mut client, "short:1", 3).await;
    assert_eq!(
        (offsets(&page), &page["complete"]),
        (vec![8, 9, 10], &value!(false))
    );
    for (offset, complete) in [(7, true), (6, false)] {
        let since = value!({"generation": page["generation"], "offset": offset});
        let page = read(&mut client, &value!({"channel": "short:1", "since": since})).await;
        assert_eq!(
            (offsets(&page), &page["complete"]),
            (vec![8, 9, 10], &value!(complete))
        );
    }
    let counted = operator(&cluster, &["status"]).await;
    let nodes = counted["nodes"].as_array().expect("a list");
    let broker = nodes
        .iter()
        .find(|node| node["role"] == "broker")
        .expect("one");
    assert_eq!(broker["stats"]["history_cut"], 0, "{broker}");
    cluster.down().await;
}

#[tokio::test]
async fn histories_without_room_lose_their_oldest_and_that_is_counted() {
    let config = "[limits]\nmessage_bytes_max = \"4KiB\"\n\
        [broker]\ntail_age = \"100ms\"\ntail_bytes_max = \"8KiB\"\n\
        [[namespace]]\nprefix = \"\"\nhistory = { age = \"1h\" }";
    let cluster = Cluster::builder(1, 1).config(config).start().await;
    let mut client = Raw::connect(&cluster.url()).await;
    let data = format!("\"{}\"", "x".repeat(1000));
    for _ in 0..20 {
        client.publish("a", &data).await;
    }
    let page = read(&mut client, &value!({"channel": "a"})).await;
    // Seven of 1,114 bytes fit.
    assert_eq!(
        (offsets(&page), &page["complete"]),
        ((14..=20).collect(), &value!(false))
    );
    eventually("the cut is counted", patience(), async || {
        let status = operator(&cluster, &["status"]).await;
        let nodes = status["nodes"].as_array().expect("a list");
        let broker = nodes
            .iter()
            .find(|node| node["role"] == "broker")
            .expect("one");
        let stats = &broker["stats"];
        let counted = (
            stats["history_cut"].as_u64(),
            stats["history_bytes"].as_u64(),
        );
        match counted {
            (Some(13), Some(7798)) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    cluster.down().await;
}

#[tokio::test]
async fn a_read_whose_owner_does_not_answer_ends_with_an_error_and_works_again_later() {
    let config = format!("[supervision]\nbroker_hung_after = \"10m\"\n{CONFIG}");
    let cluster = Cluster::builder(1, 1)
        .key(AUTH_KEY)
        .config(&config)
        .start()
        .await;
    let mut client = Raw::connect(&cluster.url()).await;
    client.publish("room:1", "1").await;
    cluster.signal_node("broker", 1, Signal::STOP).await;
    let arguments = value!({"channel": "room:1"});
    assert_eq!(
        refusal(&mut client, &arguments).await,
        "HistoryUnavailableError"
    );
    let output = cluster.verb(&["history", "room:1"]).await;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains("did not answer in time"), "{error}");
    cluster.signal_node("broker", 1, Signal::CONT).await;
    assert_eq!(offsets(&read(&mut client, &arguments).await), [1]);
    cluster.down().await;
}

#[tokio::test]
async fn an_operator_reads_what_any_channel_keeps() {
    let cluster = cluster(2, 1).await;
    let mut client = Raw::connect(&cluster.url()).await;
    for n in 1..=5 {
        client.publish("members:1", &format!("[ {n},\n1.0]")).await;
    }
    let page = operator(&cluster, &["history", "members:1"]).await;
    assert_eq!(
        (&page["channel"], &page["complete"]),
        (&value!("members:1"), &value!(true))
    );
    assert_eq!(offsets(&page), [1, 2, 3, 4, 5]);
    let position =
        |offset: u64| format!("{}:{offset}", page["generation"].as_str().expect("a text"));
    let (two, five) = (position(2), position(5));
    let some = [
        "history",
        "members:1",
        "--since",
        &two,
        "--before",
        &five,
        "--newest",
    ];
    let newest = operator(&cluster, &some).await;
    assert_eq!(
        (offsets(&newest), &newest["more"]),
        (vec![4, 3], &value!(false))
    );
    let one = operator(&cluster, &["history", "members:1", "--limit", "1"]).await;
    assert_eq!((offsets(&one), &one["more"]), (vec![1], &value!(true)));

    let output = cluster
        .verb(&["history", "members:1", "--limit", "2"])
        .await;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{output:?}");
    assert!(text.contains("[ 1,\\n1.0]"), "{text}");
    assert!(text.contains(&format!("--since {two}")), "{text}");
    let output = cluster.verb(&["history", "nobody"]).await;
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "Nobody knows nobody.\n"
    );
    let long = "x".repeat(513);
    for arguments in [
        &["history", &long][..],
        &["history", "a", "--since", "5"],
        &["history", "a", "--limit", "1001"],
    ] {
        let output = cluster.verb(arguments).await;
        assert_eq!(output.status.code(), Some(2), "{output:?}");
    }
    cluster.down().await;
}

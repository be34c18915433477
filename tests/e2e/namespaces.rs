//! What differs by channel prefix: who may do what, and what happens to clients
//! that read too slowly.

use muster_tests::{Cluster, Raw, cluster::AUTH_KEY, tokens::sign};
use serde_json::json as value;

use crate::error_name;

const RIGHTS: &str = r#"
[[namespace]]
prefix = "news:"
publish = "nobody"

[[namespace]]
prefix = "news:letters:"
publish = "authenticated"
subscribe = "authenticated"
"#;

#[tokio::test]
async fn rights_follow_the_longest_prefix_and_the_token() {
    let cluster = Cluster::builder(1, 1)
        .key(AUTH_KEY)
        .config(RIGHTS)
        .start()
        .await;
    let token = value!(sign(AUTH_KEY, &value!({"name": "bob"})));
    let (mut member, _) = Raw::connect_with(&cluster.url(), &token).await;
    let mut guest = Raw::connect(&cluster.url()).await;
    let publish = |channel| format!(r#"{{"channel":"{channel}","data":1}}"#);
    let subscribe = |channel| format!(r#"{{"channel":"{channel}"}}"#);

    guest.subscribe("news:1").await;
    for client in [&mut guest, &mut member] {
        let answer = client.call("#publish", &publish("news:1")).await;
        assert_eq!(error_name(&answer), "NotAllowedError");
        client.publish("other", "1").await;
    }
    let letters = "news:letters:1";
    for (event, data) in [
        ("#publish", publish(letters)),
        ("#subscribe", subscribe(letters)),
    ] {
        let answer = guest.call(event, &data).await;
        assert_eq!(error_name(&answer), "NotAllowedError");
        assert!(answer.contains("Only authenticated clients"), "{answer}");
    }
    member.subscribe(letters).await;
    member.publish(letters, "1").await;
    assert_eq!(member.delivery().await.0, letters);

    // With a token it may, too, at once.
    let session = guest.id.clone();
    cluster.set_token(&session, &value!({"name": "eve"})).await;
    let set = guest.receive().await;
    assert!(set.contains("#setAuthToken"), "{set}");
    guest.subscribe(letters).await;
}

/// A client that stops reading while `prefix` has more traffic than its queue
/// takes; what it finds when it reads again.
async fn stalled(policy: &str) -> (Vec<usize>, u64) {
    const PUBLICATIONS: usize = 800;
    let config = format!(
        "[limits]\nmessage_bytes_max = \"128KiB\"\noutbox_bytes_max = \"128KiB\"\n\
         [heartbeat]\npong_timeout = \"60s\"\n\
         [[namespace]]\nprefix = \"a\"\nslow_client = \"{policy}\""
    );
    let cluster = Cluster::builder(1, 1).config(&config).start().await;
    let mut stalled = Raw::connect(&cluster.url()).await;
    stalled.subscribe("a").await;
    let mut reader = Raw::connect(&cluster.url()).await;
    reader.subscribe("a").await;
    let mut publisher = Raw::connect(&cluster.url()).await;
    let padding = "x".repeat(20_000);
    for n in 0..PUBLICATIONS {
        let data = format!(r#"["{padding}",{n}]"#);
        publisher.publish("a", &data).await;
        assert_eq!(
            reader.delivery().await.1,
            Some(data),
            "others get everything"
        );
    }
    let mut heard = Vec::new();
    while heard.last() != Some(&(PUBLICATIONS - 1)) {
        let data = stalled.delivery().await.1.expect("there is data");
        let (_, n) = data.rsplit_once(',').expect("it has a number");
        heard.push(n.trim_end_matches(']').parse().expect("a number"));
    }
    assert!(heard.is_sorted(), "{heard:?}");
    // It is a client like any other still.
    stalled.publish("b", "1").await;
    let status = muster_tests::eventually("the losses", muster_tests::patience(), async || {
        let status = cluster.status().await?;
        let stats = status.nodes.iter().filter_map(|node| node.stats.clone());
        let (dropped, closed) = stats.fold((0, 0), |(dropped, closed), stats| {
            (dropped + stats.dropped, closed + stats.slow_clients_closed)
        });
        assert_eq!(closed, 0);
        match usize::try_from(dropped).expect("few") + heard.len() {
            PUBLICATIONS => Ok(dropped),
            _ => Err(format!("{dropped} dropped, {} heard", heard.len())),
        }
    });
    (heard.clone(), status.await)
}

#[tokio::test]
async fn a_stalled_client_may_lose_the_oldest_and_stays() {
    let (heard, dropped) = stalled("drop_oldest").await;
    assert!(dropped > 0);
    // What was queued last is there without a hole.
    let newest = &heard[heard.len() - 2..];
    assert_eq!(newest[1] - newest[0], 1, "{heard:?}");
}

#[tokio::test]
async fn a_stalled_client_may_be_left_with_the_latest_and_stays() {
    let (_, dropped) = stalled("latest").await;
    assert!(dropped > 0);
}

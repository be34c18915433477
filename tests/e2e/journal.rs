//! Brokers killed under load: what was acknowledged is in the journal.

use std::collections::BTreeMap;

use muster_tests::{Cluster, Raw, patience};
use rustix::process::Signal;
use serde_json::Value;
use tokio::{
    sync::watch,
    time::{Duration, Instant, interval, sleep_until, timeout},
};

use crate::{failures::channels, json, on_every_worker};

/// Between two publications of the one that publishes.
const PACE: Duration = Duration::from_millis(3);
/// A broker that dies oftener than three times so long after it was ready is in
/// a crash loop.
const NO_CRASH_LOOP: Duration = Duration::from_millis(5500);

/// What one publisher has said and what it was answered.
#[derive(Debug, Default)]
struct Published {
    /// By number: acknowledged or not yet.
    acked: BTreeMap<u64, bool>,
    /// Longest from a publication to its acknowledgement.
    pause: Duration,
}

/// Publishes 0, 1, 2 … on the channels in turn until told to stop and every
/// publication is answered.
async fn publish(mut client: Raw, channels: Vec<String>, stop: watch::Receiver<bool>) -> Published {
    let mut published = Published::default();
    let mut pace = interval(PACE);
    let mut next = 0;
    let mut sent_at = Vec::new();
    let is_done = |published: &Published| published.acked.values().all(|acked| *acked);
    while !(*stop.borrow() && is_done(&published)) {
        tokio::select! {
            _ = pace.tick(), if !*stop.borrow() => {
                let channel = &channels[index(next) % channels.len()];
                let cid = 1000 + next;
                let packet = format!(
                    r##"{{"event":"#publish","data":{{"channel":"{channel}","data":{next}}},"cid":{cid}}}"##
                );
                client.send(&packet).await;
                sent_at.push(Instant::now());
                published.acked.insert(next, false);
                next += 1;
            }
            text = client.receive() => {
                let answer = json(&text);
                assert_eq!(answer.get("error"), None, "{text}");
                let number = answer["rid"].as_u64().expect("an answer") - 1000;
                published.acked.insert(number, true);
                published.pause = published.pause.max(sent_at[index(number)].elapsed());
            }
        }
    }
    published
}

/// Everything a subscriber hears, by channel, until it has heard `last` on each.
async fn listen(mut client: Raw, until: watch::Receiver<Option<BTreeMap<String, u64>>>) -> Heard {
    let mut heard = Heard::new();
    let mut until = until;
    loop {
        let is_done = until.borrow().as_ref().is_some_and(|last| {
            last.iter()
                .all(|(channel, last)| heard.get(channel).and_then(|all| all.last()) == Some(last))
        });
        if is_done {
            return heard;
        }
        tokio::select! {
            _ = until.changed() => {}
            (channel, data) = client.delivery() => {
                let number = data.expect("numbers are data").parse().expect("a number");
                heard.entry(channel).or_default().push(number);
            }
        }
    }
}

fn index(number: u64) -> usize {
    usize::try_from(number).expect("a 64-bit machine")
}

type Heard = BTreeMap<String, Vec<u64>>;

/// Publishes and listens on every worker while `disturb` does what it does to
/// the brokers; every publication must be acknowledged and be heard once, in
/// order, by every subscriber. Returns the number of publications.
#[expect(clippy::print_stdout, reason = "the pause is a figure worth knowing")]
async fn nothing_is_lost_while(cluster: &Cluster, disturb: impl AsyncFnOnce(&Cluster)) -> usize {
    let channels = channels();
    let mut clients = on_every_worker(cluster).await;
    for client in &mut clients {
        for channel in &channels {
            client.subscribe(channel).await;
        }
    }
    let publisher = Raw::connect(&cluster.url()).await;
    let (stop, stopped) = watch::channel(false);
    let (tell_last, last) = watch::channel(None);
    let publisher = tokio::spawn(publish(publisher, channels.clone(), stopped));
    let listeners: Vec<_> = clients
        .into_iter()
        .map(|client| tokio::spawn(listen(client, last.clone())))
        .collect();
    disturb(cluster).await;
    stop.send(true).expect("the publisher listens");
    let published = timeout(patience(), publisher)
        .await
        .expect("everything is answered in time")
        .expect("the publisher does not panic");
    println!(
        "{} publications, the longest wait for an acknowledgement {:?}",
        published.acked.len(),
        published.pause
    );
    let mut expected = Heard::new();
    for number in published.acked.keys() {
        let channel = &channels[index(*number) % channels.len()];
        expected.entry(channel.clone()).or_default().push(*number);
    }
    let lasts = expected.iter();
    let lasts = lasts.filter_map(|(channel, all)| Some((channel.clone(), *all.last()?)));
    tell_last
        .send(Some(lasts.collect()))
        .expect("somebody listens");
    for listener in listeners {
        let heard = timeout(patience(), listener)
            .await
            .expect("everything is heard in time")
            .expect("the listener does not panic");
        assert_eq!(heard, expected);
    }
    published.acked.len()
}

#[tokio::test]
async fn brokers_killed_under_load_lose_repeat_and_reorder_nothing() {
    let cluster = Cluster::start(2, 2).await;
    let published = nothing_is_lost_while(&cluster, async |cluster| {
        for slot in [1, 2] {
            cluster.kill_broker(slot).await;
        }
        let status = cluster.status().await.unwrap();
        for slot in [1, 2] {
            cluster.signal_node("broker", slot, Signal::KILL).await;
        }
        for slot in [1, 2] {
            cluster.replaced(status.node("broker", slot).unwrap()).await;
        }
        sleep_until(Instant::now() + NO_CRASH_LOOP).await;
        cluster.kill_broker(1).await;
    })
    .await;
    assert!(published > 500, "{published} publications were no load");
    let status = cluster.status().await.unwrap();
    assert_eq!(status.node("worker", 1).unwrap().restarts, 0);
    cluster.down().await;
}

#[tokio::test]
async fn a_broker_whose_journal_is_synced_before_anybody_hears_loses_nothing() {
    let cluster = Cluster::builder(2, 1)
        .config("[broker]\nfsync = \"always\"")
        .start()
        .await;
    nothing_is_lost_while(&cluster, async |cluster| cluster.kill_broker(1).await).await;
    cluster.down().await;
}

#[tokio::test]
async fn a_cluster_that_was_taken_down_goes_on_with_its_journal() {
    let mut cluster = Cluster::start(1, 1).await;
    let mut client = Raw::connect(&cluster.url()).await;
    client.publish("a", "1").await;
    let before = epoch(&cluster).await;
    let output = cluster.verb(&["down"]).await;
    assert!(output.status.success(), "{output:?}");
    cluster.ended().await;
    let again = cluster.start_again().await;
    assert!(
        epoch(&again).await > before,
        "shards are open at an epoch that rises"
    );
    let mut client = Raw::connect(&again.url()).await;
    client.subscribe("a").await;
    client.publish("a", "2").await;
    assert_eq!(
        client.delivery().await,
        ("a".to_owned(), Some("2".to_owned()))
    );
}

async fn epoch(cluster: &Cluster) -> u64 {
    let output = cluster.verb(&["status", "--json"]).await;
    let status: Value = json(&String::from_utf8_lossy(&output.stdout));
    status["epoch"]
        .as_u64()
        .expect("the status names the epoch")
}

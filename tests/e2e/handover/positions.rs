//! Clients that follow positions while workers are replaced: they are moved like
//! the others, and miss nothing.

use std::cell::Cell;

use futures_util::StreamExt as _;
use muster_client::{Client, Event, Events, Subscription};
use muster_tests::{Cluster, Raw, patience};
use tokio::{sync::watch, task::JoinSet, time::timeout};

use super::{assert_smooth, update};
use crate::counted;

const FOLLOWERS: usize = 20;
const CHANNELS: usize = 4;
const UPDATES: usize = 4;

/// Everything up to the number that `ending` says at last; offsets are the same.
async fn listen(mut subscription: Subscription, mut ending: watch::Receiver<u64>) {
    let mut seen = 0;
    while seen != *ending.borrow_and_update() {
        tokio::select! {
            publication = subscription.next() => {
                let publication = publication.expect("it goes on").expect("nothing is missed");
                let number: u64 = publication.data.json().expect("a number");
                assert_eq!((number, publication.offset), (seen + 1, Some(seen + 1)));
                seen = number;
            }
            changed = ending.changed() => changed.expect("the publisher lives"),
        }
    }
}

/// Nothing but the first connection has happened.
async fn stayed_connected(mut events: Events) {
    let first = events.next().await;
    assert!(matches!(first, Some(Event::Connected { .. })), "{first:?}");
    while let Some(event) = events.next().await {
        let is_quiet = matches!(event, Event::Ended { .. });
        assert!(is_quiet, "{event:?}");
    }
}

#[tokio::test]
async fn clients_that_follow_positions_move_and_miss_nothing() {
    let cluster = Cluster::start(2, 2).await;
    let mut publisher = Raw::connect(&cluster.url()).await;
    let (end, ending) = watch::channel(u64::MAX);
    let (mut clients, mut listening, mut connected) = (vec![], JoinSet::new(), JoinSet::new());
    for _ in 0..FOLLOWERS {
        let client = Client::builder(&cluster.url())
            .connect_lazily()
            .expect("the address is good");
        let events = client.events().await.expect("the client lives");
        connected.spawn(stayed_connected(events));
        for channel in 0..CHANNELS {
            let subscription = client.subscribe(&format!("followed:{channel}")).await;
            let subscription = subscription.expect("it is allowed");
            listening.spawn(listen(subscription, ending.clone()));
        }
        clients.push(client);
    }
    counted(&cluster, FOLLOWERS + 1).await;
    let is_over = Cell::new(false);
    let publishing = async {
        let mut published: u64 = 0;
        loop {
            published += 1;
            for channel in 0..CHANNELS {
                let channel = format!("followed:{channel}");
                publisher.publish(&channel, &published.to_string()).await;
            }
            if is_over.get() {
                return published;
            }
        }
    };
    let updating = async {
        for _ in 0..UPDATES {
            assert_smooth(&update(&cluster).await, FOLLOWERS as u64 + 1);
        }
        is_over.set(true);
    };
    let (published, ()) = tokio::join!(publishing, updating);
    end.send(published).expect("somebody listens");
    let all_heard = timeout(patience(), listening.join_all()).await;
    all_heard.expect("everything arrives in time");
    drop(clients);
    let all_ended = timeout(patience(), connected.join_all()).await;
    all_ended.expect("the clients end");
    cluster.down().await;
}

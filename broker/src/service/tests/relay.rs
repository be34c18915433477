//! Publications: acked, ordered, relayed once, or refused.

use super::*;

#[tokio::test]
async fn a_publication_is_acked_and_relayed_in_order_to_every_subscriber() {
    let mut broker = Broker::start().await;
    let mut first = broker.link(1, CREDIT).await;
    let mut second = broker.link(2, CREDIT).await;
    second.send([subscribe("a", None)]).await;
    let generation = generation(&second.next().await);

    let publications = (1..=3).map(|seq| Frame::Publish(publish(seq, "a", "\"x\"")));
    first
        .send([subscribe("a", None)].into_iter().chain(publications))
        .await;

    // The answers to publications overtake the rest of their turn.
    let ack = Out::Ack(Ack {
        first_seq: 1,
        last_seq: 3,
    });
    let subscribed = Out::Subscribed(Subscribed {
        channel: Bytes::from_static(b"a"),
        position: Some(Position {
            generation,
            offset: 0,
        }),
        recovered: true,
        request: REQUEST,
    });
    assert_eq!(first.next().await, ack);
    assert_eq!(first.next().await, subscribed);
    for offset in 1..=3 {
        assert_eq!(first.next().await, relay("a", offset, "\"x\""));
        assert_eq!(second.next().await, relay("a", offset, "\"x\""));
    }
}

#[tokio::test]
async fn absent_data_stays_absent_and_null_stays_null() {
    let mut broker = Broker::start().await;
    let mut link = broker.link(1, CREDIT).await;
    let absent = Publish {
        data: None,
        ..publish(1, "a", "")
    };
    let null = publish(2, "a", "null");
    link.send([
        subscribe("a", None),
        Frame::Publish(absent),
        Frame::Publish(null),
    ])
    .await;
    assert!(matches!(link.next().await, Out::Ack(_)));
    assert!(matches!(link.next().await, Out::Subscribed(_)));
    assert_eq!(link.next_relay().await.data, None);
    assert_eq!(
        link.next_relay().await.data,
        Some(Bytes::from_static(b"null"))
    );
}

#[tokio::test]
async fn a_burst_of_batches_is_acked_and_relayed_whole() {
    const BATCHES: u64 = 200;
    const PUBLICATIONS: u64 = 10;
    let mut broker = Broker::start().await;
    let mut subscriber = broker.link(1, CREDIT).await;
    subscriber.send([subscribe("a", None)]).await;
    subscriber.next().await;
    let mut publisher = broker.link(2, CREDIT).await;
    let outbound = publisher.outbound.clone();
    let burst = tokio::spawn(async move {
        for batch in 0..BATCHES {
            let seqs = batch * PUBLICATIONS + 1..=(batch + 1) * PUBLICATIONS;
            let frame = |seq| Some(Frame::Publish(publish(seq, "a", "1")));
            let frames = seqs.map(|seq| WorkerFrame { frame: frame(seq) });
            let frames = frames.collect();
            outbound.send(WorkerBatch { frames }).await.unwrap();
        }
    });
    let mut acked = 0;
    while acked < BATCHES * PUBLICATIONS {
        let Out::Ack(ack) = publisher.next().await else {
            panic!("not an ack");
        };
        assert_eq!(ack.first_seq, acked + 1);
        acked = ack.last_seq;
    }
    for offset in 1..=BATCHES * PUBLICATIONS {
        assert_eq!(subscriber.next_relay().await.offset, offset);
    }
    burst.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn publishers_on_many_threads_are_relayed_in_one_order() {
    const PUBLISHERS: u64 = 4;
    const PUBLICATIONS: u64 = 400;
    let mut broker = Broker::start().await;
    let mut fast = broker.link(1, CREDIT).await;
    let mut slow = broker.link(2, 10).await;
    let (credit, _end) = broker.credit(2).await;
    for link in [&mut fast, &mut slow] {
        link.send([subscribe("a", None)]).await;
        link.next().await;
    }
    let mut publishing = Vec::new();
    for id in 0..PUBLISHERS {
        let mut publisher = broker.link(100 + id, CREDIT).await;
        publishing.push(tokio::spawn(async move {
            for seq in 1..=PUBLICATIONS {
                let publish = Publish {
                    producer: Bytes::copy_from_slice(&id.to_le_bytes()),
                    ..publish(seq, "a", "1")
                };
                publisher.send([Frame::Publish(publish)]).await;
            }
            let mut acked = 0;
            while acked < PUBLICATIONS {
                if let Out::Ack(ack) = publisher.next().await {
                    acked = ack.last_seq;
                }
            }
        }));
    }
    let checking_slow = tokio::spawn(async move {
        for offset in 1..=PUBLISHERS * PUBLICATIONS {
            assert_eq!(slow.next().await, relay("a", offset, "1"));
            if offset % 10 == 0 {
                let some = Credit { link: 2, bytes: 10 };
                credit.send(some).await.unwrap();
            }
        }
    });
    for offset in 1..=PUBLISHERS * PUBLICATIONS {
        assert_eq!(fast.next().await, relay("a", offset, "1"));
    }
    checking_slow.await.unwrap();
    for publisher in publishing {
        publisher.await.unwrap();
    }
}

#[tokio::test]
async fn a_publication_that_is_sent_again_on_another_link_is_acked_and_not_relayed() {
    let mut broker = Broker::start().await;
    let mut link = broker.link(1, CREDIT).await;
    link.send([Frame::Publish(publish(1, "a", "1"))]).await;
    assert!(matches!(link.next().await, Out::Ack(_)));

    let mut link = broker.link(2, CREDIT).await;
    let again = publish(1, "a", "1");
    let new = Publish {
        n: 2,
        ..publish(2, "a", "2")
    };
    link.send([
        subscribe("a", None),
        Frame::Publish(again),
        Frame::Publish(new),
    ])
    .await;
    let ack = Out::Ack(Ack {
        first_seq: 1,
        last_seq: 2,
    });
    assert_eq!(link.next().await, ack);
    assert!(matches!(link.next().await, Out::Subscribed(_)));
    assert_eq!(link.next().await, relay("a", 2, "2"));
}

#[tokio::test]
async fn a_publish_of_another_epoch_is_refused_and_not_relayed() {
    let mut broker = Broker::start().await;
    let mut link = broker.link(1, CREDIT).await;
    let early = Publish {
        shard_epoch: 0,
        ..publish(1, "a", "1")
    };
    let right = Publish {
        attempt: 1,
        ..publish(2, "a", "2")
    };
    link.send([
        subscribe("a", None),
        Frame::Publish(early),
        Frame::Publish(right),
    ])
    .await;
    let refusal = Out::Refusal(Refusal {
        seq: 1,
        reason: RefusalReason::WrongEpoch.into(),
    });
    assert_eq!(link.next().await, refusal);
    assert!(matches!(link.next().await, Out::Ack(_)));
    assert!(matches!(link.next().await, Out::Subscribed(_)));
    assert_eq!(link.next().await, relay("a", 1, "2"));
}

#[tokio::test]
async fn after_a_refused_publication_later_ones_wait_until_it_is_sent_again() {
    let mut broker = Broker::start().await;
    let mut link = broker.link(1, CREDIT).await;
    let publish = |seq, n, attempt| {
        Frame::Publish(Publish {
            n,
            shard_epoch: 3,
            attempt,
            ..publish(seq, "a", "1")
        })
    };
    let refusal = |seq| {
        Out::Refusal(Refusal {
            seq,
            reason: RefusalReason::WrongEpoch.into(),
        })
    };
    broker.apply([(2, 1)]);
    link.send([publish(1, 1, 0)]).await;
    assert_eq!(link.next().await, refusal(1));

    // The view arrives between two publications that were sent as one.
    broker.apply([(1, 1)]);
    link.send([publish(2, 2, 0), publish(3, 1, 1), publish(4, 2, 1)])
        .await;
    assert_eq!(link.next().await, refusal(2));
    let ack = Out::Ack(Ack {
        first_seq: 3,
        last_seq: 4,
    });
    assert_eq!(link.next().await, ack);
}

#[tokio::test]
async fn after_a_refused_subscription_publications_wait_until_it_is_asked_for_again() {
    let mut broker = Broker::start().await;
    let mut link = broker.link(1, CREDIT).await;
    let publish = |seq, attempt| {
        Frame::Publish(Publish {
            shard_epoch: 3,
            attempt,
            ..publish(seq, "a", "1")
        })
    };
    broker.apply([(2, 1)]);
    link.send([subscribe_at("a", None, 3)]).await;
    assert!(matches!(link.next().await, Out::NotOwner(_)));

    // The view arrives between the subscription and the publication after it.
    broker.apply([(1, 1)]);
    link.send([publish(1, 0)]).await;
    assert!(matches!(link.next().await, Out::Refusal(_)));
    link.send([subscribe_at("a", None, 3)]).await;
    assert!(matches!(link.next().await, Out::Subscribed(_)));
    link.send([publish(2, 1)]).await;
    assert!(matches!(link.next().await, Out::Ack(_)));
    assert_eq!(link.next().await, relay("a", 1, "1"));
}

#[tokio::test]
async fn a_shard_that_the_view_takes_away_refuses_and_forgets_its_subscriptions() {
    let mut broker = Broker::start().await;
    let mut link = broker.link(1, CREDIT).await;
    link.send([subscribe("a", None)]).await;
    let before = generation(&link.next().await);

    broker.apply([(2, 1)]);
    link.send([subscribe("a", None), Frame::Publish(publish(1, "a", "1"))])
        .await;
    assert!(matches!(link.next().await, Out::Refusal(_)));
    let not_owner = Out::NotOwner(NotOwner {
        channel: Bytes::from_static(b"a"),
        reason: RefusalReason::Unspecified.into(),
        request: REQUEST,
    });
    assert_eq!(link.next().await, not_owner);

    // Back again, it is another log, and nobody is subscribed.
    broker.apply([(1, 1)]);
    let again = Publish {
        shard_epoch: 3,
        attempt: 1,
        ..publish(2, "a", "1")
    };
    link.send([Frame::Publish(again)]).await;
    assert!(matches!(link.next().await, Out::Ack(_)));
    let after = Position {
        generation: before,
        offset: 0,
    };
    // A request from before is too late for it.
    link.send([subscribe("a", None)]).await;
    assert_eq!(link.next().await, not_owner);
    link.send([subscribe_at("a", Some(after), 3)]).await;
    let Out::Subscribed(subscribed) = link.next().await else {
        panic!("not subscribed");
    };
    assert!(!subscribed.recovered);
    assert_ne!(subscribed.position.unwrap().generation, before);
    assert_eq!(link.next().await, relay("a", 1, "1"));
}

#[tokio::test]
async fn the_largest_legal_publication_passes() {
    let mut broker = Broker::start().await;
    let mut link = broker.link(1, CREDIT).await;
    let channel = Bytes::from("x".repeat(512));
    let data = Bytes::from(vec![b'1'; 1 << 20]);
    let subscribe = Frame::Subscribe(Subscribe {
        channel: channel.clone(),
        after: None,
        shard_epoch: 1,
        request: REQUEST,
        attempt: 0,
    });
    let publish = Publish {
        channel,
        data: Some(data.clone()),
        producer: vec![b'p'; 128].into(),
        ..publish(1, "", "")
    };
    link.send([subscribe, Frame::Publish(publish)]).await;
    link.next().await;
    link.next().await;
    assert_eq!(link.next_relay().await.data, Some(data));
}

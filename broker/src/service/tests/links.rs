//! Links: how they open, are paced and end, and what breaks them.

use super::*;

#[tokio::test]
async fn without_credit_nothing_is_relayed_and_with_it_nothing_is_missing() {
    let mut broker = Broker::start().await;
    let mut slow = broker.link(1, 1).await;
    let mut fast = broker.link(2, CREDIT).await;
    slow.send([subscribe("a", None)]).await;
    slow.next().await;
    let publications = (1..=100).map(|seq| Frame::Publish(publish(seq, "a", "\"ten bytes\"")));
    fast.send([subscribe("a", None)].into_iter().chain(publications))
        .await;
    while fast.next().await != relay("a", 100, "\"ten bytes\"") {}

    // The first publication exceeded the credit, which let it through.
    assert_eq!(slow.next_relay().await.offset, 1);
    let (credit, _end) = broker.credit(1).await;
    for bytes in [1, 200, 1 << 20] {
        credit.send(Credit { link: 1, bytes }).await.unwrap();
    }
    for offset in 2..=100 {
        assert_eq!(slow.next_relay().await.offset, offset);
    }
    fast.send([Frame::Publish(publish(101, "a", "1"))]).await;
    assert_eq!(slow.next().await, relay("a", 101, "1"));
}

#[tokio::test]
async fn credit_that_comes_before_its_link_waits_for_it_and_ends_with_it() {
    let mut broker = Broker::start().await;
    let (credit, outbound) = mpsc::channel(4);
    let first = Credit {
        link: 7,
        bytes: 100,
    };
    credit.send(first).await.unwrap();
    let stream = ReceiverStream::new(outbound);
    let mut credits = broker.client.control(stream).await.unwrap().into_inner();

    let mut link = broker.link(7, 0).await;
    link.send([subscribe("a", None), Frame::Publish(publish(1, "a", "1"))])
        .await;
    while link.next().await != relay("a", 1, "1") {}
    drop(link);
    let end = timeout(PATIENCE, credits.message()).await.unwrap();
    assert_eq!(end.unwrap(), None);
}

#[tokio::test]
async fn a_link_that_does_not_open_in_time_is_not_found() {
    let links = Links::default();
    assert!(links.get(1, Duration::ZERO).await.is_none());
}

#[tokio::test]
async fn a_range_is_read_after_a_position_up_to_an_offset() {
    let mut broker = Broker::start().await;
    let mut link = broker.link(1, CREDIT).await;
    let publications = (1..=5).map(|seq| Frame::Publish(publish(seq, "a", "1")));
    link.send(publications.chain([subscribe("a", None)])).await;
    link.next().await;
    let generation = generation(&link.next().await);

    let request = ReadRequest {
        channel: Bytes::from_static(b"a"),
        after: Some(Position {
            generation,
            offset: 1,
        }),
        before: Some(Position {
            generation,
            offset: 5,
        }),
        bytes_max: 2,
        ..ReadRequest::default()
    };
    let response = broker.client.read(request.clone()).await.unwrap();
    let ReadResponse {
        head,
        complete,
        publications,
        more,
    } = response.into_inner();
    let offsets: Vec<u64> = publications.iter().map(|relay| relay.offset).collect();
    assert_eq!((head.unwrap().offset, complete), (5, true));
    assert_eq!(offsets, [2, 3], "two bytes are two publications");
    assert!(more, "the fourth is before the fifth");
    let now = i64::try_from(clock::unix_millis()).unwrap();
    let age_ms = now - publications[0].time_ms;
    assert!((-2000..60_000).contains(&age_ms), "{age_ms} ms");

    broker.apply([(2, 1)]);
    let status = broker.client.read(request).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
}

#[tokio::test]
async fn a_worker_of_another_version_is_refused_with_both_versions() {
    let mut broker = Broker::start().await;
    let hello = hello(1, CREDIT, 9);
    let opened = WorkerSide::open(&mut broker.client, hello).await;
    let status = opened.err().unwrap();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains('9') && status.message().contains('1'));
}

#[tokio::test]
async fn a_frame_that_breaks_the_protocol_ends_its_link_and_no_other() {
    let mut broker = Broker::start().await;
    let mut other = broker.link(99, CREDIT).await;
    let long = Frame::Subscribe(Subscribe {
        channel: vec![b'x'; 513].into(),
        ..Subscribe::default()
    });
    let not_utf8 = Frame::Unsubscribe(Unsubscribe {
        channel: Bytes::from_static(b"\xff"),
    });
    let cases = [
        (Frame::Publish(publish(2, "a", "1")), "publish.seq"),
        (long, "subscribe.channel"),
        (not_utf8, "unsubscribe.channel"),
        (hello(1, 0, LINK_VERSION), "hello"),
    ];
    for (id, (frame, field)) in (1..).zip(cases) {
        let mut link = broker.link(id, CREDIT).await;
        link.send([frame]).await;
        let status = link.failure().await;
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().starts_with(field), "{status}");
    }
    for (first, code) in [
        (subscribe("a", None), Code::InvalidArgument),
        (hello(99, CREDIT, LINK_VERSION), Code::AlreadyExists),
    ] {
        let opened = WorkerSide::open(&mut broker.client, first).await;
        assert_eq!(opened.err().unwrap().code(), code);
    }

    other.send([subscribe("a", None)]).await;
    assert!(matches!(other.next().await, Out::Subscribed(_)));
}

#[tokio::test]
async fn a_malformed_publication_is_refused_and_the_link_goes_on() {
    let mut broker = Broker::start().await;
    let mut link = broker.link(1, CREDIT).await;
    let no_producer = Publish {
        producer: Bytes::new(),
        ..publish(1, "a", "1")
    };
    let bad_channel = Publish {
        channel: Bytes::from_static(b"\xff"),
        ..publish(2, "a", "1")
    };
    let too_long = Publish {
        data: Some(vec![b'1'; (1 << 20) + 1].into()),
        ..publish(3, "a", "1")
    };
    for malformed in [no_producer, bad_channel, too_long] {
        let seq = malformed.seq;
        link.send([Frame::Publish(malformed)]).await;
        let refusal = Refusal {
            seq,
            reason: RefusalReason::Malformed.into(),
        };
        assert_eq!(link.next().await, Out::Refusal(refusal));
    }
    link.send([Frame::Publish(publish(4, "a", "1"))]).await;
    assert!(matches!(link.next().await, Out::Ack(_)));
}

#[tokio::test]
async fn a_worker_that_ends_its_stream_gets_what_is_due_and_leaves_nothing_behind() {
    let mut broker = Broker::start().await;
    let mut link = broker.link(1, CREDIT).await;
    link.send([subscribe("a", None), Frame::Publish(publish(1, "a", "1"))])
        .await;
    let WorkerSide { outbound, .. } = &mut link;
    *outbound = mpsc::channel(1).0;
    while link.next().await != relay("a", 1, "1") {}
    assert_eq!(link.batch().await.unwrap(), None);
    assert_eq!(broker.links.len(), 0);
}

#[tokio::test]
async fn a_broker_that_stops_ends_every_link_and_tells_why() {
    let mut broker = Broker::start().await;
    let mut link = broker.link(1, CREDIT).await;
    link.send([subscribe("a", None)]).await;
    link.next().await;
    broker.stop.cancel();
    broker.links.stop(clock::now());
    let status = link.failure().await;
    assert_eq!(status.code(), Code::Unavailable);
    drop((link, broker.client));
    let served = timeout(PATIENCE, broker.server).await.unwrap();
    served.unwrap().unwrap();
}

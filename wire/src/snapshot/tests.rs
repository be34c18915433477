use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::{
    frame::{Decoded, Side},
    session::{Rate, Rules, SessionId},
};

const RULES: Rules = Rules {
    handshake_timeout: Duration::from_secs(10),
    ping_interval: Duration::from_secs(8),
    pong_timeout: Duration::from_secs(20),
    channels_max: 1000,
    packets: Rate::new(100, 100),
    subscribes: Rate::new(100, 1000),
};

fn session() -> Session {
    let id = SessionId::from_random([9; 15]);
    Session::new(id, Millis(u64::MAX / 2), Millis(u64::MAX / 2), &RULES)
}

fn name(raw: &str) -> ChannelName {
    ChannelName::try_from(raw).unwrap()
}

fn connection(unsent: Vec<Unsent>) -> ConnectionSnapshot {
    ConnectionSnapshot {
        session: session(),
        decoder: Decoder::default(),
        unread: vec![0x81, 0xfe, 0x00],
        unfinished_batch: Some(("[{},{}]".into(), 3)),
        unsent,
        is_begun: true,
        places: vec![Place {
            channel: name("\u{0}\"\\ü"),
            generation: u64::MAX,
            offset: u64::MAX,
        }],
        publications: vec![
            Unacked::new(name(""), None, u64::MAX, None, Millis(5)),
            Unacked::new(
                name("a"),
                Some(Bytes::from_static(b" [1.0, \"\\ud800\"] ")),
                1,
                CallId::from_json("-1e2"),
                Millis(6),
            ),
        ],
        accepted: Millis(1),
        origin: "2001:db8::".parse().unwrap(),
        received_bytes: u64::MAX,
        sent_bytes: 7,
    }
}

fn round_trip(builder: SnapshotsBuilder) -> Snapshots {
    let mut expected = builder.snapshots.clone();
    expected.version = SNAPSHOT_VERSION;
    let read = Snapshots::from_bytes(&builder.finish(SNAPSHOT_VERSION)).unwrap();
    assert_eq!(read, expected);
    read
}

#[test]
fn a_frame_that_waits_in_many_queues_travels_once() {
    let mut builder = SnapshotsBuilder::default();
    let shared = Bytes::from(vec![7; 1000]);
    for _ in 0..10 {
        let own = Bytes::from(vec![8; 10]);
        let unsent = vec![
            builder.frame(&shared.clone(), Some(name("lobby"))),
            builder.frame(&own, None),
        ];
        builder.push(connection(unsent));
    }
    assert_eq!(builder.bytes(), 1000 + 10 * (10 + 3));
    let read = round_trip(builder);
    assert_eq!(read.connections.len(), 10);
    for connection in &read.connections {
        let frames: Vec<_> = connection
            .unsent
            .iter()
            .map(|one| read.frame(one))
            .collect();
        assert_eq!(frames, [vec![7; 1000], vec![8; 10]]);
        assert_eq!(connection.unsent[0].droppable, Some(name("lobby")));
        let data = connection.publications[1].data().unwrap();
        assert_eq!(data, &b" [1.0, \"\\ud800\"] "[..], "as it came");
    }
}

#[test]
fn a_message_in_pieces_goes_on_in_another_process() {
    let mut decoder = Decoder::default();
    // A text of two fragments, cut within a character of three bytes.
    let text = "x€".repeat(50_000);
    let (first, rest) = text.as_bytes().split_at(100_002);
    let mut frame = vec![0x01, 0x80 | 127];
    frame.extend_from_slice(&(first.len() as u64).to_be_bytes());
    frame.extend_from_slice(&[0; 4]);
    frame.extend_from_slice(first);
    let decoded = decoder.decode(Side::Server, &mut frame, 1 << 20).unwrap();
    assert!(matches!(decoded, Decoded::Frame { message: None, .. }));
    let mut builder = SnapshotsBuilder::default();
    builder.push(ConnectionSnapshot {
        decoder,
        ..connection(vec![])
    });
    let mut read = round_trip(builder).connections.remove(0).decoder;
    let mut frame = vec![0x80, 0x80 | 127];
    frame.extend_from_slice(&(rest.len() as u64).to_be_bytes());
    frame.extend_from_slice(&[0; 4]);
    frame.extend_from_slice(rest);
    let decoded = read.decode(Side::Server, &mut frame, 1 << 20).unwrap();
    let Decoded::Frame {
        message: Some(crate::frame::Message::Text(whole)),
        ..
    } = decoded
    else {
        panic!("{decoded:?}");
    };
    assert_eq!(whole, text);
}

#[test]
fn another_version_is_refused_whatever_its_form() {
    for version in [
        0,
        SNAPSHOT_VERSIONS.start() - 1,
        SNAPSHOT_VERSION + 1,
        u32::MAX,
    ] {
        let bytes = format!(r#"{{"version":{version},"entirely":"different"}}"#);
        let error = Snapshots::from_bytes(bytes.as_bytes()).unwrap_err();
        assert!(matches!(error, SnapshotError::Version { version: v } if v == version));
        assert!(error.to_string().contains(&version.to_string()), "{error}");
    }
}

#[test]
fn what_breaks_a_rule_of_its_own_is_refused() {
    let mut builder = SnapshotsBuilder::default();
    let mut other = SnapshotsBuilder::default();
    let unsent = vec![other.frame(&Bytes::from_static(b"x"), None)];
    builder.push(connection(unsent));
    let error = Snapshots::from_bytes(&builder.finish(SNAPSHOT_VERSION)).unwrap_err();
    assert!(
        matches!(
            error,
            SnapshotError::FrameMissing {
                frame: 0,
                frames: 0,
                ..
            }
        ),
        "{error}"
    );
    let unordered = serde_json::to_string(&session()).unwrap().replace(
        r#""subscriptions":[]"#,
        r#""subscriptions":[{"channel":"b","confirmed":true,"follows":false},{"channel":"a","confirmed":true,"follows":false}]"#,
    );
    let mut builder = SnapshotsBuilder::default();
    builder.push(ConnectionSnapshot {
        session: serde_json::from_str(&unordered).unwrap(),
        ..connection(vec![])
    });
    let error = Snapshots::from_bytes(&builder.finish(SNAPSHOT_VERSION)).unwrap_err();
    assert!(
        matches!(error, SnapshotError::SessionUnsound { connection: 0 }),
        "{error}"
    );
}

#[test]
fn every_cut_and_many_a_garbled_byte_is_noticed() {
    let mut builder = SnapshotsBuilder::default();
    let unsent = vec![builder.frame(&Bytes::from_static(b"frame"), None)];
    builder.push(connection(unsent));
    let bytes = builder.finish(SNAPSHOT_VERSION);
    for len in 0..bytes.len() {
        assert!(Snapshots::from_bytes(&bytes[..len]).is_err(), "{len}");
    }
    for at in 0..bytes.len() {
        let mut garbled = bytes.clone();
        garbled[at] ^= 0x80;
        // Not UTF-8 any more, or no base64.
        assert!(Snapshots::from_bytes(&garbled).is_err(), "{at}");
    }
}

proptest! {
    #[test]
    fn whatever_a_connection_holds_is_the_same_in_another_process(
        unread in prop::collection::vec(any::<u8>(), 0..300),
        batch in prop::option::of((".{0,40}", any::<usize>())),
        queued in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..50), any::<bool>()), 0..20),
        channels in prop::collection::vec(".{0,20}", 0..5),
        numbers in prop::array::uniform4(any::<u64>()),
        is_begun: bool,
    ) {
        let [generation, offset, received_bytes, sent_bytes] = numbers;
        let frames: Vec<_> = queued
            .into_iter()
            .map(|(bytes, droppable)| (Bytes::from(bytes), droppable))
            .collect();
        let mut builder = SnapshotsBuilder::default();
        let unsent = frames
            .iter()
            .map(|(frame, droppable)| builder.frame(frame, droppable.then(|| name("d"))))
            .collect();
        let places = channels.iter().map(|channel| Place {
            channel: name(channel),
            generation,
            offset,
        });
        builder.push(ConnectionSnapshot {
            unread,
            unfinished_batch: batch,
            places: places.collect(),
            is_begun,
            received_bytes,
            sent_bytes,
            ..connection(unsent)
        });
        let read = round_trip(builder);
        let unsent = read.connections[0].unsent.iter();
        let unsent: Vec<_> = unsent.map(|one| (read.frame(one), one.droppable.is_some())).collect();
        prop_assert_eq!(unsent, frames);
    }
}

//! The frame codec: cutting never matters, limits hold, what is written is read.

use bytes::Bytes;
use muster_wire::{
    close::CloseCode,
    frame::{
        CLOSE_REASON_BYTES_MAX, Decoded, Decoder, FrameError, Message, Opcode, PING_V2, Side,
        binary_frame, close_frame, masked_close_frame, masked_frame, ping_frame, pong_frame,
        text_frame, text_frame_from,
    },
};
use proptest::{collection::vec, prelude::*, sample::Index};

use crate::streams::{End, Inbound, Owned, RawFrame, stream, tries};

const MESSAGE_BYTES_MAX: usize = 150;
const MASK: [u8; 4] = [0x37, 0xFA, 0x21, 0x3D];

fn read_pieces<'a>(side: Side, pieces: impl IntoIterator<Item = &'a [u8]>) -> Inbound {
    let mut inbound = Inbound::new(side, MESSAGE_BYTES_MAX);
    for piece in pieces {
        if !inbound.feed(piece) {
            break;
        }
    }
    inbound
}

/// The frame as a client sends it.
fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let payload = payload.to_vec();
    RawFrame {
        first,
        mask: Some(MASK),
        payload,
        length_bytes: 0,
    }
    .write(&mut out);
    out
}

fn read(side: Side, bytes: &[u8]) -> (Vec<Owned>, End) {
    let inbound = read_pieces(side, [bytes]);
    (inbound.messages, inbound.end)
}

proptest! {
    #![proptest_config(tries(500))]

    #[test]
    fn where_a_stream_is_cut_changes_nothing(
        bytes in stream(),
        cuts in vec(any::<Index>(), 0..8),
        side in prop_oneof![9 => Just(Side::Server), 1 => Just(Side::Client)],
    ) {
        let whole = read_pieces(side, [&*bytes]);
        let dribbled = read_pieces(side, bytes.chunks(1));
        let mut at: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        at.extend([0, bytes.len()]);
        at.sort_unstable();
        let cut = read_pieces(side, at.windows(2).map(|pair| &bytes[pair[0]..pair[1]]));
        for other in [dribbled, cut] {
            prop_assert_eq!(&whole.messages, &other.messages);
            prop_assert_eq!(whole.end, other.end);
            prop_assert_eq!(whole.consumed, other.consumed);
        }
    }

    #[test]
    fn a_connection_can_be_taken_over_between_any_two_bytes(
        bytes in stream(),
        cut in any::<Index>(),
        forget_checked in any::<bool>(),
    ) {
        let (head, tail) = bytes.split_at(cut.index(bytes.len() + 1));
        let whole = read_pieces(Side::Server, [&*bytes]);
        let mut inbound = Inbound::new(Side::Server, MESSAGE_BYTES_MAX);
        inbound.feed(head);
        let mut state = serde_json::to_value(&inbound.decoder).unwrap();
        let same: Decoder = serde_json::from_value(state.clone()).unwrap();
        prop_assert_eq!(&same, &inbound.decoder);
        if forget_checked {
            state["checked"] = 0.into();
        }
        inbound.decoder = serde_json::from_value(state).unwrap();
        inbound.feed(tail);
        prop_assert_eq!(&whole.messages, &inbound.messages);
        prop_assert_eq!(whole.end, inbound.end);
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in vec(any::<u8>(), 0..400), max in 0..300_usize) {
        for side in [Side::Server, Side::Client] {
            let mut inbound = Inbound::new(side, max);
            for piece in bytes.chunks(7) {
                if !inbound.feed(piece) {
                    break;
                }
            }
        }
    }
}

#[test]
fn what_a_server_writes_a_client_reads_and_the_other_way_round() {
    for len in [0, 1, 125, 126, 127, 65_535, 65_536, 70_000] {
        let text = "é".repeat(len / 2) + &"x".repeat(len % 2);
        let bytes = text.as_bytes();
        for (opcode, frame, message) in [
            (Opcode::Text, text_frame(bytes), Message::Text(&text)),
            (Opcode::Binary, binary_frame(bytes), Message::Binary(bytes)),
        ] {
            let mut sent = frame.to_vec();
            let mut back = Vec::new();
            masked_frame(opcode, bytes, MASK, &mut back);
            assert_eq!(back.len(), sent.len() + 4, "{len}");
            for (side, bytes) in [(Side::Client, &mut sent), (Side::Server, &mut back)] {
                let len = bytes.len();
                let mut decoder = Decoder::default();
                let decoded = decoder.decode(side, bytes, text.len()).unwrap();
                assert_eq!(
                    decoded,
                    Decoded::Frame {
                        consumed: len,
                        message: Some(message)
                    }
                );
            }
        }
    }
}

#[test]
fn a_frame_from_parts_equals_the_frame_of_the_whole() {
    assert_eq!(text_frame_from(&[b"ab", b"", b"cd"]), text_frame(b"abcd"));
    assert_eq!(text_frame_from(&[]), text_frame(b""));
    assert_eq!(text_frame(b""), Bytes::from_static(PING_V2));
}

#[test]
fn control_frames_are_read_back_and_never_too_long() {
    let long = [b'p'; 300];
    let (messages, end) = read(
        Side::Client,
        &[ping_frame(&long), pong_frame(b"q")].concat(),
    );
    assert_eq!(
        messages,
        [Owned::Ping(vec![b'p'; 125]), Owned::Pong(b"q".to_vec())]
    );
    assert_eq!(end, End::Open { unread: 0 });
    let mut out = Vec::new();
    masked_frame(Opcode::Ping, &long, MASK, &mut out);
    assert_eq!(read(Side::Server, &out).0, [Owned::Ping(vec![b'p'; 125])]);
}

#[test]
fn a_close_reason_is_cut_between_characters() {
    let reason = "é".repeat(100);
    let (messages, end) = read(Side::Client, &close_frame(Some(CloseCode(4001)), &reason));
    assert_eq!(messages, [Owned::Close(Some((4001, "é".repeat(61))))]);
    assert_eq!(end, End::Closed);
    let reason = "x".repeat(200);
    let mut out = Vec::new();
    masked_close_frame(Some(CloseCode::NORMAL), &reason, MASK, &mut out);
    let cut = "x".repeat(CLOSE_REASON_BYTES_MAX);
    assert_eq!(
        read(Side::Server, &out).0,
        [Owned::Close(Some((1000, cut)))]
    );
}

#[test]
fn a_close_without_a_code_that_may_be_sent_is_empty() {
    for code in [
        None,
        Some(CloseCode::NO_STATUS),
        Some(CloseCode::ABNORMAL),
        Some(CloseCode(0)),
    ] {
        assert_eq!(close_frame(code, "lost"), Bytes::from_static(&[0x88, 0x00]));
        let mut out = Vec::new();
        masked_close_frame(code, "lost", MASK, &mut out);
        assert_eq!(
            read(Side::Server, &out),
            (vec![Owned::Close(None)], End::Closed)
        );
    }
}

#[test]
fn broken_frames_fail_at_the_first_byte_that_is_wrong() {
    let half_close = masked(0x88, &[3]);
    let bad_reason = masked(0x88, &[0x03, 0xE8, 0xFF]);
    let table: &[(&[u8], FrameError)] = &[
        (&[0xC1], FrameError::ReservedBit),
        (&[0xA1], FrameError::ReservedBit),
        (&[0x91], FrameError::ReservedBit),
        (&[0x83], FrameError::ReservedOpcode(3)),
        (&[0x8B], FrameError::ReservedOpcode(11)),
        (&[0x80], FrameError::NothingToContinue),
        (&[0x09], FrameError::FragmentedControl),
        (&[0x81, 0x00], FrameError::Unmasked),
        (&[0x89, 0xFE], FrameError::ControlTooLong),
        (&[0x89, 0xFF], FrameError::ControlTooLong),
        (
            &[0x81, 0xFF, 0x80, 0, 0, 0, 0, 0, 0, 0],
            FrameError::InvalidLength,
        ),
        (&half_close, FrameError::HalfCloseCode),
        (&bad_reason, FrameError::InvalidUtf8),
    ];
    for (bytes, error) in table {
        let inbound = read_pieces(Side::Server, bytes.chunks(1));
        assert_eq!(inbound.end, End::Failed(*error), "{bytes:x?}");
        let shorter = read_pieces(Side::Server, bytes[..bytes.len() - 1].chunks(1));
        assert_eq!(
            shorter.end,
            End::Open {
                unread: bytes.len() - 1
            },
            "{bytes:x?}"
        );
    }
    assert_eq!(
        read(Side::Client, &[0x81, 0x80]).1,
        End::Failed(FrameError::Masked)
    );
    let inside = [masked(0x01, b"a"), masked(0x81, b"b")].concat();
    assert_eq!(
        read(Side::Server, &inside).1,
        End::Failed(FrameError::InsideFragmented)
    );
}

#[test]
fn close_codes_that_must_not_be_sent_are_refused() {
    for code in [
        0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65_535,
    ] {
        let (_, end) = read(Side::Server, &masked(0x88, &u16::to_be_bytes(code)));
        assert_eq!(
            end,
            End::Failed(FrameError::InvalidCloseCode(CloseCode(code)))
        );
    }
}

#[test]
fn each_error_has_the_close_code_of_its_kind() {
    assert_eq!(FrameError::ReservedBit.close_code(), CloseCode::PROTOCOL);
    assert_eq!(FrameError::HalfCloseCode.close_code(), CloseCode::PROTOCOL);
    assert_eq!(
        FrameError::InvalidUtf8.close_code(),
        CloseCode::INVALID_PAYLOAD
    );
    assert_eq!(
        FrameError::TooBig {
            message_bytes_max: 1
        }
        .close_code(),
        CloseCode::TOO_BIG
    );
}

#[test]
fn a_message_beyond_the_limit_fails_before_its_payload_arrives() {
    let too_big = End::Failed(FrameError::TooBig {
        message_bytes_max: MESSAGE_BYTES_MAX,
    });
    let header = |first: u8, len: u16| {
        let [high, low] = len.to_be_bytes();
        [first, 0xFE, high, low]
    };
    assert_eq!(read(Side::Server, &header(0x81, 151)).1, too_big);
    assert_eq!(read(Side::Server, &header(0x82, 151)).1, too_big);
    assert_eq!(
        read(Side::Server, &header(0x81, 150)).1,
        End::Open { unread: 4 }
    );
    assert_eq!(
        read(Side::Server, &[0x81, 0xFF, 0x7F, 0, 0, 0, 0, 0, 0, 0]).1,
        too_big
    );
    let fragments = [&masked(0x01, &[b'x'; 100])[..], &masked(0x00, &[b'x'; 50])].concat();
    assert_eq!(read(Side::Server, &fragments).1, End::Open { unread: 0 });
    let one_more = [&fragments[..], &[0x80, 0x81]].concat();
    assert_eq!(read(Side::Server, &one_more).1, too_big);
}

#[test]
fn a_control_frame_passes_whatever_the_message_limit_is() {
    let mut bytes = masked(0x89, &[7; 125]);
    let mut decoder = Decoder::default();
    let decoded = decoder.decode(Side::Server, &mut bytes, 0).unwrap();
    assert_eq!(
        decoded,
        Decoded::Frame {
            consumed: 131,
            message: Some(Message::Ping(&[7; 125]))
        }
    );
}

#[test]
fn invalid_text_fails_at_the_invalid_byte() {
    // What Autobahn's cases 6.4.1 to 6.4.4 send: valid up to 0xF4, never with 0x90.
    let good = "κόσμε".as_bytes();
    let payload = [good, &[0xF4, 0x90, 0x80, 0x80], b"edited"].concat();
    let one = masked(0x81, &payload);
    let at = one.len() - payload.len() + good.len() + 1;
    assert_eq!(read(Side::Server, &one[..at]).1, End::Open { unread: at });
    assert_eq!(
        read(Side::Server, &one[..=at]).1,
        End::Failed(FrameError::InvalidUtf8)
    );

    let begun = masked(0x01, &payload[..good.len() + 1]);
    let rest = masked(0x80, &payload[good.len() + 1..]);
    let both = [&begun[..], &rest].concat();
    let at = begun.len() + 6;
    assert_eq!(read(Side::Server, &both[..at]).1, End::Open { unread: 6 });
    assert_eq!(
        read(Side::Server, &both[..=at]).1,
        End::Failed(FrameError::InvalidUtf8)
    );
    let binary = [masked(0x02, &payload[..good.len() + 1]), rest].concat();
    assert_eq!(read(Side::Server, &binary).0, [Owned::Binary(payload)]);
}

#[test]
fn a_long_text_is_checked_as_it_arrives_without_starting_over() {
    const BYTES: usize = 1 << 20;
    let mut payload = "κόσμε😀".repeat(BYTES / 14).into_bytes();
    *payload.last_mut().unwrap() = b'x';
    let mut bytes = masked(0x81, &payload);
    let mut decoder = Decoder::default();
    // A piece of each length: with a check from the start each time this would
    // take minutes.
    let (mut end, mut piece) = (14, 1);
    while end < bytes.len() {
        let decoded = decoder
            .decode(Side::Server, &mut bytes[..end], BYTES)
            .unwrap();
        assert!(matches!(decoded, Decoded::Incomplete { .. }), "{decoded:?}");
        end += piece;
        piece = piece % 700 + 1;
    }
    // Only the very last byte is wrong.
    let refused = decoder.decode(Side::Server, &mut bytes, BYTES);
    assert_eq!(refused, Err(FrameError::InvalidUtf8));
}

#[test]
fn an_invalid_byte_deep_in_a_piece_is_found_before_the_frame_is_whole() {
    for good in [0, 1, 509, 510, 511, 512, 513, 1023, 1024, 5000] {
        let payload = [
            "x".repeat(good).as_bytes(),
            "é😀".as_bytes(),
            &[0xFF],
            &[b'y'; 600],
        ]
        .concat();
        let mut bytes = masked(0x81, &payload);
        let len = bytes.len() - 1;
        let mut decoder = Decoder::default();
        let result = decoder.decode(Side::Server, &mut bytes[..len], 10_000);
        assert_eq!(result, Err(FrameError::InvalidUtf8), "{good}");
    }
}

#[test]
fn a_text_that_ends_inside_a_character_is_refused_only_once_it_ends() {
    let half = &"é".as_bytes()[..1];
    let begun = masked(0x01, half);
    assert_eq!(read(Side::Server, &begun).1, End::Open { unread: 0 });
    let ended = [&begun[..], &masked(0x80, b"")].concat();
    assert_eq!(
        read(Side::Server, &ended).1,
        End::Failed(FrameError::InvalidUtf8)
    );
    assert_eq!(
        read(Side::Server, &masked(0x81, half)).1,
        End::Failed(FrameError::InvalidUtf8)
    );
}

#[test]
fn the_memory_of_a_fragmented_message_is_given_back() {
    let mut bytes = [masked(0x01, b"a"), masked(0x80, b"b")].concat();
    let mut decoder = Decoder::default();
    let Decoded::Frame {
        consumed,
        message: None,
    } = decoder.decode(Side::Server, &mut bytes, 10).unwrap()
    else {
        panic!("the first fragment completes nothing")
    };
    assert!(decoder.is_mid_message());
    let decoded = decoder
        .decode(Side::Server, &mut bytes[consumed..], 10)
        .unwrap();
    assert_eq!(
        decoded,
        Decoded::Frame {
            consumed: 7,
            message: Some(Message::Text("ab"))
        }
    );
    assert!(!decoder.is_mid_message());
    decoder.decode(Side::Server, &mut [], 10).unwrap();
    assert_eq!(decoder, Decoder::default());
    assert_eq!(size_of::<Decoder>(), 2 * size_of::<usize>());
}

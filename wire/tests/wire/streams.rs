//! Streams of frames to test with: how they are made, and how they are read.

use muster_wire::frame::{Decoded, Decoder, FrameError, Message, Side};
use proptest::{collection::vec, prelude::*, sample::Index};

/// How often a property is tried: `PROPTEST_CASES` times, otherwise `cases`. A
/// failure prints the smallest input that fails.
pub(crate) fn tries(cases: u32) -> ProptestConfig {
    let mut config = ProptestConfig::default();
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = cases;
    }
    config.failure_persistence = None;
    config
}

/// A message, kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Owned {
    Text(String),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Option<(u16, String)>),
}

impl From<Message<'_>> for Owned {
    fn from(message: Message<'_>) -> Self {
        match message {
            Message::Text(text) => Self::Text(text.to_owned()),
            Message::Binary(bytes) => Self::Binary(bytes.to_vec()),
            Message::Ping(bytes) => Self::Ping(bytes.to_vec()),
            Message::Pong(bytes) => Self::Pong(bytes.to_vec()),
            Message::Close(close) => {
                Self::Close(close.map(|close| (close.code.0, close.reason.to_owned())))
            }
        }
    }
}

/// How reading a stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// The input is used up but for so many bytes of an unfinished frame.
    Open {
        unread: usize,
    },
    /// After a close frame.
    Closed,
    Failed(FrameError),
}

/// A connection's inbound half, as a worker keeps it.
#[derive(Debug)]
pub(crate) struct Inbound {
    pub(crate) decoder: Decoder,
    pub(crate) unread: Vec<u8>,
    pub(crate) messages: Vec<Owned>,
    pub(crate) consumed: usize,
    pub(crate) end: End,
    side: Side,
    message_bytes_max: usize,
}

impl Inbound {
    pub(crate) fn new(side: Side, message_bytes_max: usize) -> Self {
        Self {
            decoder: Decoder::default(),
            unread: Vec::new(),
            messages: Vec::new(),
            consumed: 0,
            end: End::Open { unread: 0 },
            side,
            message_bytes_max,
        }
    }

    /// Feeds a piece; false once the stream has ended.
    pub(crate) fn feed(&mut self, piece: &[u8]) -> bool {
        if !matches!(self.end, End::Open { .. }) {
            return false;
        }
        self.unread.extend_from_slice(piece);
        loop {
            let before = self.unread.clone();
            match self
                .decoder
                .decode(self.side, &mut self.unread, self.message_bytes_max)
            {
                Ok(Decoded::Incomplete { needed }) => {
                    assert!(needed > before.len(), "the hint promises progress");
                    assert_eq!(self.unread, before, "an incomplete frame is left untouched");
                    self.end = End::Open {
                        unread: self.unread.len(),
                    };
                    return true;
                }
                Ok(Decoded::Frame { consumed, message }) => {
                    let message = message.map(Owned::from);
                    self.unread.drain(..consumed);
                    self.consumed += consumed;
                    if matches!(message, Some(Owned::Close(_))) {
                        self.end = End::Closed;
                    }
                    self.messages.extend(message);
                    if self.end == End::Closed {
                        return false;
                    }
                }
                Err(error) => {
                    self.end = End::Failed(error);
                    return false;
                }
            }
        }
    }
}

/// One frame, right or wrong.
#[derive(Debug, Clone)]
pub(crate) struct RawFrame {
    pub(crate) first: u8,
    pub(crate) mask: Option<[u8; 4]>,
    pub(crate) payload: Vec<u8>,
    /// Bytes of the length beyond the second byte: 0, 2 or 8, if it fits.
    pub(crate) length_bytes: usize,
}

impl RawFrame {
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        let len = self.payload.len();
        let masked = if self.mask.is_some() { 0x80 } else { 0 };
        out.push(self.first);
        match (self.length_bytes, u8::try_from(len), u16::try_from(len)) {
            (0, Ok(len @ 0..=125), _) => out.push(masked | len),
            (0 | 2, _, Ok(len)) => {
                out.push(masked | 126);
                out.extend(len.to_be_bytes());
            }
            _ => {
                out.push(masked | 127);
                out.extend((len as u64).to_be_bytes());
            }
        }
        let mask = self.mask.unwrap_or_default();
        out.extend(self.mask.iter().flatten());
        out.extend(
            self.payload
                .iter()
                .zip(mask.iter().cycle())
                .map(|(byte, key)| byte ^ key),
        );
    }
}

/// Payloads that are text, nearly text, or anything.
fn payload() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => "[a-zκόσ😀\u{800}\u{FFFF}]{0,40}".prop_map(String::into_bytes),
        1 => vec(any::<u8>(), 0..20),
        1 => (vec(Just(b'x'), 0..200), Just("é".as_bytes())).prop_map(|(mut bytes, end)| {
            bytes.extend(end);
            bytes
        }),
        1 => (120..130_usize).prop_map(|len| vec![b'y'; len]),
    ]
}

fn frame(first: u8, payload: Vec<u8>, mask: [u8; 4]) -> RawFrame {
    RawFrame {
        first,
        mask: Some(mask),
        payload,
        length_bytes: 0,
    }
}

fn control() -> impl Strategy<Value = RawFrame> {
    let opcode = prop_oneof![Just(0x89_u8), Just(0x8A)];
    (opcode, vec(any::<u8>(), 0..126), any::<[u8; 4]>())
        .prop_map(|(first, payload, mask)| frame(first, payload, mask))
}

/// A text or binary message, cut anywhere into fragments (characters too), with
/// control frames in between.
fn message() -> impl Strategy<Value = Vec<RawFrame>> {
    let cuts = vec((any::<Index>(), proptest::option::of(control())), 0..4);
    (
        prop_oneof![3 => Just(1_u8), 1 => Just(2)],
        payload(),
        cuts,
        any::<[u8; 4]>(),
    )
        .prop_map(|(opcode, payload, cuts, mask)| {
            let mut at: Vec<_> = cuts
                .iter()
                .map(|(index, _)| index.index(payload.len() + 1))
                .collect();
            at.sort_unstable();
            at.push(payload.len());
            let mut frames = Vec::new();
            let mut from = 0;
            for (i, to) in at.iter().copied().enumerate() {
                let opcode = if i == 0 { opcode } else { 0 };
                let is_final = if i + 1 == at.len() { 0x80 } else { 0 };
                frames.push(frame(is_final | opcode, payload[from..to].to_vec(), mask));
                frames.extend(cuts.get(i).and_then(|(_, control)| control.clone()));
                from = to;
            }
            frames
        })
}

fn close() -> impl Strategy<Value = RawFrame> {
    let code = prop_oneof![Just(1000_u16), Just(4001), 995..1020_u16, 0..5100_u16];
    let reason =
        prop_oneof![3 => "[a-zé]{0,60}".prop_map(String::into_bytes), 1 => vec(any::<u8>(), 0..5)];
    let payload = prop_oneof![
        4 => (code, reason).prop_map(|(code, mut reason)| {
            reason.splice(0..0, code.to_be_bytes());
            reason.truncate(125);
            reason
        }),
        1 => vec(any::<u8>(), 0..2),
    ];
    (payload, any::<[u8; 4]>()).prop_map(|(payload, mask)| frame(0x88, payload, mask))
}

/// A frame with anything in it.
fn any_frame() -> impl Strategy<Value = RawFrame> {
    let mask = prop_oneof![9 => any::<[u8; 4]>().prop_map(Some), 1 => Just(None)];
    let length_bytes = prop_oneof![Just(0_usize), Just(2), Just(8)];
    (any::<u8>(), mask, payload(), length_bytes).prop_map(|(first, mask, payload, length_bytes)| {
        RawFrame {
            first,
            mask,
            payload,
            length_bytes,
        }
    })
}

/// Whole frames: mostly good messages, sometimes something else at the end.
pub(crate) fn frames() -> impl Strategy<Value = Vec<RawFrame>> {
    let good = vec(
        prop_oneof![4 => message(), 1 => control().prop_map(|f| vec![f])],
        0..6,
    );
    let last = prop_oneof![
        2 => Just(Vec::new()),
        2 => close().prop_map(|frame| vec![frame]),
        2 => any_frame().prop_map(|frame| vec![frame]),
        1 => message().prop_map(|mut frames| {
            frames.remove(0);
            frames
        }),
        1 => (message(), message()).prop_map(|(mut begun, inside)| {
            begun.truncate(1);
            begun[0].first &= 0x7F;
            begun.extend(inside);
            begun
        }),
    ];
    (good, last).prop_map(|(good, last)| good.into_iter().flatten().chain(last).collect())
}

/// Bytes of frames, some of them with single bytes changed.
pub(crate) fn stream() -> impl Strategy<Value = Vec<u8>> {
    let changes = prop_oneof![
        2 => Just(Vec::new()),
        1 => vec((any::<Index>(), any::<u8>()), 1..3),
    ];
    (frames(), changes).prop_map(|(frames, changes)| {
        let mut bytes = Vec::new();
        for frame in &frames {
            frame.write(&mut bytes);
        }
        for (at, value) in changes {
            if !bytes.is_empty() {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
        }
        bytes
    })
}

//! Frames that arrive.

use serde::{Deserialize, Serialize};

use super::{
    CONTROL_PAYLOAD_BYTES_MAX, Opcode,
    header::{Header, Limits, Parsed},
    mask,
};
use crate::close::CloseCode;

/// What is known about a connection's inbound half beside its unread bytes.
///
/// Two words when no fragmented message is under way.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decoder {
    /// The fragmented message that has begun.
    fragments: Option<Box<Fragments>>,
    /// How many bytes of the text message under way (its fragments and what is
    /// there of the next frame) are known to be UTF-8; ends at a character
    /// boundary. Only saves work: 0 is always right.
    checked: usize,
}

/// The payloads of a message's fragments so far, unmasked and joined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Fragments {
    is_text: bool,
    /// The message was given out and its bytes can go.
    is_done: bool,
    #[serde(with = "crate::octets")]
    bytes: Vec<u8>,
}

/// Which end of the connection decodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Expects masked frames.
    Server,
    /// Expects unmasked frames.
    Client,
}

/// What [`Decoder::decode`] found at the front of the input.
#[derive(Debug, PartialEq, Eq)]
pub enum Decoded<'a> {
    /// No whole frame yet.
    Incomplete {
        /// Bytes that the input must have at least before a frame can be whole;
        /// a hint for reserving, never beyond the message limit and a header.
        needed: usize,
    },
    /// One frame was consumed.
    Frame {
        /// Bytes of the input it took.
        consumed: usize,
        /// What it completed; nothing, if it is a fragment before the last.
        message: Option<Message<'a>>,
    },
}

/// A whole message or a control frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message<'a> {
    /// Text.
    Text(&'a str),
    /// Bytes.
    Binary(&'a [u8]),
    /// To be answered with a pong with the same payload.
    Ping(&'a [u8]),
    /// The answer to a ping, or a sign of life nobody asked for.
    Pong(&'a [u8]),
    /// The last frame; nothing after it counts. Without a payload it stands for
    /// [`CloseCode::NO_STATUS`].
    Close(Option<Close<'a>>),
}

/// The payload of a close frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Close<'a> {
    /// The status.
    pub code: CloseCode,
    /// Any text; often empty.
    pub reason: &'a str,
}

/// Why the input cannot be decoded; the connection must be closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A bit that only extensions use.
    #[error("a reserved bit is set")]
    ReservedBit,
    /// An operation code without a meaning.
    #[error("operation code {0:#x} is reserved")]
    ReservedOpcode(u8),
    /// Clients must mask.
    #[error("a client's frame is not masked")]
    Unmasked,
    /// Servers must not mask.
    #[error("a server's frame is masked")]
    Masked,
    /// A close, ping or pong in fragments.
    #[error("a control frame is fragmented")]
    FragmentedControl,
    /// A close, ping or pong with more than 125 bytes.
    #[error("a control frame is longer than {CONTROL_PAYLOAD_BYTES_MAX} bytes")]
    ControlTooLong,
    /// A continuation of nothing.
    #[error("a continuation frame without a message that began")]
    NothingToContinue,
    /// A new message before the last fragment of the one before.
    #[error("a new message inside a fragmented one")]
    InsideFragmented,
    /// A length with its highest bit set.
    #[error("the payload length is not valid")]
    InvalidLength,
    /// A close frame with one byte of payload.
    #[error("a close frame with half a code")]
    HalfCloseCode,
    /// A code that must not be sent.
    #[error("{0} is not a close code that may be sent")]
    InvalidCloseCode(CloseCode),
    /// A text or a close reason that is not UTF-8.
    #[error("the text is not UTF-8")]
    InvalidUtf8,
    /// The message is or becomes longer than allowed.
    #[error("the message has more than {message_bytes_max} bytes")]
    TooBig {
        /// The limit it broke.
        message_bytes_max: usize,
    },
}

impl FrameError {
    /// The close code that the other end is told.
    #[must_use]
    pub const fn close_code(&self) -> CloseCode {
        match self {
            Self::InvalidUtf8 => CloseCode::INVALID_PAYLOAD,
            Self::TooBig { .. } => CloseCode::TOO_BIG,
            Self::ReservedBit
            | Self::ReservedOpcode(_)
            | Self::Unmasked
            | Self::Masked
            | Self::FragmentedControl
            | Self::ControlTooLong
            | Self::NothingToContinue
            | Self::InsideFragmented
            | Self::InvalidLength
            | Self::HalfCloseCode
            | Self::InvalidCloseCode(_) => CloseCode::PROTOCOL,
        }
    }
}

impl Decoder {
    /// Consumes at most one whole frame from the front of `input` and unmasks it
    /// in place; the bytes of an incomplete frame are left as they are.
    ///
    /// Call it again with the rest until it answers [`Decoded::Incomplete`]; that
    /// also gives back the memory of a fragmented message that was read. How the
    /// input was cut into pieces never changes what is decoded. Errors are found
    /// at the first byte that cannot be right, before the frame is whole.
    ///
    /// `message_bytes_max` limits a message's payload, its fragments together.
    ///
    /// # Errors
    /// After an error the connection must be closed and nothing more be decoded.
    pub fn decode<'a>(
        &'a mut self,
        side: Side,
        input: &'a mut [u8],
        message_bytes_max: usize,
    ) -> Result<Decoded<'a>, FrameError> {
        if self
            .fragments
            .as_ref()
            .is_some_and(|fragments| fragments.is_done)
        {
            self.fragments = None;
        }
        let limits = Limits {
            begun: self.begun(),
            message_bytes_max,
        };
        let header = match Header::parse(input, side, &limits)? {
            Parsed::Incomplete { needed } => return Ok(Decoded::Incomplete { needed }),
            Parsed::Whole(header) => header,
        };
        let end = header.len + header.payload_len;
        if input.len() < end {
            self.check_prefix(&header, &input[header.len..])?;
            return Ok(Decoded::Incomplete { needed: end });
        }
        let payload = &mut input[header.len..end];
        if let Some(mask) = header.mask {
            mask::apply(payload, mask);
        }
        let message = if header.opcode.is_control() {
            Some(control(header.opcode, payload)?)
        } else {
            self.data(&header, payload)?
        };
        Ok(Decoded::Frame {
            consumed: end,
            message,
        })
    }

    /// Whether a fragmented message has begun and has not ended.
    #[must_use]
    pub fn is_mid_message(&self) -> bool {
        self.begun().is_some()
    }

    /// Bytes of the fragmented message so far.
    fn begun(&self) -> Option<usize> {
        self.fragments
            .as_ref()
            .filter(|fragments| !fragments.is_done)
            .map(|fragments| fragments.bytes.len())
    }

    /// Takes a whole data frame.
    fn data<'a>(
        &'a mut self,
        header: &Header,
        payload: &'a [u8],
    ) -> Result<Option<Message<'a>>, FrameError> {
        if header.is_final && self.fragments.is_none() {
            self.checked = 0;
            return message(header.opcode == Opcode::Text, payload).map(Some);
        }
        let fragments = self.fragments.get_or_insert_with(|| {
            Box::new(Fragments {
                is_text: header.opcode == Opcode::Text,
                is_done: false,
                bytes: Vec::new(),
            })
        });
        fragments.bytes.extend_from_slice(payload);
        if header.is_final {
            self.checked = 0;
            fragments.is_done = true;
            return message(fragments.is_text, &fragments.bytes).map(Some);
        }
        if fragments.is_text {
            let from = self.checked.min(fragments.bytes.len());
            self.checked = from + valid_prefix(&fragments.bytes[from..])?;
        }
        Ok(None)
    }

    /// Looks for invalid UTF-8 in what is there of an incomplete frame.
    fn check_prefix(&mut self, header: &Header, masked: &[u8]) -> Result<(), FrameError> {
        let (is_text, before) = match (&self.fragments, header.opcode) {
            (Some(fragments), Opcode::Continuation) => (fragments.is_text, &*fragments.bytes),
            (_, opcode) => (opcode == Opcode::Text, &[][..]),
        };
        if !is_text {
            return Ok(());
        }
        let total = before.len() + masked.len();
        self.checked = self.checked.min(total);
        let mut chunk = [0; CHECK_CHUNK_BYTES];
        loop {
            let len = copy_plain(&mut chunk, before, masked, header.mask, self.checked);
            let valid = valid_prefix(&chunk[..len])?;
            self.checked += valid;
            // What is left is at most the beginning of one character.
            if valid == 0 || self.checked == total {
                return Ok(());
            }
        }
    }
}

/// Bytes of an incomplete frame that are unmasked and checked at a time; more
/// than a character has.
const CHECK_CHUNK_BYTES: usize = 512;

/// Copies a message's bytes from position `from` on, the payload unmasked.
fn copy_plain(
    chunk: &mut [u8; CHECK_CHUNK_BYTES],
    before: &[u8],
    masked: &[u8],
    mask: Option<[u8; 4]>,
    from: usize,
) -> usize {
    let mut len = 0;
    if let Some(rest) = before.get(from..) {
        len = rest.len().min(chunk.len());
        chunk[..len].copy_from_slice(&rest[..len]);
    }
    let offset = (from + len).saturating_sub(before.len());
    let rest = masked.get(offset..).unwrap_or_default();
    let taken = rest.len().min(chunk.len() - len);
    let plain = &mut chunk[len..len + taken];
    plain.copy_from_slice(&rest[..taken]);
    if let Some(mask) = mask {
        mask::apply(plain, mask::rotate(mask, offset));
    }
    len + taken
}

/// How many bytes are whole characters; an unfinished one may follow.
fn valid_prefix(bytes: &[u8]) -> Result<usize, FrameError> {
    match std::str::from_utf8(bytes) {
        Ok(_) => Ok(bytes.len()),
        Err(error) if error.error_len().is_none() => Ok(error.valid_up_to()),
        Err(_) => Err(FrameError::InvalidUtf8),
    }
}

fn text(bytes: &[u8]) -> Result<&str, FrameError> {
    std::str::from_utf8(bytes).map_err(|_| FrameError::InvalidUtf8)
}

fn message(is_text: bool, payload: &[u8]) -> Result<Message<'_>, FrameError> {
    if is_text {
        text(payload).map(Message::Text)
    } else {
        Ok(Message::Binary(payload))
    }
}

fn control(opcode: Opcode, payload: &[u8]) -> Result<Message<'_>, FrameError> {
    match opcode {
        Opcode::Ping => Ok(Message::Ping(payload)),
        Opcode::Pong => Ok(Message::Pong(payload)),
        Opcode::Close | Opcode::Continuation | Opcode::Text | Opcode::Binary => {
            close(payload).map(Message::Close)
        }
    }
}

fn close(payload: &[u8]) -> Result<Option<Close<'_>>, FrameError> {
    match *payload {
        [] => Ok(None),
        [_] => Err(FrameError::HalfCloseCode),
        [high, low, ref reason @ ..] => {
            let code = CloseCode(u16::from_be_bytes([high, low]));
            if !code.is_sendable() {
                return Err(FrameError::InvalidCloseCode(code));
            }
            Ok(Some(Close {
                code,
                reason: text(reason)?,
            }))
        }
    }
}

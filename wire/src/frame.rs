//! WebSocket frames (RFC 6455): what arrives is decoded in place, what leaves is
//! one allocation that any number of connections can share.
//!
//! A frame is consumed only when it is whole. So everything that is known about
//! the inbound half of a connection is its unread bytes and a [`Decoder`], both
//! plain data, and a connection can be handed over between any two bytes.

mod decode;
mod encode;
mod header;
mod mask;

pub use decode::{Close, Decoded, Decoder, FrameError, Message, Side};
pub use encode::{
    CLOSE_REASON_BYTES_MAX, PING_V2, binary_frame, close_frame, masked_close_frame, masked_frame,
    ping_frame, pong_frame, text_frame, text_frame_from,
};

/// Longest payload of a close, ping or pong frame, in bytes.
pub const CONTROL_PAYLOAD_BYTES_MAX: usize = 125;

/// Longest frame header, in bytes.
pub const HEADER_BYTES_MAX: usize = 14;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opcode {
    /// A further fragment of the message that has begun.
    Continuation,
    /// UTF-8 text, or its first fragment.
    Text,
    /// Any bytes, or their first fragment.
    Binary,
    /// The last frame of its direction.
    Close,
    /// Asks for a pong with the same payload.
    Ping,
    /// Answers a ping.
    Pong,
}

impl Opcode {
    const fn from_bits(bits: u8) -> Option<Self> {
        match bits {
            0x0 => Some(Self::Continuation),
            0x1 => Some(Self::Text),
            0x2 => Some(Self::Binary),
            0x8 => Some(Self::Close),
            0x9 => Some(Self::Ping),
            0xA => Some(Self::Pong),
            _ => None,
        }
    }

    const fn bits(self) -> u8 {
        match self {
            Self::Continuation => 0x0,
            Self::Text => 0x1,
            Self::Binary => 0x2,
            Self::Close => 0x8,
            Self::Ping => 0x9,
            Self::Pong => 0xA,
        }
    }

    const fn is_control(self) -> bool {
        matches!(self, Self::Close | Self::Ping | Self::Pong)
    }
}

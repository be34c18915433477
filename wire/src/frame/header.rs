//! The header of a frame that arrives, and everything it can be refused for.

use super::{CONTROL_PAYLOAD_BYTES_MAX, FrameError, Opcode, Side};

/// What the header is checked against.
pub(super) struct Limits {
    /// Bytes of the fragmented message so far, if one has begun.
    pub(super) begun: Option<usize>,
    pub(super) message_bytes_max: usize,
}

pub(super) struct Header {
    pub(super) is_final: bool,
    pub(super) opcode: Opcode,
    pub(super) mask: Option<[u8; 4]>,
    /// Bytes of the header itself.
    pub(super) len: usize,
    pub(super) payload_len: usize,
}

pub(super) enum Parsed {
    Incomplete { needed: usize },
    Whole(Header),
}

impl Header {
    /// Reads a header. Every check is made as soon as its byte is there and in
    /// the bytes' order, so that the error does not depend on what has arrived.
    pub(super) fn parse(input: &[u8], side: Side, limits: &Limits) -> Result<Parsed, FrameError> {
        let Some((&first, rest)) = input.split_first() else {
            return Ok(Parsed::Incomplete { needed: 2 });
        };
        let is_final = first & 0x80 != 0;
        let opcode = check_first(first, limits)?;
        let Some((&second, rest)) = rest.split_first() else {
            return Ok(Parsed::Incomplete { needed: 2 });
        };
        let is_masked = second & 0x80 != 0;
        let short = check_second(second, side, opcode)?;
        let mask_len = if is_masked { 4 } else { 0 };
        let (length, rest) = match short {
            126 => match rest.split_first_chunk::<2>() {
                Some((bytes, rest)) => (u64::from(u16::from_be_bytes(*bytes)), rest),
                None => {
                    return Ok(Parsed::Incomplete {
                        needed: 4 + mask_len,
                    });
                }
            },
            127 => match rest.split_first_chunk::<8>() {
                Some((bytes, rest)) => (u64::from_be_bytes(*bytes), rest),
                None => {
                    return Ok(Parsed::Incomplete {
                        needed: 10 + mask_len,
                    });
                }
            },
            short => (u64::from(short), rest),
        };
        let payload_len = check_length(length, opcode, limits)?;
        let len = input.len() - rest.len() + mask_len;
        let mask = match (is_masked, rest.first_chunk::<4>()) {
            (false, _) => None,
            (true, Some(mask)) => Some(*mask),
            (true, None) => {
                return Ok(Parsed::Incomplete {
                    needed: len + payload_len,
                });
            }
        };
        Ok(Parsed::Whole(Self {
            is_final,
            opcode,
            mask,
            len,
            payload_len,
        }))
    }
}

fn check_first(first: u8, limits: &Limits) -> Result<Opcode, FrameError> {
    if first & 0x70 != 0 {
        return Err(FrameError::ReservedBit);
    }
    let bits = first & 0x0F;
    let opcode = Opcode::from_bits(bits).ok_or(FrameError::ReservedOpcode(bits))?;
    match (opcode, limits.begun) {
        (Opcode::Continuation, None) => Err(FrameError::NothingToContinue),
        (Opcode::Text | Opcode::Binary, Some(_)) => Err(FrameError::InsideFragmented),
        (opcode, _) if opcode.is_control() && first & 0x80 == 0 => {
            Err(FrameError::FragmentedControl)
        }
        (opcode, _) => Ok(opcode),
    }
}

/// Answers the seven bits of the length that stand in the second byte.
fn check_second(second: u8, side: Side, opcode: Opcode) -> Result<u8, FrameError> {
    match (side, second & 0x80 != 0) {
        (Side::Server, false) => return Err(FrameError::Unmasked),
        (Side::Client, true) => return Err(FrameError::Masked),
        (Side::Server, true) | (Side::Client, false) => {}
    }
    let short = second & 0x7F;
    if opcode.is_control() && usize::from(short) > CONTROL_PAYLOAD_BYTES_MAX {
        return Err(FrameError::ControlTooLong);
    }
    Ok(short)
}

fn check_length(length: u64, opcode: Opcode, limits: &Limits) -> Result<usize, FrameError> {
    // RFC 6455 section 5.2: the most significant bit must be 0.
    if length >> 63 != 0 {
        return Err(FrameError::InvalidLength);
    }
    let message_bytes_max = limits.message_bytes_max;
    let too_big = FrameError::TooBig { message_bytes_max };
    let length = usize::try_from(length).map_err(|_| too_big)?;
    if opcode.is_control() {
        return Ok(length);
    }
    let room = message_bytes_max.saturating_sub(limits.begun.unwrap_or(0));
    if length > room {
        Err(too_big)
    } else {
        Ok(length)
    }
}

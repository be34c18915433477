//! Frames that leave.

use bytes::Bytes;

use super::{CONTROL_PAYLOAD_BYTES_MAX, HEADER_BYTES_MAX, Opcode, mask};
use crate::close::CloseCode;

/// The ping and the pong of protocol version 2: an empty text frame, unmasked.
pub const PING_V2: &[u8] = &[0x81, 0x00];

/// Longest reason in a close frame, in bytes of UTF-8.
pub const CLOSE_REASON_BYTES_MAX: usize = CONTROL_PAYLOAD_BYTES_MAX - 2;

/// A text frame; `payload` must be UTF-8, which the receiver checks.
#[must_use]
pub fn text_frame(payload: &[u8]) -> Bytes {
    frame(Opcode::Text, &[payload])
}

/// One text frame whose payload is all of `parts`, one after the other.
#[must_use]
pub fn text_frame_from(parts: &[&[u8]]) -> Bytes {
    frame(Opcode::Text, parts)
}

/// A binary frame.
#[must_use]
pub fn binary_frame(payload: &[u8]) -> Bytes {
    frame(Opcode::Binary, &[payload])
}

/// A ping frame; `payload` is cut to [`CONTROL_PAYLOAD_BYTES_MAX`] bytes.
#[must_use]
pub fn ping_frame(payload: &[u8]) -> Bytes {
    frame(Opcode::Ping, &[cut_control(payload)])
}

/// A pong frame; `payload` is cut to [`CONTROL_PAYLOAD_BYTES_MAX`] bytes.
#[must_use]
pub fn pong_frame(payload: &[u8]) -> Bytes {
    frame(Opcode::Pong, &[cut_control(payload)])
}

/// A close frame.
///
/// Without a code, or with one that must not be sent such as
/// [`CloseCode::NO_STATUS`], it is empty and the reason is left out. The reason
/// is cut to [`CLOSE_REASON_BYTES_MAX`] bytes at a character boundary.
#[must_use]
pub fn close_frame(code: Option<CloseCode>, reason: &str) -> Bytes {
    match close_payload(code, reason) {
        Some((code, reason)) => frame(Opcode::Close, &[&code, reason.as_bytes()]),
        None => frame(Opcode::Close, &[]),
    }
}

/// Appends a frame as clients send it, masked with `mask`.
///
/// The payload of a control frame is cut to [`CONTROL_PAYLOAD_BYTES_MAX`] bytes.
pub fn masked_frame(opcode: Opcode, payload: &[u8], mask: [u8; 4], out: &mut Vec<u8>) {
    let payload = if opcode.is_control() {
        cut_control(payload)
    } else {
        payload
    };
    masked_parts(opcode, &[payload], mask, out);
}

/// Appends a close frame as clients send it; as [`close_frame`] otherwise.
pub fn masked_close_frame(code: Option<CloseCode>, reason: &str, mask: [u8; 4], out: &mut Vec<u8>) {
    match close_payload(code, reason) {
        Some((code, reason)) => {
            masked_parts(Opcode::Close, &[&code, reason.as_bytes()], mask, out);
        }
        None => masked_parts(Opcode::Close, &[], mask, out),
    }
}

fn frame(opcode: Opcode, parts: &[&[u8]]) -> Bytes {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    let mut header = [0; HEADER_BYTES_MAX];
    let header = write_header(&mut header, opcode, len, 0);
    // Exactly as long as the frame, so that `Bytes` takes the allocation over.
    let mut out = Vec::with_capacity(header.len() + len);
    out.extend_from_slice(header);
    for part in parts {
        out.extend_from_slice(part);
    }
    out.into()
}

fn masked_parts(opcode: Opcode, parts: &[&[u8]], mask: [u8; 4], out: &mut Vec<u8>) {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    let mut header = [0; HEADER_BYTES_MAX];
    let header = write_header(&mut header, opcode, len, MASKED);
    out.reserve(header.len() + mask.len() + len);
    out.extend_from_slice(header);
    out.extend_from_slice(&mask);
    let start = out.len();
    for part in parts {
        out.extend_from_slice(part);
    }
    mask::apply(&mut out[start..], mask);
}

const FINAL: u8 = 0x80;
const MASKED: u8 = 0x80;

/// Writes the header of a final frame in the shortest form, without a mask key.
fn write_header(out: &mut [u8; HEADER_BYTES_MAX], opcode: Opcode, len: usize, masked: u8) -> &[u8] {
    out[0] = FINAL | opcode.bits();
    if let Ok(len @ 0..=125) = u8::try_from(len) {
        out[1] = masked | len;
        &out[..2]
    } else if let Ok(len) = u16::try_from(len) {
        out[1] = masked | 126;
        out[2..4].copy_from_slice(&len.to_be_bytes());
        &out[..4]
    } else {
        out[1] = masked | 127;
        out[2..10].copy_from_slice(&(len as u64).to_be_bytes());
        &out[..10]
    }
}

fn cut_control(payload: &[u8]) -> &[u8] {
    &payload[..payload.len().min(CONTROL_PAYLOAD_BYTES_MAX)]
}

fn close_payload(code: Option<CloseCode>, reason: &str) -> Option<([u8; 2], &str)> {
    let code = code.filter(|code| code.is_sendable())?;
    let mut end = reason.len().min(CLOSE_REASON_BYTES_MAX);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    Some((code.0.to_be_bytes(), &reason[..end]))
}

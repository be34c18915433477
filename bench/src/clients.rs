//! One connection: from the upgrade to its end, as bytes in and bytes out.

use std::{io::Write, net::SocketAddr};

use muster_wire::{
    close::CloseCode,
    frame::{Decoded, Decoder, Message, Opcode, Side, masked_frame},
};

use super::{options::Target, stamp::number};

const HANDSHAKE_CID: u64 = 1;
const SUBSCRIBE_CID: u64 = 2;
const MESSAGE_BYTES_MAX: usize = 16 << 20;
const HEAD_BYTES_MAX: usize = 16 << 10;

/// How far a connection has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Upgrading,
    Handshaking,
    Subscribing,
    Ready,
    Closed,
}

/// What arrived on a connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Event<'a> {
    /// Handshake and subscription are answered.
    Ready,
    /// An answer to a call of the caller's.
    Answer { rid: u64, is_error: bool },
    /// A `#publish` packet.
    Delivery(&'a [u8]),
    /// Another packet.
    Other,
    /// The connection is over; 1006 when it ended without a close frame.
    Closed(u16),
}

/// The protocol state of one connection.
#[derive(Debug)]
pub(super) struct Protocol {
    phase: Phase,
    /// The channel to subscribe to.
    channel: Option<String>,
    decoder: Decoder,
    mask: [u8; 4],
}

impl Protocol {
    /// Appends the upgrade request to `out`.
    pub(super) fn begin(
        target: &Target,
        channel: Option<String>,
        number: u32,
        out: &mut Vec<u8>,
    ) -> Self {
        let (addr, path): (SocketAddr, &str) = (target.addr, &target.path);
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {addr}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        );
        out.extend_from_slice(request.as_bytes());
        // Any mask will do; this one differs between connections.
        let mask = number.wrapping_mul(0x9E37_79B1).to_be_bytes();
        Self {
            phase: Phase::Upgrading,
            channel,
            decoder: Decoder::default(),
            mask,
        }
    }

    pub(super) fn is_ready(&self) -> bool {
        self.phase == Phase::Ready
    }

    /// Appends a text frame to `out`.
    pub(super) fn send(&self, text: &[u8], out: &mut Vec<u8>) {
        masked_frame(Opcode::Text, text, self.mask, out);
    }

    /// Appends a close frame that says that all went well.
    pub(super) fn send_close(&self, out: &mut Vec<u8>) {
        masked_frame(Opcode::Close, &1000_u16.to_be_bytes(), self.mask, out);
    }

    /// Takes what was read, appends what has to be written to `out`, and gives
    /// every event to `on`; the bytes used.
    pub(super) fn receive(
        &mut self,
        input: &mut [u8],
        out: &mut Vec<u8>,
        mut on: impl FnMut(Event<'_>),
    ) -> usize {
        let mut used = 0;
        if self.phase == Phase::Upgrading {
            used = match head_len(input) {
                None if input.len() < HEAD_BYTES_MAX => return 0,
                None => return self.close(CloseCode::ABNORMAL.0, input.len(), on),
                Some(len) => len,
            };
            if !input.starts_with(b"HTTP/1.1 101 ") {
                return self.close(CloseCode::ABNORMAL.0, input.len(), on);
            }
            self.phase = Phase::Handshaking;
            let handshake = format!(
                r##"{{"event":"#handshake","data":{{"authToken":null}},"cid":{HANDSHAKE_CID}}}"##
            );
            self.send(handshake.as_bytes(), out);
        }
        let mut decoder = std::mem::take(&mut self.decoder);
        while self.phase != Phase::Closed {
            match decoder.decode(Side::Client, &mut input[used..], MESSAGE_BYTES_MAX) {
                Ok(Decoded::Incomplete { .. }) => break,
                Ok(Decoded::Frame { consumed, message }) => {
                    used += consumed;
                    if let Some(message) = message {
                        self.take(message, out, &mut on);
                    }
                }
                Err(error) => return self.close(error.close_code().0, input.len(), on),
            }
        }
        self.decoder = decoder;
        used
    }

    fn close(&mut self, code: u16, used: usize, mut on: impl FnMut(Event<'_>)) -> usize {
        self.phase = Phase::Closed;
        on(Event::Closed(code));
        used
    }

    fn take(&mut self, message: Message<'_>, out: &mut Vec<u8>, on: &mut impl FnMut(Event<'_>)) {
        match message {
            // A ping of protocol version 2.
            Message::Text("") => self.send(b"", out),
            // A ping of version 1, which is not for us.
            Message::Text("#1") => {}
            Message::Text(text) => self.packet(text.as_bytes(), out, on),
            Message::Ping(payload) => masked_frame(Opcode::Pong, payload, self.mask, out),
            Message::Pong(_) | Message::Binary(_) => on(Event::Other),
            Message::Close(close) => {
                self.phase = Phase::Closed;
                on(Event::Closed(
                    close.map_or(CloseCode::NO_STATUS, |close| close.code).0,
                ));
            }
        }
    }

    fn packet(&mut self, packet: &[u8], out: &mut Vec<u8>, on: &mut impl FnMut(Event<'_>)) {
        let Some(rest) = packet.strip_prefix(br#"{"rid":"#) else {
            let is_delivery = packet.starts_with(br##"{"event":"#publish""##);
            return on(if is_delivery {
                Event::Delivery(packet)
            } else {
                Event::Other
            });
        };
        let Some((rid, rest)) = number(rest) else {
            return on(Event::Other);
        };
        let is_error = rest.starts_with(br#","error""#);
        match (self.phase, rid) {
            (Phase::Handshaking, HANDSHAKE_CID) if !is_error => self.handshaken(out, on),
            (Phase::Subscribing, SUBSCRIBE_CID) if !is_error => {
                self.phase = Phase::Ready;
                on(Event::Ready);
            }
            (_, HANDSHAKE_CID | SUBSCRIBE_CID) => on(Event::Other),
            (_, rid) => on(Event::Answer { rid, is_error }),
        }
    }

    fn handshaken(&mut self, out: &mut Vec<u8>, on: &mut impl FnMut(Event<'_>)) {
        let Some(channel) = &self.channel else {
            self.phase = Phase::Ready;
            return on(Event::Ready);
        };
        self.phase = Phase::Subscribing;
        let mut packet = Vec::new();
        write!(
            packet,
            r##"{{"event":"#subscribe","data":{{"channel":"{channel}"}},"cid":{SUBSCRIBE_CID}}}"##
        )
        .expect("a vector takes every byte");
        self.send(&packet, out);
    }
}

/// Bytes of the HTTP head at the front of `input`, if it is whole.
fn head_len(input: &[u8]) -> Option<usize> {
    input
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .map(|at| at + 4)
}

#[cfg(test)]
mod tests {
    use muster_wire::frame::{PING_V2, close_frame, text_frame};

    use super::*;

    fn connected(input: &[&[u8]]) -> (Vec<String>, Vec<u8>) {
        let target = "ws://127.0.0.1:1/x/".parse().unwrap();
        let mut out = Vec::new();
        let mut protocol = Protocol::begin(&target, Some("a".into()), 0, &mut out);
        out.clear();
        let mut all = b"HTTP/1.1 101 Switching Protocols\r\n\r\n".to_vec();
        input.iter().for_each(|frame| all.extend_from_slice(frame));
        let mut events = Vec::new();
        // One byte more at a time: how the input is cut does not matter.
        let (mut from, mut to) = (0, 0);
        while to < all.len() {
            to += 1;
            let used = protocol.receive(&mut all[from..to], &mut out, |event| {
                events.push(format!("{event:?}"));
            });
            from += used;
        }
        (events, out)
    }

    #[test]
    fn a_connection_is_ready_once_its_subscription_is_answered() {
        let (events, _) = connected(&[
            &text_frame(br#"{"rid":1,"data":{"id":"x"}}"#),
            &text_frame(br#"{"rid":2}"#),
            &text_frame(br#"{"rid":12}"#),
            &text_frame(br#"{"rid":13,"error":{"message":"x"}}"#),
        ]);
        assert_eq!(
            events,
            [
                "Ready",
                "Answer { rid: 12, is_error: false }",
                "Answer { rid: 13, is_error: true }"
            ]
        );
    }

    #[test]
    fn a_ping_is_answered_and_is_no_event() {
        let (events, out) = connected(&[PING_V2]);
        assert!(events.is_empty());
        // The handshake request and, after it, a masked empty text frame.
        assert_eq!(out[out.len() - 6..out.len() - 4], [0x81, 0x80]);
    }

    #[test]
    fn a_close_ends_everything_with_its_code() {
        let frame = close_frame(Some(CloseCode(4001)), "");
        assert_eq!(connected(&[&frame, PING_V2]).0, ["Closed(4001)"]);
    }

    #[test]
    fn a_refused_upgrade_is_a_closed_connection() {
        let target = "ws://127.0.0.1:1/x/".parse().unwrap();
        let mut protocol = Protocol::begin(&target, None, 0, &mut Vec::new());
        let mut head = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\n\r\n".to_vec();
        let mut closed = false;
        protocol.receive(&mut head, &mut Vec::new(), |event| {
            closed = event == Event::Closed(1006)
        });
        assert!(closed);
    }
}

//! Our frame decoder against tungstenite's: the same messages, accepted and
//! refused alike.
//!
//! Where they differ on purpose (we do what the `ws` package does):
//!
//! 1. We refuse at the first wrong byte; tungstenite waits for the frame's end.
//! 2. A close code that must not be sent is refused; tungstenite reports it as
//!    a close with 1002.
//! 3. A control frame whose length is not in the second byte is refused even if
//!    the length is small; tungstenite reads it.
//! 4. Close code 1014 is registered and accepted; tungstenite does not know it.
//! 5. Which of several mistakes is reported may differ.

use std::io::{self, Read, Write};

use muster_wire::frame::{FrameError, Side};
use proptest::prelude::*;
use tungstenite::{
    Error, WebSocket,
    protocol::{Message, Role, WebSocketConfig},
};

use crate::streams::{End, Inbound, Owned, stream, tries};

const MESSAGE_BYTES_MAX: usize = 150;

/// Reads from memory, then would block; forgets what is written.
struct Memory<'a>(&'a [u8]);

impl Read for Memory<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self.0.read(buf)? {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            len => Ok(len),
        }
    }
}

impl Write for Memory<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Open,
    Closed,
    Refused,
}

fn read_with_tungstenite(bytes: &[u8]) -> (Vec<Owned>, Verdict) {
    let config = WebSocketConfig::default()
        .max_message_size(Some(MESSAGE_BYTES_MAX))
        .max_frame_size(Some(MESSAGE_BYTES_MAX));
    let mut socket = WebSocket::from_raw_socket(Memory(bytes), Role::Server, Some(config));
    let mut messages = Vec::new();
    let verdict = loop {
        messages.push(match socket.read() {
            Ok(Message::Text(text)) => Owned::Text(text.as_str().to_owned()),
            Ok(Message::Binary(bytes)) => Owned::Binary(bytes.to_vec()),
            Ok(Message::Ping(bytes)) => Owned::Ping(bytes.to_vec()),
            Ok(Message::Pong(bytes)) => Owned::Pong(bytes.to_vec()),
            Ok(Message::Close(close)) => {
                let close = close.map(|c| (u16::from(c.code), c.reason.as_str().to_owned()));
                messages.push(Owned::Close(close));
                break Verdict::Closed;
            }
            Ok(Message::Frame(_)) => unreachable!("never read"),
            Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                break Verdict::Open;
            }
            Err(_) => break Verdict::Refused,
        });
    };
    (messages, verdict)
}

/// The unfinished frame at the end of `bytes`, filled with zeros to its end.
fn finish_frame(tail: &[u8]) -> Vec<u8> {
    let mut frame = tail.to_vec();
    if frame.len() == 1 {
        frame.push(0x80);
    }
    let length_bytes = match frame.get(1).map(|second| second & 0x7F) {
        Some(126) => 2,
        Some(127) => 8,
        _ => 0,
    };
    let header = 2 + length_bytes + if frame[1] & 0x80 == 0 { 0 } else { 4 };
    frame.resize(frame.len().max(header), 0);
    let len = match length_bytes {
        0 => usize::from(frame[1] & 0x7F),
        more => frame[2..2 + more]
            .iter()
            .fold(0, |len, byte| len << 8 | usize::from(*byte)),
    };
    // A longer one is refused for its header alone.
    frame.resize(frame.len().max(header + len.min(MESSAGE_BYTES_MAX)), 0);
    frame
}

fn is_long_control(frame: &[u8]) -> bool {
    matches!(frame, [first, second, ..] if first & 0x08 != 0 && second & 0x7F > 125)
}

proptest! {
    #![proptest_config(tries(1500))]

    #[test]
    fn tungstenite_reads_the_same(bytes in stream()) {
        let mut ours = Inbound::new(Side::Server, MESSAGE_BYTES_MAX);
        ours.feed(&bytes);
        let (mut messages, mut verdict) = read_with_tungstenite(&bytes);
        let tail = &bytes[ours.consumed..];
        match ours.end {
            // Difference 2.
            End::Failed(FrameError::InvalidCloseCode(_)) if verdict == Verdict::Closed => {
                prop_assert!(matches!(messages.pop(), Some(Owned::Close(Some((1002, _))))));
                verdict = Verdict::Refused;
            }
            // Difference 3.
            End::Failed(FrameError::ControlTooLong) if is_long_control(tail) => {
                messages.truncate(ours.messages.len());
                verdict = Verdict::Refused;
            }
            // Difference 1: with the frame's end tungstenite must refuse it too.
            End::Failed(_) if verdict == Verdict::Open => {
                let finished = [&bytes[..ours.consumed], &finish_frame(tail)].concat();
                (messages, verdict) = read_with_tungstenite(&finished);
            }
            // Difference 4.
            End::Closed if matches!(ours.messages.last(), Some(Owned::Close(Some((1014, _))))) => {
                prop_assert!(matches!(messages.pop(), Some(Owned::Close(Some((1002, _))))));
                messages.extend(ours.messages.last().cloned());
            }
            End::Open { .. } | End::Closed | End::Failed(_) => {}
        }
        let ours_verdict = match ours.end {
            End::Open { .. } => Verdict::Open,
            End::Closed => Verdict::Closed,
            End::Failed(_) => Verdict::Refused,
        };
        prop_assert_eq!(&ours.messages, &messages);
        prop_assert_eq!(ours_verdict, verdict, "{:?}", ours.end);
    }
}

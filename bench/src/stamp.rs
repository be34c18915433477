//! What every publication carries: where it belongs, its number, and when it
//! was meant to be sent.

use std::io::Write;

use super::clock::Micros;

/// The marks of one publication.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    pub(super) channel: u32,
    /// Which of the channel's publishers sent it.
    pub(super) publisher: u32,
    /// Counts one publisher's publications from 1 on.
    pub(super) sequence: u32,
    /// When the plan wanted it to be sent.
    pub(super) intended: Micros,
}

const START: &[u8] = br#"{"c":"#;

impl Stamp {
    /// Appends the publication's data.
    pub(super) fn write(self, padding: &str, out: &mut Vec<u8>) {
        let Self {
            channel,
            publisher,
            sequence,
            intended,
        } = self;
        let data = format_args!(
            r#"{{"c":{channel},"p":{publisher},"s":{sequence},"t":{intended},"x":"{padding}"}}"#
        );
        out.write_fmt(format_args!("{data}"))
            .expect("a vector takes every byte");
    }

    /// Finds the marks in a delivery; nothing, if it has none.
    pub(super) fn find(packet: &[u8]) -> Option<Self> {
        let at = packet
            .windows(START.len())
            .position(|window| window == START)?;
        let (channel, rest) = number(&packet[at + START.len()..])?;
        let (publisher, rest) = number(rest.strip_prefix(br#","p":"#)?)?;
        let (sequence, rest) = number(rest.strip_prefix(br#","s":"#)?)?;
        let (intended, _) = number(rest.strip_prefix(br#","t":"#)?)?;
        Some(Self {
            channel: channel.try_into().ok()?,
            publisher: publisher.try_into().ok()?,
            sequence: sequence.try_into().ok()?,
            intended,
        })
    }
}

/// The number at the front of `text`, and what follows it.
pub(super) fn number(text: &[u8]) -> Option<(u64, &[u8])> {
    let len = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (digits, rest) = text.split_at(len);
    let digits = std::str::from_utf8(digits).ok()?;
    Some((digits.parse().ok()?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_found_in_the_delivery_around_it() {
        let stamp = Stamp {
            channel: 7,
            publisher: 3,
            sequence: 12,
            intended: 1_234_567_890,
        };
        let mut packet = br##"{"event":"#publish","data":{"channel":"a","data":"##.to_vec();
        stamp.write("xxx", &mut packet);
        packet.extend_from_slice(b"}}");
        assert_eq!(Stamp::find(&packet), Some(stamp));
    }

    #[test]
    fn a_packet_without_a_stamp_has_none() {
        assert_eq!(Stamp::find(br#"{"rid":5}"#), None);
        assert_eq!(
            Stamp::find(br#"{"event":"x","data":{"c":1,"p":"a"}}"#),
            None
        );
    }
}

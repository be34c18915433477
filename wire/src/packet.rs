//! Client packets: SocketCluster's JSON objects, taken apart no further than
//! needed (socketcluster.md section 2).
//!
//! Members stay raw JSON text. Payloads are checked, never parsed into a tree:
//! lone surrogates, number spelling and depth all survive.

use std::{borrow::Cow, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, Visitor},
};
use serde_json::value::RawValue;

use crate::CallId;

/// What one WebSocket message from a client turned out to be.
#[derive(Debug)]
pub enum Incoming<'a> {
    /// The answer to a ping.
    Pong(Version),
    /// One packet, or several that came as an array.
    Packets(Packets<'a>),
    /// Neither (the reference decodes it as a plain string): ignored on an open
    /// session.
    Noise,
}

/// SocketCluster's protocol versions, which differ in their ping strings only
/// (socketcluster.md section 12).
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Version {
    /// Up to v14: `#1` and `#2`.
    One,
    /// From v15: empty messages.
    Two,
}

impl<'a> Incoming<'a> {
    /// Classifies a message's text.
    #[must_use]
    pub fn parse(text: &'a str) -> Self {
        match text {
            "" => return Self::Pong(Version::Two),
            "#2" => return Self::Pong(Version::One),
            _ => {}
        }
        match text.trim_ascii_start().as_bytes().first() {
            Some(b'{') => match serde_json::from_str(text) {
                Ok(packet) => Self::Packets(Packets::One(Some(packet))),
                Err(_) => Self::Noise,
            },
            Some(b'[') => match serde_json::from_str::<&RawValue>(text) {
                Ok(_) => Self::Packets(Packets::Batch(Batch { text, at: 0 })),
                Err(_) => Self::Noise,
            },
            _ => Self::Noise,
        }
    }
}

/// The packets of one message, in order.
#[derive(Debug)]
pub enum Packets<'a> {
    /// A message that is one object.
    One(Option<Packet<'a>>),
    /// A message that is an array.
    Batch(Batch<'a>),
}

impl<'a> Iterator for Packets<'a> {
    type Item = Packet<'a>;

    fn next(&mut self) -> Option<Packet<'a>> {
        match self {
            Self::One(packet) => packet.take(),
            Self::Batch(batch) => batch.next(),
        }
    }
}

/// The packets of an array, read one after another, so that a long one can be
/// left and gone on with later.
///
/// Elements that are no packet (`null`, numbers, nested arrays) come as
/// [`Packet::default`], which means nothing and does not affect the others.
#[derive(Debug)]
pub struct Batch<'a> {
    /// A valid JSON array.
    text: &'a str,
    /// Bytes of it that are done with.
    at: usize,
}

impl<'a> Batch<'a> {
    /// Goes on with an array of which `at` bytes are done with.
    #[must_use]
    pub fn resume(text: &'a str, at: usize) -> Self {
        Self { text, at }
    }

    /// Where to [resume](Self::resume).
    #[must_use]
    pub fn position(&self) -> usize {
        self.at
    }
}

impl<'a> Iterator for Batch<'a> {
    type Item = Packet<'a>;

    fn next(&mut self) -> Option<Packet<'a>> {
        let rest = self.text.get(self.at..)?.trim_ascii_start();
        // The bracket that opens the array, or the comma after an element; after
        // the one that closes it there is nothing to read.
        let rest = rest.strip_prefix(['[', ','])?;
        let mut values = serde_json::Deserializer::from_str(rest).into_iter::<&RawValue>();
        let raw = values.next()?.ok()?;
        self.at = self.text.len() - rest.len() + values.byte_offset();
        Some(serde_json::from_str(raw.get()).unwrap_or_default())
    }
}

/// One packet. Of a member that is given twice the last counts, as in
/// JavaScript; unknown members are skipped.
#[derive(Debug, Default, Clone)]
pub struct Packet<'a> {
    /// The event's name; absent when the member is absent or no string.
    pub event: Option<Cow<'a, str>>,
    /// Present also when it is `null`.
    pub data: Option<&'a RawValue>,
    /// Present only when it is a number; everything else makes the packet
    /// one-way.
    pub cid: Option<CallId>,
    /// Present when it is a number: the packet answers a call of ours.
    pub rid: Option<CallId>,
}

/// The `data` of `#subscribe` and `#publish`.
#[derive(Debug, Default)]
pub struct ChannelData<'a> {
    /// Absent when the member is absent, no string, or holds a lone surrogate.
    pub channel: Option<Cow<'a, str>>,
    /// Absent is not the same as `null`.
    pub data: Option<&'a RawValue>,
    /// Of a subscriber that wants positions: the last one it has, or `null`.
    pub since: Option<&'a RawValue>,
    /// Of a publication to such a subscriber.
    pub offset: Option<u64>,
}

impl<'a> ChannelData<'a> {
    /// Reads a packet's `data`; of anything but an object nothing is present.
    #[must_use]
    pub fn parse(data: Option<&'a RawValue>) -> Self {
        data.and_then(|raw| serde_json::from_str(raw.get()).ok())
            .unwrap_or_default()
    }
}

/// A raw JSON string's value; `None` for other types and for strings that are
/// not Unicode (a lone surrogate).
#[must_use]
pub fn string(raw: &RawValue) -> Option<Cow<'_, str>> {
    let inner = raw.get().strip_prefix('"')?.strip_suffix('"')?;
    if inner.contains('\\') {
        serde_json::from_str::<String>(raw.get())
            .ok()
            .map(Cow::Owned)
    } else {
        Some(Cow::Borrowed(inner))
    }
}

/// The members we know, by name. Read as bytes, because a name may hold a lone
/// surrogate.
enum Member {
    Event,
    Data,
    Cid,
    Rid,
    Channel,
    Since,
    Offset,
    Unknown,
}

impl<'de> Deserialize<'de> for Member {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Name;

        impl Visitor<'_> for Name {
            type Value = Member;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a member's name")
            }

            fn visit_bytes<E: serde::de::Error>(self, name: &[u8]) -> Result<Member, E> {
                Ok(match name {
                    b"event" => Member::Event,
                    b"data" => Member::Data,
                    b"cid" => Member::Cid,
                    b"rid" => Member::Rid,
                    b"channel" => Member::Channel,
                    b"since" => Member::Since,
                    b"offset" => Member::Offset,
                    _ => Member::Unknown,
                })
            }

            fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<Member, E> {
                self.visit_bytes(name.as_bytes())
            }
        }

        deserializer.deserialize_bytes(Name)
    }
}

impl<'de> Deserialize<'de> for Packet<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;

        impl<'de> Visitor<'de> for Members {
            type Value = Packet<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a packet object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Packet<'de>, A::Error> {
                let mut packet = Packet::default();
                while let Some(member) = map.next_key()? {
                    match member {
                        Member::Event => packet.event = string(map.next_value()?),
                        Member::Data => packet.data = Some(map.next_value()?),
                        Member::Cid => packet.cid = number(map.next_value()?),
                        Member::Rid => packet.rid = number(map.next_value()?),
                        Member::Channel | Member::Since | Member::Offset | Member::Unknown => {
                            map.next_value::<IgnoredAny>()?;
                        }
                    }
                }
                Ok(packet)
            }
        }

        deserializer.deserialize_map(Members)
    }
}

impl<'de> Deserialize<'de> for ChannelData<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;

        impl<'de> Visitor<'de> for Members {
            type Value = ChannelData<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with a channel")
            }

            fn visit_map<A: MapAccess<'de>>(
                self,
                mut map: A,
            ) -> Result<ChannelData<'de>, A::Error> {
                let mut data = ChannelData::default();
                while let Some(member) = map.next_key()? {
                    match member {
                        Member::Channel => data.channel = string(map.next_value()?),
                        Member::Data => data.data = Some(map.next_value()?),
                        Member::Since => data.since = Some(map.next_value()?),
                        Member::Offset => {
                            let offset: &RawValue = map.next_value()?;
                            data.offset = offset.get().parse().ok();
                        }
                        Member::Event | Member::Cid | Member::Rid | Member::Unknown => {
                            map.next_value::<IgnoredAny>()?;
                        }
                    }
                }
                Ok(data)
            }
        }

        deserializer.deserialize_map(Members)
    }
}

fn number(raw: &RawValue) -> Option<CallId> {
    CallId::from_json(raw.get())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cids(packets: impl Iterator<Item = Packet<'static>>) -> Vec<Option<String>> {
        packets
            .map(|packet| packet.cid.map(|cid| cid.to_string()))
            .collect()
    }

    #[test]
    fn an_array_can_be_left_after_any_element_and_gone_on_with() {
        let text = " [ {\"cid\":1} ,null,[{\"cid\":9}],\r\n5,\"x,]\" ,{\"cid\":-2}\t]  ";
        let Incoming::Packets(packets) = Incoming::parse(text) else {
            panic!("not an array of packets");
        };
        let whole = cids(packets);
        let expected = [Some("1"), None, None, None, None, Some("-2")];
        assert_eq!(whole, expected.map(|cid| cid.map(str::to_owned)));
        for split in 0..=whole.len() {
            let mut first = Batch::resume(text, 0);
            let mut seen = cids(first.by_ref().take(split));
            seen.extend(cids(Batch::resume(text, first.position())));
            assert_eq!(seen, whole, "left after {split}");
        }
    }

    #[test]
    fn an_array_that_is_not_whole_is_noise_and_an_empty_one_holds_nothing() {
        for text in ["[", "[1,]", "[1 2]", "[{]", "[] x"] {
            assert!(matches!(Incoming::parse(text), Incoming::Noise), "{text}");
        }
        for text in ["[]", " [ ] "] {
            assert_eq!(cids(Batch::resume(text, 0)).len(), 0);
        }
        assert_eq!(
            cids(Batch::resume("[1]", 99)).len(),
            0,
            "a position beyond the end"
        );
    }

    #[test]
    fn of_a_member_given_twice_the_last_counts() {
        let Incoming::Packets(mut packets) = Incoming::parse("{\"cid\":1,\"cid\":2}") else {
            panic!("not a packet");
        };
        assert_eq!(packets.next().unwrap().cid, CallId::from_json("2"));
    }
}

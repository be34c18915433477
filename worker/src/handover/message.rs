//! What two workers say to each other while clients go from one to the other.
//!
//! A message is one packet: its JSON, and for `Prepare` and `Announce` a body,
//! which is a file in memory when it is long. Everything about its form is
//! checked here.

use std::ops::RangeInclusive;

use muster_proto::HANDOVER_VERSION;
use muster_wire::snapshot::{Place, SNAPSHOT_VERSIONS};
use serde::{Deserialize, Serialize};

/// Connections that are handed over at once: with the body's, as many
/// descriptors as one packet may carry.
pub(crate) const BATCH_MAX: usize = 63;
/// Bytes of a packet: all of them fit into a socket's buffer together.
pub(crate) const PACKET_BYTES_MAX: usize = 64 * 1024;
/// Bytes of JSON beside a body, at most; the longest is a list of 63 reasons.
const JSON_BYTES_MAX: usize = 32 * 1024;
/// Bytes that a body may have within its packet.
pub(crate) const INLINE_BYTES_MAX: usize = PACKET_BYTES_MAX - JSON_BYTES_MAX - 4;
/// Bytes of a body at most: 63 clients with full queues and long messages under
/// way, several times over.
pub(crate) const BODY_BYTES_MAX: u64 = 1 << 30;
/// Bytes of a reason.
const REASON_BYTES_MAX: usize = 256;

/// From the worker that has the clients.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum FromGiver {
    /// First of all.
    Begin {
        version: u32,
        /// Versions of snapshots that it can write.
        oldest: u32,
        newest: u32,
        slot: u32,
        incarnation: u64,
        /// The other one is to take new clients from now on in its place.
        replace: bool,
    },
    /// Channels that clients which may come subscribe to.
    Announce { body: Body },
    /// These clients are frozen, and this is all about them. Their descriptors
    /// come along.
    Prepare {
        batch: u32,
        connections: usize,
        body: Body,
    },
    /// From here on those of the batch that were accepted are the other's.
    Commit { batch: u32 },
    /// The batch goes on where it was.
    Abort { batch: u32 },
    /// No client comes any more.
    End,
}

/// From the worker that gets them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum FromTaker {
    /// Answers `Begin`; snapshots have this version.
    Welcome { snapshots: u32 },
    /// It takes none, and why.
    Refused { reason: String },
    /// Answers `Announce`, once the channels' owners have its subscriptions, or
    /// the time for it is up.
    Subscribed,
    /// Answers `Prepare`: these connections, by their places in the batch, it
    /// does not take, and why.
    Prepared {
        batch: u32,
        refused: Vec<RefusedConnection>,
    },
    /// Answers `Commit`.
    Running { batch: u32 },
}

/// A connection that is not taken, for now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RefusedConnection {
    pub(crate) index: usize,
    pub(crate) reason: String,
}

/// Where a message's body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Body {
    pub(crate) bytes: u64,
    /// The last descriptor is it; otherwise it follows the JSON.
    pub(crate) in_file: bool,
}

/// What `Announce` carries.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Announced {
    pub(crate) places: Vec<Place>,
}

/// Why a packet is no message.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MessageError {
    #[error("it has {0} bytes: too short for a message")]
    Short(usize),
    #[error("its JSON has {json} of {len} bytes")]
    JsonLength { json: usize, len: usize },
    #[error("it is no message of this release")]
    Json(#[from] serde_json::Error),
    #[error("its body has {found} bytes instead of {expected}")]
    BodyLength { expected: u64, found: u64 },
    #[error("{0} bytes are too long for a message")]
    TooLong(usize),
}

/// A packet with the message and a body, which must fit.
pub(crate) fn encode(message: &impl Serialize, inline: &[u8]) -> Result<Vec<u8>, MessageError> {
    let json = serde_json::to_vec(message)?;
    let len = 4 + json.len() + inline.len();
    let json_len = u32::try_from(json.len())
        .ok()
        .filter(|_| len <= PACKET_BYTES_MAX);
    let json_len = json_len.ok_or(MessageError::TooLong(len))?;
    let mut packet = Vec::with_capacity(len);
    packet.extend_from_slice(&json_len.to_le_bytes());
    packet.extend_from_slice(&json);
    packet.extend_from_slice(inline);
    Ok(packet)
}

/// The message in a packet, and what follows it.
pub(crate) fn decode<'p, M: Deserialize<'p>>(
    packet: &'p [u8],
) -> Result<(M, &'p [u8]), MessageError> {
    let (json_len, rest) = packet
        .split_first_chunk::<4>()
        .ok_or(MessageError::Short(packet.len()))?;
    let json = usize::try_from(u32::from_le_bytes(*json_len)).unwrap_or(usize::MAX);
    let (json, inline) = rest
        .split_at_checked(json)
        .ok_or(MessageError::JsonLength {
            json,
            len: rest.len(),
        })?;
    Ok((serde_json::from_slice(json)?, inline))
}

/// A reason, cut to what a message has room for.
pub(crate) fn reason(text: &str) -> String {
    text.chars().take(REASON_BYTES_MAX / 4).collect()
}

/// The version of snapshots that a worker which writes `oldest` to `newest` is
/// to write for one that reads `reads`: the newest that both know.
pub(crate) fn agree(oldest: u32, newest: u32, reads: RangeInclusive<u32>) -> Option<u32> {
    let version = newest.min(*reads.end());
    (version >= oldest && version >= *reads.start()).then_some(version)
}

impl FromGiver {
    /// `Begin` of this release.
    pub(crate) fn begin(slot: u32, incarnation: u64, replace: bool) -> Self {
        Self::Begin {
            version: HANDOVER_VERSION,
            oldest: *SNAPSHOT_VERSIONS.start(),
            newest: *SNAPSHOT_VERSIONS.end(),
            slot,
            incarnation,
            replace,
        }
    }
}

impl FromTaker {
    /// The answer to `Begin` of another worker with these versions.
    pub(crate) fn answer(version: u32, oldest: u32, newest: u32) -> Self {
        if version != HANDOVER_VERSION {
            let reason = format!(
                "it speaks version {version} of the hand-over, this worker {HANDOVER_VERSION}"
            );
            return Self::Refused { reason };
        }
        match agree(oldest, newest, SNAPSHOT_VERSIONS) {
            Some(snapshots) => Self::Welcome { snapshots },
            None => Self::Refused {
                reason: format!(
                    "it writes snapshots of version {oldest} to {newest}, this worker reads {} to {}",
                    SNAPSHOT_VERSIONS.start(),
                    SNAPSHOT_VERSIONS.end()
                ),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use muster_wire::snapshot::SNAPSHOT_VERSION;

    use super::*;

    #[test]
    fn every_message_survives_its_packet() {
        let body = Body {
            bytes: 3,
            in_file: false,
        };
        let messages = [
            FromGiver::begin(3, u64::MAX, true),
            FromGiver::Announce { body },
            FromGiver::Prepare {
                batch: u32::MAX,
                connections: BATCH_MAX,
                body,
            },
            FromGiver::Commit { batch: 1 },
            FromGiver::Abort { batch: 1 },
            FromGiver::End,
        ];
        for message in messages {
            let packet = encode(&message, b"abc").unwrap();
            let (decoded, inline) = decode::<FromGiver>(&packet).unwrap();
            assert_eq!((decoded, inline), (message, &b"abc"[..]));
        }
    }

    #[test]
    fn the_longest_answer_fits_and_a_body_beside_it() {
        let refused = (0..BATCH_MAX).map(|index| RefusedConnection {
            index,
            reason: reason(&"\u{1}".repeat(1000)),
        });
        let answer = FromTaker::Prepared {
            batch: u32::MAX,
            refused: refused.collect(),
        };
        let packet = encode(&answer, &[0; INLINE_BYTES_MAX]).unwrap();
        assert!(packet.len() <= PACKET_BYTES_MAX);
        assert_eq!(decode::<FromTaker>(&packet).unwrap().0, answer);
        let error = encode(&answer, &[0; PACKET_BYTES_MAX]).unwrap_err();
        assert!(matches!(error, MessageError::TooLong(_)));
    }

    #[test]
    fn packets_that_are_cut_garbled_or_of_another_release_are_refused() {
        let packet = encode(&FromGiver::Commit { batch: 7 }, b"").unwrap();
        for len in 0..packet.len() {
            assert!(decode::<FromGiver>(&packet[..len]).is_err(), "{len}");
        }
        for garbage in [&[0xff; 100][..], b"\x02\0\0\0{}", b"\x09\0\0\0\"surplus\""] {
            assert!(decode::<FromGiver>(garbage).is_err());
        }
        let later = br#"{"commit":{"batch":1,"more":2}}"#;
        let mut packet = u32::try_from(later.len()).unwrap().to_le_bytes().to_vec();
        packet.extend_from_slice(later);
        let error = decode::<FromGiver>(&packet).unwrap_err();
        assert!(matches!(error, MessageError::Json(_)), "{error}");
    }

    #[test]
    fn two_releases_agree_on_the_newest_snapshots_that_both_know() {
        assert_eq!(agree(1, 1, 1..=1), Some(1));
        assert_eq!(agree(2, 3, 1..=2), Some(2), "to the release before");
        assert_eq!(agree(1, 2, 2..=3), Some(2), "to the next release");
        assert_eq!(agree(3, 4, 1..=2), None);
        assert_eq!(agree(1, 1, 2..=3), None);
        let FromTaker::Refused { reason } = FromTaker::answer(HANDOVER_VERSION, 8, 9) else {
            panic!("those are not read here");
        };
        assert!(reason.contains("version 8 to 9"), "{reason}");
        let other = FromTaker::answer(HANDOVER_VERSION + 1, 1, 1);
        assert!(matches!(other, FromTaker::Refused { .. }));
        assert_eq!(
            FromTaker::answer(HANDOVER_VERSION, SNAPSHOT_VERSION, SNAPSHOT_VERSION),
            FromTaker::Welcome {
                snapshots: SNAPSHOT_VERSION
            }
        );
    }
}

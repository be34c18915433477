//! How a segment looks, byte by byte. All numbers are little-endian.
//!
//! A segment is a header of [`HEADER_BYTES`] and records one after another. A
//! record is its body's length (4 bytes), a checksum of the body (8 bytes) and
//! the body, whose first byte is its kind. The checksum covers the record's
//! place, so a record that is whole but stands elsewhere is not taken.
//!
//! A segment begins with a checkpoint: `Opened`, `Keys`, `Key` …, `Channel` …,
//! `End`. So whatever stands in earlier segments beside the publications in
//! tails is not needed any more (delivery.md B3). A channel that keeps a history
//! is followed by what is kept of it, the newest publication first (`Copy` …).

use muster_proto::{PRODUCER_BYTES_MAX, ShardId};
use muster_wire::CHANNEL_NAME_BYTES_MAX;
use xxhash_rust::xxh3::xxh3_64;

/// Of this file. A broker refuses segments of any other.
const VERSION: u32 = 2;
const MAGIC: [u8; 8] = *b"MUSTERJ\0";
pub(crate) const HEADER_BYTES: usize = 64;
/// Odd, so that no two places are one.
const PLACE_FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
/// Length and checksum.
pub(crate) const RECORD_HEAD_BYTES: usize = 12;

/// What a segment is, at its very beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) shard: ShardId,
    /// Counts the shard's segments: 1, 2, 3 …
    pub(crate) sequence: u64,
    /// The boot in which it was begun.
    pub(crate) boot: u128,
}

/// A broker has opened the shard, and where its clocks stood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Opened {
    pub(crate) epoch: u64,
    pub(crate) boot: u128,
    /// Of the host's monotonic clock, in milliseconds.
    pub(crate) at: u64,
    /// The same moment since 1970, in milliseconds.
    pub(crate) wall_ms: u64,
    /// Nothing is acknowledged before it is synced.
    pub(crate) is_synced: bool,
}

/// The number of a channel, valid in the segment that declares it.
pub(crate) type ChannelId = u32;

/// A publication, in the channel that was declared before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Publication<'a> {
    pub(crate) channel: ChannelId,
    pub(crate) offset: u64,
    /// Of the monotonic clock of the boot that the last `Opened` names.
    pub(crate) at: u64,
    pub(crate) producer: &'a [u8],
    pub(crate) n: u64,
    /// The producer's last publication that was refused, 0 if none.
    pub(crate) refused: u64,
    pub(crate) data: Option<&'a [u8]>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Record<'a> {
    Opened(Opened),
    /// The broker has closed the shard; nothing was on its way.
    Closed,
    /// A channel and its number in this segment; its last offset so far.
    Channel {
        id: ChannelId,
        generation: u64,
        offset: u64,
        name: &'a [u8],
    },
    Publication(Publication<'a>),
    /// The keys begin anew; those that are remembered follow.
    Keys {
        turned_at: u64,
    },
    /// A producer that is remembered.
    Key {
        is_older: bool,
        n: u64,
        refused: u64,
        producer: &'a [u8],
    },
    /// The checkpoint is whole.
    End,
    /// A publication that is kept, of the channel that was declared before; it
    /// stands in an earlier segment, too, if that is still there.
    Copy(Copied<'a>),
}

/// What of a publication outlives its segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Copied<'a> {
    pub(crate) channel: ChannelId,
    pub(crate) offset: u64,
    /// As in [`Publication`], but below zero before that boot.
    pub(crate) at: i64,
    pub(crate) data: Option<&'a [u8]>,
}

/// Why bytes are no header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HeaderError {
    #[error("the header is cut short")]
    Short,
    #[error("this is no segment of a journal")]
    Magic,
    #[error("format {found}, this release reads format {VERSION}")]
    Version { found: u32 },
    #[error("the header's checksum is wrong")]
    Checksum,
    #[error("it belongs to shard {found}")]
    Shard { found: u16 },
    #[error("it is segment {found} by its content")]
    Sequence { found: u64 },
}

/// Why bytes are no record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RecordError {
    #[error("the record is cut short")]
    Short,
    #[error("the record's checksum is wrong")]
    Checksum,
    #[error("the record is whole but has no meaning")]
    Meaningless,
}

impl Header {
    pub(crate) fn encode(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        let shard = self.shard.index() as u64;
        bytes[12..14].copy_from_slice(&shard.to_le_bytes()[..2]);
        bytes[16..24].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[24..40].copy_from_slice(&self.boot.to_le_bytes());
        let checksum = xxh3_64(&bytes[..HEADER_BYTES - 8]);
        bytes[HEADER_BYTES - 8..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// The header at the start of `bytes`, which must be of this segment.
    pub(crate) fn decode(bytes: &[u8], shard: ShardId, sequence: u64) -> Result<Self, HeaderError> {
        let whole = bytes.get(..HEADER_BYTES).ok_or(HeaderError::Short)?;
        if whole[..MAGIC.len()] != MAGIC {
            return Err(HeaderError::Magic);
        }
        let mut fields = Fields(&whole[MAGIC.len()..]);
        let short = HeaderError::Short;
        let found = fields.u32().ok_or(short)?;
        if found != VERSION {
            return Err(HeaderError::Version { found });
        }
        let shard_found = fields.u32().ok_or(short)?;
        let header = Self {
            shard,
            sequence: fields.u64().ok_or(short)?,
            boot: fields.u128().ok_or(short)?,
        };
        let checksum = xxh3_64(&whole[..HEADER_BYTES - 8]);
        if whole[HEADER_BYTES - 8..] != checksum.to_le_bytes() {
            return Err(HeaderError::Checksum);
        }
        if shard_found as usize != shard.index() {
            let found = u16::try_from(shard_found).unwrap_or(u16::MAX);
            return Err(HeaderError::Shard { found });
        }
        if header.sequence != sequence {
            let found = header.sequence;
            return Err(HeaderError::Sequence { found });
        }
        Ok(header)
    }
}

const OPENED: u8 = 1;
const CLOSED: u8 = 2;
const CHANNEL: u8 = 3;
const PUBLICATION: u8 = 4;
const KEYS: u8 = 5;
const KEY: u8 = 6;
const END: u8 = 7;
const COPY: u8 = 8;

/// Appends a record to `buffer`, which begins at `base` of its segment.
pub(crate) fn encode(buffer: &mut Vec<u8>, sequence: u64, base: u64, record: &Record<'_>) {
    let start = buffer.len();
    buffer.extend_from_slice(&[0; RECORD_HEAD_BYTES]);
    record.encode_body(buffer);
    let body = &buffer[start + RECORD_HEAD_BYTES..];
    let len = u32::try_from(body.len()).expect("a record is far below 4 GiB");
    let checksum = checksum(sequence, base + start as u64, body);
    buffer[start..start + 4].copy_from_slice(&len.to_le_bytes());
    buffer[start + 4..start + RECORD_HEAD_BYTES].copy_from_slice(&checksum.to_le_bytes());
}

/// The record at `at` of a segment, and where it ends; `None` at the end.
pub(crate) fn decode(
    segment: &[u8],
    sequence: u64,
    at: usize,
) -> Result<Option<(Record<'_>, usize)>, RecordError> {
    let rest = &segment[at..];
    if rest.is_empty() {
        return Ok(None);
    }
    let body = body(rest).ok_or(RecordError::Short)?;
    if rest[4..RECORD_HEAD_BYTES] != checksum(sequence, at as u64, body).to_le_bytes() {
        return Err(RecordError::Checksum);
    }
    let record = Record::decode_body(body).ok_or(RecordError::Meaningless)?;
    Ok(Some((record, at + RECORD_HEAD_BYTES + body.len())))
}

/// Where the next whole record begins after `at`, whatever stands between.
pub(crate) fn find_record(segment: &[u8], sequence: u64, at: usize) -> Option<usize> {
    (at + 1..segment.len()).find(|&at| {
        let rest = &segment[at..];
        let Some(body) = body(rest) else {
            return false;
        };
        body.first()
            .is_some_and(|kind| (OPENED..=COPY).contains(kind))
            && rest[4..RECORD_HEAD_BYTES] == checksum(sequence, at as u64, body).to_le_bytes()
    })
}

fn body(rest: &[u8]) -> Option<&[u8]> {
    let len = usize::try_from(Fields(rest).u32()?).ok()?;
    rest.get(RECORD_HEAD_BYTES..)?.get(..len)
}

fn checksum(sequence: u64, at: u64, body: &[u8]) -> u64 {
    // Not its seed, for which xxh3 would derive a secret for every long body.
    xxh3_64(body) ^ (sequence.rotate_left(40) ^ at).wrapping_mul(PLACE_FACTOR)
}

impl<'a> Record<'a> {
    fn encode_body(&self, out: &mut Vec<u8>) {
        match *self {
            Self::Opened(opened) => {
                out.push(OPENED);
                out.extend_from_slice(&opened.epoch.to_le_bytes());
                out.extend_from_slice(&opened.boot.to_le_bytes());
                out.extend_from_slice(&opened.at.to_le_bytes());
                out.extend_from_slice(&opened.wall_ms.to_le_bytes());
                out.push(u8::from(opened.is_synced));
            }
            Self::Closed => out.push(CLOSED),
            Self::Channel {
                id,
                generation,
                offset,
                name,
            } => {
                out.push(CHANNEL);
                out.extend_from_slice(&id.to_le_bytes());
                out.extend_from_slice(&generation.to_le_bytes());
                out.extend_from_slice(&offset.to_le_bytes());
                out.extend_from_slice(name);
            }
            Self::Publication(publication) => publication.encode_body(out),
            Self::Keys { turned_at } => {
                out.push(KEYS);
                out.extend_from_slice(&turned_at.to_le_bytes());
            }
            Self::Key {
                is_older,
                n,
                refused,
                producer,
            } => {
                out.push(KEY);
                out.push(u8::from(is_older));
                out.extend_from_slice(&n.to_le_bytes());
                out.extend_from_slice(&refused.to_le_bytes());
                out.extend_from_slice(producer);
            }
            Self::End => out.push(END),
            Self::Copy(copied) => {
                out.push(COPY);
                out.extend_from_slice(&copied.channel.to_le_bytes());
                out.extend_from_slice(&copied.offset.to_le_bytes());
                out.extend_from_slice(&copied.at.to_le_bytes());
                out.push(u8::from(copied.data.is_some()));
                out.extend_from_slice(copied.data.unwrap_or_default());
            }
        }
    }

    fn decode_body(body: &'a [u8]) -> Option<Self> {
        let mut fields = Fields(body);
        let record = match fields.u8()? {
            OPENED => Self::Opened(Opened {
                epoch: fields.u64()?,
                boot: fields.u128()?,
                at: fields.u64()?,
                wall_ms: fields.u64()?,
                is_synced: fields.flag()?,
            }),
            CLOSED => Self::Closed,
            CHANNEL => Self::Channel {
                id: fields.u32()?,
                generation: fields.u64()?,
                offset: fields.u64()?,
                name: fields.rest(CHANNEL_NAME_BYTES_MAX)?,
            },
            PUBLICATION => Self::Publication(Publication::decode_body(&mut fields)?),
            KEYS => Self::Keys {
                turned_at: fields.u64()?,
            },
            KEY => Self::Key {
                is_older: fields.flag()?,
                n: fields.u64()?,
                refused: fields.u64()?,
                producer: fields.rest(PRODUCER_BYTES_MAX)?,
            },
            END => Self::End,
            COPY => Self::Copy(Copied {
                channel: fields.u32()?,
                offset: fields.u64()?,
                at: fields.i64()?,
                data: if fields.flag()? {
                    Some(fields.take(fields.0.len())?)
                } else {
                    None
                },
            }),
            _ => return None,
        };
        fields.0.is_empty().then_some(record)
    }
}

impl<'a> Publication<'a> {
    fn encode_body(&self, out: &mut Vec<u8>) {
        out.push(PUBLICATION);
        out.extend_from_slice(&self.channel.to_le_bytes());
        out.extend_from_slice(&self.offset.to_le_bytes());
        out.extend_from_slice(&self.at.to_le_bytes());
        out.extend_from_slice(&self.n.to_le_bytes());
        out.extend_from_slice(&self.refused.to_le_bytes());
        out.push(u8::from(self.data.is_some()));
        let len = u8::try_from(self.producer.len()).expect("PRODUCER_BYTES_MAX is below 256");
        out.push(len);
        out.extend_from_slice(self.producer);
        out.extend_from_slice(self.data.unwrap_or_default());
    }

    fn decode_body(fields: &mut Fields<'a>) -> Option<Self> {
        let (channel, offset, at) = (fields.u32()?, fields.u64()?, fields.u64()?);
        let (n, refused, has_data) = (fields.u64()?, fields.u64()?, fields.flag()?);
        let len = usize::from(fields.u8()?);
        let producer = fields.take(len)?;
        let data = has_data.then(|| fields.take(fields.0.len())).flatten();
        Some(Self {
            channel,
            offset,
            at,
            producer,
            n,
            refused,
            data,
        })
    }
}

/// What is still to be read of a body.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (field, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(field)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*field)
    }

    fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn i64(&mut self) -> Option<i64> {
        self.array().map(i64::from_le_bytes)
    }

    fn u128(&mut self) -> Option<u128> {
        self.array().map(u128::from_le_bytes)
    }

    fn flag(&mut self) -> Option<bool> {
        match self.u8()? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }

    fn rest(&mut self, len_max: usize) -> Option<&'a [u8]> {
        (self.0.len() <= len_max)
            .then(|| self.take(self.0.len()))
            .flatten()
    }
}

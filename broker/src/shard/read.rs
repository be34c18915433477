//! Ranges of what a shard keeps of a channel (delivery.md B6).

use bytes::Bytes;
use muster_proto::link::{KeptPublication, Position, ReadRequest, ReadResponse};

use super::Shard;
use crate::log::Kept;

/// Bytes of data in one answer.
const READ_BYTES_MAX: usize = 1 << 20;
/// Publications in one answer; they need room beside their data.
const READ_PUBLICATIONS_MAX: usize = 1024;

impl Shard {
    /// A range of what is retained of a channel. `boot_unix_ms` is when the
    /// monotonic clock was 0.
    pub(crate) fn read(&mut self, request: &ReadRequest, boot_unix_ms: i64) -> ReadResponse {
        let Some(key) = self.log.find(&request.channel) else {
            return ReadResponse {
                complete: request.after.is_none(),
                ..ReadResponse::default()
            };
        };
        let head = self.log.head(key);
        let after = request.after.unwrap_or(Position {
            generation: head.generation,
            offset: 0,
        });
        let before = request.before.unwrap_or(Position {
            generation: head.generation,
            offset: u64::MAX,
        });
        let mut response = ReadResponse {
            head: Some(head),
            ..ReadResponse::default()
        };
        // Offsets of another generation say nothing about this one's.
        if after.generation != head.generation || before.generation != head.generation {
            return response;
        }
        self.log.load(key, after.offset);
        response.complete = self.log.reaches_back_to(key, after);
        let range = self.log.range(key, after.offset, before.offset);
        let mut room = Room::new(request);
        if request.newest_first {
            room.fill(&mut response, range.rev(), boot_unix_ms);
        } else {
            room.fill(&mut response, range, boot_unix_ms);
        }
        response
    }
}

/// What an answer may still have.
struct Room {
    bytes: usize,
    publications: usize,
}

impl Room {
    fn new(request: &ReadRequest) -> Self {
        let within = |asked, max| match asked {
            0 => max,
            asked => asked.min(max),
        };
        let bytes = usize::try_from(request.bytes_max).unwrap_or(READ_BYTES_MAX);
        let publications = usize::try_from(request.limit).unwrap_or(READ_PUBLICATIONS_MAX);
        Self {
            bytes: within(bytes, READ_BYTES_MAX),
            publications: within(publications, READ_PUBLICATIONS_MAX),
        }
    }

    fn fill<'a>(
        &mut self,
        response: &mut ReadResponse,
        range: impl Iterator<Item = (u64, &'a Kept)>,
        boot_unix_ms: i64,
    ) {
        for (offset, kept) in range {
            let bytes = kept.data().map_or(0, Bytes::len);
            let full = bytes > self.bytes || self.publications == 0;
            if full && !response.publications.is_empty() {
                response.more = true;
                return;
            }
            self.bytes = self.bytes.saturating_sub(bytes);
            self.publications = self.publications.saturating_sub(1);
            response.publications.push(KeptPublication {
                offset,
                data: kept.data().cloned(),
                time_ms: boot_unix_ms.saturating_add(kept.at.0),
            });
        }
    }
}

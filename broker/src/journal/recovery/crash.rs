//! What a machine that went down has left of a shard's segments.

use muster_proto::ShardId;

use super::super::{
    format::{HEADER_BYTES, Header, Opened, Record, decode, find_record},
    home::Clock,
    storage::Storage,
};

/// The last opening, if the machine went down after it and lost what had not
/// been synced: of the newest segment from which one can be read.
pub(super) fn crashed_machine(
    storage: &dyn Storage,
    shard: ShardId,
    sequences: &[u64],
    clock: Clock,
) -> Option<Opened> {
    let openings = sequences.iter().rev();
    let open = openings
        .map(|sequence| last_opening(storage, shard, *sequence))
        .find(|opening| !matches!(opening, Opening::Unwritten));
    match open {
        Some(Opening::At(opened)) => Some(opened).filter(|opened| opened.is_lost(clock)),
        Some(Opening::None | Opening::Unwritten) => None,
        // A process writes a segment whole or not at all.
        None => Some(Opened {
            epoch: 0,
            boot: !clock.boot,
            at: 0,
            wall_ms: 0,
            is_synced: false,
        }),
    }
}

/// What a segment says of who has the shard open.
enum Opening {
    At(Opened),
    /// It was closed, or it cannot be said.
    None,
    /// Nothing of the segment has reached the disk.
    Unwritten,
}

fn last_opening(storage: &dyn Storage, shard: ShardId, sequence: u64) -> Opening {
    let mut content = Vec::new();
    if storage.read(sequence, &mut content).is_err() {
        return Opening::None;
    }
    if is_unwritten(&content) {
        return Opening::Unwritten;
    }
    let Ok(header) = Header::decode(&content, shard, sequence) else {
        return Opening::None;
    };
    let (mut at, mut opening) = (HEADER_BYTES, None);
    while let Ok(Some((record, end))) = decode(&content, sequence, at) {
        match record {
            Record::Opened(opened) => opening = Some(Opening::At(opened)),
            Record::Closed => opening = Some(Opening::None),
            Record::Channel { .. }
            | Record::Publication(_)
            | Record::Keys { .. }
            | Record::Key { .. }
            | Record::End
            | Record::Copy(_) => {}
        }
        at = end;
    }
    match opening {
        Some(opening) => opening,
        None if find_record(&content, sequence, at).is_some() => Opening::None,
        // It ends before its first record does.
        None => Opening::At(Opened {
            epoch: 0,
            boot: header.boot,
            at: 0,
            wall_ms: 0,
            is_synced: false,
        }),
    }
}

/// Whether a segment was given its name and nothing of its content is there,
/// which only a machine that went down leaves behind.
pub(super) fn is_unwritten(content: &[u8]) -> bool {
    content.len() < HEADER_BYTES || content.iter().all(|byte| *byte == 0)
}

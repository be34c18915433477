//! Everything between a client's socket and the cluster, as plain data.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{frame::Decoder, session::Session};

/// Version of [`ConnectionSnapshot`]; a worker reads its own and the one before.
pub const SNAPSHOT_VERSION: u32 = 1;

/// A connection between two frames of its life: what another process needs,
/// beside the descriptor, to go on with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionSnapshot {
    /// [`SNAPSHOT_VERSION`] of the writer.
    pub version: u32,
    /// The protocol state.
    pub session: Session,
    /// The state of frames and fragments read so far.
    pub decoder: Decoder,
    /// Bytes read from the socket and not consumed: an unfinished frame.
    pub unread: Vec<u8>,
    /// An array of packets of which the given number of bytes is done with.
    pub unfinished_batch: Option<(String, usize)>,
    /// Frames queued for the client, oldest first.
    pub unsent: Vec<Bytes>,
    /// Bytes of the first of them that are already written.
    pub unsent_skip: usize,
}

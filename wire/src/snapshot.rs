//! Everything between a client's socket and the cluster, as plain data: what
//! one worker hands over to another (delivery.md D1).
//!
//! It is JSON, with bytes as base64: a connection is some hundred bytes, and a
//! later release can add members that an earlier one does without.

use std::{collections::HashMap, net::IpAddr, ops::RangeInclusive};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{CallId, ChannelName, Millis, frame::Decoder, session::Session};

/// The newest version of [`Snapshots`]: clients that want positions have a place,
/// too.
pub const SNAPSHOT_VERSION: u32 = 2;
/// Versions that this release reads and writes: its own and the one before, so
/// that connections can also go back. 1 knows no places of clients that want
/// positions.
pub const SNAPSHOT_VERSIONS: RangeInclusive<u32> = SNAPSHOT_VERSION - 1..=SNAPSHOT_VERSION;

/// Connections that are handed over together.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshots {
    /// One of [`SNAPSHOT_VERSIONS`].
    version: u32,
    /// Frames that wait in the connections' queues, each once, however many
    /// clients it is for.
    frames: Vec<Octets>,
    /// In the order of their descriptors.
    pub connections: Vec<ConnectionSnapshot>,
}

/// A connection between two steps of its life: what another process needs,
/// beside the descriptor, to go on with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionSnapshot {
    /// The protocol state: id, token, subscriptions, deadlines, counters, calls
    /// that are not answered, what the client has used up of its rates.
    pub session: Session,
    /// The state of frames and fragments read so far.
    pub decoder: Decoder,
    /// Bytes read from the socket and not consumed: an unfinished frame, or
    /// messages that waited for their turn.
    #[serde(with = "crate::octets")]
    pub unread: Vec<u8>,
    /// An array of packets of which the given number of bytes is done with.
    pub unfinished_batch: Option<(String, usize)>,
    /// Queued for the client, oldest first.
    pub unsent: Vec<Unsent>,
    /// The first of those is the rest of a frame that is partly written:
    /// nothing may go before it.
    pub is_begun: bool,
    /// Up to where the client has, or has in its queue, each channel that its
    /// owner has confirmed. Where it wants positions and waits for its owner: up to
    /// where it says it has.
    pub places: Vec<Place>,
    /// Not acked by their channels' owners, in the order of each channel.
    pub publications: Vec<Unacked>,
    /// When TCP accepted it.
    pub accepted: Millis,
    /// Whom the connection is counted for.
    pub origin: IpAddr,
    /// Bytes ever read from the socket.
    pub received_bytes: u64,
    /// Bytes ever written to the socket.
    pub sent_bytes: u64,
}

/// A frame that waits in a client's queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unsent {
    /// Its place among all frames of the [`Snapshots`].
    frame: usize,
    /// The channel whose publication it is, if it may be given up for a client
    /// that reads too slowly.
    pub droppable: Option<ChannelName>,
}

/// How far a client is in a channel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The channel.
    pub channel: ChannelName,
    /// Offsets compare only within one generation.
    pub generation: u64,
    /// Of the last publication.
    pub offset: u64,
}

/// A publication that its channel's owner has not acked. It is sent again with
/// the same key: the session's id and `n` (delivery.md A1).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unacked {
    /// Where.
    pub channel: ChannelName,
    /// Raw JSON; absent is not the same as `null`.
    data: Option<Octets>,
    /// Its number among the session's publications.
    pub n: u64,
    /// The call that waits for the acknowledgement.
    pub cid: Option<CallId>,
    /// When the client's worker took it.
    pub accepted: Millis,
}

impl Unacked {
    /// A publication; `data` is raw JSON or absent.
    #[must_use]
    pub fn new(
        channel: ChannelName,
        data: Option<Bytes>,
        n: u64,
        cid: Option<CallId>,
        accepted: Millis,
    ) -> Self {
        Self {
            channel,
            data: data.map(Octets),
            n,
            cid,
            accepted,
        }
    }

    /// Raw JSON or absent.
    #[must_use]
    pub fn data(&self) -> Option<Bytes> {
        self.data.clone().map(|Octets(bytes)| bytes)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Octets(#[serde(with = "crate::octets")] Bytes);

/// Why bytes are no snapshots of connections.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// Of another release.
    #[error("they have version {version}, this release reads {SNAPSHOT_VERSIONS:?}")]
    Version {
        /// What they say they are.
        version: u32,
    },
    /// Cut off, or no snapshots at all.
    #[error("they are malformed")]
    Malformed(#[from] serde_json::Error),
    /// A queue names a frame that is not there.
    #[error("connection {connection} waits for frame {frame} of {frames}")]
    FrameMissing {
        /// Its place among the connections.
        connection: usize,
        /// The frame's number.
        frame: usize,
        /// How many there are.
        frames: usize,
    },
    /// The session breaks a rule of its own.
    #[error("connection {connection} has subscriptions out of order")]
    SessionUnsound {
        /// Its place among the connections.
        connection: usize,
    },
}

/// Gathers connections, and each frame once.
#[derive(Debug, Default)]
pub struct SnapshotsBuilder {
    snapshots: Snapshots,
    /// Where a frame's bytes are, and how many: clones share them.
    known: HashMap<(usize, usize), usize>,
    bytes: usize,
}

impl SnapshotsBuilder {
    /// Notes a frame; `droppable` as in [`Unsent`].
    pub fn frame(&mut self, frame: &Bytes, droppable: Option<ChannelName>) -> Unsent {
        let place = (frame.as_ptr().addr(), frame.len());
        let frames = &mut self.snapshots.frames;
        let frame = *self.known.entry(place).or_insert_with(|| {
            self.bytes += frame.len();
            frames.push(Octets(frame.clone()));
            frames.len() - 1
        });
        Unsent { frame, droppable }
    }

    /// Adds a connection whose frames were noted before.
    pub fn push(&mut self, connection: ConnectionSnapshot) {
        self.bytes += connection.unread.len();
        self.snapshots.connections.push(connection);
    }

    /// The connections so far, to complete them.
    pub fn connections_mut(&mut self) -> &mut [ConnectionSnapshot] {
        &mut self.snapshots.connections
    }

    /// Bytes of the frames and of what was read so far.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// What was gathered, in this version, to be sent.
    #[must_use]
    pub fn finish(mut self, version: u32) -> Vec<u8> {
        self.snapshots.version = version;
        serde_json::to_vec(&self.snapshots).expect("text, numbers and flags always serialise")
    }
}

impl Snapshots {
    /// Reads what another worker wrote.
    ///
    /// # Errors
    /// When it is of a version that this release does not read, or makes no
    /// sense.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SnapshotError> {
        #[derive(Deserialize)]
        struct Probe {
            version: u32,
        }
        // Before anything that may have another form.
        let Probe { version } = serde_json::from_slice(bytes)?;
        if !SNAPSHOT_VERSIONS.contains(&version) {
            return Err(SnapshotError::Version { version });
        }
        let snapshots: Self = serde_json::from_slice(bytes)?;
        let frames = snapshots.frames.len();
        for (connection, snapshot) in snapshots.connections.iter().enumerate() {
            let mut unsent = snapshot.unsent.iter().map(|unsent| unsent.frame);
            if let Some(frame) = unsent.find(|frame| *frame >= frames) {
                return Err(SnapshotError::FrameMissing {
                    connection,
                    frame,
                    frames,
                });
            }
            if !snapshot.session.is_sound() {
                return Err(SnapshotError::SessionUnsound { connection });
            }
        }
        Ok(snapshots)
    }

    /// The bytes of a frame in one of the connections' queues.
    #[must_use]
    pub fn frame(&self, unsent: &Unsent) -> Bytes {
        self.frames[unsent.frame].0.clone()
    }
}

#[cfg(test)]
mod tests;

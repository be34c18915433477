//! One client connection: its socket, what was read and not understood yet,
//! what is to be written, and the session.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
};

use bytes::Bytes;
use muster_wire::{
    Millis,
    close::CloseCode,
    frame::{self, Decoder},
    session::Session,
};

use crate::{
    addresses::Origin,
    outbox::{Delivery, Flush, Offer, Outbox, Written},
};

/// How much more may wait for a client that is on its way between two workers.
const FROZEN_ROOM: usize = 4;

/// Names a connection of this worker; never means another one later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ConnectionKey {
    /// Place in the table of connections.
    pub(crate) index: u32,
    /// Tells apart the connections that had this place.
    pub(crate) serial: u32,
}

impl ConnectionKey {
    pub(crate) fn to_bits(self) -> u64 {
        u64::from(self.serial) << 32 | u64::from(self.index)
    }

    #[expect(
        clippy::cast_possible_truncation,
        reason = "the two halves of what `to_bits` made"
    )]
    pub(crate) fn from_bits(bits: u64) -> Self {
        Self {
            index: bits as u32,
            serial: (bits >> 32) as u32,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) socket: OwnedFd,
    pub(crate) admission: Admission,
    pub(crate) phase: Phase,
    pub(crate) decoder: Decoder,
    /// Bytes read and not consumed; empty, and without memory, nearly always.
    pub(crate) unread: Vec<u8>,
    /// An array of packets of which the given number of bytes is done with.
    pub(crate) unfinished: Option<Box<(String, usize)>>,
    pub(crate) outbox: Outbox,
    /// Tells this connection from earlier ones at its place.
    pub(crate) serial: u32,
    pub(crate) accepted: Millis,
    /// Is in the engine's list of connections to write to.
    pub(crate) is_dirty: bool,
    /// What epoll was last asked to watch.
    pub(crate) interest: Interest,
    /// Did not read what it got, and is about to be closed.
    pub(crate) is_slow: bool,
    /// Since when nothing is read from this client, because what it asks for has
    /// no place.
    pub(crate) paused: Option<Millis>,
    /// Whole messages, or packets of one, wait for the next turn.
    pub(crate) has_backlog: bool,
    /// It is on its way to or from another worker: its socket is not touched.
    pub(crate) is_frozen: bool,
    /// Bytes ever read from the socket.
    pub(crate) received_bytes: u64,
}

/// Whether a connection was let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admission {
    /// It counts for its address.
    Admitted(Origin),
    /// It only gets the answer that says why not.
    Refused,
}

/// Where a connection stands. A closing connection has no session any more.
#[derive(Debug)]
pub(crate) enum Phase {
    /// The HTTP request head is being read.
    Head { accepted: Millis, scanned: usize },
    /// Frames are exchanged.
    Open(Session),
    /// Messages come straight back (conformance tests of the codec).
    Echo { deadline: Millis },
    /// What is queued is written, then nothing more; what the client still
    /// sends is thrown away until it closes, too, or the deadline passes.
    Closing { deadline: Millis, shut: bool },
}

/// What a connection's socket is watched for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Interest {
    pub(crate) read: bool,
    pub(crate) write: bool,
}

impl Phase {
    pub(crate) fn session(&self) -> Option<&Session> {
        match self {
            Self::Open(session) => Some(session),
            Self::Head { .. } | Self::Echo { .. } | Self::Closing { .. } => None,
        }
    }
}

impl Connection {
    pub(crate) fn new(
        socket: OwnedFd,
        admission: Admission,
        serial: u32,
        accepted: Millis,
    ) -> Self {
        Self {
            socket,
            admission,
            phase: Phase::Head {
                accepted,
                scanned: 0,
            },
            decoder: Decoder::default(),
            unread: Vec::new(),
            unfinished: None,
            outbox: Outbox::default(),
            serial,
            accepted,
            is_dirty: false,
            is_slow: false,
            interest: Interest {
                read: true,
                write: false,
            },
            paused: None,
            has_backlog: false,
            is_frozen: false,
            received_bytes: 0,
        }
    }

    pub(crate) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    pub(crate) fn session(&mut self) -> Option<&mut Session> {
        match &mut self.phase {
            Phase::Open(session) => Some(session),
            Phase::Head { .. } | Phase::Echo { .. } | Phase::Closing { .. } => None,
        }
    }

    pub(crate) fn is_closing(&self) -> bool {
        matches!(self.phase, Phase::Closing { .. })
    }

    /// Whether what the client sent is to be handled now.
    pub(crate) fn is_consuming(&self) -> bool {
        !self.is_closing() && self.paused.is_none() && !self.has_backlog && !self.is_frozen
    }

    pub(crate) fn deadline(&self, head_timeout: std::time::Duration) -> Millis {
        match &self.phase {
            Phase::Head { accepted, .. } => *accepted + head_timeout,
            Phase::Open(session) => session.deadline(),
            Phase::Echo { deadline } | Phase::Closing { deadline, .. } => *deadline,
        }
    }

    /// Queues a frame; a slow client's is not queued, and the caller decides.
    pub(crate) fn offer(&mut self, frame: Bytes, bytes_max: usize) -> Offer {
        if self.is_closing() {
            // Whatever else there was to say, it has been told goodbye.
            return Offer::Accepted;
        }
        let bytes_max = self.room(bytes_max);
        if !self.outbox.has_room(frame.len(), bytes_max) {
            let _ = self.flush();
        }
        self.outbox.offer(frame, bytes_max)
    }

    /// A client whose socket is not touched is not slow because of that.
    fn room(&self, bytes_max: usize) -> usize {
        if self.is_frozen {
            bytes_max.saturating_mul(FROZEN_ROOM)
        } else {
            bytes_max
        }
    }

    /// Queues a publication, as its channel's policy says.
    pub(crate) fn deliver(
        &mut self,
        delivery: Delivery<'_>,
        bytes_max: usize,
        dropped: &mut u64,
    ) -> Offer {
        if self.is_closing() {
            return Offer::Accepted;
        }
        let bytes_max = self.room(bytes_max);
        let len = delivery.frame.len();
        if !self.outbox.has_room(len, bytes_max) && !self.interest.write {
            // It may be the worker that was slow to write. What goes wrong here
            // shows again at the end of the turn.
            let _ = self.flush();
        }
        self.outbox.deliver(delivery, bytes_max, dropped)
    }

    /// Whether a publication may be written past the queue.
    pub(crate) fn is_writable(&self) -> bool {
        !self.is_closing() && !self.is_frozen && self.outbox.is_empty()
    }

    /// Writes a publication past the queue, if [`Self::is_writable`].
    pub(crate) fn write(&mut self, frame: &Bytes) -> Written {
        self.outbox.write(frame, self.socket.as_fd())
    }

    /// Says goodbye: what is queued goes out, then a close frame. Returns the
    /// session that has ended.
    pub(crate) fn close(
        &mut self,
        code: Option<CloseCode>,
        reason: &str,
        deadline: Millis,
    ) -> Option<Session> {
        if self.is_closing() {
            return None;
        }
        let _ = self
            .outbox
            .offer(frame::close_frame(code, reason), usize::MAX);
        self.finish(deadline)
    }

    /// Says goodbye at once, giving up what is queued: the client does not take
    /// it anyway.
    pub(crate) fn cut(
        &mut self,
        code: CloseCode,
        reason: &str,
        deadline: Millis,
    ) -> Option<Session> {
        if self.is_closing() {
            return None;
        }
        self.outbox.clear();
        self.outbox
            .push_first(frame::close_frame(Some(code), reason));
        self.finish(deadline)
    }

    /// Writes what is queued, and ends.
    pub(crate) fn finish(&mut self, deadline: Millis) -> Option<Session> {
        self.unread = Vec::new();
        self.unfinished = None;
        self.decoder = Decoder::default();
        self.paused = None;
        self.has_backlog = false;
        match std::mem::replace(
            &mut self.phase,
            Phase::Closing {
                deadline,
                shut: false,
            },
        ) {
            Phase::Open(session) => Some(session),
            Phase::Head { .. } | Phase::Echo { .. } | Phase::Closing { .. } => None,
        }
    }

    /// Writes what the socket takes. A closing connection that has said
    /// everything closes its direction.
    pub(crate) fn flush(&mut self) -> io::Result<Flush> {
        if self.is_frozen {
            return Ok(Flush::Blocked);
        }
        let Self {
            socket,
            outbox,
            phase,
            ..
        } = self;
        let flushed = outbox.flush(socket.as_fd())?;
        if flushed == Flush::Empty
            && let Phase::Closing { shut, .. } = phase
            && !*shut
        {
            *shut = true;
            rustix::net::shutdown(socket, rustix::net::Shutdown::Write)?;
        }
        Ok(flushed)
    }
}

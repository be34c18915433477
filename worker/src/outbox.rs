//! What one client has still to get (hop 6, egress).

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    os::fd::BorrowedFd,
};

use bytes::{Buf, Bytes};

/// Frames per `writev`; Linux takes up to 1024, but few sockets take more bytes
/// than these at once.
const SLICES_MAX: usize = 64;
/// Bytes written to one client in one pass, so that a fast reader with a long
/// queue does not hold up the others.
const PASS_BYTES_MAX: usize = 256 * 1024;

/// A client's queue of frames, bounded in bytes. Frames are shared: a
/// publication is one buffer in all its subscribers' queues.
///
/// An idle client's outbox owns no memory.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    /// The first one without what is already written of it.
    frames: VecDeque<Bytes>,
    bytes: usize,
    /// The first frame is partly written: nothing may go before it.
    partial: bool,
}

/// What became of a frame offered to a client.
#[must_use]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Offer {
    Accepted,
    /// The client reads too slowly.
    Full,
}

/// How a write pass ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flush {
    /// Nothing is left.
    Empty,
    /// The socket takes no more for now.
    Blocked,
    /// The pass's share is used up; the rest follows in the next one.
    More,
}

impl Outbox {
    /// Bytes queued.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Queues a frame if the queue stays within `bytes_max`; an empty queue
    /// takes any frame (delivery.md F4).
    pub(crate) fn offer(&mut self, frame: Bytes, bytes_max: usize) -> Offer {
        if !self.frames.is_empty() && self.bytes + frame.len() > bytes_max {
            return Offer::Full;
        }
        self.bytes += frame.len();
        self.frames.push_back(frame);
        Offer::Accepted
    }

    /// Queues a small frame before everything that is not yet begun: pings,
    /// which a client must get in time however much data waits, and the goodbye
    /// of a connection whose data is given up.
    pub(crate) fn push_first(&mut self, frame: Bytes) {
        self.bytes += frame.len();
        self.frames.insert(usize::from(self.partial), frame);
    }

    /// Gives up everything that is not yet begun.
    pub(crate) fn clear(&mut self) {
        self.frames.truncate(usize::from(self.partial));
        self.bytes = self.frames.iter().map(Bytes::len).sum();
    }

    /// Writes as much as the socket takes.
    pub(crate) fn flush(&mut self, socket: BorrowedFd<'_>) -> io::Result<Flush> {
        self.flush_with(|slices| Ok(rustix::io::writev(socket, slices)?))
    }

    fn flush_with(
        &mut self,
        mut write: impl FnMut(&[IoSlice<'_>]) -> io::Result<usize>,
    ) -> io::Result<Flush> {
        let mut share = PASS_BYTES_MAX;
        while !self.frames.is_empty() {
            if share == 0 {
                return Ok(Flush::More);
            }
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let count = self.frames.len().min(SLICES_MAX);
            let mut offered = 0;
            for (slice, frame) in slices.iter_mut().zip(&self.frames) {
                *slice = IoSlice::new(frame);
                offered += frame.len();
            }
            match write(&slices[..count]) {
                Ok(written) => {
                    self.advance(written);
                    if written < offered {
                        return Ok(Flush::Blocked);
                    }
                    share = share.saturating_sub(written);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(Flush::Blocked);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.frames = VecDeque::new();
        Ok(Flush::Empty)
    }

    fn advance(&mut self, mut written: usize) {
        self.bytes -= written;
        while let Some(front) = self.frames.front_mut() {
            if written < front.len() {
                front.advance(written);
                self.partial |= written > 0;
                return;
            }
            written -= front.len();
            self.frames.pop_front();
            self.partial = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn whatever_the_socket_takes_the_client_gets_every_byte_once_and_in_order(
            frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..200), 1..150),
            takes in prop::collection::vec(0_usize..500, 1..100),
        ) {
            let mut outbox = Outbox::default();
            for frame in &frames {
                prop_assert_eq!(outbox.offer(Bytes::from(frame.clone()), usize::MAX), Offer::Accepted);
            }
            let mut got = Vec::new();
            for take in takes.into_iter().chain(std::iter::repeat(10_000)) {
                let flushed = outbox.flush_with(|slices| {
                    let mut rest = take;
                    for slice in slices {
                        let part = rest.min(slice.len());
                        got.extend_from_slice(&slice[..part]);
                        rest -= part;
                    }
                    let written = take - rest;
                    if written == 0 { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(written) }
                }).unwrap();
                prop_assert_eq!(outbox.bytes(), frames.iter().map(Vec::len).sum::<usize>() - got.len());
                if flushed == Flush::Empty {
                    break;
                }
            }
            prop_assert_eq!(got, frames.concat());
        }
    }

    #[test]
    fn an_empty_outbox_takes_any_frame_and_a_filled_one_keeps_its_limit() {
        let mut outbox = Outbox::default();
        assert_eq!(outbox.offer(Bytes::from(vec![0; 100]), 50), Offer::Accepted);
        assert_eq!(outbox.offer(Bytes::from(vec![0; 1]), 50), Offer::Full);
        assert_eq!(outbox.bytes(), 100);
    }

    #[test]
    fn a_ping_goes_before_waiting_data_but_not_into_a_begun_frame() {
        let mut outbox = Outbox::default();
        let _ = outbox.offer(Bytes::from_static(b"abcd"), 100);
        let _ = outbox.offer(Bytes::from_static(b"efgh"), 100);
        outbox.push_first(Bytes::from_static(b"P"));
        let mut got = Vec::new();
        let mut write_two = |slices: &[IoSlice<'_>]| {
            let bytes = slices.iter().flat_map(|slice| slice.to_vec()).take(2);
            got.extend(bytes);
            Ok(2)
        };
        assert_eq!(outbox.flush_with(&mut write_two).unwrap(), Flush::Blocked);
        outbox.push_first(Bytes::from_static(b"Q"));
        while outbox.flush_with(&mut write_two).unwrap() != Flush::Empty {}
        assert_eq!(got, b"PabcdQefgh");
    }

    #[test]
    fn giving_up_keeps_the_rest_of_a_begun_frame() {
        let mut outbox = Outbox::default();
        let _ = outbox.offer(Bytes::from_static(b"abcd"), 100);
        let _ = outbox.offer(Bytes::from_static(b"efgh"), 100);
        assert_eq!(outbox.flush_with(|_| Ok(1)).unwrap(), Flush::Blocked);
        outbox.clear();
        outbox.push_first(Bytes::from_static(b"X"));
        assert_eq!(outbox.bytes(), 4);
        let mut got = Vec::new();
        let _ = outbox.flush_with(|slices| {
            got = slices.iter().flat_map(|slice| slice.to_vec()).collect();
            Ok(got.len())
        });
        assert_eq!(got, b"bcdX");
    }
}

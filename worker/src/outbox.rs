//! What one client has still to get (hop 6, egress).

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    os::fd::BorrowedFd,
};

use bytes::{Buf, Bytes};
use muster_daemon::config::SlowClient;
use rustix::net::{self, SendAncillaryBuffer, SendFlags};

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
    frames: VecDeque<Queued>,
    bytes: usize,
    /// The first frame is partly written: nothing may go before it.
    partial: bool,
    /// Bytes ever written to the socket.
    sent_bytes: u64,
}

#[derive(Debug)]
struct Queued {
    frame: Bytes,
    /// The channel whose publication this is, if it may be given up.
    droppable: Option<u32>,
}

/// A publication for all subscribers of a channel.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Delivery<'f> {
    pub(crate) frame: &'f Bytes,
    /// Tells the worker's channels apart.
    pub(crate) channel: u32,
    /// What becomes of it, and of those before it, if there is no room.
    pub(crate) slow_client: SlowClient,
}

/// What became of a frame offered to a client.
#[must_use]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Offer {
    Accepted,
    /// The client reads too slowly.
    Full,
}

/// How much of a frame went out past the queue.
#[must_use]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Written {
    All,
    /// The rest is queued.
    Part,
    Nothing,
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

    /// Whether nothing is queued.
    pub(crate) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Bytes ever written to the socket.
    pub(crate) fn sent_bytes(&self) -> u64 {
        self.sent_bytes
    }

    /// Whether the first frame is partly written.
    pub(crate) fn is_begun(&self) -> bool {
        self.partial
    }

    /// What is queued, in order: each frame, or the rest of the first, and the
    /// number of its channel if it may be given up.
    pub(crate) fn queued(&self) -> impl Iterator<Item = (&Bytes, Option<u32>)> {
        let frames = self.frames.iter();
        frames.map(|queued| (&queued.frame, queued.droppable))
    }

    /// An outbox that goes on where another one was.
    pub(crate) fn restore(
        queued: impl Iterator<Item = (Bytes, Option<u32>)>,
        is_begun: bool,
        sent_bytes: u64,
    ) -> Self {
        let frames = queued.map(|(frame, droppable)| Queued { frame, droppable });
        let frames: VecDeque<Queued> = frames.collect();
        Self {
            bytes: frames.iter().map(|queued| queued.frame.len()).sum(),
            partial: is_begun && !frames.is_empty(),
            frames,
            sent_bytes,
        }
    }

    /// Whether a frame of this length fits; an empty queue takes any
    /// (delivery.md F4).
    pub(crate) fn has_room(&self, len: usize, bytes_max: usize) -> bool {
        self.frames.is_empty() || self.bytes + len <= bytes_max
    }

    /// Queues a frame that must not be lost, if it fits.
    pub(crate) fn offer(&mut self, frame: Bytes, bytes_max: usize) -> Offer {
        if !self.has_room(frame.len(), bytes_max) {
            return Offer::Full;
        }
        self.push(frame, None);
        Offer::Accepted
    }

    /// Queues a publication, giving up earlier ones if its channel's policy
    /// allows that and it does not fit otherwise; `dropped` counts them.
    pub(crate) fn deliver(
        &mut self,
        delivery: Delivery<'_>,
        bytes_max: usize,
        dropped: &mut u64,
    ) -> Offer {
        let Delivery {
            frame,
            channel,
            slow_client,
        } = delivery;
        let len = frame.len();
        let droppable = match slow_client {
            SlowClient::Close => return self.offer(frame.clone(), bytes_max),
            SlowClient::DropOldest | SlowClient::Latest => Some(channel),
        };
        if !self.has_room(len, bytes_max) {
            let before = self.frames.len();
            if slow_client == SlowClient::Latest {
                self.drop_all_of(channel);
            }
            self.drop_oldest(len, bytes_max);
            *dropped += (before - self.frames.len()) as u64;
        }
        // A frame that is begun cannot be given up; beside it alone there is
        // room for any other, as in an empty queue.
        if self.has_room(len, bytes_max) || self.frames.len() == usize::from(self.partial) {
            self.push(frame.clone(), droppable);
            Offer::Accepted
        } else {
            Offer::Full
        }
    }

    /// Writes a frame past the queue, if that is empty; what the socket does not
    /// take of a frame that is begun is queued.
    pub(crate) fn write(&mut self, frame: &Bytes, socket: BorrowedFd<'_>) -> Written {
        if !self.frames.is_empty() {
            return Written::Nothing;
        }
        let sent = net::send(socket, frame, SendFlags::NOSIGNAL);
        self.sent_bytes += sent.map_or(0, |len| len as u64);
        match sent {
            Ok(len) if len == frame.len() => Written::All,
            // What goes wrong shows again when the frame is written as others are.
            Ok(0) | Err(_) => Written::Nothing,
            Ok(len) => {
                self.push(frame.slice(len..), None);
                self.partial = true;
                Written::Part
            }
        }
    }

    fn push(&mut self, frame: Bytes, droppable: Option<u32>) {
        self.bytes += frame.len();
        self.frames.push_back(Queued { frame, droppable });
    }

    fn drop_all_of(&mut self, channel: u32) {
        let mut is_begun = self.partial;
        let bytes = &mut self.bytes;
        self.frames.retain(|queued| {
            let keep = std::mem::take(&mut is_begun) || queued.droppable != Some(channel);
            if !keep {
                *bytes -= queued.frame.len();
            }
            keep
        });
    }

    fn drop_oldest(&mut self, len: usize, bytes_max: usize) {
        let mut index = usize::from(self.partial);
        while !self.has_room(len, bytes_max) {
            match self.frames.get(index) {
                Some(queued) if queued.droppable.is_some() => {
                    self.bytes -= queued.frame.len();
                    self.frames.remove(index);
                }
                Some(_) => index += 1,
                None => return,
            }
        }
    }

    /// Queues a small frame before everything that is not yet begun: pings,
    /// which a client must get in time however much data waits, and the goodbye
    /// of a connection whose data is given up.
    pub(crate) fn push_first(&mut self, frame: Bytes) {
        self.bytes += frame.len();
        let queued = Queued {
            frame,
            droppable: None,
        };
        self.frames.insert(usize::from(self.partial), queued);
    }

    /// Gives up everything that is not yet begun.
    pub(crate) fn clear(&mut self) {
        self.frames.truncate(usize::from(self.partial));
        self.bytes = self.frames.iter().map(|queued| queued.frame.len()).sum();
    }

    /// Writes as much as the socket takes.
    pub(crate) fn flush(&mut self, socket: BorrowedFd<'_>) -> io::Result<Flush> {
        self.flush_with(|slices| {
            let written = match slices {
                // Most passes: the plain call costs the kernel a tenth less.
                [one] => net::send(socket, one, SendFlags::NOSIGNAL),
                many => {
                    let mut no_ancillary = SendAncillaryBuffer::default();
                    net::sendmsg(socket, many, &mut no_ancillary, SendFlags::NOSIGNAL)
                }
            };
            Ok(written?)
        })
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
            for (slice, queued) in slices.iter_mut().zip(&self.frames) {
                *slice = IoSlice::new(&queued.frame);
                offered += queued.frame.len();
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
        self.sent_bytes += written as u64;
        while let Some(Queued { frame: front, .. }) = self.frames.front_mut() {
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

    fn deliver(
        outbox: &mut Outbox,
        (channel, byte, len): (u32, u8, usize),
        slow_client: SlowClient,
    ) -> (Offer, u64) {
        let mut dropped = 0;
        let frame = Bytes::from(vec![byte; len]);
        let delivery = Delivery {
            frame: &frame,
            channel,
            slow_client,
        };
        (outbox.deliver(delivery, 10, &mut dropped), dropped)
    }

    /// The first byte of each frame that is queued.
    fn queued(outbox: &Outbox) -> Vec<u8> {
        outbox.frames.iter().map(|queued| queued.frame[0]).collect()
    }

    #[test]
    fn the_oldest_publications_go_first_and_nothing_else_goes() {
        let mut outbox = Outbox::default();
        let _ = outbox.offer(Bytes::from_static(b"a"), 10);
        for (byte, dropped) in [(b'1', 0), (b'2', 0), (b'3', 0), (b'4', 1), (b'5', 1)] {
            let offered = deliver(&mut outbox, (1, byte, 3), SlowClient::DropOldest);
            assert_eq!(offered, (Offer::Accepted, dropped));
        }
        assert_eq!(queued(&outbox), b"a345");
        assert_eq!(outbox.bytes(), 10);
    }

    #[test]
    fn only_the_newest_publication_of_a_channel_stays() {
        let mut outbox = Outbox::default();
        for (channel, byte) in [(1, b'1'), (2, b'A'), (1, b'2'), (2, b'B'), (1, b'3')] {
            let offered = deliver(&mut outbox, (channel, byte, 2), SlowClient::Latest);
            assert_eq!(
                offered,
                (Offer::Accepted, 0),
                "while there is room, all stay"
            );
        }
        let offered = deliver(&mut outbox, (1, b'4', 2), SlowClient::Latest);
        assert_eq!(offered, (Offer::Accepted, 3));
        assert_eq!(queued(&outbox), b"AB4");
    }

    #[test]
    fn a_begun_frame_is_never_given_up_and_alone_makes_no_client_slow() {
        for slow_client in [SlowClient::DropOldest, SlowClient::Latest] {
            let mut outbox = Outbox::default();
            let _ = deliver(&mut outbox, (1, b'1', 9), slow_client);
            assert_eq!(outbox.flush_with(|_| Ok(1)).unwrap(), Flush::Blocked);
            let offered = deliver(&mut outbox, (1, b'2', 9), slow_client);
            assert_eq!(offered, (Offer::Accepted, 0));
            let offered = deliver(&mut outbox, (1, b'3', 9), slow_client);
            assert_eq!(offered, (Offer::Accepted, 1));
            assert_eq!(queued(&outbox), b"13");
        }
    }

    #[test]
    fn what_must_not_be_lost_makes_a_client_slow_whatever_the_policy() {
        for slow_client in [
            SlowClient::Close,
            SlowClient::DropOldest,
            SlowClient::Latest,
        ] {
            let mut outbox = Outbox::default();
            let _ = outbox.offer(Bytes::from(vec![b'a'; 8]), 10);
            let offered = deliver(&mut outbox, (1, b'1', 3), slow_client);
            assert_eq!(offered, (Offer::Full, 0));
        }
    }

    proptest! {
        #[test]
        fn a_full_queue_stays_within_its_limit_and_drops_only_what_it_may(
            steps in prop::collection::vec((0_u32..4, 0_usize..3, 1_usize..60, 0_usize..40), 1..200),
        ) {
            const MAX: usize = 200;
            let mut outbox = Outbox::default();
            let (mut written, mut accepted) = (0, 0);
            for (channel, policy, len, take) in steps {
                let policy = [SlowClient::Close, SlowClient::DropOldest, SlowClient::Latest][policy];
                let frame = Bytes::from(vec![0; len]);
                let kept = |outbox: &Outbox| {
                    let frames = outbox.frames.iter().enumerate();
                    let kept = frames.filter(|(index, queued)| {
                        queued.droppable.is_none() || *index < usize::from(outbox.partial)
                    });
                    kept.map(|(_, queued)| queued.frame.len()).sum::<usize>()
                };
                let kept_before = kept(&outbox);
                let delivery = Delivery { frame: &frame, channel, slow_client: policy };
                let mut dropped = 0;
                let offer = outbox.deliver(delivery, MAX, &mut dropped);
                let pushed = usize::from(offer == Offer::Accepted && policy == SlowClient::Close) * len;
                prop_assert_eq!(kept(&outbox), kept_before + pushed);
                if policy == SlowClient::Close {
                    prop_assert_eq!(dropped, 0);
                }
                accepted += usize::from(offer == Offer::Accepted);
                prop_assert!(outbox.bytes() <= MAX + 60);
                let sum: usize = outbox.frames.iter().map(|queued| queued.frame.len()).sum();
                prop_assert_eq!(outbox.bytes(), sum);
                if take > 0 {
                    let take = take.min(outbox.bytes());
                    let _ = outbox.flush_with(|_| if take == 0 { Err(io::ErrorKind::WouldBlock.into()) } else {
                        written += take;
                        Ok(take)
                    });
                }
            }
            prop_assert!(accepted > 0);
        }
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

//! The socket between two workers: packets with descriptors, and bodies that
//! are too long for one in files in memory.

use std::{
    fs::File,
    io::{self, Write as _},
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::fs::FileExt as _,
    },
    task::{Context, Poll, ready},
};

use muster_daemon::descriptor;
use rustix::{
    fs::{MemfdFlags, memfd_create},
    net::{AddressFamily, SocketFlags, SocketType, socketpair},
};
use serde::Serialize;
use tokio::io::{Interest, unix::AsyncFd};

use super::message::{
    BODY_BYTES_MAX, Body, INLINE_BYTES_MAX, MessageError, PACKET_BYTES_MAX, encode,
};

/// One end of the socket.
#[derive(Debug)]
pub(crate) struct Packets {
    socket: AsyncFd<OwnedFd>,
    /// For what comes in; kept for its memory.
    buffer: Vec<u8>,
}

/// What came in.
#[derive(Debug)]
pub(crate) struct Packet {
    pub(crate) bytes: Vec<u8>,
    pub(crate) descriptors: Vec<OwnedFd>,
}

/// A body on its way out.
#[derive(Debug)]
pub(crate) enum Outgoing {
    Inline(Vec<u8>),
    File(File, u64),
}

/// Two ends, for this process and for another one.
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        flags,
        None,
    )?)
}

impl Outgoing {
    /// # Errors
    /// When there is no memory for it.
    pub(crate) fn new(bytes: Vec<u8>) -> io::Result<Self> {
        if bytes.len() <= INLINE_BYTES_MAX {
            return Ok(Self::Inline(bytes));
        }
        let mut file = File::from(memfd_create("handover", MemfdFlags::CLOEXEC)?);
        file.write_all(&bytes)?;
        Ok(Self::File(file, bytes.len() as u64))
    }

    pub(crate) fn body(&self) -> Body {
        match self {
            Self::Inline(bytes) => Body {
                bytes: bytes.len() as u64,
                in_file: false,
            },
            Self::File(_, bytes) => Body {
                bytes: *bytes,
                in_file: true,
            },
        }
    }
}

impl Packets {
    /// Must be called within the runtime.
    pub(crate) fn new(socket: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        #[expect(
            deprecated,
            reason = "its successor is unsafe for descriptors that may close early; this one is owned"
        )]
        let socket = AsyncFd::with_interest(socket, Interest::READABLE)?;
        Ok(Self {
            socket,
            buffer: vec![0; PACKET_BYTES_MAX + 1],
        })
    }

    /// Sends a message without waiting: there is never more on the way than the
    /// socket has room for.
    ///
    /// # Errors
    /// When it cannot be sent; nothing has been.
    pub(crate) fn send(
        &self,
        message: &impl Serialize,
        body: &Outgoing,
        descriptors: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        let (inline, file) = match body {
            Outgoing::Inline(bytes) => (&bytes[..], None),
            Outgoing::File(file, _) => (&[][..], Some(file)),
        };
        let packet = encode(message, inline).map_err(io::Error::other)?;
        let file = file.map(|file| file.as_fd());
        let descriptors: Vec<_> = descriptors.iter().copied().chain(file).collect();
        descriptor::send(self.socket.get_ref(), &packet, &descriptors)?;
        Ok(())
    }

    #[cfg(test)]
    pub(crate) fn socket(&self) -> &OwnedFd {
        self.socket.get_ref()
    }

    /// The same without a body.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub(crate) fn say(&self, message: &impl Serialize) -> io::Result<()> {
        self.send(message, &Outgoing::Inline(Vec::new()), &[])
    }

    /// The next packet; `None` once the other end has closed.
    pub(crate) fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<Option<Packet>>> {
        loop {
            let mut guard = ready!(self.socket.poll_read_ready(cx))?;
            match descriptor::receive(self.socket.get_ref(), &mut self.buffer) {
                Ok(received) if received.len == 0 => return Poll::Ready(Ok(None)),
                Ok(received) if received.len > PACKET_BYTES_MAX => {
                    let error = MessageError::TooLong(received.len);
                    return Poll::Ready(Err(io::Error::other(error)));
                }
                Ok(received) => {
                    return Poll::Ready(Ok(Some(Packet {
                        bytes: self.buffer[..received.len].to_vec(),
                        descriptors: received.descriptors,
                    })));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => guard.clear_ready(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // What was unread when the other end died counts as its end.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                    return Poll::Ready(Ok(None));
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

/// The body of a message whose packet had `inline` after its JSON. Takes the
/// body's descriptor off `descriptors`.
///
/// # Errors
/// When it is missing, or has another length than was said.
pub(crate) fn take_body(
    body: Body,
    inline: &[u8],
    descriptors: &mut Vec<OwnedFd>,
) -> io::Result<Vec<u8>> {
    let wrong = |found| MessageError::BodyLength {
        expected: body.bytes,
        found,
    };
    let wrong = |found| io::Error::other(wrong(found));
    if !body.in_file {
        let found = inline.len() as u64;
        return if found == body.bytes {
            Ok(inline.to_vec())
        } else {
            Err(wrong(found))
        };
    }
    let file = File::from(descriptors.pop().ok_or_else(|| wrong(0))?);
    let found = file.metadata()?.len();
    if found != body.bytes || found > BODY_BYTES_MAX {
        return Err(wrong(found));
    }
    let mut bytes = vec![0; usize::try_from(found).unwrap_or(usize::MAX)];
    // Read, not mapped: whoever cuts the file meanwhile harms nobody.
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, io::Read as _, net::TcpListener};

    use super::*;
    use crate::handover::message::{FromGiver, decode};

    async fn receive(packets: &mut Packets) -> io::Result<Option<Packet>> {
        poll_fn(|cx| packets.poll_receive(cx)).await
    }

    #[tokio::test]
    async fn short_and_long_bodies_arrive_with_the_descriptors() {
        let (one, other) = pair().unwrap();
        let (one, mut other) = (Packets::new(one).unwrap(), Packets::new(other).unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        for len in [0, INLINE_BYTES_MAX, INLINE_BYTES_MAX + 1, 5_000_000] {
            let bytes: Vec<u8> = (0_u8..=250).cycle().take(len).collect();
            let outgoing = Outgoing::new(bytes.clone()).unwrap();
            let message = FromGiver::Prepare {
                batch: 1,
                connections: 2,
                body: outgoing.body(),
            };
            let two = [listener.as_fd(); 2];
            one.send(&message, &outgoing, &two).unwrap();
            let mut packet = receive(&mut other).await.unwrap().unwrap();
            let (decoded, inline) = decode::<FromGiver>(&packet.bytes).unwrap();
            assert_eq!(decoded, message);
            let body = take_body(outgoing.body(), inline, &mut packet.descriptors).unwrap();
            assert!(body == bytes, "{len}");
            assert_eq!(packet.descriptors.len(), 2);
            let same = TcpListener::from(packet.descriptors.pop().unwrap());
            assert_eq!(same.local_addr().unwrap(), listener.local_addr().unwrap());
        }
        drop(one);
        assert!(receive(&mut other).await.unwrap().is_none());
    }

    #[test]
    fn a_body_that_is_missing_or_has_another_length_is_refused() {
        let body = |bytes, in_file| Body { bytes, in_file };
        assert!(take_body(body(3, false), b"ab", &mut vec![]).is_err());
        assert!(take_body(body(3, true), b"", &mut vec![]).is_err());
        let file = || {
            let mut file = File::from(memfd_create("test", MemfdFlags::CLOEXEC).unwrap());
            file.write_all(b"abcd").unwrap();
            OwnedFd::from(file)
        };
        assert!(take_body(body(3, true), b"", &mut vec![file()]).is_err());
        assert!(take_body(body(5, true), b"", &mut vec![file()]).is_err());
        let bytes = take_body(body(4, true), b"", &mut vec![file()]).unwrap();
        assert_eq!(bytes, b"abcd");
        let (reader, writer) = io::pipe().unwrap();
        drop(writer);
        assert!(take_body(body(1, true), b"", &mut vec![reader.into()]).is_err());
    }

    #[tokio::test]
    async fn what_is_no_packet_of_ours_is_an_error_and_what_is_too_long_too() {
        let (one, other) = pair().unwrap();
        let mut other = Packets::new(other).unwrap();
        descriptor::send(&one, &[7; PACKET_BYTES_MAX + 1], &[]).unwrap();
        assert!(receive(&mut other).await.is_err());
        descriptor::send(&one, b"abcd", &[]).unwrap();
        let packet = receive(&mut other).await.unwrap().unwrap();
        assert!(decode::<FromGiver>(&packet.bytes).is_err());
        let mut nothing = [0; 1];
        assert!(
            File::from(one).read(&mut nothing).is_err(),
            "it does not block"
        );
    }
}

//! Descriptors that travel between processes, over a Unix socket (SCM_RIGHTS).

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, recvmsg, sendmsg, sockopt::socket_peercred,
    },
    process::geteuid,
};

/// Most descriptors of one message; the kernel's own limit is 253.
pub const DESCRIPTORS_MAX: usize = 64;
const SPACE_BYTES: usize = rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX));

/// One message that came in.
#[derive(Debug)]
pub struct Received {
    /// Bytes written to the buffer; 0 when the peer has closed.
    pub len: usize,
    /// Closed when a program is executed, whatever they were at the sender's.
    pub descriptors: Vec<OwnedFd>,
}

/// Sends `bytes` (at least one) and with the first of them the descriptors;
/// returns how many bytes went out.
///
/// # Errors
///
/// When there are more than [`DESCRIPTORS_MAX`], no bytes, or the socket fails;
/// nothing has been sent then.
pub fn send(socket: impl AsFd, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); SPACE_BYTES];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fits = descriptors.is_empty() || control.push(SendAncillaryMessage::ScmRights(descriptors));
    if bytes.is_empty() || !fits {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let flags = SendFlags::NOSIGNAL;
    Ok(sendmsg(
        socket,
        &[IoSlice::new(bytes)],
        &mut control,
        flags,
    )?)
}

/// Receives bytes and the descriptors that came with them.
///
/// # Errors
///
/// When the socket fails, or more than [`DESCRIPTORS_MAX`] came (or more than
/// this process may have), which are all closed then.
pub fn receive(socket: impl AsFd, bytes: &mut [u8]) -> io::Result<Received> {
    let mut space = [MaybeUninit::uninit(); SPACE_BYTES];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    let message = recvmsg(socket, &mut [IoSliceMut::new(bytes)], &mut control, flags)?;
    let descriptors = control.drain().flat_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => descriptors.collect(),
        // Nothing else was asked for.
        RecvAncillaryMessage::ScmCredentials(_) | _ => Vec::new(),
    });
    let descriptors: Vec<OwnedFd> = descriptors.collect();
    if message.flags.contains(ReturnFlags::CTRUNC) {
        return Err(io::Error::other("more descriptors than can be taken"));
    }
    Ok(Received {
        len: message.bytes,
        descriptors,
    })
}

/// Whether the process at the other end belongs to this user, or to root.
///
/// # Errors
///
/// When the socket has no peer.
pub fn is_trusted(socket: impl AsFd) -> io::Result<bool> {
    let peer = socket_peercred(socket)?.uid;
    Ok(peer == geteuid() || peer.is_root())
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io::{Read as _, Write as _, pipe},
        os::unix::net::UnixStream,
    };

    use rustix::io::{FdFlags, fcntl_getfd};

    use super::*;

    #[test]
    fn a_descriptor_arrives_as_the_same_open_file_and_is_not_inherited() {
        let (a, b) = UnixStream::pair().unwrap();
        let (mut reader, writer) = pipe().unwrap();
        assert_eq!(send(&a, b"one", &[writer.as_fd()]).unwrap(), 3);
        drop(writer);
        let mut bytes = [0; 16];
        let mut received = receive(&b, &mut bytes).unwrap();
        assert_eq!(&bytes[..received.len], b"one");
        let writer = received.descriptors.pop().unwrap();
        assert!(received.descriptors.is_empty());
        assert!(fcntl_getfd(&writer).unwrap().contains(FdFlags::CLOEXEC));
        File::from(writer).write_all(b"through").unwrap();
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
    }

    #[test]
    fn bytes_may_come_alone_and_the_end_is_told() {
        let (a, b) = UnixStream::pair().unwrap();
        send(&a, b"x", &[]).unwrap();
        drop(a);
        let mut bytes = [0; 16];
        let received = receive(&b, &mut bytes).unwrap();
        assert_eq!((received.len, received.descriptors.len()), (1, 0));
        assert_eq!(receive(&b, &mut bytes).unwrap().len, 0);
    }

    #[test]
    fn as_many_as_are_allowed_arrive_and_more_are_refused() {
        let (a, b) = UnixStream::pair().unwrap();
        let many = vec![a.as_fd(); DESCRIPTORS_MAX];
        send(&a, b"x", &many).unwrap();
        let received = receive(&b, &mut [0; 1]).unwrap();
        assert_eq!(received.descriptors.len(), DESCRIPTORS_MAX);
        let more = vec![a.as_fd(); DESCRIPTORS_MAX + 8];
        let refused = send(&a, b"x", &more).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidInput);
        let refused = send(&a, b"", &[]).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn a_process_of_this_user_is_trusted() {
        let (a, _b) = UnixStream::pair().unwrap();
        assert!(is_trusted(&a).unwrap());
    }
}

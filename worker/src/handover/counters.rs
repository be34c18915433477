//! What the kernel knows of a client's socket, whoever touched it: how many
//! bytes were ever read from it and written to it (delivery.md D3).
//!
//! `getsockopt(TCP_INFO)` has no safe form here, so the socket is looked up in
//! the kernel's own list (`sock_diag`, as `ss` does), where the same figures are.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, getpeername, getsockname,
    netlink::{self, SocketAddrNetlink},
    recv, sendto, socket_with,
    sockopt::{Timeout, set_socket_timeout, socket_cookie},
};

/// Bytes that went through a TCP socket since it was accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Counters {
    /// Read by this or another process.
    pub(crate) received_bytes: u64,
    /// Written by this or another process.
    pub(crate) sent_bytes: u64,
}

/// Longest that the kernel may take to answer.
const PATIENCE: Duration = Duration::from_millis(500);
const ANSWER_BYTES_MAX: usize = 8 * 1024;

// From linux/netlink.h, linux/sock_diag.h and linux/inet_diag.h.
const HEADER_BYTES: usize = 16;
const REQUEST_BYTES: usize = HEADER_BYTES + 56;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST: u16 = 1;
const IPPROTO_TCP: u8 = 6;
const INET_DIAG_INFO: u16 = 2;
/// Of `inet_diag_msg`: where its queues' lengths and its attributes are.
const RQUEUE_AT: usize = 56;
const WQUEUE_AT: usize = 60;
const ATTRIBUTES_AT: usize = 72;
/// Of `tcp_info`.
const BYTES_ACKED_AT: usize = 120;
const BYTES_RECEIVED_AT: usize = 128;

/// Asks the kernel.
///
/// # Errors
/// When it does not know the socket, or does not say: containers may lack it.
pub(crate) fn read(socket: impl AsFd) -> io::Result<Counters> {
    let request = request(&socket)?;
    let diag = open()?;
    let kernel = SocketAddrNetlink::new(0, 0);
    sendto(&diag, &request, SendFlags::empty(), &kernel)?;
    let mut answer = [0; ANSWER_BYTES_MAX];
    let (len, _) = recv(&diag, &mut answer, RecvFlags::empty())?;
    parse(&answer[..len]).ok_or_else(|| io::Error::other("the kernel does not know the socket"))
}

fn open() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    let protocol = Some(netlink::SOCK_DIAG);
    let diag = socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, protocol)?;
    set_socket_timeout(&diag, Timeout::Recv, Some(PATIENCE))?;
    Ok(diag)
}

/// `struct nlmsghdr` and `struct inet_diag_req_v2`.
fn request(socket: &impl AsFd) -> io::Result<Vec<u8>> {
    let local = SocketAddr::try_from(getsockname(socket)?)?;
    let remote = getpeername(socket)?.ok_or(io::ErrorKind::NotConnected)?;
    let remote = SocketAddr::try_from(remote)?;
    let family = match local.ip() {
        IpAddr::V4(_) => AddressFamily::INET,
        IpAddr::V6(_) => AddressFamily::INET6,
    };
    let mut request = Vec::with_capacity(REQUEST_BYTES);
    let len = u32::try_from(REQUEST_BYTES).unwrap_or(u32::MAX);
    request.extend_from_slice(&len.to_ne_bytes());
    request.extend_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    request.extend_from_slice(&NLM_F_REQUEST.to_ne_bytes());
    request.extend_from_slice(&[0; 8]);
    let family = u8::try_from(family.as_raw()).unwrap_or_default();
    let wanted = 1_u8 << (INET_DIAG_INFO - 1);
    request.extend_from_slice(&[family, IPPROTO_TCP, wanted, 0]);
    // In any state.
    request.extend_from_slice(&u32::MAX.to_ne_bytes());
    request.extend_from_slice(&local.port().to_be_bytes());
    request.extend_from_slice(&remote.port().to_be_bytes());
    for ip in [local.ip(), remote.ip()] {
        let mut bytes = [0; 16];
        match ip {
            IpAddr::V4(ip) => bytes[..4].copy_from_slice(&ip.octets()),
            IpAddr::V6(ip) => bytes = ip.octets(),
        }
        request.extend_from_slice(&bytes);
    }
    // On whatever interface.
    request.extend_from_slice(&0_u32.to_ne_bytes());
    request.extend_from_slice(&socket_cookie(socket)?.to_ne_bytes());
    Ok(request)
}

/// `struct nlmsghdr`, `struct inet_diag_msg`, and its attributes.
fn parse(answer: &[u8]) -> Option<Counters> {
    let len = usize::try_from(u32_at(answer, 0)?).ok()?;
    let kind = u16_at(answer, 4)?;
    if kind != SOCK_DIAG_BY_FAMILY {
        return None;
    }
    let message = answer.get(HEADER_BYTES..len)?;
    let unread = u64::from(u32_at(message, RQUEUE_AT)?);
    let unacked = u64::from(u32_at(message, WQUEUE_AT)?);
    let mut at = ATTRIBUTES_AT;
    loop {
        let len = usize::from(u16_at(message, at)?);
        let kind = u16_at(message, at + 2)?;
        if kind == INET_DIAG_INFO {
            let info = message.get(at + 4..at + len)?;
            return Some(Counters {
                received_bytes: u64_at(info, BYTES_RECEIVED_AT)?.checked_sub(unread)?,
                sent_bytes: u64_at(info, BYTES_ACKED_AT)? + unacked,
            });
        }
        // Each begins at a multiple of four; one without a length is no end.
        at += len.max(4).next_multiple_of(4);
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::{TcpListener, TcpStream},
    };

    use super::*;

    fn counted(received_bytes: u64, sent_bytes: u64) -> Counters {
        Counters {
            received_bytes,
            sent_bytes,
        }
    }

    #[test]
    fn bytes_count_when_they_are_read_and_when_they_are_written() {
        for addr in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(addr) else {
                continue; // No IPv6 here.
            };
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (mut accepted, _) = listener.accept().unwrap();
            assert_eq!(read(&accepted).unwrap(), counted(0, 0));
            client.write_all(&[1; 100]).unwrap();
            accepted.read_exact(&mut [0; 40]).unwrap();
            assert_eq!(read(&accepted).unwrap(), counted(40, 0));
            accepted.write_all(&[2; 77]).unwrap();
            assert_eq!(read(&accepted).unwrap(), counted(40, 77));
            client.read_exact(&mut [0; 77]).unwrap();
            accepted
                .try_clone()
                .unwrap()
                .read_exact(&mut [0; 60])
                .unwrap();
            assert_eq!(read(&accepted).unwrap(), counted(100, 77));
        }
    }

    #[test]
    fn a_socket_that_is_not_connected_and_an_answer_that_is_none_are_errors() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(read(&listener).is_err());
        for garbage in [&[][..], &[0xff; 200], &[0; 200]] {
            assert_eq!(parse(garbage), None);
        }
        let mut endless = vec![0; 400];
        endless[..4].copy_from_slice(&400_u32.to_ne_bytes());
        endless[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        assert_eq!(parse(&endless), None);
    }
}

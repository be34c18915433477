//! How an orchestrator that is started anew gets a descriptor back which only
//! its nodes have left: the listening socket (delivery.md E3). And how one worker
//! reaches another, to hand connections over to it.
//!
//! A node listens on a Unix socket of its own in the runtime directory. Whoever
//! sends the one request there gets the descriptor; who sends the other one with
//! one end of a socket has it taken; anything else is answered by closing.

use std::{
    convert::Infallible,
    fs, io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::{
            fs::{FileTypeExt as _, PermissionsExt as _},
            net::UnixStream as BlockingUnixStream,
        },
    },
    path::Path,
    time::Duration,
};

use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with,
    sockopt::{Timeout, set_socket_timeout},
};
use tokio::{
    io::Interest,
    net::{UnixListener, UnixStream},
    sync::mpsc,
    time::{sleep, timeout},
};
use tracing::{debug, warn};

use crate::descriptor;

const REQUEST: &[u8; 24] = b"muster/1 give listener?\n";
/// One end of a socket between two workers comes along.
const OFFER: &[u8; 24] = b"muster/1 take sessions?\n";
const ANSWER: &[u8] = b"muster/1 listener\n";
/// Longest that either end waits for the other.
const PATIENCE: Duration = Duration::from_secs(1);
const SOCKET_MODE: u32 = 0o600;

/// Binds a node's socket, for this user alone; one that is left over at its
/// path is replaced.
///
/// # Errors
///
/// When it cannot be made, or something else is at its path.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.file_type().is_socket() => fs::remove_file(path)?,
        Ok(_) => return Err(io::ErrorKind::AlreadyExists.into()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let socket = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(SOCKET_MODE))?;
    Ok(socket)
}

/// Gives `listener` to whoever asks properly, and passes on what is offered, one
/// after the other.
pub async fn serve(
    socket: UnixListener,
    listener: OwnedFd,
    offers: mpsc::Sender<OwnedFd>,
) -> Infallible {
    loop {
        match socket.accept().await {
            Ok((peer, _)) => match timeout(PATIENCE, answer(peer, &listener, &offers)).await {
                Ok(Ok(())) => debug!("Answered on the adoption socket."),
                Ok(Err(error)) => warn!(%error, "Refused what was asked on the adoption socket."),
                Err(_) => warn!("Nothing was asked on the adoption socket in time."),
            },
            Err(error) => {
                // Out of descriptors, for one; it would come back at once.
                warn!(%error, "Cannot accept on the adoption socket.");
                sleep(PATIENCE).await;
            }
        }
    }
}

async fn answer(
    peer: UnixStream,
    listener: &OwnedFd,
    offers: &mpsc::Sender<OwnedFd>,
) -> io::Result<()> {
    if !descriptor::is_trusted(&peer)? {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let mut request = [0; REQUEST.len()];
    let mut len = 0;
    let mut descriptors = Vec::new();
    while len < request.len() {
        let receive = || descriptor::receive(&peer, &mut request[len..]);
        let received = peer.async_io(Interest::READABLE, receive).await?;
        if received.len == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        len += received.len;
        descriptors.extend(received.descriptors);
    }
    match (&request, descriptors.pop()) {
        (REQUEST, None) => {}
        (OFFER, Some(offered)) if descriptors.is_empty() => {
            // Whoever waits for an answer on it sees it close.
            return offers
                .try_send(offered)
                .map_err(|_| io::Error::other("too many connections are handed over at once"));
        }
        _ => return Err(io::Error::other("this is no request of this release")),
    }
    let send = || descriptor::send(&peer, ANSWER, &[listener.as_fd()]);
    let sent = peer.async_io(Interest::WRITABLE, send).await?;
    debug_assert_eq!(sent, ANSWER.len(), "a new socket has room for a line");
    Ok(())
}

/// Offers one end of a socket to the worker behind `path`; the process id of
/// that. Whether the worker takes it shows on the other end.
///
/// # Errors
///
/// When it cannot be reached in time, or is another user's.
pub async fn offer(path: &Path, descriptor: OwnedFd) -> io::Result<u32> {
    let offer = async {
        let peer = UnixStream::connect(path).await?;
        if !descriptor::is_trusted(&peer)? {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let pid = peer
            .peer_cred()?
            .pid()
            .and_then(|pid| u32::try_from(pid).ok());
        let send = || descriptor::send(&peer, OFFER, &[descriptor.as_fd()]);
        let sent = peer.async_io(Interest::WRITABLE, send).await?;
        debug_assert_eq!(sent, OFFER.len(), "a new socket has room for a line");
        pid.ok_or_else(|| io::Error::other("the worker's process is not known"))
    };
    let in_time = timeout(PATIENCE, offer).await;
    in_time.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Asks the node behind `path` for its listening socket. Blocks, for two
/// seconds at most.
///
/// # Errors
///
/// When it cannot be reached, does not answer in time or answers otherwise.
pub fn ask(path: &Path) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // Also for connecting, which waits while the node has no room for more.
    set_socket_timeout(&socket, Timeout::Send, Some(PATIENCE))?;
    set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE))?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    let socket = BlockingUnixStream::from(socket);
    if !descriptor::is_trusted(&socket)? {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    descriptor::send(&socket, REQUEST, &[])?;
    let mut bytes = [0; ANSWER.len() + 1];
    let received = descriptor::receive(&socket, &mut bytes)?;
    let mut descriptors = received.descriptors.into_iter();
    match (descriptors.next(), descriptors.next()) {
        (Some(listener), None) if bytes[..received.len] == *ANSWER => Ok(listener),
        _ => Err(io::Error::other("the node gave no listening socket")),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::TcpListener,
        os::unix::net::UnixListener as BlockingUnixListener,
        path::PathBuf,
    };

    use super::*;

    /// A node's socket that is served by a thread of its own.
    fn served(dir: &Path) -> (PathBuf, TcpListener) {
        let (path, listener, _) = served_with_offers(dir);
        (path, listener)
    }

    /// The same with what is offered there.
    fn served_with_offers(dir: &Path) -> (PathBuf, TcpListener, mpsc::Receiver<OwnedFd>) {
        let (offers, offered) = mpsc::channel(1);
        let path = dir.join("worker-1-1.sock");
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let given = OwnedFd::from(listener.try_clone().unwrap());
        let (bound, is_bound) = std::sync::mpsc::channel();
        let socket = path.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let socket = bind(&socket).unwrap();
                bound.send(()).unwrap();
                serve(socket, given, offers).await
            })
        });
        is_bound.recv().unwrap();
        (path, listener, offered)
    }

    #[test]
    fn who_asks_gets_the_listening_socket_as_often_as_he_asks() {
        let dir = tempfile::tempdir().unwrap();
        let (path, listener) = served(dir.path());
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        for _ in 0..3 {
            let given = TcpListener::from(ask(&path).unwrap());
            assert_eq!(given.local_addr().unwrap(), listener.local_addr().unwrap());
        }
    }

    #[test]
    fn garbage_is_answered_by_closing_and_harms_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let (path, _listener) = served(dir.path());
        for garbage in [
            b"GET / HTTP/1.1\r\nHost: muster\r\n\r\n".as_slice(),
            &[0; 4096],
            b"muster/2 give listener?\n",
        ] {
            let mut peer = BlockingUnixStream::connect(&path).unwrap();
            peer.write_all(garbage).unwrap();
            let mut answer = Vec::new();
            // Reset or end: nothing comes back.
            let _ = peer.read_to_end(&mut answer);
            assert!(answer.is_empty());
        }
        // One that says nothing holds the others up for a second at most.
        let silent = BlockingUnixStream::connect(&path).unwrap();
        drop(BlockingUnixStream::connect(&path).unwrap());
        let given = (0..5).find_map(|_| ask(&path).ok());
        assert!(given.is_some(), "somebody who asks properly is answered");
        drop(silent);
    }

    #[test]
    fn a_node_that_does_not_answer_or_answers_otherwise_gives_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("worker-1-1.sock");
        assert!(ask(&path).is_err());
        let socket = BlockingUnixListener::bind(&path).unwrap();
        let hung = ask(&path).unwrap_err();
        assert_eq!(hung.kind(), io::ErrorKind::WouldBlock);
        let liar = std::thread::spawn(move || {
            let (_hung, _) = socket.accept().unwrap();
            let (peer, _) = socket.accept().unwrap();
            descriptor::send(&peer, ANSWER, &[]).unwrap();
            let (peer, _) = socket.accept().unwrap();
            descriptor::send(&peer, b"take it\n", &[peer.as_fd()]).unwrap();
        });
        for _ in 0..2 {
            let error = ask(&path).unwrap_err().to_string();
            assert!(error.contains("gave no listening socket"), "{error}");
        }
        liar.join().unwrap();
    }

    #[tokio::test]
    async fn what_is_offered_properly_is_taken_and_the_worker_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let (path, _listener, mut offered) = served_with_offers(dir.path());
        let (one, other) = BlockingUnixStream::pair().unwrap();
        let pid = offer(&path, other.into()).await.unwrap();
        assert_eq!(pid, std::process::id());
        let taken = BlockingUnixStream::from(offered.recv().await.unwrap());
        (&one).write_all(b"x").unwrap();
        (&taken).read_exact(&mut [0; 1]).unwrap();
        // Without a descriptor, and with one for the other request.
        for (request, descriptors) in [(OFFER, &[][..]), (REQUEST, &[one.as_fd()])] {
            let peer = BlockingUnixStream::connect(&path).unwrap();
            descriptor::send(&peer, request, descriptors).unwrap();
            assert_eq!((&peer).read(&mut [0; 1]).unwrap_or(0), 0, "it is closed");
        }
        drop(offered);
        let missing = offer(&dir.path().join("nobody"), one.into()).await;
        assert_eq!(missing.unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[tokio::test]
    async fn only_a_leftover_socket_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("worker-1-1.sock");
        drop(bind(&path).unwrap());
        drop(bind(&path).unwrap());
        fs::remove_file(&path).unwrap();
        fs::write(&path, "a file").unwrap();
        assert!(bind(&path).is_err());
    }
}

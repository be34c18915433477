//! A Unix stream that wakes its task up only for what the task waits for.
//!
//! The kernel tells a Unix socket's owner each time the other end has read
//! something, and tokio's own streams always listen to that: of two processes
//! that exchange messages each one wakes up once more per message, for nothing.
//! This one watches for room only while a write waits for it.

use std::{
    io::{self, IoSlice, Read as _, Write as _},
    net::Shutdown,
    os::unix::net::UnixStream,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf, unix::AsyncFd};

/// Bytes read at once. The buffer has to be cleared before, so it is no more
/// than what a socket holds.
const READ_BYTES_MAX: usize = 64 * 1024;

/// A connected Unix stream socket.
#[derive(Debug)]
pub struct QuietStream {
    socket: AsyncFd<UnixStream>,
    /// While a write waits for room: the same socket, watched for that.
    room: Option<AsyncFd<UnixStream>>,
}

impl QuietStream {
    /// Takes over a socket that never blocks.
    ///
    /// # Errors
    ///
    /// When the socket cannot be watched.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with IO enabled.
    pub fn new(socket: tokio::net::UnixStream) -> io::Result<Self> {
        Ok(Self {
            socket: watch(socket.into_std()?, Interest::READABLE)?,
            room: None,
        })
    }

    fn poll_write_with(
        &mut self,
        cx: &mut Context<'_>,
        mut write: impl FnMut(&UnixStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            if let Some(room) = &self.room {
                let _has_room = ready!(room.poll_write_ready(cx))?;
                self.room = None;
            }
            match write(self.socket.get_ref()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let same = self.socket.get_ref().try_clone()?;
                    self.room = Some(watch(same, Interest::WRITABLE)?);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                written => return Poll::Ready(written),
            }
        }
    }
}

fn watch(socket: UnixStream, interest: Interest) -> io::Result<AsyncFd<UnixStream>> {
    #[expect(
        deprecated,
        reason = "its successor is unsafe for descriptors that may close early; this one is owned"
    )]
    AsyncFd::with_interest(socket, interest)
}

impl AsyncRead for QuietStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let room = buffer.remaining().min(READ_BYTES_MAX);
        loop {
            let mut guard = ready!(self.socket.poll_read_ready(cx))?;
            let mut socket = self.socket.get_ref();
            match socket.read(buffer.initialize_unfilled_to(room)) {
                Ok(read) => {
                    // More than that was not there: no need to ask again.
                    if read > 0 && read < room {
                        guard.clear_ready();
                    }
                    buffer.advance(read);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => guard.clear_ready(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for QuietStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.get_mut()
            .poll_write_with(cx, |mut socket| socket.write(bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut()
            .poll_write_with(cx, |mut socket| socket.write_vectored(slices))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.socket.get_ref().shutdown(Shutdown::Write))
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, thread};

    use rustix::{
        net::{self, RecvFlags},
        process::Pid,
        thread::gettid,
    };
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    fn pair() -> (QuietStream, QuietStream) {
        let (one, other) = tokio::net::UnixStream::pair().unwrap();
        (
            QuietStream::new(one).unwrap(),
            QuietStream::new(other).unwrap(),
        )
    }

    #[tokio::test]
    async fn every_byte_arrives_in_order_however_full_the_socket_is() {
        let (mut one, mut other) = pair();
        let sent: Vec<u8> = (0..4_000_000_u32).flat_map(u32::to_le_bytes).collect();
        let expected = sent.clone();
        let write = async move {
            let (front, back) = sent.split_at(1000);
            let slices = [IoSlice::new(front), IoSlice::new(back)];
            let written = one.write_vectored(&slices).await.unwrap();
            one.write_all(&sent[written..]).await.unwrap();
            assert!(one.room.is_none(), "nothing waits for room any more");
            one.shutdown().await.unwrap();
            one
        };
        let read = async move {
            let mut got = Vec::new();
            other.read_to_end(&mut got).await.unwrap();
            (got, other)
        };
        let (mut one, (got, other)) = tokio::join!(write, read);
        assert!(got == expected);
        drop(other);
        let error = one.write_all(b"late").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }

    /// How often the thread has gone to sleep, once it sleeps.
    fn sleeps(thread: Pid) -> u64 {
        loop {
            let path = format!("/proc/self/task/{}/status", thread.as_raw_pid());
            let status = fs::read_to_string(path).unwrap();
            let field = |name| status.lines().find_map(|line| line.strip_prefix(name));
            if field("State:\t").unwrap().starts_with('S') {
                return field("voluntary_ctxt_switches:\t")
                    .unwrap()
                    .parse()
                    .unwrap();
            }
            thread::yield_now();
        }
    }

    #[tokio::test]
    async fn what_the_other_end_reads_wakes_nobody_up() {
        let (one, mut other) = UnixStream::pair().unwrap();
        one.set_nonblocking(true).unwrap();
        let mut one = QuietStream::new(one.try_into().unwrap()).unwrap();
        let runtime = gettid();
        let answers = thread::spawn(move || {
            net::recv(&other, &mut [0; 8], RecvFlags::PEEK).unwrap();
            let before = sleeps(runtime);
            other.read_exact(&mut [0; 8]).unwrap();
            // Who was woken up goes to sleep once more.
            let after = sleeps(runtime);
            other.write_all(b"answer").unwrap();
            (before, after)
        });
        one.write_all(b"question").await.unwrap();
        let mut answer = [0; 6];
        one.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"answer");
        let (before, after) = answers.join().unwrap();
        assert_eq!(before, after);
    }

    #[tokio::test]
    async fn the_end_of_the_other_side_is_read_as_the_end() {
        let (mut one, other) = pair();
        drop(other);
        let mut got = Vec::new();
        one.read_to_end(&mut got).await.unwrap();
        assert!(got.is_empty());
    }
}

//! The floor with a hop: workers, and a broker that passes on what they send.

use std::{
    io,
    net::TcpListener,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
    process::{Child, Command, Stdio},
};

use rustix::{
    event::epoll::{self, CreateFlags, EventData, EventFlags},
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with,
        bind, connect, listen, recv, send, socket_with, sockopt,
    },
};

use super::{
    EVENTS_MAX, Settings,
    clients::{Clients, Publication},
    wait,
};

const WORKERS: u32 = 2;
const LISTENER: u64 = u64::MAX;
const BROKER: u64 = u64::MAX - 1;
/// Longest message of the hop.
const MESSAGE_BYTES_MAX: usize = 128 << 10;
/// Bytes that a link takes before its sender waits.
const LINK_BYTES: usize = 4 << 20;

/// Starts the workers and is their broker, until it is killed. The workers are
/// this program with `worker SOCKET`, and the listening socket as their input.
///
/// # Errors
/// When the system does not let it listen, wait, or start processes.
pub fn run_cluster(settings: Settings, ready: impl FnOnce(&TcpListener)) -> io::Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("broker.sock");
    let socket = seqpacket()?;
    bind(&socket, &SocketAddrUnix::new(&path)?)?;
    listen(&socket, 16)?;
    let listener = TcpListener::bind(settings.listen)?;
    listener.set_nonblocking(true)?;
    let program = std::env::current_exe()?;
    let _workers = (0..WORKERS)
        .map(|_| Worker::start(&program, &path, &listener))
        .collect::<io::Result<Vec<_>>>()?;
    let links = (0..WORKERS)
        .map(|_| {
            let link = accept_with(&socket, SocketFlags::CLOEXEC)?;
            sockopt::set_socket_send_buffer_size(&link, LINK_BYTES)?;
            Ok(link)
        })
        .collect::<io::Result<Vec<OwnedFd>>>()?;
    ready(&listener);
    // A worker accepts only what comes to it; this process never does.
    drop(listener);
    pass_on(&links)
}

/// The broker: each message goes to every worker, one send each.
fn pass_on(links: &[OwnedFd]) -> io::Result<()> {
    let epoll = epoll::create(CreateFlags::CLOEXEC)?;
    for (index, link) in links.iter().enumerate() {
        let data = EventData::new_u64(index as u64);
        epoll::add(&epoll, link, data, EventFlags::IN)?;
    }
    let mut events = Vec::with_capacity(EVENTS_MAX);
    let mut buffer = vec![0; MESSAGE_BYTES_MAX];
    loop {
        wait(&epoll, &mut events)?;
        for event in &events {
            let index = usize::try_from(event.data.u64()).unwrap_or(usize::MAX);
            let Some(from) = links.get(index) else {
                continue;
            };
            let (_, len) = recv(from, &mut buffer[..], RecvFlags::empty())?;
            if len == 0 {
                return Ok(());
            }
            for link in links {
                send(link, &buffer[..len], SendFlags::NOSIGNAL)?;
            }
        }
    }
}

/// A worker, with the listening socket as its standard input.
///
/// # Errors
/// When the system does not let it wait, or its broker is gone.
pub fn run_worker(broker: &Path) -> io::Result<()> {
    let link = seqpacket()?;
    sockopt::set_socket_send_buffer_size(&link, LINK_BYTES)?;
    connect(&link, &SocketAddrUnix::new(broker)?)?;
    let listener = io::stdin().as_fd().try_clone_to_owned()?;
    let epoll = epoll::create(CreateFlags::CLOEXEC)?;
    for (socket, data) in [(&listener, LISTENER), (&link, BROKER)] {
        epoll::add(&epoll, socket, EventData::new_u64(data), EventFlags::IN)?;
    }
    let mut clients = Clients::new();
    let mut events = Vec::with_capacity(EVENTS_MAX);
    let mut publications = Vec::new();
    let mut buffer = vec![0; MESSAGE_BYTES_MAX];
    loop {
        wait(&epoll, &mut events)?;
        for event in &events {
            match event.data.u64() {
                LISTENER => clients.accept(&epoll, &listener)?,
                BROKER => {
                    let (_, len) = recv(&link, &mut buffer[..], RecvFlags::empty())?;
                    let Some((channel, frame)) = unpacked(&buffer[..len]) else {
                        return Ok(());
                    };
                    clients.deliver(&epoll, channel, frame);
                }
                key => {
                    let key = usize::try_from(key).unwrap_or(usize::MAX);
                    clients.handle(&epoll, key, event.flags, &mut publications);
                    for publication in publications.drain(..) {
                        match send(&link, &packed(&publication), SendFlags::NOSIGNAL) {
                            Ok(_) => {}
                            Err(Errno::PIPE) => return Ok(()),
                            Err(error) => return Err(error.into()),
                        }
                    }
                }
            }
        }
        clients.handle_time(&epoll);
    }
}

#[derive(Debug)]
struct Worker(Child);

impl Worker {
    fn start(program: &Path, broker: &Path, listener: &TcpListener) -> io::Result<Self> {
        let listener = OwnedFd::from(listener.try_clone()?);
        let child = Command::new(program)
            .args(["--worker-of".as_ref(), broker.as_os_str()])
            .stdin(Stdio::from(listener))
            .spawn()?;
        Ok(Self(child))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn seqpacket() -> io::Result<OwnedFd> {
    let socket = socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    Ok(socket)
}

/// Channel, zero byte, frame.
fn packed(publication: &Publication) -> Vec<u8> {
    [
        publication.channel.as_bytes(),
        b"\0",
        &publication.frame[..],
    ]
    .concat()
}

fn unpacked(message: &[u8]) -> Option<(&str, &[u8])> {
    let end = message.iter().position(|byte| *byte == 0)?;
    let channel = std::str::from_utf8(&message[..end]).ok()?;
    Some((channel, &message[end + 1..]))
}

//! The sockets of one process's connections.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::OwnedFd;

use rustix::{
    event::epoll,
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, sockopt},
    process::{Resource, Rlimit, getrlimit, setrlimit},
};

use crate::{
    BenchError,
    clients::{Event, Protocol},
    clock::Micros,
    options::{RunOptions, Target},
    plan::Role,
    publisher::Publisher,
    tally::Tally,
};

/// One connection with its accounts.
#[derive(Debug)]
pub(crate) struct Client {
    number: u32,
    pub(crate) channel: u32,
    pub(crate) subscribes: bool,
    pub(crate) tally: Tally,
    pub(crate) publisher: Option<Publisher>,
    /// Whether it ever was.
    pub(crate) was_ready: bool,
    /// When the server last sent anything.
    pub(crate) last_heard: Micros,
    /// Whether it may publish.
    pub(crate) protocol_is_ready: bool,
    socket: Option<OwnedFd>,
    protocol: Option<Protocol>,
    /// Bytes of an unfinished frame.
    unread: Vec<u8>,
    unsent: Vec<u8>,
    waits_for_room: bool,
}

impl Client {
    pub(crate) fn new(index: usize, role: &Role, publishers_per_channel: u32) -> Self {
        let publishers = if role.subscribes {
            publishers_per_channel
        } else {
            0
        };
        Self {
            number: u32::try_from(index).unwrap_or(u32::MAX),
            channel: role.channel,
            subscribes: role.subscribes,
            tally: Tally::new(publishers),
            publisher: role.publishes.clone().map(Publisher::new),
            was_ready: false,
            protocol_is_ready: false,
            last_heard: 0,
            socket: None,
            protocol: None,
            unread: Vec::new(),
            unsent: Vec::new(),
            waits_for_room: false,
        }
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.protocol_is_ready
    }

    pub(crate) fn read(&self, buffer: &mut [u8]) -> Result<usize, Errno> {
        match &self.socket {
            Some(socket) => rustix::io::read(socket, buffer),
            None => Err(Errno::AGAIN),
        }
    }

    /// Takes what was read and gives every event to `on`.
    pub(crate) fn receive(&mut self, input: &mut [u8], mut on: impl FnMut(&mut Self, Event<'_>)) {
        let Some(mut protocol) = self.protocol.take() else {
            return;
        };
        let mut unsent = std::mem::take(&mut self.unsent);
        let mut unread = std::mem::take(&mut self.unread);
        if unread.is_empty() {
            let used = protocol.receive(input, &mut unsent, |event| on(self, event));
            unread.extend_from_slice(&input[used..]);
        } else {
            unread.extend_from_slice(input);
            let used = protocol.receive(&mut unread, &mut unsent, |event| on(self, event));
            unread.drain(..used);
        }
        if unread.is_empty() {
            unread = Vec::new();
        }
        self.protocol_is_ready = protocol.is_ready();
        self.unread = unread;
        self.unsent = unsent;
        self.protocol = Some(protocol);
    }

    pub(crate) fn send(&mut self, text: &[u8]) {
        if let Some(protocol) = &self.protocol {
            protocol.send(text, &mut self.unsent);
        }
    }

    /// Says goodbye.
    pub(crate) fn send_close(&mut self) {
        if let Some(protocol) = &self.protocol {
            protocol.send_close(&mut self.unsent);
        }
    }

    pub(crate) fn drop_socket(&mut self) {
        // Closing takes it out of the epoll set.
        self.socket = None;
        self.protocol = None;
        self.protocol_is_ready = false;
        self.unread = Vec::new();
        self.unsent = Vec::new();
        self.waits_for_room = false;
    }
}

/// Where and from where this process connects.
#[derive(Debug)]
pub(crate) struct Sockets {
    target: Target,
    source_addresses: u32,
    /// Connections made so far, to take the source addresses in turn.
    made: u32,
}

impl Sockets {
    pub(crate) fn new(options: &RunOptions, index: u32) -> Result<Self, BenchError> {
        let limit = getrlimit(Resource::Nofile);
        // Too few descriptors show later as failed connections.
        let _ = setrlimit(
            Resource::Nofile,
            Rlimit {
                current: limit.maximum,
                ..limit
            },
        );
        Ok(Self {
            // The parent always names it.
            target: options.url.as_deref().unwrap_or_default().parse()?,
            source_addresses: options.source_addresses,
            made: index,
        })
    }

    /// Begins a connection; a failure shows as an event of its socket.
    pub(crate) fn connect(
        &mut self,
        epoll: &OwnedFd,
        index: usize,
        client: &mut Client,
        run_id: u64,
    ) -> Result<(), BenchError> {
        let failed = |error: Errno| BenchError::io("cannot connect")(error.into());
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let family = match self.target.addr {
            SocketAddr::V4(_) => AddressFamily::INET,
            SocketAddr::V6(_) => AddressFamily::INET6,
        };
        let socket =
            rustix::net::socket_with(family, SocketType::STREAM, flags, None).map_err(failed)?;
        sockopt::set_tcp_nodelay(&socket, true).map_err(failed)?;
        if self.source_addresses > 0 {
            let last = u8::try_from(2 + self.made % self.source_addresses).unwrap_or(2);
            let source = SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, last), 0);
            rustix::net::bind(&socket, &source).map_err(failed)?;
        }
        self.made += 1;
        match rustix::net::connect(&socket, &self.target.addr) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(error) => return Err(failed(error)),
        }
        let channel = client
            .subscribes
            .then(|| channel_name(run_id, client.channel));
        let mut unsent = Vec::new();
        client.protocol = Some(Protocol::begin(
            &self.target,
            channel,
            client.number,
            &mut unsent,
        ));
        client.unsent = unsent;
        client.waits_for_room = true;
        let data = epoll::EventData::new_u64(index as u64);
        epoll::add(
            epoll,
            &socket,
            data,
            epoll::EventFlags::IN | epoll::EventFlags::OUT,
        )
        .map_err(failed)?;
        client.socket = Some(socket);
        Ok(())
    }

    /// Writes what there is. A failed socket shows when it is read.
    #[expect(clippy::unused_self, reason = "writing is a matter of the sockets")]
    pub(crate) fn flush(&self, epoll: &OwnedFd, index: usize, client: &mut Client) {
        let Some(socket) = &client.socket else { return };
        let mut sent = 0;
        while sent < client.unsent.len() {
            match rustix::io::write(socket, &client.unsent[sent..]) {
                Ok(len) => sent += len,
                Err(Errno::INTR) => {}
                Err(_) => break,
            }
        }
        if sent == client.unsent.len() {
            client.unsent = Vec::new();
        } else {
            client.unsent.drain(..sent);
        }
        let waits = !client.unsent.is_empty();
        if waits != client.waits_for_room {
            client.waits_for_room = waits;
            let out = if waits {
                epoll::EventFlags::OUT
            } else {
                epoll::EventFlags::empty()
            };
            let data = epoll::EventData::new_u64(index as u64);
            // It fails only for a socket that is gone.
            let _ = epoll::modify(epoll, socket, data, epoll::EventFlags::IN | out);
        }
    }
}

/// The name of a channel of the plan, different in every run.
pub(crate) fn channel_name(run_id: u64, channel: u32) -> String {
    format!("load:{run_id:x}:{channel}")
}

//! The clients of a floor: their sockets, what they subscribed to, their pings.

use std::{
    collections::{HashMap, VecDeque},
    io,
    os::fd::{AsFd, OwnedFd},
};

use muster_wire::frame::{Decoded, Decoder, Message, PING_V2, Side, text_frame};
use rustix::{
    event::epoll::{self, EventData, EventFlags},
    io::Errno,
    net::{SendFlags, SocketFlags},
};
use slab::Slab;
use tokio::time::Instant;

use super::{PING_INTERVAL, READ_BUFFER_BYTES, TICK};

const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// To the one key that the benchmark's clients use.
const UPGRADE: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\
    Connection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// What a client wants that is more than an answer.
#[derive(Debug)]
pub(super) struct Publication {
    pub(super) channel: String,
    /// As every subscriber gets it: a client that asks for no acknowledgement
    /// sends the very packet that the subscribers are to get.
    pub(super) frame: Vec<u8>,
}

#[derive(Debug)]
struct Client {
    socket: OwnedFd,
    is_upgraded: bool,
    decoder: Decoder,
    unread: Vec<u8>,
    /// What the socket did not take.
    unsent: Vec<u8>,
    channel: Option<String>,
}

/// All clients of one process.
#[derive(Debug)]
pub(super) struct Clients {
    by_key: Slab<Client>,
    subscribers: HashMap<String, Vec<usize>>,
    buffer: Vec<u8>,
    /// Who is pinged in which tick; the front's are next.
    wheel: VecDeque<Vec<usize>>,
    next_tick: Instant,
}

impl Clients {
    pub(super) fn new() -> Self {
        let ticks = usize::try_from(PING_INTERVAL.as_millis() / TICK.as_millis()).unwrap_or(1);
        Self {
            by_key: Slab::new(),
            subscribers: HashMap::new(),
            buffer: vec![0; READ_BUFFER_BYTES],
            wheel: vec![Vec::new(); ticks].into(),
            next_tick: Instant::now() + TICK,
        }
    }

    /// Takes one connection.
    pub(super) fn accept(&mut self, epoll: &OwnedFd, listener: impl AsFd) -> io::Result<()> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = match rustix::net::accept_with(listener, flags) {
            Ok(socket) => socket,
            // Another worker was faster, or the client is gone.
            Err(Errno::AGAIN | Errno::CONNABORTED | Errno::INTR) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        rustix::net::sockopt::set_tcp_nodelay(&socket, true)?;
        let entry = self.by_key.vacant_entry();
        let data = EventData::new_u64(entry.key() as u64);
        epoll::add(epoll, &socket, data, EventFlags::IN)?;
        if let Some(last) = self.wheel.back_mut() {
            last.push(entry.key());
        }
        entry.insert(Client {
            socket,
            is_upgraded: false,
            decoder: Decoder::default(),
            unread: Vec::new(),
            unsent: Vec::new(),
            channel: None,
        });
        Ok(())
    }

    /// Reads once from a client and answers it; its publications go to `out`.
    pub(super) fn handle(
        &mut self,
        epoll: &OwnedFd,
        key: usize,
        flags: EventFlags,
        out: &mut Vec<Publication>,
    ) {
        let Some(client) = self.by_key.get_mut(key) else {
            return;
        };
        if flags.contains(EventFlags::OUT) {
            client.flush(epoll, key);
        }
        if !flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) {
            return;
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        match rustix::io::read(&client.socket, &mut buffer[..]) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            Ok(0) | Err(_) => self.remove(key),
            Ok(len) => self.take_in(epoll, key, &mut buffer[..len], out),
        }
        self.buffer = buffer;
    }

    fn take_in(
        &mut self,
        epoll: &OwnedFd,
        key: usize,
        input: &mut [u8],
        out: &mut Vec<Publication>,
    ) {
        let client = &mut self.by_key[key];
        let mut kept = std::mem::take(&mut client.unread);
        let input = if kept.is_empty() {
            input
        } else {
            kept.extend_from_slice(input);
            &mut kept[..]
        };
        let mut used = 0;
        if !client.is_upgraded {
            let Some(end) = input.windows(4).position(|window| window == b"\r\n\r\n") else {
                client.unread = input.to_vec();
                return;
            };
            used = end + 4;
            client.is_upgraded = true;
            client.send(epoll, key, UPGRADE);
        }
        let mut decoder = std::mem::take(&mut client.decoder);
        let mut is_over = false;
        loop {
            match decoder.decode(Side::Server, &mut input[used..], MESSAGE_BYTES_MAX) {
                Ok(Decoded::Incomplete { .. }) => break,
                Ok(Decoded::Frame { consumed, message }) => {
                    used += consumed;
                    match message {
                        Some(Message::Text(text)) => self.packet(epoll, key, text, out),
                        Some(Message::Close(_)) => is_over = true,
                        Some(Message::Binary(_) | Message::Ping(_) | Message::Pong(_)) | None => {}
                    }
                }
                Err(_) => is_over = true,
            }
            if is_over {
                return self.remove(key);
            }
        }
        let client = &mut self.by_key[key];
        client.decoder = decoder;
        client.unread = input[used..].to_vec();
    }

    fn packet(&mut self, epoll: &OwnedFd, key: usize, text: &str, out: &mut Vec<Publication>) {
        if text.starts_with(r##"{"event":"#publish""##) {
            if let Some(channel) = channel(text) {
                out.push(Publication {
                    channel: channel.to_owned(),
                    frame: text_frame(text.as_bytes()).to_vec(),
                });
            }
        } else if text.starts_with(r##"{"event":"#handshake""##) {
            let answer =
                br#"{"rid":1,"data":{"id":"floor","pingTimeout":20000,"isAuthenticated":false}}"#;
            self.by_key[key].send(epoll, key, &text_frame(answer));
        } else if text.starts_with(r##"{"event":"#subscribe""##)
            && let Some(channel) = channel(text)
        {
            self.subscribers
                .entry(channel.to_owned())
                .or_default()
                .push(key);
            let client = &mut self.by_key[key];
            client.channel = Some(channel.to_owned());
            client.send(epoll, key, &text_frame(br#"{"rid":2}"#));
        }
    }

    /// One `send` for each subscriber.
    pub(super) fn deliver(&mut self, epoll: &OwnedFd, channel: &str, frame: &[u8]) {
        for key in self.subscribers.get(channel).into_iter().flatten() {
            self.by_key[*key].send(epoll, *key, frame);
        }
    }

    /// Pings whoever is due.
    pub(super) fn handle_time(&mut self, epoll: &OwnedFd) {
        while Instant::now() >= self.next_tick {
            self.next_tick += TICK;
            let mut due = self.wheel.pop_front().unwrap_or_default();
            due.retain(|key| {
                let client = self.by_key.get_mut(*key);
                client.is_some_and(|client| {
                    client.send(epoll, *key, PING_V2);
                    true
                })
            });
            self.wheel.push_back(due);
        }
    }

    fn remove(&mut self, key: usize) {
        let client = self.by_key.remove(key);
        let list = client
            .channel
            .as_deref()
            .and_then(|channel| self.subscribers.get_mut(channel));
        if let Some(list) = list {
            list.retain(|other| *other != key);
        }
    }
}

impl Client {
    fn send(&mut self, epoll: &OwnedFd, key: usize, frame: &[u8]) {
        if !self.is_upgraded {
            return;
        }
        let sent = if self.unsent.is_empty() {
            rustix::net::send(&self.socket, frame, SendFlags::NOSIGNAL).unwrap_or(0)
        } else {
            0
        };
        if sent < frame.len() {
            let was_empty = self.unsent.is_empty();
            self.unsent.extend_from_slice(&frame[sent..]);
            if was_empty {
                self.watch(epoll, key, EventFlags::IN | EventFlags::OUT);
            }
        }
    }

    fn flush(&mut self, epoll: &OwnedFd, key: usize) {
        let sent = rustix::net::send(&self.socket, &self.unsent, SendFlags::NOSIGNAL);
        self.unsent.drain(..sent.unwrap_or(0));
        if self.unsent.is_empty() {
            self.watch(epoll, key, EventFlags::IN);
        }
    }

    fn watch(&self, epoll: &OwnedFd, key: usize, flags: EventFlags) {
        // It fails only for a socket that is gone, which reading it shows.
        let _ = epoll::modify(epoll, &self.socket, EventData::new_u64(key as u64), flags);
    }
}

/// The channel of a packet of the benchmark, whose channel names need no
/// escapes.
fn channel(packet: &str) -> Option<&str> {
    let (_, rest) = packet.split_once(r#""channel":""#)?;
    rest.split_once('"').map(|(channel, _)| channel)
}

//! What clients send (hop 1, ingress).

use muster_wire::{
    close::CloseCode,
    frame::{self, Close, Decoded, Message, Side},
    session::{Session, SessionId},
};
use rand::RngExt as _;
use rustix::io::Errno;

use super::Engine;
use crate::{
    connection::{Connection, ConnectionKey, Phase},
    core::{Ingress, Pause},
    upgrade::{self, Decision},
};

/// Messages of one connection handled in one turn (delivery.md F1).
const MESSAGES_MAX: usize = 64;

/// What a message means for its connection.
#[derive(Clone, Copy)]
enum Verdict {
    Continue,
    Pause(Pause),
    /// The rest waits for the next turn.
    Backlog,
    Close(Option<CloseCode>),
}

impl Engine {
    /// Reads once from a socket that is readable.
    pub(super) fn read(&mut self, key: ConnectionKey) {
        let Some(connection) = self.connections.get(key) else {
            return;
        };
        if connection.has_backlog || connection.paused.is_some() || connection.is_frozen {
            return;
        }
        let mut buffer = std::mem::take(&mut self.read_buffer);
        match rustix::io::read(&connection.socket, &mut buffer[..]) {
            Ok(0) => self.lose(key),
            Ok(_) if connection.is_closing() => {}
            Ok(len) => {
                connection.received_bytes += len as u64;
                let (now, rules) = (self.now.millis, &self.core.rules);
                if let Some(session) = connection.session() {
                    session.handle_sign_of_life(now, rules);
                }
                self.take_in(key, &mut buffer[..len]);
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => self.lose(key),
        }
        self.read_buffer = buffer;
    }

    /// Goes on with what a connection's turn had left over.
    pub(super) fn work_off_backlog(&mut self) {
        for _ in 0..self.backlog.len() {
            let Some(key) = self.backlog.pop_front() else {
                return;
            };
            if let Some(connection) = self.connections.get(key)
                && !connection.is_frozen
            {
                connection.has_backlog = false;
                self.take_in(key, &mut []);
            }
        }
    }

    /// Reads again from clients whose requests have room again.
    pub(super) fn resume_paused(&mut self) {
        if self.paused.is_empty() || !std::mem::take(&mut self.has_news) {
            return;
        }
        for (pause, keys) in std::mem::take(&mut self.paused) {
            if let Pause::Shard(shard) = pause
                && !self.core.router.has_room(shard)
            {
                self.paused.insert(pause, keys);
                continue;
            }
            for key in keys {
                self.resume(key, pause);
            }
        }
    }

    /// Whether there are clients that wait for nothing but time.
    pub(crate) fn has_slowed(&self) -> bool {
        !self.slowed.is_empty()
    }

    /// Reads again from those who were too fast and have waited for it.
    pub(crate) fn resume_slowed(&mut self) {
        for key in std::mem::take(&mut self.slowed) {
            self.resume(key, Pause::Rate);
        }
    }

    /// Remembers whom to read again.
    fn park(&mut self, key: ConnectionKey, pause: Pause) {
        match pause {
            Pause::Rate => self.slowed.push(key),
            Pause::Shard(_) | Pause::Answers => self.paused.entry(pause).or_default().push(key),
        }
    }

    fn resume(&mut self, key: ConnectionKey, pause: Pause) {
        let now = self.now.millis;
        let Some(connection) = self.connections.get(key) else {
            return;
        };
        let Some(since) = connection.paused else {
            return;
        };
        let Some(session) = connection.session() else {
            return;
        };
        if !self.core.may_resume(pause, session, self.now) {
            self.park(key, pause);
            return;
        }
        // We did not read, so its silence means nothing (delivery.md A6).
        session.extend_life(now.since(since));
        connection.paused = None;
        self.watch(key, |interest| interest.read = true);
        self.take_in(key, &mut []);
    }

    /// Consumes what was left over, then `input`; keeps what cannot be consumed
    /// yet.
    pub(super) fn take_in(&mut self, key: ConnectionKey, input: &mut [u8]) {
        let Some(connection) = self.connections.get(key) else {
            return;
        };
        if connection.unread.is_empty() {
            let consumed = self.consume(key, input);
            if let Some(connection) = self.connections.get(key)
                && !connection.is_closing()
                && consumed < input.len()
            {
                connection.unread = input[consumed..].to_vec();
            }
            return;
        }
        let mut unread = std::mem::take(&mut connection.unread);
        unread.extend_from_slice(input);
        let consumed = self.consume(key, &mut unread);
        if let Some(connection) = self.connections.get(key)
            && !connection.is_closing()
            && consumed < unread.len()
        {
            // A copy of its own size: what it held before may have been large.
            connection.unread = if consumed == 0 {
                unread
            } else {
                unread.split_off(consumed)
            };
        }
    }

    /// Returns how many bytes of `input` are done with.
    fn consume(&mut self, key: ConnectionKey, input: &mut [u8]) -> usize {
        let mut consumed = 0;
        self.go_on_with_batch(key);
        let Some(connection) = self.connections.get(key) else {
            return 0;
        };
        if let Phase::Head { accepted, scanned } = &mut connection.phase {
            let accepted = *accepted;
            if !upgrade::may_be_complete(input, scanned, &self.settings.upgrade) {
                return 0;
            }
            match upgrade::decide(input, &self.settings.upgrade) {
                Decision::Incomplete => return 0,
                Decision::Refuse { answer } => {
                    self.refuse(key, answer);
                    return input.len();
                }
                Decision::Upgrade {
                    head_len,
                    answer,
                    echo,
                } => {
                    consumed = head_len;
                    let id = SessionId::from_random(self.rng.random());
                    connection.phase = if echo {
                        Phase::Echo {
                            deadline: self.now.millis + self.core.rules.pong_timeout * 10,
                        }
                    } else {
                        Phase::Open(Session::new(
                            id,
                            accepted,
                            self.now.millis,
                            &self.core.rules,
                        ))
                    };
                    let _ = connection.outbox.offer(answer.into(), usize::MAX);
                    self.connections.mark_dirty(key);
                }
            }
        }
        consumed + self.consume_frames(key, &mut input[consumed..])
    }

    fn consume_frames(&mut self, key: ConnectionKey, input: &mut [u8]) -> usize {
        let mut consumed = 0;
        for _ in 0..MESSAGES_MAX {
            let Some(connection) = self.connections.get(key) else {
                return input.len();
            };
            if !connection.is_consuming() {
                return consumed;
            }
            let mut decoder = std::mem::take(&mut connection.decoder);
            let rest = &mut input[consumed..];
            let verdict = match decoder.decode(Side::Server, rest, self.settings.message_bytes_max)
            {
                Ok(Decoded::Incomplete { .. }) => None,
                Ok(Decoded::Frame {
                    consumed: len,
                    message,
                }) => {
                    consumed += len;
                    Some(match message {
                        Some(message) => self.handle_message(key, message),
                        // A piece of a message.
                        None => self.handle_frame(key),
                    })
                }
                Err(error) => Some(Verdict::Close(Some(error.close_code()))),
            };
            if let Some(connection) = self.connections.get(key) {
                connection.decoder = decoder;
            }
            let Some(verdict) = verdict else {
                return consumed;
            };
            if self.obey(key, verdict) {
                return input.len();
            }
        }
        if consumed < input.len() {
            self.put_off(key);
        }
        consumed
    }

    /// Returns true if the connection is closing.
    fn obey(&mut self, key: ConnectionKey, verdict: Verdict) -> bool {
        match verdict {
            Verdict::Continue => {}
            Verdict::Pause(pause) => self.pause(key, pause),
            Verdict::Backlog => self.put_off(key),
            Verdict::Close(code) => {
                self.close_by_protocol(key, code);
                return true;
            }
        }
        false
    }

    /// Goes on with this connection in the next turn.
    fn put_off(&mut self, key: ConnectionKey) {
        if let Some(connection) = self.connections.get(key)
            && connection.is_consuming()
        {
            connection.has_backlog = true;
            self.backlog.push_back(key);
        }
    }

    /// A turn's share of an array of packets that was left.
    fn go_on_with_batch(&mut self, key: ConnectionKey) {
        let Some(connection) = self.connections.get(key) else {
            return;
        };
        let Some(unfinished) = connection.unfinished.take() else {
            return;
        };
        let (text, at) = *unfinished;
        let Some(session) = connection.session() else {
            return;
        };
        let mut out = std::mem::take(&mut self.out);
        let ingress = self
            .core
            .go_on_with_batch(key, session, (&text, at), &mut out, self.now);
        self.send(key, &mut out);
        self.out = out;
        let verdict = self.verdict(key, ingress, || text);
        self.obey(key, verdict);
    }

    /// `text` is the message, in case that its rest must be kept.
    fn verdict(
        &mut self,
        key: ConnectionKey,
        ingress: Ingress,
        text: impl FnOnce() -> String,
    ) -> Verdict {
        match ingress {
            Ingress::Continue => Verdict::Continue,
            Ingress::Pause(pause) => Verdict::Pause(pause),
            Ingress::Close(code) => Verdict::Close(Some(code)),
            Ingress::Unfinished { at, pause } => {
                if let Some(connection) = self.connections.get(key) {
                    connection.unfinished = Some(Box::new((text(), at)));
                }
                pause.map_or(Verdict::Backlog, Verdict::Pause)
            }
        }
    }

    fn handle_message(&mut self, key: ConnectionKey, message: Message<'_>) -> Verdict {
        match message {
            Message::Text(text) => self.handle_text(key, text),
            Message::Binary(bytes) => {
                if self.is_echo(key) {
                    self.reply(key, frame::binary_frame(bytes));
                    return Verdict::Continue;
                }
                // JSON in a binary frame counts like text; what is no text is
                // noise (socketcluster.md section 1).
                self.handle_text(key, std::str::from_utf8(bytes).unwrap_or("\u{fffd}"))
            }
            Message::Ping(payload) => {
                self.reply(key, frame::pong_frame(payload));
                self.handle_frame(key)
            }
            Message::Pong(_) => self.handle_frame(key),
            Message::Close(close) => Verdict::Close(close.map(|Close { code, .. }| code)),
        }
    }

    fn handle_frame(&mut self, key: ConnectionKey) -> Verdict {
        let Some(session) = self.connections.get(key).and_then(Connection::session) else {
            return Verdict::Continue;
        };
        let ingress = self.core.handle_frame(session, self.now);
        self.verdict(key, ingress, String::new)
    }

    fn handle_text(&mut self, key: ConnectionKey, text: &str) -> Verdict {
        if self.is_echo(key) {
            self.reply(key, frame::text_frame(text.as_bytes()));
            return Verdict::Continue;
        }
        let Some(Connection {
            phase: Phase::Open(session),
            ..
        }) = self.connections.get(key)
        else {
            return Verdict::Continue;
        };
        let mut out = std::mem::take(&mut self.out);
        let ingress = self
            .core
            .handle_text(key, session, text, &mut out, self.now);
        self.send(key, &mut out);
        self.out = out;
        self.verdict(key, ingress, || text.to_owned())
    }

    fn pause(&mut self, key: ConnectionKey, pause: Pause) {
        let now = self.now.millis;
        if let Some(connection) = self.connections.get(key)
            && connection.paused.is_none()
        {
            connection.paused = Some(now);
            self.park(key, pause);
            self.watch(key, |interest| interest.read = false);
        }
    }

    fn reply(&mut self, key: ConnectionKey, frame: bytes::Bytes) {
        let mut out = vec![frame];
        self.send(key, &mut out);
    }

    fn is_echo(&mut self, key: ConnectionKey) -> bool {
        let connection = self.connections.get(key);
        connection.is_some_and(|connection| matches!(connection.phase, Phase::Echo { .. }))
    }
}

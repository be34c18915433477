//! A SocketCluster client at the level of packets.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use muster_worker::simulation::ClientKey;
use serde::Deserialize;

use crate::{
    checker::Violation,
    positions::{News, Position, Question, position},
};

/// Messages that a client's network holds.
const UPLINK_MAX: usize = 24;

/// A client program and the worker it connects to.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) worker: usize,
    pub(crate) connection: Option<Connection>,
}

/// One of a client's connections.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) key: ClientKey,
    /// Tells the connections of all clients apart.
    pub(crate) serial: u64,
    /// Said and not yet at the worker.
    pub(crate) uplink: VecDeque<Message>,
    /// The worker has begun with these and not finished.
    pub(crate) unfinished: Vec<Packet>,
    /// Channels the client wants, by what it has said.
    pub(crate) wants: BTreeSet<usize>,
    next_cid: u64,
    calls: BTreeMap<u64, Call>,
    /// Calls other than publish, in the order in which they were made.
    in_order: VecDeque<u64>,
}

/// One message: one packet, or several as an array.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) text: String,
    pub(crate) packets: Vec<Packet>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Packet {
    Handshake,
    /// A channel, and the call's number.
    Subscribe(usize, u64),
    /// The same, with positions, from one on if it has one.
    Follow(usize, u64, Option<Position>),
    Unsubscribe(usize),
    Publish(u64),
    /// The call's number.
    History(u64, Question),
    Pong,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    Handshake,
    /// A channel, and the call's number.
    Subscribe(usize, u64),
    Follow(usize, u64),
    Unsubscribe(usize),
    Publish(u64),
    /// The call's number.
    History(u64),
}

/// What a client has heard.
#[derive(Debug, PartialEq)]
pub(crate) enum Heard {
    Ping,
    Answer {
        call: Call,
        error: Option<String>,
        data: serde_json::Value,
    },
    Publication {
        channel: usize,
        id: u64,
    },
    /// As a follower.
    News {
        channel: usize,
        news: News,
    },
}

#[derive(Debug, Deserialize)]
struct Raw {
    event: Option<String>,
    rid: Option<u64>,
    error: Option<RawError>,
    data: Option<serde_json::Value>,
}

#[derive(Debug, Deserialize)]
struct RawError {
    name: String,
}

pub(crate) fn channel_name(channel: usize) -> String {
    format!("c{channel}")
}

pub(crate) fn channel_number(name: &[u8]) -> Option<usize> {
    std::str::from_utf8(name)
        .ok()?
        .strip_prefix('c')?
        .parse()
        .ok()
}

/// A position as a client says it.
fn position_text(position: Option<Position>) -> String {
    let text = |Position { generation, offset }| {
        format!(r#"{{"generation":"{generation:016x}","offset":{offset}}}"#)
    };
    position.map_or_else(|| "null".into(), text)
}

/// The number of the publication with this raw data.
pub(crate) fn publication_id(data: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(data).ok()?;
    let inner = text.trim_matches('"');
    inner.split(' ').next()?.parse().ok()
}

impl Connection {
    /// A connection that is about to say its handshake.
    pub(crate) fn new(key: ClientKey, serial: u64) -> Self {
        let mut connection = Self {
            key,
            serial,
            uplink: VecDeque::new(),
            unfinished: Vec::new(),
            wants: BTreeSet::new(),
            next_cid: 1,
            calls: BTreeMap::new(),
            in_order: VecDeque::new(),
        };
        let cid = connection.call(Call::Handshake);
        let packet =
            format!(r##"{{"event":"#handshake","data":{{"authToken":null}},"cid":{cid}}}"##);
        connection.say(vec![(packet, Packet::Handshake)]);
        connection
    }

    pub(crate) fn has_room(&self) -> bool {
        self.uplink.len() < UPLINK_MAX
    }

    pub(crate) fn calls(&self) -> impl Iterator<Item = Call> + '_ {
        self.calls.values().copied()
    }

    pub(crate) fn subscribe(&mut self, channel: usize) -> (String, Packet) {
        self.wants.insert(channel);
        let cid = self.call(Call::Subscribe(channel, self.next_cid));
        let name = channel_name(channel);
        let text =
            format!(r##"{{"event":"#subscribe","data":{{"channel":"{name}"}},"cid":{cid}}}"##);
        (text, Packet::Subscribe(channel, cid))
    }

    /// Subscribes, and wants positions.
    pub(crate) fn follow(&mut self, channel: usize, since: Option<Position>) -> (String, Packet) {
        self.wants.insert(channel);
        let cid = self.call(Call::Follow(channel, self.next_cid));
        let (name, at) = (channel_name(channel), position_text(since));
        let text = format!(
            r##"{{"event":"#subscribe","data":{{"channel":"{name}","since":{at}}},"cid":{cid}}}"##
        );
        (text, Packet::Follow(channel, cid, since))
    }

    /// Asks for what a channel keeps.
    pub(crate) fn read(&mut self, question: Question) -> (String, Packet) {
        let cid = self.call(Call::History(self.next_cid));
        let (name, at) = (
            channel_name(question.channel),
            position_text(question.since),
        );
        let order = match question.newest_first {
            true => "newest",
            false => "oldest",
        };
        let limit = question.limit;
        let text = format!(
            r##"{{"event":"history","data":{{"channel":"{name}","since":{at},"limit":{limit},"order":"{order}"}},"cid":{cid}}}"##
        );
        (text, Packet::History(cid, question))
    }

    pub(crate) fn unsubscribe(&mut self, channel: usize) -> (String, Packet) {
        self.wants.remove(&channel);
        let cid = self.call(Call::Unsubscribe(channel));
        let name = channel_name(channel);
        let text = format!(r##"{{"event":"#unsubscribe","data":"{name}","cid":{cid}}}"##);
        (text, Packet::Unsubscribe(channel))
    }

    /// Publishes number `id`, padded to about `bytes` bytes of data.
    pub(crate) fn publish(
        &mut self,
        channel: usize,
        id: u64,
        bytes: usize,
        acked: bool,
    ) -> (String, Packet) {
        let name = channel_name(channel);
        let cid = if acked {
            format!(r#","cid":{}"#, self.call(Call::Publish(id)))
        } else {
            String::new()
        };
        let pad = "x".repeat(bytes);
        let text = format!(
            r##"{{"event":"#publish","data":{{"channel":"{name}","data":"{id} {pad}"}}{cid}}}"##
        );
        (text, Packet::Publish(id))
    }

    /// Puts packets into one message.
    pub(crate) fn say(&mut self, packets: Vec<(String, Packet)>) {
        let (texts, packets): (Vec<String>, Vec<Packet>) = packets.into_iter().unzip();
        let text = match &texts[..] {
            [one] => one.clone(),
            several => format!("[{}]", several.join(",")),
        };
        self.uplink.push_back(Message { text, packets });
    }

    pub(crate) fn pong(&mut self) {
        self.uplink.push_back(Message {
            text: String::new(),
            packets: vec![Packet::Pong],
        });
    }

    /// Understands what the worker says; an answer must be to a call that has
    /// none yet, and in order unless it is to a publish.
    pub(crate) fn hear(&mut self, text: &str) -> Result<Heard, Violation> {
        if text.is_empty() {
            return Ok(Heard::Ping);
        }
        if text == "#1" {
            return Ok(Heard::Ping);
        }
        let unknown = || Violation(format!("a client cannot understand {text}"));
        let raw: Raw = serde_json::from_str(text).map_err(|_| unknown())?;
        if let Some(cid) = raw.rid {
            return self.answer(cid, raw.error, raw.data.unwrap_or_default());
        }
        let data = raw.data.ok_or_else(unknown)?;
        let text_of = |member: &str| data.get(member).and_then(|value| value.as_str());
        let channel = text_of("channel").and_then(|name| channel_number(name.as_bytes()));
        let channel = channel.ok_or_else(unknown)?;
        match raw.event.as_deref() {
            Some("#publish") => {}
            Some("#position") => {
                let reached = position(&data).ok_or_else(unknown)?;
                let news = News::Hole(reached);
                return Ok(Heard::News { channel, news });
            }
            Some(_) | None => return Err(unknown()),
        }
        let id = text_of("data").and_then(|data| publication_id(data.as_bytes()));
        let id = id.ok_or_else(unknown)?;
        Ok(
            match data.get("offset").and_then(|offset| offset.as_u64()) {
                Some(offset) => Heard::News {
                    channel,
                    news: News::Publication { offset, id },
                },
                None => Heard::Publication { channel, id },
            },
        )
    }

    fn answer(
        &mut self,
        cid: u64,
        error: Option<RawError>,
        data: serde_json::Value,
    ) -> Result<Heard, Violation> {
        let Some(call) = self.calls.remove(&cid) else {
            return Err(Violation(format!("call {cid} was answered twice")));
        };
        if !matches!(call, Call::Publish(_)) {
            let expected = self.in_order.pop_front();
            if expected != Some(cid) {
                return Err(Violation(format!(
                    "call {cid} was answered before {expected:?}"
                )));
            }
        }
        Ok(Heard::Answer {
            call,
            error: error.map(|error| error.name),
            data,
        })
    }

    fn call(&mut self, call: Call) -> u64 {
        let cid = self.next_cid;
        self.next_cid += 1;
        self.calls.insert(cid, call);
        if !matches!(call, Call::Publish(_)) {
            self.in_order.push_back(cid);
        }
        cid
    }
}

//! Subscribers that want positions.

use bytes::Bytes;
use muster_proto::link::ReadResponse;
use muster_wire::{ChannelName, Position, answer, session::Session};

use super::{Clients, Core, Ingress, Now};
use crate::{
    channels::{Caught, Joined, Start},
    connection::ConnectionKey,
    reads::{Question, Reader, ReadsFull},
};

impl Core {
    /// A client subscribes and wants positions.
    pub(super) fn follow(
        &mut self,
        (key, session): (ConnectionKey, &mut Session),
        channel: &ChannelName,
        since: Option<Position>,
        out: &mut Vec<Bytes>,
        now: Now,
    ) -> Ingress {
        let names = &self.names;
        let slow_client = || names.namespaces.slow_client(channel);
        let joined = self.channels.follow(channel, key, since, slow_client);
        self.begin_to_follow(joined, session, channel, out, now);
        if joined == Joined::First {
            return self.pause_without_room(channel);
        }
        Ingress::Continue
    }

    /// A client comes from another worker and has everything up to `position`.
    pub(super) fn follow_on(
        &mut self,
        (key, session): (ConnectionKey, &mut Session),
        channel: &ChannelName,
        position: Position,
        out: &mut Vec<Bytes>,
        now: Now,
    ) {
        let names = &self.names;
        let slow_client = || names.namespaces.slow_client(channel);
        let joined = self.channels.follow_on(channel, key, position, slow_client);
        self.begin_to_follow(joined, session, channel, out, now);
    }

    fn begin_to_follow(
        &mut self,
        joined: Joined,
        session: &mut Session,
        channel: &ChannelName,
        out: &mut Vec<Bytes>,
        now: Now,
    ) {
        match joined {
            Joined::First => self.request(channel),
            Joined::Waiting => {}
            // Nobody else waits for a channel that is confirmed.
            Joined::Confirmed => {
                for start in self.channels.start_followers(channel) {
                    self.start(start, session, channel, out, now);
                }
            }
        }
    }

    /// The channel's owner has the subscription: those who waited for it go on.
    pub(crate) fn start_followers(&mut self, name: &str, clients: &mut impl Clients, now: Now) {
        let starts = self.channels.start_followers(name);
        let Some(channel) = self.channels.name(name).cloned() else {
            return;
        };
        let mut out = std::mem::take(&mut self.out);
        for start in starts {
            let (Start::Live { key, .. } | Start::Read { key, .. } | Start::Hole { key, .. }) =
                start;
            if let Some(session) = clients.session(key) {
                self.start(start, session, &channel, &mut out, now);
                clients.send(key, &mut out);
            }
        }
        self.out = out;
    }

    fn start(
        &mut self,
        start: Start,
        session: &mut Session,
        channel: &ChannelName,
        out: &mut Vec<Bytes>,
        now: Now,
    ) {
        let (position, recovered) = match start {
            Start::Live {
                position,
                recovered,
                ..
            } => (position, recovered),
            Start::Read { key, since } => {
                if self.read_missed(channel, key, since, now).is_ok() {
                    return;
                }
                match self.channels.catch_up(channel, key, (since, None)) {
                    Some(caught) if caught.is_first => (caught.since, false),
                    Some(caught) => return self.say_hole(channel, caught.since, out),
                    None => return,
                }
            }
            Start::Hole { position, .. } => return self.say_hole(channel, position, out),
        };
        self.stats.holes_told += u64::from(!recovered);
        self.with_session(out, now, |cx| {
            session.confirm_at(channel, position, recovered, cx);
        });
    }

    fn say_hole(&mut self, channel: &str, position: Position, out: &mut Vec<Bytes>) {
        self.stats.holes_told += 1;
        out.push(answer::hole(channel, position));
    }

    /// What was read for a follower, or `None`, goes to it.
    pub(super) fn catch_up(
        &mut self,
        channel: &ChannelName,
        key: ConnectionKey,
        read: (Position, Option<ReadResponse>),
        clients: &mut impl Clients,
        now: Now,
    ) {
        let Some(caught) = self.channels.catch_up(channel, key, read) else {
            return;
        };
        let Some(session) = clients.session(key) else {
            return;
        };
        let Caught {
            is_first,
            since,
            missed,
            next,
        } = caught;
        let recovered = missed.is_some();
        let mut out = std::mem::take(&mut self.out);
        if is_first {
            self.with_session(&mut out, now, |cx| {
                session.confirm_at(channel, since, recovered, cx);
            });
        } else if !recovered {
            out.push(answer::hole(channel, since));
        }
        for (offset, data) in missed.unwrap_or_default() {
            out.push(answer::publication_at(channel, offset, data.as_deref()));
            self.stats.deliveries += 1;
        }
        match next {
            _ if !recovered => self.stats.holes_told += 1,
            None => self.stats.resumed += 1,
            Some(next) => {
                if let Err(ReadsFull) = self.read_missed(channel, key, next, now)
                    && let Some(caught) = self.channels.catch_up(channel, key, (next, None))
                {
                    self.say_hole(channel, caught.since, &mut out);
                }
            }
        }
        clients.send(key, &mut out);
        self.out = out;
    }

    /// Publications are missing: those who can be told are.
    pub(super) fn tell_hole(&mut self, name: &str, clients: &mut impl Clients) {
        let Some((position, keys)) = self.channels.skip_hole(name) else {
            return;
        };
        let mut out = std::mem::take(&mut self.out);
        for key in keys {
            self.say_hole(name, position, &mut out);
            clients.send(key, &mut out);
        }
        self.out = out;
    }

    fn read_missed(
        &mut self,
        channel: &ChannelName,
        key: ConnectionKey,
        since: Position,
        now: Now,
    ) -> Result<(), ReadsFull> {
        let question = Question {
            channel: channel.clone(),
            since: Some(since),
            before: None,
            limit: 0,
            newest_first: false,
            bytes_max: self.names.history_bytes_max,
        };
        let reader = Reader::Follower(key);
        self.reads.ask(now.millis, question, reader)
    }
}

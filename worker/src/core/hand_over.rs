//! Sessions that come from another worker, or go to one.

use std::collections::HashMap;

use bytes::Bytes;
use muster_wire::{
    ChannelName,
    session::{Session, SessionId},
    snapshot::{Place, Unacked},
};

use super::{Core, Now};
use crate::{
    channels::{Joined, Position},
    connection::ConnectionKey,
    router::{Call, Publication, Waiter},
};

impl Core {
    /// Up to where a client has got, or has in its queue, each channel that its
    /// session subscribes to and the owner has confirmed; of channels for which it
    /// wants positions also, up to where it says it has.
    pub(crate) fn places(&self, key: ConnectionKey, session: &Session) -> Vec<Place> {
        let place = |(channel, confirmed): (&ChannelName, bool)| {
            let Position { generation, offset } = if session.follows(channel) {
                self.channels.place_of_follower(channel, key)?
            } else if confirmed {
                self.channels.place_of(channel, key)?
            } else {
                return None;
            };
            Some(Place {
                channel: channel.clone(),
                generation,
                offset,
            })
        };
        session.subscriptions().filter_map(place).collect()
    }

    /// Subscribes for a session that has everything up to its `places`. What it
    /// says is appended to `out`.
    pub(crate) fn take_over(
        &mut self,
        key: ConnectionKey,
        session: &mut Session,
        places: Vec<Place>,
        out: &mut Vec<Bytes>,
        now: Now,
    ) {
        session.intern(|name| self.channels.name(name).cloned());
        let places = places.into_iter().map(|place| {
            let Place {
                channel,
                generation,
                offset,
            } = place;
            (channel, Position { generation, offset })
        });
        let mut places: HashMap<_, _> = places.collect();
        let subscriptions: Vec<(ChannelName, bool)> = session
            .subscriptions()
            .map(|(channel, confirmed)| (channel.clone(), confirmed))
            .collect();
        for (channel, is_confirmed) in subscriptions {
            let place = places.remove(&channel);
            if session.follows(&channel) {
                match place.filter(|_| is_confirmed) {
                    Some(place) => self.follow_on((key, session), &channel, place, out, now),
                    None => {
                        // It is not read before it runs.
                        let _may_read = self.follow((key, session), &channel, place, out, now);
                    }
                }
            } else {
                self.join_again((key, session), &channel, place, out, now);
            }
        }
        let reads: Vec<_> = session.pending_reads().cloned().collect();
        for read in reads {
            self.read_for_client(key, session, read, out, now);
        }
    }

    /// Subscribes for a client that has everything up to `place`, or waits for its
    /// subscription.
    fn join_again(
        &mut self,
        (key, session): (ConnectionKey, &mut Session),
        channel: &ChannelName,
        place: Option<Position>,
        out: &mut Vec<Bytes>,
        now: Now,
    ) {
        let slow_client = || self.names.namespaces.slow_client(channel);
        let joined = match place {
            Some(place) => self.channels.join_at(channel, key, place, slow_client),
            None => self.channels.join(channel, key, slow_client),
        };
        match joined {
            Joined::Confirmed if place.is_none() => {
                self.with_session(out, now, |cx| session.confirm(channel, cx));
            }
            Joined::Confirmed | Joined::Waiting => {}
            Joined::First => self.request(channel),
        }
    }

    /// Subscribes from there on, for clients that are about to come.
    pub(crate) fn keep(&mut self, place: Place) {
        let Place {
            channel,
            generation,
            offset,
        } = place;
        let position = Position { generation, offset };
        let slow_client = || self.names.namespaces.slow_client(&channel);
        if self.channels.keep(&channel, position, slow_client) {
            self.request(&channel);
        }
    }

    /// No client comes any more.
    pub(crate) fn let_go(&mut self) {
        for channel in self.channels.let_go() {
            self.router.unsubscribe(&channel);
        }
    }

    /// Sends again what a client had published on its earlier worker.
    pub(crate) fn publish_again(
        &mut self,
        connection: ConnectionKey,
        producer: SessionId,
        publications: Vec<Unacked>,
    ) {
        for unacked in publications {
            let publication = Publication {
                data: unacked.data(),
                channel: unacked.channel,
                producer,
                n: unacked.n,
                waiter: unacked
                    .cid
                    .map(|cid| Waiter::Client(Call { connection, cid })),
                accepted: unacked.accepted,
            };
            self.router.publish(publication);
        }
    }
}

//! Sessions that come from another worker, or go to one.

use std::collections::HashSet;

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
    /// session subscribes to and the owner has confirmed.
    pub(crate) fn places(&self, key: ConnectionKey, session: &Session) -> Vec<Place> {
        let confirmed = session.subscriptions().filter(|(_, confirmed)| *confirmed);
        let place = |(channel, _): (&ChannelName, bool)| {
            let Position { generation, offset } = self.channels.place_of(channel, key)?;
            Some(Place {
                channel: channel.clone(),
                generation,
                offset,
            })
        };
        confirmed.filter_map(place).collect()
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
        let mut placed = HashSet::new();
        for place in places {
            let Place {
                channel,
                generation,
                offset,
            } = place;
            let position = Position { generation, offset };
            let slow_client = || self.names.namespaces.slow_client(&channel);
            let joined = self.channels.join_at(&channel, key, position, slow_client);
            if joined == Joined::First {
                self.request(&channel);
            }
            placed.insert(channel);
        }
        let others = session.subscriptions().map(|(channel, _)| channel);
        let others = others.filter(|channel| !placed.contains(&**channel));
        let others: Vec<ChannelName> = others.cloned().collect();
        for channel in others {
            let slow_client = || self.names.namespaces.slow_client(&channel);
            match self.channels.join(&channel, key, slow_client) {
                Joined::Confirmed => {
                    self.with_session(out, now, |cx| session.confirm(&channel, cx));
                }
                Joined::Waiting => {}
                Joined::First => self.request(&channel),
            }
        }
        let reads: Vec<_> = session.pending_reads().cloned().collect();
        for read in reads {
            self.read_for_client(key, session, read, out, now);
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

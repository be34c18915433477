//! Which channels are wanted, and which of them the present connection has.

use std::collections::{BTreeMap, HashMap};

use serde_json::value::RawValue;

use crate::{ChannelName, Position};

/// What a subscription asks for.
#[derive(Debug, Clone, Default)]
pub struct SubscribeOptions {
    /// Ask only once the connection is authenticated.
    pub wait_for_auth: bool,
    /// For the server's application.
    pub data: Option<Box<RawValue>>,
    /// Resume on the next connection where the last one ended, and hear of what is
    /// missing; on servers that know positions. Others ignore it.
    pub resume: bool,
}

/// The wanted state; asked for anew on each connection.
#[derive(Debug, Default)]
pub(super) struct Channels {
    /// In the order of names, so that a session is deterministic.
    wanted: BTreeMap<ChannelName, Wanted>,
    /// `cid` of the `#subscribe` that waits for its answer.
    asked: HashMap<u64, ChannelName>,
}

#[derive(Debug)]
struct Wanted {
    options: SubscribeOptions,
    state: State,
    /// Where the subscription is, if it resumes and the server knows positions.
    position: Option<Position>,
    /// The last offset since the present connection was asked.
    seen: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Pending,
    Asked { cid: u64 },
    Subscribed,
}

impl Channels {
    pub(super) fn want(&mut self, channel: &ChannelName, options: SubscribeOptions) {
        self.wanted.entry(channel.clone()).or_insert(Wanted {
            options,
            state: State::Pending,
            position: None,
            seen: 0,
        });
    }

    /// Whether the server has to be told.
    pub(super) fn forget(&mut self, channel: &str) -> bool {
        match self.wanted.remove(channel).map(|wanted| wanted.state) {
            Some(State::Asked { cid }) => {
                self.asked.remove(&cid);
                true
            }
            Some(State::Subscribed) => true,
            Some(State::Pending) | None => false,
        }
    }

    /// Channels that the present connection has not been asked for.
    pub(super) fn to_ask(&self, is_authenticated: bool) -> Vec<ChannelName> {
        self.wanted
            .iter()
            .filter(|(_, wanted)| wanted.state == State::Pending)
            .filter(|(_, wanted)| is_authenticated || !wanted.options.wait_for_auth)
            .map(|(channel, _)| channel.clone())
            .collect()
    }

    pub(super) fn asked(
        &mut self,
        channel: &ChannelName,
        cid: u64,
    ) -> Option<(&SubscribeOptions, Option<Position>)> {
        let wanted = self.wanted.get_mut(channel)?;
        wanted.state = State::Asked { cid };
        wanted.seen = 0;
        self.asked.insert(cid, channel.clone());
        Some((&wanted.options, wanted.position))
    }

    /// The server has subscribed, right after `position` if it knows positions;
    /// which channel, if it is still wanted.
    pub(super) fn accepted(&mut self, cid: u64, position: Option<Position>) -> Option<ChannelName> {
        let channel = self.asked.remove(&cid)?;
        let wanted = self.wanted.get_mut(&channel)?;
        wanted.state = State::Subscribed;
        wanted.moved_to(position);
        Some(channel)
    }

    /// The subscription goes on right after this position; false if nobody wants
    /// the channel.
    pub(super) fn skipped_to(&mut self, channel: &str, position: Position) -> bool {
        let wanted = self.wanted.get_mut(channel);
        wanted.is_some_and(|wanted| {
            wanted.seen = 0;
            wanted.moved_to(Some(position));
            true
        })
    }

    /// A publication came.
    pub(super) fn reached(&mut self, channel: &str, offset: u64) {
        if let Some(wanted) = self.wanted.get_mut(channel) {
            wanted.seen = wanted.seen.max(offset);
            // Before the server has answered, the generation may be another.
            if wanted.state == State::Subscribed {
                wanted.moved_to(wanted.position);
            }
        }
    }

    /// The server refused; which channel, if it is still wanted.
    pub(super) fn refused(&mut self, cid: u64) -> Option<ChannelName> {
        let channel = self.asked.remove(&cid)?;
        self.wanted.remove(&channel)?;
        Some(channel)
    }

    /// The name of a channel whose publications count.
    pub(super) fn find(&self, channel: &str) -> Option<&ChannelName> {
        self.wanted
            .get_key_value(channel)
            .map(|(channel, _)| channel)
    }

    pub(super) fn connection_lost(&mut self) {
        self.asked.clear();
        for wanted in self.wanted.values_mut() {
            wanted.state = State::Pending;
        }
    }
}

impl Wanted {
    /// Publications may come before the answer that names the position.
    fn moved_to(&mut self, position: Option<Position>) {
        self.position = position.map(|position| Position {
            offset: position.offset.max(self.seen),
            ..position
        });
    }
}

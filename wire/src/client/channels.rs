//! Which channels are wanted, and which of them the present connection has.

use std::collections::{BTreeMap, HashMap};

use serde_json::value::RawValue;

use crate::ChannelName;

/// What a subscription asks for.
#[derive(Debug, Clone, Default)]
pub struct SubscribeOptions {
    /// Ask only once the connection is authenticated.
    pub wait_for_auth: bool,
    /// For the server's application.
    pub data: Option<Box<RawValue>>,
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

    pub(super) fn asked(&mut self, channel: &ChannelName, cid: u64) -> Option<&SubscribeOptions> {
        let wanted = self.wanted.get_mut(channel)?;
        wanted.state = State::Asked { cid };
        self.asked.insert(cid, channel.clone());
        Some(&wanted.options)
    }

    /// The server has subscribed; which channel, if it is still wanted.
    pub(super) fn accepted(&mut self, cid: u64) -> Option<ChannelName> {
        let channel = self.asked.remove(&cid)?;
        self.wanted.get_mut(&channel)?.state = State::Subscribed;
        Some(channel)
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

//! The channels of one session.

use serde::{Deserialize, Serialize};

use crate::ChannelName;

/// Sorted by name: one allocation, and a binary search finds a channel even
/// among a thousand.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Subscriptions(Vec<Subscription>);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Subscription {
    channel: ChannelName,
    /// The channel's owner has it.
    confirmed: bool,
    /// The client wants positions.
    follows: bool,
}

impl Subscriptions {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn names(&self) -> impl ExactSizeIterator<Item = &ChannelName> {
        self.0.iter().map(|subscription| &subscription.channel)
    }

    /// All channels, and whether their owners have them.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&ChannelName, bool)> {
        let subscriptions = self.0.iter();
        subscriptions.map(|subscription| (&subscription.channel, subscription.confirmed))
    }

    /// Replaces names by equal ones, which share their allocation with others.
    pub(super) fn intern(&mut self, intern: impl Fn(&str) -> Option<ChannelName>) {
        for subscription in &mut self.0 {
            if let Some(name) = intern(&subscription.channel)
                && name == subscription.channel
            {
                subscription.channel = name;
            }
        }
    }

    /// Whether the names are in order and each is there once.
    pub(super) fn is_sound(&self) -> bool {
        self.0.is_sorted_by(|a, b| a.channel < b.channel)
    }

    /// Whether the channel is subscribed, and if so, whether that is confirmed.
    pub(super) fn find(&self, channel: &str) -> Option<bool> {
        let index = self.search(channel).ok()?;
        Some(self.0[index].confirmed)
    }

    /// Whether the channel is subscribed with positions.
    pub(super) fn follows(&self, channel: &str) -> bool {
        self.search(channel)
            .is_ok_and(|index| self.0[index].follows)
    }

    /// Whether any channel is.
    pub(super) fn follows_any(&self) -> bool {
        self.0.iter().any(|subscription| subscription.follows)
    }

    pub(super) fn insert(&mut self, channel: ChannelName, follows: bool) {
        if let Err(index) = self.search(&channel) {
            if self.0.capacity() == 0 {
                // Most clients have one or two channels; the default would
                // reserve four.
                self.0.reserve_exact(1);
            }
            self.0.insert(
                index,
                Subscription {
                    channel,
                    confirmed: false,
                    follows,
                },
            );
        }
    }

    pub(super) fn confirm(&mut self, channel: &str) {
        if let Ok(index) = self.search(channel) {
            self.0[index].confirmed = true;
        }
    }

    pub(super) fn remove(&mut self, channel: &str) -> bool {
        match self.search(channel) {
            Ok(index) => {
                self.0.remove(index);
                true
            }
            Err(_) => false,
        }
    }

    fn search(&self, channel: &str) -> Result<usize, usize> {
        self.0
            .binary_search_by(|subscription| (*subscription.channel).cmp(channel))
    }
}

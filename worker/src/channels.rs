//! Which connections of this worker listen to which channel, and how far the
//! worker itself is in it (hop 5, fan-out).

mod followers;
mod movers;

use std::collections::{BTreeMap, HashMap};

use muster_daemon::config::SlowClient;
use muster_proto::{ShardId, shard_of};
use muster_wire::ChannelName;
pub(crate) use muster_wire::Position;

use self::followers::Follower;
pub(crate) use self::followers::{Caught, Start};
use self::movers::{Mover, Movers};
use crate::connection::ConnectionKey;

/// The channels that this worker subscribes to.
#[derive(Debug, Default)]
pub(crate) struct Channels {
    by_name: HashMap<ChannelName, Channel>,
    subscriptions: usize,
    last_request: u64,
    last_number: u32,
}

#[derive(Debug)]
pub(crate) struct Channel {
    shard: ShardId,
    /// Tells this worker's channels apart in its clients' outboxes.
    number: u32,
    slow_client: SlowClient,
    /// Get every publication.
    subscribers: Vec<ConnectionKey>,
    /// Will, once the owner has the subscription.
    waiting: Vec<ConnectionKey>,
    /// Want positions, and what they missed; in whatever stage.
    followers: Vec<Follower>,
    /// Came from other workers and are not where this one is.
    movers: Movers,
    /// Stays without a subscriber: some are about to come.
    is_kept: bool,
    /// The owner has the subscription, in the current epoch.
    confirmed: bool,
    /// What the owner was last asked; answers to earlier requests are stale.
    request: u64,
    /// The last publication that was fanned out.
    position: Option<Position>,
}

/// What joining a channel takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Joined {
    /// The subscription stands already.
    Confirmed,
    /// The owner's answer is on its way.
    Waiting,
    /// The owner must be asked.
    First,
}

/// A publication that came from a channel's owner.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Arrived<'c> {
    pub(crate) arrival: Arrival,
    /// Who gets it.
    pub(crate) subscribers: &'c [ConnectionKey],
    /// Who gets it with its offset.
    pub(crate) followers: Vec<ConnectionKey>,
    /// So do these, which are elsewhere in the channel than this worker.
    pub(crate) movers: Vec<ConnectionKey>,
    pub(crate) number: u32,
    pub(crate) slow_client: SlowClient,
}

/// How a publication's offset fits to what came before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arrival {
    Next,
    /// Seen before; it goes to nobody.
    Repeated,
    /// Something before it is missing.
    AfterHole,
}

impl Channels {
    pub(crate) fn len(&self) -> usize {
        self.by_name.len()
    }

    /// Subscriptions of all connections.
    pub(crate) fn subscriptions(&self) -> usize {
        self.subscriptions
    }

    /// The name as it is kept here, if it is.
    pub(crate) fn name(&self, channel: &str) -> Option<&ChannelName> {
        self.by_name.get_key_value(channel).map(|(name, _)| name)
    }

    /// Who subscribes to a channel, confirmed or not yet.
    pub(crate) fn members(&self, channel: &str) -> impl Iterator<Item = ConnectionKey> + '_ {
        let channel = self.by_name.get(channel);
        channel.into_iter().flat_map(Channel::members)
    }

    /// The first `limit` channels, by name, that begin with `prefix` and come
    /// after `after`, each with the number of its subscriptions; and whether
    /// there are more. A search through all of them, for operators only.
    pub(crate) fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> (Vec<(&str, usize)>, bool) {
        let mut first = BTreeMap::new();
        let mut cut = false;
        for (name, channel) in &self.by_name {
            let name = &**name;
            if !name.starts_with(prefix) || after.is_some_and(|after| name <= after) {
                continue;
            }
            if first.len() >= limit {
                cut = true;
                match first.last_key_value() {
                    Some((last, _)) if name < *last => first.pop_last(),
                    Some(_) | None => continue,
                };
            }
            first.insert(name, channel.members().count());
        }
        (first.into_iter().collect(), cut)
    }

    /// `slow_client` is asked for a channel that is new here.
    pub(crate) fn join(
        &mut self,
        name: &ChannelName,
        key: ConnectionKey,
        slow_client: impl FnOnce() -> SlowClient,
    ) -> Joined {
        let (joined, channel) = self.channel(name, slow_client);
        if channel.confirmed {
            channel.subscribers.push(key);
        } else {
            channel.waiting.push(key);
        }
        joined
    }

    /// A channel that somebody is about to join.
    fn channel(
        &mut self,
        name: &ChannelName,
        slow_client: impl FnOnce() -> SlowClient,
    ) -> (Joined, &mut Channel) {
        self.subscriptions += 1;
        let mut joined = Joined::Waiting;
        let channel = self.by_name.entry(name.clone()).or_insert_with(|| {
            joined = Joined::First;
            self.last_number = self.last_number.wrapping_add(1);
            Channel::new(name, self.last_number, slow_client())
        });
        if channel.confirmed {
            joined = Joined::Confirmed;
        }
        (joined, channel)
    }

    /// Returns true if nobody is left, so that the channel is gone.
    pub(crate) fn leave(&mut self, name: &str, key: ConnectionKey) -> bool {
        let Some(channel) = self.by_name.get_mut(name) else {
            return false;
        };
        let mut is_found = false;
        for list in [&mut channel.subscribers, &mut channel.waiting] {
            if let Some(index) = list.iter().position(|other| *other == key) {
                list.swap_remove(index);
                is_found = true;
                break;
            }
        }
        is_found = is_found || channel.unfollow(key) || channel.movers.remove(key);
        self.subscriptions -= usize::from(is_found);
        let is_empty = channel.is_empty();
        if is_empty {
            self.by_name.remove(name);
        }
        is_empty
    }

    /// A subscriber comes from another worker, with everything up to `position`.
    /// What it takes is as for [`Self::join`]; `First` also if the owner must be
    /// asked for what the newcomer does not have.
    pub(crate) fn join_at(
        &mut self,
        name: &ChannelName,
        key: ConnectionKey,
        position: Position,
        slow_client: impl FnOnce() -> SlowClient,
    ) -> Joined {
        self.subscriptions += 1;
        let Some(channel) = self.by_name.get_mut(&**name) else {
            let channel = self.begin_at(name, position, slow_client());
            channel.subscribers.push(key);
            return Joined::First;
        };
        let place = channel.position;
        if place == Some(position) {
            channel.subscribers.push(key);
        } else {
            channel.movers.push(Mover { key, position });
        }
        let is_missing = |at: Position| at.is_after(position) || !at.is_like(position);
        if place.is_none_or(is_missing) {
            // It is all asked for anew, from where the newcomer is. Where the
            // first answer is still awaited, those who wait for it may get a
            // little of what came before.
            channel.confirmed = false;
            channel.request = 0;
            Joined::First
        } else if channel.confirmed {
            Joined::Confirmed
        } else {
            Joined::Waiting
        }
    }

    /// Subscribes from `position` on for those who are about to come; false if
    /// the worker subscribes to the channel already. Until [`Self::let_go`].
    pub(crate) fn keep(
        &mut self,
        name: &ChannelName,
        position: Position,
        slow_client: impl FnOnce() -> SlowClient,
    ) -> bool {
        if let Some(channel) = self.by_name.get_mut(&**name) {
            channel.is_kept = true;
            return false;
        }
        self.begin_at(name, position, slow_client()).is_kept = true;
        true
    }

    /// Nobody comes any more: returns the channels that are gone now.
    pub(crate) fn let_go(&mut self) -> Vec<ChannelName> {
        let mut gone = Vec::new();
        self.by_name.retain(|name, channel| {
            let was_kept = std::mem::take(&mut channel.is_kept);
            let is_gone = was_kept && channel.is_empty();
            if is_gone {
                gone.push(name.clone());
            }
            !is_gone
        });
        gone
    }

    fn begin_at(
        &mut self,
        name: &ChannelName,
        position: Position,
        slow_client: SlowClient,
    ) -> &mut Channel {
        self.last_number = self.last_number.wrapping_add(1);
        let mut channel = Channel::new(name, self.last_number, slow_client);
        channel.position = Some(position);
        self.by_name.entry(name.clone()).or_insert(channel)
    }

    /// Up to where a subscriber has got everything, or has it in its queue;
    /// `None` if the owner has not confirmed its subscription.
    pub(crate) fn place_of(&self, name: &str, key: ConnectionKey) -> Option<Position> {
        let channel = self.by_name.get(name)?;
        channel.movers.place_of(key).or(channel.position)
    }

    /// Whether the owner has the subscription.
    pub(crate) fn is_confirmed(&self, name: &str) -> bool {
        self.by_name
            .get(name)
            .is_some_and(|channel| channel.confirmed)
    }

    /// The number of a channel in its clients' outboxes.
    pub(crate) fn number(&self, name: &str) -> Option<u32> {
        self.by_name.get(name).map(|channel| channel.number)
    }

    /// All channels by number, and up to where this worker has them.
    pub(crate) fn all(&self) -> impl Iterator<Item = (u32, &ChannelName, Option<Position>)> {
        let channels = self.by_name.iter();
        channels.map(|(name, channel)| (channel.number, name, channel.position))
    }

    /// Numbers the request that is about to be sent to the owner; `None` if
    /// nobody wants the channel, or the owner has it.
    pub(crate) fn request(&mut self, name: &str) -> Option<(u64, Option<Position>)> {
        let channel = self.by_name.get_mut(name)?;
        if channel.confirmed {
            return None;
        }
        self.last_request += 1;
        channel.request = self.last_request;
        Some((channel.request, channel.movers.earliest(channel.position)))
    }

    /// The owner has the subscription, as `request` asked or, with 0, for a
    /// subscription that stands, and goes on right after `position`. Returns those who waited for it, and whether publications are missing
    /// that this worker's subscribers should have had.
    pub(crate) fn confirm(
        &mut self,
        name: &str,
        request: u64,
        position: Position,
        recovered: bool,
    ) -> (Vec<ConnectionKey>, bool) {
        let Some(channel) = self.by_name.get_mut(name) else {
            return (Vec::new(), false);
        };
        let is_current = if request == 0 {
            channel.confirmed
        } else {
            channel.request == request
        };
        if !is_current {
            return (Vec::new(), false);
        }
        // What was asked for may have been for movers who are behind.
        let is_missing = |own: Position| position.is_after(own) || !position.is_like(own);
        let has_hole = !recovered && channel.position.is_some_and(is_missing);
        channel.confirmed = true;
        // A recovered link is told where it left off, or what it has already.
        channel.position = Some(match channel.position {
            Some(own) if own.generation == position.generation && own.offset > position.offset => {
                own
            }
            Some(_) | None => position,
        });
        let waited = std::mem::take(&mut channel.waiting);
        channel.subscribers.extend_from_slice(&waited);
        let has_missed = channel.settle(position);
        (waited, has_hole || has_missed)
    }

    /// The owner will not have the subscription: returns those who waited for it
    /// and now have none.
    pub(crate) fn refuse(&mut self, name: &str, request: u64) -> Vec<ConnectionKey> {
        let Some(channel) = self
            .by_name
            .get_mut(name)
            .filter(|channel| channel.request == request)
        else {
            return Vec::new();
        };
        let mut waited = std::mem::take(&mut channel.waiting);
        waited.extend(channel.refuse_followers());
        self.subscriptions -= waited.len();
        if channel.is_empty() {
            self.by_name.remove(name);
        }
        waited
    }

    /// Who gets the publication at `offset`, and how that fits.
    ///
    /// `None` if it comes from elsewhere than the shard's owner, whose offsets
    /// mean something else, or before the owner has confirmed the subscription.
    pub(crate) fn arrive(
        &mut self,
        name: &str,
        offset: u64,
        is_owner: impl FnOnce(ShardId) -> bool,
    ) -> Option<Arrived<'_>> {
        let channel = self.by_name.get_mut(name)?;
        if !is_owner(channel.shard) {
            return None;
        }
        // What comes before the subscription is confirmed belongs to an older one.
        let position = channel.position.as_mut().filter(|_| channel.confirmed)?;
        let arrival = match offset {
            offset if offset <= position.offset => Arrival::Repeated,
            offset if offset == position.offset + 1 => Arrival::Next,
            _ => Arrival::AfterHole,
        };
        position.offset = position.offset.max(offset);
        let worker = *position;
        // Those who arrive here get this one as movers, not as subscribers, too.
        let before = channel.subscribers.len();
        let movers = channel
            .movers
            .arrive(offset, worker, &mut channel.subscribers);
        let followers = match arrival {
            Arrival::Repeated => Vec::new(),
            Arrival::Next | Arrival::AfterHole => channel.reach(offset),
        };
        Some(Arrived {
            arrival,
            followers,
            subscribers: match arrival {
                Arrival::Repeated => &[],
                Arrival::Next | Arrival::AfterHole => &channel.subscribers[..before],
            },
            movers,
            number: channel.number,
            slow_client: channel.slow_client,
        })
    }

    /// Whether this is the last request for a channel that waits for its owner.
    pub(crate) fn is_current(&self, name: &str, request: u64) -> bool {
        let channel = self.by_name.get(name);
        channel.is_some_and(|channel| !channel.confirmed && channel.request == request)
    }

    /// Channels of these shards that their owner has not confirmed.
    pub(crate) fn unconfirmed(&self, shards: impl Fn(ShardId) -> bool) -> Vec<ChannelName> {
        let wanted = |channel: &Channel| !channel.confirmed && shards(channel.shard);
        let channels = self.by_name.iter();
        channels
            .filter(|(_, channel)| wanted(channel))
            .map(|(name, _)| name.clone())
            .collect()
    }

    /// The subscriptions of these shards stand no longer. Returns their
    /// channels, which must be requested again.
    pub(crate) fn unconfirm(&mut self, shards: impl Fn(ShardId) -> bool) -> Vec<ChannelName> {
        let mut affected = Vec::new();
        for (name, channel) in &mut self.by_name {
            if shards(channel.shard) {
                channel.confirmed = false;
                channel.request = 0;
                affected.push(name.clone());
            }
        }
        affected
    }
}

impl Channel {
    fn new(name: &str, number: u32, slow_client: SlowClient) -> Self {
        Self {
            shard: shard_of(name),
            number,
            slow_client,
            subscribers: Vec::new(),
            waiting: Vec::new(),
            followers: Vec::new(),
            movers: Movers::default(),
            is_kept: false,
            confirmed: false,
            request: 0,
            position: None,
        }
    }

    fn members(&self) -> impl Iterator<Item = ConnectionKey> + '_ {
        let settled = self.subscribers.iter().chain(&self.waiting).copied();
        let followers = self.followers.iter().map(|follower| follower.key);
        settled.chain(followers).chain(self.movers.keys())
    }

    fn is_empty(&self) -> bool {
        self.subscribers.is_empty()
            && self.waiting.is_empty()
            && self.followers.is_empty()
            && self.movers.is_empty()
            && !self.is_kept
    }

    /// The owner has said where the worker is, and that it sends everything
    /// after `from`; sorts the movers out. True if one of them has missed some.
    fn settle(&mut self, from: Position) -> bool {
        let worker = self.position.unwrap_or(from);
        self.movers.settle(worker, from, &mut self.subscribers)
    }
}

#[cfg(test)]
mod tests;

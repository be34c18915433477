//! Subscribers that want positions: they get what they missed before what is new,
//! and are told of holes (delivery.md B6, B7).

use bytes::Bytes;
use muster_daemon::config::SlowClient;
use muster_proto::link::{KeptPublication, ReadResponse};
use muster_wire::{ChannelName, Position};

use super::{Channel, Channels, Joined};
use crate::connection::ConnectionKey;

#[derive(Debug)]
pub(super) struct Follower {
    pub(super) key: ConnectionKey,
    stage: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// For the owner to have the subscription; `is_told` as below: it came from
    /// another worker.
    Waiting {
        since: Option<Position>,
        is_told: bool,
    },
    /// For what came after this position; `is_told` once its subscription is
    /// acknowledged.
    CatchingUp { since: Position, is_told: bool },
    /// Gets what comes after this position.
    Live { after: Position },
}

/// How a follower begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Start {
    /// It gets what comes after this position; false: and misses something.
    Live {
        key: ConnectionKey,
        position: Position,
        recovered: bool,
    },
    /// What came after this position is to be read for it.
    Read { key: ConnectionKey, since: Position },
    /// Its subscription is acknowledged already, and it is to be told that it
    /// misses what came before this position.
    Hole {
        key: ConnectionKey,
        position: Position,
    },
}

/// How far a follower has come.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Caught {
    /// Its subscription is to be acknowledged, from this position on.
    pub(crate) is_first: bool,
    pub(crate) since: Position,
    /// What came after `since`; `None` if that is not kept any more.
    pub(crate) missed: Option<Vec<(u64, Option<Bytes>)>>,
    /// What comes after this is to be read, too.
    pub(crate) next: Option<Position>,
}

impl Channels {
    /// As [`Self::join`]; once the channel is confirmed, [`Self::start_followers`]
    /// says how it goes on.
    pub(crate) fn follow(
        &mut self,
        name: &ChannelName,
        key: ConnectionKey,
        since: Option<Position>,
        slow_client: impl FnOnce() -> SlowClient,
    ) -> Joined {
        let is_told = false;
        self.push_follower(name, key, Stage::Waiting { since, is_told }, slow_client)
    }

    /// A follower comes from another worker, where its subscription was
    /// acknowledged, with everything up to `position`. As [`Self::follow`].
    pub(crate) fn follow_on(
        &mut self,
        name: &ChannelName,
        key: ConnectionKey,
        position: Position,
        slow_client: impl FnOnce() -> SlowClient,
    ) -> Joined {
        let stage = Stage::Waiting {
            since: Some(position),
            is_told: true,
        };
        self.push_follower(name, key, stage, slow_client)
    }

    fn push_follower(
        &mut self,
        name: &ChannelName,
        key: ConnectionKey,
        stage: Stage,
        slow_client: impl FnOnce() -> SlowClient,
    ) -> Joined {
        let (joined, channel) = self.channel(name, slow_client);
        channel.followers.push(Follower { key, stage });
        joined
    }

    /// Up to where a follower has got everything, or has it in its queue; `None`
    /// if it does not know of any position yet.
    pub(crate) fn place_of_follower(&self, name: &str, key: ConnectionKey) -> Option<Position> {
        let mut followers = self.by_name.get(name)?.followers.iter();
        let follower = followers.find(|follower| follower.key == key)?;
        match follower.stage {
            Stage::Waiting { since, .. } => since,
            Stage::CatchingUp { since, .. } => Some(since),
            Stage::Live { after } => Some(after),
        }
    }

    /// The followers that waited for the channel to be confirmed, which it is.
    pub(crate) fn start_followers(&mut self, name: &str) -> Vec<Start> {
        let Some(channel) = self.by_name.get_mut(name) else {
            return Vec::new();
        };
        let Some(position) = channel.position.filter(|_| channel.confirmed) else {
            return Vec::new();
        };
        let followers = channel.followers.iter_mut();
        followers
            .filter_map(|follower| follower.start(position))
            .collect()
    }

    /// The followers that get what is new, because something before it is
    /// missing; from which position on they get it. Those who are there already
    /// miss nothing.
    pub(crate) fn skip_hole(&mut self, name: &str) -> Option<(Position, Vec<ConnectionKey>)> {
        let channel = self.by_name.get_mut(name)?;
        let position = channel.position?;
        let mut keys = Vec::new();
        for follower in &mut channel.followers {
            if let Stage::Live { after } = &mut follower.stage
                && *after != position
                && !after.is_after(position)
            {
                *after = position;
                keys.push(follower.key);
            }
        }
        Some((position, keys))
    }

    /// What was read for a follower after the position asked for, if it could be; `None` if it has left, or
    /// waits for something else.
    pub(crate) fn catch_up(
        &mut self,
        name: &str,
        key: ConnectionKey,
        (asked, response): (Position, Option<ReadResponse>),
    ) -> Option<Caught> {
        let channel = self.by_name.get_mut(name)?;
        let position = channel.position?;
        let mut followers = channel.followers.iter_mut();
        let follower = followers.find(|follower| follower.key == key)?;
        let Stage::CatchingUp { since, is_told } = follower.stage else {
            return None;
        };
        if since != asked {
            // It has left and come again meanwhile.
            return None;
        }
        let is_first = !is_told;
        let Some(missed) = response.and_then(|response| missed(response, since, position)) else {
            follower.stage = Stage::Live { after: position };
            return Some(Caught {
                is_first,
                since: position,
                missed: None,
                next: None,
            });
        };
        let last = missed.last().map_or(since.offset, |(offset, _)| *offset);
        let reached = Position {
            offset: last,
            ..since
        };
        let is_behind = last < position.offset;
        follower.stage = if is_behind {
            Stage::CatchingUp {
                since: reached,
                is_told: true,
            }
        } else {
            Stage::Live { after: reached }
        };
        Some(Caught {
            is_first,
            since,
            missed: Some(missed),
            next: is_behind.then_some(reached),
        })
    }
}

impl Channel {
    /// Takes a follower away.
    pub(super) fn unfollow(&mut self, key: ConnectionKey) -> bool {
        let index = self.followers.iter().position(|other| other.key == key);
        if let Some(index) = index {
            self.followers.swap_remove(index);
        }
        index.is_some()
    }

    /// Takes away those that wait for the owner; who had the subscription already
    /// keeps it.
    pub(super) fn refuse_followers(&mut self) -> Vec<ConnectionKey> {
        let is_refused = |follower: &mut Follower| {
            matches!(follower.stage, Stage::Waiting { is_told: false, .. })
        };
        let refused = self.followers.extract_if(.., is_refused);
        refused.map(|follower| follower.key).collect()
    }

    /// Who gets the publication at `offset`, each once.
    pub(super) fn reach(&mut self, offset: u64) -> Vec<ConnectionKey> {
        let mut reached = Vec::new();
        for follower in &mut self.followers {
            if let Stage::Live { after } = &mut follower.stage
                && after.offset < offset
            {
                after.offset = offset;
                reached.push(follower.key);
            }
        }
        reached
    }
}

impl Follower {
    fn start(&mut self, position: Position) -> Option<Start> {
        let Stage::Waiting { since, is_told } = self.stage else {
            return None;
        };
        let key = self.key;
        let is_same = |since: Position| since.generation == position.generation;
        match since {
            // It skips what it has.
            Some(since) if is_told && (since == position || since.is_after(position)) => {
                self.stage = Stage::Live { after: since };
                return None;
            }
            Some(since) if is_same(since) && since != position => {
                self.stage = Stage::CatchingUp { since, is_told };
                return Some(Start::Read { key, since });
            }
            Some(_) | None => self.stage = Stage::Live { after: position },
        }
        Some(if is_told {
            Start::Hole { key, position }
        } else {
            Start::Live {
                key,
                position,
                recovered: since.is_none_or(is_same),
            }
        })
    }
}

/// The publications after `since`, without a hole; `None` if there is one, or
/// the channel's log is another by now.
fn missed(
    response: ReadResponse,
    since: Position,
    position: Position,
) -> Option<Vec<(u64, Option<Bytes>)>> {
    let generation = response.head?.generation;
    let is_same = generation == since.generation && position.generation == since.generation;
    if !response.complete || !is_same {
        return None;
    }
    let publications = response.publications.into_iter();
    let missed = publications.map(|KeptPublication { offset, data, .. }| (offset, data));
    Some(missed.collect())
}

#[cfg(test)]
mod tests;

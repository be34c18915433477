//! What operators want to see of a worker. Each list is bounded and takes one
//! walk through what there is.

use std::collections::BinaryHeap;

use muster_proto::control::{
    ChannelCount, ChannelsRequest, ChannelsResult, Connection as Listed, ConnectionsRequest,
    ConnectionsResult,
};
use muster_wire::Millis;
use socket2::SockRef;

use super::Engine;
use crate::connection::{Connection, ConnectionKey};

impl Engine {
    pub(super) fn list_channels(&self, request: &ChannelsRequest) -> ChannelsResult {
        let ChannelsRequest {
            prefix,
            limit,
            after,
        } = request;
        let (channels, cut) = self
            .core
            .channels
            .list(prefix, after.as_deref(), *limit as usize);
        let channels = channels
            .into_iter()
            .map(|(channel, subscribers)| ChannelCount {
                channel: channel.to_owned(),
                subscribers: subscribers as u64,
            });
        ChannelsResult {
            channels: channels.collect(),
            cut,
        }
    }

    pub(super) fn list_connections(&mut self, request: &ConnectionsRequest) -> ConnectionsResult {
        let keys: Vec<ConnectionKey> = match &request.channel {
            Some(channel) => self.core.channels.members(channel).collect(),
            None => self.connections.sessions().collect(),
        };
        // The oldest so far, the youngest of them on top.
        let mut oldest: BinaryHeap<(Millis, u32, ConnectionKey)> = BinaryHeap::new();
        for key in &keys {
            if let Some(connection) = self.connections.get(*key) {
                oldest.push((connection.accepted, key.serial, *key));
            }
            if oldest.len() > request.limit as usize {
                oldest.pop();
            }
        }
        let now = self.now.millis;
        let slot = self.settings.link.worker_slot;
        let sorted = oldest.into_sorted_vec();
        let listed = sorted.into_iter().filter_map(|(_, _, key)| {
            let connection = self.connections.get(key)?;
            Some(listed(connection, slot, now))
        });
        ConnectionsResult {
            connections: listed.collect(),
            total: keys.len() as u64,
        }
    }
}

fn listed(connection: &Connection, worker: u32, now: Millis) -> Listed {
    // Asked of the kernel, so that no connection has to keep it.
    let remote = SockRef::from(&connection.socket).peer_addr();
    let remote = remote.ok().and_then(|address| address.as_socket());
    let session = connection.phase.session();
    let channels = session.map_or(0, |session| session.channels().len());
    let age = now.since(connection.accepted).as_millis();
    Listed {
        connection: session.map_or_else(String::new, |session| session.id().to_string()),
        worker,
        remote: remote.map_or_else(String::new, |address| address.to_string()),
        authenticated: session.is_some_and(|session| session.is_authenticated()),
        age_ms: u64::try_from(age).unwrap_or(u64::MAX),
        channels: u32::try_from(channels).unwrap_or(u32::MAX),
        queued_bytes: connection.outbox.bytes() as u64,
    }
}

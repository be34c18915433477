//! What the clients saw, sorted by connections and publications.

use std::collections::{BTreeMap, HashMap};

use crate::record::{ClientId, Key, Record, Time, What};

/// One connection of a client.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) client: ClientId,
    pub(super) id: String,
    pub(super) from: Time,
    pub(super) ended: Option<(Time, u16)>,
    /// When the cluster had acknowledged it, by channel.
    pub(super) subscribed: BTreeMap<usize, Time>,
    pub(super) delivered: Vec<(usize, Key, Time)>,
}

#[derive(Debug)]
pub(super) struct Publication {
    pub(super) key: Key,
    pub(super) channel: usize,
    pub(super) at: Time,
    pub(super) answer: Option<(Time, Option<String>)>,
}

/// What the journal tells, sorted.
#[derive(Debug, Default)]
pub(super) struct Story {
    pub(super) connections: Vec<Connection>,
    pub(super) publications: BTreeMap<Key, Publication>,
}

impl Story {
    pub(super) fn of(records: Vec<Record>) -> Self {
        let mut story = Self::default();
        let mut current: HashMap<ClientId, usize> = HashMap::new();
        for Record { at, client, what } in records {
            if let What::Connected { id } = what {
                current.insert(client, story.connections.len());
                story.connections.push(Connection {
                    client,
                    id,
                    from: at,
                    ended: None,
                    subscribed: BTreeMap::new(),
                    delivered: Vec::new(),
                });
                continue;
            }
            let connection = current
                .get(&client)
                .and_then(|index| story.connections.get_mut(*index));
            match (what, connection) {
                (What::Disconnected { code }, Some(connection)) => {
                    connection.ended.get_or_insert((at, code));
                }
                (What::Subscribed { channel }, Some(connection)) => {
                    connection.subscribed.entry(channel).or_insert(at);
                }
                (What::Delivered { channel, key }, Some(connection)) => {
                    connection.delivered.push((channel, key, at));
                }
                (What::Published { n, channel }, _) => {
                    let key = Key { client, n };
                    let publication = Publication {
                        key,
                        channel,
                        at,
                        answer: None,
                    };
                    story.publications.insert(key, publication);
                }
                (What::Answered { n, error }, _) => {
                    let key = Key { client, n };
                    if let Some(publication) = story.publications.get_mut(&key) {
                        publication.answer.get_or_insert((at, error));
                    }
                }
                // Of a connection that never was.
                (
                    What::Connected { .. }
                    | What::Disconnected { .. }
                    | What::Subscribed { .. }
                    | What::Delivered { .. },
                    _,
                ) => {}
            }
        }
        story
    }
}

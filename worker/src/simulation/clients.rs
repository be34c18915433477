//! The clients of a simulated worker, and what they are told.

use std::collections::BTreeMap;

use bytes::Bytes;
use muster_wire::{Millis, session::Session};

use super::{ClientKey, Heard};
use crate::{
    connection::ConnectionKey,
    core::{Clients, Pause},
    outbox::Delivery,
    stats::Stats,
};

/// How a client is told that something is missing.
const HOLE: &str = r##"{"event":"#position""##;

#[derive(Debug, Default)]
pub(super) struct SimClients {
    pub(super) by_index: BTreeMap<u32, SimClient>,
    next_serial: u32,
    pub(super) heard: Vec<Heard>,
    /// Nobody is told of holes.
    hides_holes: bool,
}

#[derive(Debug)]
pub(super) struct SimClient {
    pub(super) serial: u32,
    pub(super) session: Session,
    pub(super) paused: Option<(Pause, Millis)>,
    /// A message and how much of it is done.
    pub(super) unfinished: Option<(String, usize)>,
}

impl SimClients {
    pub(super) fn new(hides_holes: bool) -> Self {
        Self {
            hides_holes,
            ..Self::default()
        }
    }

    /// Takes the lowest free place, as the engine's table may.
    pub(super) fn insert(&mut self, session: Session) -> ClientKey {
        self.next_serial += 1;
        let serial = self.next_serial;
        let index = (0..)
            .find(|index| !self.by_index.contains_key(index))
            .expect("there are fewer clients than numbers");
        let client = SimClient {
            serial,
            session,
            paused: None,
            unfinished: None,
        };
        self.by_index.insert(index, client);
        ClientKey(ConnectionKey { index, serial })
    }

    pub(super) fn get(&mut self, key: ConnectionKey) -> Option<&mut SimClient> {
        self.by_index
            .get_mut(&key.index)
            .filter(|client| client.serial == key.serial)
    }

    pub(super) fn remove(&mut self, key: ConnectionKey) -> Option<SimClient> {
        self.get(key)?;
        self.by_index.remove(&key.index)
    }

    pub(super) fn hear(&mut self, key: ConnectionKey, texts: Vec<String>, closed: Option<u16>) {
        self.heard.push(Heard {
            key: ClientKey(key),
            texts,
            closed,
        });
    }
}

impl Clients for SimClients {
    fn session(&mut self, key: ConnectionKey) -> Option<&mut Session> {
        Some(&mut self.get(key)?.session)
    }

    fn send(&mut self, key: ConnectionKey, frames: &mut Vec<Bytes>) {
        let mut texts: Vec<String> = frames.drain(..).map(|frame| text_of(&frame)).collect();
        if self.hides_holes {
            texts.retain(|text| !text.starts_with(HOLE));
        }
        if !texts.is_empty() && self.get(key).is_some() {
            self.hear(key, texts, None);
        }
    }

    fn fan_out(&mut self, keys: &[ConnectionKey], delivery: Delivery<'_>, stats: &mut Stats) {
        for key in keys {
            if self.get(*key).is_some() {
                stats.deliveries += 1;
                self.hear(*key, vec![text_of(delivery.frame)], None);
            }
        }
    }
}

/// The text of an unmasked, whole text frame.
fn text_of(frame: &Bytes) -> String {
    let skip = match frame.get(1) {
        Some(126) => 4,
        Some(127) => 10,
        Some(_) | None => 2,
    };
    String::from_utf8_lossy(frame.get(skip..).unwrap_or_default()).into_owned()
}

//! What the clients saw, and when, for the checker.

use std::{
    sync::Mutex,
    time::{SystemTime, UNIX_EPOCH},
};

/// Milliseconds since the epoch: the one clock that processes of other languages
/// have, too.
pub(crate) type Time = u64;

/// One client program, whatever becomes of its connections.
pub(crate) type ClientId = u32;

/// Not a client: publishes with the command line.
pub(crate) const OPERATOR: ClientId = 1000;

/// The present.
pub(crate) fn now() -> Time {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let millis = since.map_or(0, |since| since.as_millis());
    Time::try_from(millis).unwrap_or(Time::MAX)
}

/// The `n`th publication of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key {
    pub(crate) client: ClientId,
    pub(crate) n: u64,
}

/// Something that happened to a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) at: Time,
    pub(crate) client: ClientId,
    pub(crate) what: What,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum What {
    /// The handshake gave this session id.
    Connected {
        id: String,
    },
    Disconnected {
        code: u16,
    },
    /// The cluster has acknowledged it.
    Subscribed {
        channel: usize,
    },
    Published {
        n: u64,
        channel: usize,
    },
    /// The answer to a publication; the name of the error, if it is one.
    Answered {
        n: u64,
        error: Option<String>,
    },
    Delivered {
        channel: usize,
        key: Key,
    },
}

/// Everything that happened, in the order in which it was written down.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    records: Mutex<Vec<Record>>,
}

impl Journal {
    pub(crate) fn note(&self, client: ClientId, what: What) {
        self.write(Record {
            at: now(),
            client,
            what,
        });
    }

    pub(crate) fn write(&self, record: Record) {
        self.records
            .lock()
            .expect("nobody panics here")
            .push(record);
    }

    /// How often something happened so far.
    pub(crate) fn count(&self, counts: impl Fn(&What) -> bool) -> usize {
        let records = self.records.lock().expect("nobody panics here");
        records.iter().filter(|record| counts(&record.what)).count()
    }

    pub(crate) fn take(&self) -> Vec<Record> {
        std::mem::take(&mut self.records.lock().expect("nobody panics here"))
    }
}

/// The name of a channel.
pub(crate) fn channel_name(channel: usize) -> String {
    format!("chaos:{channel}")
}

pub(crate) fn channel_number(name: &str) -> Option<usize> {
    name.strip_prefix("chaos:")?.parse().ok()
}

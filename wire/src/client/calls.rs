//! Calls that wait for their answer.

use std::collections::BTreeMap;

use super::Refused;
use crate::Millis;

/// What an answer means for the session itself.
#[derive(Debug)]
pub(super) enum Kind {
    /// Nothing.
    Plain,
    /// The token is good or not.
    Authenticate { token: String },
}

#[derive(Debug)]
pub(super) struct Calls {
    last_cid: u64,
    max: usize,
    /// By `cid`, which is also the order of the deadlines, since all calls get
    /// the same time.
    waiting: BTreeMap<u64, Waiting>,
}

#[derive(Debug)]
struct Waiting {
    deadline: Millis,
    kind: Kind,
    /// The packet, for the next connection.
    unsent: Option<String>,
}

impl Calls {
    pub(super) const fn new(max: usize) -> Self {
        Self {
            last_cid: 0,
            max,
            waiting: BTreeMap::new(),
        }
    }

    /// Numbers rise over all connections, as the JavaScript client does it, so a
    /// late answer never meets another call.
    pub(super) fn next_cid(&mut self) -> u64 {
        self.last_cid += 1;
        self.last_cid
    }

    pub(super) fn check_room(&self) -> Result<(), Refused> {
        match self.max {
            max if self.waiting.len() >= max => Err(Refused::TooManyCalls { max }),
            _ => Ok(()),
        }
    }

    /// Adds a call; `unsent` is its packet if it waits for a connection.
    pub(super) fn insert(
        &mut self,
        cid: u64,
        deadline: Millis,
        kind: Kind,
        unsent: Option<String>,
    ) {
        self.waiting.insert(
            cid,
            Waiting {
                deadline,
                kind,
                unsent,
            },
        );
    }

    /// The packets that wait for a connection, oldest first; they count as sent.
    pub(super) fn take_unsent(&mut self) -> Vec<String> {
        self.waiting
            .values_mut()
            .filter_map(|waiting| waiting.unsent.take())
            .collect()
    }

    pub(super) fn take(&mut self, cid: u64) -> Option<Kind> {
        self.waiting.remove(&cid).map(|waiting| waiting.kind)
    }

    pub(super) fn next_deadline(&self) -> Option<Millis> {
        self.waiting
            .first_key_value()
            .map(|(_, waiting)| waiting.deadline)
    }

    /// Takes the calls whose time is over.
    pub(super) fn expire(&mut self, now: Millis) -> Vec<u64> {
        let mut expired = Vec::new();
        while let Some(first) = self.waiting.first_entry() {
            if first.get().deadline > now {
                break;
            }
            expired.push(*first.key());
            first.remove();
        }
        expired
    }

    /// Takes the calls whose answer was lost with the connection.
    pub(super) fn connection_lost(&mut self) -> Vec<u64> {
        let mut lost = Vec::new();
        self.waiting.retain(|cid, waiting| {
            let is_sent = waiting.unsent.is_none();
            if is_sent {
                lost.push(*cid);
            }
            !is_sent
        });
        lost
    }

    pub(super) fn drain(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.waiting).into_keys().collect()
    }
}

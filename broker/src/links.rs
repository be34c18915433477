//! The links that are open, by their ids.

use std::{sync::Arc, time::Duration};

use dashmap::{DashMap, Entry};
use muster_wire::Millis;
use tokio::{sync::Notify, time::timeout};

use crate::{
    error::LinkError,
    link::{Link, LinkEnd},
    turn::Turn,
};

/// Every open link. No guard leaves this type or lives longer than one call.
#[derive(Debug, Default)]
pub(crate) struct Links {
    by_id: DashMap<u64, Arc<Link>>,
    opened: Notify,
}

impl Links {
    /// Makes the link known under its id.
    pub(crate) fn open(&self, id: u64, link: Arc<Link>) -> Result<(), LinkError> {
        match self.by_id.entry(id) {
            Entry::Occupied(_) => return Err(LinkError::LinkIdTaken),
            Entry::Vacant(place) => _ = place.insert(link),
        }
        self.opened.notify_waiters();
        Ok(())
    }

    pub(crate) fn close(&self, id: u64) {
        self.by_id.remove(&id);
    }

    /// The link with this id; waits up to `patience` for one that is about to
    /// open. Cancel-safe.
    pub(crate) async fn get(&self, id: u64, patience: Duration) -> Option<Arc<Link>> {
        let found = async {
            loop {
                let mut opened = std::pin::pin!(self.opened.notified());
                opened.as_mut().enable();
                if let Some(link) = self.by_id.view(&id, |_, link| Arc::clone(link)) {
                    return link;
                }
                opened.await;
            }
        };
        timeout(patience, found).await.ok()
    }

    pub(crate) fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Cuts the links that are stuck; returns their ids.
    pub(crate) fn cut_stuck(&self, now: Millis) -> Vec<u64> {
        let mut turn = Turn::new(now);
        let mut cut = Vec::new();
        for entry in &self.by_id {
            if entry.value().is_stuck(now) {
                let end = LinkEnd::Failed(LinkError::Stuck);
                entry.value().end(&mut turn, end);
                cut.push(*entry.key());
            }
        }
        cut
    }

    /// Ends every link because the broker stops.
    pub(crate) fn stop(&self, now: Millis) {
        let mut turn = Turn::new(now);
        for entry in &self.by_id {
            let end = LinkEnd::Failed(LinkError::Stopping);
            entry.value().end(&mut turn, end);
        }
    }
}

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

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use muster_proto::link::RefusalReason;

    use super::*;
    use crate::link::Step;

    #[test]
    fn only_links_that_are_stuck_are_cut() {
        let links = Links::default();
        let (stuck, idle) = (
            Arc::new(Link::new(Millis(0))),
            Arc::new(Link::new(Millis(0))),
        );
        links.open(1, Arc::clone(&stuck)).unwrap();
        links.open(2, Arc::clone(&idle)).unwrap();
        let mut turn = Turn::new(Millis(0));
        stuck.not_owner(
            &mut turn,
            &muster_proto::link::Subscribe::default(),
            RefusalReason::Unspecified,
        );
        assert!(links.cut_stuck(Millis(9_999)).is_empty());
        assert_eq!(links.cut_stuck(Millis(10_000)), [1]);
        let cut = Step::End(LinkEnd::Failed(LinkError::Stuck));
        assert_eq!(stuck.next_step(Millis(10_000), Waker::noop()), cut);
        assert_eq!(idle.next_step(Millis(10_000), Waker::noop()), Step::Wait);
        assert!(links.cut_stuck(Millis(20_000)).is_empty(), "it is cut once");
    }

    #[test]
    fn an_id_is_free_again_when_its_link_is_closed() {
        let links = Links::default();
        let link = || Arc::new(Link::new(Millis(0)));
        assert_eq!(links.open(1, link()), Ok(()));
        assert_eq!(links.open(1, link()), Err(LinkError::LinkIdTaken));
        links.close(1);
        assert_eq!(links.open(1, link()), Ok(()));
        assert_eq!(links.len(), 1);
    }
}

//! Publications whose publishers go to another worker, which sends them again
//! with the same keys (delivery.md D1).

use std::collections::{HashMap, HashSet};

use muster_proto::ShardId;
use muster_wire::{session::SessionId, snapshot::Unacked};

use super::{Call, Publication, Router, Waiter};

impl Router {
    /// What these publishers have published and its owners have not acked, each
    /// channel's in order.
    pub(crate) fn unacked(
        &self,
        producers: &HashSet<SessionId>,
    ) -> HashMap<SessionId, Vec<Unacked>> {
        let mut unacked: HashMap<SessionId, Vec<Unacked>> = HashMap::new();
        let publications = self.shards.iter().flat_map(|shard| shard.publications());
        for publication in publications {
            if producers.contains(&publication.producer) {
                let of_one = unacked.entry(publication.producer).or_default();
                of_one.push(snapshot(publication));
            }
        }
        unacked
    }

    /// These publishers are with another worker now. What is on the wire is
    /// known to its owner by its key when it comes again, or later; the rest is
    /// left to the other worker.
    pub(crate) fn withdraw(&mut self, producers: &HashSet<SessionId>) {
        for shard in ShardId::all() {
            let is_gone = |publication: &Publication| producers.contains(&publication.producer);
            let bytes = self.shards[shard.index()].withdraw(is_gone);
            *self.kept_bytes(shard) -= bytes;
        }
    }

    /// Whether no publication waits for its owner.
    pub(crate) fn is_idle(&self) -> bool {
        self.unowned_bytes == 0 && self.links.values().all(|link| link.kept_bytes == 0)
    }
}

fn snapshot(publication: &Publication) -> Unacked {
    let cid = match &publication.waiter {
        Some(Waiter::Client(Call { cid, .. })) => Some(cid.clone()),
        Some(Waiter::Operator(_)) | None => None,
    };
    let Publication {
        channel,
        data,
        n,
        accepted,
        ..
    } = publication;
    Unacked::new(channel.clone(), data.clone(), *n, cid, *accepted)
}

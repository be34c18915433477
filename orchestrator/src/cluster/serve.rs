//! What the cluster tells the service manager, and does as the first process of
//! a container.

use muster_proto::control::node_status::Stats;

use super::Cluster;
use crate::{node::Role, supervisor::Phase};

impl Cluster {
    /// Says that this loop turns, and how the cluster is.
    pub(super) fn beat(&mut self) {
        let line = self.status_line();
        self.service.beat(line);
    }

    /// Reaps what others left to the first process.
    pub(super) fn reap(&self) {
        let nodes = self.fleet.nodes();
        let lives = nodes.filter_map(|(_, node)| node.slot.life());
        self.service.reap(&lives.map(|life| life.pid).collect());
    }

    /// `2 of 2 workers and 1 of 1 brokers ready, 17 connections, epoch 3`.
    fn status_line(&self) -> String {
        let count = |role| {
            let nodes = self.fleet.nodes().filter(|(id, _)| id.role == role);
            let (all, ready) = nodes.fold((0, 0), |(all, ready), (_, node)| {
                let is_ready = matches!(node.slot.phase(), Phase::Ready { .. });
                (all + 1, ready + u32::from(is_ready))
            });
            format!("{ready} of {all} {role}s")
        };
        let connections: u64 = self
            .fleet
            .nodes()
            .map(|(_, node)| match node.stats() {
                Some(Stats::Worker(stats)) => stats.connections,
                Some(Stats::Broker(_)) | None => 0,
            })
            .sum();
        format!(
            "{} and {} ready, {connections} connections, epoch {}",
            count(Role::Worker),
            count(Role::Broker),
            self.membership.view().epoch()
        )
    }
}

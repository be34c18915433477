//! The end of a run: everything works again, everything drains, and what must
//! hold then is checked.

use std::time::Duration;

use crate::{
    checker::Violation,
    cluster::{Cluster, WorkerSide},
};

/// Rounds in which everything that can happen does.
const ROUNDS_MAX: usize = 3000;
const ROUND: Duration = Duration::from_millis(20);
/// Messages per path and round.
const MESSAGES: usize = 50;

impl Cluster {
    /// Heals the cluster, lets it drain, and publishes a probe to every channel.
    pub(crate) fn finish(&mut self) -> Result<(), Violation> {
        self.heal()?;
        self.drain()?;
        self.checker.at_rest()?;
        let probes = self.publish_probes();
        self.drain()?;
        for (channel, id) in probes {
            let missing = self.checker.missing(channel, id);
            if !missing.is_empty() {
                return Err(Violation(format!(
                    "connections {missing:?} did not get probe {id} of c{channel}"
                )));
            }
        }
        self.checker.at_rest()
    }

    /// No fault from now on; what is broken is noticed, what is dead returns.
    fn heal(&mut self) -> Result<(), Violation> {
        self.transcript.line(self.now, || "healing".into());
        while self.restart_somewhere() {}
        self.set_room(None);
        let ids: Vec<u64> = self.links.keys().copied().collect();
        for id in ids {
            if self.links[&id].is_cut {
                self.worker_notices(id);
                self.broker_notices(id);
            }
        }
        self.links.retain(|_, link| !link.is_over());
        for client in 0..self.clients.len() {
            if self.clients[client].connection.is_none() {
                self.client_connects(client, [u8::try_from(client).unwrap_or_default(); 15]);
            }
        }
        Ok(())
    }

    fn drain(&mut self) -> Result<(), Violation> {
        for _ in 0..ROUNDS_MAX {
            let moved = self.round()?;
            if !moved && self.is_at_rest() {
                return Ok(());
            }
        }
        let workers = self.workers.iter();
        let fills: Vec<_> = workers.map(|worker| worker.sim.fill()).collect();
        Err(Violation(format!(
            "does not come to rest: calls {:?}, workers {fills:?}",
            self.open_calls()
        )))
    }

    /// Returns whether anything was on its way.
    fn round(&mut self) -> Result<bool, Violation> {
        self.advance(ROUND)?;
        let mut moved = self.deliver_views()?;
        moved |= self.open_waiting_shards()?;
        for index in 0..self.workers.len() {
            for slot in self.brokers.keys().copied().collect::<Vec<_>>() {
                moved |= self.connect(index, slot)?;
            }
        }
        for id in self.links.keys().copied().collect::<Vec<_>>() {
            if self.links[&id].is_cut {
                self.worker_notices(id);
                self.broker_notices(id);
            }
            moved |= self.worker_hears_up(id);
        }
        self.links.retain(|_, link| !link.is_over());
        for _ in 0..MESSAGES {
            let moves = self.read_goes_on()?;
            moved |= moves;
            if !moves {
                break;
            }
        }
        for client in 0..self.clients.len() {
            for _ in 0..MESSAGES {
                let moves = self.uplink(client)?;
                moved |= moves;
                if !moves {
                    break;
                }
            }
        }
        for id in self.links.keys().copied().collect::<Vec<_>>() {
            for _ in 0..MESSAGES {
                let mut moves = self.worker_sends(id);
                moves |= self.broker_receives(id)?;
                moves |= self.broker_sends(id)?;
                moves |= self.worker_receives(id)?;
                moves |= self.credit(id);
                moved |= moves;
                if !moves {
                    break;
                }
            }
        }
        Ok(moved)
    }

    fn deliver_views(&mut self) -> Result<bool, Violation> {
        let mut moved = false;
        for index in 0..self.workers.len() {
            while let Some(view) = self.workers[index].control.pop_front() {
                self.worker_hears_view(index, view);
                self.end_worker_turn(index)?;
                moved = true;
            }
        }
        for slot in self.brokers.keys().copied().collect::<Vec<_>>() {
            while let Some(view) = self
                .brokers
                .get_mut(&slot)
                .and_then(|broker| broker.control.pop_front())
            {
                self.broker_hears_view(slot, &view)?;
                moved = true;
            }
        }
        Ok(moved)
    }

    fn is_at_rest(&self) -> bool {
        let links_up = self
            .links
            .values()
            .all(|link| link.worker_side == WorkerSide::Up && !link.is_cut);
        let workers_empty = self.workers.iter().all(|worker| {
            let fill = worker.sim.fill();
            let is_empty = fill.kept_bytes == 0 && fill.frames == 0 && fill.reads == 0;
            worker.sim.is_whole() && is_empty && fill.paused == 0
        });
        let clients_quiet = self.clients.iter().all(|client| {
            let connection = client.connection.as_ref();
            connection.is_none_or(|connection| connection.uplink.is_empty())
        });
        links_up && workers_empty && clients_quiet && self.open_calls().is_empty()
    }

    /// One publication per channel, each from another client.
    fn publish_probes(&mut self) -> Vec<(usize, u64)> {
        let mut probes = Vec::new();
        for channel in 0..self.scenario.channels {
            let client = channel % self.clients.len();
            if let Some(connection) = &mut self.clients[client].connection {
                let id = self.checker.said(connection.serial, channel);
                let packet = connection.publish(channel, id, 10, true);
                connection.say(vec![packet]);
                probes.push((channel, id));
            }
        }
        probes
    }
}

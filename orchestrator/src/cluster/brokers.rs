//! More and fewer brokers while the cluster runs.

use std::collections::BTreeSet;

use muster_proto::control as pb;
use muster_wire::Millis;
use rustix::process::Signal;
use tracing::{error, info};

use super::{BROKER_TIMEOUT, Cluster, Stage};
use crate::{
    control::ScaleRefused,
    node::{NodeId, Role},
    supervisor::{Event, Facts, Next, Phase, Resize},
};

impl Cluster {
    /// Whether the number of brokers may become `to` now.
    pub(super) fn may_scale_brokers(&self, to: u32) -> Result<(), ScaleRefused> {
        if self.stage == Stage::Starting {
            return Err(ScaleRefused::Starting);
        }
        if let Some(resize) = &self.resize {
            return Err(ScaleRefused::Busy {
                from: resize.from,
                to: resize.to,
            });
        }
        let looping = self.fleet.crash_looping(Role::Broker);
        let staying = self.settings.size.brokers.min(to);
        if (1..=staying).all(|slot| looping.contains(&slot)) {
            return Err(ScaleRefused::Failing);
        }
        Ok(())
    }

    /// Begins to make `to` the number of brokers; the highest slots go first.
    pub(super) fn scale_brokers(&mut self, now: Millis, to: u32, answer: &mut pb::ScaleResponse) {
        let from = std::mem::replace(&mut self.settings.size.brokers, to);
        if from == to {
            return;
        }
        info!(from, to, "Changing the number of brokers.");
        if from < to {
            let new: BTreeSet<u32> = (from + 1..=to).collect();
            answer.brokers_starting.extend(&new);
            for slot in &new {
                self.fleet.add(broker(*slot));
            }
            self.membership.expect(new);
            self.resize = Some(Resize::grow(from, to));
        } else {
            answer.brokers_ending.extend(to + 1..=from);
            self.let_brokers_go(now, from, to);
        }
    }

    /// Does what is due for a change of the number of brokers.
    pub(super) fn resize_brokers(&mut self, now: Millis) {
        if self.stage != Stage::Running {
            return;
        }
        self.retire_brokers();
        let Some(mut resize) = self.resize else {
            return;
        };
        let next = resize.turn(now, self.facts(&resize));
        let Resize { from, to, .. } = resize;
        self.resize = Some(resize);
        match next {
            Next::Nothing => {}
            Next::Admit => {
                info!(from, to, "New brokers are ready: shards move to them.");
                let tells = self.membership.admit(now);
                self.tell(tells);
            }
            Next::GiveUp => {
                error!(
                    from,
                    to, "A new broker ends again and again: the new ones go again."
                );
                self.settings.size.brokers = from;
                self.let_brokers_go(now, to, from);
            }
            Next::End => self.end_brokers(to),
            Next::Done => {
                info!(from, to, "The number of brokers has changed.");
                self.resize = None;
            }
        }
    }

    /// Goes on with what an earlier orchestrator began when there were `before`
    /// brokers, or with what this one was asked for.
    pub(super) fn resume_resize(&mut self, now: Millis, before: u32) {
        if self.membership.view().epoch() == 0 {
            return;
        }
        let size = self.settings.size.brokers;
        let brokers = self.fleet.ids(Role::Broker);
        if let Some(highest) = brokers.iter().map(|id| id.slot).max()
            && highest > size
        {
            self.let_brokers_go(now, highest, size);
            return;
        }
        let owning = self.membership.view().owning();
        let new: BTreeSet<u32> = (before + 1..=size)
            .filter(|slot| !owning.contains(slot))
            .collect();
        if !new.is_empty() {
            self.membership.expect(new);
            self.resize = Some(Resize::grow(before, size));
        }
    }

    /// What operators see of it.
    pub(super) fn scaling(&self) -> Option<pb::BrokerScale> {
        self.resize.map(|resize| pb::BrokerScale {
            from: resize.from,
            to: resize.to,
            step: resize.step().into(),
        })
    }

    /// Until when a broker that is to go may take.
    pub(super) fn brokers_cut_at(now: Millis) -> Millis {
        Resize::cut_at(now, BROKER_TIMEOUT)
    }

    /// The others hear first: what goes is to have nothing by then.
    fn let_brokers_go(&mut self, now: Millis, from: u32, to: u32) {
        let slots = (to + 1..=from).collect();
        let tells = self.membership.dismiss(now, slots);
        self.tell(tells);
        let until = Self::brokers_cut_at(now);
        for slot in to + 1..=from {
            self.feed(now, broker(slot), Event::Drain { until });
        }
        self.resize = Some(Resize::shrink(now, from, to));
    }

    fn end_brokers(&self, to: u32) {
        for (id, node) in self.fleet.nodes() {
            if id.role == Role::Broker
                && id.slot > to
                && let Some(life) = node.slot.life()
            {
                info!(node = %id, "Broker has given its shards away: ending it.");
                self.signal(id, life.pid, Signal::TERM);
            }
        }
    }

    fn retire_brokers(&mut self) {
        let stopped: Vec<NodeId> = self
            .fleet
            .nodes()
            .filter(|(id, node)| id.role == Role::Broker && node.slot.phase() == Phase::Stopped)
            .map(|(id, _)| id)
            .collect();
        for id in stopped {
            self.fleet.remove(id);
            self.membership.forget(id.slot);
            info!(node = %id, "Broker is gone.");
        }
    }

    fn facts(&self, resize: &Resize) -> Facts {
        let new = resize.from + 1..=resize.to;
        let looping = self.fleet.crash_looping(Role::Broker);
        let view = self.membership.view();
        let brokers = || self.fleet.nodes().filter(|(id, _)| id.role == Role::Broker);
        Facts {
            is_ready: brokers()
                .filter(|(id, _)| new.contains(&id.slot))
                .all(|(_, node)| matches!(node.slot.phase(), Phase::Ready { .. })),
            is_failing: looping.iter().any(|slot| new.contains(slot)),
            is_linked: self.membership.is_published()
                && self.fleet.is_linked(view.epoch(), view.brokers().len()),
            is_applied: self.membership.is_applied(),
            is_gone: !brokers().any(|(id, _)| id.slot > resize.to),
        }
    }
}

fn broker(slot: u32) -> NodeId {
    NodeId {
        role: Role::Broker,
        slot,
    }
}

//! What follows in an update once the workers are through: the brokers, one at
//! a time (delivery.md C), and last the orchestrator itself.

use std::{path::Path, sync::Arc, time::Duration};

use muster_proto::control as pb;
use muster_wire::Millis;
use rustix::process::Signal;
use tracing::{error, info, warn};

use super::{Cluster, Stage};
use crate::{
    node::{NodeId, Role},
    supervisor::{BrokerNext, BrokerUpdate, Event, Exit, Filling, Phase},
};

/// The part of an update that comes after the workers.
#[derive(Debug)]
pub(super) struct Following {
    machine: BrokerUpdate,
    program: Arc<Path>,
    brokers: u32,
    turn: Option<Turn>,
    /// The longest that the channels of one broker stood still.
    pause_max: Duration,
    /// Nothing more happens.
    is_over: bool,
}

/// The slot whose turn it is.
#[derive(Debug)]
struct Turn {
    id: NodeId,
    since: Millis,
    /// Of the process that is to go.
    incarnation: u64,
    /// What that runs.
    program: Arc<Path>,
    /// The slot is to run that again.
    is_put_back: bool,
    /// How the new process ended.
    died: Option<String>,
}

impl Following {
    /// What operators see of it.
    pub(super) fn status(&self) -> pb::UpdateFollowing {
        let slot = self.machine.slot().filter(|_| !self.is_over);
        let pause_max_us = self.pause_max.as_micros();
        pb::UpdateFollowing {
            slot: slot.unwrap_or(0),
            step: slot.map_or(String::new(), |_| self.machine.step().into()),
            brokers_done: self.machine.done(),
            brokers: self.brokers,
            pause_max_us: u64::try_from(pause_max_us).unwrap_or(u64::MAX),
            orchestrator_done: false,
        }
    }
}

impl Cluster {
    /// The workers run `program`: now the others.
    pub(super) fn begin_following(&mut self, program: Arc<Path>) {
        let slots = self.fleet.ids(Role::Broker).into_iter().map(|id| id.slot);
        let machine = BrokerUpdate::new(slots);
        let brokers = u32::try_from(machine.pending()).unwrap_or(u32::MAX);
        info!(brokers, "Updating the brokers.");
        self.following = Some(Following {
            machine,
            program,
            brokers,
            turn: None,
            pause_max: Duration::ZERO,
            is_over: false,
        });
    }

    pub(super) fn following_wake_at(&self) -> Option<Millis> {
        let following = self.following.as_ref();
        let following = following.filter(|following| !following.is_over)?;
        following.machine.wake_at()
    }

    /// Does what is due; true while the workers' part of the update is through
    /// and this one is not.
    pub(super) fn advance_following(&mut self, now: Millis) -> bool {
        loop {
            let Some(mut following) = self.following.take_if(|following| !following.is_over) else {
                return false;
            };
            // A change of their number is waited for.
            if self.stage != Stage::Running || self.resize.is_some() {
                self.following = Some(following);
                return true;
            }
            let filling = self.filling(&following);
            let done = following.machine.done();
            let next = following.machine.turn(now, &filling);
            if let Some(turn) = &following.turn
                && following.machine.done() > done
            {
                let pause = now.since(turn.since);
                info!(node = %turn.id, ?pause, "Broker is updated.");
                following.pause_max = following.pause_max.max(pause);
            }
            self.following = Some(following);
            if next == BrokerNext::Nothing {
                return true;
            }
            self.follow(now, next);
        }
    }

    fn follow(&mut self, now: Millis, next: BrokerNext) {
        match next {
            BrokerNext::Nothing => {}
            BrokerNext::Replace(slot) => self.replace_broker(now, slot),
            BrokerNext::Kill(slot) => {
                let id = broker(slot);
                warn!(node = %id, "A broker that is to be replaced does not end: killing it.");
                self.kill_broker(id);
            }
            BrokerNext::PutBack { slot, why } => self.put_broker_back(now, slot, &why),
            BrokerNext::Done(Err(why)) => {
                error!(why, "The brokers are not updated.");
                let why = format!(
                    "{why}; it runs the earlier program again, as the brokers do whose turn had \
                     not come, and the orchestrator; the workers run the new one"
                );
                self.end_following(now, Err(why));
            }
            BrokerNext::Done(Ok(())) => {
                info!("The brokers are updated.");
                self.update_orchestrator(now);
            }
        }
    }

    /// The update is over, one way or the other.
    pub(super) fn end_following(&mut self, now: Millis, result: Result<(), String>) {
        if let Some(following) = &mut self.following {
            following.is_over = true;
        }
        self.end_update(now, result);
    }

    /// What the update makes nodes run.
    pub(super) fn following_program(&self) -> Option<Arc<Path>> {
        let following = self.following.as_ref()?;
        Some(Arc::clone(&following.program))
    }

    fn replace_broker(&mut self, now: Millis, slot: u32) {
        let id = broker(slot);
        let (Some(following), Some(node)) = (&mut self.following, self.fleet.get_mut(id)) else {
            return;
        };
        info!(node = %id, "Replacing a broker.");
        let new = Arc::clone(&following.program);
        following.turn = Some(Turn {
            id,
            since: now,
            incarnation: node.slot.life().map_or(0, |life| life.incarnation),
            program: std::mem::replace(&mut node.program, new),
            is_put_back: false,
            died: None,
        });
        self.feed(now, id, Event::Replace);
    }

    fn put_broker_back(&mut self, now: Millis, slot: u32, why: &str) {
        let id = broker(slot);
        warn!(node = %id, why, "Starting the earlier program again.");
        let Some(turn) = self.turn_of(id) else {
            return;
        };
        turn.died = None;
        let is_there = std::mem::replace(&mut turn.is_put_back, true);
        let program = Arc::clone(&turn.program);
        if is_there {
            return;
        }
        if let Some(node) = self.fleet.get_mut(id) {
            node.program = program;
        }
        self.feed(now, id, Event::Replace);
        // It had its chance.
        self.kill_broker(id);
    }

    /// A broker has ended, or could not be started, and is about to be started
    /// again: if it was a new one, by the earlier program.
    pub(super) fn following_ended(&mut self, id: NodeId, incarnation: u64, exit: &Exit) {
        let Some(turn) = self.turn_of(id) else {
            return;
        };
        if turn.incarnation == incarnation || turn.is_put_back {
            return;
        }
        turn.is_put_back = true;
        turn.died = Some(exit.to_string());
        let program = Arc::clone(&turn.program);
        if let Some(node) = self.fleet.get_mut(id) {
            node.program = program;
        }
    }

    fn turn_of(&mut self, id: NodeId) -> Option<&mut Turn> {
        let following = self.following.as_mut();
        let turn = following
            .filter(|following| !following.is_over)?
            .turn
            .as_mut();
        turn.filter(|turn| turn.id == id)
    }

    fn filling(&self, following: &Following) -> Filling {
        let Some(turn) = &following.turn else {
            return Filling::Starting;
        };
        if let Some(why) = &turn.died {
            return Filling::Died(why.clone());
        }
        let mut nodes = self.fleet.nodes();
        let node = nodes.find(|(id, _)| *id == turn.id).map(|(_, node)| node);
        match node.map(|node| (node.slot.phase(), node.slot.life())) {
            Some((_, Some(life))) if life.incarnation == turn.incarnation => Filling::Earlier,
            Some((Phase::Ready { .. }, Some(life)))
                if self.membership.has_shards(turn.id.slot, life.incarnation) =>
            {
                Filling::Ready
            }
            Some(_) | None => Filling::Starting,
        }
    }

    fn kill_broker(&mut self, id: NodeId) {
        let life = self.fleet.get_mut(id).and_then(|node| node.slot.life());
        if let Some(life) = life {
            self.signal(id, life.pid, Signal::KILL);
        }
    }
}

fn broker(slot: u32) -> NodeId {
    NodeId {
        role: Role::Broker,
        slot,
    }
}

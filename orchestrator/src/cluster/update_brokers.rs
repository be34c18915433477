//! What follows in an update once the workers are through: the brokers, one at
//! a time (delivery.md C), and last the orchestrator itself.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use muster_proto::control as pb;
use muster_wire::Millis;
use rustix::process::Signal;
use tracing::{error, info, warn};

use super::{Cluster, Stage};
use crate::{
    node::{NodeId, Role},
    program::Program,
    supervisor::{BrokerNext, BrokerUpdate, Event, Exit, Filling, Phase},
};

/// The part of an update that comes after the workers.
#[derive(Debug)]
pub(super) struct Following {
    machine: BrokerUpdate,
    program: Arc<Program>,
    brokers: u32,
    /// What the slots were started from before.
    earlier: BTreeMap<u32, Arc<Program>>,
    /// Why they are to be that again: then the machine's slots are those that
    /// were replaced.
    returning: Option<String>,
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
    program: Arc<Program>,
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
        let done = self.machine.done().len();
        let done = match self.returning {
            Some(_) => self.earlier.len().saturating_sub(done),
            None => done,
        };
        pb::UpdateFollowing {
            slot: slot.unwrap_or(0),
            step: slot.map_or(String::new(), |_| self.machine.step().into()),
            brokers_done: u32::try_from(done).unwrap_or(u32::MAX),
            brokers: self.brokers,
            pause_max_us: u64::try_from(pause_max_us).unwrap_or(u64::MAX),
            orchestrator_done: false,
        }
    }

    pub(super) fn is_over(&self) -> bool {
        self.is_over
    }

    /// For people and programs.
    pub(super) fn phase(&self) -> &'static str {
        match self.returning {
            Some(_) => "rolling_back",
            None => "brokers",
        }
    }

    /// Has everything taken back once the broker whose turn it is has had it;
    /// false if that is going on already.
    pub(super) fn give_up(&mut self, why: String) -> bool {
        self.returning.is_none() && self.machine.give_up(why)
    }
}

impl Cluster {
    /// The workers run `program`: now the others.
    pub(super) fn begin_following(&mut self, program: Arc<Program>) {
        let slots = self.fleet.ids(Role::Broker).into_iter().map(|id| id.slot);
        let machine = BrokerUpdate::new(slots);
        let brokers = u32::try_from(machine.pending()).unwrap_or(u32::MAX);
        info!(brokers, "Updating the brokers.");
        self.following = Some(Following {
            machine,
            program,
            brokers,
            earlier: BTreeMap::new(),
            returning: None,
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
            let done = following.machine.done().len();
            let next = following.machine.turn(now, &filling);
            if let Some(turn) = &following.turn
                && following.machine.done().len() > done
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
            BrokerNext::Done(Err(why)) => self.take_brokers_back(now, why),
            BrokerNext::Done(Ok(())) => {
                let following = self.following.as_mut();
                match following.and_then(|following| following.returning.clone()) {
                    Some(why) => self.take_workers_back(now, why),
                    None => {
                        info!("The brokers are updated.");
                        self.update_orchestrator(now);
                    }
                }
            }
        }
    }

    /// The update comes to nothing: the brokers that were replaced are replaced
    /// again, then the workers.
    pub(super) fn take_brokers_back(&mut self, now: Millis, why: String) {
        self.restore_config();
        let Some(following) = &mut self.following else {
            return;
        };
        if let Some(before) = following.returning.clone() {
            let why = format!("{before}; and a broker could not be taken back: {why}");
            self.take_workers_back(now, why);
            return;
        }
        let done = following.machine.done();
        error!(why, brokers = ?done, "Taking the update of the brokers back.");
        following.earlier.retain(|slot, _| done.contains(slot));
        following.machine = BrokerUpdate::new(done.to_vec());
        following.turn = None;
        following.returning = Some(why);
    }

    fn take_workers_back(&mut self, now: Millis, why: String) {
        if let Some(following) = &mut self.following {
            following.is_over = true;
        }
        self.take_back(now, why);
    }

    /// The update is over, one way or the other.
    pub(super) fn end_following(&mut self, now: Millis, result: Result<(), String>) {
        if let Some(following) = &mut self.following {
            following.is_over = true;
        }
        self.end_update(now, result);
    }

    /// What the update makes nodes run.
    pub(super) fn following_program(&self) -> Option<Arc<Program>> {
        let following = self.following.as_ref()?;
        Some(Arc::clone(&following.program))
    }

    fn replace_broker(&mut self, now: Millis, slot: u32) {
        let id = broker(slot);
        let (Some(following), Some(node)) = (&mut self.following, self.fleet.get_mut(id)) else {
            return;
        };
        info!(node = %id, "Replacing a broker.");
        let new = match &following.returning {
            Some(_) => following.earlier.get(&slot),
            None => Some(&following.program),
        };
        let new = Arc::clone(new.unwrap_or(&following.program));
        if following.returning.is_none() {
            following.earlier.insert(slot, Arc::clone(&node.program));
        }
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
        self.restore_config();
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
    /// again: if it was a new one, by the earlier program. True if it was told to
    /// end, to be replaced.
    pub(super) fn following_ended(&mut self, id: NodeId, incarnation: u64, exit: &Exit) -> bool {
        let Some(turn) = self.turn_of(id) else {
            return false;
        };
        let is_earlier = turn.incarnation == incarnation;
        if is_earlier || turn.is_put_back {
            return is_earlier;
        }
        turn.is_put_back = true;
        turn.died = Some(exit.to_string());
        let program = Arc::clone(&turn.program);
        // Before the earlier program reads it.
        self.restore_config();
        if let Some(node) = self.fleet.get_mut(id) {
            node.program = program;
        }
        false
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

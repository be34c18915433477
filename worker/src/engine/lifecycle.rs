//! What time does to connections, and how the worker ends.

use std::time::Duration;

use muster_wire::{Millis, close::CloseCode};

use super::Engine;
use crate::{
    connection::{ConnectionKey, Phase},
    core::{Clients as _, Ingress},
    upgrade, wheel,
};

/// The paced end of a worker's connections.
#[derive(Debug)]
pub(crate) struct Drain {
    /// Still to be closed, in no particular order.
    remaining: Vec<ConnectionKey>,
    per_tick: usize,
    deadline: Millis,
}

impl Engine {
    /// To be called about every [`wheel::TICK`].
    pub(crate) fn handle_tick(&mut self) {
        self.publish_load();
        self.look_at_gate();
        self.has_news = true;
        let mut due = std::mem::take(&mut self.due);
        self.wheel.advance(self.now.millis, &mut due);
        for key in due.drain(..) {
            self.handle_due(key);
        }
        self.due = due;
        self.core.handle_tick(&mut self.connections, self.now);
    }

    /// Stops taking clients and begins to say goodbye to those there are.
    pub(crate) fn begin_drain(&mut self, per_second: u32, timeout: Duration) -> Drain {
        self.stop_accepting();
        let ticks_per_second = 1000 / wheel::TICK.as_millis();
        let per_tick = u128::from(per_second).div_ceil(ticks_per_second);
        Drain {
            remaining: self.connections.keys(),
            per_tick: usize::try_from(per_tick).unwrap_or(usize::MAX).max(1),
            deadline: self.now.millis + timeout,
        }
    }

    /// One tick of a drain.
    pub(crate) fn go_on_draining(&mut self, drain: &mut Drain) {
        let from = drain.remaining.len().saturating_sub(drain.per_tick);
        for key in drain.remaining.split_off(from) {
            // The whole cluster goes, so there is nothing to come back to at
            // once: 1001 makes stock clients try again on their schedule.
            self.close(key, Some(CloseCode::GOING_AWAY), "");
        }
    }

    /// Whether no connection is left, or no time.
    pub(crate) fn is_drained(&self, drain: &Drain) -> bool {
        self.connections.len() == 0 || self.now.millis >= drain.deadline
    }

    fn handle_due(&mut self, key: ConnectionKey) {
        let head_timeout = self.core.rules.handshake_timeout;
        let now = self.now.millis;
        let Some(connection) = self.connections.get(key) else {
            return;
        };
        if let Some(since) = connection.paused {
            // What a client that is not read may have sent stands still, but it
            // is pinged as ever (delivery.md A6).
            connection.paused = Some(now);
            if let Some(session) = connection.session() {
                session.extend_life(now.since(since));
            }
        }
        if self.now.millis < connection.deadline(head_timeout) {
            let deadline = connection.deadline(head_timeout);
            self.wheel.schedule(key, deadline);
            return;
        }
        match &mut connection.phase {
            Phase::Head { .. } => self.refuse(key, upgrade::head_timeout()),
            Phase::Echo { .. } => self.close(key, Some(CloseCode::GOING_AWAY), ""),
            Phase::Closing { .. } => self.end(key),
            Phase::Open(_) => self.handle_session_timeout(key),
        }
    }

    fn handle_session_timeout(&mut self, key: ConnectionKey) {
        let mut out = std::mem::take(&mut self.out);
        let Some(session) = self.connections.session(key) else {
            return;
        };
        let effect = self
            .core
            .with_session(&mut out, self.now, |cx| session.handle_timeout(cx));
        let ingress = self.core.apply(key, session, effect, &mut out, self.now);
        let deadline = session.deadline();
        if let Some(connection) = self.connections.get(key) {
            // A stock client counts only pings as life, so they never wait
            // behind data (socketcluster.md section 4).
            for frame in out.drain(..).rev() {
                connection.outbox.push_first(frame);
            }
        }
        self.out = out;
        self.connections.mark_dirty(key);
        match ingress {
            Ingress::Close(code) => self.close(key, Some(code), ""),
            Ingress::Continue | Ingress::Pause(_) | Ingress::Unfinished { .. } => {
                self.wheel.schedule(key, deadline)
            }
        }
    }
}

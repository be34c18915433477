//! What time does to connections, and how the worker ends.

use std::time::Duration;

use muster_wire::{Millis, close::CloseCode};
use rand::{Rng, RngExt as _, seq::SliceRandom as _};

use super::{Engine, LINGER};
use crate::{
    connection::{ConnectionKey, Phase},
    core::{Clients as _, Ingress},
    upgrade, wheel,
};

/// How often a gated worker looks at the gate (delivery.md E4).
const GATE_TICK: Duration = Duration::from_millis(50);
/// The tick while something waits that a broker has refused.
const URGENT_TICK: Duration = Duration::from_millis(50);

/// How a worker that ends says goodbye to its clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pace {
    /// The whole cluster goes, so there is nothing to come back to at once: 1001
    /// makes stock clients try again on their schedule.
    GoAway { per_second: u32, timeout: Duration },
    /// The other workers take the clients. A close without a status makes stock
    /// clients come back at once (socketcluster.md section 10), so they are
    /// spread over the time there is.
    ComeBack { within: Duration },
}

/// The paced end of a worker's connections.
#[derive(Debug)]
pub(crate) struct Drain {
    /// Still to be closed, and when; the next one last.
    remaining: Vec<(Millis, ConnectionKey)>,
    code: Option<CloseCode>,
    deadline: Millis,
    /// Publications that are not acked are waited for, too.
    settles: bool,
}

impl Pace {
    fn code(self) -> Option<CloseCode> {
        match self {
            Self::GoAway { .. } => Some(CloseCode::GOING_AWAY),
            Self::ComeBack { .. } => None,
        }
    }

    fn timeout(self) -> Duration {
        match self {
            Self::GoAway { timeout, .. } => timeout,
            Self::ComeBack { within } => within,
        }
    }

    /// How long after the beginning the `index`th of `count` is closed.
    fn delay(self, index: usize, count: usize, rng: &mut impl Rng) -> Duration {
        let index = u32::try_from(index).unwrap_or(u32::MAX);
        let count = u32::try_from(count).unwrap_or(u32::MAX).max(1);
        match self {
            Self::GoAway { per_second, .. } => Duration::from_secs(1) * index / per_second.max(1),
            Self::ComeBack { within } => {
                // The last one takes its time to close, too.
                let span = within - LINGER.min(within / 2);
                let share = span / count;
                share * index + share.mul_f64(rng.random())
            }
        }
    }
}

impl Engine {
    /// How long after a tick the next one is due.
    pub(crate) fn tick_interval(&self) -> Duration {
        if self.is_gated() {
            GATE_TICK
        } else if self.core.is_urgent() {
            URGENT_TICK
        } else {
            wheel::TICK
        }
    }

    /// To be called every [`Self::tick_interval`].
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
    pub(crate) fn begin_drain(&mut self, pace: Pace) -> Drain {
        self.stop_accepting();
        let mut keys = self.connections.keys();
        keys.shuffle(&mut self.rng);
        let (now, count) = (self.now.millis, keys.len());
        let close = |(index, key)| (now + pace.delay(index, count, &mut self.rng), key);
        let mut remaining: Vec<_> = keys.into_iter().enumerate().map(close).collect();
        remaining.reverse();
        Drain {
            remaining,
            code: pace.code(),
            deadline: now + pace.timeout(),
            settles: false,
        }
    }

    /// The same while the cluster goes on: what is not acked is waited for.
    pub(crate) fn begin_to_leave(&mut self, within: Duration) -> Drain {
        Drain {
            settles: true,
            ..self.begin_drain(Pace::ComeBack { within })
        }
    }

    /// One tick of a drain.
    pub(crate) fn go_on_draining(&mut self, drain: &mut Drain) {
        let now = self.now.millis;
        while let Some((_, key)) = drain.remaining.pop_if(|(at, _)| *at <= now) {
            self.close(key, drain.code, "");
        }
    }

    /// Whether no connection is left, or no time.
    pub(crate) fn is_drained(&self, drain: &Drain) -> bool {
        let is_empty = self.connections.len() == 0;
        let is_settled = !drain.settles || self.core.router.is_idle();
        (is_empty && is_settled) || self.now.millis >= drain.deadline
    }

    fn handle_due(&mut self, key: ConnectionKey) {
        let head_timeout = self.core.rules.handshake_timeout;
        let now = self.now.millis;
        let Some(connection) = self.connections.get(key) else {
            return;
        };
        if connection.is_frozen {
            // Scheduled again once it is not on its way any more.
            return;
        }
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
            Ingress::Close(code) => self.close_by_protocol(key, Some(code)),
            Ingress::Continue | Ingress::Pause(_) | Ingress::Unfinished { .. } => {
                self.wheel.schedule(key, deadline)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng as _, rngs::SmallRng};

    use super::*;

    fn delays(pace: Pace, count: usize) -> Vec<Duration> {
        let mut rng = SmallRng::seed_from_u64(5);
        let delay = |index| pace.delay(index, count, &mut rng);
        (0..count).map(delay).collect()
    }

    #[test]
    fn clients_that_are_to_come_back_are_spread_evenly_and_irregularly_over_the_time() {
        let within = Duration::from_secs(20);
        let delays = delays(Pace::ComeBack { within }, 1000);
        assert!(delays.is_sorted());
        assert!(delays[999] < within - LINGER, "{:?}", delays[999]);
        let per_second = |second| {
            let from = Duration::from_secs(second);
            let until = from + Duration::from_secs(1);
            let within = delays.iter().filter(|delay| (from..until).contains(*delay));
            within.count()
        };
        for second in 0..18 {
            assert!((54..=57).contains(&per_second(second)), "{second}");
        }
        let gaps: std::collections::BTreeSet<_> =
            delays.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(gaps.len() > 900, "no two gaps are alike");
    }

    #[test]
    fn a_short_time_still_leaves_some_to_close() {
        let within = Duration::from_secs(1);
        let delays = delays(Pace::ComeBack { within }, 1);
        assert!(delays[0] < within / 2);
    }

    #[test]
    fn a_cluster_that_ends_closes_so_many_clients_a_second() {
        let pace = Pace::GoAway {
            per_second: 2000,
            timeout: Duration::from_secs(20),
        };
        let delays = delays(pace, 5000);
        assert_eq!(delays[0], Duration::ZERO);
        assert_eq!(delays[2000], Duration::from_secs(1));
        assert_eq!(delays[4999], Duration::from_micros(2_499_500));
    }
}

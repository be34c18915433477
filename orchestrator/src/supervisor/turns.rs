//! Whether the orchestrator itself has been awake: it must not call a node
//! silent for the time in which it did not listen.

use std::time::Duration;

use muster_wire::Millis;

/// The loop turns at least this often.
pub(crate) const TURN_MAX: Duration = Duration::from_millis(250);
/// Whatever held the orchestrator up for longer held up others, too.
const STALL: Duration = Duration::from_secs(1);

/// The turns of the orchestrator's loop.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Turns {
    last: Millis,
}

impl Turns {
    pub(crate) fn new(now: Millis) -> Self {
        Self { last: now }
    }

    /// To be called once a turn; by how much nodes are forgiven their silence,
    /// zero almost always.
    ///
    /// After a short delay it is the delay. A long one (the process or the whole
    /// machine stood still) begins the wait for every node anew.
    pub(crate) fn turn(&mut self, now: Millis) -> Duration {
        let passed = now.since(self.last);
        self.last = now;
        match passed.saturating_sub(TURN_MAX) {
            late if late < STALL => late,
            _ => Duration::MAX,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_in_time_forgive_nothing() {
        let mut turns = Turns::new(Millis(1_000));
        for now in [1_000, 1_001, 1_251, 1_501] {
            assert_eq!(turns.turn(Millis(now)), Duration::ZERO, "{now}");
        }
    }

    #[test]
    fn a_late_turn_forgives_the_delay_and_a_stall_everything() {
        let mut turns = Turns::new(Millis(0));
        assert_eq!(turns.turn(Millis(300)), Duration::from_millis(50));
        assert_eq!(turns.turn(Millis(1_549)), Duration::from_millis(999));
        assert_eq!(turns.turn(Millis(2_799)), Duration::MAX);
        assert_eq!(turns.turn(Millis(2_800)), Duration::ZERO);
    }
}

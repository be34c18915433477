//! Deadlines of many connections, without a timer each.

use std::time::Duration;

use muster_wire::Millis;

use crate::connection::ConnectionKey;

/// How late a deadline may be noticed.
pub(crate) const TICK: Duration = Duration::from_millis(250);
const TICK_MS: u64 = 250;
/// Ticks around the wheel: deadlines up to 63 s ahead find their own slot.
const SLOTS: usize = 256;

/// A timer wheel. A connection that is due is handed out once and must be
/// scheduled again; a deadline further ahead than the wheel is handed out
/// early, which its owner notices by looking at the time.
#[derive(Debug)]
pub(crate) struct Wheel {
    slots: Vec<Vec<ConnectionKey>>,
    /// The next tick to hand out.
    tick: u64,
}

impl Wheel {
    pub(crate) fn new(now: Millis) -> Self {
        Self {
            slots: vec![Vec::new(); SLOTS],
            tick: now.0 / TICK_MS,
        }
    }

    /// Remembers that something is to happen at `deadline`.
    pub(crate) fn schedule(&mut self, key: ConnectionKey, deadline: Millis) {
        // The tick after the deadline, so that it is never handed out before.
        let wanted = deadline.0 / TICK_MS + 1;
        let tick = wanted.clamp(self.tick, self.tick + SLOTS as u64 - 1);
        self.slots[index(tick)].push(key);
    }

    /// Hands out the connections of all ticks up to `now`.
    pub(crate) fn advance(&mut self, now: Millis, due: &mut Vec<ConnectionKey>) {
        let until = now.0 / TICK_MS;
        // After a long stall each slot is visited once, not once per tick.
        let from = self.tick.max(until.saturating_sub(SLOTS as u64 - 1));
        if self.tick < from {
            for slot in &mut self.slots {
                due.append(slot);
            }
        }
        for tick in from..=until {
            let slot = &mut self.slots[index(tick)];
            due.append(slot);
            if slot.capacity() > 64 {
                *slot = Vec::new();
            }
        }
        self.tick = self.tick.max(until + 1);
    }
}

fn index(tick: u64) -> usize {
    usize::try_from(tick % SLOTS as u64).expect("a remainder below SLOTS")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(index: u32) -> ConnectionKey {
        ConnectionKey { index, serial: 0 }
    }

    proptest! {
        #[test]
        fn every_deadline_is_handed_out_once_and_never_early_within_the_wheel(
            delays in prop::collection::vec(0_u64..50_000, 1..100),
            steps in prop::collection::vec(1_u64..9000, 1..40),
        ) {
            let start = Millis(1_234_567);
            let mut wheel = Wheel::new(start);
            for (index, delay) in delays.iter().enumerate() {
                wheel.schedule(key(u32::try_from(index).unwrap()), Millis(start.0 + delay));
            }
            let mut now = start;
            let mut seen = vec![0; delays.len()];
            for step in steps.into_iter().chain([60_000]) {
                now = now + Duration::from_millis(step);
                let mut due = Vec::new();
                wheel.advance(now, &mut due);
                for key in due {
                    let delay = delays[key.index as usize];
                    prop_assert!(now.0 >= start.0 + delay);
                    seen[key.index as usize] += 1;
                }
                for (index, delay) in delays.iter().enumerate() {
                    let overdue = now.0 >= start.0 + delay + 2 * TICK_MS;
                    prop_assert!(!overdue || seen[index] == 1, "{index} was missed");
                }
            }
            prop_assert!(seen.iter().all(|&times| times == 1));
        }
    }

    #[test]
    fn a_deadline_beyond_the_wheel_is_handed_out_early_and_can_be_scheduled_again() {
        let mut wheel = Wheel::new(Millis(0));
        wheel.schedule(key(1), Millis(1_000_000));
        let mut due = Vec::new();
        wheel.advance(Millis(64_000), &mut due);
        assert_eq!(due, [key(1)]);
    }

    #[test]
    fn after_a_stall_longer_than_the_wheel_nothing_is_forgotten() {
        let mut wheel = Wheel::new(Millis(0));
        for index in 0..100 {
            wheel.schedule(key(index), Millis(u64::from(index) * 500));
        }
        let mut due = Vec::new();
        wheel.advance(Millis(10_000_000), &mut due);
        assert_eq!(due.len(), 100);
    }
}

//! How often a busy process wakes up.
//!
//! To wake up for each message costs more than to handle it: a switch, a few
//! system calls, a gRPC frame. A process that rests a little between two turns
//! finds several messages in the next one, and they share all of that. So a
//! process may wake up a few times at once without waiting, which is all that
//! happens under little load, and in the long run once per interval.

use std::{cell::Cell, thread, time::Duration};

use tokio::{runtime::Builder, time::Instant};

/// Times a thread may wake up before it rests, after it was quiet for a while.
const BURST: u32 = 5;

thread_local! {
    static IS_HURRIED: Cell<bool> = const { Cell::new(false) };
    static CADENCE: Cell<Cadence> = const { Cell::new(Cadence { due: None }) };
}

/// Makes each thread of the runtime rest, before it waits for events, so that in
/// the long run it wakes up at most once per `interval`. Nothing on it runs
/// meanwhile; events that come then are handled together afterwards. Zero: it
/// never rests.
pub fn pace(builder: &mut Builder, interval: Duration) {
    if interval.is_zero() {
        return;
    }
    builder.on_thread_park(move || {
        if IS_HURRIED.get() {
            return;
        }
        let mut cadence = CADENCE.get();
        let rest = cadence.rest(interval, Instant::now());
        CADENCE.set(cadence);
        if !rest.is_zero() {
            thread::sleep(rest);
        }
    });
}

/// Whether this thread does not rest now: somebody waits for each of its turns.
pub fn hurry(is_hurried: bool) {
    IS_HURRIED.set(is_hurried);
}

/// One thread's wake-ups, measured against an interval (the generic cell rate
/// algorithm).
#[derive(Debug, Clone, Copy)]
struct Cadence {
    /// When a thread that went steadily would wake up next.
    due: Option<Instant>,
}

impl Cadence {
    /// How long the thread, which is about to wait, is to rest before.
    fn rest(&mut self, interval: Duration, now: Instant) -> Duration {
        let due = self.due.map_or(now, |due| due.max(now)) + interval;
        self.due = Some(due);
        due.duration_since(now).saturating_sub(interval * BURST)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const INTERVAL: Duration = Duration::from_millis(2);

    /// Lets a thread go to wait again each time after having worked for so
    /// long; returns when it began to wait, and its rests.
    fn waits(works: &[Duration]) -> Vec<(Duration, Duration)> {
        let start = Instant::now();
        let mut now = start;
        let mut cadence = Cadence { due: None };
        let wait = |work: &Duration| {
            now += *work;
            let rest = cadence.rest(INTERVAL, now);
            now += rest;
            (now - start, rest)
        };
        works.iter().map(wait).collect()
    }

    #[test]
    fn who_wakes_up_seldom_never_rests() {
        let waits = waits(&[INTERVAL; 1000]);
        assert!(waits.iter().all(|(_, rest)| rest.is_zero()));
    }

    #[test]
    fn a_few_turns_at_once_are_free_and_then_each_one_takes_an_interval() {
        let waits = waits(&[Duration::ZERO; 20]);
        let (free, paced) = waits.split_at(BURST as usize);
        assert!(free.iter().all(|(_, rest)| rest.is_zero()));
        assert!(paced.iter().all(|(_, rest)| *rest == INTERVAL));
    }

    proptest! {
        #[test]
        fn whatever_the_work_a_thread_wakes_up_at_most_once_per_interval_beside_a_burst(
            works in prop::collection::vec(0_u64..5000, 1..300),
        ) {
            let works: Vec<_> = works.into_iter().map(Duration::from_micros).collect();
            let waits = waits(&works);
            for (first, (from, _)) in waits.iter().enumerate() {
                for (until, rest) in &waits[first..] {
                    prop_assert!(*rest <= INTERVAL);
                    let turns = waits[first..].iter().filter(|(at, _)| at <= until).count();
                    let allowed = (*until - *from).div_duration_f64(INTERVAL) + f64::from(BURST) + 1.0;
                    prop_assert!(turns as f64 <= allowed + 1e-6, "{turns} turns, {allowed} allowed");
                }
            }
        }
    }
}

//! A slot driven by hand, with time that passes when it is told to.

use rand::{SeedableRng as _, rngs::SmallRng};

use super::*;

const PATIENCE: Patience = Patience {
    starting: Duration::from_secs(30),
    ready: Duration::from_secs(2),
};

struct Driver {
    slot: Slot,
    now: Millis,
    rng: SmallRng,
}

impl Driver {
    fn new() -> Self {
        Self {
            slot: Slot::new(100, PATIENCE),
            now: Millis(1_000),
            rng: SmallRng::seed_from_u64(1),
        }
    }

    fn handle(&mut self, event: Event) -> Action {
        self.slot.handle(self.now, event, &mut self.rng)
    }

    /// Starts a process when one is due now; its pid is its incarnation.
    fn start(&mut self) -> Option<Life> {
        let Action::Start { incarnation } = self.handle(Event::Woken) else {
            return None;
        };
        let pid = u32::try_from(incarnation).unwrap();
        assert_eq!(self.handle(Event::Started { pid }), Action::Nothing);
        self.slot.life()
    }

    fn ready(&mut self, life: Life) {
        let incarnation = life.incarnation;
        assert_eq!(self.handle(Event::Ready { incarnation }), Action::Nothing);
    }

    fn exit(&mut self, life: Life) {
        let exited = Event::Exited {
            incarnation: life.incarnation,
            exit: Exit {
                status: "exit code 1".into(),
                last_line: Some("out of luck".into()),
            },
        };
        assert_eq!(self.handle(exited), Action::Nothing);
    }

    fn pass(&mut self, duration: Duration) {
        self.now = self.now + duration;
    }
}

#[test]
fn a_settled_node_that_dies_is_restarted_at_once_as_a_new_incarnation() {
    let mut driver = Driver::new();
    let first = driver.start().unwrap();
    driver.ready(first);
    driver.pass(SETTLED_AFTER);
    driver.exit(first);
    let second = driver.start().unwrap();
    assert!(second.incarnation > first.incarnation);
    assert_eq!(driver.slot.restarts(), 1);
    assert_eq!(
        driver.slot.last_exit().unwrap().to_string(),
        "exit code 1; last log line: out of luck"
    );
}

#[test]
fn settled_nodes_that_die_are_restarted_at_once_however_often() {
    let mut driver = Driver::new();
    for _ in 0..20 {
        let life = driver.start().expect("each start comes at once");
        driver.ready(life);
        driver.pass(SETTLED_AFTER);
        driver.exit(life);
    }
    assert!(!driver.slot.is_crash_loop());
}

#[test]
fn the_third_early_death_in_a_row_is_a_crash_loop_that_waits_ever_longer() {
    let mut driver = Driver::new();
    for _ in 0..3 {
        let life = driver.start().expect("the first restarts come at once");
        driver.exit(life);
    }
    assert!(driver.slot.is_crash_loop());
    let mut waits = Vec::new();
    for _ in 0..12 {
        assert_eq!(driver.start(), None);
        let wait = driver.slot.wake_at().unwrap().since(driver.now);
        waits.push(wait);
        driver.pass(wait);
        let life = driver.start().unwrap();
        driver.exit(life);
    }
    assert!(waits[0] <= RESTART_WAIT_MIN * 2, "{waits:?}");
    assert!(waits.iter().all(|wait| *wait <= RESTART_WAIT_MAX));
    assert!(waits.iter().any(|wait| *wait > RESTART_WAIT_MIN * 4));
}

#[test]
fn a_death_soon_after_ready_is_early_too() {
    let mut driver = Driver::new();
    for _ in 0..3 {
        let life = driver.start().unwrap();
        driver.ready(life);
        driver.pass(SETTLED_AFTER - Duration::from_millis(1));
        driver.exit(life);
    }
    assert!(driver.slot.is_crash_loop());
}

#[test]
fn a_life_that_settles_ends_a_crash_loop() {
    let mut driver = Driver::new();
    for _ in 0..3 {
        let life = driver.start().unwrap();
        driver.exit(life);
    }
    driver.pass(RESTART_WAIT_MAX);
    let life = driver.start().unwrap();
    driver.ready(life);
    driver.pass(SETTLED_AFTER);
    driver.exit(life);
    assert!(!driver.slot.is_crash_loop());
    assert!(driver.start().is_some());
}

#[test]
fn a_crash_loop_is_over_as_soon_as_a_life_is_settled() {
    let mut driver = Driver::new();
    for _ in 0..3 {
        let life = driver.start().unwrap();
        driver.exit(life);
    }
    driver.pass(RESTART_WAIT_MAX);
    let life = driver.start().unwrap();
    driver.ready(life);
    let settled = driver.now + SETTLED_AFTER;
    while driver.slot.is_crash_loop() {
        assert!(driver.now < settled);
        driver.pass(Duration::from_secs(1));
        assert_eq!(driver.handle(Event::Heartbeat), Action::Nothing);
        assert!(driver.slot.wake_at().unwrap() <= settled);
        assert_eq!(driver.handle(Event::Woken), Action::Nothing);
    }
    assert_eq!(driver.now, settled);
    assert!(driver.slot.wake_at().unwrap() > settled);
}

#[test]
fn a_process_that_cannot_be_started_counts_as_an_early_death() {
    let mut driver = Driver::new();
    for _ in 0..3 {
        assert!(matches!(driver.handle(Event::Woken), Action::Start { .. }));
        let failed = Event::StartFailed {
            reason: "no memory".into(),
        };
        assert_eq!(driver.handle(failed), Action::Nothing);
    }
    assert!(driver.slot.is_crash_loop());
    assert_eq!(
        driver.slot.last_exit().unwrap().to_string(),
        "cannot be started: no memory"
    );
}

#[test]
fn a_stopped_node_is_told_to_end_once_and_never_started_again() {
    let mut driver = Driver::new();
    let life = driver.start().unwrap();
    driver.ready(life);
    assert_eq!(driver.handle(Event::Stop), Action::Terminate(life));
    assert_eq!(driver.handle(Event::Stop), Action::Nothing);
    driver.exit(life);
    assert_eq!(driver.slot.phase(), Phase::Stopped);
    driver.pass(RESTART_WAIT_MAX);
    assert_eq!(driver.start(), None);
}

#[test]
fn a_node_that_is_drained_ends_by_itself_or_is_cut_when_its_time_is_up() {
    for in_time in [true, false] {
        let mut driver = Driver::new();
        let life = driver.start().unwrap();
        driver.ready(life);
        let until = driver.now + Duration::from_secs(20);
        let drain = Event::Drain { until };
        let asked = Action::Drain { life, until };
        assert_eq!(driver.handle(drain.clone()), asked);
        assert_eq!(driver.handle(drain), Action::Nothing, "asked once");
        driver.pass(Duration::from_millis(19_999));
        assert_eq!(driver.handle(Event::Woken), Action::Nothing);
        assert_eq!(driver.slot.wake_at(), Some(until));
        if !in_time {
            driver.pass(Duration::from_millis(1));
            assert_eq!(driver.handle(Event::Woken), Action::Cut(life));
            assert_eq!(driver.handle(Event::Woken), Action::Nothing);
        }
        driver.exit(life);
        assert_eq!(driver.slot.phase(), Phase::Stopped);
        assert_eq!(driver.start(), None);
    }
}

#[test]
fn a_node_without_clients_is_drained_by_ending_it() {
    let until = Millis(99_000);
    let mut driver = Driver::new();
    assert_eq!(driver.handle(Event::Drain { until }), Action::Nothing);
    assert_eq!(driver.slot.phase(), Phase::Stopped);

    let mut driver = Driver::new();
    let life = driver.start().unwrap();
    let drained = driver.handle(Event::Drain { until });
    assert_eq!(drained, Action::Terminate(life));
    assert_eq!(driver.slot.wake_at(), Some(until));
}

#[test]
fn a_node_that_drains_is_told_to_hurry_when_the_cluster_ends() {
    let mut driver = Driver::new();
    let life = driver.start().unwrap();
    driver.ready(life);
    let until = Millis(99_000);
    let _ = driver.handle(Event::Drain { until });
    assert_eq!(driver.handle(Event::Stop), Action::Terminate(life));
    assert_eq!(driver.handle(Event::Drain { until }), Action::Nothing);
    driver.exit(life);
    assert_eq!(driver.slot.phase(), Phase::Stopped);
}

#[test]
fn a_node_that_is_replaced_has_not_died_however_often() {
    let mut driver = Driver::new();
    for _ in 0..5 {
        let life = driver.start().unwrap();
        driver.ready(life);
        assert_eq!(driver.handle(Event::Replace), Action::Terminate(life));
        driver.exit(life);
        assert!(!driver.slot.is_crash_loop());
    }
    assert_eq!((driver.slot.restarts(), driver.slot.last_exit()), (0, None));
    // What ends by itself after that has.
    let life = driver.start().unwrap();
    driver.exit(life);
    assert_eq!(driver.slot.restarts(), 1);
    assert_eq!(driver.handle(Event::Replace), Action::Nothing);
}

#[test]
fn a_node_that_is_to_be_replaced_and_hangs_is_killed_and_replaced() {
    let mut driver = Driver::new();
    let life = driver.start().unwrap();
    driver.ready(life);
    let _ = driver.handle(Event::Replace);
    driver.pass(PATIENCE.ready);
    assert!(matches!(driver.handle(Event::Woken), Action::Kill { .. }));
    driver.exit(life);
    assert_eq!(driver.slot.restarts(), 0);
    assert!(driver.start().is_some());
}

#[test]
fn a_node_that_waits_to_be_started_is_stopped_at_once() {
    let mut driver = Driver::new();
    assert_eq!(driver.handle(Event::Stop), Action::Nothing);
    assert_eq!(driver.slot.phase(), Phase::Stopped);
}

#[test]
fn news_of_an_earlier_life_changes_nothing() {
    let mut driver = Driver::new();
    let first = driver.start().unwrap();
    driver.exit(first);
    let second = driver.start().unwrap();
    driver.exit(first);
    driver.ready(first);
    assert_eq!(driver.slot.life(), Some(second));
    assert!(matches!(driver.slot.phase(), Phase::Starting { .. }));
}

/// Lets time pass up to the next wake-up, and wakes.
fn wake(driver: &mut Driver) -> Action {
    let until = driver.slot.wake_at().expect("something is due");
    driver.pass(until.since(driver.now) - Duration::from_millis(1));
    assert_eq!(driver.handle(Event::Woken), Action::Nothing, "not yet");
    driver.pass(Duration::from_millis(1));
    driver.handle(Event::Woken)
}

#[test]
fn a_ready_node_that_falls_silent_is_killed_once_and_replaced_at_once() {
    let mut driver = Driver::new();
    let life = driver.start().unwrap();
    driver.ready(life);
    driver.pass(SETTLED_AFTER);
    assert_eq!(driver.handle(Event::Heartbeat), Action::Nothing);
    let silent = PATIENCE.ready;
    assert_eq!(wake(&mut driver), Action::Kill { life, silent });
    assert_eq!(driver.slot.wake_at(), None);
    assert_eq!(driver.handle(Event::Woken), Action::Nothing);
    // What was under way when it was killed does not bring it back.
    assert_eq!(driver.handle(Event::Heartbeat), Action::Nothing);
    driver.ready(life);
    assert_eq!(driver.slot.life(), Some(life), "it is not reaped yet");
    driver.exit(life);
    let exit = driver.slot.last_exit().unwrap().to_string();
    assert!(
        exit.contains("exit code 1, killed because it hung (silent for 2s)"),
        "{exit}"
    );
    assert!(driver.start().is_some());
}

#[test]
fn a_node_that_gives_signs_of_life_is_never_killed() {
    let mut driver = Driver::new();
    let life = driver.start().unwrap();
    for _ in 0..100 {
        driver.pass(PATIENCE.starting - Duration::from_millis(1));
        assert_eq!(driver.handle(Event::Heartbeat), Action::Nothing);
        assert_eq!(driver.handle(Event::Woken), Action::Nothing);
    }
    driver.ready(life);
    for _ in 0..100 {
        driver.pass(PATIENCE.ready - Duration::from_millis(1));
        assert_eq!(driver.handle(Event::Heartbeat), Action::Nothing);
        assert_eq!(driver.handle(Event::Woken), Action::Nothing);
    }
}

#[test]
fn nodes_that_hang_while_they_start_are_a_crash_loop() {
    let mut driver = Driver::new();
    for _ in 0..3 {
        let life = driver.start().unwrap();
        let silent = PATIENCE.starting;
        assert_eq!(wake(&mut driver), Action::Kill { life, silent });
        driver.exit(life);
    }
    assert!(driver.slot.is_crash_loop());
}

#[test]
fn a_node_that_hangs_is_an_early_death_only_soon_after_it_was_ready() {
    for (lives, early) in [(Duration::ZERO, true), (SETTLED_AFTER, false)] {
        let mut driver = Driver::new();
        for _ in 0..3 {
            let life = driver.start().unwrap();
            driver.ready(life);
            driver.pass(lives);
            assert_eq!(driver.handle(Event::Heartbeat), Action::Nothing);
            assert!(matches!(wake(&mut driver), Action::Kill { .. }));
            driver.exit(life);
        }
        assert_eq!(driver.slot.is_crash_loop(), early);
    }
}

#[test]
fn the_time_in_which_the_orchestrator_did_not_listen_is_not_the_nodes() {
    let mut driver = Driver::new();
    let life = driver.start().unwrap();
    driver.ready(life);
    let stall = Duration::from_secs(3600);
    for lost in [stall, Duration::MAX] {
        driver.pass(stall);
        assert_eq!(driver.handle(Event::Deaf(lost)), Action::Nothing);
        assert_eq!(driver.handle(Event::Woken), Action::Nothing);
    }
    // Silence on both sides of a stall adds up.
    driver.pass(Duration::from_secs(1));
    driver.pass(stall);
    assert_eq!(driver.handle(Event::Deaf(stall)), Action::Nothing);
    driver.pass(Duration::from_millis(999));
    assert_eq!(driver.handle(Event::Woken), Action::Nothing);
    driver.pass(Duration::from_millis(1));
    assert!(matches!(driver.handle(Event::Woken), Action::Kill { .. }));
}

#[test]
fn a_node_that_was_there_before_its_orchestrator_has_all_its_time() {
    let mut driver = Driver::new();
    let life = driver.start().unwrap();
    driver.slot.heard = None;
    driver.pass(PATIENCE.starting * 10);
    assert!(driver.slot.wake_at().unwrap() <= driver.now);
    assert_eq!(driver.handle(Event::Woken), Action::Nothing);
    let silent = PATIENCE.starting;
    assert_eq!(wake(&mut driver), Action::Kill { life, silent });
}

#[test]
fn a_hung_node_of_a_cluster_that_ends_is_not_replaced() {
    let mut driver = Driver::new();
    let life = driver.start().unwrap();
    assert!(matches!(wake(&mut driver), Action::Kill { .. }));
    assert_eq!(driver.handle(Event::Stop), Action::Nothing);
    driver.exit(life);
    assert_eq!(driver.slot.phase(), Phase::Stopped);
}

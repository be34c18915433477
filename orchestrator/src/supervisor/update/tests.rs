use super::*;

const NOW: Millis = Millis(1_000);
const HOLD: Duration = Duration::from_secs(30);
const TIMES: Times = Times {
    starting: Duration::from_secs(10),
    leaving: Duration::from_secs(5),
};

fn plan(canary: u32, parallel: u32) -> Plan {
    Plan {
        canary,
        hold: HOLD,
        parallel,
    }
}

/// One after the other, and nothing is waited for.
fn plain(slots: impl IntoIterator<Item = u32>) -> Update {
    let mut update = Update::new(plan(0, 1), slots);
    assert_eq!(update.turn(NOW, &facts(None, &idle), TIMES), Next::Nothing);
    update
}

fn idle(_: u32) -> SlotFacts {
    slot_facts(Successor::None(None), Handed::NotYet)
}

fn slot_facts(successor: Successor, handed_over: Handed) -> SlotFacts {
    SlotFacts {
        is_worker_ready: true,
        successor,
        handed_over,
        is_heard: true,
        is_new: true,
    }
}

fn facts<'a>(checked: Option<Result<(), String>>, slot: &'a dyn Fn(u32) -> SlotFacts) -> Facts<'a> {
    Facts {
        checked,
        fault: None,
        slot,
    }
}

fn at(update: &mut Update, now: Millis, slot: &SlotFacts) -> Next {
    let slot = |_| slot.clone();
    update.turn(now, &facts(Some(Ok(())), &slot), TIMES)
}

fn turn(update: &mut Update, successor: Successor, handed: Handed) -> Next {
    at(update, NOW, &slot_facts(successor, handed))
}

fn late(update: &mut Update, successor: Successor, handed: Handed) -> Next {
    let until = update.wake_at().unwrap();
    at(update, until, &slot_facts(successor, handed))
}

fn failed(has_moved: bool) -> Handed {
    Handed::Failed {
        reason: "no room".to_owned(),
        has_moved,
    }
}

fn exit(why: &str) -> Successor {
    Successor::None(Some(why.to_owned()))
}

fn step(update: &Update) -> (u32, &'static str) {
    update.steps().next().unwrap()
}

/// Replaces the worker of the slot whose turn is next; what comes after that.
fn replace(update: &mut Update, slot: u32) -> Next {
    let next = turn(update, Successor::Ready, Handed::NotYet);
    assert_eq!(next, Next::HandOver(slot));
    let next = turn(update, Successor::Ready, Handed::All);
    assert_eq!(next, Next::Leave(slot));
    turn_until_told(update)
}

/// The successor fills the slot, and has said how it is.
fn turn_until_told(update: &mut Update) -> Next {
    for _ in 0..3 {
        let next = turn(update, Successor::None(None), Handed::All);
        if next != Next::Nothing {
            return next;
        }
    }
    Next::Nothing
}

/// An update of workers 1 and 2; the first one's connections are going over.
fn handing_over() -> Update {
    let mut update = plain([1, 2]);
    let next = turn(&mut update, Successor::None(None), Handed::NotYet);
    assert_eq!(next, Next::Start(1));
    let next = turn(&mut update, Successor::Ready, Handed::NotYet);
    assert_eq!(next, Next::HandOver(1));
    update
}

/// What ends an update that has replaced nobody, once there is no successor.
fn ends(update: &mut Update, successor: &Successor) -> String {
    for _ in 0..3 {
        let next = turn(update, successor.clone(), Handed::All);
        if let Next::Done(Err(why)) = next {
            return why;
        }
        let is_quiet = next == Next::Nothing || next == Next::GoBack(vec![]);
        assert!(is_quiet, "{next:?}");
    }
    panic!("it does not end: {update:?}");
}

#[test]
fn nothing_is_started_before_the_program_was_looked_at() {
    let mut update = Update::new(plan(1, 1), [1]);
    assert_eq!(update.turn(NOW, &facts(None, &idle), TIMES), Next::Nothing);
    assert_eq!(update.phase(), "checking");
    let bad = Some(Err("it speaks another language".to_owned()));
    let next = update.turn(NOW, &facts(bad, &idle), TIMES);
    assert_eq!(next, Next::Done(Err("it speaks another language".into())));
}

#[test]
fn each_slot_gets_a_successor_that_is_ready_before_connections_move() {
    let mut update = plain([1, 2]);
    let next = turn(&mut update, Successor::None(None), Handed::NotYet);
    assert_eq!(next, Next::Start(1));
    for slot in [1, 2] {
        assert_eq!(step(&update), (slot, "starting"));
        let next = turn(&mut update, Successor::Starting, Handed::NotYet);
        assert_eq!(next, Next::Nothing);
        let next = replace(&mut update, slot);
        if slot == 1 {
            assert_eq!(next, Next::Start(2));
        } else {
            assert_eq!(next, Next::Done(Ok(())));
        }
    }
    assert_eq!(update.replaced(), [1, 2]);
}

#[test]
fn the_first_workers_are_watched_before_the_others_follow() {
    let mut update = Update::new(plan(2, 3), 1..=5);
    let next = turn(&mut update, Successor::None(None), Handed::NotYet);
    assert_eq!(next, Next::Start(1));
    assert_eq!(update.phase(), "canary");
    assert_eq!(replace(&mut update, 1), Next::Start(2), "one at a time");
    assert_eq!(replace(&mut update, 2), Next::Nothing);
    assert_eq!(update.phase(), "holding");
    assert_eq!(update.wake_at(), Some(NOW + HOLD));
    let starting = slot_facts(Successor::Starting, Handed::NotYet);
    let mut started = Vec::new();
    while let Next::Start(slot) = at(&mut update, NOW + HOLD, &starting) {
        started.push(slot);
    }
    assert_eq!(started, [3, 4, 5], "three at a time");
}

#[test]
fn a_canary_that_is_the_whole_cluster_is_watched_too() {
    let mut update = Update::new(plan(4, 1), [1]);
    let _ = turn(&mut update, Successor::None(None), Handed::NotYet);
    assert_eq!(replace(&mut update, 1), Next::Nothing);
    assert_eq!(update.phase(), "holding");
    let next = late(&mut update, Successor::None(None), Handed::All);
    assert_eq!(next, Next::Done(Ok(())));
}

#[test]
fn a_worker_that_fills_its_slot_is_waited_for_until_it_has_said_how_it_is() {
    let mut update = handing_over();
    let _ = turn(&mut update, Successor::Ready, Handed::All);
    let silent = |_| SlotFacts {
        is_heard: false,
        ..slot_facts(Successor::None(None), Handed::All)
    };
    let next = update.turn(NOW, &facts(Some(Ok(())), &silent), TIMES);
    assert_eq!((next, step(&update)), (Next::Nothing, (1, "settling")));
    let until = update.wake_at().unwrap();
    let next = update.turn(until, &facts(Some(Ok(())), &silent), TIMES);
    assert_eq!(next, Next::Start(2), "but not for ever");
}

#[test]
fn a_fault_takes_everything_back_the_last_one_first() {
    let mut update = Update::new(plan(0, 1), 1..=4);
    let _ = turn(&mut update, Successor::None(None), Handed::NotYet);
    assert_eq!(replace(&mut update, 1), Next::Start(2));
    assert_eq!(replace(&mut update, 2), Next::Start(3));
    let starting = |_| slot_facts(Successor::Starting, Handed::NotYet);
    let bad = Facts {
        fault: Some("worker-1 leaks".into()),
        ..facts(Some(Ok(())), &starting)
    };
    assert_eq!(update.turn(NOW, &bad, TIMES), Next::GoBack(vec![1, 2]));
    assert_eq!(update.phase(), "rolling_back");
    let next = update.turn(NOW, &bad, TIMES);
    assert!(
        matches!(next, Next::EndSuccessor { slot: 3, .. }),
        "{next:?}"
    );
    let next = turn(&mut update, exit("signal 9"), Handed::NotYet);
    assert_eq!(next, Next::Start(2));
    assert_eq!(replace(&mut update, 2), Next::Start(1));
    let next = replace(&mut update, 1);
    assert_eq!(next, Next::Done(Err("worker-1 leaks".into())));
    assert_eq!(
        (update.returned(), update.replaced()),
        (&[2, 1][..], &[][..])
    );
}

#[test]
fn workers_that_are_through_are_taken_back_for_what_comes_after_them() {
    let mut update = plain([1, 2]);
    let _ = turn(&mut update, Successor::None(None), Handed::NotYet);
    assert_eq!(replace(&mut update, 1), Next::Start(2));
    assert_eq!(replace(&mut update, 2), Next::Done(Ok(())));
    assert_eq!(update.give_up("too late".into()), Next::Nothing);
    let next = update.take_back("broker-1 does not start".into());
    assert_eq!(next, Next::GoBack(vec![1, 2]));
    assert_eq!(update.phase(), "rolling_back");
    assert_eq!(update.take_back("twice".into()), Next::Nothing);
    let next = turn(&mut update, Successor::None(None), Handed::NotYet);
    assert_eq!(next, Next::Start(2));
    assert_eq!(replace(&mut update, 2), Next::Start(1));
    let next = replace(&mut update, 1);
    assert_eq!(next, Next::Done(Err("broker-1 does not start".into())));
    assert_eq!(
        (update.returned(), update.replaced()),
        (&[2, 1][..], &[][..])
    );
    assert_eq!(update.take_back("thrice".into()), Next::Nothing);
}

#[test]
fn one_that_ended_by_itself_is_taken_back_already() {
    let mut update = Update::new(plan(1, 1), [1, 2]);
    let _ = turn(&mut update, Successor::None(None), Handed::NotYet);
    assert_eq!(replace(&mut update, 1), Next::Nothing);
    assert_eq!(update.give_up("it crashed".into()), Next::GoBack(vec![1]));
    let old = |_| SlotFacts {
        is_new: false,
        ..slot_facts(Successor::None(None), Handed::All)
    };
    let next = update.turn(NOW, &facts(Some(Ok(())), &old), TIMES);
    assert_eq!(next, Next::Done(Err("it crashed".into())));
    assert_eq!(update.returned(), [1]);
}

#[test]
fn what_cannot_be_taken_back_is_tried_again_and_then_named() {
    let mut update = Update::new(plan(1, 1), [1, 2]);
    let _ = turn(&mut update, Successor::None(None), Handed::NotYet);
    assert_eq!(replace(&mut update, 1), Next::Nothing);
    let _ = update.give_up("it leaks".into());
    let next = turn(&mut update, Successor::None(None), Handed::NotYet);
    assert_eq!(next, Next::Start(1));
    for _ in 1..BACK_ATTEMPTS {
        let next = turn(&mut update, exit("exit code 1"), Handed::NotYet);
        assert_eq!(next, Next::Start(1));
    }
    let next = turn(&mut update, exit("exit code 1"), Handed::NotYet);
    assert_eq!(next, Next::Done(Err("it leaks".into())));
    assert!(update.stuck()[&1].contains("exit code 1"));
    assert_eq!(update.replaced(), [1], "it goes on with the new program");
}

#[test]
fn a_hand_over_that_is_called_off_ends_after_its_batch_and_goes_back() {
    let mut update = handing_over();
    assert_eq!(
        update.give_up("an operator's wish".into()),
        Next::GoBack(vec![])
    );
    let next = turn(&mut update, Successor::Ready, Handed::NotYet);
    assert_eq!(next, Next::CallOff(1));
    let next = turn(&mut update, Successor::Ready, Handed::NotYet);
    assert_eq!(next, Next::Nothing, "what is on its way arrives");
    let next = turn(&mut update, Successor::Ready, failed(true));
    assert_eq!(next, Next::HandBack(1));
    assert_eq!(
        ends(&mut update, &exit("exit code 0")),
        "an operator's wish"
    );
    assert_eq!(update.give_up("twice".into()), Next::Nothing);
}

#[test]
fn a_worker_that_has_handed_over_and_is_on_its_way_out_is_succeeded_and_then_taken_back() {
    let mut update = handing_over();
    let next = turn(&mut update, Successor::Ready, Handed::All);
    assert_eq!(next, Next::Leave(1));
    let _ = update.give_up("an operator's wish".into());
    let next = turn(&mut update, Successor::Ready, Handed::All);
    assert_eq!((next, step(&update)), (Next::Nothing, (1, "leaving")));
    assert_eq!(turn_until_told(&mut update), Next::GoBack(vec![1]));
    let next = turn(&mut update, Successor::None(None), Handed::NotYet);
    assert_eq!(next, Next::Start(1));
    let next = replace(&mut update, 1);
    assert_eq!(next, Next::Done(Err("an operator's wish".into())));
}

#[test]
fn an_update_that_is_given_up_while_the_program_is_looked_at_has_done_nothing() {
    let mut update = Update::new(plan(1, 1), [1]);
    assert_eq!(update.give_up("no".into()), Next::GoBack(vec![]));
    let next = update.turn(NOW, &facts(None, &idle), TIMES);
    assert_eq!(next, Next::Done(Err("no".into())));
}

#[test]
fn a_successor_that_does_not_start_costs_nothing_and_ends_the_update() {
    let mut update = plain([1, 2]);
    let _ = turn(&mut update, Successor::None(None), Handed::NotYet);
    let why = ends(&mut update, &exit("exit code 1"));
    assert!(why.contains("exit code 1"), "{why}");
    assert_eq!((update.replaced(), update.returned()), (&[][..], &[][..]));
}

#[test]
fn a_successor_that_is_not_ready_in_time_is_ended() {
    let mut update = plain([1]);
    let _ = turn(&mut update, Successor::None(None), Handed::NotYet);
    let next = late(&mut update, Successor::Starting, Handed::NotYet);
    assert!(matches!(next, Next::EndSuccessor { slot: 1, .. }));
    let why = ends(&mut update, &exit("signal 9"));
    assert!(why.contains("not ready in time"), "{why}");
}

#[test]
fn a_worker_that_is_away_is_waited_for_before_it_hands_over() {
    let mut update = plain([1]);
    let _ = turn(&mut update, Successor::None(None), Handed::NotYet);
    let away = |_| SlotFacts {
        is_worker_ready: false,
        ..slot_facts(Successor::Ready, Handed::NotYet)
    };
    let next = update.turn(NOW, &facts(Some(Ok(())), &away), TIMES);
    assert_eq!(next, Next::Nothing);
    let next = late(&mut update, Successor::Starting, Handed::NotYet);
    assert!(matches!(next, Next::EndSuccessor { .. }));
}

#[test]
fn what_has_moved_goes_back_when_the_rest_cannot() {
    for is_late in [false, true] {
        let mut update = handing_over();
        let next = if is_late {
            late(&mut update, Successor::Ready, Handed::NotYet)
        } else {
            turn(&mut update, Successor::Ready, failed(true))
        };
        assert_eq!((next, step(&update).1), (Next::HandBack(1), "handing_back"));
        let next = turn(&mut update, Successor::Ready, Handed::NotYet);
        assert_eq!(next, Next::Nothing);
        let next = turn(&mut update, Successor::Ready, Handed::All);
        assert_eq!(next, Next::Nothing, "it ends by itself");
        let why = ends(&mut update, &exit("exit code 0"));
        assert!(why.contains("could not hand over"), "{why}");
    }
}

#[test]
fn a_successor_that_got_nothing_is_ended() {
    let mut update = handing_over();
    let next = turn(&mut update, Successor::Ready, failed(false));
    let Next::EndSuccessor { slot: 1, why } = next else {
        panic!("it has nothing to hand back: {next:?}");
    };
    assert!(why.contains("could not hand over: no room"), "{why}");
}

#[test]
fn a_successor_whose_connections_cannot_go_back_is_ended() {
    let mut update = handing_over();
    let _ = turn(&mut update, Successor::Ready, failed(true));
    let next = turn(&mut update, Successor::Ready, failed(false));
    assert!(matches!(next, Next::EndSuccessor { slot: 1, .. }));
}

#[test]
fn a_successor_that_fills_the_slot_although_it_was_to_give_back_is_taken_back() {
    let mut update = handing_over();
    let _ = turn(&mut update, Successor::Ready, failed(true));
    let next = turn(&mut update, Successor::None(None), Handed::NotYet);
    assert_eq!(next, Next::GoBack(vec![1]), "its worker has died");
    let next = turn(&mut update, Successor::None(None), Handed::NotYet);
    assert_eq!(next, Next::Start(1));
}

#[test]
fn a_successor_that_ends_while_it_takes_over_leaves_the_worker_serving() {
    let mut update = handing_over();
    let why = ends(&mut update, &exit("signal 9"));
    assert!(why.contains("signal 9"), "{why}");
}

#[test]
fn a_worker_that_ends_in_between_is_succeeded_all_the_same() {
    let mut update = handing_over();
    assert_eq!(turn_until_told(&mut update), Next::Start(2));
}

#[test]
fn a_worker_that_does_not_leave_is_ended() {
    let mut update = handing_over();
    let _ = turn(&mut update, Successor::Ready, Handed::All);
    let next = late(&mut update, Successor::Ready, Handed::All);
    assert_eq!(next, Next::EndWorker(1));
    assert_eq!(turn_until_told(&mut update), Next::Start(2));
}

use proptest::prelude::*;

use super::*;
use crate::handover::message::RefusedConnection;

const NOW: Millis = Millis(10_000);

fn keys(count: u32) -> Vec<ConnectionKey> {
    (0..count)
        .map(|index| ConnectionKey { index, serial: 1 })
        .collect()
}

fn welcome() -> Event {
    Event::Said(FromTaker::Welcome { snapshots: 1 })
}

fn prepared(batch: u32, refused: &[usize]) -> Event {
    let refused = refused.iter().map(|index| RefusedConnection {
        index: *index,
        reason: "no room".into(),
    });
    Event::Said(FromTaker::Prepared {
        batch,
        refused: refused.collect(),
    })
}

fn running(batch: u32) -> Event {
    Event::Said(FromTaker::Running { batch })
}

fn lost() -> Event {
    Event::Lost("gone".into())
}

fn failed(actions: &[Action]) -> bool {
    matches!(actions.last(), Some(Action::Finish(Err(_))))
}

/// One that has said hello and is to freeze its first batch.
fn begun(wanted: Option<u32>) -> Giving {
    let mut giving = Giving::new(NOW, wanted);
    let actions = giving.handle(NOW, welcome());
    assert_eq!(actions, [Action::Replaced, Action::Announce]);
    let freeze = giving.handle(NOW, Event::Announced);
    assert!(matches!(freeze[..], [Action::Freeze { batch: 1, .. }]));
    giving
}

/// One that has frozen so many and waits for the answer.
fn preparing(count: u32) -> Giving {
    let mut giving = begun(None);
    assert_eq!(giving.handle(NOW, Event::Sent(keys(count))), []);
    giving
}

/// One that has committed them.
fn committed(count: u32) -> Giving {
    let mut giving = preparing(count);
    let actions = giving.handle(NOW, prepared(1, &[]));
    assert_eq!(actions, [Action::Thaw(vec![]), Action::Commit { batch: 1 }]);
    giving
}

#[test]
fn a_batch_is_let_go_of_when_it_runs_and_the_next_one_follows() {
    let mut giving = committed(3);
    let actions = giving.handle(NOW, running(1));
    let freeze = Action::Freeze {
        at_most: BATCH_MAX,
        batch: 2,
    };
    assert_eq!(actions, [Action::Release(keys(3)), freeze]);
    assert_eq!(giving.outcome().moved, 3);
    let actions = giving.handle(NOW, Event::NobodyLeft { later: false });
    assert_eq!(actions, [Action::End, Action::Finish(Ok(()))]);
}

#[test]
fn channels_are_announced_one_part_after_the_other() {
    let mut giving = Giving::new(NOW, None);
    giving.handle(NOW, welcome());
    for _ in 0..3 {
        assert_eq!(giving.handle(NOW, Event::AnnouncementSent), []);
        let said = Event::Said(FromTaker::Subscribed);
        assert_eq!(giving.handle(NOW, said), [Action::Announce]);
    }
}

#[test]
fn at_most_as_many_go_as_are_wanted() {
    let mut giving = begun(Some(70));
    giving.handle(NOW, Event::Sent(keys(63)));
    giving.handle(NOW, prepared(1, &[]));
    let actions = giving.handle(NOW, running(1));
    let freeze = Action::Freeze {
        at_most: 7,
        batch: 2,
    };
    assert_eq!(actions[1], freeze);
    giving.handle(NOW, Event::Sent(keys(7)));
    giving.handle(NOW, prepared(2, &[]));
    let actions = giving.handle(NOW, running(2));
    assert_eq!(
        actions[1..],
        [Action::End, Action::Finish(Ok(()))],
        "70 are over"
    );
}

#[test]
fn a_worker_that_refuses_is_found_out_before_anything_is_frozen() {
    let mut giving = Giving::new(NOW, None);
    let reason = "another version".to_owned();
    let refused = Event::Said(FromTaker::Refused { reason });
    let actions = giving.handle(NOW, refused);
    assert_eq!(actions, [Action::Finish(Err("another version".into()))]);
}

#[test]
fn refused_connections_stay_and_are_offered_again_but_not_for_ever() {
    let mut giving = preparing(3);
    let all = keys(3);
    for round in 1..=u32::from(OFFERS_MAX) {
        let actions = giving.handle(NOW, prepared(round, &[1]));
        let commit = Action::Commit { batch: round };
        assert_eq!(actions, [Action::Thaw(vec![all[1]]), commit]);
        giving.handle(NOW, running(round));
        assert_eq!(giving.is_given_up(all[1]), round == u32::from(OFFERS_MAX));
        giving.handle(NOW, Event::Sent(keys(3)));
    }
    assert_eq!(giving.outcome().failed, 1);
    assert_eq!(giving.outcome().last_reason.as_deref(), Some("no room"));
    assert!(!giving.is_given_up(all[0]));
}

#[test]
fn a_batch_of_which_nothing_is_taken_is_thawed_and_a_later_one_is_tried() {
    let mut giving = preparing(2);
    let actions = giving.handle(NOW, prepared(1, &[0, 1]));
    assert_eq!(actions, [Action::Thaw(keys(2)), Action::Abort { batch: 1 }]);
    let at = giving.wake_at().unwrap();
    assert!(at > NOW, "not at once");
    let actions = giving.handle(at, Event::Woken);
    assert!(matches!(actions[..], [Action::Freeze { batch: 2, .. }]));
}

#[test]
fn before_the_commit_every_failure_thaws() {
    for event in [
        lost(),
        Event::Dead,
        Event::Stop,
        prepared(7, &[]),
        prepared(1, &[2]),
        running(1),
        welcome(),
        Event::Said(FromTaker::Subscribed),
    ] {
        let mut giving = preparing(2);
        let shown = format!("{event:?}");
        let actions = giving.handle(NOW, event);
        assert!(
            actions.contains(&Action::Thaw(keys(2))),
            "{shown}: {actions:?}"
        );
        assert!(failed(&actions), "{shown}");
        let commits = |action: &Action| matches!(action, Action::Commit { .. });
        assert!(!actions.iter().any(commits), "{shown}");
        assert_eq!(giving.wake_at(), None);
    }
}

#[test]
fn a_worker_that_does_not_answer_in_time_gets_nothing() {
    let mut giving = preparing(2);
    let at = giving.wake_at().unwrap();
    assert_eq!(giving.handle(NOW, Event::Woken), [], "there is time");
    let actions = giving.handle(at, Event::Woken);
    assert_eq!(
        actions[..2],
        [Action::Abort { batch: 1 }, Action::Thaw(keys(2))]
    );
    assert!(failed(&actions));
    assert_eq!(
        giving.handle(at, prepared(1, &[])),
        [],
        "an answer that comes late changes nothing"
    );
}

#[test]
fn after_the_commit_only_the_others_end_gives_connections_back() {
    for event in [lost(), prepared(1, &[]), Event::Woken] {
        let mut giving = committed(2);
        let actions = giving.handle(NOW, event);
        assert_eq!(actions, [], "they are not ours");
        assert!(giving.wake_at().is_some());
        let actions = giving.handle(NOW, Event::Dead);
        assert_eq!(actions[0], Action::Judge(keys(2)));
        assert!(failed(&actions));
    }
}

#[test]
fn slowness_after_the_commit_is_reported_and_never_thaws() {
    let mut giving = committed(2);
    let stuck_at = giving.wake_at().unwrap();
    assert_eq!(stuck_at, NOW + STUCK_AFTER);
    assert_eq!(giving.handle(stuck_at, Event::Woken), [Action::ReportStuck]);
    let give_up_at = giving.wake_at().unwrap();
    assert_eq!(give_up_at, NOW + GIVE_UP_AFTER);
    let actions = giving.handle(give_up_at, Event::Woken);
    assert_eq!(actions[0], Action::Abandon(keys(2)));
    assert!(failed(&actions));
}

#[test]
fn one_that_was_slow_and_runs_after_all_has_the_connections() {
    let mut giving = committed(2);
    let stuck_at = giving.wake_at().unwrap();
    giving.handle(stuck_at, Event::Woken);
    let actions = giving.handle(stuck_at, running(1));
    assert_eq!(actions[0], Action::Release(keys(2)));
}

#[test]
fn who_stops_keeps_what_is_not_committed_and_lets_go_of_the_rest() {
    let mut giving = committed(2);
    let actions = giving.handle(NOW, Event::Stop);
    assert_eq!(actions[0], Action::Abandon(keys(2)));
    let mut giving = begun(None);
    let actions = giving.handle(NOW, Event::Stop);
    assert_eq!(actions[0], Action::End);
    assert!(failed(&actions));
}

#[test]
fn what_is_called_off_ends_after_the_batch_that_is_committed() {
    for mut giving in [Giving::new(NOW, None), begun(None)] {
        let actions = giving.handle(NOW, Event::CallOff);
        assert_eq!(actions[0], Action::End);
        assert!(failed(&actions), "{actions:?}");
    }
    let actions = preparing(3).handle(NOW, Event::CallOff);
    let abort = [Action::Abort { batch: 1 }, Action::Thaw(keys(3))];
    assert_eq!(actions[..2], abort);
    assert!(failed(&actions), "{actions:?}");

    let mut giving = committed(3);
    assert_eq!(giving.handle(NOW, Event::CallOff), []);
    let actions = giving.handle(NOW, running(1));
    assert_eq!(actions[..2], [Action::Release(keys(3)), Action::End]);
    assert!(failed(&actions), "{actions:?}");
    assert_eq!(giving.outcome().moved, 3);
}

#[test]
fn those_who_cannot_go_yet_are_looked_at_again_soon() {
    let mut giving = begun(None);
    assert_eq!(giving.handle(NOW, Event::NobodyLeft { later: true }), []);
    let at = giving.wake_at().unwrap();
    assert_eq!(at, NOW + LOOK_AGAIN);
    let actions = giving.handle(at, Event::Woken);
    assert!(matches!(actions[..], [Action::Freeze { .. }]));
}

/// What may happen, in any order.
fn events() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(0_u8..12, 1..60)
}

proptest! {
    /// Whatever the other worker does: a connection that was frozen is thawed,
    /// released, judged or abandoned exactly once, and after the commit was said
    /// it is not thawed.
    #[test]
    fn every_connection_has_one_owner_whatever_happens(script in events()) {
        let mut giving = Giving::new(NOW, None);
        let mut now = NOW;
        let mut next_key = 0;
        let (mut frozen, mut sent_commit) = (Vec::new(), false);
        let mut batch = 0;
        for step in script {
            now = now + Duration::from_millis(700);
            let mut events = vec![match step {
                0 => welcome(),
                1 => Event::Said(FromTaker::Subscribed),
                2 => prepared(batch, &[]),
                3 => prepared(batch, &[0]),
                4 => running(batch),
                5 => lost(),
                6 => Event::Dead,
                7 => prepared(batch + 1, &[]),
                8 => Event::Stop,
                9 => Event::CallOff,
                _ => Event::Woken,
            }];
            while let Some(event) = events.pop() {
                for action in giving.handle(now, event) {
                    match action {
                        Action::Announce => events.push(Event::Announced),
                        Action::Freeze { batch: number, .. } => {
                            prop_assert!(frozen.is_empty(), "one batch at a time");
                            (batch, sent_commit) = (number, false);
                            frozen = vec![ConnectionKey { index: next_key, serial: 1 }];
                            next_key += 1;
                            events.push(Event::Sent(frozen.clone()));
                        }
                        Action::Commit { .. } => sent_commit = true,
                        Action::Thaw(keys) => {
                            prop_assert!(keys.is_empty() || !sent_commit);
                            frozen.retain(|key| !keys.contains(key));
                        }
                        Action::Release(keys) | Action::Judge(keys) | Action::Abandon(keys) => {
                            prop_assert!(sent_commit);
                            prop_assert_eq!(&keys, &frozen);
                            frozen.clear();
                        }
                        Action::Finish(_) => prop_assert!(frozen.is_empty()),
                        Action::Replaced | Action::Abort { .. } | Action::ReportStuck | Action::End => {}
                    }
                }
            }
        }
        for event in [lost(), Event::Dead] {
            for action in giving.handle(now, event) {
                if let Action::Thaw(keys) | Action::Judge(keys) = action {
                    frozen.retain(|key| !keys.contains(key));
                }
            }
        }
        prop_assert!(frozen.is_empty(), "the end of the other one settles everything");
    }
}

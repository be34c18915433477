use muster_proto::HANDOVER_VERSION;

use super::*;
use crate::handover::message::Body;

const NOW: Millis = Millis(10_000);
const BODY: Body = Body {
    bytes: 0,
    in_file: false,
};

fn keys(count: u32) -> Vec<ConnectionKey> {
    (0..count)
        .map(|index| ConnectionKey { index, serial: 1 })
        .collect()
}

fn begin(replace: bool) -> Event {
    Event::Said(FromGiver::begin(1, 2, replace))
}

fn prepare(batch: u32) -> Event {
    Event::Said(FromGiver::Prepare {
        batch,
        connections: 2,
        body: BODY,
    })
}

fn commit(batch: u32) -> Event {
    Event::Said(FromGiver::Commit { batch })
}

fn abort(batch: u32) -> Event {
    Event::Said(FromGiver::Abort { batch })
}

/// One that has said hello.
fn open() -> Taking {
    let mut taking = Taking::new();
    taking.handle(NOW, begin(false));
    taking
}

/// One that has put two connections together and waits for subscriptions.
fn preparing() -> Taking {
    let mut taking = open();
    assert_eq!(taking.handle(NOW, prepare(1)), [Action::Build]);
    let built = Event::Built {
        keys: keys(2),
        refused: vec![],
    };
    assert_eq!(taking.handle(NOW, built), []);
    assert!(taking.is_subscribing());
    taking
}

/// One that has said that they are prepared.
fn prepared() -> Taking {
    let mut taking = preparing();
    let answer = FromTaker::Prepared {
        batch: 1,
        refused: vec![],
    };
    assert_eq!(
        taking.handle(NOW, Event::Subscribed),
        [Action::Answer(answer)]
    );
    taking
}

#[test]
fn connections_run_after_the_commit_and_then_it_is_said() {
    let mut taking = prepared();
    let running = FromTaker::Running { batch: 1 };
    assert_eq!(
        taking.handle(NOW, commit(1)),
        [Action::Run(keys(2)), Action::Answer(running)]
    );
    assert_eq!(
        taking.handle(NOW, prepare(2)),
        [Action::Build],
        "the next one"
    );
    let mut taking = open();
    let end = Event::Said(FromGiver::End);
    assert_eq!(taking.handle(NOW, end), [Action::Finish]);
}

#[test]
fn who_takes_the_others_place_does_so_before_he_says_hello() {
    let mut taking = Taking::new();
    let actions = taking.handle(NOW, begin(true));
    assert_eq!(actions[0], Action::Replace);
    assert!(matches!(
        actions[1],
        Action::Answer(FromTaker::Welcome { .. })
    ));
}

#[test]
fn another_version_is_refused_and_that_is_the_end_of_it() {
    let mut taking = Taking::new();
    let other = Event::Said(FromGiver::Begin {
        version: HANDOVER_VERSION + 1,
        oldest: 1,
        newest: 1,
        slot: 1,
        incarnation: 2,
        replace: true,
    });
    let actions = taking.handle(NOW, other);
    assert!(matches!(
        actions[..],
        [Action::Answer(FromTaker::Refused { .. }), Action::Finish]
    ));
    assert_eq!(taking.handle(NOW, prepare(1)), [], "it is over");
}

#[test]
fn channels_are_subscribed_to_before_clients_come_but_not_for_ever() {
    for in_time in [true, false] {
        let mut taking = open();
        let announce = Event::Said(FromGiver::Announce { body: BODY });
        assert_eq!(taking.handle(NOW, announce), [Action::Keep]);
        assert!(taking.is_subscribing());
        let actions = if in_time {
            taking.handle(NOW, Event::Subscribed)
        } else {
            let until = taking.wake_at().unwrap();
            taking.handle(until, Event::Woken)
        };
        assert_eq!(actions, [Action::Answer(FromTaker::Subscribed)]);
    }
}

#[test]
fn what_cannot_be_subscribed_to_in_time_stays_with_the_other() {
    let mut taking = preparing();
    let until = taking.wake_at().unwrap();
    assert_eq!(taking.handle(NOW, Event::Woken), [], "there is time");
    let actions = taking.handle(until, Event::Woken);
    assert_eq!(actions[0], Action::Discard(keys(2)));
    let Action::Answer(FromTaker::Prepared { batch: 1, refused }) = &actions[1] else {
        panic!("{actions:?}");
    };
    let places: Vec<_> = refused.iter().map(|one| one.index).collect();
    assert_eq!(places, [0, 1]);
    assert_eq!(taking.handle(until, abort(1)), [Action::Discard(vec![])]);
}

#[test]
fn snapshots_that_make_no_sense_are_refused() {
    let mut taking = open();
    taking.handle(NOW, prepare(1));
    let refused = vec![RefusedConnection {
        index: 0,
        reason: "malformed".into(),
    }];
    let built = Event::Built {
        keys: vec![],
        refused: refused.clone(),
    };
    taking.handle(NOW, built);
    let answer = FromTaker::Prepared { batch: 1, refused };
    assert_eq!(
        taking.handle(NOW, Event::Subscribed),
        [Action::Answer(answer)]
    );
}

#[test]
fn an_abort_lets_go_of_everything_untouched() {
    for mut taking in [preparing(), prepared()] {
        assert_eq!(taking.handle(NOW, abort(1)), [Action::Discard(keys(2))]);
        assert_eq!(taking.handle(NOW, prepare(2)), [Action::Build]);
    }
    assert_eq!(open().handle(NOW, abort(1)), []);
}

#[test]
fn a_lost_worker_that_lives_keeps_its_clients() {
    for mut taking in [preparing(), prepared()] {
        assert_eq!(taking.handle(NOW, Event::Lost), []);
        let until = taking.wake_at().unwrap();
        let actions = taking.handle(until, Event::Woken);
        assert_eq!(actions, [Action::Discard(keys(2)), Action::Finish]);
    }
}

#[test]
fn of_a_worker_that_has_ended_those_run_on_that_it_has_not_touched() {
    for mut taking in [preparing(), prepared()] {
        assert_eq!(taking.handle(NOW, Event::Lost), []);
        let actions = taking.handle(NOW, Event::Dead);
        assert_eq!(actions, [Action::Judge(keys(2)), Action::Finish]);
    }
}

#[test]
fn what_an_ended_worker_said_last_is_heard_first() {
    let mut taking = prepared();
    assert_eq!(taking.handle(NOW, Event::Dead), []);
    let actions = taking.handle(NOW, commit(1));
    assert_eq!(actions[0], Action::Run(keys(2)));
    assert_eq!(
        taking.handle(NOW, Event::Lost),
        [Action::Discard(vec![]), Action::Finish]
    );
}

#[test]
fn nonsense_ends_it_and_touches_nothing() {
    for event in [commit(2), begin(false), prepare(2)] {
        let mut taking = prepared();
        let actions = taking.handle(NOW, event);
        assert_eq!(actions, [Action::Discard(keys(2)), Action::Finish]);
        assert_eq!(taking.handle(NOW, commit(1)), []);
    }
    for event in [commit(1), prepare(1)] {
        let mut taking = Taking::new();
        let actions = taking.handle(NOW, event);
        assert_eq!(actions, [Action::Discard(vec![]), Action::Finish]);
    }
}

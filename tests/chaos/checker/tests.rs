use super::*;
use crate::record::What;

const START: Time = 1_000_000;
const END: Time = START + 60_000;

/// Two clients on channel 0, of which the first publishes 1 to 5, a second
/// apart.
fn calm() -> Vec<Record> {
    let mut records = Vec::new();
    let mut note = |at: Time, client, what| {
        records.push(Record {
            at: START + at,
            client,
            what,
        });
    };
    for client in [1, 2] {
        let id = format!("id {client}");
        note(0, client, What::Connected { id });
        note(10, client, What::Subscribed { channel: 0 });
    }
    for n in 1..=5 {
        let at = n * 1000;
        note(at, 1, What::Published { n, channel: 0 });
        let key = Key { client: 1, n };
        for client in [1, 2] {
            note(at + 20, client, What::Delivered { channel: 0, key });
        }
        note(at + 30, 1, What::Answered { n, error: None });
    }
    records
}

fn circumstances() -> Circumstances {
    let workers = [("id 1", 1), ("id 2", 2)];
    Circumstances {
        outages: Vec::new(),
        workers: workers.map(|(id, slot)| (id.to_owned(), slot)).into(),
        end: END,
    }
}

fn outage(is_broker: bool, slot: u32, from: Time) -> Outage {
    Outage {
        is_broker,
        slot,
        from: START + from,
        to: START + from + 300,
    }
}

fn is_delivery(record: &Record, to: ClientId, n: u64) -> bool {
    record.client == to && matches!(record.what, What::Delivered { key, .. } if key.n == n)
}

/// What there is no excuse for.
fn found(verdict: &Verdict) -> [usize; 5] {
    [
        verdict.lost,
        verdict.repeated,
        verdict.out_of_order,
        verdict.failed.outside,
        verdict.unanswered.outside,
    ]
}

#[test]
fn nothing_is_found_where_nothing_is_wrong() {
    let verdict = judge(calm(), &circumstances());
    assert_eq!(found(&verdict), [0; 5]);
    assert_eq!((verdict.published, verdict.acknowledged), (5, 5));
    assert_eq!((verdict.deliveries, verdict.due, verdict.cut), (10, 10, 0));
    assert_eq!(verdict.problems, Vec::<String>::new());
}

#[test]
fn each_fault_is_found_and_a_broker_s_death_nearby_excuses_missing_answers_only() {
    type Harm = fn(&mut Vec<Record>);
    let harms: [(usize, Harm); 5] = [
        (0, |records| {
            records.retain(|record| !is_delivery(record, 2, 3))
        }),
        (1, |records| {
            let again = records.iter().find(|record| is_delivery(record, 2, 3));
            let again = again.unwrap().clone();
            records.push(again);
        }),
        (2, |records| {
            let place = |n| records.iter().position(|record| is_delivery(record, 2, n));
            let (one, other) = (place(3).unwrap(), place(4).unwrap());
            records.swap(one, other);
        }),
        (3, |records| {
            for record in records {
                if let What::Answered { n: 3, error } = &mut record.what {
                    *error = Some("SomeError".into());
                }
            }
        }),
        (4, |records| {
            records.retain(|record| !matches!(record.what, What::Answered { n: 3, .. }));
        }),
    ];
    for (index, harm) in harms {
        let mut records = calm();
        harm(&mut records);
        let verdict = judge(records.clone(), &circumstances());
        let counts = found(&verdict);
        assert!(counts[index] > 0, "{index}: {counts:?}");
        let sum: usize = counts.iter().sum();
        assert_eq!(sum, counts[index], "{counts:?}");
        assert!(!verdict.problems.is_empty());
        for (outage, is_excused) in [
            (outage(true, 1, 3000), index >= 3),
            (outage(true, 1, 30_000), false),
            (outage(false, 1, 3000), false),
        ] {
            let mut circumstances = circumstances();
            circumstances.outages.push(outage.clone());
            let counts = found(&judge(records.clone(), &circumstances));
            assert_eq!(counts[index] == 0, is_excused, "{index}: {outage:?}");
        }
    }
}

#[test]
fn a_connection_may_end_with_its_own_worker_only() {
    let mut records = calm();
    records.push(Record {
        at: START + 10_100,
        client: 2,
        what: What::Disconnected { code: 1006 },
    });
    assert_eq!(judge(records.clone(), &circumstances()).cut, 1);
    for (slot, cut) in [(2, 0), (1, 1)] {
        let mut circumstances = circumstances();
        circumstances.outages.push(outage(false, slot, 10_000));
        let verdict = judge(records.clone(), &circumstances);
        assert_eq!((verdict.cut, verdict.ended_with_worker), (cut, 1 - cut));
    }
    // One that nobody listed, but that is older than a moment.
    let mut circumstances = circumstances();
    circumstances.workers.clear();
    circumstances.outages.push(outage(false, 2, 10_000));
    assert_eq!(judge(records, &circumstances).cut, 1);
}

#[test]
fn only_the_end_of_its_own_connection_excuses_a_missing_answer() {
    let mut records = calm();
    records.retain(|record| !matches!(record.what, What::Answered { n: 3, .. }));
    let reconnect = |at: Time| {
        let again = |at: Time, what| Record {
            at: START + at,
            client: 1,
            what,
        };
        let id = "id 3".to_owned();
        [
            again(at, What::Disconnected { code: 1006 }),
            again(at + 10, What::Connected { id }),
        ]
    };
    let verdict = judge(records.clone(), &circumstances());
    assert_eq!((verdict.unanswered.outside, verdict.unknown), (1, 0));
    // Before the third publication.
    let place = records.iter().position(|record| record.at == START + 3000);
    let mut earlier = records.clone();
    earlier.splice(place.unwrap()..place.unwrap(), reconnect(2500));
    let verdict = judge(earlier, &circumstances());
    assert_eq!((verdict.unanswered.outside, verdict.unknown), (1, 0));
    // After it, on its own connection.
    let mut later = records;
    later.extend(reconnect(6000));
    let verdict = judge(later, &circumstances());
    assert_eq!((verdict.unanswered.outside, verdict.unknown), (0, 1));
}

#[test]
fn an_operator_s_publication_without_an_outcome_may_come_late_but_one_with_may_not() {
    for is_acked in [true, false] {
        let mut records = calm();
        for (at, n) in [(20_000, 1), (20_100, 2)] {
            let at = START + at;
            let published = What::Published { n, channel: 0 };
            let mut whats = vec![published];
            if n == 2 || is_acked {
                whats.push(What::Answered { n, error: None });
            }
            records.extend(whats.into_iter().map(|what| Record {
                at,
                client: OPERATOR,
                what,
            }));
        }
        for n in [2, 1] {
            let key = Key {
                client: OPERATOR,
                n,
            };
            records.extend([1, 2].map(|client| Record {
                at: START + 20_200,
                client,
                what: What::Delivered { channel: 0, key },
            }));
        }
        let verdict = judge(records, &circumstances());
        assert_eq!(verdict.out_of_order, if is_acked { 2 } else { 0 });
        assert_eq!(verdict.unknown, usize::from(!is_acked));
    }
}

#[test]
fn what_was_on_its_way_to_a_worker_that_died_is_not_lost_by_the_cluster() {
    let mut records = calm();
    records.retain(|record| !is_delivery(record, 2, 5));
    records.push(Record {
        at: START + 5300,
        client: 2,
        what: What::Disconnected { code: 1006 },
    });
    let mut circumstances = circumstances();
    circumstances.outages.push(outage(false, 2, 5100));
    let verdict = judge(records, &circumstances);
    assert_eq!(verdict.lost, 0, "{:?}", verdict.problems);
}

//! The rules of delivery.md, each broken on purpose: some seed must show it.

use muster_broker::simulation::{BrokenJournal, BrokenRules as BrokenBroker};
use muster_worker::simulation::BrokenRules as BrokenWorker;

use crate::{
    run::{find_violation, on_every_core},
    scenario::{self, Broken, Scenario},
};

/// Seeds in which a broken rule must show.
const SEEDS_TO_FIND: u64 = 300;

const WORKER: BrokenWorker = BrokenWorker::NONE;
const BROKER: BrokenBroker = BrokenBroker::NONE;
const JOURNAL: BrokenJournal = BrokenJournal::NONE;

/// Breaks every rule in turn, and fails if one of them does not show.
pub(crate) fn are_caught() {
    let mutants = mutants();
    let found = on_every_core(mutants.len(), |index| {
        let (_, broken, scenario) = &mutants[index];
        let scenario = Scenario {
            broken: *broken,
            ..scenario.clone()
        };
        find_violation(&scenario, SEEDS_TO_FIND)
    });
    let mut missed = Vec::new();
    for ((rule, _, scenario), found) in mutants.iter().zip(found) {
        match found {
            Some((seed, violation)) => {
                println!("{rule}\n    {}, seed {seed}: {violation}", scenario.name);
            }
            None => missed.push(*rule),
        }
    }
    assert_eq!(missed, [""; 0], "not seen in {SEEDS_TO_FIND} seeds each");
}

/// What is done wrong, and where that shows.
#[rustfmt::skip]
fn mutants() -> Vec<(&'static str, Broken, Scenario)> {
    use scenario::{calm, full_disks, late_views, links, moves, power, restarts, short_journals};
    vec![
        ("A1: every publication is taken for a new one",
            broker(BrokenBroker { keys: true, ..BROKER }), links()),
        ("A2: a publication is taken however old it is",
            broker(BrokenBroker { window: true, ..BROKER }), scenario::short_window()),
        ("A3: it is acknowledged and relayed before it is appended",
            journal(BrokenJournal { order: true, ..JOURNAL }), restarts()),
        ("A4: publications overtake the subscriptions before them",
            worker(BrokenWorker { order: true, ..WORKER }), Scenario { brokers: 1, ..calm() }),
        ("A5: an owner does not look at epochs",
            broker(BrokenBroker { epochs: true, ..BROKER }), moves()),
        ("A5: what follows a refused publication is taken",
            broker(BrokenBroker { attempts: true, ..BROKER }), moves()),
        ("A5: a shard is opened at an earlier epoch than before",
            journal(BrokenJournal { epochs: true, ..JOURNAL }), late_views()),
        ("B1: a worker forgets its positions",
            worker(BrokenWorker { positions: true, ..WORKER }), links()),
        ("B2: a segment goes although something of it is retained",
            journal(BrokenJournal { retention: true, ..JOURNAL }), restarts()),
        ("B3: keys are forgotten at recovery",
            journal(BrokenJournal { keys: true, ..JOURNAL }), restarts()),
        ("B3: a new segment does not carry the keys",
            journal(BrokenJournal { carried_keys: true, ..JOURNAL }), short_journals()),
        ("B3: a new segment does not carry the channels",
            journal(BrokenJournal { carried_channels: true, ..JOURNAL }), short_journals()),
        ("B3: a new segment does not carry the histories",
            journal(BrokenJournal { carried_histories: true, ..JOURNAL }), scenario::histories()),
        ("B1: a read takes a position of another generation for its own",
            broker(BrokenBroker { generations: true, ..BROKER }), Scenario { history: Some(8), ..power() }),
        ("B7: followers are not told of holes",
            worker(BrokenWorker { holes: true, ..WORKER }), scenario::short_tail()),
        ("B7: what a follower missed counts as kept",
            worker(BrokenWorker { missed: true, ..WORKER }), short_journals()),
        ("B5: a link that has fallen behind does not go on from the log",
            broker(BrokenBroker { resume: true, ..BROKER }), scenario::tight()),
        ("C1: a shard is opened although another broker has it",
            broker(BrokenBroker { lock: true, ..BROKER }), moves()),
        ("C2: half a record stays after a write that failed",
            journal(BrokenJournal { truncation: true, ..JOURNAL }), full_disks()),
        ("C2: the offsets of refused publications are used up",
            journal(BrokenJournal { offsets: true, ..JOURNAL }), full_disks()),
        ("C2: which publications were refused is forgotten",
            journal(BrokenJournal { refused: true, ..JOURNAL }), full_disks()),
        ("C4: a torn end is not cut",
            journal(BrokenJournal { torn_end: true, ..JOURNAL }), restarts()),
        ("C5: a loss of power goes unnoticed",
            journal(BrokenJournal { power: true, ..JOURNAL }), power()),
        ("C5: every recovery begins new generations",
            journal(BrokenJournal { generations: true, ..JOURNAL }), restarts()),
    ]
}

fn worker(worker: BrokenWorker) -> Broken {
    Broken {
        worker,
        broker: BROKER,
    }
}

fn broker(broker: BrokenBroker) -> Broken {
    Broken {
        worker: WORKER,
        broker,
    }
}

fn journal(journal: BrokenJournal) -> Broken {
    broker(BrokenBroker { journal, ..BROKER })
}

//! Seeded simulation of a cluster without sockets: sessions, routing, links,
//! brokers and views under a scheduler that delays, drops, repeats and kills.
//!
//! Replay one run with `MUSTER_SIM_SCENARIO=name MUSTER_SIM_SEED=number`; run
//! more of them with `MUSTER_SIM_SEEDS=number` per scenario.

mod checker;
mod client;
mod cluster;
mod run;
mod scenario;
mod scheduler;
mod settle;
mod traffic;
mod transcript;

use muster_broker::simulation::BrokenRules;

use crate::{
    run::{Plan, find_violation, hold},
    scenario::{Broken, Scenario},
};

/// Seeds in which a broken rule must show.
const SEEDS_TO_FIND: u64 = 300;

#[test]
fn everything_promised_holds_whatever_happens() {
    hold(&Plan::from_env());
}

#[test]
fn a_broker_that_takes_every_publication_for_a_new_one_is_caught() {
    let broker = BrokenRules {
        keys: true,
        ..BrokenRules::default()
    };
    is_caught(scenario::links(), Broken { broker, positions: false });
}

#[test]
fn a_broker_that_takes_publications_of_any_epoch_is_caught() {
    let broker = BrokenRules {
        epochs: true,
        ..BrokenRules::default()
    };
    is_caught(scenario::moves(), Broken { broker, positions: false });
}

#[test]
fn a_broker_that_takes_what_follows_a_refused_publication_is_caught() {
    let broker = BrokenRules {
        attempts: true,
        ..BrokenRules::default()
    };
    is_caught(scenario::moves(), Broken { broker, positions: false });
}

#[test]
fn a_worker_that_forgets_its_positions_is_caught() {
    let broker = BrokenRules::default();
    is_caught(scenario::links(), Broken { broker, positions: true });
}

fn is_caught(scenario: Scenario, broken: Broken) {
    let scenario = Scenario { broken, ..scenario };
    let found = find_violation(&scenario, SEEDS_TO_FIND);
    let (seed, violation) = found.expect("a broken rule must show");
    println!("{}, seed {seed}: {violation}", scenario.name);
}

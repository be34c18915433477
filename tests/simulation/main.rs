//! Seeded simulation of a cluster without sockets: sessions, routing, links,
//! brokers and views under a scheduler that delays, drops, repeats and kills.
//!
//! Every test runs one scenario (`scenario.rs`) with a number of seeds, or with
//! one of its rules broken on purpose until that shows. What must hold is in
//! `checker.rs`. A failing seed prints how to replay it:
//!
//! - `MUSTER_SIM_SEED=number` runs that seed alone, `MUSTER_SIM_SCENARIO=name`
//!   that scenario alone;
//! - `MUSTER_SIM_SEEDS=number` runs that many seeds of each scenario;
//! - `MUSTER_SIM_LINES=number` keeps that many lines of a transcript.

#![expect(
    clippy::print_stdout,
    reason = "seeds, figures and transcripts are what this prints"
)]

mod checker;
mod client;
mod cluster;
mod disk;
mod run;
mod scenario;
mod scheduler;
mod settle;
mod traffic;
mod transcript;

use muster_broker::simulation::{BrokenJournal, BrokenRules};

use crate::{
    run::{find_violation, hold, hold_again, transcript},
    scenario::{Broken, Scenario},
};

/// Seeds in which a broken rule must show.
const SEEDS_TO_FIND: u64 = 100;

#[test]
fn without_faults_every_client_gets_every_publication_in_order() {
    hold(&scenario::calm());
}

#[test]
fn a_publication_does_not_overtake_the_subscription_before_it() {
    hold_again(&scenario::calm(), &[90]);
}

#[test]
fn a_link_that_breaks_at_any_message_loses_and_repeats_nothing() {
    hold(&scenario::links());
}

#[test]
fn full_windows_and_exhausted_credit_only_delay() {
    hold(&scenario::tight());
}

#[test]
fn shards_that_move_lose_and_repeat_nothing_whoever_hears_of_it_when() {
    hold(&scenario::moves());
}

#[test]
fn brokers_that_return_with_their_journal_lose_and_repeat_nothing() {
    hold(&scenario::restarts());
}

#[test]
fn shards_that_move_between_brokers_that_die_lose_and_repeat_nothing() {
    hold(&scenario::restarts_and_moves());
}

#[test]
fn nodes_that_are_views_behind_lose_and_repeat_nothing() {
    hold(&scenario::late_views());
}

#[test]
fn full_disks_refuse_publications_and_lose_and_repeat_nothing() {
    hold(&scenario::full_disks());
}

#[test]
fn journals_that_let_go_of_old_segments_forget_no_key_and_no_position() {
    hold(&scenario::short_journals());
}

#[test]
fn what_is_lost_with_a_broker_that_returns_without_its_log_is_counted() {
    hold(&scenario::lost_logs());
}

#[test]
fn publications_that_wait_too_long_are_answered_that_nobody_knows() {
    hold(&scenario::timeouts());
}

#[test]
fn what_a_short_tail_does_not_retain_is_counted() {
    hold(&scenario::short_tail());
}

#[test]
fn everything_at_once_loses_and_repeats_nothing() {
    hold(&scenario::everything());
}

#[test]
fn a_seed_replays_to_the_last_event() {
    let scenario = scenario::everything();
    let (once, again) = (transcript(&scenario, 1), transcript(&scenario, 1));
    let differs = once.lines().zip(again.lines()).find(|(a, b)| a != b);
    assert_eq!(differs, None);
    assert_eq!(once.lines().count(), again.lines().count());
}

#[test]
fn a_broker_that_takes_every_publication_for_a_new_one_is_caught() {
    let broker = BrokenRules {
        keys: true,
        ..BrokenRules::default()
    };
    is_caught(scenario::links(), broker, false);
}

#[test]
fn a_broker_that_does_not_look_at_epochs_is_caught() {
    let broker = BrokenRules {
        epochs: true,
        ..BrokenRules::default()
    };
    is_caught(scenario::moves(), broker, false);
}

#[test]
fn a_broker_that_takes_what_follows_a_refused_publication_is_caught() {
    let broker = BrokenRules {
        attempts: true,
        ..BrokenRules::default()
    };
    is_caught(scenario::moves(), broker, false);
}

#[test]
fn a_broker_that_acks_before_it_appends_is_caught() {
    let journal = BrokenJournal {
        order: true,
        ..BrokenJournal::default()
    };
    is_caught_journal(scenario::restarts(), journal);
}

#[test]
fn a_broker_that_leaves_half_a_record_after_a_failed_write_is_caught() {
    let journal = BrokenJournal {
        truncation: true,
        ..BrokenJournal::default()
    };
    is_caught_journal(scenario::full_disks(), journal);
}

#[test]
fn a_broker_that_forgets_keys_when_it_is_back_is_caught() {
    let journal = BrokenJournal {
        keys: true,
        ..BrokenJournal::default()
    };
    is_caught_journal(scenario::restarts(), journal);
}

#[test]
fn a_broker_that_opens_a_shard_at_an_earlier_epoch_is_caught() {
    let journal = BrokenJournal {
        epochs: true,
        ..BrokenJournal::default()
    };
    is_caught_journal(scenario::late_views(), journal);
}

#[test]
fn a_broker_that_always_begins_new_generations_is_caught() {
    let journal = BrokenJournal {
        generations: true,
        ..BrokenJournal::default()
    };
    is_caught_journal(scenario::restarts(), journal);
}

fn is_caught_journal(scenario: Scenario, journal: BrokenJournal) {
    let broker = BrokenRules {
        journal,
        ..BrokenRules::default()
    };
    is_caught(scenario, broker, false);
}

#[test]
fn a_worker_that_forgets_its_positions_is_caught() {
    is_caught(scenario::links(), BrokenRules::default(), true);
}

fn is_caught(scenario: Scenario, broker: BrokenRules, positions: bool) {
    let broken = Broken { broker, positions };
    let scenario = Scenario { broken, ..scenario };
    let found = find_violation(&scenario, SEEDS_TO_FIND);
    let (seed, violation) = found.expect("a broken rule must show");
    println!("{}, seed {seed}: {violation}", scenario.name);
}

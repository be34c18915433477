//! Seeded simulation of a cluster without sockets: sessions, routing, links,
//! brokers and views under a scheduler that delays, drops, repeats and kills.
//!
//! A seed makes one run of a scenario (`scenario.rs`): some hundred events, of
//! which any may be a fault; then everything works again, drains, and every
//! channel gets a last publication that all its subscribers must hear. What must
//! hold at every step is in `checker.rs`; that it would show if a rule of
//! delivery.md were not kept is in `mutants.rs`. A failing seed prints how to
//! replay it:
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
mod logs;
mod mutants;
mod positions;
mod reads;
mod run;
mod scenario;
mod scheduler;
mod settle;
mod traffic;
mod transcript;

#[test]
fn whatever_fails_nothing_acknowledged_is_lost_repeated_or_out_of_order() {
    run::hold(&scenario::all());
}

#[test]
fn a_publication_does_not_overtake_the_subscription_before_it() {
    run::hold_again(&scenario::calm(), &[90]);
}

#[test]
fn a_seed_replays_to_the_last_event() {
    let scenario = scenario::everything();
    let (once, again) = (run::transcript(&scenario, 1), run::transcript(&scenario, 1));
    let differs = once.lines().zip(again.lines()).find(|(a, b)| a != b);
    assert_eq!(differs, None);
    assert_eq!(once.lines().count(), again.lines().count());
}

#[test]
fn a_rule_that_is_not_kept_shows() {
    mutants::are_caught();
}

//! Process after process of the cluster is killed or stopped.

use std::{thread, time::Duration};

use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;

use super::{
    BenchError,
    clock::{Micros, SECOND, now},
    interrupt::Interrupt,
    server::Server,
};

/// Between two looks at the cluster's state.
const INTERVAL: Duration = Duration::from_millis(20);
/// Longest that a cluster may take to be whole again; a worker that hangs is
/// found out after 15 s.
const WHOLE_TIMEOUT: Micros = 40 * SECOND;
/// Between a cluster that is whole and the next blow.
const PAUSE: Micros = SECOND;

/// What one process's end, or stop, did.
#[derive(Debug, Serialize)]
pub(super) struct Round {
    pub(super) node: String,
    pub(super) signal: &'static str,
    /// Until another process had its place.
    pub(super) replaced_us: Option<Micros>,
    /// Until every node was ready again.
    pub(super) whole_us: Option<Micros>,
}

/// Signals one node after the other, until `until` at most.
pub(super) fn run(
    server: &Server,
    interrupt: &Interrupt,
    (kills, stops): (u32, u32),
    until: Micros,
) -> Result<Vec<Round>, BenchError> {
    let kills = (0..kills).map(|_| ("KILL", Signal::KILL));
    let stops = (0..stops).map(|_| ("STOP", Signal::STOP));
    let mut rounds = Vec::new();
    for (turn, (name, signal)) in kills.chain(stops).enumerate() {
        if now() + PAUSE >= until || interrupt.is_set() {
            break;
        }
        rounds.push(round(server, turn, name, signal)?);
        interrupt.sleep_until(now() + PAUSE, || {});
    }
    Ok(rounds)
}

fn round(
    server: &Server,
    turn: usize,
    name: &'static str,
    signal: Signal,
) -> Result<Round, BenchError> {
    let Some(before) = server.status()? else {
        return Err(BenchError::KillBlindly);
    };
    let node = &before.nodes[turn % before.nodes.len()];
    let pid = node.pid.and_then(|pid| i32::try_from(pid).ok());
    let pid = pid.and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| BenchError::NoSuchNode(node.name.clone()))?;
    let at = now();
    kill_process(pid, signal)
        .map_err(|error| BenchError::io("cannot signal a node")(error.into()))?;
    let mut round = Round {
        node: node.name.clone(),
        signal: name,
        replaced_us: None,
        whole_us: None,
    };
    while now() < at + WHOLE_TIMEOUT && round.whole_us.is_none() {
        let Some(status) = server.status()? else {
            return Err(BenchError::KillBlindly);
        };
        let passed = now() - at;
        let there = status.node(&node.name);
        if there.is_some_and(|there| there.incarnation > node.incarnation) {
            round.replaced_us.get_or_insert(passed);
            round.whole_us = status.is_whole().then_some(passed);
        }
        thread::sleep(INTERVAL);
    }
    Ok(round)
}

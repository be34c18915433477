//! Process after process of the cluster is killed or stopped.

use std::{thread, time::Duration};

use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;

use super::{
    LoadError,
    clock::{Micros, SECOND, now},
    status::Cluster,
};
use crate::status::Status;

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
    cluster: &Cluster,
    (kills, stops): (u32, u32),
    until: Micros,
) -> Result<Vec<Round>, LoadError> {
    let kills = (0..kills).map(|_| ("KILL", Signal::KILL));
    let stops = (0..stops).map(|_| ("STOP", Signal::STOP));
    let mut rounds = Vec::new();
    for (turn, (name, signal)) in kills.chain(stops).enumerate() {
        if now() + PAUSE >= until {
            break;
        }
        rounds.push(round(cluster, turn, name, signal)?);
        thread::sleep(Duration::from_micros(PAUSE));
    }
    Ok(rounds)
}

fn round(
    cluster: &Cluster,
    turn: usize,
    name: &'static str,
    signal: Signal,
) -> Result<Round, LoadError> {
    let before = cluster.status()?;
    let node = &before.nodes[turn % before.nodes.len()];
    let pid = i32::try_from(node.pid).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| LoadError::NoSuchNode(format!("{}:{}", node.role, node.slot)))?;
    let at = now();
    kill_process(pid, signal)
        .map_err(|error| LoadError::io("cannot signal a node")(error.into()))?;
    let mut round = Round {
        node: format!("{}:{}", node.role, node.slot),
        signal: name,
        replaced_us: None,
        whole_us: None,
    };
    while now() < at + WHOLE_TIMEOUT && round.whole_us.is_none() {
        let status = cluster.status()?;
        let passed = now() - at;
        let now_there = status.node(&node.role, node.slot);
        if now_there.is_some_and(|there| there.incarnation > node.incarnation) {
            round.replaced_us.get_or_insert(passed);
            if is_whole(&status) {
                round.whole_us = Some(passed);
            }
        }
        thread::sleep(INTERVAL);
    }
    Ok(round)
}

fn is_whole(status: &Status) -> bool {
    status.nodes.iter().all(|node| node.state == "ready")
}

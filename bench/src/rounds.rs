//! Process after process of the cluster is killed or stopped, and brokers come
//! and go.

use std::{collections::BTreeMap, thread, time::Duration};

use hdrhistogram::Histogram;
use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;

use super::{
    BenchError,
    blows::{Blow, Hit, Who},
    clock::{Micros, SECOND, now},
    delays::Delays,
    driver::histogram,
    interrupt::Interrupt,
    report::Quantiles,
    server::{Node, Server, Status},
};

/// Between two looks at the cluster's state.
const INTERVAL: Duration = Duration::from_millis(20);
/// Longest that a cluster may take to be whole again; a worker that hangs is
/// found out after 15 s.
const WHOLE_TIMEOUT: Micros = 40 * SECOND;
/// Between a cluster that is whole and the next blow.
const PAUSE: Micros = SECOND;
/// A broker that lives this long, in milliseconds, is in no crash loop when it
/// is killed.
const SETTLED_MS: u64 = 6_000;

/// What one blow did.
#[derive(Debug, Serialize)]
pub(super) struct Round {
    /// Who was met, or how many brokers there were to be.
    pub(super) node: String,
    /// `KILL`, `STOP` or `SCALE`.
    pub(super) signal: &'static str,
    /// Until other processes had the places of those that were met.
    pub(super) replaced_us: Option<Micros>,
    /// Until every node was ready again, and nothing was being scaled.
    pub(super) whole_us: Option<Micros>,
    /// Longest time from the intended sending of a publication that was under
    /// way then to its delivery or its answer, of any client.
    pub(super) pause_us: Option<Micros>,
    #[serde(skip)]
    at: Micros,
    #[serde(skip)]
    until: Micros,
}

/// Does one thing after the other, until `until` at most.
pub(super) fn run(
    server: &Server,
    interrupt: &Interrupt,
    blows: &[Blow],
    until: Micros,
    mut passing: impl FnMut(usize),
) -> Result<Vec<Round>, BenchError> {
    let mut rounds = Vec::new();
    for (turn, blow) in blows.iter().enumerate() {
        passing(turn);
        if now() + PAUSE >= until || interrupt.is_set() {
            break;
        }
        let Some(before) = settled(server, interrupt, *blow)? else {
            break;
        };
        rounds.push(round(server, &before, *blow)?);
        interrupt.sleep_until(now() + PAUSE, || {});
    }
    Ok(rounds)
}

/// Reads the pauses from how long publications took; their quantiles by signal.
pub(super) fn pauses(rounds: &mut [Round], delays: &Delays) -> BTreeMap<&'static str, Quantiles> {
    let mut by_signal: BTreeMap<&'static str, Histogram<u64>> = BTreeMap::new();
    for round in rounds {
        round.pause_us = delays.longest(round.at, round.until);
        if let Some(pause) = round.pause_us {
            let of_signal = by_signal.entry(round.signal).or_insert_with(histogram);
            of_signal.saturating_record(pause);
        }
    }
    let by_signal = by_signal.into_iter();
    by_signal
        .map(|(signal, pauses)| (signal, Quantiles::new(&pauses)))
        .collect()
}

/// The cluster once those that will be met have lived long enough; `None` when
/// somebody interrupts.
fn settled(
    server: &Server,
    interrupt: &Interrupt,
    blow: Blow,
) -> Result<Option<Status>, BenchError> {
    let from = now();
    loop {
        let status = ask(server)?;
        let is_young = |node: &&Node| node.uptime_ms < SETTLED_MS;
        let waits = match blow.hit.map(|hit| hit.who) {
            // These take turns, and each has its time.
            Some(Who::Node(_)) | None => false,
            Some(who) => victims(&status, who).iter().any(is_young),
        };
        if !waits || now() > from + WHOLE_TIMEOUT {
            return Ok(Some(status));
        }
        if !interrupt.sleep_until(now() + SECOND / 20, || {}) {
            return Ok(None);
        }
    }
}

fn ask(server: &Server) -> Result<Status, BenchError> {
    server.status()?.ok_or(BenchError::KillBlindly)
}

fn victims(status: &Status, who: Who) -> Vec<&Node> {
    let brokers: Vec<_> = status
        .nodes
        .iter()
        .filter(|node| node.is_broker())
        .collect();
    let one = |nodes: &[&'_ Node], turn: usize| {
        nodes.get(turn % nodes.len().max(1)).map(|n| n.name.clone())
    };
    let name = match who {
        Who::AllBrokers => return brokers,
        Who::Broker(turn) | Who::BrokerAndSuccessor(turn) => one(&brokers, turn),
        Who::Node(turn) => one(&status.nodes.iter().collect::<Vec<_>>(), turn),
    };
    let node = name.and_then(|name| status.node(&name));
    node.into_iter().collect()
}

fn round(server: &Server, before: &Status, blow: Blow) -> Result<Round, BenchError> {
    let at = now();
    let mut round = Round {
        node: String::new(),
        signal: "SCALE",
        replaced_us: None,
        whole_us: None,
        pause_us: None,
        at,
        until: at,
    };
    if let Some(brokers) = blow.scale {
        server.scale_brokers(brokers)?;
        round.node = format!("to {brokers} brokers");
    }
    let mut met = Vec::new();
    if let Some(hit) = blow.hit {
        met = strike(server, before, hit, &mut round)?;
    }
    while now() < at + WHOLE_TIMEOUT && round.whole_us.is_none() {
        let status = ask(server)?;
        let passed = now() - at;
        let is_replaced = |(name, incarnation): &(String, u64)| {
            let there = status.node(name);
            // One that was to go need not come back.
            there.is_none_or(|there| there.incarnation > *incarnation)
        };
        if met.iter().all(is_replaced) {
            round.replaced_us.get_or_insert(passed);
            round.whole_us = status.is_whole().then_some(passed);
        }
        thread::sleep(INTERVAL);
    }
    round.until = now();
    Ok(round)
}

/// Signals whom it is to meet; their names and last incarnations.
fn strike(
    server: &Server,
    before: &Status,
    hit: Hit,
    round: &mut Round,
) -> Result<Vec<(String, u64)>, BenchError> {
    let Hit { stops, who } = hit;
    let signal = if stops { Signal::STOP } else { Signal::KILL };
    round.signal = if stops { "STOP" } else { "KILL" };
    let mut met = Vec::new();
    for node in victims(before, who) {
        strike_one(node, signal)?;
        met.push((node.name.clone(), node.incarnation));
    }
    let mut names = met.iter().map(|(name, _)| name.as_str());
    let mut name = names.by_ref().collect::<Vec<_>>().join(" and ");
    if let (Who::BrokerAndSuccessor(_), Some((node, incarnation))) = (who, met.first_mut()) {
        let until = now() + WHOLE_TIMEOUT;
        while now() < until {
            let status = ask(server)?;
            let next = status.node(node);
            if let Some(next) = next.filter(|next| next.incarnation > *incarnation)
                && next.pid.is_some()
            {
                strike_one(next, signal)?;
                *incarnation = next.incarnation;
                break;
            }
            thread::sleep(INTERVAL);
        }
        name += " twice";
    }
    if !round.node.is_empty() {
        name += &format!(", scaling {}", round.node);
    }
    round.node = name;
    Ok(met)
}

fn strike_one(node: &Node, signal: Signal) -> Result<(), BenchError> {
    let pid = node.pid.and_then(|pid| i32::try_from(pid).ok());
    let pid = pid.and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| BenchError::NoSuchNode(node.name.clone()))?;
    kill_process(pid, signal).map_err(|error| BenchError::io("cannot signal a node")(error.into()))
}

//! Does to a cluster what the script says, and watches what becomes of it.

use std::{collections::BTreeMap, fmt, time::Duration};

use muster_tests::{
    Cluster,
    status::{Node, Status},
};
use rand::Rng;
use rustix::process::Signal;
use serde_json::Value;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use crate::{
    checker::{Circumstances, Outage},
    hostile::{self, Target},
    record::{Time, now},
    script::{Blow, Script, Step, Victim},
};

const LOOK_AGAIN: Duration = Duration::from_millis(30);
/// Longest that a cluster may take to be whole again.
const WHOLE_TIMEOUT: Duration = Duration::from_secs(15);

/// What a step did.
#[derive(Debug)]
pub(crate) struct Round {
    pub(crate) step: Step,
    /// From the blow until the node's successor was started.
    pub(crate) replaced_ms: Option<u64>,
    /// From the blow until everything was ready.
    pub(crate) whole_ms: Option<u64>,
}

/// What happened in a run, apart from what clients saw.
#[derive(Debug, Default)]
pub(crate) struct Course {
    pub(crate) rounds: Vec<Round>,
    pub(crate) circumstances: Circumstances,
    /// Nodes that were replaced although nothing was done to them, because the
    /// machine stood still.
    pub(crate) stalls: Vec<String>,
    pub(crate) problems: Vec<String>,
}

/// A cluster and what is known of it.
#[derive(Debug)]
pub(crate) struct Conductor<'c> {
    cluster: &'c mut Cluster,
    /// By node, its incarnation.
    known: BTreeMap<(String, u32), u64>,
    looked: Time,
    course: Course,
    nuisances: JoinSet<()>,
}

impl<'c> Conductor<'c> {
    pub(crate) async fn new(cluster: &'c mut Cluster) -> Self {
        let status = cluster.status().await.expect("the cluster runs");
        let mut conductor = Self {
            cluster,
            known: incarnations(&status),
            looked: now(),
            course: Course::default(),
            nuisances: JoinSet::new(),
        };
        conductor.list_connections().await;
        conductor
    }

    /// Takes steps until the time is up.
    pub(crate) async fn play<R: Rng>(&mut self, script: Script<R>, seed: u64, until: Instant) {
        for (step, number) in script.zip(0..) {
            if Instant::now() >= until {
                break;
            }
            let target = Target::of(self.cluster);
            hostile::begin(step.nuisance, target, seed ^ number, &mut self.nuisances);
            self.list_connections().await;
            let round = self.strike(step).await;
            self.course.rounds.push(round);
            sleep(step.rest).await;
            self.look_around().await;
        }
    }

    /// Ends the nuisances and says how it went.
    pub(crate) async fn finish(mut self) -> Course {
        self.nuisances.shutdown().await;
        self.look_around().await;
        self.course.circumstances.end = now();
        self.course
    }

    async fn strike(&mut self, step: Step) -> Round {
        let mut round = Round {
            step,
            replaced_ms: None,
            whole_ms: None,
        };
        match step.blow {
            Blow::Kill(victim) => {
                let at = now();
                signal(self.cluster, victim, Signal::KILL).await;
                self.replaced(victim, at, &mut round).await;
            }
            Blow::Hang(victim) => {
                let at = now();
                signal(self.cluster, victim, Signal::STOP).await;
                self.replaced(victim, at, &mut round).await;
            }
            Blow::Pause(victim, pause) => {
                signal(self.cluster, victim, Signal::STOP).await;
                sleep(pause).await;
                signal(self.cluster, victim, Signal::CONT).await;
            }
            Blow::PauseOrchestrator(pause) => {
                self.cluster.signal(Signal::STOP);
                sleep(pause).await;
                self.cluster.signal(Signal::CONT);
            }
            Blow::KillOrchestrator(pause) => {
                let at = now();
                self.cluster.kill_orchestrator().await;
                sleep(pause).await;
                self.cluster.begin_up_again();
                self.taken_over(at, &mut round).await;
            }
        }
        round
    }

    /// Waits until another orchestrator has taken over every node that lived.
    async fn taken_over(&mut self, at: Time, round: &mut Round) {
        let deadline = Instant::now() + WHOLE_TIMEOUT;
        while round.whole_ms.is_none() {
            if Instant::now() >= deadline {
                let problem = format!("not whole {WHOLE_TIMEOUT:?} after {}", round.step.blow);
                self.course.problems.push(problem);
                return;
            }
            if let Ok(status) = self.cluster.status().await {
                round.replaced_ms.get_or_insert(now() - at);
                if status.is_whole() {
                    round.whole_ms = Some(now() - at);
                }
            }
            sleep(LOOK_AGAIN).await;
        }
    }

    /// Waits until the victim has a successor and all are ready.
    async fn replaced(&mut self, victim: Victim, at: Time, round: &mut Round) {
        let before = self.known.get(&victim.name()).copied();
        let deadline = Instant::now() + WHOLE_TIMEOUT;
        while round.whole_ms.is_none() {
            if Instant::now() >= deadline {
                let problem = format!("not whole {WHOLE_TIMEOUT:?} after {}", round.step.blow);
                self.course.problems.push(problem);
                break;
            }
            if let Ok(status) = self.cluster.status().await {
                let node = status.node(victim.role(), victim.slot);
                let is_new = node.map(|node| node.incarnation) != before;
                if is_new {
                    round.replaced_ms.get_or_insert(now() - at);
                }
                if is_new && status.is_whole() {
                    round.whole_ms = Some(now() - at);
                    self.known
                        .extend(node.map(|node| (victim.name(), node.incarnation)));
                }
            }
            sleep(LOOK_AGAIN).await;
        }
        self.course.circumstances.outages.push(Outage {
            is_broker: victim.is_broker,
            slot: victim.slot,
            from: at,
            to: now(),
        });
    }

    /// Finds nodes that ended by themselves.
    async fn look_around(&mut self) {
        let from = std::mem::replace(&mut self.looked, now());
        let status = match self.cluster.status().await {
            Ok(status) => status,
            Err(error) => {
                let problem = format!("the orchestrator does not answer: {error}");
                self.course.problems.push(problem);
                return;
            }
        };
        for node in &status.nodes {
            let name = (node.role.clone(), node.slot);
            let before = self.known.insert(name, node.incarnation);
            if before != Some(node.incarnation) {
                self.course.circumstances.outages.push(Outage {
                    is_broker: node.role == "broker",
                    slot: node.slot,
                    from,
                    to: now(),
                });
                self.judge_end(node);
            }
        }
        self.list_connections().await;
    }

    fn judge_end(&mut self, node: &Node) {
        let exit = node.last_exit.as_deref().unwrap_or_default();
        let text = format!("{} {} ended by itself: {exit}", node.role, node.slot);
        if exit.contains("hung") {
            self.course.stalls.push(text);
        } else {
            self.course.problems.push(text);
        }
    }

    /// Notes which worker has which connection.
    async fn list_connections(&mut self) {
        let output = self
            .cluster
            .verb(&["connections", "--limit", "1000", "--json"])
            .await;
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let list = answer["connections"].as_array().into_iter().flatten();
        let entries = list.filter_map(|entry| {
            let worker = u32::try_from(entry["worker"].as_u64()?).ok()?;
            Some((entry["connection"].as_str()?.to_owned(), worker))
        });
        self.course.circumstances.workers.extend(entries);
    }
}

fn incarnations(status: &Status) -> BTreeMap<(String, u32), u64> {
    let nodes = status.nodes.iter();
    nodes
        .map(|node| ((node.role.clone(), node.slot), node.incarnation))
        .collect()
}

async fn signal(cluster: &Cluster, victim: Victim, signal: Signal) {
    cluster
        .signal_node(victim.role(), victim.slot, signal)
        .await;
}

impl Victim {
    fn role(self) -> &'static str {
        if self.is_broker { "broker" } else { "worker" }
    }

    fn name(self) -> (String, u32) {
        (self.role().to_owned(), self.slot)
    }
}

impl fmt::Display for Blow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill(victim) => write!(f, "SIGKILL of {}-{}", victim.role(), victim.slot),
            Self::Hang(victim) => write!(f, "SIGSTOP of {}-{}", victim.role(), victim.slot),
            Self::Pause(victim, pause) => write!(
                f,
                "SIGSTOP of {}-{} for {} ms",
                victim.role(),
                victim.slot,
                pause.as_millis()
            ),
            Self::KillOrchestrator(pause) => write!(
                f,
                "SIGKILL of the orchestrator, another one {} ms later",
                pause.as_millis()
            ),
            Self::PauseOrchestrator(pause) => {
                write!(
                    f,
                    "SIGSTOP of the orchestrator for {} ms",
                    pause.as_millis()
                )
            }
        }
    }
}

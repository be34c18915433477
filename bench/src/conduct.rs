//! One run: starts the processes, gives the beat, adds up.

use rustix::process::{Pid, Signal, kill_process};

use super::{
    BenchError, Place,
    blows::{self, Blow},
    clock::{Micros, SECOND, micros, now},
    deploy::{self, Order, Steps},
    driver::channel_name,
    hostile::{Hostile, Hostilities},
    interrupt::Interrupt,
    messages::{Outcome, ParentMessage, Window},
    options::{RunOptions, Scenario},
    parts::Parts,
    plan::Plan,
    progress::Progress,
    report::{Memory, Report},
    rounds::{self, Round},
    server::{Server, Usage, usage},
};

/// From the last connection to the first publication.
const START_DELAY: Micros = SECOND / 5;

/// From the last blow's or update's end to the end of the measured time.
const AFTER_EVENTS: Micros = SECOND;
/// Longest that a run takes for each of them; it ends with the last one.
const EVENT_SECONDS: f64 = 60.0;

/// What runs against one server have in common.
#[derive(Debug)]
pub(super) struct Conductor<'o> {
    pub(super) run: &'o RunOptions,
    pub(super) place: &'o Place,
    pub(super) server: Server,
    pub(super) url: String,
    pub(super) interrupt: Interrupt,
    pub(super) progress: Progress,
    blows: Vec<Blow>,
    deploy: Option<Deploy>,
    /// The measured time ends with the last blow or update, and nobody may be
    /// disconnected.
    is_eventful: bool,
}

/// What the cluster is told to do.
#[derive(Debug)]
struct Deploy {
    orders: Vec<Order>,
    pause: Micros,
    /// Of each update.
    arguments: Vec<String>,
}

/// What was measured of the server's processes.
#[derive(Debug, Default)]
struct Measured {
    empty: Option<Usage>,
    held: Option<Usage>,
    processor_us: Option<Micros>,
    killed_at: Option<Micros>,
    rounds: Vec<Round>,
    steps: Option<Steps>,
}

impl<'o> Conductor<'o> {
    pub(super) fn new(run: &'o RunOptions, place: &'o Place) -> Result<Self, BenchError> {
        let (server, url) = Server::find(run, place)?;
        let has_victims = run.kill.is_some() || run.kill_rounds + run.stop_rounds > 0;
        if has_victims && matches!(server, Server::Processes(_)) {
            return Err(BenchError::KillBlindly);
        }
        let interrupt = Interrupt::listen().map_err(BenchError::io("cannot listen to Ctrl-C"))?;
        Ok(Self {
            run,
            place,
            server,
            url,
            interrupt,
            progress: Progress::new(),
            blows: blows::in_turn(run.kill_rounds, run.stop_rounds),
            deploy: None,
            is_eventful: false,
        })
    }

    /// Looks at the cluster for what the scenario does to it.
    pub(super) fn prepare(&mut self, scenario: &Scenario) -> Result<(), BenchError> {
        if matches!(scenario, Scenario::Kill { .. }) {
            let status = self.server.status()?.ok_or(BenchError::KillBlindly)?;
            let brokers = u32::try_from(status.brokers()).unwrap_or(u32::MAX);
            self.blows = blows::of_scenario(scenario, brokers);
            self.is_eventful = true;
        }
        if let Scenario::Deploy {
            pause,
            binary,
            hold,
            parallel,
            ..
        } = scenario
        {
            let mut arguments = vec!["--hold".to_owned(), hold.clone()];
            if let Some(path) = binary {
                arguments.extend(["--binary".to_owned(), path.to_string_lossy().into_owned()]);
            }
            if let Some(parallel) = parallel {
                arguments.extend(["--parallel".to_owned(), parallel.to_string()]);
            }
            self.deploy = Some(Deploy {
                orders: deploy::orders(scenario),
                pause: micros(*pause),
                arguments,
            });
            self.is_eventful = true;
        }
        Ok(())
    }

    /// The measured time in seconds, or the most that it may be.
    fn duration(&self) -> f64 {
        if self.is_eventful {
            let orders = self.deploy.as_ref().map_or(0, |deploy| deploy.orders.len());
            let events = u32::try_from(self.blows.len() + orders).unwrap_or(u32::MAX);
            self.run.duration.max(f64::from(events) * EVENT_SECONDS)
        } else {
            self.run.duration
        }
    }

    /// Starts the processes; `extra` arguments go to each.
    pub(super) fn start_parts(&self, run_id: u64, extra: &[String]) -> Result<Parts, BenchError> {
        let mut arguments = vec!["--run-id".to_owned(), run_id.to_string()];
        if self.run.url.is_none() {
            arguments.extend(["--url".to_owned(), self.url.clone()]);
        }
        arguments.extend_from_slice(extra);
        Parts::start(self.place, self.run.processes, &arguments)
    }

    /// Runs a plan once. The processes make the same one of their arguments,
    /// with `extra`.
    pub(super) fn run(&mut self, plan: &Plan, extra: &[String]) -> Result<Report, BenchError> {
        let mut measured = Measured {
            empty: server_usage(&self.server)?,
            ..Measured::default()
        };
        let run_id = now();
        let mut parts = self.start_parts(run_id, extra)?;
        self.progress
            .show(&format!("connecting {} clients", plan.roles.len()));
        let connects = parts.connected()?;
        if self.interrupt.is_set() {
            return Err(BenchError::Interrupted);
        }
        let hostile = Hostile::start(self.run, &self.url, &channel_name(run_id, 0))?;
        let at = now() + START_DELAY;
        let mut window = Window {
            from: at + micros(self.run.warmup),
            to: at + micros(self.run.warmup + self.duration()),
        };
        let end = window.to;
        parts.tell(&ParentMessage::Start { at, window, end })?;
        if !self.measure(at, window, &mut measured)? {
            window.to = now().max(window.from + 1);
            parts.tell(&ParentMessage::Stop { at: window.to })?;
        }
        let hostilities = hostile.finish();
        self.progress.show("waiting for what is under way");
        let sent = parts.published(plan)?;
        let until = now() + micros(self.run.settle);
        parts.tell(&ParentMessage::Settle { sent, until })?;
        let outcomes = parts.outcomes()?;
        self.progress.clear();
        let mut report = Report::new(window, plan.deliveries_per_second(), connects, &outcomes);
        measured.add_to(&mut report, hostilities, &outcomes);
        report.must_stay_connected = self.is_eventful;
        Ok(report)
    }

    /// Waits for the window and reads the server's counters at both of its ends.
    /// False if it ended early.
    fn measure(
        &mut self,
        at: Micros,
        window: Window,
        measured: &mut Measured,
    ) -> Result<bool, BenchError> {
        let (interrupt, progress) = (&self.interrupt, &mut self.progress);
        let wait = |progress: &mut Progress, until, what, span| {
            interrupt.sleep_until(until, || progress.show_time(what, span));
        };
        wait(progress, window.from, "warming up", (at, window.from));
        let pids = self.server.pids()?;
        let before = usage(&pids);
        let span = (window.from, window.to);
        if let Some(victim) = &self.run.kill {
            wait(
                progress,
                window.from + (window.to - window.from) / 2,
                "measuring",
                span,
            );
            measured.killed_at = Some(kill(&self.server, victim)?);
        }
        let (blows, is_eventful) = (&self.blows, self.is_eventful);
        measured.rounds = rounds::run(&self.server, interrupt, blows, window.to, |turn| {
            if is_eventful {
                progress.show(&format!("blow {} of {}", turn + 1, blows.len()));
            }
        })?;
        if let Some(deploy) = &self.deploy {
            let orders = (&deploy.orders[..], deploy.pause);
            let steps = deploy::run(&self.server, interrupt, orders, &deploy.arguments, |turn| {
                let all = deploy.orders.len();
                progress.show(&format!("update or change of size {} of {all}", turn + 1));
            })?;
            measured.steps = Some(steps);
        }
        let end = if is_eventful {
            now() + AFTER_EVENTS
        } else {
            window.to
        };
        interrupt.sleep_until(end, || {
            if !is_eventful {
                progress.show_time("measuring", span);
            }
        });
        let after = usage(&pids);
        // A killed process takes its counter with it, and another one its memory.
        let nobody_died =
            self.run.kill.is_none() && measured.rounds.is_empty() && measured.steps.is_none();
        if nobody_died {
            measured.held = server_usage(&self.server)?;
        }
        measured.processor_us = (nobody_died && !pids.is_empty())
            .then(|| after.processor_us.saturating_sub(before.processor_us));
        Ok(!is_eventful && !self.interrupt.is_set())
    }
}

impl Measured {
    fn add_to(self, report: &mut Report, hostilities: Hostilities, outcomes: &[Outcome]) {
        report.set_server_processor(self.processor_us);
        report.set_killed(self.killed_at);
        report.set_events((self.rounds, self.steps), outcomes);
        report.hostilities = hostilities;
        if let (Some(empty), Some(held)) = (self.empty, self.held) {
            report.memory = Some(Memory::new(
                empty.pss_bytes,
                held.pss_bytes,
                report.connects.ready,
            ));
        }
    }
}

/// Nothing if nothing is known of the server's processes.
pub(super) fn server_usage(server: &Server) -> Result<Option<Usage>, BenchError> {
    let pids = server.pids()?;
    Ok((!pids.is_empty()).then(|| usage(&pids)))
}

fn kill(server: &Server, victim: &str) -> Result<Micros, BenchError> {
    let none = || BenchError::NoSuchNode(victim.into());
    let status = server.status()?.ok_or_else(none)?;
    let pid = status.node(victim).and_then(|node| node.pid);
    let pid = pid.and_then(|pid| i32::try_from(pid).ok());
    let pid = pid.and_then(Pid::from_raw).ok_or_else(none)?;
    let at = now();
    kill_process(pid, Signal::KILL)
        .map_err(|error| BenchError::io("cannot kill the process")(error.into()))?;
    Ok(at)
}

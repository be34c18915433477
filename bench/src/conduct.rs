//! The parent: starts the processes, gives the beat, adds up.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    thread,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

use super::{
    BenchError, Place,
    clock::{Micros, SECOND, micros, now},
    driver::channel_name,
    hostile::Hostile,
    messages::{ChildMessage, Connected, Outcome, ParentMessage, Sent, Window},
    options::{Options, RunOptions},
    plan::Plan,
    report::{self, Connects, Memory, Report},
    rounds::{self, Round},
    server::{Server, Usage, usage},
};

/// From the last connection to the first publication.
const START_DELAY: Micros = SECOND / 5;

/// A process with a share of the connections; killed when dropped.
#[derive(Debug)]
struct Part {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

/// What was measured of the cluster's processes.
#[derive(Debug, Default)]
struct Measured {
    empty: Option<Usage>,
    held: Option<Usage>,
    processor_us: Option<Micros>,
    killed_at: Option<Micros>,
    rounds: Vec<Round>,
}

/// Runs the scenario and prints the report.
pub(super) fn run(options: &Options, place: &Place) -> Result<(), BenchError> {
    let plan = Plan::new(&options.scenario);
    let run = &options.run;
    let (server, url) = Server::find(run, place)?;
    let has_victims = run.kill.is_some() || run.kill_rounds + run.stop_rounds > 0;
    if has_victims && matches!(server, Server::Processes(_)) {
        return Err(BenchError::KillBlindly);
    }
    let mut measured = Measured {
        empty: server_usage(&server)?,
        ..Measured::default()
    };

    let run_id = now();
    let mut parts = start_parts(options, place, &url, run_id)?;
    let connects = connected(&mut parts)?;
    let hostile = Hostile::start(run, &url, &channel_name(run_id, 0))?;
    let at = now() + START_DELAY;
    let window = Window {
        from: at + micros(run.warmup),
        to: at + micros(run.warmup + run.duration),
    };
    tell_all(
        &mut parts,
        &ParentMessage::Start {
            at,
            window,
            end: window.to,
        },
    )?;
    measure(run, window, &server, &mut measured)?;

    let hostilities = hostile.finish();
    let sent = published(&mut parts, &plan)?;
    let until = now() + micros(run.settle);
    tell_all(&mut parts, &ParentMessage::Settle { sent, until })?;
    let outcomes = outcomes(&mut parts)?;
    for part in &mut parts {
        let _ = part.child.wait();
    }

    let mut report = Report::new(
        run.duration,
        plan.deliveries_per_second(),
        connects,
        &outcomes,
    );
    report.set_server_processor(measured.processor_us);
    report.set_killed(measured.killed_at);
    report.rounds = measured.rounds;
    report.hostilities = hostilities;
    if let (Some(empty), Some(held)) = (measured.empty, measured.held) {
        report.memory = Some(Memory::new(
            empty.pss_bytes,
            held.pss_bytes,
            report.connects.ready,
        ));
    }
    report::print(&report, run.json).map_err(BenchError::io("cannot print the report"))?;
    report.is_sound().then_some(()).ok_or(BenchError::Unsound)
}

/// Waits for the window and reads the server's counters at both of its ends.
fn measure(
    run: &RunOptions,
    window: Window,
    server: &Server,
    measured: &mut Measured,
) -> Result<(), BenchError> {
    sleep_until(window.from);
    let pids = server.pids()?;
    let before = usage(&pids);
    if let Some(victim) = &run.kill {
        sleep_until(window.from + (window.to - window.from) / 2);
        measured.killed_at = Some(kill(server, victim)?);
    }
    measured.rounds = rounds::run(server, (run.kill_rounds, run.stop_rounds), window.to)?;
    sleep_until(window.to);
    let after = usage(&pids);
    // A killed process takes its counter with it, and another one its memory.
    measured.held = server_usage(server)?;
    measured.processor_us = (run.kill.is_none() && measured.rounds.is_empty() && !pids.is_empty())
        .then(|| after.processor_us.saturating_sub(before.processor_us));
    Ok(())
}

/// Nothing if nothing is known of the server's processes.
fn server_usage(server: &Server) -> Result<Option<Usage>, BenchError> {
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

fn sleep_until(at: Micros) {
    thread::sleep(Duration::from_micros(at.saturating_sub(now())));
}

fn start_parts(
    options: &Options,
    place: &Place,
    url: &str,
    run_id: u64,
) -> Result<Vec<Part>, BenchError> {
    (0..options.run.processes)
        .map(|index| {
            let mut command = Command::new(&place.program);
            command
                .args(std::env::args_os().skip(1))
                .args(["--child", &index.to_string()])
                .args(["--run-id", &run_id.to_string()]);
            if options.run.url.is_none() {
                command.args(["--url", url]);
            }
            let mut child = command
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .map_err(BenchError::io("cannot start a process"))?;
            let input = child.stdin.take().expect("it was piped");
            let output = BufReader::new(child.stdout.take().expect("it was piped"));
            Ok(Part {
                child,
                input,
                output,
            })
        })
        .collect()
}

fn connected(parts: &mut [Part]) -> Result<Connects, BenchError> {
    let mut all: Vec<Connected> = Vec::new();
    for part in parts {
        match part.hear()? {
            ChildMessage::Connected(connected) => all.push(connected),
            other @ (ChildMessage::Published(_) | ChildMessage::Outcome(_)) => {
                return Err(unexpected(&other));
            }
        }
    }
    Ok(Connects::new(&all))
}

/// Publications by channel and publisher.
fn published(parts: &mut [Part], plan: &Plan) -> Result<Vec<Vec<Sent>>, BenchError> {
    let publishers = plan.publishers_per_channel as usize;
    let mut sent = vec![vec![Sent::default(); publishers]; plan.channels as usize];
    for part in parts {
        match part.hear()? {
            ChildMessage::Published(list) => {
                for (channel, publisher, account) in list {
                    sent[channel as usize][publisher as usize] = account;
                }
            }
            other @ (ChildMessage::Connected(_) | ChildMessage::Outcome(_)) => {
                return Err(unexpected(&other));
            }
        }
    }
    Ok(sent)
}

fn outcomes(parts: &mut [Part]) -> Result<Vec<Outcome>, BenchError> {
    let mut outcomes = Vec::new();
    for part in parts {
        match part.hear()? {
            ChildMessage::Outcome(outcome) => outcomes.push(*outcome),
            other @ (ChildMessage::Connected(_) | ChildMessage::Published(_)) => {
                return Err(unexpected(&other));
            }
        }
    }
    Ok(outcomes)
}

fn unexpected(message: &ChildMessage) -> BenchError {
    BenchError::Message(format!("{message:?}").chars().take(200).collect())
}

fn tell_all(parts: &mut [Part], message: &ParentMessage) -> Result<(), BenchError> {
    let mut line =
        serde_json::to_vec(message).map_err(|error| BenchError::Message(error.to_string()))?;
    line.push(b'\n');
    for part in parts {
        part.input
            .write_all(&line)
            .map_err(BenchError::io("cannot write to a process"))?;
    }
    Ok(())
}

impl Part {
    fn hear(&mut self) -> Result<ChildMessage, BenchError> {
        let mut line = String::new();
        self.output
            .read_line(&mut line)
            .map_err(BenchError::io("cannot read from a process"))?;
        serde_json::from_str(&line).map_err(|error| BenchError::Message(error.to_string()))
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // After a whole run it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

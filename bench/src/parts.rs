//! The processes that share a run's connections.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::process::CommandExt as _,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use serde::Serialize;

use super::{
    BenchError, Place,
    messages::{ChildMessage, Connected, Outcome, Sent},
    plan::Plan,
    report::Connects,
};

/// All processes of one run; killed when dropped.
#[derive(Debug)]
pub(super) struct Parts(Vec<Part>);

#[derive(Debug)]
struct Part {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Parts {
    /// Starts `count` processes with this program's own arguments and `extra`.
    pub(super) fn start(place: &Place, count: u32, extra: &[String]) -> Result<Self, BenchError> {
        let parts = (0..count).map(|index| Part::start(place, index, extra));
        Ok(Self(parts.collect::<Result<_, _>>()?))
    }

    pub(super) fn tell(&mut self, message: &impl Serialize) -> Result<(), BenchError> {
        let mut line =
            serde_json::to_vec(message).map_err(|error| BenchError::Message(error.to_string()))?;
        line.push(b'\n');
        for part in &mut self.0 {
            part.input
                .write_all(&line)
                .map_err(BenchError::io("cannot write to a process"))?;
        }
        Ok(())
    }

    /// Waits until all connections stand.
    pub(super) fn connected(&mut self) -> Result<Connects, BenchError> {
        let mut all: Vec<Connected> = Vec::new();
        for part in &mut self.0 {
            match part.hear()? {
                ChildMessage::Connected(connected) => all.push(connected),
                other @ (ChildMessage::Published(_) | ChildMessage::Outcome(_)) => {
                    return Err(unexpected(&other));
                }
            }
        }
        Ok(Connects::new(&all))
    }

    /// Publications by channel and publisher, once all are answered.
    pub(super) fn published(&mut self, plan: &Plan) -> Result<Vec<Vec<Sent>>, BenchError> {
        let publishers = plan.publishers_per_channel as usize;
        let mut sent = vec![vec![Sent::default(); publishers]; plan.channels as usize];
        for part in &mut self.0 {
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

    /// What all saw, at the end.
    pub(super) fn outcomes(mut self) -> Result<Vec<Outcome>, BenchError> {
        let mut outcomes = Vec::new();
        for part in &mut self.0 {
            match part.hear()? {
                ChildMessage::Outcome(outcome) => outcomes.push(*outcome),
                other @ (ChildMessage::Connected(_) | ChildMessage::Published(_)) => {
                    return Err(unexpected(&other));
                }
            }
        }
        for part in &mut self.0 {
            let _ = part.child.wait();
        }
        Ok(outcomes)
    }
}

fn unexpected(message: &ChildMessage) -> BenchError {
    BenchError::Message(format!("{message:?}").chars().take(200).collect())
}

impl Part {
    fn start(place: &Place, index: u32, extra: &[String]) -> Result<Self, BenchError> {
        // The processes parse what the parent parsed, so that both make the same
        // plan of it.
        let mut child = Command::new(&place.program)
            .args(std::env::args_os().skip(1))
            .args(["--child", &index.to_string()])
            .args(extra)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Ctrl-C is for the parent, which tells the others.
            .process_group(0)
            .spawn()
            .map_err(BenchError::io("cannot start a process"))?;
        let input = child.stdin.take().expect("it was piped");
        let output = BufReader::new(child.stdout.take().expect("it was piped"));
        Ok(Self {
            child,
            input,
            output,
        })
    }

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

//! A look at a program before anything is started from it: whether it runs at
//! all, takes the configuration, and speaks what the others speak.
//!
//! The program is asked itself, with the hidden verb `probe`.

use std::{
    ops::RangeInclusive,
    path::Path,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use muster_proto::{CONTROL_VERSION, HANDOVER_VERSION, LINK_VERSION};
use muster_wire::snapshot::SNAPSHOT_VERSIONS;
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    process::Command,
    time::timeout,
};

use crate::{program::Program, spawn};

/// Longest that a program may take to answer.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of an answer that are read.
const ANSWER_BYTES_MAX: u64 = 64 << 10;
/// Bytes of what a program complains about that people are shown.
const COMPLAINT_BYTES_MAX: usize = 1024;

/// What a release speaks: the answer to `probe`. Later releases may add members.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Release {
    /// For people.
    release: String,
    /// Versions of what it says to orchestrators, brokers and other workers.
    control: u32,
    link: u32,
    hand_over: u32,
    /// Versions of snapshots that it can write and read, both included.
    writes_snapshots: (u32, u32),
    reads_snapshots: (u32, u32),
}

/// Why nothing is started from a program.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum ProbeError {
    #[error("it cannot be run: {0}")]
    Start(String),
    #[error("it does not answer within {PROBE_TIMEOUT:?} when it is asked what it speaks")]
    Timeout,
    #[error("it refuses the cluster's configuration: {0}")]
    Configuration(String),
    #[error("it does not say what it speaks, so it is no orchestrator of a later release: {0}")]
    Exit(String),
    #[error("it cannot take the place of this orchestrator: {0}")]
    Takeover(String),
    #[error("what it says about itself makes no sense: {0}")]
    Answer(String),
    #[error("it speaks version {theirs} of {what}, {whose} {ours}")]
    Version {
        what: &'static str,
        theirs: u32,
        whose: &'static str,
        ours: u32,
    },
    #[error("it reads snapshots of version {}, the workers that run write {}", span(*.reads), span(*.writes))]
    Snapshots {
        reads: (u32, u32),
        writes: (u32, u32),
    },
}

impl Release {
    /// This one.
    pub(crate) fn own() -> Self {
        let snapshots = (*SNAPSHOT_VERSIONS.start(), *SNAPSHOT_VERSIONS.end());
        Self {
            release: env!("CARGO_PKG_VERSION").to_owned(),
            control: CONTROL_VERSION,
            link: LINK_VERSION,
            hand_over: HANDOVER_VERSION,
            writes_snapshots: snapshots,
            reads_snapshots: snapshots,
        }
    }

    /// What `probe` prints.
    pub(crate) fn to_json(&self) -> String {
        let json = serde_json::to_string(self);
        json.expect("text and numbers are always JSON") + "\n"
    }

    /// Whether workers of this release can take the place of those of `earlier`
    /// in a cluster of `orchestrator`; then what is to be known about it.
    ///
    /// # Errors
    ///
    /// What does not fit.
    pub(crate) fn fits(
        &self,
        earlier: &Self,
        orchestrator: &Self,
    ) -> Result<Option<String>, ProbeError> {
        let orchestrators = "this orchestrator";
        for (what, theirs, whose, ours) in [
            (
                "the control protocol",
                self.control,
                orchestrators,
                orchestrator.control,
            ),
            ("links", self.link, "the brokers", orchestrator.link),
            (
                "the hand-over",
                self.hand_over,
                "the workers that run",
                earlier.hand_over,
            ),
        ] {
            if theirs != ours {
                return Err(ProbeError::Version {
                    what,
                    theirs,
                    whose,
                    ours,
                });
            }
        }
        if !meet(earlier.writes_snapshots, self.reads_snapshots) {
            return Err(ProbeError::Snapshots {
                reads: self.reads_snapshots,
                writes: earlier.writes_snapshots,
            });
        }
        if meet(self.writes_snapshots, earlier.reads_snapshots) {
            return Ok(None);
        }
        Ok(Some(format!(
            "connections cannot go back: the new program writes snapshots of version {}, the \
             earlier one reads {}",
            span(self.writes_snapshots),
            span(earlier.reads_snapshots)
        )))
    }
}

/// Asks a program whether workers can be started from it in the place of those
/// that `earlier` was started for; then what is to be known about it.
///
/// # Errors
///
/// Why not.
pub(crate) async fn look(
    program: &Program,
    earlier: &Program,
    config_file: &Path,
) -> Result<Option<String>, ProbeError> {
    let own = Release::own();
    let release = ask(program.executable(), config_file).await?;
    let earlier = match earlier.named() {
        // It has been asked when it came.
        Some(_) => ask(earlier.executable(), config_file).await?,
        None => own.clone(),
    };
    release.fits(&earlier, &own)
}

async fn ask(executable: &Path, config_file: &Path) -> Result<Release, ProbeError> {
    let mut command = Command::new(executable);
    command
        .arg("probe")
        .arg("--config")
        .arg(config_file)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    spawn::without_settings(&mut command);
    let start = |error: std::io::Error| ProbeError::Start(error.to_string());
    let mut child = command.spawn().map_err(start)?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let answer = async { tokio::join!(read(stdout), read(stderr), child.wait()) };
    let (answer, complaint, status) = timeout(PROBE_TIMEOUT, answer)
        .await
        .map_err(|_| ProbeError::Timeout)?;
    judge(status.map_err(start)?, &answer, &complaint)
}

fn judge(status: ExitStatus, answer: &[u8], complaint: &[u8]) -> Result<Release, ProbeError> {
    if !status.success() {
        let said = said(complaint);
        let is_configuration = status.code() == Some(muster_daemon::exit::CONFIG.into());
        return Err(if is_configuration {
            ProbeError::Configuration(said)
        } else {
            let status = spawn::describe(status);
            ProbeError::Exit(if said.is_empty() {
                status
            } else {
                format!("{status}: {said}")
            })
        });
    }
    serde_json::from_slice(answer).map_err(|error| ProbeError::Answer(error.to_string()))
}

/// What there is of it, up to its end.
async fn read(from: Option<impl AsyncRead + Unpin>) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(from) = from {
        // One that breaks off is judged by what came.
        let _ = from.take(ANSWER_BYTES_MAX).read_to_end(&mut bytes).await;
    }
    bytes
}

/// The first line of a complaint, without what every error begins with.
fn said(complaint: &[u8]) -> String {
    let text = String::from_utf8_lossy(complaint);
    let line = text.lines().next().unwrap_or_default().trim();
    let line = line.strip_prefix("error: ").unwrap_or(line);
    line.chars().take(COMPLAINT_BYTES_MAX).collect()
}

/// Whether there is a version that is written and read.
fn meet(writes: (u32, u32), reads: (u32, u32)) -> bool {
    writes.0 <= reads.1 && reads.0 <= writes.1
}

fn span((from, to): (u32, u32)) -> String {
    let range: RangeInclusive<u32> = from..=to;
    if range.start() == range.end() {
        from.to_string()
    } else {
        format!("{from} to {to}")
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;

    fn changed(change: impl FnOnce(&mut Release)) -> Release {
        let mut release = Release::own();
        change(&mut release);
        release
    }

    fn misfit(release: &Release) -> String {
        let own = Release::own();
        release.fits(&own, &own).unwrap_err().to_string()
    }

    #[test]
    fn a_release_fits_itself_and_one_that_writes_the_version_before() {
        let own = Release::own();
        assert_eq!(own.fits(&own, &own), Ok(None));
        let next = changed(|next| {
            next.reads_snapshots = (own.writes_snapshots.1, own.writes_snapshots.1 + 1);
        });
        assert_eq!(next.fits(&own, &own), Ok(None));
    }

    #[test]
    fn what_speaks_something_else_is_named_with_both_versions() {
        for (release, reason) in [
            (
                changed(|one| one.control += 1),
                "of the control protocol, this orchestrator 2",
            ),
            (
                changed(|one| one.link = 9),
                "version 9 of links, the brokers 1",
            ),
            (
                changed(|one| one.hand_over = 7),
                "version 7 of the hand-over, the workers that run 1",
            ),
            (
                changed(|one| one.reads_snapshots = (8, 9)),
                "it reads snapshots of version 8 to 9, the workers that run write 1 to 2",
            ),
        ] {
            let error = misfit(&release);
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn a_release_from_which_nothing_can_go_back_fits_with_a_warning() {
        let own = Release::own();
        let newer = changed(|one| {
            (one.writes_snapshots, one.reads_snapshots) = ((9, 9), (2, 9));
        });
        let note = newer.fits(&own, &own).unwrap().unwrap();
        assert!(note.contains("writes snapshots of version 9"), "{note}");
    }

    #[test]
    fn an_answer_is_read_as_it_was_said_and_with_members_of_later_releases() {
        let own = Release::own();
        let exit = ExitStatus::from_raw(0);
        let read = judge(exit, own.to_json().as_bytes(), b"");
        assert_eq!(read, Ok(own.clone()));
        let later = own.to_json().replacen('{', "{\"later\":[1],", 1);
        assert_eq!(judge(exit, later.as_bytes(), b""), Ok(own));
        for nonsense in ["", "{}", "hello", "{\"control\":-1}"] {
            let error = judge(exit, nonsense.as_bytes(), b"").unwrap_err();
            assert!(matches!(error, ProbeError::Answer(_)), "{nonsense}");
        }
    }

    #[test]
    fn a_program_that_refuses_the_configuration_says_why() {
        let exit = ExitStatus::from_raw(78 << 8);
        let error = judge(exit, b"", b"error: invalid configuration: a.b\nmore").unwrap_err();
        assert_eq!(
            error.to_string(),
            "it refuses the cluster's configuration: invalid configuration: a.b"
        );
        let error = judge(ExitStatus::from_raw(1 << 8), b"", b"").unwrap_err();
        assert!(error.to_string().ends_with(": exit code 1"), "{error}");
        let error = judge(ExitStatus::from_raw(11), b"", b"oh\n").unwrap_err();
        assert!(error.to_string().contains("SIGSEGV): oh"), "{error}");
    }
}

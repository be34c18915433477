//! What `journal check` is asked and what it says.

use std::{
    fmt::Write as _,
    io::{self, BufRead as _, IsTerminal as _, Write as _},
    path::PathBuf,
};

use clap::Subcommand;
use muster_daemon::exit;
use serde::Serialize;

use crate::cli::OutputArgs;

#[derive(Debug, Subcommand)]
pub(crate) enum JournalVerb {
    /// Read every shard's journal and say what is in it and what is damaged.
    Check(CheckArgs),
}

#[derive(Debug, clap::Args)]
pub(crate) struct CheckArgs {
    /// The journal's directory [default: that of the configuration and the runtime
    /// directory].
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
    /// Put files aside that keep a broker from opening its shard; nothing is
    /// deleted. Says what it would do and asks before it does it.
    #[arg(long)]
    pub(crate) repair: bool,
    /// Do not ask.
    #[arg(long, requires = "repair")]
    pub(crate) yes: bool,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// Why the journal is not as it should be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JournalError {
    #[error(
        "{count} shards are damaged: brokers do not open them; --repair puts the files at fault \
         aside"
    )]
    Damaged { count: usize },
    #[error("nothing was changed: --repair asks on a terminal, and there is none; or pass --yes")]
    NoTerminal,
    #[error("nothing was changed")]
    Declined,
    #[error("cannot ask")]
    Ask(#[source] io::Error),
}

impl JournalError {
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::NoTerminal => exit::USAGE,
            Self::Damaged { .. } | Self::Declined | Self::Ask(_) => exit::FAILURE,
        }
    }
}

/// What was found, and done.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    dir: PathBuf,
    shards: Vec<Shard>,
    /// What was put aside, by its new names.
    repaired: Option<Vec<PathBuf>>,
}

/// What there is of a shard.
#[derive(Debug, Serialize)]
pub(crate) struct Shard {
    pub(crate) shard: usize,
    pub(crate) segments: usize,
    pub(crate) bytes: u64,
    pub(crate) channels: usize,
    pub(crate) publications: u64,
    pub(crate) epoch: u64,
    pub(crate) torn_bytes: u64,
    pub(crate) begins_anew: bool,
    pub(crate) damage: Option<Damage>,
}

/// What keeps a broker from opening a shard.
#[derive(Debug, Serialize)]
pub(crate) struct Damage {
    pub(crate) file: PathBuf,
    pub(crate) offset: u64,
    pub(crate) reason: String,
    /// What is to be put aside.
    pub(crate) aside: Vec<PathBuf>,
    pub(crate) begins_anew: bool,
}

impl Report {
    pub(crate) fn new(dir: PathBuf, shards: Vec<Shard>) -> Self {
        Self {
            dir,
            shards,
            repaired: None,
        }
    }

    pub(crate) fn is_damaged(&self) -> bool {
        self.damages().next().is_some()
    }

    pub(crate) fn repaired(&mut self, renamed: Vec<PathBuf>) {
        self.repaired = Some(renamed);
    }

    /// Says what a repair would do, and asks whether it is to be done.
    pub(crate) fn confirm(&self, is_sure: bool) -> Result<(), JournalError> {
        if is_sure {
            return Ok(());
        }
        if !(io::stdin().is_terminal() && io::stderr().is_terminal()) {
            return Err(JournalError::NoTerminal);
        }
        let question = format!("{}Put these files aside? [y/N] ", self.plan());
        let mut stderr = io::stderr();
        let mut answer = String::new();
        stderr
            .write_all(question.as_bytes())
            .and_then(|()| stderr.flush())
            .and_then(|()| io::stdin().lock().read_line(&mut answer))
            .map_err(JournalError::Ask)?;
        match answer.trim() {
            "y" | "Y" | "yes" => Ok(()),
            _ => Err(JournalError::Declined),
        }
    }

    pub(crate) fn outcome(&self) -> Result<(), JournalError> {
        match (&self.repaired, self.damages().count()) {
            (None, count @ 1..) => Err(JournalError::Damaged { count }),
            (None, 0) | (Some(_), _) => Ok(()),
        }
    }

    pub(crate) fn show(&self, json: bool) -> String {
        if json {
            return serde_json::to_string(self).expect("text and numbers are always JSON") + "\n";
        }
        let mut text = format!("{}\n", self.dir.display());
        let used = self.shards.iter().filter(|shard| shard.segments > 0);
        text.push_str("SHARD  SEGMENTS        BYTES  CHANNELS  PUBLICATIONS  EPOCH  TORN\n");
        for shard in used {
            let Shard {
                segments,
                bytes,
                channels,
                publications,
                epoch,
                torn_bytes,
                ..
            } = shard;
            let _infallible = write!(
                text,
                "{:>5}  {segments:>8}  {bytes:>11}  {channels:>8}  {publications:>12}  \
                 {epoch:>5}  {torn_bytes:>4}",
                shard.shard
            );
            if shard.begins_anew {
                text.push_str("  begins anew: the machine went down");
            }
            text.push('\n');
        }
        text.push_str(&self.plan());
        for aside in self.repaired.iter().flatten() {
            let _infallible = writeln!(text, "Put aside as {}.", aside.display());
        }
        if !self.is_damaged() {
            text.push_str("No damage.\n");
        }
        text
    }

    /// What is damaged, and what a repair makes of it.
    fn plan(&self) -> String {
        let mut text = String::new();
        for (shard, damage) in self.damages() {
            let Damage {
                file,
                offset,
                reason,
                aside,
                begins_anew,
            } = damage;
            let files: Vec<String> = aside.iter().map(|it| it.display().to_string()).collect();
            let after = match begins_anew {
                true => "its channels begin anew, each with a new generation",
                false => "its channels go on, without what those files retain",
            };
            let _infallible = writeln!(
                text,
                "Shard {shard}: {} is damaged at byte {offset}: {reason}.\n  A repair puts aside \
                 {}; {after}.",
                file.display(),
                files.join(", ")
            );
        }
        text
    }

    fn damages(&self) -> impl Iterator<Item = (usize, &Damage)> {
        let shards = self.shards.iter();
        shards.filter_map(|shard| Some((shard.shard, shard.damage.as_ref()?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(begins_anew: bool) -> Report {
        let shard = Shard {
            shard: 7,
            segments: 2,
            bytes: 900,
            channels: 1,
            publications: 3,
            epoch: 4,
            torn_bytes: 0,
            begins_anew: false,
            damage: Some(Damage {
                file: "/j/shard-007/2.segment".into(),
                offset: 64,
                reason: "the record's checksum is wrong".into(),
                aside: vec!["/j/shard-007/2.segment".into()],
                begins_anew,
            }),
        };
        Report::new("/j".into(), vec![shard])
    }

    #[test]
    fn damage_is_named_with_its_place_and_what_a_repair_costs() {
        let text = report(true).show(false);
        let place = "Shard 7: /j/shard-007/2.segment is damaged at byte 64: the record's checksum";
        assert!(text.contains(place), "{text}");
        assert!(text.contains("each with a new generation"), "{text}");
        assert!(report(false).show(false).contains("go on, without what"));
    }

    #[test]
    fn damage_is_a_failure_until_it_is_repaired() {
        let mut report = report(true);
        assert_eq!(report.outcome().unwrap_err().exit_code(), exit::FAILURE);
        report.repaired(vec!["/j/shard-007/2.aside-1".into()]);
        assert!(report.outcome().is_ok());
        assert!(
            report
                .show(false)
                .contains("Put aside as /j/shard-007/2.aside-1.")
        );
        let json: serde_json::Value = serde_json::from_str(&report.show(true)).unwrap();
        assert_eq!(json["shards"][0]["damage"]["offset"], 64);
        assert_eq!(json["repaired"][0], "/j/shard-007/2.aside-1");
    }
}

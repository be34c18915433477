//! Programs that a cluster is updated to.

use std::{
    fs::{self, File},
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Output, Stdio},
};

use muster_tests::{Cluster, orchestrator};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use tempfile::TempDir;
use tokio::process::Child;

/// A program that is started instead of the orchestrator's.
pub(super) struct Program {
    dir: TempDir,
    pub(super) path: PathBuf,
}

/// Where a program waits until it is let through.
pub(super) struct Gate(File);

impl Program {
    /// A script; `$here` is a directory of its own.
    pub(super) fn script(text: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("new");
        let here = dir.path().display();
        fs::write(&path, format!("#!/bin/sh\nhere='{here}'\n{text}\n"))
            .expect("the script is written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("it may be run");
        Self { dir, path }
    }

    /// The orchestrator's, but for what these lines of a script do first.
    pub(super) fn after(lines: &str) -> Self {
        let binary = orchestrator::binary().display();
        Self::script(&format!("{lines}\nexec '{binary}' \"$@\""))
    }

    /// A release with a fault.
    pub(super) fn unfit(fault: &str) -> Self {
        Self::unfit_after(fault, "")
    }

    /// The same, but for what these lines do first.
    pub(super) fn unfit_after(fault: &str, lines: &str) -> Self {
        Self::script(&format!(
            "export MUSTER_TEST_FAULT={fault} MUSTER_TEST_PROGRAM='{}'\n{lines}\nexec '{}' \"$@\"",
            orchestrator::binary().display(),
            env!("CARGO_BIN_EXE_unfit"),
        ))
    }

    /// The orchestrator's, at another place.
    pub(super) fn copy() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("copy");
        fs::copy(orchestrator::binary(), &path).expect("the program is copied");
        Self { dir, path }
    }

    /// Its directory, which is `$here` for a script.
    pub(super) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A gate of this name in it: `read _ < "$here/NAME"`.
    pub(super) fn gate(&self, name: &str) -> Gate {
        let path = self.dir().join(name);
        mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("a pipe is made");
        // Of both ends, so neither side waits for the other to come.
        let pipe = File::options().read(true).write(true).open(&path);
        Gate(pipe.expect("the pipe is there"))
    }

    fn verb<'a>(&'a self, arguments: &[&'a str]) -> Vec<&'a str> {
        let path = self.path.to_str().expect("the path is text");
        [&["update", "--binary", path], arguments].concat()
    }

    pub(super) async fn update(&self, cluster: &Cluster, arguments: &[&str]) -> Output {
        cluster.verb(&self.verb(arguments)).await
    }

    /// The same, for one who does more meanwhile.
    pub(super) fn begin(&self, cluster: &Cluster, arguments: &[&str]) -> Child {
        begin(cluster, &self.verb(arguments))
    }
}

impl Gate {
    /// Lets one through.
    pub(super) fn open(&mut self) {
        self.0.write_all(b"go\n").expect("the pipe has room");
    }
}

/// Runs a verb of the orchestrator on this cluster.
pub(super) fn begin(cluster: &Cluster, verb: &[&str]) -> Child {
    let mut command = orchestrator::command();
    command.arg("--runtime-dir").arg(cluster.runtime_dir());
    command.args(verb);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().expect("the orchestrator runs")
}

/// What the nodes run without an update.
pub(super) fn own() -> PathBuf {
    fs::canonicalize(orchestrator::binary()).expect("it is there")
}

//! Programs of other languages that some tests need, and where they put things.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use rustix::fs::{FlockOperation, flock};

use crate::orchestrator::profile_dir;

/// Whether all of `programs` can be run. If not, the test `name` is skipped and
/// says so.
///
/// # Panics
/// When one is missing and `CI` is set: there nothing may be skipped.
#[must_use]
pub fn available(name: &str, programs: &[&str]) -> bool {
    let runs = |program: &&str| {
        let quiet = || Stdio::null();
        let mut command = Command::new(program);
        command
            .arg("--version")
            .stdin(quiet())
            .stdout(quiet())
            .stderr(quiet());
        command.status().is_ok_and(|status| status.success())
    };
    let Some(missing) = programs.iter().find(|program| !runs(program)) else {
        return true;
    };
    assert!(!in_ci(), "{name} needs {missing}, which is not here");
    skipped(name, &format!("it needs {missing}, which is not here"));
    false
}

/// Whether this runs where nothing may be skipped.
#[must_use]
pub fn in_ci() -> bool {
    std::env::var_os("CI").is_some_and(|value| !value.is_empty() && value != "false")
}

/// Says that the test `name` is skipped, and why, where that is fine anywhere.
pub fn skipped(name: &str, reason: &str) {
    say(&format!("SKIPPED {name}: {reason}"));
}

/// A directory below the target directory that `fill` fills once for each
/// `version`, however many tests ask for it at the same time.
///
/// # Panics
/// When it cannot be made.
pub fn prepared(name: &str, version: &str, fill: impl FnOnce(&Path)) -> PathBuf {
    let target = profile_dir()
        .parent()
        .expect("a profile is in the target directory")
        .join(name);
    fs::create_dir_all(&target).expect("the directory is made");
    let lock = File::create(target.join("lock")).expect("the lock file is made");
    flock(&lock, FlockOperation::LockExclusive).expect("the lock is taken");
    let dir = target.join("content");
    let stamp = target.join("version");
    if fs::read_to_string(&stamp).ok().as_deref() != Some(version) {
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).expect("the directory is made");
        fill(&dir);
        fs::write(stamp, version).expect("the version is written");
    }
    dir
}

/// The `node_modules` with the published clients, installed exactly as the lock
/// file of the conformance tests says.
///
/// # Panics
/// When they cannot be installed.
pub fn stock_clients() -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("conformance");
    let lock = fs::read_to_string(source.join("package-lock.json")).expect("the lock file");
    let dir = prepared("conformance", &lock, |dir| {
        for file in ["package.json", "package-lock.json"] {
            fs::copy(source.join(file), dir.join(file)).expect("the file is copied");
        }
        run(Command::new("npm")
            .args(["ci", "--no-audit", "--no-fund"])
            .current_dir(dir));
    });
    dir.join("node_modules")
}

/// Runs a program that must succeed.
///
/// # Panics
/// When it does not; with what it said.
pub fn run(command: &mut Command) {
    let output = command
        .stdin(Stdio::null())
        .output()
        .expect("the program runs");
    assert!(
        output.status.success(),
        "{command:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Says something about a test beside its result.
#[expect(
    clippy::print_stderr,
    reason = "standard error is where tests say such things"
)]
pub fn say(text: &str) {
    eprintln!("{text}");
}

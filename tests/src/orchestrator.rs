//! Where the binary under test is.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
    time::SystemTime,
};

/// Crates that the binary is made of.
const CRATES: [&str; 7] = [
    "wire",
    "proto",
    "daemon",
    "bench",
    "worker",
    "broker",
    "orchestrator",
];

/// The orchestrator's binary: `MUSTER_ORCHESTRATOR`, or the one beside this test
/// in the target directory, built first if it is missing or older than its
/// sources.
///
/// # Panics
/// When it cannot be built.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        if let Some(path) = std::env::var_os("MUSTER_ORCHESTRATOR") {
            return path.into();
        }
        let profile = profile_dir();
        let path = profile.join("orchestrator");
        if built_at(&path).is_none_or(|built| built < newest_source(&workspace())) {
            build(&profile);
        }
        assert!(path.is_file(), "{} is not there", path.display());
        path
    })
}

/// A command of the orchestrator that does not see the settings of this test run
/// or of whoever started it.
///
/// # Panics
/// As [`binary`].
#[must_use]
pub fn command() -> tokio::process::Command {
    isolated(tokio::process::Command::new(binary()))
}

/// The same inside a shell script, which finds the binary as `$0`.
///
/// # Panics
/// As [`binary`].
#[must_use]
pub fn command_in_shell(script: &str) -> tokio::process::Command {
    let mut shell = tokio::process::Command::new("sh");
    shell.args(["-c", script]).arg(binary());
    isolated(shell)
}

/// A command of another program that starts the orchestrator, which then does
/// not see those settings either.
#[must_use]
pub fn command_through(program: &str) -> tokio::process::Command {
    isolated(tokio::process::Command::new(program))
}

fn isolated(mut command: tokio::process::Command) -> tokio::process::Command {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("MUSTER_") {
            command.env_remove(name);
        }
    }
    command.stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// The workspace's root.
///
/// # Panics
/// When the sources are gone.
#[must_use]
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the crate is in a workspace")
        .into()
}

/// `target/debug` or `target/release`: where this test was built.
///
/// # Panics
/// When this is no test built by cargo.
#[must_use]
pub fn profile_dir() -> PathBuf {
    let this = std::env::current_exe().expect("a running program has a path");
    let dir = this.parent().expect("a program is in a directory");
    let dir = if dir.ends_with("deps") {
        dir.parent().expect("deps is in a profile")
    } else {
        dir
    };
    dir.into()
}

fn build(profile: &Path) {
    let mut cargo = Command::new(option_env!("CARGO").unwrap_or("cargo"));
    cargo.current_dir(workspace()).args([
        "build",
        "-p",
        "muster-orchestrator",
        "--bin",
        "orchestrator",
    ]);
    if profile.ends_with("release") {
        cargo.arg("--release");
    }
    let status = cargo.status().expect("cargo runs");
    assert!(status.success(), "the orchestrator does not build");
}

fn built_at(path: &Path) -> Option<SystemTime> {
    fs::metadata(path)
        .and_then(|metadata| metadata.modified())
        .ok()
}

fn newest_source(workspace: &Path) -> SystemTime {
    let mut newest = SystemTime::UNIX_EPOCH;
    let mut dirs: Vec<_> = CRATES.iter().map(|name| workspace.join(name)).collect();
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                dirs.push(path);
            } else if let Some(modified) = built_at(&path) {
                newest = newest.max(modified);
            }
        }
    }
    newest
}

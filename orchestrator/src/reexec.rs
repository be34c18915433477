//! Executing another program in this process: it keeps the pid and the
//! children, and gets what must never be closed in between: the runtime
//! directory's lock, the sockets that clients and nodes connect to.
//!
//! They travel in a socket that is the new program's standard input, as messages
//! that nobody has read yet, so whatever goes wrong leaves no descriptor behind.

use std::{
    io,
    net::TcpListener,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{net::UnixListener, process::CommandExt as _},
    },
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use muster_daemon::{
    config::{self, ConfigError},
    descriptor::{receive, send},
    runtime_dir::{RuntimeDir, RuntimeLock},
};
use rustix::{
    io::Errno,
    net::{
        AddressFamily, SocketFlags, SocketType, socketpair,
        sockopt::{socket_acceptconn, socket_domain, socket_peercred, socket_type},
    },
    process::{Pid, WaitId, WaitIdOptions, getpid, waitid},
    stdio::dup2_stdin,
};
use tokio::signal::unix::{SignalKind, signal};
use tracing::debug;

use crate::{process::Process, state};

/// The one message; another version of it would be another text.
const GREETING: &[u8] = b"muster: lock, listener, control socket, standard input";
/// Longest that a program may take to say whether it can take over.
const CHECK_TIMEOUT: Duration = Duration::from_secs(5);

/// What the next program gets.
#[derive(Debug)]
pub(crate) struct Kept {
    pub(crate) lock: OwnedFd,
    pub(crate) listener: OwnedFd,
    pub(crate) control: OwnedFd,
}

impl Kept {
    /// All of it in descriptors of its own.
    ///
    /// # Errors
    ///
    /// When there are none left.
    pub(crate) fn of(
        lock: &RuntimeLock,
        listener: &TcpListener,
        control: &UnixListener,
    ) -> io::Result<Self> {
        Ok(Self {
            lock: lock.share()?,
            listener: listener.try_clone()?.into(),
            control: control.try_clone()?.into(),
        })
    }
}

/// What the program before this one, in this process, has left.
#[derive(Debug)]
pub(crate) struct Inherited {
    pub(crate) lock: OwnedFd,
    pub(crate) listener: TcpListener,
    pub(crate) control: UnixListener,
}

/// Why a state could not be taken over by this program.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TakeoverError {
    #[error("there is no state of a cluster at {}", .0.display())]
    NoState(std::path::PathBuf),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("cannot use the state at {}", path.display())]
    State {
        path: std::path::PathBuf,
        source: state::StateError,
    },
}

/// Executes `program` with this process's arguments. Returns only when that is
/// not possible; this program can then go on. Only its first attempt leaves the
/// process as it was.
pub(crate) fn exec(program: &Path, kept: &Kept) -> io::Error {
    let failed = match try_exec(program, kept) {
        Ok(never) => match never {},
        Err(error) => error,
    };
    // An attempt sets it to what ends a process whose reader is gone. The runtime
    // handles a signal from the first time on that it is asked to, and never sets
    // that right again, so this helps once.
    if let Err(error) = signal(SignalKind::pipe()) {
        debug!(%error, "Cannot ignore SIGPIPE.");
    }
    failed
}

fn try_exec(program: &Path, kept: &Kept) -> io::Result<std::convert::Infallible> {
    let (ours, theirs) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    let stdin = io::stdin().as_fd().try_clone_to_owned()?;
    let descriptors: [BorrowedFd<'_>; 4] = [
        kept.lock.as_fd(),
        kept.listener.as_fd(),
        kept.control.as_fd(),
        stdin.as_fd(),
    ];
    send(&ours, GREETING, &descriptors)?;
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_else(|| "orchestrator".into());
    let error = Command::new(program)
        .arg0(name)
        .args(arguments)
        .stdin(Stdio::from(theirs))
        .exec();
    // The attempt may have changed it.
    dup2_stdin(&stdin)?;
    Err(error)
}

/// What an earlier program of this process has left; `None` for a process that
/// was started as usual.
///
/// # Errors
///
/// When it has left something else than this program knows.
pub(crate) fn inherited() -> io::Result<Option<Inherited>> {
    let stdin = io::stdin();
    if !is_from_ourselves(&stdin) {
        return Ok(None);
    }
    let mut bytes = [0; 128];
    let received = receive(&stdin, &mut bytes)?;
    let unknown = || io::Error::other("the earlier program has left what this one does not know");
    if bytes[..received.len] != *GREETING {
        return Err(unknown());
    }
    let Ok([lock, listener, control, stdin]) = <[OwnedFd; 4]>::try_from(received.descriptors)
    else {
        return Err(unknown());
    };
    dup2_stdin(&stdin)?;
    if !socket_acceptconn(&listener)? || !socket_acceptconn(&control)? {
        return Err(unknown());
    }
    Ok(Some(Inherited {
        lock,
        listener: listener.into(),
        control: control.into(),
    }))
}

/// Nobody else can make a socket whose other end this process had.
fn is_from_ourselves(stdin: impl AsFd) -> bool {
    let is_ours = || -> Result<bool, Errno> {
        Ok(socket_domain(&stdin)? == AddressFamily::UNIX
            && socket_type(&stdin)? == SocketType::SEQPACKET
            && socket_peercred(&stdin)?.pid == getpid())
    };
    is_ours().unwrap_or(false)
}

/// Reaps the children that ended while nobody here knew of them. Only before
/// this program has started any.
pub(crate) fn reap_unknown() {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    while let Ok(Some(_)) = waitid(WaitId::All, options) {
        debug!("Reaped a child of the earlier program.");
    }
}

/// Whether `program` says that it can go on with the cluster in `runtime_dir`.
///
/// # Errors
///
/// What it says instead, on one line.
pub(crate) fn check(program: &Path, runtime_dir: &Path) -> Result<(), String> {
    let mut child = Command::new(program)
        .arg("takeover-check")
        .arg("--runtime-dir")
        .arg(runtime_dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| error.to_string())?;
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let process = pid.map(Process::of);
    let has_ended = match &process {
        Some(Ok(process)) => process.wait_blocking(CHECK_TIMEOUT),
        Some(Err(_)) | None => false,
    };
    if !has_ended {
        // It may just have ended by itself.
        let _ = child.kill();
    }
    let output = child
        .wait_with_output()
        .map_err(|error| error.to_string())?;
    if !has_ended {
        return Err(format!(
            "it does not say within {CHECK_TIMEOUT:?} whether it can take over"
        ));
    }
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.lines().next().unwrap_or_default();
    Err(format!("it cannot take over ({}): {said}", output.status))
}

/// The other side of [`check`]: whether this program reads what an orchestrator
/// has written down in its runtime directory.
///
/// # Errors
///
/// When it does not.
pub(crate) fn can_take_over(dir: &RuntimeDir) -> Result<(), TakeoverError> {
    let path = dir.state_file();
    match state::read(&path) {
        Ok(Some(_)) => {}
        Ok(None) => return Err(TakeoverError::NoState(path)),
        Err(source) => return Err(TakeoverError::State { path, source }),
    }
    config::load(Some(&dir.config_file()), std::iter::empty(), &[])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{io::Write as _, os::unix::net::UnixStream};

    use super::*;

    #[test]
    fn only_a_socket_whose_other_end_this_process_had_is_from_an_earlier_program() {
        let pair =
            |kind| socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).unwrap();
        let (ours, _theirs) = pair(SocketType::SEQPACKET);
        assert!(is_from_ourselves(&ours));
        let (stream, _theirs) = UnixStream::pair().unwrap();
        assert!(!is_from_ourselves(&stream), "of another kind");
        let null = std::fs::File::open("/dev/null").unwrap();
        assert!(!is_from_ourselves(&null));
    }

    #[test]
    fn a_program_that_does_not_know_the_question_cannot_take_over() {
        let dir = tempfile::tempdir().unwrap();
        let why = check(Path::new("/bin/false"), dir.path()).unwrap_err();
        assert!(why.contains("exit status: 1"), "{why}");
        let why = check(Path::new("/nonexistent"), dir.path()).unwrap_err();
        assert!(why.contains("No such file"), "{why}");
        check(Path::new("/bin/true"), dir.path()).unwrap();
    }

    #[tokio::test]
    async fn a_program_that_cannot_be_executed_changes_nothing() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let control = UnixListener::bind(dir.path().join("a")).unwrap();
        let lock = std::fs::File::create(dir.path().join("lock")).unwrap();
        let kept = Kept {
            lock: lock.into(),
            listener: listener.into(),
            control: control.into(),
        };
        let error = exec(Path::new("/nonexistent"), &kept);
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(!is_from_ourselves(io::stdin()));
        let (reader, mut writer) = io::pipe().unwrap();
        drop(reader);
        let error = writer.write_all(b"nobody reads it").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}

//! Tells the service manager how this process is: sd_notify(3), in so far as a
//! daemon needs it.

use std::{
    ffi::{OsStr, OsString},
    io,
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            ffi::OsStrExt as _,
            net::{SocketAddr, UnixDatagram},
        },
    },
    time::Duration,
};

use rustix::time::{ClockId, clock_gettime};
use tracing::debug;

/// Variables that speak to one process; a child must not get them.
pub const VARIABLES: [&str; 3] = [SOCKET_VARIABLE, WATCHDOG_VARIABLE, WATCHDOG_PID_VARIABLE];

const SOCKET_VARIABLE: &str = "NOTIFY_SOCKET";
const WATCHDOG_VARIABLE: &str = "WATCHDOG_USEC";
const WATCHDOG_PID_VARIABLE: &str = "WATCHDOG_PID";

/// What can be said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State<'a> {
    /// The start is finished; this process is the service's main one.
    Ready { pid: u32 },
    /// The configuration or the program is being replaced; [`State::Ready`]
    /// follows.
    Reloading,
    /// The end has begun.
    Stopping,
    /// One line for people; a line break in it ends it.
    Status(&'a str),
    /// The process does its work.
    Watchdog,
}

/// Why the manager cannot be told.
#[derive(Debug, thiserror::Error)]
#[error("cannot use the manager's socket {}={}", SOCKET_VARIABLE, address.display())]
pub struct NotifyError {
    address: OsString,
    source: io::Error,
}

/// The way to the service manager.
#[derive(Debug)]
pub struct Notifier {
    socket: UnixDatagram,
    manager: SocketAddr,
}

impl Notifier {
    /// The manager that started this process; `None` when nobody wants to know.
    ///
    /// # Errors
    ///
    /// When the address is none that can be used.
    pub fn from_environment() -> Result<Option<Self>, NotifyError> {
        match std::env::var_os(SOCKET_VARIABLE) {
            Some(address) if !address.is_empty() => Self::new(&address).map(Some),
            Some(_) | None => Ok(None),
        }
    }

    /// A manager at a path, or at an abstract name that begins with `@`.
    ///
    /// # Errors
    ///
    /// When the address is none that can be used.
    pub fn new(address: &OsStr) -> Result<Self, NotifyError> {
        let open = || {
            let manager = match address.as_bytes() {
                [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
                [b'/', ..] => SocketAddr::from_pathname(address)?,
                _ => return Err(io::Error::other("neither an absolute path nor `@name`")),
            };
            let socket = UnixDatagram::unbound()?;
            // A manager that does not read must not stop us.
            socket.set_nonblocking(true)?;
            Ok(Self { socket, manager })
        };
        open().map_err(|source| NotifyError {
            address: address.to_owned(),
            source,
        })
    }

    /// Tells the manager; one that does not listen misses it.
    pub fn tell(&self, state: &State<'_>) {
        let message = message(state);
        if let Err(error) = self.socket.send_to_addr(message.as_bytes(), &self.manager) {
            debug!(%error, message, "The service manager could not be told.");
        }
    }
}

fn message(state: &State<'_>) -> String {
    match state {
        State::Ready { pid } => format!("READY=1\nMAINPID={pid}"),
        // With the moment, so that a manager can tell an answer to its own
        // request from one to an earlier one.
        State::Reloading => format!("RELOADING=1\nMONOTONIC_USEC={}", monotonic_micros()),
        State::Stopping => "STOPPING=1".into(),
        State::Status(text) => {
            let line = text.split('\n').next().unwrap_or_default();
            format!("STATUS={line}")
        }
        State::Watchdog => "WATCHDOG=1".into(),
    }
}

/// `CLOCK_MONOTONIC`, which the manager reads as well.
fn monotonic_micros() -> u128 {
    let now = clock_gettime(ClockId::Monotonic);
    let seconds = u128::try_from(now.tv_sec).unwrap_or(0);
    let nanos = u128::try_from(now.tv_nsec).unwrap_or(0);
    seconds * 1_000_000 + nanos / 1_000
}

/// How often the manager wants to hear [`State::Watchdog`]: half of the time
/// after which it takes this process for hung. `None` when it does not.
#[must_use]
pub fn watchdog_interval() -> Option<Duration> {
    let number = |variable| std::env::var(variable).ok()?.parse::<u64>().ok();
    // Meant for a process that started us.
    let pid = std::env::var_os(WATCHDOG_PID_VARIABLE).map(|_| number(WATCHDOG_PID_VARIABLE));
    half(number(WATCHDOG_VARIABLE), pid, std::process::id())
}

fn half(micros: Option<u64>, pid: Option<Option<u64>>, own: u32) -> Option<Duration> {
    let is_for_us = pid.is_none_or(|pid| pid == Some(u64::from(own)));
    let micros = micros.filter(|micros| *micros > 0 && is_for_us)?;
    Some(Duration::from_micros(micros / 2).max(Duration::from_millis(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(manager: &UnixDatagram) -> String {
        let mut bytes = [0; 4096];
        let len = manager.recv(&mut bytes).unwrap();
        String::from_utf8(bytes[..len].to_vec()).unwrap()
    }

    #[test]
    fn a_manager_at_a_path_and_one_at_an_abstract_name_hear_everything() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let name = format!("muster-test-{}", std::process::id());
        let abstract_name = SocketAddr::from_abstract_name(&name).unwrap();
        for (manager, address) in [
            (UnixDatagram::bind(&path).unwrap(), path.into_os_string()),
            (
                UnixDatagram::bind_addr(&abstract_name).unwrap(),
                format!("@{name}").into(),
            ),
        ] {
            let notifier = Notifier::new(&address).unwrap();
            for (state, message) in [
                (State::Ready { pid: 7 }, "READY=1\nMAINPID=7"),
                (State::Status("2 workers\nSTOPPING=1"), "STATUS=2 workers"),
                (State::Watchdog, "WATCHDOG=1"),
                (State::Stopping, "STOPPING=1"),
            ] {
                notifier.tell(&state);
                assert_eq!(heard(&manager), message);
            }
        }
    }

    #[test]
    fn a_reload_is_told_with_the_moment_on_the_monotonic_clock() {
        let before = monotonic_micros();
        let message = message(&State::Reloading);
        let micros = message
            .strip_prefix("RELOADING=1\nMONOTONIC_USEC=")
            .unwrap();
        assert!((before..=monotonic_micros()).contains(&micros.parse().unwrap()));
    }

    #[test]
    fn a_manager_that_is_gone_or_does_not_read_stops_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let notifier = Notifier::new(path.as_os_str()).unwrap();
        notifier.tell(&State::Watchdog);
        let _deaf = UnixDatagram::bind(&path).unwrap();
        for _ in 0..100_000 {
            notifier.tell(&State::Watchdog);
        }
    }

    #[test]
    fn an_address_that_is_none_is_refused_by_name() {
        for address in ["relative", "vsock:2:1", &format!("/{}", "x".repeat(200))] {
            let error = Notifier::new(OsStr::new(address)).unwrap_err();
            assert!(error.to_string().contains(address), "{error}");
        }
    }

    #[test]
    fn the_watchdog_is_told_twice_per_period_and_only_by_whom_it_watches() {
        let second = Some(1_000_000);
        let twice = Some(Duration::from_millis(500));
        assert_eq!(half(second, None, 7), twice);
        assert_eq!(half(second, Some(Some(7)), 7), twice);
        assert_eq!(half(second, Some(Some(8)), 7), None);
        assert_eq!(half(second, Some(None), 7), None);
        assert_eq!(half(None, None, 7), None);
        assert_eq!(half(Some(0), None, 7), None);
    }
}

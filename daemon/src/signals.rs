//! The signals that end a process.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// How the process is asked to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// The first SIGTERM or SIGINT: finish what is open.
    Graceful,
    /// A further one: end now.
    AtOnce,
}

/// Hears SIGTERM and SIGINT instead of dying of them.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    heard: bool,
}

impl Signals {
    /// Starts to listen; from here on the signals do not end the process.
    ///
    /// # Errors
    ///
    /// When the handlers cannot be installed.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with IO enabled.
    pub fn listen() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            heard: false,
        })
    }

    /// Waits for the next signal. Cancel-safe.
    pub async fn next(&mut self) -> Stop {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
        if std::mem::replace(&mut self.heard, true) {
            Stop::AtOnce
        } else {
            Stop::Graceful
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::process::{Signal as Number, getpid, kill_process};

    use super::*;

    #[tokio::test]
    async fn the_first_signal_is_graceful_and_the_second_is_at_once() {
        let mut signals = Signals::listen().unwrap();
        kill_process(getpid(), Number::TERM).unwrap();
        assert_eq!(signals.next().await, Stop::Graceful);
        kill_process(getpid(), Number::INT).unwrap();
        assert_eq!(signals.next().await, Stop::AtOnce);
    }
}

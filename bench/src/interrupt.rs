//! Ctrl-C: the run ends early with what it has so far; a second one ends it at
//! once.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use tokio::signal::ctrl_c;

use super::clock::{Micros, now};

/// As shells report a program that Ctrl-C ended.
const EXIT_INTERRUPTED: i32 = 130;
/// Between two looks at whether somebody wants the run to end.
const INTERVAL: Duration = Duration::from_millis(50);

/// Whether somebody wants the run to end.
#[derive(Debug, Clone, Default)]
pub(super) struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// From now on Ctrl-C is asked for here.
    #[expect(clippy::disallowed_methods, reason = "the second Ctrl-C means it")]
    pub(super) fn listen() -> io::Result<Self> {
        let interrupt = Self::default();
        let flag = Arc::clone(&interrupt.0);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()?;
        thread::Builder::new()
            .name("interrupt".into())
            .spawn(move || {
                runtime.block_on(async {
                    while ctrl_c().await.is_ok() {
                        if flag.swap(true, Ordering::Relaxed) {
                            std::process::exit(EXIT_INTERRUPTED);
                        }
                    }
                });
            })?;
        Ok(interrupt)
    }

    pub(super) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Sleeps, and says now and then that time passes; false if somebody wants
    /// the run to end.
    pub(super) fn sleep_until(&self, at: Micros, mut passing: impl FnMut()) -> bool {
        loop {
            passing();
            let left = Duration::from_micros(at.saturating_sub(now()));
            if left.is_zero() || self.is_set() {
                return !self.is_set();
            }
            thread::sleep(left.min(INTERVAL));
        }
    }
}

//! Time that all processes of the host share.

use rustix::time::{ClockId, Timespec, clock_gettime};

/// Microseconds on the host's monotonic clock.
pub(super) type Micros = u64;

/// One second.
pub(super) const SECOND: Micros = 1_000_000;

/// The present.
pub(super) fn now() -> Micros {
    let time = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanoseconds = u64::try_from(time.tv_nsec).unwrap_or(0);
    seconds * SECOND + nanoseconds / 1000
}

/// The same instant for the kernel.
pub(super) fn timespec(at: Micros) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(at / SECOND).unwrap_or(i64::MAX),
        tv_nsec: i64::try_from(at % SECOND * 1000).unwrap_or(0),
    }
}

/// A number of seconds as people write it: `0.5`, `30`.
pub(super) fn micros(seconds: f64) -> Micros {
    // Options are checked to be finite and not negative.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "saturates"
    )]
    let micros = (seconds * 1e6) as Micros;
    micros
}

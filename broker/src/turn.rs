//! One turn of work: what it did and whom it has to wake at its end.

use std::task::Waker;

use muster_wire::Millis;

/// Collects what a turn touched, so that each link is woken once, after all of
/// the turn's frames are on it.
#[derive(Debug)]
pub(crate) struct Turn {
    pub(crate) now: Millis,
    /// Publications appended in this turn.
    pub(crate) publications: u64,
    /// Relays put on links in this turn.
    pub(crate) relayed: u64,
    wakers: Vec<Waker>,
}

impl Turn {
    pub(crate) fn new(now: Millis) -> Self {
        Self {
            now,
            publications: 0,
            relayed: 0,
            wakers: Vec::new(),
        }
    }

    /// Wakes this one at the end of the turn.
    pub(crate) fn wake(&mut self, waker: Option<Waker>) {
        self.wakers.extend(waker);
    }
}

// In `drop`, so that no way out of a turn leaves a link asleep.
impl Drop for Turn {
    fn drop(&mut self) {
        self.wakers.drain(..).for_each(Waker::wake);
    }
}

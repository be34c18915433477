//! A stderr that never blocks on our account and never fails.

use std::{
    io::{self, Write},
    os::fd::AsFd as _,
    sync::atomic::{AtomicBool, Ordering},
};

use rustix::io::{Errno, write};

/// A line was cut short, so the next one starts on a new line.
static TORN: AtomicBool = AtomicBool::new(false);

/// Writes each line at once or drops it.
///
/// A node's stderr is a pipe that is set to non-blocking: full or closed, the
/// line is lost and the node goes on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stderr;

impl Write for Stderr {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if TORN.swap(false, Ordering::Relaxed) && !write_whole(b"\n") {
            TORN.store(true, Ordering::Relaxed);
            return Ok(line.len());
        }
        if !write_whole(line) {
            TORN.store(true, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// False when a part of `line`, but not all of it, went out.
fn write_whole(line: &[u8]) -> bool {
    let stderr = io::stderr();
    let mut rest = line;
    while !rest.is_empty() {
        match write(stderr.as_fd(), rest) {
            Ok(written) if written > 0 => rest = &rest[written..],
            Err(Errno::INTR) => {}
            Ok(_) | Err(_) => return rest.len() == line.len() && line != b"\n",
        }
    }
    true
}

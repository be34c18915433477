//! A stderr that never blocks on our account and never fails.

use std::{
    io::{self, Write},
    os::fd::{AsFd as _, BorrowedFd},
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
        write_line(io::stderr().as_fd(), line, &TORN);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write_line(fd: BorrowedFd<'_>, line: &[u8], torn: &AtomicBool) {
    if torn.load(Ordering::Relaxed) {
        match write_some(fd, b"\n") {
            0 => return,
            _ => torn.store(false, Ordering::Relaxed),
        }
    }
    let written = write_some(fd, line);
    if written > 0 && written < line.len() {
        torn.store(true, Ordering::Relaxed);
    }
}

/// Writes as much as there is room for, and returns how much that was.
fn write_some(fd: BorrowedFd<'_>, bytes: &[u8]) -> usize {
    let mut written = 0;
    while written < bytes.len() {
        match write(fd, &bytes[written..]) {
            Ok(more) if more > 0 => written += more,
            Err(Errno::INTR) => {}
            Ok(_) | Err(_) => break,
        }
    }
    written
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Read as _};

    use rustix::pipe::{PipeFlags, pipe_with};

    use super::*;

    /// Larger than what a pipe takes as a whole or not at all.
    const LONG: usize = 10_000;

    #[test]
    fn lines_that_find_no_room_are_dropped_and_later_ones_are_whole() {
        let (read_end, write_end) = pipe_with(PipeFlags::NONBLOCK).unwrap();
        let torn = AtomicBool::new(false);
        let long = [&[b'x'; LONG][..], b"\n"].concat();
        for _ in 0..100 {
            write_line(write_end.as_fd(), &long, &torn);
        }
        assert!(torn.load(Ordering::Relaxed), "the pipe is full by now");
        write_line(write_end.as_fd(), b"lost\n", &torn);
        let mut read_end = File::from(read_end);
        let mut drained = vec![0; 1 << 20];
        let taken = read_end.read(&mut drained).unwrap();
        write_line(write_end.as_fd(), b"next\n", &torn);
        drop(write_end);
        let mut rest = String::new();
        read_end.read_to_string(&mut rest).unwrap();
        assert!(taken > LONG);
        assert_eq!(rest.lines().last(), Some("next"));
        assert!(!rest.contains("lost"));
    }

    #[test]
    fn a_reader_that_is_gone_is_no_error() {
        let (read_end, write_end) = pipe_with(PipeFlags::NONBLOCK).unwrap();
        drop(read_end);
        let torn = AtomicBool::new(false);
        write_line(write_end.as_fd(), b"line\n", &torn);
        assert!(!torn.load(Ordering::Relaxed));
    }
}

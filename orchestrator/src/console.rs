//! The terminal, or whatever stderr is: log lines, and below them a table that
//! is redrawn in place.
//!
//! One thread owns stderr, so a terminal that is held up (Ctrl-S) or a log
//! reader that is slow holds up nobody else; what it cannot take in time is
//! dropped and counted.

use std::{
    io::{self, IsTerminal as _, Write},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
    time::Duration,
};

use rustix::termios::tcgetwinsize;

/// Lines on their way to stderr; further ones are dropped and counted.
const LINES_CAP: usize = 4096;
/// Longest that the end of the process waits for the terminal.
const FINISH_TIMEOUT: Duration = Duration::from_secs(1);
/// Where a terminal does not say how wide it is.
const WIDTH_DEFAULT: usize = 80;
const HEIGHT_DEFAULT: usize = 24;

/// Clears from the cursor to the end of the screen.
const CLEAR_BELOW: &str = "\x1b[J";

enum Message {
    Line(Vec<u8>),
    Table(Vec<String>),
    /// Everything before this is to be written when the answer is sent.
    Flush(SyncSender<()>),
}

/// A handle to stderr's thread.
#[derive(Debug, Clone)]
pub(crate) struct Console {
    messages: SyncSender<Message>,
    dropped: Arc<AtomicU64>,
}

/// True when stderr is a terminal that can redraw a table in place.
pub(crate) fn can_redraw() -> bool {
    let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
    io::stderr().is_terminal() && !dumb
}

impl Console {
    /// Starts the thread. It ends when every [`Console`] is gone.
    ///
    /// # Errors
    ///
    /// When there cannot be another thread.
    pub(crate) fn start() -> io::Result<Self> {
        let (messages, inbox) = sync_channel(LINES_CAP);
        let dropped = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&dropped);
        thread::Builder::new()
            .name("console".into())
            .spawn(move || write_all(&inbox, &counter))?;
        Ok(Self { messages, dropped })
    }

    /// Writes a line, which ends in a newline.
    pub(crate) fn line(&self, line: Vec<u8>) {
        if self.messages.try_send(Message::Line(line)).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Shows `rows` below the lines from here on; no rows, no table. Only for a
    /// terminal.
    pub(crate) fn table(&self, rows: Vec<String>) {
        // The next second brings another one.
        let _ = self.messages.try_send(Message::Table(rows));
    }

    /// Takes the table away and waits, for a bounded time, until everything is
    /// written.
    pub(crate) fn finish(&self) {
        self.table(Vec::new());
        let (written, wait) = sync_channel(1);
        if self.messages.try_send(Message::Flush(written)).is_ok() {
            // A terminal that is held up must not hold up the end.
            let _ = wait.recv_timeout(FINISH_TIMEOUT);
        }
    }
}

impl Write for Console {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.line(line.to_vec());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write_all(inbox: &Receiver<Message>, dropped: &AtomicU64) {
    let mut screen = Screen::default();
    while let Ok(first) = inbox.recv() {
        let mut out = Vec::new();
        let mut waiting = Vec::new();
        screen.erase(&mut out);
        for message in std::iter::once(first).chain(inbox.try_iter().take(LINES_CAP)) {
            match message {
                Message::Line(line) => out.extend_from_slice(&line),
                Message::Table(rows) => screen.rows = rows,
                Message::Flush(written) => waiting.push(written),
            }
        }
        let lost = dropped.swap(0, Ordering::Relaxed);
        if lost > 0 {
            let note = format!("({lost} log lines were dropped: stderr is slow)\n");
            out.extend_from_slice(note.as_bytes());
        }
        let (width, height) = window();
        screen.draw(&mut out, width, height);
        // A stderr that is gone takes nothing from the cluster.
        let _ = io::stderr().write_all(&out);
        for written in waiting {
            // Whoever waited may have given up.
            let _ = written.try_send(());
        }
    }
}

fn window() -> (usize, usize) {
    match tcgetwinsize(io::stderr()) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => {
            (usize::from(size.ws_col), usize::from(size.ws_row))
        }
        Ok(_) | Err(_) => (WIDTH_DEFAULT, HEIGHT_DEFAULT),
    }
}

/// The table and how much of it is on the screen.
#[derive(Debug, Default)]
struct Screen {
    rows: Vec<String>,
    /// Rows above the cursor that are the table's.
    drawn: usize,
}

impl Screen {
    fn erase(&mut self, out: &mut Vec<u8>) {
        if self.drawn > 0 {
            let up = format!("\x1b[{}A\r{CLEAR_BELOW}", self.drawn);
            out.extend_from_slice(up.as_bytes());
            self.drawn = 0;
        }
    }

    /// Draws what fits: a row that wraps or scrolls could not be erased.
    fn draw(&mut self, out: &mut Vec<u8>, width: usize, height: usize) {
        let room = height.saturating_sub(2);
        let fitting = if self.rows.len() > room {
            room.saturating_sub(1)
        } else {
            self.rows.len()
        };
        for row in &self.rows[..fitting] {
            let row: String = row.chars().take(width.saturating_sub(1)).collect();
            out.extend_from_slice(row.trim_end().as_bytes());
            out.push(b'\n');
        }
        self.drawn = fitting;
        let hidden = self.rows.len() - fitting;
        if hidden > 0 && room > 0 {
            let note = format!("… {hidden} more: orchestrator status\n");
            out.extend_from_slice(note.as_bytes());
            self.drawn += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(screen: &mut Screen, width: usize, height: usize) -> String {
        let mut out = Vec::new();
        screen.erase(&mut out);
        screen.draw(&mut out, width, height);
        String::from_utf8(out).unwrap()
    }

    fn screen(rows: &[&str]) -> Screen {
        Screen {
            rows: rows.iter().map(|row| (*row).to_owned()).collect(),
            drawn: 0,
        }
    }

    #[test]
    fn a_table_is_drawn_over_the_one_before() {
        let mut screen = screen(&["one", "two"]);
        assert_eq!(drawn(&mut screen, 80, 24), "one\ntwo\n");
        assert_eq!(drawn(&mut screen, 80, 24), "\x1b[2A\r\x1b[Jone\ntwo\n");
        screen.rows.clear();
        assert_eq!(drawn(&mut screen, 80, 24), "\x1b[2A\r\x1b[J");
        assert_eq!(drawn(&mut screen, 80, 24), "");
    }

    #[test]
    fn rows_are_cut_to_the_width_so_that_they_never_wrap() {
        let mut screen = screen(&["äbcdefgh"]);
        assert_eq!(drawn(&mut screen, 5, 24), "äbcd\n");
    }

    #[test]
    fn rows_that_do_not_fit_the_height_are_counted() {
        let mut screen = screen(&["1", "2", "3", "4", "5"]);
        let text = drawn(&mut screen, 80, 5);
        assert_eq!(text, "1\n2\n… 3 more: orchestrator status\n");
        assert!(drawn(&mut screen, 80, 5).starts_with("\x1b[3A"));
    }
}

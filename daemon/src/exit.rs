//! How a process says why it ends.

use std::{error::Error, fmt::Write as _, io::Write as _};

/// Everything went as asked.
pub const SUCCESS: u8 = 0;
/// Something failed while running.
pub const FAILURE: u8 = 1;
/// The command line makes no sense; also what clap exits with.
pub const USAGE: u8 = 2;
/// What was asked for may have been done, or not.
pub const OUTCOME_UNKNOWN: u8 = 3;
/// The configuration is at fault, so that starting again is no use
/// (`EX_CONFIG`).
pub const CONFIG: u8 = 78;

/// Prints `error: …` with the whole chain of sources on one line to stderr.
pub fn report(error: &dyn Error) {
    // There is nobody left to tell when stderr is gone.
    let _ = writeln!(std::io::stderr(), "error: {}", chain(error));
}

/// An error and its sources, `: ` between them, on one line.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        write!(text, ": {error}").expect("writing to a string never fails");
        source = error.source();
    }
    text.replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot start\nworker 1")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn the_whole_chain_of_sources_is_one_line() {
        let error = Outer(std::io::Error::other("no such file"));
        assert_eq!(chain(&error), "cannot start worker 1: no such file");
    }
}

//! Puts load on a cluster and accounts for every publication.

use std::{
    error::Error,
    io::{self, Write},
    process::ExitCode,
};

use clap::Parser;
use muster_tests::load::{self, Options};

fn main() -> ExitCode {
    match load::run(&Options::parse()) {
        Ok(code) => code,
        Err(error) => {
            let mut line = format!("error: {error}");
            let mut source = error.source();
            while let Some(cause) = source {
                line.push_str(&format!(": {cause}"));
                source = cause.source();
            }
            // Nobody is left to tell when standard error is gone.
            let _ = writeln!(io::stderr(), "{line}");
            ExitCode::FAILURE
        }
    }
}

//! How long a broker takes to open its 256 shards from their journals, by how
//! much is in them.

#![expect(clippy::print_stdout, reason = "it prints a table")]

use std::path::PathBuf;

use clap::Parser;
use muster_broker::measure::{MeasureError, recovery};

/// Writes journals, opens them again and prints how long that took.
#[derive(Debug, Parser)]
struct Options {
    /// Where the journals are, for the time being: shared memory, or a disk.
    #[arg(long, default_value = "/dev/shm")]
    dir: PathBuf,
    /// Sizes to measure, in MiB.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 100, 1024])]
    mib: Vec<usize>,
    /// Bytes of data of one publication.
    #[arg(long, default_value_t = 200)]
    data_bytes: usize,
    /// Times that each size is measured.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// `cargo bench` says so.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<(), MeasureError> {
    let options = Options::parse();
    let name = format!("muster-recovery-{}", std::process::id());
    let dir = options.dir.join(name);
    println!(
        "in {}, publications of {} bytes",
        options.dir.display(),
        options.data_bytes
    );
    println!("  MiB  publications  publish ns  without ns  open empty ms   open ms   read ms");
    for mib in &options.mib {
        for _ in 0..options.runs {
            let found = recovery(&dir, mib << 20, options.data_bytes)?;
            println!(
                "{mib:>5}  {:>12}  {:>10}  {:>10}  {:>13.1}  {:>8.1}  {:>8.1}",
                found.publications,
                found.publish.as_nanos(),
                found.publish_without.as_nanos(),
                found.open_empty.as_secs_f64() * 1e3,
                found.open.as_secs_f64() * 1e3,
                found.read.as_secs_f64() * 1e3,
            );
        }
    }
    Ok(())
}

//! What a publication costs in a shard's log, and what the beginning of a
//! segment costs where histories are large.

#![expect(clippy::print_stdout, reason = "it prints tables")]

use std::path::PathBuf;

use clap::Parser;
use muster_broker::measure::{Keeping, MeasureError, append, checkpoint};

/// Appends to logs in memory, then begins segments, and prints how long that
/// took.
#[derive(Debug, Parser)]
struct Options {
    /// Where the journal is, for the time being: shared memory, or a disk.
    #[arg(long, default_value = "/dev/shm")]
    dir: PathBuf,
    /// Channels of one shard that are published to in turn.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 10, 100, 1000])]
    channels: Vec<usize>,
    /// Sizes of one shard's histories, in MiB.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 4, 16, 64])]
    mib: Vec<usize>,
    /// Publications that are appended.
    #[arg(long, default_value_t = 1_000_000)]
    publications: usize,
    /// Bytes of data of one publication.
    #[arg(long, default_value_t = 200)]
    data_bytes: usize,
    /// Times that each is measured.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// `cargo bench` says so.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<(), MeasureError> {
    let options = Options::parse();
    let (count, data_bytes) = (options.publications, options.data_bytes);
    println!("publications of {data_bytes} bytes, ns for each");
    println!("channels  tails  histories");
    for &channels in &options.channels {
        for _ in 0..options.runs {
            let [tails, histories] = [Keeping::Tails, Keeping::Histories]
                .map(|keeping| append(keeping, channels, count, data_bytes).as_nanos());
            println!("{channels:>8}  {tails:>5}  {histories:>9}");
        }
    }
    let name = format!("muster-log-{}", std::process::id());
    let dir = options.dir.join(name);
    println!("a new segment in {}", options.dir.display());
    println!("publications      bytes     ms");
    for mib in &options.mib {
        for _ in 0..options.runs {
            let found = checkpoint(&dir, mib << 20, data_bytes)?;
            println!(
                "{:>12}  {:>9}  {:>5.1}",
                found.publications,
                found.bytes,
                found.took.as_secs_f64() * 1e3,
            );
        }
    }
    Ok(())
}

//! How long journals take to be written and read back, for the benchmarks.

mod log;

use std::{
    io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
pub use muster_daemon::config::Fsync;
use muster_daemon::{ByteSize, clock, config::BrokerConfig};
use muster_proto::{
    BrokerNode, ShardId, View,
    link::{Position, Publish, ReadRequest},
};
use muster_wire::Millis;
use rand::{SeedableRng as _, rngs::StdRng};

pub use self::log::{Checkpoint, Keeping, append, checkpoint};
use crate::{
    journal::{Home, HomeError},
    limits::{Histories, Limits},
    link::Link,
    shard::Publishing,
    table::{Opening, Source, Table},
    turn::Turn,
};

/// Channels that are published to in turn.
const CHANNELS: usize = 2000;
/// Producers that publish in turn.
const PRODUCERS: usize = 100;
/// Publications of one turn.
const TURN: usize = 1000;
/// As many as wait for the disk at a time.
const SYNCING_THREADS: usize = 256;
/// Of a publication in the journal, beside its data.
const RECORD_BYTES: usize = 80;

/// What was measured.
#[derive(Debug, Clone, Copy)]
pub struct Recovery {
    /// Publications that were written and read back.
    pub publications: u64,
    /// Bytes of the journals of all shards.
    pub bytes: u64,
    /// Publishing, for each publication.
    pub publish: Duration,
    /// The same without a journal.
    pub publish_without: Duration,
    /// Opening all 256 shards when there is nothing in them.
    pub open_empty: Duration,
    /// Opening them with what was published.
    pub open: Duration,
    /// Reading all of it afterwards, as a client that was away would.
    pub read: Duration,
}

/// Why nothing was measured.
#[derive(Debug, thiserror::Error)]
pub enum MeasureError {
    /// The journal has no place.
    #[error(transparent)]
    Home(#[from] HomeError),
    /// A publication was refused.
    #[error("a publication was refused: the directory is full, or cannot be written to")]
    Refused,
    /// Something was not read back.
    #[error("{read} of {written} publications were read back")]
    Missing {
        /// Publications written.
        written: u64,
        /// Publications read back.
        read: u64,
    },
    /// The directory could not be emptied.
    #[error("cannot remove {dir}")]
    Remove {
        /// The directory.
        dir: String,
        /// Why not.
        source: io::Error,
    },
}

/// Publishes about `bytes` bytes of `data_bytes` each to the 256 shards of one
/// broker whose journals are in `dir`, and opens them again. What is in `dir` is
/// removed afterwards.
///
/// # Errors
/// When the directory does not do or is too small.
pub fn recovery(dir: &Path, bytes: usize, data_bytes: usize) -> Result<Recovery, MeasureError> {
    let data = Bytes::from(vec![b'1'; data_bytes]);
    let count = bytes / (data_bytes + RECORD_BYTES);
    let without = Table::new(limits(), 1 << 20, Source::Nothing);
    without.apply(clock::now(), &view(1), 1, 1);
    let publish_without = publish(&without, count, TURN, &data)?;
    drop(without);
    let measured = on_disk(dir, count, &data).map(|measured| Recovery {
        publish_without,
        ..measured
    });
    remove(dir)?;
    measured
}

/// Publishes `count` publications of `data_bytes` each to the 256 shards of one
/// broker, `turn` of them at a time, and waits for the disk after each turn as
/// `fsync` says; with `interval` never, because what it waits for is nobody's
/// publication. Says how long each publication took. What is in `dir` is removed
/// afterwards.
///
/// # Errors
/// When the directory does not do or is too small.
pub fn publishing(
    dir: &Path,
    fsync: Fsync,
    (count, turn): (usize, usize),
    data_bytes: usize,
) -> Result<Duration, MeasureError> {
    let data = Bytes::from(vec![b'1'; data_bytes]);
    let published = open(dir, 1, fsync).and_then(|(table, ..)| publish(&table, count, turn, &data));
    remove(dir)?;
    published
}

fn remove(dir: &Path) -> Result<(), MeasureError> {
    std::fs::remove_dir_all(dir).map_err(|source| MeasureError::Remove {
        dir: dir.display().to_string(),
        source,
    })
}

fn on_disk(dir: &Path, count: usize, data: &Bytes) -> Result<Recovery, MeasureError> {
    let (first, _, open_empty) = open(dir, 1, Fsync::Never)?;
    let publish = publish(&first, count, TURN, data)?;
    drop(first);
    let (table, opening, open) = open(dir, 2, Fsync::Never)?;
    let written = count as u64;
    let start = now();
    let retained = read_all(&table);
    let read = start.elapsed();
    for found in [opening.publications, retained] {
        if found != written {
            let read = found;
            return Err(MeasureError::Missing { written, read });
        }
    }
    Ok(Recovery {
        publications: written,
        bytes: opening.bytes,
        publish,
        publish_without: Duration::ZERO,
        open_empty,
        open,
        read,
    })
}

/// Reads every channel from its beginning; how many publications there are.
fn read_all(table: &Table) -> u64 {
    let mut publications = 0;
    for channel in channels() {
        let mut request = ReadRequest {
            channel: channel.into(),
            ..ReadRequest::default()
        };
        while let Ok(answer) = table.read(&request, 0) {
            publications += answer.publications.len() as u64;
            let last = answer.publications.last().map(|last| last.offset);
            let Some(offset) = last.filter(|_| answer.more) else {
                break;
            };
            request.after = answer.head.map(|head| Position { offset, ..head });
        }
    }
    publications
}

fn channels() -> impl Iterator<Item = String> {
    (0..CHANNELS).map(|it| format!("channel {it}"))
}

/// Opens every shard at this epoch; says how long that took.
fn open(dir: &Path, epoch: u64, fsync: Fsync) -> Result<(Table, Opening, Duration), MeasureError> {
    let config = BrokerConfig {
        fsync,
        journal_dir: Some(dir.into()),
        journal_bytes_max: ByteSize::mib(1 << 20),
        ..BrokerConfig::default()
    };
    let home = Home::open(&config, dir)?;
    let table = Table::new(limits(), 1 << 20, Source::Journal(home));
    table.apply(clock::now(), &view(epoch), 1, epoch);
    let start = now();
    let opening = table.open_waiting();
    Ok((table, opening, start.elapsed()))
}

/// Publishes so many times; says how long each took.
fn publish(
    table: &Table,
    count: usize,
    turn_len: usize,
    data: &Bytes,
) -> Result<Duration, MeasureError> {
    let channels: Vec<_> = channels().collect();
    let link = Arc::new(Link::new(Millis(0)));
    let mut rng = StdRng::seed_from_u64(1);
    let start = now();
    for first in (0..count).step_by(turn_len) {
        let mut turn = Turn::new(clock::now());
        for index in first..count.min(first + turn_len) {
            let publish = Publish {
                seq: index as u64 + 1,
                channel: Bytes::copy_from_slice(channels[index % CHANNELS].as_bytes()),
                data: Some(data.clone()),
                producer: Bytes::from(format!("producer {}", index % PRODUCERS)),
                n: index as u64 + 1,
                shard_epoch: 1,
                age_ms: 0,
                attempt: 0,
            };
            if table.publish(&mut turn, &mut rng, &link, &publish) != Publishing::Staged {
                return Err(MeasureError::Refused);
            }
        }
        sync(table, &table.commit(&mut turn));
    }
    Ok(start.elapsed() / u32::try_from(count.max(1)).unwrap_or(u32::MAX))
}

/// Waits for the disk, with as many threads as a broker has for that.
fn sync(table: &Table, shards: &[ShardId]) {
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..shards.len().min(SYNCING_THREADS) {
            scope.spawn(|| {
                while let Some(shard) = shards.get(next.fetch_add(1, Ordering::Relaxed)) {
                    table.sync(*shard, clock::now);
                }
            });
        }
    });
}

/// Such that everything is retained.
fn limits() -> Limits {
    Limits {
        tail_age: Duration::from_secs(3600),
        histories: Histories::default(),
        tail_bytes_max: usize::MAX,
        key_window: Duration::from_secs(60),
        producers_max: 1 << 18,
        channel_idle: Duration::from_secs(60),
    }
}

/// All shards are slot 1's, opened at this epoch.
fn view(epoch: u64) -> View {
    let nodes = [BrokerNode {
        slot: 1,
        incarnation: epoch,
        address: "unix:/nowhere".into(),
    }];
    View::next_above(epoch - 1, &View::default(), nodes)
}

#[expect(clippy::disallowed_methods, reason = "a measurement needs a clock")]
fn now() -> Instant {
    Instant::now()
}

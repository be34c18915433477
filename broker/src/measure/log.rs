//! What a publication costs in a shard's log, and what the beginning of a
//! segment costs a shard with histories, for the benchmark `log`.

use std::{path::Path, time::Duration};

use bytes::Bytes;
use muster_daemon::{
    ByteSize, clock,
    config::{BrokerConfig, History, Namespace},
};
use muster_proto::ShardId;
use muster_wire::Millis;

use super::{MeasureError, limits, now, remove};
use crate::{
    journal::{Home, Recovered, StagedPublication},
    limits::{Histories, Limits},
    log::Log,
};

/// Bytes that a shard counts for each publication beside its data.
const OVERHEAD_BYTES: usize = 112;
/// Producers that publish in turn.
const PRODUCERS: usize = 100;

/// What is kept of the channels that are measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keeping {
    /// Each publication leaves the tail when the shard's room is full.
    Tails,
    /// It leaves the tail at once and goes when its channel's history is full.
    Histories,
}

/// How long one publication takes to be given its offset and to join the log of a
/// shard with so many channels that are published to in turn, each of which keeps
/// a hundred: a mean of `count`.
#[must_use]
pub fn append(keeping: Keeping, channels: usize, count: usize, data_bytes: usize) -> Duration {
    let kept = 100 * channels;
    let limits = match keeping {
        Keeping::Tails => Limits {
            tail_bytes_max: kept * (data_bytes + OVERHEAD_BYTES),
            ..limits()
        },
        Keeping::Histories => Limits {
            tail_age: Duration::ZERO,
            histories: keep_last(100),
            ..limits()
        },
    };
    let mut log = Log::new(Millis(0), limits);
    let mut rng = 0_u64..;
    let keys: Vec<_> = (0..channels)
        .map(|it| {
            let generation = rng.next().unwrap_or_default();
            log.begin(Millis(0), format!("channel {it}").as_bytes(), generation)
        })
        .collect();
    let data = Bytes::from(vec![b'1'; data_bytes]);
    let mut publish = |index: usize| {
        // One a millisecond, so that time passes and tails end.
        let at = Millis(index as u64);
        let key = keys[index % channels];
        log.assign(at, key);
        log.append(at.into(), at, key, Some(data.clone()));
    };
    // Until as much goes as comes.
    (0..kept + channels).for_each(&mut publish);
    let start = now();
    (kept..kept + count).for_each(&mut publish);
    start.elapsed() / u32::try_from(count.max(1)).unwrap_or(u32::MAX)
}

/// The beginning of a segment.
#[derive(Debug, Clone, Copy)]
pub struct Checkpoint {
    /// Publications in histories.
    pub publications: usize,
    /// Bytes of the new segment.
    pub bytes: u64,
    /// How long the shard's broker waited for it.
    pub took: Duration,
}

/// Fills one shard's histories with about `bytes` bytes of publications of
/// `data_bytes` each and begins a segment, which has a copy of all of it. The
/// journal is in `dir`, and what is there is removed afterwards.
///
/// # Errors
/// When the directory does not do or is too small.
pub fn checkpoint(dir: &Path, bytes: usize, data_bytes: usize) -> Result<Checkpoint, MeasureError> {
    let measured = begin_segment(dir, bytes / (data_bytes + OVERHEAD_BYTES), data_bytes);
    remove(dir)?;
    measured
}

fn begin_segment(dir: &Path, count: usize, data_bytes: usize) -> Result<Checkpoint, MeasureError> {
    let config = BrokerConfig {
        journal_dir: Some(dir.into()),
        journal_bytes_max: ByteSize::mib(1 << 20),
        ..BrokerConfig::default()
    };
    let limits = Limits {
        tail_age: Duration::ZERO,
        histories: keep_last(u64::MAX),
        ..limits()
    };
    let shard = ShardId::all().next().ok_or(MeasureError::Refused)?;
    let Recovered {
        mut log,
        mut journal,
        ..
    } = Home::open(&config, dir)?
        .open_shard(shard, 1, &limits)
        .map_err(|_| MeasureError::Refused)?;
    let data = vec![b'1'; data_bytes];
    let at = clock::now();
    let key = log.begin(at, b"channel", 1);
    for index in 0..count {
        let producer = format!("producer {}", index % PRODUCERS);
        let publication = StagedPublication {
            producer: producer.as_bytes(),
            n: index as u64 + 1,
            refused: 0,
            data: Some(&data),
        };
        journal.stage_publication(at, key, &log, publication);
        log.assign(at, key);
        let written = journal.commit();
        let _nothing_is_synced = written.map_err(|_| MeasureError::Refused)?;
        let later = at + Duration::from_millis(index as u64);
        log.append(later.into(), later, key, Some(Bytes::from(data.clone())));
    }
    log.trim(at + Duration::from_secs(86_400));
    // What was appended goes, as if it had been in many segments.
    journal.tidy(&log, 0, true);
    let start = now();
    journal.tidy(&log, 0, true);
    let took = start.elapsed();
    Ok(Checkpoint {
        publications: log.range(key, 0, u64::MAX).count(),
        bytes: journal.bytes(),
        took,
    })
}

/// Every channel keeps its last `count` publications.
fn keep_last(count: u64) -> Histories {
    Histories::new(vec![Namespace {
        history: Some(History {
            count: Some(count),
            bytes: None,
            age: None,
        }),
        ..Namespace::default()
    }])
}

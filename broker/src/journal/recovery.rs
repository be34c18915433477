//! Opens a shard from its segments: closed clean, killed or new is all one.

mod crash;
mod reader;

use std::{fmt, io, path::PathBuf, sync::Arc, time::Duration};

use muster_proto::ShardId;
use muster_wire::Millis;
use tracing::warn;

use self::{
    crash::{crashed_machine, is_unwritten},
    reader::{Content, SegmentReader},
};
use super::{
    Journal, Options, Segment,
    format::{HEADER_BYTES, Header, HeaderError, Opened, RecordError, decode, find_record},
    home::Clock,
    storage::Storage,
    stored::StoredSegment,
};
use crate::{
    journal::Health,
    limits::{Histories, Limits},
    log::{Log, Moment},
};

/// A shard as its journal has it.
#[derive(Debug)]
pub(crate) struct Recovered {
    pub(crate) log: Log,
    pub(crate) journal: Journal,
    pub(crate) recovery: Recovery,
}

/// What was found.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Recovery {
    /// Bytes read.
    pub(crate) bytes: u64,
    pub(crate) publications: u64,
    /// Bytes of a last record that was not written to its end, which were cut.
    pub(crate) torn_bytes: u64,
    /// The machine went down and what it had not written is lost, so every
    /// channel has a new generation (delivery.md C5).
    pub(crate) is_anew: bool,
}

/// Why a shard cannot be opened from its journal.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecoveryError {
    #[error("cannot read {}", file.display())]
    Read { file: PathBuf, source: io::Error },
    #[error("cannot write {}", file.display())]
    Write { file: PathBuf, source: io::Error },
    #[error(
        "{} is damaged at byte {at}: {damage}; `orchestrator journal check` says what can be done",
        file.display()
    )]
    Damaged {
        file: PathBuf,
        at: u64,
        damage: Damage,
    },
    #[error("the shard has been open at epoch {found}, which is later than {epoch}")]
    LaterEpoch { found: u64, epoch: u64 },
}

/// What is wrong with a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Damage {
    #[error(transparent)]
    Header(#[from] HeaderError),
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error("it is missing")]
    Missing,
    #[error("a publication of a channel that was not declared")]
    Channel,
    #[error("offset {found} follows {last}")]
    Offset { last: u64, found: u64 },
}

/// What these segments amount to, and what of them cannot be read.
pub(super) fn inspect(
    storage: &dyn Storage,
    shard: ShardId,
    sequences: &[u64],
    clock: Clock,
) -> Inspected {
    // Nothing need be retained to be counted.
    let limits = Limits {
        tail_age: Duration::ZERO,
        histories: Histories::default(),
        tail_bytes_max: 0,
        key_window: Duration::MAX,
        producers_max: usize::MAX,
        channel_idle: Duration::MAX,
    };
    let mut replay = Replay::new(&limits);
    let outcome = replay.all(storage, shard, sequences, clock);
    let is_crash = outcome.is_err() && crashed_machine(storage, shard, sequences, clock).is_some();
    Inspected {
        channels: replay.log.channels(),
        epoch: replay.epoch,
        recovery: Recovery {
            is_anew: is_crash || !replay.is_intact(clock),
            ..replay.recovery
        },
        failure: outcome.err().filter(|_| !is_crash),
    }
}

/// What segments amount to.
#[derive(Debug)]
pub(super) struct Inspected {
    pub(super) channels: usize,
    pub(super) epoch: u64,
    pub(super) recovery: Recovery,
    pub(super) failure: Option<RecoveryError>,
}

/// Opens a shard at this epoch from what is in `storage`.
pub(crate) fn open(
    storage: Box<dyn Storage>,
    shard: ShardId,
    epoch: u64,
    clock: Clock,
    limits: &Limits,
    options: Options,
) -> Result<Recovered, RecoveryError> {
    let opened = Opened {
        epoch,
        boot: clock.boot,
        at: clock.now.0,
        wall_ms: clock.wall_ms,
        is_synced: options.is_synced,
    };
    let read = |source| RecoveryError::Read {
        file: storage.name(0).parent().map(Into::into).unwrap_or_default(),
        source,
    };
    let sequences = storage.segments().map_err(read)?;
    let mut replay = replay_all(&*storage, shard, &sequences, clock, limits)?;
    if options.broken.torn_end {
        replay.keep_torn_end();
    }
    if replay.epoch > epoch && !options.broken.epochs {
        let found = replay.epoch;
        return Err(RecoveryError::LaterEpoch { found, epoch });
    }
    let mut recovery = replay.recovery;
    let is_intact = replay.is_intact(clock) || options.broken.power;
    let log = match is_intact && !options.broken.generations {
        true => replay.log,
        false => {
            recovery.is_anew = true;
            Log::new(clock.now, limits.clone())
        }
    };
    options
        .budget
        .open
        .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let mut journal = Journal {
        shard,
        storage,
        opened,
        options,
        is_opening_written: false,
        segments: replay.segments.into(),
        outdated: replay.unfinished.into_iter().collect(),
        buffer: Vec::new(),
        staged_publications: 0,
        late_bytes: 0,
        declared: Vec::new(),
        declared_now: Vec::new(),
        checkpoint_bytes: replay.checkpoint_bytes,
        is_stuck: false,
        health: Health::Good,
    };
    let bytes = journal.segments.iter().map(|segment| segment.bytes).sum();
    journal.options.budget.add(bytes);
    let mut log = log;
    let broken = journal.options.broken;
    broken.break_keys(log.keys_mut(), clock.now);
    if recovery.is_anew || journal.segments.is_empty() {
        journal.begin_anew(&log)?;
    } else {
        journal.resume(recovery.torn_bytes > 0)?;
    }
    log.trim(clock.now);
    Ok(Recovered {
        log,
        journal,
        recovery,
    })
}

impl Journal {
    /// Goes on in the newest segment, after what is whole of it.
    fn resume(&mut self, is_torn: bool) -> Result<(), RecoveryError> {
        let Segment {
            sequence, bytes, ..
        } = *self.present();
        let file = self.storage.name(sequence);
        let write = |source| RecoveryError::Write { file, source };
        self.storage
            .resume(sequence)
            .and_then(|()| {
                if is_torn {
                    self.storage.truncate(bytes)
                } else {
                    Ok(())
                }
            })
            .map_err(write)?;
        self.remove_outdated();
        self.stage_opening();
        // If that fails it is tried again with the first publication.
        let _ = self.commit();
        Ok(())
    }

    /// Begins with a segment of its own; what was there before is not needed.
    fn begin_anew(&mut self, log: &Log) -> Result<(), RecoveryError> {
        let last = self.segments.back().map_or(0, |segment| segment.sequence);
        let sequence = self.outdated.iter().copied().fold(last, u64::max) + 1;
        let content = self.checkpoint(sequence, log);
        if let Err(source) = self.storage.create(sequence, &content) {
            let file = self.storage.name(sequence);
            return Err(RecoveryError::Write { file, source });
        }
        let bytes = content.len() as u64;
        for segment in self.segments.drain(..) {
            self.options.budget.remove(segment.bytes);
            self.outdated.push(segment.sequence);
        }
        self.options.budget.add(bytes);
        self.segments.push_back(Segment {
            sequence,
            bytes,
            publications: 0,
            carried: 0,
        });
        self.checkpoint_bytes = bytes;
        self.is_opening_written = true;
        self.remove_outdated();
        Ok(())
    }
}

/// What the segments say, read one after another.
#[derive(Debug)]
struct Replay {
    log: Log,
    segments: Vec<Segment>,
    /// The newest segment, if its beginning was not written to its end.
    unfinished: Option<u64>,
    /// Bytes of the newest segment's checkpoint.
    checkpoint_bytes: u64,
    epoch: u64,
    /// The last broker that had it open, unless it closed it.
    open: Option<Opened>,
    recovery: Recovery,
    /// Room for a segment's content.
    content: Vec<u8>,
}

/// Reads every segment. Where what they say is lost anyway, damage is no
/// hindrance.
fn replay_all(
    storage: &dyn Storage,
    shard: ShardId,
    sequences: &[u64],
    clock: Clock,
    limits: &Limits,
) -> Result<Replay, RecoveryError> {
    let mut replay = Replay::new(limits);
    let Err(error) = replay.all(storage, shard, sequences, clock) else {
        return Ok(replay);
    };
    match crashed_machine(storage, shard, sequences, clock) {
        Some(crashed) if matches!(error, RecoveryError::Damaged { .. }) => {
            let error: &dyn std::error::Error = &error;
            warn!(%shard, error, "Let go of a journal that the machine's crash has cut.");
            let nothing = |&sequence: &u64| Segment {
                sequence,
                bytes: 0,
                publications: 0,
                carried: 0,
            };
            Ok(Replay {
                log: Log::new(Millis(0), limits.clone()),
                segments: sequences.iter().map(nothing).collect(),
                epoch: crashed.epoch.max(replay.epoch),
                open: Some(crashed),
                ..replay
            })
        }
        Some(_) | None => Err(error),
    }
}

impl Opened {
    /// Whether what was written since may be lost (delivery.md C5).
    fn is_lost(&self, clock: Clock) -> bool {
        self.boot != clock.boot && !self.is_synced
    }

    /// A moment of this opening on the present clock.
    fn translate(&self, at: i64, clock: Clock) -> Moment {
        if self.boot == clock.boot {
            return Moment(at);
        }
        let signed = |millis| i64::try_from(millis).unwrap_or(i64::MAX);
        let wall_ms = signed(self.wall_ms)
            .saturating_add(at)
            .saturating_sub(signed(self.at));
        let age = signed(clock.wall_ms).saturating_sub(wall_ms).max(0);
        Moment(signed(clock.now.0).saturating_sub(age))
    }
}

impl Replay {
    fn new(limits: &Limits) -> Self {
        Self {
            log: Log::new(Millis(0), limits.clone()),
            segments: Vec::new(),
            unfinished: None,
            checkpoint_bytes: 0,
            epoch: 0,
            open: None,
            recovery: Recovery::default(),
            content: Vec::new(),
        }
    }

    fn all(
        &mut self,
        storage: &dyn Storage,
        shard: ShardId,
        sequences: &[u64],
        clock: Clock,
    ) -> Result<(), RecoveryError> {
        for (index, &sequence) in sequences.iter().enumerate() {
            let is_newest = index + 1 == sequences.len();
            let last = self.segments.last();
            let expected = last.map_or(sequence, |it| it.sequence + 1);
            if sequence != expected {
                return Err(damaged(storage, expected, 0, Damage::Missing));
            }
            self.segment(storage, shard, sequence, is_newest, clock)?;
        }
        Ok(())
    }

    /// Breaks C4 on purpose.
    fn keep_torn_end(&mut self) {
        if let (None, Some(newest)) = (self.unfinished, self.segments.last_mut()) {
            newest.bytes += std::mem::take(&mut self.recovery.torn_bytes);
        }
    }

    fn is_intact(&self, clock: Clock) -> bool {
        self.open.is_none_or(|open| !open.is_lost(clock))
    }

    fn segment(
        &mut self,
        storage: &dyn Storage,
        shard: ShardId,
        sequence: u64,
        is_newest: bool,
        clock: Clock,
    ) -> Result<(), RecoveryError> {
        let mut content = std::mem::take(&mut self.content);
        storage
            .read(sequence, &mut content)
            .map_err(|source| RecoveryError::Read {
                file: storage.name(sequence),
                source,
            })?;
        let content = if is_newest {
            Content::Held(content.into())
        } else {
            let stored = StoredSegment::new(sequence, storage.reader(sequence));
            Content::Read(content, Arc::new(stored))
        };
        self.records(storage, shard, sequence, &content, clock)?;
        if let Content::Read(room, _) = content {
            self.content = room;
        }
        Ok(())
    }

    fn records(
        &mut self,
        storage: &dyn Storage,
        shard: ShardId,
        sequence: u64,
        segment: &Content,
        clock: Clock,
    ) -> Result<(), RecoveryError> {
        let content = segment.bytes();
        let is_newest = matches!(segment, Content::Held(_));
        self.recovery.bytes += content.len() as u64;
        if is_newest && !self.segments.is_empty() && is_unwritten(content) {
            self.recovery.torn_bytes += content.len() as u64;
            self.unfinished = Some(sequence);
            return Ok(());
        }
        Header::decode(content, shard, sequence)
            .map_err(|error| damaged(storage, sequence, 0, error.into()))?;
        let mut reader = SegmentReader::new(self, segment, clock);
        let mut at = HEADER_BYTES;
        let end = loop {
            match decode(content, sequence, at) {
                Ok(None) => break at,
                Ok(Some((record, end))) => {
                    reader
                        .take(record, at, end)
                        .map_err(|damage| damaged(storage, sequence, at, damage))?;
                    at = end;
                }
                Err(_) if is_newest && find_record(content, sequence, at).is_none() => break at,
                Err(error) => return Err(damaged(storage, sequence, at, error.into())),
            }
        };
        let is_begun = reader.is_begun;
        self.recovery.torn_bytes += (content.len() - end) as u64;
        if !is_begun {
            if !is_newest || self.segments.is_empty() {
                return Err(damaged(storage, sequence, end, RecordError::Short.into()));
            }
            // Nothing that anybody has heard of can be in it.
            self.recovery.torn_bytes += end as u64;
            self.unfinished = Some(sequence);
            return Ok(());
        }
        self.segments.push(Segment {
            sequence,
            bytes: end as u64,
            publications: self.recovery.publications,
            // How much it had to carry is not known any more.
            carried: 0,
        });
        Ok(())
    }
}

fn damaged(storage: &dyn Storage, sequence: u64, at: usize, damage: Damage) -> RecoveryError {
    RecoveryError::Damaged {
        file: storage.name(sequence),
        at: at as u64,
        damage,
    }
}

impl fmt::Display for Recovery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            bytes,
            publications,
            torn_bytes,
            is_anew,
        } = self;
        write!(
            f,
            "{bytes} bytes, {publications} publications, {torn_bytes} torn, anew: {is_anew}"
        )
    }
}

//! Takes over what a segment says, record by record.

use std::sync::Arc;

use bytes::Bytes;
use muster_wire::Millis;

use super::{
    super::{
        format::{ChannelId, Copied, Opened, Publication, Record},
        home::Clock,
    },
    Damage, Replay,
};
use crate::{
    keys::Last,
    log::{ChannelKey, Data, Kept, Moment, Stored},
};

/// What is in a segment.
pub(super) enum Content {
    /// The newest one stays in memory, because whoever resumes after a moment
    /// asks for what is in it.
    Held(Bytes),
    /// Others are read again when somebody asks.
    Read(Vec<u8>, Arc<dyn Stored>),
}

impl Content {
    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Self::Held(content) => content,
            Self::Read(content, _) => content,
        }
    }

    /// Data that is a part of it, of the publication at `at`.
    fn data(&self, at: usize, data: &[u8]) -> Data {
        match self {
            Self::Held(content) => Data::Held(content.slice_ref(data)),
            Self::Read(_, stored) => Data::Stored {
                source: Arc::clone(stored),
                at: at as u64,
                len: u32::try_from(data.len()).expect("a record is below 4 GiB"),
            },
        }
    }
}

/// Takes over the records of one segment.
pub(super) struct SegmentReader<'a> {
    replay: &'a mut Replay,
    segment: &'a Content,
    clock: Clock,
    /// What moments are relative to.
    base: Option<Opened>,
    /// By the numbers they have in this segment.
    channels: Vec<Option<ChannelKey>>,
    /// Its checkpoint is whole.
    pub(super) is_begun: bool,
}

impl<'a> SegmentReader<'a> {
    pub(super) fn new(replay: &'a mut Replay, segment: &'a Content, clock: Clock) -> Self {
        Self {
            replay,
            segment,
            clock,
            base: None,
            channels: Vec::new(),
            is_begun: false,
        }
    }

    pub(super) fn take(&mut self, record: Record<'_>, at: usize, end: usize) -> Result<(), Damage> {
        match record {
            Record::Opened(opened) => {
                self.base = Some(opened);
                self.replay.open = Some(opened);
                self.replay.epoch = self.replay.epoch.max(opened.epoch);
            }
            Record::Closed => self.replay.open = None,
            Record::Channel {
                id,
                generation,
                offset,
                name,
            } => return self.channel(id, generation, offset, name),
            Record::Publication(publication) => return self.publication(&publication, at),
            Record::Keys { turned_at } => {
                let turned_at = self.moment(Millis(turned_at).into()).since_boot();
                self.replay.log.keys_mut().clear(turned_at);
            }
            Record::Key {
                is_older,
                n,
                refused,
                producer,
            } => {
                let last = Last { n, refused };
                self.replay.log.keys_mut().load(is_older, producer, last);
            }
            Record::Copy(copied) => return self.copied(&copied),
            Record::End => {
                self.is_begun = true;
                self.replay.checkpoint_bytes = end as u64;
            }
        }
        Ok(())
    }

    fn channel(
        &mut self,
        id: ChannelId,
        generation: u64,
        offset: u64,
        name: &[u8],
    ) -> Result<(), Damage> {
        let now = self.clock.now;
        let log = &mut self.replay.log;
        let known = log.find(name);
        let key = match known.map(|key| (key, log.head(key))) {
            Some((key, head)) if head.generation == generation => {
                if head.offset != offset {
                    let (last, found) = (head.offset, offset);
                    return Err(Damage::Offset { last, found });
                }
                key
            }
            Some((key, _)) => {
                // It was forgotten and has begun again.
                log.forget(key);
                log.resume(now, name, generation, offset)
            }
            None => log.resume(now, name, generation, offset),
        };
        let index = id as usize;
        if index >= self.channels.len() {
            self.channels.resize(index + 1, None);
        }
        self.channels[index] = Some(key);
        Ok(())
    }

    fn publication(&mut self, publication: &Publication<'_>, place: usize) -> Result<(), Damage> {
        let key = self.channels.get(publication.channel as usize);
        let key = key.copied().flatten().ok_or(Damage::Channel)?;
        let at = self.moment(Millis(publication.at).into());
        let log = &mut self.replay.log;
        let last = log.head(key).offset;
        if publication.offset != last + 1 {
            let found = publication.offset;
            return Err(Damage::Offset { last, found });
        }
        let data = publication.data.map(|data| match log.has_history(key) {
            // It may stay long, and in every checkpoint.
            true => Data::Held(Bytes::copy_from_slice(data)),
            false => self.segment.data(place, data),
        });
        log.assign(at.since_boot(), key);
        log.keep(at.since_boot(), key, Kept::new(at, data));
        if publication.refused > 0 {
            log.keys_mut()
                .note_refused(publication.producer, publication.refused);
        }
        // There was a place for it, and there is more of it now.
        let _ = log.keys_mut().remember(publication.producer, publication.n);
        self.replay.recovery.publications += 1;
        Ok(())
    }

    /// What earlier segments have brought already is not taken twice.
    fn copied(&mut self, copied: &Copied<'_>) -> Result<(), Damage> {
        let key = self.channels.get(copied.channel as usize);
        let key = key.copied().flatten().ok_or(Damage::Channel)?;
        let at = self.moment(Moment(copied.at));
        let log = &mut self.replay.log;
        if log.has_history(key) {
            let data = copied.data.map(Bytes::copy_from_slice).map(Data::Held);
            log.append_oldest(key, copied.offset, Kept::new(at, data));
        }
        Ok(())
    }

    fn moment(&self, at: Moment) -> Moment {
        let now = self.clock.now.into();
        self.base
            .map_or(now, |base| base.translate(at.0, self.clock))
    }
}

//! Segments in memory, whose writes fail where they are told to: for tests and
//! simulations.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use muster_proto::link::Position;

use super::{
    format::{HEADER_BYTES, Record, decode},
    storage::{ReadSegment, Storage},
};

/// Segments that outlive who writes them.
#[derive(Debug, Clone, Default)]
pub(crate) struct MemoryDisk {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    segments: BTreeMap<u64, Vec<u8>>,
    faults: Faults,
}

/// What fails from now on.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Faults {
    /// Bytes that can still be written; then it is full.
    pub(crate) room: Option<u64>,
    pub(crate) no_truncation: bool,
}

impl MemoryDisk {
    pub(crate) fn set_faults(&self, faults: Faults) {
        self.lock().faults = faults;
    }

    /// The newest segment and its content.
    #[cfg(test)]
    pub(crate) fn newest(&self) -> Option<(u64, Vec<u8>)> {
        let state = self.lock();
        let (sequence, content) = state.segments.last_key_value()?;
        Some((*sequence, content.clone()))
    }

    /// Puts a segment's content in its place.
    #[cfg(test)]
    pub(crate) fn put(&self, sequence: u64, content: Vec<u8>) {
        self.lock().segments.insert(sequence, content);
    }

    /// Cuts the newest segment to the length that is chosen.
    pub(crate) fn cut(&self, mut choose: impl FnMut(&[u8]) -> usize) {
        if let Some(mut segment) = self.lock().segments.last_entry() {
            let len = choose(segment.get());
            segment.get_mut().truncate(len);
        }
    }

    /// Cuts the newest segment after one of its records, or before the first.
    pub(crate) fn cut_records(&self, mut choose: impl FnMut(usize) -> usize) {
        let mut state = self.lock();
        let Some(mut segment) = state.segments.last_entry() else {
            return;
        };
        if segment.get().len() < HEADER_BYTES {
            return; // It has been cut before, and nobody has opened it since.
        }
        let mut ends = vec![HEADER_BYTES];
        while let Ok(Some((_, end))) = decode(segment.get(), *segment.key(), ends[ends.len() - 1]) {
            ends.push(end);
        }
        let end = ends[choose(ends.len())];
        segment.get_mut().truncate(end);
    }

    /// The publications that are there whole, with their channels.
    pub(crate) fn publications(&self) -> Vec<(Bytes, Position, Option<Bytes>)> {
        let mut found = Vec::new();
        for (sequence, content) in &self.lock().segments {
            let mut channels = BTreeMap::new();
            let mut at = HEADER_BYTES.min(content.len());
            while let Ok(Some((record, end))) = decode(content, *sequence, at) {
                at = end;
                if let Record::Channel {
                    id,
                    generation,
                    name,
                    ..
                } = record
                {
                    channels.insert(id, (Bytes::copy_from_slice(name), generation));
                } else if let Record::Publication(publication) = record
                    && let Some((name, generation)) = channels.get(&publication.channel)
                {
                    let position = Position {
                        generation: *generation,
                        offset: publication.offset,
                    };
                    let data = publication.data.map(Bytes::copy_from_slice);
                    found.push((name.clone(), position, data));
                }
            }
        }
        found
    }

    /// Bytes of all segments.
    pub(crate) fn bytes(&self) -> usize {
        self.lock().segments.values().map(Vec::len).sum()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A disk with the segment that is written to.
#[derive(Debug)]
pub(crate) struct Memory {
    disk: MemoryDisk,
    current: u64,
}

/// A segment on such a disk.
#[derive(Debug)]
struct SegmentInMemory {
    disk: MemoryDisk,
    sequence: u64,
}

impl ReadSegment for SegmentInMemory {
    fn read(&self) -> io::Result<Vec<u8>> {
        self.disk.lock().segment(self.sequence).cloned()
    }
}

impl Memory {
    pub(crate) fn new(disk: &MemoryDisk) -> Self {
        Self {
            disk: disk.clone(),
            current: 0,
        }
    }
}

impl State {
    fn segment(&mut self, sequence: u64) -> io::Result<&mut Vec<u8>> {
        let segment = self.segments.get_mut(&sequence);
        segment.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// How much of `bytes` can be written.
    fn room_for(&mut self, bytes: usize) -> usize {
        let Some(room) = &mut self.faults.room else {
            return bytes;
        };
        let written = bytes.min(usize::try_from(*room).unwrap_or(usize::MAX));
        *room -= written as u64;
        written
    }
}

impl Storage for Memory {
    fn segments(&self) -> io::Result<Vec<u64>> {
        Ok(self.disk.lock().segments.keys().copied().collect())
    }

    fn read(&self, sequence: u64, content: &mut Vec<u8>) -> io::Result<()> {
        content.clone_from(self.disk.lock().segment(sequence)?);
        Ok(())
    }

    fn reader(&self, sequence: u64) -> Box<dyn ReadSegment> {
        Box::new(SegmentInMemory {
            disk: self.disk.clone(),
            sequence,
        })
    }

    fn resume(&mut self, sequence: u64) -> io::Result<()> {
        self.current = sequence;
        self.disk.lock().segment(sequence).map(|_| ())
    }

    fn create(&mut self, sequence: u64, content: &[u8]) -> io::Result<()> {
        let mut state = self.disk.lock();
        if state.room_for(content.len()) < content.len() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        state.segments.insert(sequence, content.to_vec());
        self.current = sequence;
        Ok(())
    }

    fn write_at(&mut self, at: u64, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.disk.lock();
        let written = state.room_for(bytes.len());
        if written == 0 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let at = usize::try_from(at).unwrap_or(usize::MAX);
        let segment = state.segment(self.current)?;
        if segment.len() < at + written {
            segment.resize(at + written, 0);
        }
        segment[at..at + written].copy_from_slice(&bytes[..written]);
        Ok(written)
    }

    fn truncate(&mut self, len: u64) -> io::Result<()> {
        let mut state = self.disk.lock();
        if state.faults.no_truncation {
            return Err(io::ErrorKind::Other.into());
        }
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        let segment = state.segment(self.current)?;
        let freed = segment.len().saturating_sub(len) as u64;
        segment.truncate(len);
        if let Some(room) = &mut state.faults.room {
            *room += freed;
        }
        Ok(())
    }

    fn remove(&mut self, sequence: u64) -> io::Result<()> {
        self.disk.lock().segments.remove(&sequence);
        Ok(())
    }

    fn take_unsynced(&mut self) -> Vec<Arc<File>> {
        Vec::new()
    }

    fn name(&self, sequence: u64) -> PathBuf {
        format!("segment {sequence}").into()
    }
}

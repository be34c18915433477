//! Segments whose publications are retained and not in memory.

use std::{io, sync::OnceLock};

use bytes::Bytes;

use super::{
    format::{Publication, Record, decode},
    storage::ReadSegment,
};
use crate::log::Stored;

/// A segment that was read when its shard was opened. It is read again, whole
/// and once, when somebody asks for something in it, and stays in memory for as
/// long as anything of it is retained. Its file is there for as long, too.
#[derive(Debug)]
pub(super) struct StoredSegment {
    sequence: u64,
    reader: Box<dyn ReadSegment>,
    content: OnceLock<Bytes>,
}

impl StoredSegment {
    pub(super) fn new(sequence: u64, reader: Box<dyn ReadSegment>) -> Self {
        Self {
            sequence,
            reader,
            content: OnceLock::new(),
        }
    }

    fn content(&self) -> io::Result<&Bytes> {
        if let Some(content) = self.content.get() {
            return Ok(content);
        }
        let read = Bytes::from(self.reader.read()?);
        Ok(self.content.get_or_init(|| read))
    }
}

impl Stored for StoredSegment {
    fn read(&self, at: u64) -> io::Result<Bytes> {
        let content = self.content()?;
        let at = usize::try_from(at).unwrap_or(usize::MAX).min(content.len());
        match decode(content, self.sequence, at) {
            Ok(Some((
                Record::Publication(Publication {
                    data: Some(data), ..
                }),
                _,
            ))) => Ok(content.slice_ref(data)),
            Ok(_) => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("segment {} has changed at byte {at}", self.sequence),
            )),
            Err(error) => Err(io::Error::new(io::ErrorKind::InvalidData, error)),
        }
    }
}

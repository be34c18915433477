//! The data of a publication that is kept: in memory, or where it can be read.

use std::{fmt, io, sync::Arc};

use bytes::Bytes;

/// The data of a publication that is kept.
#[derive(Debug, Clone)]
pub(crate) enum Data {
    Held(Bytes),
    /// Not in memory before somebody asks for it; see [`Log::load`].
    ///
    /// [`Log::load`]: super::Log::load
    Stored {
        source: Arc<dyn Stored>,
        /// Where the publication stands in the source.
        at: u64,
        /// Bytes of data.
        len: u32,
    },
}

/// What has publications that are kept and not in memory.
pub(crate) trait Stored: fmt::Debug + Send + Sync {
    /// The data of the publication that stands there.
    fn read(&self, at: u64) -> io::Result<Bytes>;
}

impl Data {
    /// Bytes.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Held(data) => data.len(),
            Self::Stored { len, .. } => *len as usize,
        }
    }

    /// Reads it if it is not in memory.
    pub(super) fn load(&mut self) -> io::Result<()> {
        if let Self::Stored { source, at, .. } = self {
            *self = Self::Held(source.read(*at)?);
        }
        Ok(())
    }

    /// What is in memory.
    pub(super) fn held(&self) -> Option<&Bytes> {
        match self {
            Self::Held(data) => Some(data),
            Self::Stored { .. } => None,
        }
    }
}

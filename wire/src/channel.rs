//! Channel names.

use std::{borrow::Borrow, fmt, ops::Deref, sync::Arc};

use serde::{Deserialize, Serialize};

/// Longest channel name, in bytes of UTF-8 after JSON unescaping.
pub const CHANNEL_NAME_BYTES_MAX: usize = 512;

/// A channel's name: any string of at most [`CHANNEL_NAME_BYTES_MAX`] bytes.
///
/// The empty name is a name, and so is every word that is special in
/// JavaScript. Clones share one allocation.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct ChannelName(Arc<str>);

/// Why a string is no channel name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChannelNameError {
    /// More bytes than are allowed, at most [`CHANNEL_NAME_BYTES_MAX`].
    #[error("channel name has {len} bytes, at most {max} are allowed")]
    TooLong {
        /// Bytes of the rejected name.
        len: usize,
        /// Bytes that are allowed.
        max: usize,
    },
    /// Not UTF-8 (from another process, never from a client).
    #[error("channel name is not UTF-8")]
    NotUtf8,
}

impl TryFrom<&str> for ChannelName {
    type Error = ChannelNameError;

    fn try_from(raw: &str) -> Result<Self, ChannelNameError> {
        match raw.len() {
            len if len <= CHANNEL_NAME_BYTES_MAX => Ok(Self(raw.into())),
            len => Err(ChannelNameError::TooLong {
                len,
                max: CHANNEL_NAME_BYTES_MAX,
            }),
        }
    }
}

impl TryFrom<String> for ChannelName {
    type Error = ChannelNameError;

    fn try_from(raw: String) -> Result<Self, ChannelNameError> {
        Self::try_from(raw.as_str())
    }
}

impl TryFrom<&[u8]> for ChannelName {
    type Error = ChannelNameError;

    fn try_from(raw: &[u8]) -> Result<Self, ChannelNameError> {
        let text = std::str::from_utf8(raw).map_err(|_| ChannelNameError::NotUtf8)?;
        Self::try_from(text)
    }
}

impl Deref for ChannelName {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for ChannelName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ChannelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

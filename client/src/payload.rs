//! JSON as it arrived.

use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};

use crate::Error;

/// What a packet carries: raw JSON, or nothing.
#[derive(Debug, Clone, Default)]
pub struct Payload(Option<Box<RawValue>>);

impl Payload {
    /// The JSON text exactly as it arrived; absent is not the same as `null`.
    #[must_use]
    pub fn raw(&self) -> Option<&str> {
        self.0.as_deref().map(RawValue::get)
    }

    /// Reads it as a `T`, which may borrow from it; absent is read as `null`.
    ///
    /// # Errors
    /// When the JSON does not describe a `T`.
    pub fn json<'a, T: Deserialize<'a>>(&'a self) -> Result<T, serde_json::Error> {
        serde_json::from_str(self.raw().unwrap_or("null"))
    }

    /// The raw JSON itself.
    #[must_use]
    pub fn into_raw(self) -> Option<Box<RawValue>> {
        self.0
    }

    pub(crate) const fn new(raw: Option<Box<RawValue>>) -> Self {
        Self(raw)
    }
}

/// Writes what an application wants to send.
pub(crate) fn encode<T: Serialize + ?Sized>(data: &T) -> Result<Box<RawValue>, Error> {
    to_raw_value(data).map_err(Error::Encode)
}

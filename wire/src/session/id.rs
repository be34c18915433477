//! What a session is known by.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// Bytes of a session id.
pub const SESSION_ID_LEN: usize = 20;

/// What a client knows its session by, and the producer in its publications'
/// keys: 20 characters of URL-safe base64, so 120 bits that nobody can guess.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SessionId([u8; SESSION_ID_LEN]);

impl SessionId {
    /// An id from 15 random bytes.
    #[must_use]
    pub fn from_random(bytes: [u8; 15]) -> Self {
        use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

        let mut id = [0; SESSION_ID_LEN];
        URL_SAFE_NO_PAD
            .encode_slice(bytes, &mut id)
            .expect("15 bytes are 20 characters of base64");
        if id[0] == b'-' {
            // On an operator's command line that would be an option.
            id[0] = b'_';
        }
        Self(id)
    }

    /// The id as the client sees it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SessionId({self})")
    }
}

impl Serialize for SessionId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for SessionId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        let id = text.as_bytes().try_into();
        id.map(Self).map_err(|_| {
            let len = text.len();
            D::Error::custom(format!(
                "a session id has {SESSION_ID_LEN} bytes, not {len}"
            ))
        })
    }
}

//! The number by which a call and its answer find each other.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Longest number text that is kept as it came; longer ones are rewritten.
const TEXT_BYTES_MAX: usize = 32;

/// A `cid`: any JSON number, repeated in the answer's `rid`.
///
/// The number's own spelling is kept (`0.5`, `-1`, `1e2`), because a client
/// compares values and every spelling of a value is equal to it. A number too
/// long to keep is written the way a 64-bit float prints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallId(Repr);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum Repr {
    /// What every client sends; needs no allocation.
    Integer(u64),
    Text(Box<str>),
}

impl CallId {
    /// Reads a `cid` or `rid` from its raw JSON; `None` for everything that is
    /// not a number, and for numbers beyond a 64-bit float (which are infinite
    /// for a JavaScript client and would come back to it as `null`).
    #[must_use]
    pub fn from_json(raw: &str) -> Option<Self> {
        let first = *raw.as_bytes().first()?;
        if !(first.is_ascii_digit() || first == b'-') {
            return None;
        }
        let canonical_integer = raw.len() <= 15
            && raw.bytes().all(|byte| byte.is_ascii_digit())
            && (first != b'0' || raw.len() == 1);
        if canonical_integer {
            return raw.parse().ok().map(|id| Self(Repr::Integer(id)));
        }
        let value: f64 = raw.parse().ok()?;
        let text = if raw.len() <= TEXT_BYTES_MAX {
            raw.to_owned()
        } else {
            serde_json::Number::from_f64(value)?.to_string()
        };
        value.is_finite().then(|| Self(Repr::Text(text.into())))
    }
}

impl fmt::Display for CallId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Repr::Integer(id) => write!(f, "{id}"),
            Repr::Text(text) => f.write_str(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::CallId;

    fn spelled(raw: &str) -> Option<String> {
        CallId::from_json(raw).map(|id| id.to_string())
    }

    #[test]
    fn every_spelling_of_a_number_is_kept() {
        for raw in [
            "0",
            "1",
            "-1",
            "0.5",
            "1e2",
            "-0",
            "9007199254740993",
            "12E+3",
        ] {
            assert_eq!(spelled(raw).as_deref(), Some(raw));
        }
    }

    #[test]
    fn a_number_too_long_to_keep_is_rewritten_with_its_value() {
        let long = format!("2.5{}", "0".repeat(1000));
        assert_eq!(spelled(&long).as_deref(), Some("2.5"));
    }

    #[test]
    fn what_is_no_number_or_infinite_is_no_call_id() {
        for raw in ["null", "\"1\"", "true", "{}", "[]", "1e999", ""] {
            assert_eq!(spelled(raw), None, "{raw}");
        }
    }
}

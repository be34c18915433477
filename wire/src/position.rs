//! Places in channels, as clients and operators see them.

use std::{borrow::Cow, fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser::SerializeStruct as _};

/// A place in a channel: right after the publication at `offset`, 0 for its
/// beginning. Offsets compare only within one generation.
///
/// In JSON the generation is a text, because JavaScript's numbers cannot hold
/// it: `{"generation":"00c0ffee00c0ffee","offset":17}`; for people it is
/// `00c0ffee00c0ffee:17`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Position {
    /// Of the channel's log.
    pub generation: u64,
    /// Counts the log's publications.
    pub offset: u64,
}

impl Position {
    /// Whether something lies between an earlier position and this one.
    #[must_use]
    pub fn is_after(self, earlier: Self) -> bool {
        self.is_like(earlier) && self.offset > earlier.offset
    }

    /// Whether the two can be compared.
    #[must_use]
    pub fn is_like(self, other: Self) -> bool {
        self.generation == other.generation
    }
}

/// Why a text is no position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PositionError {
    /// The form is wrong.
    #[error("a position is GENERATION:OFFSET, such as 00c0ffee00c0ffee:17")]
    Form,
    /// The generation is none.
    #[error("a generation is 16 hexadecimal digits")]
    Generation,
    /// The offset is none.
    #[error("an offset is a whole number from 0 up")]
    Offset,
}

/// A generation as it is written.
pub(crate) struct Generation(pub(crate) u64);

const GENERATION_DIGITS: usize = 16;

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for Generation {
    type Err = PositionError;

    fn from_str(text: &str) -> Result<Self, PositionError> {
        let is_good =
            text.len() == GENERATION_DIGITS && text.bytes().all(|b| b.is_ascii_hexdigit());
        let value = is_good.then(|| u64::from_str_radix(text, 16).ok());
        value.flatten().map(Self).ok_or(PositionError::Generation)
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", Generation(self.generation), self.offset)
    }
}

impl FromStr for Position {
    type Err = PositionError;

    fn from_str(text: &str) -> Result<Self, PositionError> {
        let (generation, offset) = text.split_once(':').ok_or(PositionError::Form)?;
        let Generation(generation) = generation.parse()?;
        let is_number = offset.bytes().all(|b| b.is_ascii_digit());
        let offset = is_number.then(|| offset.parse().ok()).flatten();
        Ok(Self {
            generation,
            offset: offset.ok_or(PositionError::Offset)?,
        })
    }
}

impl Serialize for Position {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut position = serializer.serialize_struct("Position", 2)?;
        let generation = Generation(self.generation).to_string();
        position.serialize_field("generation", &generation)?;
        position.serialize_field("offset", &self.offset)?;
        position.end()
    }
}

impl<'de> Deserialize<'de> for Position {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields, rename = "Position")]
        struct Fields<'a> {
            #[serde(borrow)]
            generation: Cow<'a, str>,
            offset: u64,
        }
        let Fields { generation, offset } = Fields::deserialize(deserializer)?;
        let Generation(generation) = generation.parse().map_err(de::Error::custom)?;
        Ok(Self { generation, offset })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_position_reads_back_from_both_its_forms(generation: u64, offset: u64) {
            let position = Position { generation, offset };
            prop_assert_eq!(position.to_string().parse(), Ok(position));
            let json = serde_json::to_string(&position).unwrap();
            prop_assert_eq!(serde_json::from_str::<Position>(&json).unwrap(), position);
        }
    }

    #[test]
    fn what_is_no_position_is_refused_with_what_is_wrong() {
        for (text, error) in [
            ("", PositionError::Form),
            ("00c0ffee00c0ffee", PositionError::Form),
            ("c0ffee:1", PositionError::Generation),
            ("+0c0ffee00c0ffee:1", PositionError::Generation),
            ("00c0ffee00c0ffee:", PositionError::Offset),
            ("00c0ffee00c0ffee:-1", PositionError::Offset),
            ("00c0ffee00c0ffee:+1", PositionError::Offset),
            (
                "00c0ffee00c0ffee:18446744073709551616",
                PositionError::Offset,
            ),
        ] {
            assert_eq!(text.parse::<Position>(), Err(error), "{text}");
        }
        for json in [
            "{}",
            "{\"generation\":1,\"offset\":1}",
            "{\"generation\":\"1\",\"offset\":1}",
            "{\"generation\":\"00c0ffee00c0ffee\",\"offset\":-1}",
            "{\"generation\":\"00c0ffee00c0ffee\",\"offset\":1,\"x\":1}",
        ] {
            assert!(serde_json::from_str::<Position>(json).is_err(), "{json}");
        }
    }
}

//! What a session needs to know of tokens; signatures are checked by whoever
//! holds the key.

use serde::Serialize;

/// Seconds since the Unix epoch.
pub type UnixSeconds = u64;

/// A token that verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verified {
    /// When it expires, if it does.
    pub expires: Option<UnixSeconds>,
}

/// Why a token was not accepted (socketcluster.md section 8).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Past its `exp`.
    #[error("jwt expired")]
    Expired {
        /// The token's `exp`.
        expiry: UnixSeconds,
    },
    /// Before its `nbf`.
    #[error("jwt not active")]
    NotBefore {
        /// The token's `nbf`.
        date: UnixSeconds,
    },
    /// Signature, form or algorithm; the text is the reference's.
    #[error("{0}")]
    Invalid(&'static str),
    /// Anything else, above all a token that is not a string.
    #[error("{0}")]
    Other(&'static str),
}

/// A [`TokenError`] as clients get it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TokenErrorBody {
    message: String,
    name: &'static str,
    is_bad_token: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    expiry: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    date: Option<String>,
}

impl TokenError {
    /// Whether the client should forget the token.
    #[must_use]
    pub fn is_bad_token(&self) -> bool {
        !matches!(self, Self::NotBefore { .. })
    }

    pub(crate) fn body(&self) -> TokenErrorBody {
        let (name, expiry, date) = match self {
            Self::Expired { expiry } => ("AuthTokenExpiredError", Some(iso_date(*expiry)), None),
            Self::NotBefore { date } => ("AuthTokenNotBeforeError", None, Some(iso_date(*date))),
            Self::Invalid(_) => ("AuthTokenInvalidError", None, None),
            Self::Other(_) => ("AuthTokenError", None, None),
        };
        TokenErrorBody {
            message: self.to_string(),
            name,
            is_bad_token: self.is_bad_token(),
            expiry,
            date,
        }
    }
}

/// `1970-01-01T00:00:00.000Z`, as JavaScript's `Date` prints itself.
fn iso_date(seconds: UnixSeconds) -> String {
    // Years beyond 9999 have another form and mean "never" anyway.
    let seconds = seconds.min(253_402_300_799);
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil_date(days);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.000Z")
}

/// Proleptic Gregorian date of a day counted from 1970-01-01.
fn civil_date(days: u64) -> (u64, u64, u64) {
    let is_leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    // 146 097 days are exactly 400 years, and the pattern repeats.
    let mut year = 1970 + days / 146_097 * 400;
    let mut day = days % 146_097;
    loop {
        let length = if is_leap(year) { 366 } else { 365 };
        if day < length {
            break;
        }
        day -= length;
        year += 1;
    }
    let february = if is_leap(year) { 29 } else { 28 };
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if day < length {
            break;
        }
        day -= length;
        month += 1;
    }
    (year, month, day + 1)
}

#[cfg(test)]
mod tests {
    use super::iso_date;

    #[test]
    fn dates_print_as_javascript_prints_them() {
        assert_eq!(iso_date(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(iso_date(951_782_399), "2000-02-28T23:59:59.000Z");
        assert_eq!(iso_date(951_782_400), "2000-02-29T00:00:00.000Z");
        assert_eq!(iso_date(1_700_000_000), "2023-11-14T22:13:20.000Z");
        assert_eq!(iso_date(4_107_542_399), "2100-02-28T23:59:59.000Z");
        assert_eq!(iso_date(4_107_542_400), "2100-03-01T00:00:00.000Z");
        assert_eq!(iso_date(u64::MAX), "9999-12-31T23:59:59.000Z");
    }
}

//! JSON Web Tokens for tests.

use std::time::{SystemTime, UNIX_EPOCH};

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::Value;

/// Signs `claims` with `key` as HS256.
///
/// # Panics
/// When the claims are no object.
#[must_use]
pub fn sign(key: &[u8], claims: &Value) -> String {
    sign_with(Algorithm::HS256, key, claims)
}

/// Signs `claims` with `key` as HS256, HS384 or HS512.
///
/// # Panics
/// When the claims are no object or the algorithm is another one.
#[must_use]
pub fn sign_with(algorithm: Algorithm, key: &[u8], claims: &Value) -> String {
    jsonwebtoken::encode(
        &Header::new(algorithm),
        claims,
        &EncodingKey::from_secret(key),
    )
    .expect("tests sign objects with a symmetric key")
}

/// Seconds since 1970, `offset` seconds from now.
///
/// # Panics
/// When the host's clock is before 1970.
#[must_use]
pub fn seconds(offset: i64) -> i64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("it is after 1970");
    i64::try_from(now.as_secs()).expect("it is before the end of time") + offset
}

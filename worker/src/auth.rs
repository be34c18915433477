//! Tokens: JSON Web Tokens as the reference verifies and signs them
//! (socketcluster.md section 8).

use std::{path::PathBuf, time::Duration};

use jsonwebtoken::{
    Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, encode, errors::ErrorKind,
};
use muster_daemon::{
    auth_key::{self, AuthKey, AuthKeyError},
    config::AuthConfig,
};
use muster_wire::token::{TokenError, UnixSeconds, Verified};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

const HMAC: [Algorithm; 3] = [Algorithm::HS256, Algorithm::HS384, Algorithm::HS512];
const RSA: [Algorithm; 6] = [
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
];

/// The cluster's keys.
pub(crate) struct Auth {
    verify: DecodingKey,
    validation: Validation,
    /// Absent where only a public key is configured.
    sign: Option<EncodingKey>,
    token_expiry: Duration,
}

impl std::fmt::Debug for Auth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Auth")
            .field("algorithms", &self.validation.algorithms)
            .finish_non_exhaustive()
    }
}

/// Why the configured keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// The file is missing, unreadable or empty.
    #[error(transparent)]
    Key(#[from] AuthKeyError),
    /// The file holds something else.
    #[error("auth.public_key_file: {} holds no RSA or EC public key in PEM form", path.display())]
    NotPublicKey {
        /// The file.
        path: PathBuf,
    },
}

/// Why a token could not be issued.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SignError {
    #[error("the claims are not a JSON object")]
    NotAnObject,
    #[error("tokens cannot be signed here: only auth.public_key_file is configured")]
    NoSigningKey,
    #[error("the claims cannot be signed")]
    Failed,
}

/// Whether a worker could use the configured key.
///
/// # Errors
/// When no file or both are named, or the file is no key.
pub fn check_key(config: &AuthConfig) -> Result<(), AuthError> {
    Auth::load(config).map(|_| ())
}

impl Auth {
    /// Reads the configured key file.
    pub(crate) fn load(config: &AuthConfig) -> Result<Self, AuthError> {
        let pem = match auth_key::read(config)? {
            AuthKey::Secret(secret) => return Ok(Self::with_secret(&secret, config.token_expiry)),
            AuthKey::Public(pem) => pem,
        };
        let path = config.public_key_file.clone().unwrap_or_default();
        let (verify, algorithms) = public_key(&pem).ok_or(AuthError::NotPublicKey { path })?;
        let validation = validation(&algorithms);
        Ok(Self {
            verify,
            validation,
            sign: None,
            token_expiry: config.token_expiry,
        })
    }

    pub(crate) fn with_secret(secret: &[u8], token_expiry: Duration) -> Self {
        Self {
            verify: DecodingKey::from_secret(secret),
            validation: validation(&HMAC),
            sign: Some(EncodingKey::from_secret(secret)),
            token_expiry,
        }
    }

    /// Checks a token; expired means `now >= exp`, without leeway.
    pub(crate) fn verify(&self, token: &str, now: UnixSeconds) -> Result<Verified, TokenError> {
        let claims = decode::<Claims>(token, &self.verify, &self.validation)
            .map_err(|error| TokenError::Invalid(reference_text(error.kind())))?
            .claims;
        let not_before = claims
            .nbf
            .map(|nbf| seconds(&nbf).ok_or("invalid nbf value"))
            .transpose();
        if let Some(date) = not_before.map_err(TokenError::Invalid)?
            && date > now
        {
            return Err(TokenError::NotBefore { date });
        }
        let expires = claims
            .exp
            .map(|exp| seconds(&exp).ok_or("invalid exp value"))
            .transpose();
        match expires.map_err(TokenError::Invalid)? {
            Some(expiry) if now >= expiry => Err(TokenError::Expired { expiry }),
            expires => Ok(Verified { expires }),
        }
    }

    /// Issues a token: the claims, `iat`, and `exp` unless they have their own.
    pub(crate) fn sign(&self, claims: &str, now: UnixSeconds) -> Result<String, SignError> {
        let mut claims: Map<String, Value> =
            serde_json::from_str(claims).map_err(|_| SignError::NotAnObject)?;
        let key = self.sign.as_ref().ok_or(SignError::NoSigningKey)?;
        claims.insert("iat".into(), now.into());
        let expiry = now.saturating_add(self.token_expiry.as_secs());
        claims.entry("exp").or_insert_with(|| expiry.into());
        encode(&Header::new(Algorithm::HS256), &claims, key).map_err(|_| SignError::Failed)
    }
}

/// Only what the reference looks at; it takes tokens without `exp` and ignores
/// `aud`, `iss`, `sub` and `jti`.
#[derive(Debug, Deserialize)]
struct Claims {
    #[serde(default, deserialize_with = "given")]
    exp: Option<Value>,
    #[serde(default, deserialize_with = "given")]
    nbf: Option<Value>,
}

/// A member that is `null` is given, too.
fn given<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

fn validation(algorithms: &[Algorithm]) -> Validation {
    // The library's defaults (a minute's leeway, `exp` required, `aud` refused)
    // are not the reference's; times are checked by us, who are told the time.
    let mut validation = Validation::new(algorithms[0]);
    validation.algorithms = algorithms.to_vec();
    validation.required_spec_claims.clear();
    validation.leeway = 0;
    validation.validate_exp = false;
    validation.validate_nbf = false;
    validation.validate_aud = false;
    validation
}

fn public_key(pem: &[u8]) -> Option<(DecodingKey, Vec<Algorithm>)> {
    if let Ok(key) = DecodingKey::from_rsa_pem(pem) {
        return Some((key, RSA.to_vec()));
    }
    let key = DecodingKey::from_ec_pem(pem).ok()?;
    Some((key, vec![Algorithm::ES256, Algorithm::ES384]))
}

/// Whole seconds from which a token with this `exp` is expired.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "clamped before; a float-to-integer cast saturates"
)]
fn seconds(value: &Value) -> Option<UnixSeconds> {
    value
        .as_f64()
        .map(|seconds| seconds.ceil().max(0.0) as UnixSeconds)
}

fn reference_text(kind: &ErrorKind) -> &'static str {
    #[expect(clippy::wildcard_enum_match_arm, reason = "a foreign, open enum")]
    match kind {
        ErrorKind::InvalidSignature => "invalid signature",
        ErrorKind::InvalidAlgorithm
        | ErrorKind::InvalidAlgorithmName
        | ErrorKind::UnsupportedAlgorithm
        | ErrorKind::MissingAlgorithm => "invalid algorithm",
        ErrorKind::InvalidToken => "jwt malformed",
        _ => "invalid token",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixSeconds = 1_700_000_000;

    fn auth() -> Auth {
        Auth::with_secret(b"secret", Duration::from_secs(86_400))
    }

    fn token(algorithm: Algorithm, secret: &[u8], claims: &Value) -> String {
        encode(
            &Header::new(algorithm),
            claims,
            &EncodingKey::from_secret(secret),
        )
        .unwrap()
    }

    fn verify(claims: &Value) -> Result<Verified, TokenError> {
        auth().verify(&token(Algorithm::HS256, b"secret", claims), NOW)
    }

    #[test]
    fn all_three_hmac_algorithms_are_accepted_with_one_key() {
        for algorithm in HMAC {
            let token = token(
                algorithm,
                b"secret",
                &serde_json::json!({"name": "x", "aud": "y"}),
            );
            assert_eq!(auth().verify(&token, NOW), Ok(Verified { expires: None }));
        }
    }

    #[test]
    fn a_token_expires_in_the_second_of_its_exp_without_leeway() {
        let at = |exp: u64| verify(&serde_json::json!({ "exp": exp }));
        assert_eq!(
            at(NOW + 1),
            Ok(Verified {
                expires: Some(NOW + 1)
            })
        );
        assert_eq!(at(NOW), Err(TokenError::Expired { expiry: NOW }));
    }

    #[test]
    fn not_before_is_respected_where_it_is_given() {
        assert_eq!(
            verify(&serde_json::json!({ "nbf": NOW + 1 })),
            Err(TokenError::NotBefore { date: NOW + 1 })
        );
        assert!(verify(&serde_json::json!({ "nbf": NOW })).is_ok());
    }

    #[test]
    fn times_that_are_no_numbers_make_a_token_invalid() {
        for (claims, text) in [
            (serde_json::json!({"exp": "soon"}), "invalid exp value"),
            (serde_json::json!({"nbf": {}}), "invalid nbf value"),
            (serde_json::json!({"exp": null}), "invalid exp value"),
        ] {
            assert_eq!(verify(&claims), Err(TokenError::Invalid(text)));
        }
    }

    #[test]
    fn foreign_unsigned_and_mangled_tokens_are_invalid() {
        let foreign = token(Algorithm::HS256, b"other", &serde_json::json!({}));
        // {"alg":"none"}.{}.
        let unsigned = "eyJhbGciOiJub25lIn0.e30.";
        for token in [foreign.as_str(), unsigned, "x.y.z", "x", "..", ""] {
            let error = auth().verify(token, NOW).unwrap_err();
            assert!(
                matches!(error, TokenError::Invalid(_)),
                "{token}: {error:?}"
            );
        }
    }

    #[test]
    fn an_issued_token_verifies_and_expires_by_default_after_a_day() {
        let token = auth().sign(r#"{"name":"x"}"#, NOW).unwrap();
        assert_eq!(
            auth().verify(&token, NOW),
            Ok(Verified {
                expires: Some(NOW + 86_400)
            })
        );
        let token = auth()
            .sign(&format!(r#"{{"exp":{}}}"#, NOW + 5), NOW)
            .unwrap();
        assert_eq!(
            auth().verify(&token, NOW),
            Ok(Verified {
                expires: Some(NOW + 5)
            })
        );
        assert_eq!(auth().sign("[]", NOW), Err(SignError::NotAnObject));
    }
}

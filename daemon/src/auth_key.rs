//! The key that tokens are verified and signed with. It lives in files only
//! and is never printed.

use std::{
    fmt,
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use rand::CryptoRng;

use crate::config::AuthConfig;

/// Name of a generated key in the runtime directory.
const GENERATED_FILE: &str = "auth.key";
/// Entropy of a generated key; HS512 gains nothing from more than 64.
const GENERATED_BYTES: usize = 32;
/// No key is larger; a wrong path to something huge is found early.
const KEY_BYTES_MAX: u64 = 64 * 1024;

/// What tokens are verified with.
#[derive(Clone, PartialEq, Eq)]
pub enum AuthKey {
    /// Verifies and signs HS256, HS384 and HS512.
    Secret(Vec<u8>),
    /// PEM text; verifies RS*, PS* and ES*.
    Public(Vec<u8>),
}

impl fmt::Debug for AuthKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Secret(_) => "Secret(…)",
            Self::Public(_) => "Public(…)",
        })
    }
}

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum AuthKeyError {
    #[error(
        "auth.key_file and auth.public_key_file are both set: tokens are verified with one or \
         the other"
    )]
    Contradictory,
    #[error("neither auth.key_file nor auth.public_key_file is set")]
    Missing,
    #[error("{key}: cannot read {}", path.display())]
    Read {
        key: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("{key}: {} is empty", path.display())]
    Empty { key: &'static str, path: PathBuf },
    #[error("{key}: {} is larger than a key can be ({KEY_BYTES_MAX} bytes)", path.display())]
    TooLarge { key: &'static str, path: PathBuf },
    #[error("cannot write a generated key to {}", path.display())]
    Generate { path: PathBuf, source: io::Error },
}

/// Makes sure that there is a key, and returns the configuration that names it.
///
/// Where none is configured, one is generated in `runtime_dir` with mode 0600,
/// once: whoever comes later finds it there.
///
/// # Errors
///
/// When both files are set, the key cannot be read or is empty, or a generated
/// one cannot be written.
pub fn resolve(
    auth: &AuthConfig,
    runtime_dir: &Path,
    rng: &mut impl CryptoRng,
) -> Result<AuthConfig, AuthKeyError> {
    let mut resolved = auth.clone();
    if auth.key_file.is_none() && auth.public_key_file.is_none() {
        let path = runtime_dir.join(GENERATED_FILE);
        generate(&path, rng).map_err(|source| AuthKeyError::Generate {
            path: path.clone(),
            source,
        })?;
        resolved.key_file = Some(path);
    }
    read(&resolved)?;
    Ok(resolved)
}

/// Reads the configured key.
///
/// # Errors
///
/// When none or both files are set, or the file cannot be read or is empty.
pub fn read(auth: &AuthConfig) -> Result<AuthKey, AuthKeyError> {
    match (&auth.key_file, &auth.public_key_file) {
        (Some(path), None) => {
            let mut secret = read_file("auth.key_file", path)?;
            if secret.ends_with(b"\n") {
                secret.pop();
            }
            if secret.is_empty() {
                return Err(AuthKeyError::Empty {
                    key: "auth.key_file",
                    path: path.clone(),
                });
            }
            Ok(AuthKey::Secret(secret))
        }
        (None, Some(path)) => read_file("auth.public_key_file", path).map(AuthKey::Public),
        (Some(_), Some(_)) => Err(AuthKeyError::Contradictory),
        (None, None) => Err(AuthKeyError::Missing),
    }
}

fn read_file(key: &'static str, path: &Path) -> Result<Vec<u8>, AuthKeyError> {
    let fail = |source| AuthKeyError::Read {
        key,
        path: path.into(),
        source,
    };
    if fs::metadata(path).map_err(fail)?.len() > KEY_BYTES_MAX {
        let path = path.into();
        return Err(AuthKeyError::TooLarge { key, path });
    }
    let content = fs::read(path).map_err(fail)?;
    if content.is_empty() {
        let path = path.into();
        return Err(AuthKeyError::Empty { key, path });
    }
    Ok(content)
}

/// Writes a new key to `path` unless there is one. Whoever sees the name sees
/// the whole key: it is written under another name first, and of several who
/// try, the first one's is everybody's.
fn generate(path: &Path, rng: &mut impl CryptoRng) -> io::Result<()> {
    if path.try_exists()? {
        return Ok(());
    }
    let unfinished = path.with_extension(format!("key.{:016x}", rng.next_u64()));
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&unfinished)?;
    let mut key = [0; GENERATED_BYTES];
    rng.fill_bytes(&mut key);
    let key: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
    let written = writeln!(file, "{key}").and_then(|()| file.sync_all());
    let linked = written.and_then(|()| match fs::hard_link(&unfinished, path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        linked => linked,
    });
    fs::remove_file(&unfinished)?;
    linked
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use rand::rngs::StdRng;

    use super::*;

    fn resolve_in(dir: &Path, auth: &AuthConfig) -> Result<AuthConfig, AuthKeyError> {
        resolve(auth, dir, &mut rand::make_rng::<StdRng>())
    }

    #[test]
    fn a_key_is_generated_once_and_only_its_owner_can_read_it() {
        let dir = tempfile::tempdir().unwrap();
        let first = resolve_in(dir.path(), &AuthConfig::default()).unwrap();
        let key = read(&first).unwrap();
        let second = resolve_in(dir.path(), &AuthConfig::default()).unwrap();
        assert_eq!(first, second);
        assert_eq!(read(&second).unwrap(), key);
        let AuthKey::Secret(secret) = key else {
            panic!("a generated key is a secret");
        };
        assert_eq!(secret.len(), 2 * GENERATED_BYTES);
        let mode = fs::metadata(first.key_file.unwrap()).unwrap().permissions();
        assert_eq!(mode.mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn all_who_start_at_once_agree_on_one_key() {
        let dir = tempfile::tempdir().unwrap();
        let keys: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| read(&resolve_in(dir.path(), &AuthConfig::default()).unwrap()))
                })
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap().unwrap())
                .collect()
        });
        assert!(keys.windows(2).all(|pair| pair[0] == pair[1]));
    }

    #[test]
    fn one_trailing_newline_of_a_secret_is_ignored() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        fs::write(&path, "secret\n\n").unwrap();
        let auth = AuthConfig {
            key_file: Some(path),
            ..AuthConfig::default()
        };
        assert_eq!(read(&auth).unwrap(), AuthKey::Secret(b"secret\n".to_vec()));
    }

    #[test]
    fn a_missing_or_empty_key_file_is_refused_by_name_and_path() {
        let dir = tempfile::tempdir().unwrap();
        for (name, content) in [
            ("missing", None),
            ("empty", Some("")),
            ("blank", Some("\n")),
        ] {
            let path = dir.path().join(name);
            if let Some(content) = content {
                fs::write(&path, content).unwrap();
            }
            let auth = AuthConfig {
                key_file: Some(path.clone()),
                ..AuthConfig::default()
            };
            let error = resolve_in(dir.path(), &auth).unwrap_err().to_string();
            assert!(error.contains("auth.key_file"), "{error}");
            assert!(error.contains(path.to_str().unwrap()), "{error}");
        }
    }

    #[test]
    fn two_keys_contradict_each_other() {
        let auth = AuthConfig {
            key_file: Some("a".into()),
            public_key_file: Some("b".into()),
            ..AuthConfig::default()
        };
        assert!(matches!(read(&auth), Err(AuthKeyError::Contradictory)));
    }

    #[test]
    fn a_key_is_never_printed() {
        let key = AuthKey::Secret(b"hunter2".to_vec());
        assert_eq!(format!("{key:?}"), "Secret(…)");
    }
}

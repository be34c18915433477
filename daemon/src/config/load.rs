//! Where settings come from: defaults < file < environment < flags.
//!
//! Every value is checked by itself where it came from, so an error can say
//! where that was.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fmt, fs, io,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use toml::{Table, Value, de::DeValue, map::Map};

use super::{Config, History, Namespace, SECTIONS, namespace, validate::validate};

/// The section that may come several times.
const NAMESPACE: &str = "namespace";
/// Its key that holds several values, which are checked by themselves.
const HISTORY: &str = "history";
/// Prefix of the environment variables that set a key:
/// `MUSTER_LISTENER__ADDR` is `listener.addr`.
const VARIABLE_PREFIX: &str = "MUSTER_";
/// Between section and key in a variable's name.
const VARIABLE_SEPARATOR: &str = "__";
/// Variables about the process, not about a key; the command line reads them.
const RESERVED_VARIABLES: [&str; 2] = ["MUSTER_CONFIG", "MUSTER_RUNTIME_DIR"];
/// What the test suites use.
const TEST_VARIABLE_PREFIX: &str = "MUSTER_TEST_";
/// Sets `log.filter` unless `MUSTER_LOG__FILTER` does.
const RUST_LOG: &str = "RUST_LOG";
/// A name this close to a known one is taken for a slip of the finger.
const SIMILARITY_MIN: f64 = 0.75;
/// Largest configuration file that is read.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// A setting from the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Override {
    /// `section.key`.
    pub key: &'static str,
    /// As written in an environment variable.
    pub value: String,
    /// The flag, for messages: `--listen`.
    pub flag: &'static str,
}

/// The configuration in effect and where each value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    pub config: Config,
    /// By `section.key`; a key that is not there has its default.
    pub sources: BTreeMap<String, Source>,
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    File { path: PathBuf, line: usize },
    Environment { variable: String },
    Flag(&'static str),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line } => write!(f, "{}, line {line}", path.display()),
            Self::Environment { variable } => write!(f, "environment variable {variable}"),
            Self::Flag(flag) => write!(f, "flag {flag}"),
        }
    }
}

/// Why there is no configuration. Always fatal: running with other settings
/// than those asked for is worse than not running.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read configuration file {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("configuration file {} is larger than {FILE_BYTES_MAX} bytes", path.display())]
    FileTooLarge { path: PathBuf },
    #[error("{place}: not TOML: {reason}")]
    Syntax { place: Source, reason: String },
    #[error("{place}: unknown key {key}{hint}")]
    UnknownKey {
        place: Source,
        key: String,
        hint: String,
    },
    #[error("{place}: {key}: {reason}")]
    Value {
        place: Source,
        key: String,
        reason: String,
    },
    #[error("unknown environment variable {name}{hint}")]
    UnknownVariable { name: String, hint: String },
    /// It came from another process.
    #[error("no configuration of this release: {reason}")]
    Text { reason: String },
    #[error("environment variable {name} is not UTF-8")]
    VariableNotUtf8 { name: String },
    /// Each value is fine, the whole is not.
    #[error("invalid configuration: {key}: {reason}{}", place.as_ref().map(|place| format!(" ({place})")).unwrap_or_default())]
    Invalid {
        key: &'static str,
        reason: String,
        place: Option<Source>,
    },
}

/// Loads the configuration: defaults, then `file`, then the `MUSTER_`
/// variables of `environment` (and `RUST_LOG`), then `overrides`.
///
/// Relative paths in the file are relative to the file's directory, others to
/// the working directory; in the result all are absolute.
///
/// # Errors
///
/// When the file cannot be read or parsed, a key or a `MUSTER_` variable is
/// unknown, a value has the wrong form, or values contradict each other.
pub fn load(
    file: Option<&Path>,
    environment: impl Iterator<Item = (OsString, OsString)>,
    overrides: &[Override],
) -> Result<Loaded, ConfigError> {
    let mut overlay = Overlay::default();
    if let Some(path) = file {
        overlay.apply_file(path)?;
    }
    overlay.apply_environment(environment)?;
    for over in overrides {
        overlay.apply_text(over.key, &over.value, &Source::Flag(over.flag))?;
    }
    overlay.finish()
}

impl Config {
    /// A configuration that [`Config::to_toml`] wrote in another process.
    ///
    /// # Errors
    ///
    /// When it is none of this release.
    pub fn from_toml(text: &str) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|error| ConfigError::Text {
            reason: error.message().into(),
        })?;
        config.checked()
    }

    /// Itself if its values fit together.
    pub(super) fn checked(self) -> Result<Self, ConfigError> {
        match validate(&self) {
            Ok(()) => Ok(self),
            Err(invalid) => Err(ConfigError::Invalid {
                place: None,
                key: invalid.key,
                reason: invalid.reason,
            }),
        }
    }
}

/// The values set so far, each of which is good by itself.
#[derive(Debug, Default)]
struct Overlay {
    values: Table,
    namespaces: Vec<Namespace>,
    sources: BTreeMap<String, Source>,
}

impl Overlay {
    fn apply_file(&mut self, path: &Path) -> Result<(), ConfigError> {
        let text = read_file(path)?;
        let at = |offset: usize| Source::File {
            path: path.into(),
            line: line_of(&text, offset),
        };
        let syntax = |error: toml::de::Error| ConfigError::Syntax {
            place: at(error.span().map_or(0, |span| span.start)),
            reason: error.message().into(),
        };
        let spans = toml::de::DeTable::parse(&text).map_err(syntax)?;
        let mut values: Table = toml::from_str(&text).map_err(syntax)?;
        for (section, entry) in spans.get_ref() {
            let name = section.get_ref();
            let place = at(section.span().start);
            if name == NAMESPACE {
                let spans = entry.get_ref();
                let values = values.remove(NAMESPACE).unwrap_or(Value::Boolean(false));
                self.apply_namespaces(spans, values, place, &at)?;
                continue;
            }
            let Some(keys) = entry.get_ref().as_table() else {
                return Err(not_a_section(name, place));
            };
            if !SECTIONS.iter().any(|known| known.name == name) {
                return Err(unknown_key(name, place));
            }
            for key in keys.keys() {
                let place = at(key.span().start);
                let full = format!("{name}.{}", key.get_ref());
                let value = values
                    .get_mut(name.as_ref())
                    .and_then(|section| section.as_table_mut()?.remove(key.get_ref().as_ref()))
                    .expect("both are parsed from the same text");
                self.apply(&full, value, place)?;
            }
        }
        Ok(())
    }

    fn apply_namespaces(
        &mut self,
        spans: &DeValue<'_>,
        values: Value,
        place: Source,
        at: &impl Fn(usize) -> Source,
    ) -> Result<(), ConfigError> {
        let (Some(spans), Value::Array(values)) = (spans.as_array(), values) else {
            let reason = "namespaces are written [[namespace]], each with its prefix".into();
            return Err(bad_value(NAMESPACE, reason, place));
        };
        for (index, (span, value)) in spans.iter().zip(values).enumerate() {
            let place = at(span.span().start);
            for key in span.get_ref().as_table().into_iter().flat_map(Map::keys) {
                let (name, place) = (key.get_ref(), at(key.span().start));
                if !namespace::KEYS.iter().any(|known| known.name == name) {
                    return Err(unknown_key(&format!("{NAMESPACE}.{name}"), place));
                }
                if name == HISTORY
                    && let Some(value) = value.get(HISTORY)
                    && let Err(error) = History::deserialize(value.clone())
                {
                    let key = format!("{NAMESPACE}.{HISTORY}");
                    return Err(bad_value(&key, error.message().into(), place));
                }
            }
            match Namespace::deserialize(value) {
                Ok(namespace) => self.namespaces.push(namespace),
                Err(error) => return Err(bad_value(NAMESPACE, error.message().into(), place)),
            }
            self.sources.insert(namespace_key(index), place);
        }
        Ok(())
    }

    fn apply_environment(
        &mut self,
        environment: impl Iterator<Item = (OsString, OsString)>,
    ) -> Result<(), ConfigError> {
        // Sorted, so that the same environment gives the same error.
        let variables: BTreeMap<_, _> = environment
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
            .filter(|(name, _)| name == RUST_LOG || name.starts_with(VARIABLE_PREFIX))
            .filter(|(name, _)| !RESERVED_VARIABLES.contains(&name.as_str()))
            .filter(|(name, _)| !name.starts_with(TEST_VARIABLE_PREFIX))
            .collect();
        let rust_log = variables.get_key_value(RUST_LOG);
        let others = variables.iter().filter(|(name, _)| *name != RUST_LOG);
        for (name, value) in rust_log.into_iter().chain(others) {
            let Some(value) = value.to_str() else {
                return Err(ConfigError::VariableNotUtf8 { name: name.clone() });
            };
            let source = Source::Environment {
                variable: name.clone(),
            };
            if name == RUST_LOG {
                if !value.is_empty() {
                    self.apply_text("log.filter", value, &source)?;
                }
            } else {
                let key = key_of_variable(name)?;
                self.apply_text(&key, value, &source)?;
            }
        }
        Ok(())
    }

    /// Sets a key from a text that is either the value itself, a list with
    /// commas, or TOML.
    fn apply_text(&mut self, key: &str, text: &str, source: &Source) -> Result<(), ConfigError> {
        let list = text.split(',').map(|item| Value::from(item.trim()));
        let toml = toml::from_str::<Table>(&format!("value = {text}"));
        let readings = [
            toml.ok().and_then(|mut table| table.remove("value")),
            Some(Value::Array(list.collect())),
        ];
        let as_text = self.apply(key, Value::from(text), source.clone());
        let Err(ConfigError::Value { .. }) = as_text else {
            return as_text;
        };
        for value in readings.into_iter().flatten() {
            if self.apply(key, value, source.clone()).is_ok() {
                return Ok(());
            }
        }
        as_text
    }

    fn apply(&mut self, key: &str, value: Value, source: Source) -> Result<(), ConfigError> {
        let Some((section, name)) = known(key) else {
            return Err(unknown_key(key, source));
        };
        let value = match absolute(name, value, &source) {
            Ok(value) => value,
            Err(reason) => return Err(bad_value(key, reason, source)),
        };
        let alone = Table::from_iter([(
            section.to_owned(),
            Value::Table(Table::from_iter([(name.to_owned(), value.clone())])),
        )]);
        if let Err(error) = Config::deserialize(alone) {
            return Err(bad_value(key, error.message().into(), source));
        }
        let section = self
            .values
            .entry(section)
            .or_insert_with(|| Value::Table(Table::new()));
        let Value::Table(section) = section else {
            unreachable!("only sections are put at the top");
        };
        section.insert(name.into(), value);
        self.sources.insert(key.into(), source);
        Ok(())
    }

    fn finish(self) -> Result<Loaded, ConfigError> {
        let mut config =
            Config::deserialize(self.values).expect("each value was accepted when it was applied");
        config.namespace = self.namespaces;
        match validate(&config) {
            Ok(()) => Ok(Loaded {
                config,
                sources: self.sources,
            }),
            Err(invalid) => Err(ConfigError::Invalid {
                place: self.sources.get(&invalid.source_key()).cloned(),
                key: invalid.key,
                reason: invalid.reason,
            }),
        }
    }
}

fn read_file(path: &Path) -> Result<String, ConfigError> {
    let read = |source| ConfigError::Read {
        path: path.into(),
        source,
    };
    let length = fs::metadata(path).map_err(read)?.len();
    if length > FILE_BYTES_MAX {
        return Err(ConfigError::FileTooLarge { path: path.into() });
    }
    fs::read_to_string(path).map_err(read)
}

/// Makes the value of a key that names a file absolute.
fn absolute(name: &str, value: Value, source: &Source) -> Result<Value, String> {
    let Value::String(text) = &value else {
        return Ok(value);
    };
    if !(name.ends_with("_file") || name.ends_with("_dir")) {
        return Ok(value);
    }
    if text.is_empty() {
        return Err("the path is empty".into());
    }
    let beside = match source {
        Source::File { path, .. } => path.parent().map(|parent| parent.join(text)),
        Source::Environment { .. } | Source::Flag(_) => None,
    };
    let path = std::path::absolute(beside.unwrap_or_else(|| text.into()))
        .map_err(|error| error.to_string())?;
    match path.into_os_string().into_string() {
        Ok(path) => Ok(Value::from(path)),
        Err(path) => Err(format!("the path {} is not UTF-8", path.display())),
    }
}

/// Splits a known `section.key`, with names that live as long as the table.
fn known(full: &str) -> Option<(&'static str, &'static str)> {
    let (section, key) = full.split_once('.')?;
    let section = SECTIONS.iter().find(|known| known.name == section)?;
    let key = section.keys.iter().find(|known| known.name == key)?;
    Some((section.name, key.name))
}

fn key_of_variable(variable: &str) -> Result<String, ConfigError> {
    let name = variable.trim_start_matches(VARIABLE_PREFIX);
    let known_as = |key: &str| variable_of_key(key) == variable;
    if let Some(key) = all_keys().find(|key| known_as(key)) {
        return Ok(key);
    }
    if name.to_ascii_lowercase().starts_with(NAMESPACE) {
        return Err(ConfigError::UnknownVariable {
            name: variable.into(),
            hint: "; namespaces are set in the configuration file only".into(),
        });
    }
    let variables = all_keys().map(|key| variable_of_key(&key));
    let hint = if name.contains(VARIABLE_SEPARATOR) {
        hint(variable, variables)
    } else {
        format!(
            "{}; a key's variable is {VARIABLE_PREFIX}SECTION{VARIABLE_SEPARATOR}KEY",
            hint(variable, variables)
        )
    };
    Err(ConfigError::UnknownVariable {
        name: variable.into(),
        hint,
    })
}

fn variable_of_key(key: &str) -> String {
    let name = key.replace('.', VARIABLE_SEPARATOR).to_ascii_uppercase();
    format!("{VARIABLE_PREFIX}{name}")
}

fn all_keys() -> impl Iterator<Item = String> {
    SECTIONS.iter().flat_map(|section| {
        let keys = section.keys.iter();
        keys.map(|key| format!("{}.{}", section.name, key.name))
    })
}

/// Keys that stand in a file only.
fn namespace_keys() -> impl Iterator<Item = String> {
    let keys = namespace::KEYS.iter();
    keys.map(|key| format!("{NAMESPACE}.{}", key.name))
}

/// What the source of a namespace is kept by.
pub(super) fn namespace_key(index: usize) -> String {
    format!("{NAMESPACE}.{index}")
}

fn bad_value(key: &str, reason: String, place: Source) -> ConfigError {
    ConfigError::Value {
        place,
        key: key.into(),
        reason,
    }
}

fn unknown_key(key: &str, place: Source) -> ConfigError {
    let sections = SECTIONS.iter().map(|section| section.name.to_owned());
    ConfigError::UnknownKey {
        place,
        key: key.into(),
        hint: hint(key, all_keys().chain(namespace_keys()).chain(sections)),
    }
}

fn not_a_section(name: &str, place: Source) -> ConfigError {
    let key = all_keys().find(|key| key.split_once('.').is_some_and(|(_, key)| key == name));
    let hint = match key.as_deref().and_then(|key| key.split_once('.')) {
        Some((section, _)) => format!(": it belongs under [{section}]"),
        None => ": keys stand in sections, such as [listener]".into(),
    };
    ConfigError::UnknownKey {
        place,
        key: name.into(),
        hint,
    }
}

/// `, did you mean X?` when one of `candidates` is close.
fn hint(name: &str, candidates: impl Iterator<Item = String>) -> String {
    candidates
        .map(|candidate| (strsim::jaro_winkler(name, &candidate), candidate))
        .filter(|(similarity, _)| *similarity > SIMILARITY_MIN)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, candidate)| format!(", did you mean {candidate}?"))
        .unwrap_or_default()
}

/// The line, counted from 1, that holds the byte at `offset`.
fn line_of(text: &str, offset: usize) -> usize {
    let before = text.as_bytes().iter().take(offset);
    before.filter(|byte| **byte == b'\n').count() + 1
}

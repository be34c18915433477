//! The configuration as text for people; both forms are files that load.

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use serde::{Deserialize as _, Serialize};
use toml::{Table, Value};

use super::{
    Config, ConfigError, History, Namespace, SECTIONS, Source, load::namespace_key, namespace,
};

/// Every key with its documentation and its default, all of it commented out:
/// a file to start from.
#[must_use]
pub fn commented_defaults() -> String {
    let values = values(&Config::default());
    let mut text = String::from(
        "# The defaults of every setting. What starts with `#` and a space is text;\n\
         # remove the `#` of a setting to change it.\n",
    );
    for section in SECTIONS {
        text.push('\n');
        push_doc(&mut text, section.doc);
        push(&mut text, format_args!("[{}]\n", section.name));
        for key in section.keys {
            push_doc(&mut text, key.doc);
            match value_of(&values, section.name, key.name) {
                Some(value) => push(&mut text, format_args!("#{} = {value}\n", key.name)),
                None => push(&mut text, format_args!("# {} is not set\n", key.name)),
            }
        }
    }
    push_doc(
        &mut text,
        &[
            "",
            "What differs for channels whose names begin alike; may come several times.",
        ],
    );
    text.push_str("#[[namespace]]\n");
    let example = Namespace {
        prefix: "lobby:".into(),
        history: Some(History {
            count: Some(1000),
            age: Some(Duration::from_secs(600)),
            ..History::default()
        }),
        ..Namespace::default()
    };
    let example = Table::try_from(example).expect("a namespace is always TOML");
    for key in namespace::KEYS {
        push_doc(&mut text, key.doc);
        if let Some(value) = example.get(key.name) {
            push(&mut text, format_args!("#{} = {value}\n", key.name));
        }
    }
    text
}

/// The configuration in effect, each value with where it came from.
#[must_use]
pub fn effective(config: &Config, sources: &BTreeMap<String, Source>) -> String {
    let values = values(config);
    let mut text = String::new();
    for section in SECTIONS {
        if !text.is_empty() {
            text.push('\n');
        }
        push(&mut text, format_args!("[{}]\n", section.name));
        for key in section.keys {
            let source = sources.get(&format!("{}.{}", section.name, key.name));
            let source = source.map_or_else(|| "default".to_owned(), ToString::to_string);
            match value_of(&values, section.name, key.name) {
                Some(value) => {
                    push(
                        &mut text,
                        format_args!("{} = {value}  # {source}\n", key.name),
                    );
                }
                None => push(&mut text, format_args!("# {} is not set\n", key.name)),
            }
        }
    }
    for (index, own) in config.namespace.iter().enumerate() {
        let source = sources.get(&namespace_key(index));
        let source = source
            .map(|source| format!("  # {source}"))
            .unwrap_or_default();
        push(&mut text, format_args!("\n[[namespace]]{source}\n"));
        let values = Table::try_from(own).expect("a namespace is always TOML");
        for key in namespace::KEYS {
            if let Some(value) = values.get(key.name) {
                push(&mut text, format_args!("{} = {value}\n", key.name));
            }
        }
    }
    text
}

/// Every setting with its value, where that came from, and its documentation,
/// for programs.
#[must_use]
pub fn json(config: &Config, sources: &BTreeMap<String, Source>) -> String {
    #[derive(Serialize)]
    struct Setting<'a> {
        key: String,
        /// Null: not set.
        value: Option<&'a Value>,
        source: String,
        doc: String,
    }
    #[derive(Serialize)]
    struct Own<'a> {
        #[serde(flatten)]
        namespace: &'a Namespace,
        source: String,
    }
    #[derive(Serialize)]
    struct Settings<'a> {
        settings: Vec<Setting<'a>>,
        namespaces: Vec<Own<'a>>,
    }
    let source = |name: &str| {
        let source = sources.get(name);
        source.map_or_else(|| "default".to_owned(), ToString::to_string)
    };
    let values = values(config);
    let keys = SECTIONS
        .iter()
        .flat_map(|section| section.keys.iter().map(move |key| (section, key)));
    let settings = keys.map(|(section, key)| {
        let name = format!("{}.{}", section.name, key.name);
        let doc: Vec<_> = key.doc.iter().map(|line| line.trim()).collect();
        Setting {
            value: value_of(&values, section.name, key.name),
            source: source(&name),
            doc: doc.join(" "),
            key: name,
        }
    });
    let namespaces = config.namespace.iter().enumerate();
    let namespaces = namespaces.map(|(index, namespace)| Own {
        namespace,
        source: source(&namespace_key(index)),
    });
    let settings = Settings {
        settings: settings.collect(),
        namespaces: namespaces.collect(),
    };
    let json = serde_json::to_string_pretty(&settings);
    json.expect("TOML's own types are always JSON") + "\n"
}

impl Config {
    /// This configuration with the values of `other` for these keys, as
    /// [`Self::differences`] names them.
    ///
    /// # Errors
    ///
    /// When the values do not fit together.
    pub fn with(&self, other: &Self, keys: &[String]) -> Result<Self, ConfigError> {
        let (mut mixed, theirs) = (values(self), values(other));
        for key in keys {
            let Some((section, name)) = key.split_once('.') else {
                continue;
            };
            let value = value_of(&theirs, section, name).cloned();
            let Some(section) = mixed.get_mut(section).and_then(Value::as_table_mut) else {
                continue;
            };
            match value {
                Some(value) => section.insert(name.into(), value),
                None => section.remove(name),
            };
        }
        let mut mixed = Self::deserialize(mixed).expect("every value was one already");
        if keys.iter().any(|key| key == "namespace") {
            mixed.namespace.clone_from(&other.namespace);
        }
        mixed.checked()
    }

    /// Keys (`section.key`, and `namespace`) that have another value in `other`.
    #[must_use]
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let (ours, theirs) = (values(self), values(other));
        let sections = SECTIONS.iter();
        let keys =
            sections.flat_map(|section| section.keys.iter().map(|key| (section.name, key.name)));
        let keys = keys.filter(|(section, key)| {
            value_of(&ours, section, key) != value_of(&theirs, section, key)
        });
        let mut names: Vec<_> = keys
            .map(|(section, key)| format!("{section}.{key}"))
            .collect();
        if self.namespace != other.namespace {
            names.push("namespace".into());
        }
        names
    }
}

fn values(config: &Config) -> Table {
    Table::try_from(config).expect("a configuration is always TOML")
}

fn value_of<'a>(values: &'a Table, section: &str, key: &str) -> Option<&'a Value> {
    values.get(section)?.get(key)
}

fn push_doc(text: &mut String, lines: &[&str]) {
    for line in lines {
        push(text, format_args!("# {}\n", line.trim()));
    }
}

fn push(text: &mut String, line: std::fmt::Arguments<'_>) {
    text.write_fmt(line)
        .expect("writing to a string never fails");
}

//! Another configuration for a cluster that runs: where it comes from, and what
//! of it can be had without new processes.

use std::{error::Error, path::PathBuf};

use muster_daemon::{
    Config,
    auth_key::{self, AuthKeyError},
    config::{self, AuthConfig, ConfigError, History, Loaded, LogFormat, Override},
    descriptors::{self, DescriptorsError},
    runtime_dir::RuntimeDir,
};
use rand::rngs::StdRng;

/// Keys that change while the processes run.
const IN_PLACE: [&str; 28] = [
    "listener.origins",
    "listener.head_bytes_max",
    "listener.handshake_timeout",
    "auth.key_file",
    "auth.public_key_file",
    "auth.token_expiry",
    "limits.connections_max",
    "limits.connections_per_address_max",
    "limits.outbox_bytes_max",
    "limits.channels_per_connection_max",
    "limits.channel_name_bytes_max",
    "limits.messages_per_second",
    "limits.history_publications_max",
    "supervision.worker_hung_after",
    "supervision.broker_hung_after",
    "supervision.start_timeout",
    "update.canary",
    "update.hold",
    "update.parallel",
    "update.exits_max",
    "update.failed_moves_per_thousand_max",
    "update.abnormal_closes_per_thousand_max",
    "update.lag_max",
    "update.memory_percent_max",
    "update.memory_spare",
    "shutdown.closes_per_second",
    "shutdown.timeout",
    "log.filter",
];
/// Keys that only `down` and `up` change: what lives was made with them.
const FIXED: [&str; 3] = ["listener.addr", "broker.journal_dir", "log.format"];
/// Changes in place if no history does, which brokers keep.
const NAMESPACE: &str = "namespace";

/// Says whether workers could use the configured key, which only they know how to
/// read.
pub(crate) type CheckKey = fn(&AuthConfig) -> Result<(), Box<dyn Error + Send + Sync>>;

/// Why a configuration is not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReloadError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("invalid configuration")]
    AuthKey(#[from] AuthKeyError),
    #[error("invalid configuration")]
    UnusableKey(#[source] Box<dyn Error + Send + Sync>),
    #[error("invalid configuration")]
    Descriptors(#[from] DescriptorsError),
    #[error("{} cannot change while the cluster runs: that takes `down` and `up`", .0.join(", "))]
    Fixed(Vec<String>),
    #[error("the configuration cannot be written down for the nodes")]
    Write(#[from] muster_daemon::runtime_dir::RuntimeDirError),
}

/// Where the configuration was read at the start, to read it again.
#[derive(Debug, Clone)]
pub(crate) struct ConfigSource {
    pub(crate) file: Option<PathBuf>,
    pub(crate) overrides: Vec<Override>,
    pub(crate) check_key: CheckKey,
}

/// What can be had at once of another configuration.
#[derive(Debug, PartialEq)]
pub(crate) struct Reload {
    /// The present one with that.
    pub(crate) config: Config,
    pub(crate) changed: Vec<String>,
    /// Keys that take new processes.
    pub(crate) needs_update: Vec<String>,
    /// Keys that take `down` and `up`.
    pub(crate) fixed: Vec<String>,
}

impl ConfigSource {
    /// As at the start.
    pub(crate) fn load(&self) -> Result<Loaded, ConfigError> {
        config::load(self.file.as_deref(), std::env::vars_os(), &self.overrides)
    }

    /// What a cluster in `dir` that runs with `present` would be started with
    /// now; checked as at the start.
    ///
    /// # Errors
    ///
    /// What `up` would refuse.
    pub(crate) fn wanted(&self, present: &Config, dir: &RuntimeDir) -> Result<Config, ReloadError> {
        let mut wanted = self.load()?.config;
        descriptors::connections_allowed(&wanted, descriptors::raise_limit())?;
        let mut rng = rand::make_rng::<StdRng>();
        wanted.auth = auth_key::resolve(&wanted.auth, dir.path(), &mut rng)?;
        (self.check_key)(&wanted.auth).map_err(ReloadError::UnusableKey)?;
        let (addr, now) = (&mut wanted.listener.addr, present.listener.addr);
        if addr.port() == 0 && addr.ip() == now.ip() {
            *addr = now;
        }
        if wanted.log.format == LogFormat::Auto {
            wanted.log.format = present.log.format;
        }
        Ok(wanted)
    }
}

/// What of `wanted` can be had without new processes.
///
/// # Errors
///
/// When that makes no sense without the rest.
pub(crate) fn in_place(present: &Config, wanted: &Config) -> Result<Reload, ReloadError> {
    let is_in_place = |key: &String| match &**key {
        NAMESPACE => histories(present) == histories(wanted),
        key => IN_PLACE.contains(&key),
    };
    let differences = present.differences(wanted);
    let (changed, others): (Vec<_>, Vec<_>) = differences.into_iter().partition(is_in_place);
    let (fixed, needs_update) = others.into_iter().partition(|key| FIXED.contains(&&**key));
    Ok(Reload {
        config: present.with(wanted, &changed)?,
        changed,
        needs_update,
        fixed,
    })
}

/// Whether new processes can have `wanted`; all of it then.
///
/// # Errors
///
/// When something in it takes `down` and `up`.
pub(crate) fn for_update(present: &Config, wanted: &Config) -> Result<(), ReloadError> {
    let mut fixed = present.differences(wanted);
    fixed.retain(|key| FIXED.contains(&&**key));
    if fixed.is_empty() {
        Ok(())
    } else {
        Err(ReloadError::Fixed(fixed))
    }
}

/// What brokers keep, by prefix; a prefix without history may end another's.
fn histories(config: &Config) -> Vec<(&str, Option<&History>)> {
    let all = config.namespace.iter();
    let mut all: Vec<_> = all
        .map(|namespace| (&*namespace.prefix, namespace.history.as_ref()))
        .collect();
    if all.iter().all(|(_, history)| history.is_none()) {
        all.clear();
    }
    all.sort_by_key(|(prefix, _)| *prefix);
    all
}

#[cfg(test)]
mod tests {
    use muster_daemon::config::{Namespace, Right, SECTIONS};

    use super::*;

    fn changed(change: impl FnOnce(&mut Config)) -> Reload {
        let present = Config::default();
        let mut wanted = present.clone();
        change(&mut wanted);
        in_place(&present, &wanted).unwrap()
    }

    #[test]
    fn every_key_that_is_named_here_exists() {
        for key in IN_PLACE.iter().chain(&FIXED) {
            let (section, name) = key.split_once('.').unwrap();
            let section = SECTIONS.iter().find(|known| known.name == section).unwrap();
            assert!(section.keys.iter().any(|known| known.name == name), "{key}");
        }
    }

    #[test]
    fn how_updates_go_needs_none() {
        let update = SECTIONS.iter().find(|section| section.name == "update");
        for key in update.unwrap().keys {
            assert!(IN_PLACE.contains(&&*format!("update.{}", key.name)));
        }
    }

    #[test]
    fn what_needs_no_new_process_changes_and_the_rest_stays_and_is_named() {
        let reload = changed(|wanted| {
            wanted.limits.connections_max = Some(7);
            wanted.log.filter = "debug".into();
            wanted.listener.path = "/game/".into();
            wanted.broker.journal_dir = Some("/journal".into());
        });
        assert_eq!(reload.changed, ["limits.connections_max", "log.filter"]);
        assert_eq!(reload.needs_update, ["listener.path"]);
        assert_eq!(reload.fixed, ["broker.journal_dir"]);
        assert_eq!(reload.config.limits.connections_max, Some(7));
        assert_eq!(reload.config.log.filter, "debug");
        assert_eq!(reload.config.listener.path, "/socketcluster/");
        assert_eq!(reload.config.broker.journal_dir, None);
        let same = changed(|_| {});
        assert_eq!(same.config, Config::default());
        assert!(same.changed.is_empty() && same.needs_update.is_empty());
    }

    #[test]
    fn a_value_that_is_taken_away_has_its_default_again() {
        let mut present = Config::default();
        present.limits.connections_max = Some(7);
        let reload = in_place(&present, &Config::default()).unwrap();
        assert_eq!(reload.config, Config::default());
        assert_eq!(reload.changed, ["limits.connections_max"]);
    }

    #[test]
    fn rights_change_in_place_and_histories_do_not() {
        let namespace = |publish, history| Namespace {
            prefix: "lobby:".into(),
            publish,
            history,
            ..Namespace::default()
        };
        let reload = changed(|wanted| wanted.namespace = vec![namespace(Right::Nobody, None)]);
        assert_eq!(reload.changed, ["namespace"]);
        assert_eq!(reload.config.namespace.len(), 1);
        let history = Some(History::default());
        let reload = changed(|wanted| wanted.namespace = vec![namespace(Right::Nobody, history)]);
        assert_eq!(reload.needs_update, ["namespace"]);
        assert!(reload.config.namespace.is_empty());
    }

    #[test]
    fn an_update_takes_everything_but_what_lives_was_made_with() {
        let present = Config::default();
        let mut wanted = present.clone();
        wanted.listener.path = "/game/".into();
        wanted.broker.threads = 2;
        for_update(&present, &wanted).unwrap();
        wanted.listener.addr.set_port(1);
        wanted.log.format = LogFormat::Json;
        let refused = for_update(&present, &wanted).unwrap_err().to_string();
        assert!(refused.contains("listener.addr, log.format"), "{refused}");
    }
}

//! What a cluster is started with.

use muster_daemon::config::Override;

use super::{BROKERS_MAX, WORKERS_MAX};

/// What varies with each launch; everything else is in the configuration.
#[derive(Debug, clap::Args)]
pub(crate) struct UpArgs {
    /// Worker processes [default: one per core].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(WORKERS_MAX)))]
    pub(crate) workers: Option<u32>,
    /// Broker processes [default: one per four workers, at least one].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(BROKERS_MAX)))]
    pub(crate) brokers: Option<u32>,
    #[command(flatten)]
    pub(crate) settings: SettingArgs,
}

/// Flags that set a key of the configuration.
#[derive(Debug, clap::Args)]
pub(crate) struct SettingArgs {
    /// Address that clients connect to; port 0 takes a free one [listener.addr].
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<String>,
    /// File with the secret that tokens are signed with [auth.key_file].
    #[arg(long, value_name = "FILE")]
    auth_key_file: Option<String>,
    /// auto, text or json [log.format].
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
    /// What is logged, in the syntax of RUST_LOG [log.filter].
    #[arg(long, value_name = "FILTER")]
    log_filter: Option<String>,
}

impl SettingArgs {
    /// The keys that were set.
    pub(crate) fn overrides(&self) -> Vec<Override> {
        [
            ("listener.addr", "--listen", &self.listen),
            ("auth.key_file", "--auth-key-file", &self.auth_key_file),
            ("log.format", "--log-format", &self.log_format),
            ("log.filter", "--log-filter", &self.log_filter),
        ]
        .into_iter()
        .filter_map(|(key, flag, value)| {
            let value = value.clone()?;
            Some(Override { key, value, flag })
        })
        .collect()
    }
}

/// How many nodes of each role there are to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size {
    pub(crate) workers: u32,
    pub(crate) brokers: u32,
}

impl UpArgs {
    /// The cluster's size on a machine with this many cores.
    ///
    /// A worker's single thread is what a message costs most on, so there is one
    /// per core; one broker's thread keeps several workers busy.
    pub(crate) fn size(&self, cores: usize) -> Size {
        let cores = u32::try_from(cores)
            .unwrap_or(WORKERS_MAX)
            .clamp(1, WORKERS_MAX);
        let workers = self.workers.unwrap_or(cores);
        let brokers = self.brokers.unwrap_or((workers / 4).max(1));
        Size { workers, brokers }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Verb, *};
    use crate::cli::tests::parse;

    fn up(line: &str) -> UpArgs {
        let Verb::Up(args) = parse(line).unwrap().verb else {
            panic!("not up: {line}");
        };
        args
    }

    #[test]
    fn flags_become_settings_and_only_those_given() {
        let args = up("orchestrator up --listen 127.0.0.1:0 --log-format json");
        let overrides = args.settings.overrides();
        let keys: Vec<_> = overrides.iter().map(|over| over.key).collect();
        assert_eq!(keys, ["listener.addr", "log.format"]);
        assert_eq!(overrides[0].value, "127.0.0.1:0");
        assert_eq!(overrides[0].flag, "--listen");
    }

    #[test]
    fn the_default_size_follows_the_cores() {
        let args = up("orchestrator up");
        for (cores, workers, brokers) in [(1, 1, 1), (2, 2, 1), (8, 8, 2), (1000, 256, 64)] {
            assert_eq!(args.size(cores), Size { workers, brokers });
        }
        let args = up("orchestrator up --workers 3 --brokers 5");
        let (workers, brokers) = (3, 5);
        assert_eq!(args.size(64), Size { workers, brokers });
    }
}

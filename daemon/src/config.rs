//! The configuration: what can be set, its units, defaults and limits.
//!
//! The table below is the only place that knows a key: its type, its default
//! and its documentation are one entry, from which the types, `print-config
//! --defaults` and the list of known keys are made.

mod duration;
mod load;
mod namespace;
mod print;
mod validate;

#[cfg(test)]
mod tests;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

pub use self::{
    load::{ConfigError, Loaded, Override, Source, load},
    namespace::{History, Namespace, Namespaces, Right, SlowClient},
    print::{commented_defaults, effective, json},
    validate::HOLD_MAX,
};
use crate::ByteSize;

/// What is known about a section for people: its name, its text, its keys.
#[derive(Debug, Clone, Copy)]
pub struct SectionDoc {
    pub name: &'static str,
    pub doc: &'static [&'static str],
    pub keys: &'static [KeyDoc],
}

/// What is known about a key for people: its name and its text.
#[derive(Debug, Clone, Copy)]
pub struct KeyDoc {
    pub name: &'static str,
    pub doc: &'static [&'static str],
}

macro_rules! sections {
    ($(
        $(#[doc = $section_doc:literal])+
        $section:ident: $name:ident {
            $(
                $(#[doc = $doc:literal])+
                $(#[serde($($serde:tt)+)])?
                $key:ident: $type:ty = $default:expr,
            )+
        }
    )+) => {
        /// Everything that can be configured.
        #[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct Config {
            $(
                $(#[doc = $section_doc])+
                pub $section: $name,
            )+
            /// What differs for channels whose names begin alike.
            #[serde(skip_serializing_if = "Vec::is_empty")]
            pub namespace: Vec<Namespace>,
        }

        $(
            $(#[doc = $section_doc])+
            #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
            #[serde(deny_unknown_fields, default)]
            pub struct $name {
                $(
                    $(#[doc = $doc])+
                    $(#[serde($($serde)+)])?
                    pub $key: $type,
                )+
            }

            impl Default for $name {
                fn default() -> Self {
                    Self { $($key: $default,)+ }
                }
            }
        )+

        /// Every section and key, in the order in which they are printed.
        pub const SECTIONS: &[SectionDoc] = &[
            $(SectionDoc {
                name: stringify!($section),
                doc: &[$($section_doc),+],
                keys: &[
                    $(KeyDoc { name: stringify!($key), doc: &[$($doc),+] },)+
                ],
            },)+
        ];
    };
}

sections! {
    /// Where clients connect.
    listener: ListenerConfig {
        /// Address that clients connect to.
        addr: SocketAddr = SocketAddr::from(([0, 0, 0, 0], 8000)),
        /// Path of the WebSocket endpoint; also accepted without its last slash.
        path: String = "/socketcluster/".into(),
        /// Origins that may connect: `host:port`, `host:*`, `*:port` or `*:*`.
        origins: Vec<String> = vec!["*:*".into()],
        /// Longest HTTP request head.
        head_bytes_max: ByteSize = ByteSize::kib(16),
        /// Longest a client may take from TCP accept to `#handshake`.
        #[serde(with = "duration")]
        handshake_timeout: Duration = Duration::from_secs(10),
    }

    /// How each side knows that the other lives.
    heartbeat: HeartbeatConfig {
        /// Time between two pings to a client.
        #[serde(with = "duration")]
        ping_interval: Duration = Duration::from_secs(8),
        /// A client that sends nothing for this long is closed with 4001; also the
        /// `pingTimeout` that clients are told.
        #[serde(with = "duration")]
        pong_timeout: Duration = Duration::from_secs(20),
    }

    /// How tokens are verified and signed.
    auth: AuthConfig {
        /// File with the secret for HS256, HS384 and HS512 (whole content, one
        /// trailing newline ignored). Neither file given: one is generated.
        key_file: Option<PathBuf> = None,
        /// PEM file with the public key for RS*, PS*, ES* tokens; tokens can then
        /// not be signed here.
        public_key_file: Option<PathBuf> = None,
        /// Life of a signed token whose claims have no `exp`.
        #[serde(with = "duration")]
        token_expiry: Duration = Duration::from_secs(86_400),
    }

    /// Limits on what clients may use.
    limits: LimitsConfig {
        /// Open connections per worker beyond which new ones are answered 503;
        /// absent: as many as the descriptors allow, at most 18 000.
        connections_max: Option<u32> = None,
        /// Open connections per worker from one address (of IPv6, one /64 network)
        /// beyond which new ones are answered 429; absent: no limit. Behind a proxy
        /// all clients have the proxy's address.
        connections_per_address_max: Option<u32> = None,
        /// Longest message a client may send; beyond it it is closed with 1009.
        message_bytes_max: ByteSize = ByteSize::mib(1),
        /// Bytes queued for one client beyond which it is a slow client. An empty
        /// queue takes any one frame, also when that is larger.
        outbox_bytes_max: ByteSize = ByteSize::mib(1),
        /// Channels one connection may subscribe to.
        channels_per_connection_max: u32 = 1000,
        /// Longest channel name, at most 512.
        channel_name_bytes_max: u32 = 512,
        /// Packets a client may send in the long run (`rate`, per second) and at once
        /// (`burst`). One that is faster is read more slowly, never answered an error.
        /// Subscriptions have a share of their own, of the same rate and a burst of at
        /// least channels_per_connection_max.
        messages_per_second: Rate = Rate { rate: 5000, burst: 10_000 },
        /// Publications that a client may ask for at once when it reads a channel's
        /// history, at most 1000.
        history_publications_max: u32 = 1000,
    }

    /// Between a worker and a broker.
    link: LinkConfig {
        /// Bytes of publications a worker keeps un-acked per link before it stops
        /// reading from clients that publish there.
        window_bytes: ByteSize = ByteSize::mib(8),
        /// Bytes of publications a broker may send ahead of a worker.
        credit_bytes: ByteSize = ByteSize::mib(8),
        /// How long a publication waits for its owner before the publisher is told
        /// that its outcome is unknown.
        #[serde(with = "duration")]
        publish_timeout: Duration = Duration::from_secs(5),
    }

    /// How often busy processes wake up.
    pacing: PacingConfig {
        /// A worker or broker that is busy wakes up once in this time, so that the
        /// messages that have come meanwhile share what waking up costs; each of a
        /// publication's three hops can take this much longer then. One that wakes
        /// up less often waits for nothing. "0s": every message at once.
        #[serde(with = "duration")]
        wakeup_interval: Duration = Duration::from_millis(3),
    }

    /// What a broker keeps.
    broker: BrokerConfig {
        /// Threads of one broker process.
        threads: u32 = 1,
        /// How long each channel's publications are kept for re-synchronising.
        #[serde(with = "duration")]
        tail_age: Duration = Duration::from_secs(30),
        /// Bytes of publications kept per shard, for re-synchronising and as histories;
        /// the oldest go first.
        tail_bytes_max: ByteSize = ByteSize::mib(4),
        /// Channels one broker may have.
        channels_max: u64 = 1_000_000,
        /// How long publication keys are remembered.
        #[serde(with = "duration")]
        key_window: Duration = Duration::from_secs(60),
        /// Where the journal is, which outlives brokers: nothing ever deletes it.
        /// Absent: in shared memory (`/dev/shm`), by user and runtime directory; it
        /// then outlives every process, but not the machine.
        journal_dir: Option<PathBuf> = None,
        /// Bytes of the journal of all brokers together; beyond them publications are
        /// refused until older ones are let go. In shared memory they count as memory.
        journal_bytes_max: ByteSize = ByteSize::mib(2048),
        /// When the journal is synced to the disk: `never`, `interval`, or `always`,
        /// which nobody hears of a publication before. Without `always`, what was not
        /// yet written when the machine lost its power is lost.
        fsync: Fsync = Fsync::Never,
        /// Time between two syncs with `fsync = "interval"`.
        #[serde(with = "duration")]
        fsync_interval: Duration = Duration::from_secs(1),
    }

    /// When the orchestrator takes a node for hung, kills it and starts another.
    supervision: SupervisionConfig {
        /// A worker that gives no sign of life for this long is hung.
        #[serde(with = "duration")]
        worker_hung_after: Duration = Duration::from_secs(15),
        /// A broker that gives no sign of life for this long is hung.
        #[serde(with = "duration")]
        broker_hung_after: Duration = Duration::from_secs(2),
        /// The same for a node that is not ready yet, from its start on.
        #[serde(with = "duration")]
        start_timeout: Duration = Duration::from_secs(30),
    }

    /// How workers are replaced, and when the new ones are no good: the update is
    /// then taken back, connections included.
    update: UpdateConfig {
        /// Workers that are replaced before the others, one after the other; 0: none.
        canary: u32 = 1,
        /// How long the others wait then, while the new ones are watched.
        #[serde(with = "duration")]
        hold: Duration = Duration::from_secs(10),
        /// Workers that are replaced at the same time after that.
        parallel: u32 = 1,
        /// New workers that may end by themselves.
        exits_max: u32 = 0,
        /// Connections that may refuse to move to a new worker, of a thousand; they
        /// are closed and come back.
        failed_moves_per_thousand_max: u32 = 1,
        /// Connections of a new worker that may end abnormally (without a close frame,
        /// or with a code that tells of a fault), of a thousand. Three times what is
        /// usual in the cluster, and five of each worker, come on top.
        abnormal_closes_per_thousand_max: u32 = 20,
        /// A new worker whose thread is later than this in each of three seconds on
        /// end, while no earlier worker is, stalls.
        #[serde(with = "duration")]
        lag_max: Duration = Duration::from_millis(500),
        /// Memory of a new worker per connection, in percent of an earlier worker's;
        /// memory_spare comes on top.
        memory_percent_max: u32 = 200,
        /// Memory that a new worker may have in any case, beyond an earlier worker's.
        memory_spare: ByteSize = ByteSize::mib(64),
    }

    /// How the cluster ends.
    shutdown: ShutdownConfig {
        /// Connections one worker closes per second.
        closes_per_second: u32 = 2000,
        /// After this the remaining connections are cut.
        #[serde(with = "duration")]
        timeout: Duration = Duration::from_secs(20),
    }

    /// What is logged, and how.
    log: LogConfig {
        /// `text`, `json`, or `auto`: text on a terminal, JSON otherwise.
        format: LogFormat = LogFormat::Auto,
        /// `RUST_LOG` syntax; the variable `RUST_LOG` is read too.
        filter: String = "info".into(),
    }
}

/// How often something may happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// Per second, in the long run.
    pub rate: u32,
    /// At once.
    pub burst: u32,
}

/// When a journal is synced to the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fsync {
    /// When the operating system likes.
    #[default]
    Never,
    /// Now and then.
    Interval,
    /// Before anybody hears of what is in it.
    Always,
}

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// Text on a terminal, JSON otherwise.
    #[default]
    Auto,
    Text,
    Json,
}

impl Config {
    /// The configuration as a TOML file that loads as exactly this one.
    #[must_use]
    pub fn to_toml(&self) -> String {
        // Every type in the table above is made of TOML's own types.
        toml::to_string(self).expect("a configuration is always TOML")
    }
}

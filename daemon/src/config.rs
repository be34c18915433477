//! The configuration: what can be set, its units, defaults and limits.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use crate::ByteSize;

/// Everything that can be configured.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Config {
    pub listener: ListenerConfig,
    pub heartbeat: HeartbeatConfig,
    pub auth: AuthConfig,
    pub limits: LimitsConfig,
    pub link: LinkConfig,
    pub broker: BrokerConfig,
    pub shutdown: ShutdownConfig,
    pub log: LogConfig,
}

/// Where clients connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenerConfig {
    /// Address that clients connect to.
    pub addr: SocketAddr,
    /// Path of the WebSocket endpoint; also accepted without its last slash.
    pub path: String,
    /// Origins that may connect: `host:port`, `host:*`, `*:port` or `*:*`.
    pub origins: Vec<String>,
    /// Longest HTTP request head.
    pub head_bytes_max: ByteSize,
    /// Longest a client may take from TCP accept to `#handshake`.
    pub handshake_timeout: Duration,
}

/// How each side knows that the other lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeartbeatConfig {
    /// Time between two pings to a client.
    pub ping_interval: Duration,
    /// A client that sends nothing for this long is closed with 4001; also the
    /// `pingTimeout` that clients are told.
    pub pong_timeout: Duration,
}

/// How tokens are verified and signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthConfig {
    /// File with the secret for HS256, HS384 and HS512 (whole content, one
    /// trailing newline ignored). Neither file given: one is generated.
    pub key_file: Option<PathBuf>,
    /// PEM file with the public key for RS*, PS*, ES* tokens; tokens can then
    /// not be signed here.
    pub public_key_file: Option<PathBuf>,
    /// Life of a signed token whose claims have no `exp`.
    pub token_expiry: Duration,
}

/// Limits on what clients may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LimitsConfig {
    /// Open connections per worker beyond which new ones are answered 503;
    /// absent: as many as the descriptors allow, at most 18 000.
    pub connections_max: Option<u32>,
    /// Longest message a client may send; beyond it it is closed with 1009.
    pub message_bytes_max: ByteSize,
    /// Bytes queued for one client beyond which it is a slow client.
    pub outbox_bytes_max: ByteSize,
    /// Channels one connection may subscribe to.
    pub channels_per_connection_max: u32,
}

/// Between a worker and a broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkConfig {
    /// Bytes of publications a worker keeps un-acked per link before it stops
    /// reading from clients that publish there.
    pub window_bytes: ByteSize,
    /// Bytes of publications a broker may send ahead of a worker.
    pub credit_bytes: ByteSize,
    /// How long a publication waits for its owner before the publisher is told
    /// that its outcome is unknown.
    pub publish_timeout: Duration,
}

/// What a broker keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokerConfig {
    /// Threads of one broker process.
    pub threads: u32,
    /// How long each channel's publications are kept for re-synchronising.
    pub tail_age: Duration,
    /// Bytes of publications kept per shard; the oldest go first.
    pub tail_bytes_max: ByteSize,
    /// Channels one broker may have.
    pub channels_max: u64,
    /// How long publication keys are remembered.
    pub key_window: Duration,
}

/// How the cluster ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShutdownConfig {
    /// Connections one worker closes per second.
    pub closes_per_second: u32,
    /// After this the remaining connections are cut.
    pub timeout: Duration,
}

/// What is logged, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogConfig {
    pub format: LogFormat,
    /// `RUST_LOG` syntax.
    pub filter: String,
}

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// Text on a terminal, JSON otherwise.
    #[default]
    Auto,
    Text,
    Json,
}

impl Default for ListenerConfig {
    fn default() -> Self {
        Self {
            addr: SocketAddr::from(([0, 0, 0, 0], 8000)),
            path: "/socketcluster/".into(),
            origins: vec!["*:*".into()],
            head_bytes_max: ByteSize::kib(16),
            handshake_timeout: Duration::from_secs(10),
        }
    }
}

impl Default for HeartbeatConfig {
    fn default() -> Self {
        Self {
            ping_interval: Duration::from_secs(8),
            pong_timeout: Duration::from_secs(20),
        }
    }
}

impl Default for AuthConfig {
    fn default() -> Self {
        Self {
            key_file: None,
            public_key_file: None,
            token_expiry: Duration::from_secs(86_400),
        }
    }
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            connections_max: None,
            message_bytes_max: ByteSize::mib(1),
            outbox_bytes_max: ByteSize::mib(1),
            channels_per_connection_max: 1000,
        }
    }
}

impl Default for LinkConfig {
    fn default() -> Self {
        Self {
            window_bytes: ByteSize::mib(8),
            credit_bytes: ByteSize::mib(8),
            publish_timeout: Duration::from_secs(5),
        }
    }
}

impl Default for BrokerConfig {
    fn default() -> Self {
        Self {
            threads: 1,
            tail_age: Duration::from_secs(30),
            tail_bytes_max: ByteSize::mib(4),
            channels_max: 1_000_000,
            key_window: Duration::from_secs(60),
        }
    }
}

impl Default for ShutdownConfig {
    fn default() -> Self {
        Self {
            closes_per_second: 2000,
            timeout: Duration::from_secs(20),
        }
    }
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            format: LogFormat::Auto,
            filter: "info".into(),
        }
    }
}

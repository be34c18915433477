//! Whether values that are each fine also fit together.

use std::{fmt::Display, time::Duration};

use tracing_subscriber::EnvFilter;

use std::collections::BTreeSet;

use muster_wire::CHANNEL_NAME_BYTES_MAX;

use super::{Config, History, load::namespace_key};
use crate::ByteSize;

/// Browsers fire a timer beyond 2³¹ ms at once.
const CLIENT_TIMER_MAX: Duration = Duration::from_millis(i32::MAX as u64);
/// Nodes give a sign of life once a second; one that comes late is no reason to
/// kill.
const HUNG_AFTER_MIN: Duration = Duration::from_secs(2);
const HUNG_AFTER_MAX: Duration = Duration::from_secs(3600);
/// Longer than this nobody watches an update.
pub const HOLD_MAX: Duration = Duration::from_secs(86_400);
/// Beyond it players notice; and a process that rests gives no sign of life.
const WAKEUP_INTERVAL_MAX: Duration = Duration::from_millis(100);
const HEAD_BYTES_MIN: ByteSize = ByteSize::kib(1);
const HEAD_BYTES_MAX: ByteSize = ByteSize::mib(1);
const MESSAGE_BYTES_MIN: ByteSize = ByteSize::kib(1);
/// gRPC carries a message with its envelope in one frame of a batch.
const MESSAGE_BYTES_MAX: ByteSize = ByteSize::mib(64);
/// Every shard has files, however little is in them.
const JOURNAL_BYTES_MIN: ByteSize = ByteSize::mib(16);
const THREADS_MAX: u32 = 256;
/// A broker puts no more into one answer.
const HISTORY_PUBLICATIONS_MAX: u32 = 1000;
/// Longest time that a setting may name: far from every overflow.
const DURATION_MAX: Duration = Duration::from_secs(100 * 365 * 86_400);

/// The first rule that a configuration breaks.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Invalid {
    pub(super) key: &'static str,
    /// Which of the namespaces.
    pub(super) namespace: Option<usize>,
    pub(super) reason: String,
}

impl Invalid {
    /// What the source of the value is kept by.
    pub(super) fn source_key(&self) -> String {
        self.namespace
            .map_or_else(|| self.key.to_owned(), namespace_key)
    }
}

pub(super) fn validate(config: &Config) -> Result<(), Invalid> {
    listener(config)?;
    heartbeat(config)?;
    auth(config)?;
    sizes(config)?;
    pacing(config)?;
    broker(config)?;
    supervision(config)?;
    update(config)?;
    shutdown(config)?;
    log(config)?;
    namespaces(config)
}

fn namespaces(config: &Config) -> Result<(), Invalid> {
    let mut seen = BTreeSet::new();
    for (index, namespace) in config.namespace.iter().enumerate() {
        let prefix = &namespace.prefix;
        let reason = if prefix.len() > CHANNEL_NAME_BYTES_MAX {
            format!(
                "the prefix has {} bytes, channel names have at most {CHANNEL_NAME_BYTES_MAX}",
                prefix.len()
            )
        } else if !seen.insert(prefix) {
            format!("there is another namespace with the prefix `{prefix}`")
        } else {
            continue;
        };
        return Err(Invalid {
            key: "namespace.prefix",
            namespace: Some(index),
            reason,
        });
    }
    for (index, namespace) in config.namespace.iter().enumerate() {
        if let Some(reason) = namespace.history.and_then(|history| wrong(history, config)) {
            return Err(Invalid {
                key: "namespace.history",
                namespace: Some(index),
                reason,
            });
        }
    }
    Ok(())
}

/// Why no channel can keep that.
fn wrong(history: History, config: &Config) -> Option<String> {
    let tail_bytes_max = config.broker.tail_bytes_max;
    let age_max = Seconds(DURATION_MAX);
    match history {
        History {
            count: None,
            bytes: None,
            age: None,
        } => Some("one of count, bytes and age must be given".into()),
        History { count: Some(0), .. } => Some("count: 0 keeps nothing; leave history out".into()),
        History {
            bytes: Some(bytes), ..
        } if bytes > tail_bytes_max || bytes == ByteSize(0) => Some(format!(
            "bytes: {bytes} is not between 1B and broker.tail_bytes_max {tail_bytes_max}, which \
             is all that a shard keeps"
        )),
        History { age: Some(age), .. } if age > DURATION_MAX || age.is_zero() => Some(format!(
            "age: {} is not between 1ms and {age_max}",
            human(age)
        )),
        History { .. } => None,
    }
}

fn listener(config: &Config) -> Result<(), Invalid> {
    let listener = &config.listener;
    let path = &listener.path;
    let printable = |c: char| c.is_ascii_graphic() && !matches!(c, '?' | '#' | '%');
    require(
        "listener.path",
        path.starts_with('/') && path.chars().all(printable),
        || format!("`{path}` must start with / and have no space, ?, # or %"),
    )?;
    require("listener.origins", !listener.origins.is_empty(), || {
        "the list is empty, so no browser could connect; `*:*` allows all".into()
    })?;
    for origin in &listener.origins {
        let good = origin
            .rsplit_once(':')
            .is_some_and(|(host, port)| !host.is_empty() && is_port(port));
        require("listener.origins", good, || {
            format!("`{origin}` is not `host:port`, `host:*`, `*:port` or `*:*`")
        })?;
    }
    within(
        "listener.head_bytes_max",
        listener.head_bytes_max,
        HEAD_BYTES_MIN,
        HEAD_BYTES_MAX,
    )?;
    duration("listener.handshake_timeout", listener.handshake_timeout)
}

fn is_port(port: &str) -> bool {
    port == "*" || port.parse::<u16>().is_ok()
}

fn heartbeat(config: &Config) -> Result<(), Invalid> {
    let heartbeat = &config.heartbeat;
    duration("heartbeat.ping_interval", heartbeat.ping_interval)?;
    require(
        "heartbeat.pong_timeout",
        heartbeat.pong_timeout > heartbeat.ping_interval,
        || {
            format!(
                "{} must exceed heartbeat.ping_interval {}",
                human(heartbeat.pong_timeout),
                human(heartbeat.ping_interval)
            )
        },
    )?;
    require(
        "heartbeat.pong_timeout",
        heartbeat.pong_timeout <= CLIENT_TIMER_MAX,
        || {
            format!(
                "{} is longer than a client's timer can be, {}",
                human(heartbeat.pong_timeout),
                human(CLIENT_TIMER_MAX)
            )
        },
    )
}

fn auth(config: &Config) -> Result<(), Invalid> {
    let auth = &config.auth;
    if let (Some(key), Some(public)) = (&auth.key_file, &auth.public_key_file) {
        return Err(Invalid {
            key: "auth.public_key_file",
            namespace: None,
            reason: format!(
                "{} contradicts auth.key_file {}: tokens are verified with one or the other",
                public.display(),
                key.display()
            ),
        });
    }
    within(
        "auth.token_expiry",
        Seconds(auth.token_expiry),
        Seconds(Duration::from_secs(1)),
        Seconds(DURATION_MAX),
    )
}

/// Sizes fit into each other (delivery.md F4): what one setting lets in, the
/// next must be able to carry.
fn sizes(config: &Config) -> Result<(), Invalid> {
    let limits = &config.limits;
    let message = limits.message_bytes_max;
    for (key, value) in [
        ("limits.connections_max", limits.connections_max),
        (
            "limits.connections_per_address_max",
            limits.connections_per_address_max,
        ),
    ] {
        require(key, value != Some(0), || {
            "0 would refuse every client".into()
        })?;
    }
    within(
        "limits.channel_name_bytes_max",
        limits.channel_name_bytes_max as usize,
        1,
        CHANNEL_NAME_BYTES_MAX,
    )?;
    let rate = limits.messages_per_second;
    require(
        "limits.messages_per_second",
        rate.rate > 0 && rate.burst > 0,
        || "rate and burst must be at least 1".into(),
    )?;
    within(
        "limits.history_publications_max",
        limits.history_publications_max,
        1,
        HISTORY_PUBLICATIONS_MAX,
    )?;
    within(
        "limits.message_bytes_max",
        message,
        MESSAGE_BYTES_MIN,
        MESSAGE_BYTES_MAX,
    )?;
    require(
        "limits.channels_per_connection_max",
        limits.channels_per_connection_max > 0,
        || "0 would refuse every subscription".into(),
    )?;
    // An empty outbox takes one frame of any size, so the envelope that a
    // delivery adds to a message does not count here.
    for (key, size) in [
        ("limits.outbox_bytes_max", limits.outbox_bytes_max),
        ("link.window_bytes", config.link.window_bytes),
        ("link.credit_bytes", config.link.credit_bytes),
        ("broker.tail_bytes_max", config.broker.tail_bytes_max),
    ] {
        require(key, size >= message, || {
            format!("{size} is less than one message, limits.message_bytes_max {message}")
        })?;
    }
    duration("link.publish_timeout", config.link.publish_timeout)
}

fn pacing(config: &Config) -> Result<(), Invalid> {
    within(
        "pacing.wakeup_interval",
        Seconds(config.pacing.wakeup_interval),
        Seconds(Duration::ZERO),
        Seconds(WAKEUP_INTERVAL_MAX),
    )
}

fn broker(config: &Config) -> Result<(), Invalid> {
    let broker = &config.broker;
    within("broker.threads", broker.threads, 1, THREADS_MAX)?;
    duration("broker.tail_age", broker.tail_age)?;
    require("broker.channels_max", broker.channels_max > 0, || {
        "0 would refuse every channel".into()
    })?;
    duration("broker.key_window", broker.key_window)?;
    duration("broker.fsync_interval", broker.fsync_interval)?;
    within(
        "broker.journal_bytes_max",
        broker.journal_bytes_max,
        JOURNAL_BYTES_MIN,
        ByteSize(u64::MAX),
    )?;
    // A worker may stall and then re-send a publication (delivery.md A2).
    let publish_timeout = config.link.publish_timeout;
    let stall_max = config.supervision.worker_hung_after;
    require(
        "broker.key_window",
        broker.key_window >= publish_timeout.saturating_add(stall_max),
        || {
            format!(
                "{} is shorter than a publication may be re-sent: link.publish_timeout {} \
                 plus supervision.worker_hung_after {}",
                human(broker.key_window),
                human(publish_timeout),
                human(stall_max)
            )
        },
    )
}

fn supervision(config: &Config) -> Result<(), Invalid> {
    let supervision = &config.supervision;
    for (key, value) in [
        (
            "supervision.worker_hung_after",
            supervision.worker_hung_after,
        ),
        (
            "supervision.broker_hung_after",
            supervision.broker_hung_after,
        ),
        ("supervision.start_timeout", supervision.start_timeout),
    ] {
        within(
            key,
            Seconds(value),
            Seconds(HUNG_AFTER_MIN),
            Seconds(HUNG_AFTER_MAX),
        )?;
    }
    Ok(())
}

fn update(config: &Config) -> Result<(), Invalid> {
    let update = &config.update;
    within(
        "update.hold",
        Seconds(update.hold),
        Seconds(Duration::ZERO),
        Seconds(HOLD_MAX),
    )?;
    require("update.parallel", update.parallel > 0, || {
        "0 would replace no worker".into()
    })?;
    for (key, value) in [
        (
            "update.failed_moves_per_thousand_max",
            update.failed_moves_per_thousand_max,
        ),
        (
            "update.abnormal_closes_per_thousand_max",
            update.abnormal_closes_per_thousand_max,
        ),
    ] {
        within(key, value, 0, 1000)?;
    }
    duration("update.lag_max", update.lag_max)?;
    require(
        "update.memory_percent_max",
        update.memory_percent_max >= 100,
        || {
            format!(
                "{} is less than an earlier worker's own 100",
                update.memory_percent_max
            )
        },
    )
}

fn shutdown(config: &Config) -> Result<(), Invalid> {
    let shutdown = &config.shutdown;
    require(
        "shutdown.closes_per_second",
        shutdown.closes_per_second > 0,
        || "0 would never end; to cut all connections at once set shutdown.timeout to 1ms".into(),
    )?;
    duration("shutdown.timeout", shutdown.timeout)
}

fn log(config: &Config) -> Result<(), Invalid> {
    let filter = &config.log.filter;
    match EnvFilter::try_new(filter) {
        Ok(_) => Ok(()),
        Err(error) => Err(Invalid {
            key: "log.filter",
            namespace: None,
            reason: format!("`{filter}`: {error}"),
        }),
    }
}

/// Times are at least a millisecond, the unit of all timers here.
fn duration(key: &'static str, value: Duration) -> Result<(), Invalid> {
    within(
        key,
        Seconds(value),
        Seconds(Duration::from_millis(1)),
        Seconds(DURATION_MAX),
    )
}

fn within<T: PartialOrd + Display + Copy>(
    key: &'static str,
    value: T,
    min: T,
    max: T,
) -> Result<(), Invalid> {
    require(key, (min..=max).contains(&value), || {
        format!("{value} is not between {min} and {max}")
    })
}

fn require(key: &'static str, holds: bool, reason: impl FnOnce() -> String) -> Result<(), Invalid> {
    if holds {
        return Ok(());
    }
    Err(Invalid {
        key,
        namespace: None,
        reason: reason(),
    })
}

fn human(duration: Duration) -> impl Display {
    humantime::format_duration(duration)
}

/// A duration that prints itself as people write it.
#[derive(Clone, Copy, PartialEq, PartialOrd)]
struct Seconds(Duration);

impl Display for Seconds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        human(self.0).fmt(f)
    }
}

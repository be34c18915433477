//! The cluster as a table for people, and as JSON for programs.

use std::time::Duration;

use muster_proto::control::{self as pb, node_status::Stats};
use serde::Serialize;

use crate::{fleet::Rate, node::Role};

/// Column heads; figures are to the right of their column.
const HEADS: [&str; 10] = [
    "NODE",
    "STATE",
    "PID",
    "UP",
    "RESTARTS",
    "CONNECTIONS",
    "SUBSCRIPTIONS",
    "CHANNELS",
    "PUBLISHED",
    "DELIVERED",
];
/// Columns before this one are text.
const FIRST_FIGURE: usize = 2;

/// The table that is redrawn while the cluster runs: messages per second.
pub(crate) fn live(status: &pb::StatusResponse, rates: &[Rate]) -> Vec<String> {
    let mut heads = HEADS;
    heads[8] = "IN/S";
    heads[9] = "OUT/S";
    let nodes = status.nodes.iter().zip(rates);
    let cells = nodes.map(|(node, rate)| {
        let mut cells = cells(node);
        cells[8] = rate.publications.to_string();
        cells[9] = rate.deliveries.to_string();
        cells
    });
    let mut rows = vec![String::new()];
    rows.extend(aligned(&heads, FIRST_FIGURE, cells.collect()));
    rows.push(format!(
        "ws://{}{}  up {}  view {}  Ctrl-C ends it",
        status.listen,
        status.path,
        uptime(status.uptime_ms),
        status.epoch
    ));
    rows
}

/// The answer to `status`.
pub(crate) fn status(status: &pb::StatusResponse, runtime_dir: &str) -> String {
    let mut text = format!(
        "Muster {} listens on ws://{}{}\npid {}, up {}, view {}, runtime directory {runtime_dir}\n\n",
        status.release,
        status.listen,
        status.path,
        status.pid,
        uptime(status.uptime_ms),
        status.epoch,
    );
    for row in aligned(
        &HEADS,
        FIRST_FIGURE,
        status.nodes.iter().map(cells).collect(),
    ) {
        text.push_str(&row);
        text.push('\n');
    }
    if let Some(pb::BrokerScale { from, to, step }) = &status.scaling {
        text.push_str(&format!(
            "\nbrokers are being scaled from {from} to {to}: {step}\n"
        ));
    }
    for node in &status.nodes {
        if !node.last_exit.is_empty() {
            let exit = &node.last_exit;
            text.push_str(&format!("\n{} last ended with {exit}", name(node)));
        }
    }
    text.trim_end().to_owned() + "\n"
}

/// The answer to `status --json`. The field names are part of the interface.
pub(crate) fn json(status: &pb::StatusResponse, runtime_dir: &str) -> String {
    #[derive(Serialize)]
    struct Status<'a> {
        release: &'a str,
        pid: u32,
        uptime_ms: u64,
        runtime_dir: &'a str,
        listen: &'a str,
        path: &'a str,
        url: String,
        epoch: u64,
        /// Null unless brokers are being scaled.
        scaling: Option<Scaling<'a>>,
        nodes: Vec<Node<'a>>,
    }
    #[derive(Serialize)]
    struct Scaling<'a> {
        from: u32,
        to: u32,
        step: &'a str,
    }
    #[derive(Serialize)]
    struct Node<'a> {
        name: String,
        role: &'static str,
        slot: u32,
        incarnation: u64,
        /// Null while there is no process.
        pid: Option<u32>,
        state: &'a str,
        uptime_ms: u64,
        restarts: u32,
        last_exit: Option<&'a str>,
        /// Null before the first heartbeat.
        stats: Option<Figures>,
    }
    let nodes = status.nodes.iter().map(|node| Node {
        name: name(node),
        role: role(node),
        slot: node.slot,
        incarnation: node.incarnation,
        pid: (node.pid != 0).then_some(node.pid),
        state: &node.state,
        uptime_ms: node.uptime_ms,
        restarts: node.restarts,
        last_exit: (!node.last_exit.is_empty()).then_some(node.last_exit.as_str()),
        stats: node.stats.map(Figures::from),
    });
    let status = Status {
        release: &status.release,
        pid: status.pid,
        uptime_ms: status.uptime_ms,
        runtime_dir,
        listen: &status.listen,
        path: &status.path,
        url: format!("ws://{}{}", status.listen, status.path),
        epoch: status.epoch,
        scaling: status.scaling.as_ref().map(|scaling| Scaling {
            from: scaling.from,
            to: scaling.to,
            step: &scaling.step,
        }),
        nodes: nodes.collect(),
    };
    let json = serde_json::to_string_pretty(&status);
    json.expect("text and numbers are always JSON") + "\n"
}

/// What a node counts, in JSON.
#[derive(Serialize)]
#[serde(untagged)]
enum Figures {
    Worker {
        connections: u64,
        subscriptions: u64,
        channels: u64,
        publications: u64,
        deliveries: u64,
        holes: u64,
        links: u32,
        slow_clients_closed: u64,
        dropped: u64,
        resumed: u64,
        holes_told: u64,
        abnormal_closes: u64,
        lag_us: u64,
        memory_bytes: u64,
    },
    Broker {
        shards: u32,
        channels: u64,
        links: u32,
        publications: u64,
        relayed: u64,
        tail_bytes: u64,
        history_bytes: u64,
        history_cut: u64,
    },
}

impl From<Stats> for Figures {
    fn from(stats: Stats) -> Self {
        match stats {
            Stats::Worker(stats) => Self::Worker {
                connections: stats.connections,
                subscriptions: stats.subscriptions,
                channels: stats.channels,
                publications: stats.publications,
                deliveries: stats.deliveries,
                holes: stats.holes,
                links: stats.links,
                slow_clients_closed: stats.slow_clients_closed,
                dropped: stats.dropped,
                resumed: stats.resumed,
                holes_told: stats.holes_told,
                abnormal_closes: stats.abnormal_closes,
                lag_us: stats.lag_us,
                memory_bytes: stats.memory_bytes,
            },
            Stats::Broker(stats) => Self::Broker {
                shards: stats.shards,
                channels: stats.channels,
                links: stats.links,
                publications: stats.publications,
                relayed: stats.relayed,
                tail_bytes: stats.tail_bytes,
                history_bytes: stats.history_bytes,
                history_cut: stats.history_cut,
            },
        }
    }
}

fn role(node: &pb::NodeStatus) -> &'static str {
    Role::from_message(node.role).map_or("unknown", Role::verb)
}

fn name(node: &pb::NodeStatus) -> String {
    format!("{}-{}", role(node), node.slot)
}

fn cells(node: &pb::NodeStatus) -> Vec<String> {
    let pid = match node.pid {
        0 => "-".into(),
        pid => pid.to_string(),
    };
    let none = || "-".to_owned();
    let figures = match node.stats {
        Some(Stats::Worker(stats)) => [
            stats.connections.to_string(),
            stats.subscriptions.to_string(),
            stats.channels.to_string(),
            stats.publications.to_string(),
            stats.deliveries.to_string(),
        ],
        Some(Stats::Broker(stats)) => [
            none(),
            none(),
            stats.channels.to_string(),
            stats.publications.to_string(),
            stats.relayed.to_string(),
        ],
        None => [none(), none(), none(), none(), none()],
    };
    let first = [
        name(node),
        node.state.clone(),
        pid,
        uptime(node.uptime_ms),
        node.restarts.to_string(),
    ];
    first.into_iter().chain(figures).collect()
}

/// Two spaces between columns; those before `first_figure` are text.
pub(crate) fn aligned(heads: &[&str], first_figure: usize, cells: Vec<Vec<String>>) -> Vec<String> {
    let heads = heads.iter().map(|head| (*head).to_owned()).collect();
    let rows: Vec<Vec<String>> = std::iter::once(heads).chain(cells).collect();
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    rows.iter()
        .map(|row| {
            let cells = row.iter().zip(&widths).enumerate();
            let cells = cells.map(|(column, (cell, width))| {
                if column < first_figure {
                    format!("{cell:<width$}")
                } else {
                    format!("{cell:>width$}")
                }
            });
            let row = cells.collect::<Vec<_>>().join("  ");
            row.trim_end().to_owned()
        })
        .collect()
}

/// The two largest units: `3d 4h`, `4h 5m`, `5m 6s`, `6s`.
pub(crate) fn uptime(millis: u64) -> String {
    let seconds = Duration::from_millis(millis).as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m {}s", seconds % 60),
        (0, _, _) => format!("{hours}h {}m", minutes % 60),
        (_, _, _) => format!("{days}d {}h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> pb::StatusResponse {
        let worker = pb::NodeStatus {
            role: pb::Role::Worker.into(),
            slot: 1,
            incarnation: 7,
            pid: 4242,
            state: "ready".into(),
            restarts: 2,
            last_exit: "signal 9 (SIGKILL): View changed.".into(),
            uptime_ms: 61_000,
            stats: Some(Stats::Worker(pb::WorkerStats {
                connections: 10_000,
                subscriptions: 5,
                ..pb::WorkerStats::default()
            })),
        };
        let broker = pb::NodeStatus {
            role: pb::Role::Broker.into(),
            slot: 1,
            state: "starting".into(),
            ..pb::NodeStatus::default()
        };
        pb::StatusResponse {
            listen: "127.0.0.1:8000".into(),
            path: "/socketcluster/".into(),
            epoch: 3,
            pid: 4000,
            release: "0.1.0".into(),
            uptime_ms: 100_000_000,
            nodes: vec![worker, broker],
            scaling: None,
        }
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = live(&example(), &[Rate::default(), Rate::default()]);
        assert_eq!(
            rows[1],
            "NODE      STATE      PID     UP  RESTARTS  CONNECTIONS  SUBSCRIPTIONS  CHANNELS  IN/S  OUT/S"
        );
        assert_eq!(
            rows[2],
            "worker-1  ready     4242  1m 1s         2        10000              5         0     0      0"
        );
        assert_eq!(
            rows[3],
            "broker-1  starting     -     0s         0            -              -         -     0      0"
        );
        assert!(rows[4].starts_with("ws://127.0.0.1:8000/socketcluster/"));
    }

    #[test]
    fn the_status_says_that_brokers_are_being_scaled() {
        let scaling = pb::BrokerScale {
            from: 2,
            to: 4,
            step: "linking".into(),
        };
        let example = pb::StatusResponse {
            scaling: Some(scaling),
            ..example()
        };
        let text = status(&example, "/run/muster");
        assert!(text.contains("scaled from 2 to 4: linking\n"), "{text}");
        let json: serde_json::Value = serde_json::from_str(&json(&example, "/run")).unwrap();
        let expected = serde_json::json!({"from": 2, "to": 4, "step": "linking"});
        assert_eq!(json["scaling"], expected);
    }

    #[test]
    fn the_status_says_how_a_node_ended_last() {
        let text = status(&example(), "/run/muster");
        assert!(text.contains("worker-1 last ended with signal 9 (SIGKILL): View changed."));
        assert!(text.contains("up 1d 3h"), "{text}");
        assert!(text.contains("/run/muster"), "{text}");
    }

    #[test]
    fn the_json_has_stable_names() {
        let json: serde_json::Value =
            serde_json::from_str(&json(&example(), "/run/muster")).unwrap();
        assert_eq!(json["listen"], "127.0.0.1:8000");
        assert_eq!(json["url"], "ws://127.0.0.1:8000/socketcluster/");
        let worker = &json["nodes"][0];
        assert_eq!(worker["name"], "worker-1");
        assert_eq!(worker["role"], "worker");
        assert_eq!(worker["pid"], 4242);
        assert_eq!(worker["state"], "ready");
        assert_eq!(worker["stats"]["connections"], 10_000);
        let broker = &json["nodes"][1];
        assert_eq!(broker["pid"], serde_json::Value::Null);
        assert_eq!(broker["stats"], serde_json::Value::Null);
        assert_eq!(broker["last_exit"], serde_json::Value::Null);
    }
}

//! The published clients, in a process of their own.

use std::{path::PathBuf, process::Stdio, sync::Arc};

use muster_tests::tools;
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    process::{Child, ChildStdin, Command},
    task::JoinHandle,
};

use crate::{
    client::Plan,
    record::{ClientId, Journal, Key, Record, Time, What},
};

/// Versions of the client, by turns.
const VERSIONS: [u32; 2] = [20, 14];

/// A line that stock.mjs writes.
#[derive(Debug, Deserialize)]
struct Line {
    at: Time,
    client: ClientId,
    #[serde(flatten)]
    what: Said,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "what", rename_all = "lowercase")]
enum Said {
    Connected { id: String },
    Disconnected { code: u16 },
    Subscribed { channel: usize },
    Published { n: u64, channel: usize },
    Answered { n: u64, error: Option<String> },
    Delivered { channel: usize, p: ClientId, n: u64 },
}

impl From<Line> for Record {
    fn from(Line { at, client, what }: Line) -> Self {
        let what = match what {
            Said::Connected { id } => What::Connected { id },
            Said::Disconnected { code } => What::Disconnected { code },
            Said::Subscribed { channel } => What::Subscribed { channel },
            Said::Published { n, channel } => What::Published { n, channel },
            Said::Answered { n, error } => What::Answered { n, error },
            Said::Delivered { channel, p, n } => What::Delivered {
                channel,
                key: Key { client: p, n },
            },
        };
        Self { at, client, what }
    }
}

/// The process with the clients.
#[derive(Debug)]
pub(crate) struct Stock {
    node: Child,
    input: ChildStdin,
    reader: JoinHandle<()>,
}

impl Stock {
    /// Starts the clients; `None`, and says so, where there is no Node.
    pub(crate) fn start(url: &str, plans: &[Plan], journal: Arc<Journal>) -> Option<Self> {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Wanted<'p> {
            client: ClientId,
            version: u32,
            publishes: usize,
            subscribes: &'p [usize],
            interval_ms: u64,
        }
        if !tools::available("the stock clients of the chaos", &["node", "npm"]) {
            return None;
        }
        let versions = VERSIONS.into_iter().cycle();
        let wanted = plans.iter().zip(versions).map(|(plan, version)| Wanted {
            client: plan.client,
            version,
            publishes: plan.publishes,
            subscribes: &plan.subscribes,
            interval_ms: u64::try_from(plan.interval.as_millis()).unwrap_or(u64::MAX),
        });
        let wanted: Vec<_> = wanted.collect();
        let source = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("chaos/stock.mjs");
        let mut node = Command::new("node")
            .arg(source)
            .arg(url)
            .arg(tools::stock_clients())
            .arg(serde_json::to_string(&wanted).expect("plans are JSON"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("node starts");
        let input = node.stdin.take().expect("it was piped");
        let output = node.stdout.take().expect("it was piped");
        let reader = tokio::spawn(async move {
            let mut lines = BufReader::new(output).lines();
            while let Some(line) = lines.next_line().await.expect("the output is text") {
                let line: Line = serde_json::from_str(&line)
                    .unwrap_or_else(|error| panic!("stock.mjs wrote {line}: {error}"));
                journal.write(line.into());
            }
        });
        Some(Self {
            node,
            input,
            reader,
        })
    }

    /// No more publications.
    pub(crate) async fn listen(&mut self) {
        let told = self.input.write_all(b"listen\n").await;
        told.expect("node listens");
    }

    pub(crate) async fn end(self) {
        let Self {
            mut node,
            input,
            reader,
        } = self;
        drop(input);
        let status = node.wait().await.expect("node ends");
        assert!(status.success(), "node ended with {status}");
        reader.await.expect("every line was understood");
    }
}

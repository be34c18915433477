//! The published clients of all versions while workers are replaced.

use std::{collections::BTreeMap, path::PathBuf, process::Stdio};

use muster_tests::{Cluster, patience, tools};
use serde_json::{Value, json as value};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    process::Command,
    time::timeout,
};

use super::update;
use crate::json;

const CLIENTS: u64 = 12;
const VERSIONS: [u32; 4] = [14, 16, 19, 20];
const CHANNELS: u64 = 3;

/// What the clients have said and heard.
#[derive(Default)]
struct Account {
    /// Numbers that each client has published.
    published: BTreeMap<u64, u64>,
    answered: u64,
    /// Per listener and publisher, in the order in which they came.
    heard: BTreeMap<(u64, u64), Vec<u64>>,
    subscribed: u64,
}

impl Account {
    /// One line of `stock.mjs`.
    fn note(&mut self, line: &str) {
        let line = json(line);
        let number = |name: &str| line[name].as_u64().expect("a number");
        let client = number("client");
        match line["what"].as_str().expect("something") {
            "connected" => {}
            "subscribed" => self.subscribed += 1,
            "published" => {
                self.published.insert(client, number("n"));
            }
            "answered" => {
                assert_eq!(line["error"], Value::Null, "{line}");
                self.answered += 1;
            }
            "delivered" => {
                let heard = self.heard.entry((client, number("p"))).or_default();
                heard.push(number("n"));
            }
            _ => panic!("nobody is to be disconnected: {line}"),
        }
    }

    /// Whether everything that was published is acked and has reached everybody.
    fn is_complete(&self) -> bool {
        let has_all = |listener, publisher, count: &u64| {
            let heard = self.heard.get(&(listener, publisher));
            heard.and_then(|heard| heard.last()) == Some(count)
        };
        self.answered == self.published.values().sum::<u64>()
            && self.published.iter().all(|(publisher, count)| {
                (0..CLIENTS).all(|listener| has_all(listener, *publisher, count))
            })
    }
}

#[tokio::test]
async fn stock_clients_of_all_versions_notice_no_update() {
    if !tools::available("the stock clients under update", &["node", "npm"]) {
        return;
    }
    let cluster = Cluster::start(2, 2).await;
    let plans = (0..CLIENTS).map(|client| {
        let version = VERSIONS[usize::try_from(client).expect("small") % VERSIONS.len()];
        let subscribes: Vec<u64> = (0..CHANNELS).collect();
        value!({
            "client": client,
            "version": version,
            "publishes": client % CHANNELS,
            "subscribes": subscribes,
            "intervalMs": 10,
        })
    });
    let plans: Vec<_> = plans.collect();
    let source = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("chaos/stock.mjs");
    let mut node = Command::new("node")
        .arg(source)
        .arg(cluster.url())
        .arg(tools::stock_clients())
        .arg(Value::from(plans).to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("node starts");
    let mut input = node.stdin.take().expect("it was piped");
    let mut lines = BufReader::new(node.stdout.take().expect("it was piped")).lines();
    let mut account = Account::default();
    let mut next = async |account: &mut Account| {
        let line = timeout(patience(), lines.next_line()).await;
        let line = line.expect("something happens").expect("it is text");
        account.note(&line.expect("node lives"));
    };
    // Publications before a subscription need not be heard.
    while account.subscribed < CLIENTS * CHANNELS {
        next(&mut account).await;
    }
    let before = account.published.clone();
    for _ in 0..3 {
        let mut updating = std::pin::pin!(update(&cluster));
        loop {
            tokio::select! {
                updated = &mut updating => {
                    assert_eq!((&updated["moved"], &updated["failed"]), (&CLIENTS.into(), &0.into()));
                    break;
                }
                () = next(&mut account) => {}
            }
        }
    }
    input.write_all(b"listen\n").await.expect("node listens");
    while !account.is_complete() {
        next(&mut account).await;
    }
    for ((listener, publisher), heard) in &account.heard {
        let known = before.get(publisher).copied().unwrap_or(0);
        let first = heard[0];
        assert!(
            first <= known + 1,
            "client {listener} misses {publisher}'s first"
        );
        let all: Vec<u64> = (first..=account.published[publisher]).collect();
        assert_eq!(*heard, all, "client {listener} of {publisher}");
    }
    drop(input);
    let status = node.wait().await.expect("node ends");
    assert!(status.success(), "{status}");
    cluster.down().await;
}

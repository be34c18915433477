//! The published clients of all versions while workers are replaced, among
//! clients that read slowly and that dribble.

use std::{collections::BTreeMap, path::PathBuf, process::Stdio};

use muster_tests::{
    Cluster,
    bare::{self, Bare},
    patience, tools,
};
use serde_json::{Value, json as value};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    sync::watch,
    time::{Duration, sleep, timeout},
};

use super::update;
use crate::json;

const VERSIONS: [u32; 4] = [14, 16, 19, 20];
/// Stock clients with small messages.
const SMALL: u64 = 12;
/// Stock clients with large ones, of each version one.
const LARGE: u64 = 4;
/// Channels with small messages; the large ones' comes after them.
const CHANNELS: u64 = 3;
const LARGE_BYTES: usize = 100_000;
/// The client whose messages come byte by byte.
const DRIBBLER: u64 = 100;
/// Stock clients, the one that dribbles, and the one that reads slowly.
const ALL: u64 = SMALL + LARGE + 2;
/// How long those two wait between two steps.
const STEP: Duration = Duration::from_millis(2);

/// What the stock clients write.
type Output = BufReader<ChildStdout>;

/// A stock client's part.
struct Plan {
    version: u32,
    publishes: u64,
    subscribes: Vec<u64>,
    interval_ms: u32,
    padding: usize,
}

fn plans() -> BTreeMap<u64, Plan> {
    let version = |client| VERSIONS[usize::try_from(client).expect("small") % VERSIONS.len()];
    let small = (0..SMALL).map(|client| Plan {
        version: version(client),
        publishes: client % CHANNELS,
        subscribes: (0..CHANNELS).collect(),
        interval_ms: 10,
        padding: 0,
    });
    let large = (0..LARGE).map(|client| Plan {
        version: version(client),
        publishes: CHANNELS,
        subscribes: vec![CHANNELS],
        interval_ms: 200,
        padding: LARGE_BYTES,
    });
    (0..).zip(small.chain(large)).collect()
}

/// What the clients have said and heard.
#[derive(Default)]
struct Account {
    /// Numbers that each client has published, and where.
    published: BTreeMap<u64, (u64, u64)>,
    /// Of stock clients.
    said: u64,
    answered: u64,
    /// Per listener and publisher, in the order in which they came.
    heard: BTreeMap<(u64, u64), Vec<u64>>,
    subscribed: usize,
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
                self.said += 1;
                let published = (number("channel"), number("n"));
                self.published.insert(client, published);
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

    /// Who must hear whom, and the last number of each.
    fn pairs<'a>(
        &'a self,
        plans: &'a BTreeMap<u64, Plan>,
    ) -> impl Iterator<Item = ((u64, u64), u64)> + 'a {
        plans.iter().flat_map(|(listener, plan)| {
            let published = self.published.iter();
            published.filter_map(|(publisher, (channel, last))| {
                let hears = plan.subscribes.contains(channel);
                hears.then_some(((*listener, *publisher), *last))
            })
        })
    }

    /// Whether everything that was published is acked and has reached everybody.
    fn is_complete(&self, plans: &BTreeMap<u64, Plan>) -> bool {
        let mut pairs = self.pairs(plans);
        self.answered == self.said
            && pairs.all(|(pair, last)| self.heard.get(&pair).and_then(|h| h.last()) == Some(&last))
    }

    /// Everybody has heard everything, once and in order, but for what was said
    /// before all had subscribed.
    fn check(&self, plans: &BTreeMap<u64, Plan>, before: &BTreeMap<u64, (u64, u64)>) {
        for ((listener, publisher), last) in self.pairs(plans) {
            let heard = &self.heard[&(listener, publisher)];
            let known = before.get(&publisher).map_or(0, |(_, known)| *known);
            let first = heard[0];
            assert!(
                first <= known + 1,
                "client {listener} misses {publisher}'s first"
            );
            let all: Vec<u64> = (first..=last).collect();
            assert_eq!(*heard, all, "client {listener} of {publisher}");
        }
    }
}

/// Starts the stock clients.
fn start(cluster: &Cluster, plans: &BTreeMap<u64, Plan>) -> (Child, ChildStdin, Lines<Output>) {
    let lines = plans.iter().map(|(client, plan)| {
        value!({
            "client": client,
            "version": plan.version,
            "publishes": plan.publishes,
            "subscribes": plan.subscribes,
            "intervalMs": plan.interval_ms,
            "padding": plan.padding,
        })
    });
    let lines: Vec<_> = lines.collect();
    let source = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("chaos/stock.mjs");
    let mut node = Command::new("node")
        .arg(source)
        .arg(cluster.url())
        .arg(tools::stock_clients())
        .arg(Value::from(lines).to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("node starts");
    let input = node.stdin.take().expect("it was piped");
    let lines = BufReader::new(node.stdout.take().expect("it was piped")).lines();
    (node, input, lines)
}

async fn open(addr: &str) -> Bare {
    let mut client = Bare::connect(addr).await;
    client.upgrade().await;
    client.handshake().await;
    client
}

/// Publishes message after message, a few bytes at a time, until `ending` says
/// so; how many.
async fn dribble(addr: String, ending: watch::Receiver<Option<u64>>) -> u64 {
    let mut client = open(&addr).await;
    let mut n = 0;
    while ending.borrow().is_none() {
        n += 1;
        let publish = format!(
            r##"{{"event":"#publish","data":{{"channel":"chaos:0","data":{{"p":{DRIBBLER},"n":{n}}}}},"cid":{n}}}"##
        );
        for piece in bare::text(&publish).chunks(7) {
            client.write(piece).await;
            sleep(STEP).await;
        }
        // Its own call is answered, too; what is a ping meanwhile is dealt with.
        assert_eq!(client.text().await, format!(r#"{{"rid":{n}}}"#));
    }
    n
}

/// Reads large messages, more slowly than they come, until `ending` says how many
/// there are; what was heard of each publisher.
async fn read_slowly(mut client: Bare, mut ending: watch::Receiver<Option<u64>>) {
    let mut heard: BTreeMap<u64, u64> = BTreeMap::new();
    while ending
        .borrow()
        .is_none_or(|all| heard.values().sum::<u64>() < all)
    {
        let text = tokio::select! {
            text = client.text() => text,
            changed = ending.changed() => {
                changed.expect("somebody tells");
                continue;
            }
        };
        let packet: Value = json(&text);
        let data = &packet["data"]["data"];
        let last = heard
            .entry(data["p"].as_u64().expect("a number"))
            .or_default();
        let number = data["n"].as_u64().expect("a number");
        // The first may have been said before it listened.
        assert!(number == *last + 1 || *last == 0, "{number} after {last}");
        *last = number;
        let length = data["text"].as_str().map(str::len);
        assert_eq!(length, Some(LARGE_BYTES), "every byte");
        if ending.borrow().is_none() {
            let _over = timeout(STEP * 50, ending.changed()).await;
        }
    }
}

#[tokio::test]
async fn stock_clients_of_all_versions_notice_no_update() {
    if !tools::available("the stock clients under update", &["node", "npm"]) {
        return;
    }
    let cluster = Cluster::builder(2, 2)
        .config("[limits]\noutbox_bytes_max = \"64MiB\"")
        .start()
        .await;
    // Before anybody publishes.
    let mut slow = open(cluster.addr()).await;
    let subscribe =
        format!(r##"{{"event":"#subscribe","data":{{"channel":"chaos:{CHANNELS}"}},"cid":2}}"##);
    slow.write(&bare::text(&subscribe)).await;
    assert_eq!(slow.text().await, r#"{"rid":2}"#);
    let plans = plans();
    let (mut node, mut input, mut lines) = start(&cluster, &plans);
    let mut account = Account::default();
    let mut next = async |account: &mut Account| {
        let line = timeout(patience(), lines.next_line()).await;
        let line = line.expect("something happens").expect("it is text");
        account.note(&line.expect("node lives"));
    };
    // Publications before a subscription need not be heard.
    let subscriptions: usize = plans.values().map(|plan| plan.subscribes.len()).sum();
    while account.subscribed < subscriptions {
        next(&mut account).await;
    }
    let before = account.published.clone();
    let (end, ending) = watch::channel(None);
    let dribbling = tokio::spawn(dribble(cluster.addr().to_owned(), ending.clone()));
    let reading = tokio::spawn(read_slowly(slow, ending));
    crate::counted(&cluster, usize::try_from(ALL).expect("small")).await;
    for _ in 0..3 {
        let mut updating = std::pin::pin!(update(&cluster));
        loop {
            tokio::select! {
                updated = &mut updating => {
                    assert_eq!((&updated["moved"], &updated["failed"]), (&ALL.into(), &0.into()));
                    break;
                }
                () = next(&mut account) => {}
            }
        }
    }
    input.write_all(b"listen\n").await.expect("node listens");
    while !account.is_complete(&plans) {
        next(&mut account).await;
    }
    let is_large = |(channel, _): &&(u64, u64)| *channel == CHANNELS;
    let large = account.published.values().filter(is_large);
    end.send(Some(large.map(|(_, count)| count).sum()))
        .expect("somebody waits");
    let dribbled = dribbling.await.expect("nothing went wrong");
    account.published.insert(DRIBBLER, (0, dribbled));
    while !account.is_complete(&plans) {
        next(&mut account).await;
    }
    let read = timeout(patience(), reading).await;
    read.expect("all of it comes").expect("nothing went wrong");
    account.check(&plans, &before);
    drop(input);
    let status = node.wait().await.expect("node ends");
    assert!(status.success(), "{status}");
    cluster.down().await;
}

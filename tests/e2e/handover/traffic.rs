//! Clients that publish numbers to each other and miss none.

use std::collections::BTreeMap;

use muster_tests::Raw;
use serde_json::Value;
use tokio::{sync::watch, task::JoinSet};

/// Clients that publish and listen until they are told to end.
#[derive(Debug)]
pub(crate) struct Traffic {
    clients: JoinSet<Told>,
    ending: watch::Sender<bool>,
}

/// What one client has said and heard.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) client: Raw,
    number: usize,
    published: u64,
    /// By publisher, in the order in which they came.
    heard: BTreeMap<usize, Vec<u64>>,
}

/// Channels; enough that each broker has some.
const CHANNELS: usize = 8;

fn channel(publisher: usize) -> String {
    format!("traffic:{}", publisher % CHANNELS)
}

impl Traffic {
    /// Every client subscribes to everything, then all publish.
    pub(crate) async fn start(url: &str, count: usize) -> Self {
        let (ending, ended) = watch::channel(false);
        let mut ready = Vec::new();
        for number in 0..count {
            let mut client = Raw::connect(url).await;
            for channel in 0..CHANNELS {
                client.subscribe(&format!("traffic:{channel}")).await;
            }
            ready.push(Told {
                client,
                number,
                published: 0,
                heard: BTreeMap::new(),
            });
        }
        let mut clients = JoinSet::new();
        for told in ready {
            clients.spawn(told.run(ended.clone()));
        }
        Self { clients, ending }
    }

    /// Ends it and checks that everybody has heard everything once and in order.
    pub(crate) async fn end(self) -> Vec<Raw> {
        self.ending.send(true).expect("the clients live");
        let mut told = self.clients.join_all().await;
        let published: BTreeMap<usize, u64> =
            told.iter().map(|one| (one.number, one.published)).collect();
        let total = usize::try_from(published.values().sum::<u64>()).expect("not too many");
        for one in &mut told {
            while one.heard.values().map(Vec::len).sum::<usize>() < total {
                let text = one.client.receive().await;
                one.hear(&text);
            }
            for (publisher, count) in &published {
                let heard = one.heard.get(publisher).cloned().unwrap_or_default();
                let all: Vec<u64> = (1..=*count).collect();
                assert_eq!(heard, all, "client {} of {publisher}", one.number);
            }
        }
        told.into_iter().map(|one| one.client).collect()
    }
}

impl Told {
    /// Publishes one after the other, each when the one before is acked.
    async fn run(mut self, ended: watch::Receiver<bool>) -> Self {
        while !*ended.borrow() {
            self.published += 1;
            let n = self.published;
            let data = format!(r#"{{"p":{},"n":{n}}}"#, self.number);
            self.client.publish(&channel(self.number), &data).await;
            for text in self.client.take_early() {
                self.hear(&text);
            }
        }
        self
    }

    fn hear(&mut self, text: &str) {
        let packet: Value = serde_json::from_str(text).expect("it is JSON");
        let data = &packet["data"]["data"];
        let number = |name: &str| data[name].as_u64().expect("a number that was published");
        let publisher = usize::try_from(number("p")).expect("a small number");
        self.heard.entry(publisher).or_default().push(number("n"));
    }
}

//! A client that hides nothing, comes back after each end, and writes down all
//! it sees.

use std::{sync::Arc, time::Duration};

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::{
    net::TcpStream,
    sync::watch,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async, tungstenite::protocol::Message,
};

use crate::record::{ClientId, Journal, Key, What, channel_name, channel_number};

/// Longest that connecting may take; a worker that hangs answers nothing.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const COME_BACK_AFTER: Duration = Duration::from_millis(200);
/// `cid`s below are of other calls than publications.
const FIRST_PUBLICATION: u64 = 100;

/// What clients are to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Publishing,
    /// Publish nothing more, but listen.
    Listening,
    Over,
}

/// What one client does.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) client: ClientId,
    pub(crate) publishes: usize,
    pub(crate) subscribes: Vec<usize>,
    pub(crate) interval: Duration,
}

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) plan: Plan,
    pub(crate) url: String,
    pub(crate) journal: Arc<Journal>,
    pub(crate) phase: watch::Receiver<Phase>,
    /// Publications so far.
    pub(crate) published: u64,
}

impl Client {
    /// Lives until it is over.
    pub(crate) async fn run(mut self) {
        while *self.phase.borrow() != Phase::Over {
            let connected = timeout(CONNECT_TIMEOUT, self.connect()).await;
            if let Ok(Some(socket)) = connected {
                let code = self.live(socket).await;
                if let Some(code) = code {
                    self.note(What::Disconnected { code });
                }
            }
            tokio::select! {
                () = sleep(COME_BACK_AFTER) => {}
                _ = self.phase.wait_for(|phase| *phase == Phase::Over) => {}
            }
        }
    }

    /// Up to the handshake; what is subscribed to is asked for, too.
    async fn connect(&self) -> Option<Socket> {
        let (mut socket, _) = connect_async(&self.url).await.ok()?;
        let mut packets =
            vec![json!({"event": "#handshake", "data": {"authToken": null}, "cid": 1})];
        for channel in &self.plan.subscribes {
            let data = json!({"channel": channel_name(*channel)});
            packets.push(json!({"event": "#subscribe", "data": data, "cid": 10 + channel}));
        }
        for packet in packets {
            socket.send(Message::text(packet.to_string())).await.ok()?;
        }
        loop {
            let Message::Text(text) = socket.next().await?.ok()? else {
                continue;
            };
            let answer: Value = serde_json::from_str(&text).ok()?;
            if answer["rid"] == 1 {
                let id = answer["data"]["id"].as_str()?.to_owned();
                self.note(What::Connected { id });
                return Some(socket);
            }
        }
    }

    /// Until the connection ends, which gives a code, or everything is over.
    async fn live(&mut self, mut socket: Socket) -> Option<u16> {
        // Spread over the interval, so that not all publish at once.
        let part = self
            .plan
            .interval
            .mul_f64(f64::from(self.plan.client % 16) / 16.0);
        let mut next = Instant::now() + part;
        loop {
            tokio::select! {
                message = socket.next() => match message {
                    Some(Ok(Message::Text(text))) if text.is_empty() => {
                        if socket.send(Message::text("")).await.is_err() {
                            return Some(1006);
                        }
                    }
                    Some(Ok(Message::Text(text))) => self.hear(&text),
                    Some(Ok(Message::Close(frame))) => {
                        return Some(frame.map_or(1005, |frame| frame.code.into()));
                    }
                    Some(Ok(_)) => {}
                    Some(Err(_)) | None => return Some(1006),
                },
                () = sleep_until(next), if *self.phase.borrow() == Phase::Publishing => {
                    next = Instant::now().max(next + self.plan.interval);
                    let packet = self.next_publication();
                    if socket.send(Message::text(packet)).await.is_err() {
                        return Some(1006);
                    }
                }
                // The condition above may have changed.
                changed = self.phase.changed() => {
                    if changed.is_err() || *self.phase.borrow() == Phase::Over {
                        return None;
                    }
                }
            }
        }
    }

    fn next_publication(&mut self) -> String {
        self.published += 1;
        let (n, client, channel) = (self.published, self.plan.client, self.plan.publishes);
        self.note(What::Published { n, channel });
        let data = json!({"channel": channel_name(channel), "data": {"p": client, "n": n}});
        json!({"event": "#publish", "data": data, "cid": FIRST_PUBLICATION + n}).to_string()
    }

    fn hear(&self, text: &str) {
        let Ok(packet) = serde_json::from_str::<Value>(text) else {
            return;
        };
        if let Some(what) = understand(&packet) {
            self.note(what);
        }
    }

    fn note(&self, what: What) {
        self.journal.note(self.plan.client, what);
    }
}

fn understand(packet: &Value) -> Option<What> {
    if packet["event"] == "#publish" {
        let data = &packet["data"];
        let channel = channel_number(data["channel"].as_str()?)?;
        let key = Key {
            client: ClientId::try_from(data["data"]["p"].as_u64()?).ok()?,
            n: data["data"]["n"].as_u64()?,
        };
        return Some(What::Delivered { channel, key });
    }
    let rid = packet["rid"].as_u64()?;
    let error = packet.get("error").filter(|error| !error.is_null());
    let error = error.map(|error| error["name"].to_string());
    if rid > FIRST_PUBLICATION {
        let n = rid - FIRST_PUBLICATION;
        return Some(What::Answered { n, error });
    }
    let channel = usize::try_from(rid.checked_sub(10)?).ok()?;
    error.is_none().then_some(What::Subscribed { channel })
}

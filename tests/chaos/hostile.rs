//! Clients that mean no good. Whatever the cluster does to them is fine.

use std::{path::Path, time::Duration};

use futures_util::{SinkExt as _, StreamExt as _};
use muster_tests::Cluster;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UnixStream},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{Bytes, protocol::Message},
};

use crate::script::Nuisance;

const FLOOD: Duration = Duration::from_millis(1500);
/// Nothing may wait for these longer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Of each kind.
const HALF_OPEN: usize = 8;
/// Enough to fill an outbox and all the kernel takes.
const BULK_BYTES: usize = 32 << 20;
const BULK_MESSAGE_BYTES: usize = 256 << 10;
const GARBAGE_BYTES_MAX: usize = 4096;

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// Where they go.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) url: String,
    pub(crate) addr: String,
    pub(crate) sockets: Vec<std::path::PathBuf>,
}

impl Target {
    pub(crate) fn of(cluster: &Cluster) -> Self {
        Self {
            url: cluster.url(),
            addr: cluster.addr().to_owned(),
            sockets: sockets(&cluster.runtime_dir()),
        }
    }
}

/// The Unix sockets in a runtime directory.
fn sockets(dir: &Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(dir).expect("the runtime directory is there");
    let paths = entries.flatten().map(|entry| entry.path());
    let mut sockets: Vec<_> = paths
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "sock")
        })
        .collect();
    sockets.sort();
    sockets
}

/// Begins something bad; it goes on by itself.
pub(crate) fn begin(nuisance: Nuisance, target: Target, seed: u64, tasks: &mut JoinSet<()>) {
    let rng = StdRng::seed_from_u64(seed);
    match nuisance {
        Nuisance::FloodOfPublications => {
            let packet = json!({"event": "#publish", "data": {"channel": "flood", "data": 1}});
            let array = json!(vec![packet; 500]).to_string();
            tasks.spawn(flood(target, move |_| Message::text(array.clone())));
        }
        Nuisance::FloodOfPings => {
            tasks.spawn(flood(target, |_| Message::Ping(Bytes::from_static(b"!"))));
        }
        Nuisance::FloodOfSubscriptions => {
            tasks.spawn(flood(target, |n| {
                let packet = |i: u64| {
                    let data = json!({"channel": format!("flood:{}", n * 100 + i)});
                    let cid = n * 100 + i + 2;
                    json!({"event": "#subscribe", "data": data, "cid": cid})
                };
                Message::text(json!((0..100).map(packet).collect::<Vec<_>>()).to_string())
            }));
        }
        Nuisance::HalfOpen => {
            tasks.spawn(half_open(target));
        }
        Nuisance::SlowReader => {
            tasks.spawn(slow_reader(target));
        }
        Nuisance::Garbage => {
            tasks.spawn(garbage(target, rng));
        }
    }
}

async fn connected(url: &str) -> Option<Socket> {
    let (mut socket, _) = timeout(PATIENCE, connect_async(url)).await.ok()?.ok()?;
    let handshake = json!({"event": "#handshake", "data": {"authToken": null}, "cid": 1});
    socket
        .send(Message::text(handshake.to_string()))
        .await
        .ok()?;
    Some(socket)
}

/// Sends as fast as it can, and reads, so that the flood does not end by itself.
async fn flood(target: Target, message: impl Fn(u64) -> Message) {
    let Some(socket) = connected(&target.url).await else {
        return;
    };
    let (mut sink, mut stream) = socket.split();
    let send = async {
        for n in 0.. {
            if sink.send(message(n)).await.is_err() {
                return;
            }
        }
    };
    let read = async { while let Some(Ok(_)) = stream.next().await {} };
    let _ = timeout(FLOOD, async {
        tokio::select! {
            () = send => {}
            () = read => {}
        }
    })
    .await;
}

/// They stay as they are until the cluster has had enough, or the run is over.
async fn half_open(target: Target) {
    let mut held = Vec::new();
    for text in ["", "G", "GET /socketcluster/ HTTP/1.1\r\nHost: x\r\nUpgr"] {
        for _ in 0..HALF_OPEN {
            let Ok(Ok(mut stream)) = timeout(PATIENCE, TcpStream::connect(&target.addr)).await
            else {
                continue;
            };
            let _ = stream.write_all(text.as_bytes()).await;
            held.push(stream);
        }
    }
    let mut silent = Vec::new();
    for _ in 0..HALF_OPEN {
        if let Ok(Ok((socket, _))) = timeout(PATIENCE, connect_async(&target.url)).await {
            silent.push(socket);
        }
    }
    for mut stream in held {
        let mut answer = [0; 512];
        while matches!(stream.read(&mut answer).await, Ok(1..)) {}
    }
    drop(silent);
}

/// One that subscribes and does not read; another one publishes for it.
async fn slow_reader(target: Target) {
    let (Some(mut slow), Some(fast)) = (connected(&target.url).await, connected(&target.url).await)
    else {
        return;
    };
    let subscribe = json!({"event": "#subscribe", "data": {"channel": "bulk"}, "cid": 2});
    let _ = slow.send(Message::text(subscribe.to_string())).await;
    // Its answer shows that it subscribes; nothing is read after it.
    let _ = timeout(PATIENCE, async {
        while let Some(Ok(message)) = slow.next().await {
            if message
                .to_text()
                .is_ok_and(|text| text.starts_with(r#"{"rid":2"#))
            {
                return;
            }
        }
    })
    .await;
    let data = "x".repeat(BULK_MESSAGE_BYTES);
    let packet = json!({"event": "#publish", "data": {"channel": "bulk", "data": data}});
    let packet = packet.to_string();
    let (mut sink, mut stream) = fast.split();
    let send = async {
        for _ in 0..BULK_BYTES / BULK_MESSAGE_BYTES {
            if sink.send(Message::text(packet.clone())).await.is_err() {
                return;
            }
        }
    };
    let read = async { while let Some(Ok(_)) = stream.next().await {} };
    let _ = timeout(PATIENCE, async {
        tokio::select! {
            () = send => {}
            () = read => {}
        }
    })
    .await;
    sleep(PATIENCE).await;
    drop(slow);
}

/// Random bytes, and what only begins like the protocol.
async fn garbage(target: Target, mut rng: StdRng) {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let mut held = Vec::new();
    for path in &target.sockets {
        for round in 0..6 {
            let Ok(Ok(mut stream)) = timeout(PATIENCE, UnixStream::connect(path)).await else {
                continue;
            };
            let mut bytes = match round % 3 {
                0 => Vec::new(),
                1 => PREFACE.to_vec(),
                _ => b"POST /muster.control.v1.Operator/Down HTTP/1.1\r\n\r\n".to_vec(),
            };
            let length = rng.random_range(1..GARBAGE_BYTES_MAX);
            bytes.extend((0..length).map(|_| rng.random::<u8>()));
            let _ = timeout(PATIENCE, stream.write_all(&bytes)).await;
            if round < 3 {
                held.push(stream);
            }
        }
    }
    sleep(PATIENCE).await;
    drop(held);
}

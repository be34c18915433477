//! The published clients, unchanged, against whole clusters.

use std::{path::PathBuf, process::Stdio};

use muster_tests::{Cluster, patience, tools};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::Command,
};

/// The heartbeat as `HEARTBEAT` in run.mjs; the rest to be quick.
const CONFIG: &str = "[heartbeat]\nping_interval = \"1s\"\npong_timeout = \"6s\"\n\
                      [shutdown]\ntimeout = \"3s\"\n\
                      [[namespace]]\nprefix = \"kept:\"\nhistory = { count = 100 }";

#[tokio::test]
async fn clients_of_version_14_work() {
    conforms("clients_of_version_14_work", 14, 2).await;
}

#[tokio::test]
async fn clients_of_version_16_work() {
    conforms("clients_of_version_16_work", 16, 2).await;
}

#[tokio::test]
async fn clients_of_version_19_work() {
    conforms("clients_of_version_19_work", 19, 2).await;
}

#[tokio::test]
async fn clients_of_version_20_work() {
    conforms("clients_of_version_20_work", 20, 2).await;
}

#[tokio::test]
async fn clients_work_with_eight_workers() {
    // The oldest and the newest have most in between; all four when asked for.
    let wide = std::env::var_os("MUSTER_TEST_WIDE").is_some();
    let versions: &[u32] = if wide { &[14, 16, 19, 20] } else { &[14, 20] };
    for version in versions {
        conforms("clients_work_with_eight_workers", *version, 8).await;
    }
}

/// What run.mjs asks for; see operator.mjs.
#[derive(Debug, Deserialize)]
#[serde(tag = "verb", rename_all = "kebab-case")]
enum Request {
    Kick {
        connection: String,
        channel: Option<String>,
        message: String,
    },
    Disconnect {
        connection: String,
        code: u16,
        reason: String,
    },
    SetToken {
        connection: String,
        claims: Value,
    },
    RemoveToken {
        connection: String,
    },
    Workers,
    KillWorker {
        slot: u32,
    },
    KillBroker {
        slot: u32,
    },
    Scale {
        workers: u32,
    },
}

/// Runs every case with one version of the client.
async fn conforms(name: &str, version: u32, workers: u32) {
    if !tools::available(name, &["node", "npm"]) {
        return;
    }
    let modules = tools::stock_clients();
    let cluster = Cluster::builder(workers, 2).config(CONFIG).start().await;
    let mut node = Command::new("node")
        .arg(source().join("run.mjs"))
        .args([&version.to_string(), &cluster.url()])
        .arg(cluster.key_file())
        .arg(modules)
        .args(std::env::var("MUSTER_TEST_CASES").ok())
        .env("MUSTER_TEST_PATIENCE_S", patience().as_secs().to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("node starts");
    let mut input = node.stdin.take().expect("it was piped");
    let mut lines = BufReader::new(node.stdout.take().expect("it was piped")).lines();
    let mut report = Vec::new();
    while let Some(line) = lines.next_line().await.expect("the output is text") {
        match line
            .strip_prefix('@')
            .and_then(|request| request.split_once(' '))
        {
            None => report.push(line),
            Some((id, request)) => {
                let request = serde_json::from_str(request).expect("a known request");
                let answer = obey(&cluster, request).await;
                input
                    .write_all(format!("{id} {answer}\n").as_bytes())
                    .await
                    .expect("node listens");
            }
        }
    }
    let status = node.wait().await.expect("node ends");
    let report = report.join("\n");
    tools::say(&report);
    let cases = report
        .lines()
        .filter(|line| line.starts_with("ok "))
        .count();
    assert!(status.success(), "not all cases passed\n{report}");
    assert!(cases > 0, "no case ran");
    cluster.down().await;
}

async fn obey(cluster: &Cluster, request: Request) -> Value {
    match request {
        Request::Kick {
            connection,
            channel,
            message,
        } => {
            cluster
                .kick(&connection, channel.as_deref(), &message)
                .await;
        }
        Request::Disconnect {
            connection,
            code,
            reason,
        } => {
            cluster.disconnect(&connection, code, &reason).await;
        }
        Request::SetToken { connection, claims } => cluster.set_token(&connection, &claims).await,
        Request::RemoveToken { connection } => cluster.remove_token(&connection).await,
        Request::Workers => return json!({ "connections": cluster.connections().await }),
        Request::KillWorker { slot } => cluster.kill_worker(slot).await,
        Request::KillBroker { slot } => cluster.kill_broker(slot).await,
        Request::Scale { workers } => {
            cluster.scale(workers).await;
            cluster.has_workers(workers).await;
        }
    }
    json!({})
}

fn source() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("conformance")
}

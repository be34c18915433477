//! Another configuration for a cluster that runs.

use std::fs;

use muster_tests::{Cluster, Raw, eventually, patience, tokens};
use rustix::process::Signal;
use serde_json::{Value, json as value};

use crate::json;

/// What a verb says with `--json`.
async fn answer(cluster: &Cluster, arguments: &[&str]) -> Value {
    let output = cluster.verb(&[arguments, &["--json"]].concat()).await;
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    json(&String::from_utf8_lossy(&output.stdout))
}

async fn log_filter(cluster: &Cluster) -> Value {
    answer(cluster, &["log-filter"]).await["filter"].clone()
}

/// Expects that nobody may publish there.
async fn is_closed(client: &mut Raw, channel: &str) {
    let data = format!(r#"{{"channel":"{channel}","data":1}}"#);
    let said = json(&client.call("#publish", &data).await);
    assert!(said["error"].is_object(), "{said}");
}

const CHANGED: &str = r#"
[listener]
path = "/game/"
[limits]
channels_per_connection_max = 1
[log]
filter = "info,muster_worker=debug"
[[namespace]]
prefix = "closed:"
publish = "nobody"
"#;

#[tokio::test]
async fn what_needs_no_new_process_changes_under_the_clients_and_an_update_does_the_rest() {
    let cluster = Cluster::start(2, 1).await;
    let mut client = Raw::connect(&cluster.url()).await;
    client.publish("closed:1", "1").await;
    let before = cluster.status().await.unwrap();
    cluster.configure(CHANGED);
    let reloaded = answer(&cluster, &["reload"]).await;
    let expected = value!({
        "changed": ["limits.channels_per_connection_max", "log.filter", "namespace"],
        "needs_update": ["listener.path"],
        "fixed": [],
        "silent": [],
    });
    assert_eq!(reloaded, expected);
    is_closed(&mut client, "closed:1").await;
    client.subscribe("a").await;
    let second = json(&client.call("#subscribe", r#"{"channel":"b"}"#).await);
    assert!(second["error"].is_object(), "{second}");
    assert_eq!(log_filter(&cluster).await, "info,muster_worker=debug");
    let after = cluster.status().await.unwrap();
    assert_eq!(before.pids(), after.pids());

    // So it is for processes that come later, and for those of an update, which
    // take the rest.
    cluster.kill_worker(1).await;
    cluster.kill_worker(2).await;
    let mut client = Raw::connect(&cluster.url()).await;
    is_closed(&mut client, "closed:1").await;
    let updated = answer(&cluster, &["update"]).await;
    assert_eq!(updated["state"], "done", "{updated}");
    let url = format!("ws://{}/game/", cluster.addr());
    Raw::connect(&url).await;
    is_closed(&mut client, "closed:1").await;
    let again = answer(&cluster, &["reload"]).await;
    let nothing = value!({ "changed": [], "needs_update": [], "fixed": [], "silent": [] });
    assert_eq!(again, nothing);
    cluster.down().await;
}

#[tokio::test]
async fn a_hang_up_reads_the_configuration_again() {
    let cluster = Cluster::start(1, 1).await;
    let mut client = Raw::connect(&cluster.url()).await;
    cluster.configure(CHANGED);
    cluster.signal(Signal::HUP);
    eventually(
        "the filter is another one",
        patience(),
        async || match log_filter(&cluster).await {
            filter if filter == "info,muster_worker=debug" => Ok(()),
            filter => Err(filter.to_string()),
        },
    )
    .await;
    eventually("nobody may publish there", patience(), async || {
        let data = r#"{"channel":"closed:1","data":1}"#;
        let said = json(&client.call("#publish", data).await);
        if said["error"].is_object() {
            Ok(())
        } else {
            Err(said.to_string())
        }
    })
    .await;
    let log = cluster.log();
    assert!(log.contains("takes new processes"), "{log}");
    cluster.configure("[log]\nfilter = 7\nnonsense = 1");
    cluster.signal(Signal::HUP);
    eventually("that is refused", patience(), async || {
        let log = cluster.log();
        let is_refused = log.contains("The configuration stays as it is.");
        if is_refused && log.contains("muster.toml, line") {
            Ok(())
        } else {
            Err("it is not".into())
        }
    })
    .await;
    assert_eq!(log_filter(&cluster).await, "info,muster_worker=debug");
    assert!(client.is_alive().await);
    cluster.down().await;
}

#[tokio::test]
async fn a_configuration_that_up_would_refuse_changes_and_replaces_nothing() {
    let cluster = Cluster::start(1, 1).await;
    let before = cluster.status().await.unwrap();
    for (config, about) in [
        ("[limits]\nnonsense = 1", "limits.nonsense"),
        (
            "[heartbeat]\npong_timeout = \"1s\"",
            "heartbeat.pong_timeout",
        ),
        ("[log]\nfilter = \"loud=loud\"", "log.filter"),
        (
            "[limits]\nconnections_max = 4000000000",
            "limits.connections_max",
        ),
    ] {
        cluster.configure(config);
        for verb in ["reload", "update"] {
            let output = cluster.verb(&[verb]).await;
            assert_eq!(output.status.code(), Some(1), "{verb}: {output:?}");
            let error = String::from_utf8_lossy(&output.stderr);
            assert!(error.contains(about), "{verb}: {error}");
        }
    }
    // What lives was made with it.
    cluster.configure("[log]\nformat = \"text\"");
    let reloaded = answer(&cluster, &["reload"]).await;
    assert_eq!(reloaded["fixed"], value!(["log.format"]), "{reloaded}");
    let output = cluster.verb(&["update"]).await;
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("log.format cannot change"), "{error}");
    let after = cluster.status().await.unwrap();
    assert_eq!(before.pids(), after.pids());
    cluster.down().await;
}

#[tokio::test]
async fn an_update_that_fails_leaves_the_earlier_configuration() {
    let cluster = Cluster::start(1, 1).await;
    let before = fs::read_to_string(cluster.runtime_dir().join("config.toml")).unwrap();
    cluster.configure(CHANGED);
    let output = cluster.verb(&["update", "--binary", "/bin/false"]).await;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let after = fs::read_to_string(cluster.runtime_dir().join("config.toml")).unwrap();
    assert_eq!(before, after);
    assert_eq!(log_filter(&cluster).await, "info");
    cluster.kill_worker(1).await;
    Raw::connect(&cluster.url()).await;
    cluster.down().await;
}

#[tokio::test]
async fn a_key_file_with_another_key_is_read_again() {
    let cluster = Cluster::start(1, 1).await;
    let key = b"another key that is only used by tests";
    let claims = value!({ "user": 1, "exp": tokens::seconds(600) });
    let token = value!(tokens::sign(key, &claims));
    let (_, data) = Raw::connect_with(&cluster.url(), &token).await;
    assert_eq!(data["isAuthenticated"], false, "{data}");
    fs::write(cluster.key_file(), key).unwrap();
    answer(&cluster, &["reload"]).await;
    let (_, data) = Raw::connect_with(&cluster.url(), &token).await;
    assert_eq!(data["isAuthenticated"], true, "{data}");
    cluster.down().await;
}

#[tokio::test]
async fn a_log_filter_that_an_operator_set_outlives_the_orchestrator() {
    let mut cluster = Cluster::start(1, 1).await;
    answer(&cluster, &["log-filter", "info,muster_worker=debug"]).await;
    answer(&cluster, &["update"]).await;
    assert_eq!(log_filter(&cluster).await, "info,muster_worker=debug");
    cluster.kill_orchestrator().await;
    cluster.up_again(2, |same| same).await;
    assert_eq!(log_filter(&cluster).await, "info,muster_worker=debug");
    cluster.down().await;
}

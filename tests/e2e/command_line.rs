//! The orchestrator as its user sees it: mistakes, exit codes, the end.

use std::{net::TcpListener, path::Path, process::Output};

use muster_tests::{Cluster, Raw, eventually, orchestrator, patience};
use muster_wire::close::{CloseCode, Reaction};
use rustix::process::Signal;
use tokio::time::timeout;

async fn orchestrator(arguments: &[&str]) -> Output {
    let run = orchestrator::command().args(arguments).output();
    timeout(patience(), run)
        .await
        .expect("it ends in time")
        .expect("it runs")
}

/// Expects a failure with this exit code that says something about `about`.
fn refused(output: &Output, code: i32, about: &[&str]) {
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{error}");
    assert!(error.contains("error: "), "{error}");
    for word in about {
        assert!(error.contains(word), "{word:?} is missing: {error}");
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("temporary paths are UTF-8")
}

async fn up_with_config(config: &str) -> Output {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("muster.toml");
    std::fs::write(&file, config).expect("it is written");
    let run = dir.path().join("run");
    orchestrator(&[
        "--config",
        text(&file),
        "--runtime-dir",
        text(&run),
        "up",
        "--listen",
        "127.0.0.1:0",
    ])
    .await
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    let output = orchestrator(&["--runtime-dir", text(&run), "up", "--listen", &address]).await;
    refused(&output, 1, &[&address]);
}

#[tokio::test]
async fn a_second_up_on_a_live_runtime_directory_is_refused_and_harms_nothing() {
    let cluster = Cluster::start(1, 1).await;
    let mut client = Raw::connect(&cluster.url()).await;
    let run = cluster.runtime_dir();
    let output =
        orchestrator(&["--runtime-dir", text(&run), "up", "--listen", "127.0.0.1:0"]).await;
    refused(&output, 1, &[text(&run)]);
    client.publish("a", "1").await;
    assert!(cluster.status().await.unwrap().is_whole());
    cluster.down().await;
}

#[tokio::test]
async fn a_bad_configuration_is_refused_with_78_and_names_the_key() {
    for (config, about) in [
        ("[listener]\nadr = \"127.0.0.1:1\"", "adr"),
        ("[lisener]\n", "lisener"),
        (
            "[heartbeat]\nping_interval = \"30s\"\npong_timeout = \"20s\"",
            "pong_timeout",
        ),
        ("[heartbeat]\nping_interval = 5", "ping_interval"),
        (
            "[limits]\nmessage_bytes_max = \"much\"",
            "message_bytes_max",
        ),
        ("[listener", "muster.toml"),
    ] {
        refused(&up_with_config(config).await, 78, &[about]);
    }
}

#[tokio::test]
async fn a_missing_configuration_or_key_file_is_refused_with_78_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let (run, missing) = (dir.path().join("run"), dir.path().join("missing"));
    let up = ["--runtime-dir", text(&run), "up", "--listen", "127.0.0.1:0"];
    let output = orchestrator(&[&["--config", text(&missing)], &up[..]].concat()).await;
    refused(&output, 78, &[text(&missing)]);
    let output = orchestrator(&[&up[..], &["--auth-key-file", text(&missing)]].concat()).await;
    refused(&output, 78, &[text(&missing)]);
}

#[tokio::test]
async fn a_file_that_is_no_public_key_is_refused_with_78_before_anything_is_started() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("jwt.pem");
    std::fs::write(&file, "-----BEGIN PUBLIC KEY-----\nhello\n").unwrap();
    let about = ["auth.public_key_file", text(&file), "PEM"];
    let config = format!("[auth]\npublic_key_file = {:?}", text(&file));
    let output = up_with_config(&config).await;
    refused(&output, 78, &about);
    let logged = String::from_utf8_lossy(&output.stderr);
    assert!(!logged.contains("Starting the cluster"), "{logged}");
    let config_file = dir.path().join("muster.toml");
    std::fs::write(&config_file, config).unwrap();
    let output = orchestrator(&["--config", text(&config_file), "check-config"]).await;
    refused(&output, 78, &about);
}

#[tokio::test]
async fn a_misspelt_environment_variable_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let output = orchestrator::command()
        .args([
            "--runtime-dir",
            text(&dir.path().join("run")),
            "check-config",
        ])
        .env("MUSTER_LISTENER__ADR", "127.0.0.1:1")
        .output()
        .await
        .unwrap();
    refused(&output, 78, &["MUSTER_LISTENER__ADR"]);
}

#[tokio::test]
async fn unknown_flags_are_a_usage_error() {
    let output = orchestrator(&["up", "--wrokers", "2"]).await;
    assert_eq!(output.status.code(), Some(2), "{output:?}");
}

#[tokio::test]
async fn the_printed_configuration_has_values_and_their_sources() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("muster.toml");
    std::fs::write(&file, "[limits]\nconnections_max = 77\n").unwrap();
    let output = orchestrator(&["--config", text(&file), "print-config"]).await;
    assert!(output.status.success(), "{output:?}");
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        printed.contains("77") && printed.contains("muster.toml"),
        "{printed}"
    );
    let output = orchestrator(&["print-config", "--defaults"]).await;
    let defaults = String::from_utf8_lossy(&output.stdout).into_owned();
    for key in ["[listener]", "pong_timeout", "outbox_bytes_max"] {
        assert!(defaults.contains(key), "{key} is missing: {defaults}");
    }
    // The defaults are themselves a configuration.
    std::fs::write(&file, defaults).unwrap();
    let output = orchestrator(&["--config", text(&file), "check-config"]).await;
    assert!(output.status.success(), "{output:?}");
}

#[tokio::test]
async fn the_state_of_a_cluster_that_does_not_run_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    for verb in ["status", "down"] {
        let output = orchestrator(&["--runtime-dir", text(&run), verb]).await;
        refused(&output, 1, &[text(&run)]);
    }
}

#[tokio::test]
async fn completions_are_printed_for_each_shell() {
    for shell in ["bash", "zsh", "fish"] {
        let output = orchestrator(&["completions", shell]).await;
        assert!(
            output.status.success() && !output.stdout.is_empty(),
            "{shell}: {output:?}"
        );
    }
}

#[tokio::test]
async fn sigterm_closes_clients_so_that_they_come_back_and_leaves_no_process() {
    let mut cluster = Cluster::start(2, 2).await;
    let mut clients = Vec::new();
    for _ in 0..20 {
        clients.push(Raw::connect(&cluster.url()).await);
    }
    cluster.signal(Signal::TERM);
    for client in &mut clients {
        let code = CloseCode(client.closed().await.code);
        assert_ne!(code, CloseCode::ABNORMAL, "clients are told, not cut off");
        assert_ne!(
            code.reaction(),
            Reaction::Never,
            "{code}: stock clients would stay away"
        );
    }
    assert!(cluster.ended().await.success());
    assert_eq!(cluster.left_behind(), Vec::<String>::new());
}

#[tokio::test]
async fn ctrl_c_ends_a_cluster_too_and_its_runtime_directory_can_be_used_again() {
    let mut cluster = Cluster::start(1, 1).await;
    cluster.signal(Signal::INT);
    assert!(cluster.ended().await.success());
    assert_eq!(cluster.left_behind(), Vec::<String>::new());
    let again = cluster.start_again().await;
    Raw::connect(&again.url()).await;
    again.down().await;
}

#[tokio::test]
async fn a_second_signal_ends_at_once() {
    // One connection a second: the paced way would take long.
    let mut cluster = Cluster::builder(1, 1)
        .config("[shutdown]\ncloses_per_second = 1\ntimeout = \"10m\"")
        .start()
        .await;
    let mut clients = Vec::new();
    for _ in 0..patience().as_secs() * 3 {
        clients.push(Raw::connect(&cluster.url()).await);
    }
    cluster.signal(Signal::TERM);
    eventually("the worker closes its clients", patience(), async || {
        let log = cluster.log();
        log.contains("Closing the connections.")
            .then_some(())
            .ok_or(log)
    })
    .await;
    cluster.signal(Signal::TERM);
    cluster.ended().await;
    eventually("nothing is left", patience(), async || {
        match cluster.left_behind() {
            left if left.is_empty() => Ok(()),
            left => Err(format!("{left:?}")),
        }
    })
    .await;
}

//! The Autobahn cases against the worker's frame codec.
//!
//! The worker echoes messages on a path of its own when it is told so for tests;
//! `kosoku`, a package of the Python index, drives the cases.

use std::{collections::BTreeMap, path::Path, process::Command as Program};

use muster_tests::{Cluster, tools};
use serde::Deserialize;
use tokio::process::Command;

const NAME: &str = "all_autobahn_cases_without_compression_pass";
const PACKAGE: &str = "kosoku==0.1.0";
const ECHO_PATH: &str = "/echo";
/// Compression is not offered.
const EXCLUDED: [&str; 2] = ["12.*", "13.*"];
/// The largest case sends messages of 16 MiB.
const CONFIG: &str = "[limits]\nmessage_bytes_max = \"17MiB\"\noutbox_bytes_max = \"128MiB\"\n\
    [link]\nwindow_bytes = \"64MiB\"\ncredit_bytes = \"64MiB\"\n\
    [broker]\ntail_bytes_max = \"32MiB\"";

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Verdict {
    behavior: String,
    behavior_close: String,
}

#[tokio::test]
async fn all_autobahn_cases_without_compression_pass() {
    if !tools::available(NAME, &["python3"]) {
        return;
    }
    let venv = tools::prepared("autobahn", PACKAGE, |dir| {
        tools::run(Program::new("python3").args(["-m", "venv"]).arg(dir));
        tools::run(Program::new(dir.join("bin/pip")).args(["install", "--quiet", PACKAGE]));
    });
    let cluster = Cluster::builder(1, 1)
        .config(CONFIG)
        .env("MUSTER_TEST_ECHO_PATH", ECHO_PATH)
        .start()
        .await;
    let reports = tempfile::tempdir().expect("a directory");
    let output = Command::new(venv.join("bin/kosoku"))
        .arg(format!("ws://{}{ECHO_PATH}", cluster.addr()))
        .args(EXCLUDED.iter().flat_map(|case| ["--exclude", case]))
        .args(["--parallelism", "4", "--outdir"])
        .arg(reports.path())
        .output()
        .await
        .expect("kosoku runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let verdicts = verdicts(reports.path()).unwrap_or_else(|| panic!("no report: {said}"));

    let mut summary = BTreeMap::<_, u32>::new();
    let mut failed = Vec::new();
    for (case, verdict) in &verdicts {
        *summary
            .entry((&verdict.behavior, &verdict.behavior_close))
            .or_default() += 1;
        let good = |behavior: &str| matches!(behavior, "OK" | "INFORMATIONAL");
        if !good(&verdict.behavior) || !good(&verdict.behavior_close) {
            failed.push((case, verdict));
        }
    }
    tools::say(&format!("{} cases: {summary:?}", verdicts.len()));
    assert!(
        failed.is_empty(),
        "{} cases failed: {failed:#?}\n{said}",
        failed.len()
    );
    assert!(verdicts.len() > 200, "only {} cases ran", verdicts.len());
    cluster.down().await;
}

/// The verdicts by case; the report has one agent.
fn verdicts(reports: &Path) -> Option<BTreeMap<String, Verdict>> {
    let index = std::fs::read(reports.join("index.json")).ok()?;
    let agents: BTreeMap<String, BTreeMap<String, Verdict>> =
        serde_json::from_slice(&index).ok()?;
    agents.into_values().next()
}

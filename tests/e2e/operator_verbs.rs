//! What operators may ask of a cluster, what they are answered, and how they
//! are refused.

use std::{collections::BTreeSet, os::unix::fs::PermissionsExt as _, process::Output};

use muster_tests::{Cluster, Raw, eventually, orchestrator, patience};
use rustix::process::Signal;
use serde_json::{Value, json as value};
use tokio::{io::AsyncWriteExt as _, time::timeout};

use crate::{json, on_every_worker};

/// What a verb says with `--json`.
async fn answer(cluster: &Cluster, arguments: &[&str]) -> Value {
    let output = cluster.verb(&[arguments, &["--json"]].concat()).await;
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    assert!(output.stderr.is_empty(), "{arguments:?}: {output:?}");
    json(&String::from_utf8_lossy(&output.stdout))
}

/// Expects a failure that says the same for people and for programs.
async fn refused(cluster: &Cluster, arguments: &[&str], code: i32, about: &str) {
    let output = cluster.verb(arguments).await;
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {error}");
    assert!(error.starts_with("error: "), "{arguments:?}: {error}");
    assert!(
        error.contains(about),
        "{about:?} is missing: {arguments:?}: {error}"
    );
    let output = cluster.verb(&[arguments, &["--json"]].concat()).await;
    assert_eq!(output.status.code(), Some(code), "{arguments:?}");
    assert!(output.stdout.is_empty(), "{arguments:?}: {output:?}");
    let error = json(&String::from_utf8_lossy(&output.stderr));
    assert_eq!(error["exit_code"], code);
    let text = error["error"].as_str().expect("a text");
    assert!(text.contains(about), "{about:?} is missing: {text}");
}

async fn publish_input(cluster: &Cluster, input: &[u8]) -> Output {
    let mut verb = orchestrator::command()
        .arg("--runtime-dir")
        .arg(cluster.runtime_dir())
        .args(["publish", "a", "-"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("the orchestrator runs");
    let mut stdin = verb.stdin.take().expect("it was piped");
    let write = async {
        // One that has seen enough does not read the rest.
        let _ = stdin.write_all(input).await;
        drop(stdin);
    };
    let (output, ()) = tokio::join!(verb.wait_with_output(), write);
    output.expect("it ends")
}

#[tokio::test]
async fn an_operator_publishes_to_the_subscribers_of_every_worker_and_data_passes_as_it_is() {
    let cluster = Cluster::start(2, 2).await;
    let mut clients = on_every_worker(&cluster).await;
    for client in &mut clients {
        client.subscribe("a").await;
    }
    let mut published = Vec::new();
    for data in [r#"{"n": 1.50, "s":"\ud800"}"#, "-1", "null", "\"Grüße\""] {
        let answer = answer(&cluster, &["publish", "a", data]).await;
        assert_eq!(answer, value!({"published": true, "channel": "a"}));
        published.push(data.to_owned());
    }
    let output = publish_input(&cluster, b" [1,\n2]\n").await;
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "Published on a.\n");
    published.push("[1,\n2]".to_owned());
    for client in &mut clients {
        for data in &published {
            let expected = ("a".to_owned(), Some(data.clone()));
            assert_eq!(client.delivery().await, expected);
        }
    }
    cluster.down().await;
}

#[tokio::test]
async fn an_operator_publishes_where_no_client_may() {
    let cluster = Cluster::builder(1, 1)
        .config("[[namespace]]\nprefix = \"feed:\"\npublish = \"nobody\"")
        .start()
        .await;
    let mut client = Raw::connect(&cluster.url()).await;
    client.subscribe("feed:1").await;
    let refused = client
        .call("#publish", r#"{"channel":"feed:1","data":1}"#)
        .await;
    assert!(refused.contains("error"), "{refused}");
    answer(&cluster, &["publish", "feed:1", "2"]).await;
    assert_eq!(client.delivery().await.1.as_deref(), Some("2"));
}

#[tokio::test]
async fn the_same_publication_twice_is_two_publications() {
    let cluster = Cluster::start(2, 1).await;
    let mut client = Raw::connect(&cluster.url()).await;
    client.subscribe("a").await;
    for _ in 0..5 {
        answer(&cluster, &["publish", "a", "1"]).await;
    }
    for _ in 0..5 {
        assert_eq!(client.delivery().await.1.as_deref(), Some("1"));
    }
}

#[tokio::test]
async fn a_publication_that_makes_no_sense_is_refused_and_reaches_nobody() {
    let cluster = Cluster::builder(1, 1)
        .config("[limits]\nmessage_bytes_max = \"1KiB\"")
        .start()
        .await;
    let mut client = Raw::connect(&cluster.url()).await;
    client.subscribe("a").await;
    let long = "x".repeat(513);
    let output = cluster.verb(&["publish", "a", "{"]).await;
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let output = cluster.verb(&["publish", &long, "1"]).await;
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let large = format!("\"{}\"", "x".repeat(1024));
    refused(
        &cluster,
        &["publish", "a", &large],
        2,
        "limits.message_bytes_max",
    )
    .await;
    for input in [&b""[..], b"{", b"hello", b"1 2"] {
        let output = publish_input(&cluster, input).await;
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(error.contains("nothing was published"), "{error}");
    }
    answer(&cluster, &["publish", "a", "\"the only one\""]).await;
    assert_eq!(
        client.delivery().await.1.as_deref(),
        Some("\"the only one\"")
    );
}

#[tokio::test]
async fn a_publication_whose_owner_does_not_answer_has_an_unknown_outcome() {
    let cluster = Cluster::builder(1, 1)
        .config("[link]\npublish_timeout = \"500ms\"")
        .start()
        .await;
    cluster.signal_node("broker", 1, Signal::STOP).await;
    let output = cluster.verb(&["publish", "a", "1"]).await;
    // A supervisor that replaces it meanwhile saves the publication.
    if output.status.success() {
        return;
    }
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{error}");
    assert!(error.contains("may or may not be delivered"), "{error}");
    cluster.signal_node("broker", 1, Signal::CONT).await;
    answer(&cluster, &["publish", "a", "2"]).await;
}

#[tokio::test]
async fn channels_are_listed_by_name_with_the_subscribers_of_all_workers() {
    let cluster = Cluster::start(2, 1).await;
    let mut clients = on_every_worker(&cluster).await;
    let count = clients.len();
    for (n, client) in clients.iter_mut().enumerate() {
        client.subscribe("lobby:all").await;
        client.subscribe(&format!("lobby:{n:03}")).await;
        client.subscribe("news").await;
    }
    let found = answer(&cluster, &["channels", "--limit", "1000"]).await;
    assert_eq!(found["cut"], false);
    assert_eq!(found["silent"], value!([]));
    let list = found["channels"].as_array().unwrap();
    let name = |entry: &Value| entry["channel"].as_str().unwrap().to_owned();
    let names: Vec<String> = list.iter().map(name).collect();
    let mut expected: Vec<_> = (0..count).map(|n| format!("lobby:{n:03}")).collect();
    expected.extend(["lobby:all".to_owned(), "news".to_owned()]);
    assert_eq!(names, expected);
    assert_eq!(list[0]["subscribers"], 1);
    assert_eq!(list[count]["subscribers"], count);

    // In pages, and only some.
    let mut pages = Vec::new();
    let mut after = None::<String>;
    loop {
        let mut arguments = vec!["channels", "--prefix", "lobby:", "--limit", "3"];
        if let Some(after) = &after {
            arguments.extend(["--after", after]);
        }
        let page = answer(&cluster, &arguments).await;
        let list = page["channels"].as_array().unwrap();
        pages.extend(list.iter().map(name));
        after = pages.last().cloned();
        if page["cut"] == false {
            break;
        }
        assert_eq!(list.len(), 3);
    }
    expected.pop();
    assert_eq!(pages, expected);

    let output = cluster.verb(&["channels", "--limit", "1"]).await;
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.starts_with("CHANNEL    SUBSCRIBERS\n"), "{text}");
    assert!(text.contains("--after lobby:000"), "{text}");
    for limit in ["0", "1001"] {
        let output = cluster.verb(&["channels", "--limit", limit]).await;
        assert_eq!(output.status.code(), Some(2), "{output:?}");
    }
}

#[tokio::test]
async fn connections_are_listed_with_what_an_operator_needs_to_act_on_them() {
    let cluster = Cluster::start(2, 1).await;
    let mut clients = on_every_worker(&cluster).await;
    clients[0].subscribe("a").await;
    clients[0].subscribe("b").await;
    cluster.set_token(&clients[0].id, &value!({})).await;

    let found = answer(&cluster, &["connections", "--limit", "1000"]).await;
    assert_eq!(
        (&found["cut"], &found["silent"]),
        (&value!(false), &value!([]))
    );
    let list = found["connections"].as_array().unwrap();
    let ids: BTreeSet<_> = list
        .iter()
        .map(|entry| entry["connection"].as_str().unwrap())
        .collect();
    let known: BTreeSet<_> = clients.iter().map(|client| &*client.id).collect();
    assert_eq!(ids, known);
    let ages: Vec<_> = list
        .iter()
        .map(|entry| entry["age_ms"].as_u64().unwrap())
        .collect();
    assert!(ages.is_sorted_by(|one, next| one >= next), "{ages:?}");
    let entry = |found: &Value, id: &str| {
        let list = found["connections"].as_array().unwrap();
        let entry = list.iter().find(|entry| entry["connection"] == *id);
        entry.expect("it is listed").clone()
    };
    let first = entry(&found, &clients[0].id);
    assert_eq!(
        (&first["channels"], &first["authenticated"]),
        (&value!(2), &value!(true))
    );
    assert_eq!(first["queued_bytes"], 0);
    assert!(
        first["remote"].as_str().unwrap().starts_with("127.0.0.1:"),
        "{first}"
    );
    assert_eq!(entry(&found, &clients[1].id)["authenticated"], false);
}

#[tokio::test]
async fn connections_of_a_worker_or_a_channel_are_listed_and_the_counts_are_of_all() {
    let cluster = Cluster::start(2, 1).await;
    let mut clients = on_every_worker(&cluster).await;
    clients[0].subscribe("b").await;
    let found = answer(&cluster, &["connections", "--limit", "1000"]).await;
    let counts = answer(&cluster, &["connections", "--limit", "1"]).await;
    assert_eq!(counts["cut"], true);
    assert_eq!(counts["connections"].as_array().unwrap().len(), 1);
    assert_eq!(counts["workers"], found["workers"]);
    let total: u64 = counts["workers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|count| count["connections"].as_u64().unwrap())
        .sum();
    assert_eq!(total, clients.len() as u64);

    let of_channel = answer(&cluster, &["connections", "--channel", "b"]).await;
    assert_eq!(of_channel["connections"][0]["connection"], clients[0].id);
    assert_eq!(of_channel["connections"].as_array().unwrap().len(), 1);
    let mut on_workers = 0;
    for worker in ["1", "2"] {
        let found = answer(
            &cluster,
            &["connections", "--worker", worker, "--limit", "1000"],
        )
        .await;
        let list = found["connections"].as_array().unwrap();
        assert!(
            list.iter()
                .all(|entry| entry["worker"] == worker.parse::<u32>().unwrap())
        );
        on_workers += list.len();
    }
    assert_eq!(on_workers, clients.len());
    refused(
        &cluster,
        &["connections", "--worker", "3"],
        1,
        "no worker in slot 3",
    )
    .await;
    // What is listed is what the other verbs take.
    let last = clients.last_mut().unwrap();
    answer(&cluster, &["disconnect", "--code", "4100", &last.id]).await;
    assert_eq!(last.closed().await.code, 4100);
}

#[tokio::test]
async fn a_client_that_does_not_read_shows_in_the_bytes_queued_for_it() {
    let cluster = Cluster::start(1, 1).await;
    let mut slow = Raw::connect(&cluster.url()).await;
    slow.subscribe("a").await;
    let data = format!("\"{}\"", "x".repeat(100_000));
    eventually("something is queued", patience(), async || {
        answer(&cluster, &["publish", "a", &data]).await;
        let found = answer(&cluster, &["connections", "--channel", "a"]).await;
        match found["connections"][0]["queued_bytes"].as_u64() {
            Some(bytes) if bytes > 0 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

#[tokio::test]
async fn the_log_filter_changes_in_all_processes_and_in_those_that_come_later() {
    let cluster = Cluster::builder(1, 1)
        .flag("--log-filter=warn")
        .start()
        .await;
    let found = answer(&cluster, &["log-filter"]).await;
    assert_eq!(found, value!({"filter": "warn", "silent": []}));
    assert!(!cluster.log().contains("View changed"), "warnings only");
    refused(&cluster, &["log-filter", "muster_worker=loud"], 2, "loud").await;
    refused(&cluster, &["log-filter", ""], 2, "not empty").await;
    assert_eq!(answer(&cluster, &["log-filter"]).await["filter"], "warn");

    let found = answer(&cluster, &["log-filter", "info"]).await;
    assert_eq!(found, value!({"filter": "info", "silent": []}));
    let says = async |who: &str| {
        eventually(who, patience(), async || {
            let log = cluster.log();
            let said = log
                .lines()
                .any(|line| line.contains("Changed the log filter") && line.contains(who));
            if said { Ok(()) } else { Err(log) }
        })
        .await;
    };
    for who in ["orchestrator", "worker", "broker"] {
        says(who).await;
    }
    // A new worker starts with the configured filter and is told the present one.
    let before = cluster.log().matches("Changed the log filter").count();
    cluster.kill_worker(1).await;
    eventually("the new worker is told", patience(), async || {
        let count = cluster.log().matches("Changed the log filter").count();
        if count > before {
            Ok(())
        } else {
            Err(cluster.log())
        }
    })
    .await;
    let output = cluster.verb(&["log-filter"]).await;
    assert_eq!(String::from_utf8_lossy(&output.stdout), "info\n");
}

#[tokio::test]
async fn every_verb_about_a_client_answers_in_json_and_says_what_is_wrong() {
    let cluster = Cluster::start(2, 1).await;
    let mut client = Raw::connect(&cluster.url()).await;
    client.subscribe("a").await;
    let id = client.id.clone();
    for (arguments, expected) in [
        (
            &["kick", &id, "a"][..],
            value!({"done": "kick", "connection": id, "channel": "a"}),
        ),
        (
            &["token", "set", &id, "{}"],
            value!({"done": "token set", "connection": id}),
        ),
        (
            &["token", "remove", &id],
            value!({"done": "token remove", "connection": id}),
        ),
        (
            &["disconnect", "--reason", "bye", &id],
            value!({"done": "disconnect", "connection": id, "code": 1000, "reason": "bye"}),
        ),
    ] {
        if arguments[0] == "disconnect" {
            refused(&cluster, &["kick", &id, "a"], 1, "does not subscribe").await;
        }
        assert_eq!(answer(&cluster, arguments).await, expected);
    }
    for arguments in [
        &["kick", "nobody"][..],
        &["disconnect", "nobody"],
        &["token", "set", "nobody", "{}"],
        &["token", "remove", "nobody"],
    ] {
        refused(
            &cluster,
            arguments,
            1,
            "no client has the session id nobody",
        )
        .await;
    }
    // Closed, it is nobody's either.
    client.closed().await;
    eventually("it is forgotten", patience(), async || {
        let output = cluster.verb(&["kick", &id]).await;
        match output.status.code() {
            Some(1) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

#[tokio::test]
async fn a_worker_that_hangs_is_named_in_a_list_and_leaves_a_command_unknown() {
    let cluster = Cluster::start(2, 1).await;
    let clients = on_every_worker(&cluster).await;
    cluster.signal_node("worker", 2, Signal::STOP).await;
    let (channels, connections, kick) = tokio::join!(
        answer(&cluster, &["channels"]),
        answer(&cluster, &["connections", "--limit", "1000"]),
        cluster.verb(&["kick", "nobody", "--json"]),
    );
    assert_eq!(channels["silent"], value!(["worker-2"]));
    assert_eq!(connections["silent"], value!(["worker-2"]));
    let list = connections["connections"].as_array().unwrap();
    assert!(!list.is_empty() && list.len() < clients.len());
    assert!(list.iter().all(|entry| entry["worker"] == 1));
    assert_eq!(kick.status.code(), Some(3), "{kick:?}");
    let error = json(&String::from_utf8_lossy(&kick.stderr));
    assert!(
        error["error"].as_str().unwrap().contains("did not answer"),
        "{error}"
    );
    cluster.signal_node("worker", 2, Signal::CONT).await;
}

#[tokio::test]
async fn a_cluster_can_be_ended_checked_and_printed_in_json() {
    let cluster = Cluster::start(1, 1).await;
    let run = cluster.runtime_dir();
    let run = run.to_str().unwrap();
    let mode = std::fs::metadata(cluster.runtime_dir().join("orchestrator.sock"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let fine = answer(&cluster, &["check-config"]).await;
    assert_eq!(fine, value!({"fine": true, "file": null}));
    let printed = answer(&cluster, &["print-config", "--log-filter", "warn"]).await;
    let settings = printed["settings"].as_array().unwrap();
    let setting = |key: &str| {
        let setting = settings.iter().find(|setting| setting["key"] == *key);
        setting
            .unwrap_or_else(|| panic!("{key} is missing"))
            .clone()
    };
    let filter = setting("log.filter");
    assert_eq!(
        (&filter["value"], &filter["source"]),
        (&value!("warn"), &value!("flag --log-filter"))
    );
    assert_eq!(setting("auth.key_file")["value"], Value::Null);
    let ended = answer(&cluster, &["down"]).await;
    assert_eq!(ended, value!({"ended": true, "runtime_dir": run}));
    for verb in [
        &["status"][..],
        &["down"],
        &["publish", "a", "1"],
        &["channels"],
        &["connections"],
        &["log-filter"],
        &["kick", "id"],
    ] {
        refused(&cluster, verb, 1, "start one with `orchestrator up`").await;
    }
}

#[tokio::test]
async fn operators_are_answered_while_clients_publish_as_fast_as_they_can() {
    let cluster = Cluster::start(1, 1).await;
    let mut client = Raw::connect(&cluster.url()).await;
    let packet = r##"{"event":"#publish","data":{"channel":"a","data":1}}"##;
    let array = format!("[{}]", vec![packet; 200].join(","));
    let flood = async {
        loop {
            client.send(&array).await;
        }
    };
    let ask = async {
        for _ in 0..5 {
            answer(&cluster, &["channels"]).await;
            answer(&cluster, &["connections"]).await;
            answer(&cluster, &["publish", "b", "1"]).await;
        }
    };
    let asked = timeout(patience(), async {
        tokio::select! {
            () = flood => {}
            () = ask => {}
        }
    });
    asked.await.expect("operators are answered in time");
}

//! Loading as a user meets it: files, variables, flags, and what is refused.

use std::{ffi::OsString, os::unix::ffi::OsStringExt as _, path::PathBuf, time::Duration};

use super::*;

/// Loads `file` (if any) with `environment` and `flags`.
fn load_with(
    file: Option<&str>,
    environment: &[(&str, &str)],
    flags: &[Override],
) -> Result<Loaded, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("muster.toml");
    if let Some(file) = file {
        std::fs::write(&path, file).unwrap();
    }
    let environment = environment
        .iter()
        .map(|(name, value)| (OsString::from(name), OsString::from(value)));
    load(file.map(|_| path.as_path()), environment, flags).map_err(|error| {
        let error: &dyn std::error::Error = &error;
        crate::exit::chain(error)
    })
}

fn refusal(file: &str) -> String {
    load_with(Some(file), &[], &[]).unwrap_err()
}

fn listen(value: &str) -> Override {
    Override {
        key: "listener.addr",
        value: value.into(),
        flag: "--listen",
    }
}

#[test]
fn nothing_given_is_the_defaults() {
    let loaded = load_with(None, &[("PATH", "/bin")], &[]).unwrap();
    assert_eq!(loaded.config, Config::default());
    assert!(loaded.sources.is_empty());
}

#[test]
fn a_flag_wins_over_the_environment_which_wins_over_the_file() {
    let file =
        "[listener]\naddr = \"1.1.1.1:1\"\npath = \"/a/\"\n[limits]\nmessage_bytes_max = 4096";
    let environment = [
        ("MUSTER_LISTENER__ADDR", "2.2.2.2:2"),
        ("MUSTER_LISTENER__PATH", "/b/"),
    ];
    let loaded = load_with(Some(file), &environment, &[listen("3.3.3.3:3")]).unwrap();
    assert_eq!(loaded.config.listener.addr.to_string(), "3.3.3.3:3");
    assert_eq!(loaded.config.listener.path, "/b/");
    assert_eq!(loaded.config.limits.message_bytes_max, ByteSize(4096));
    assert_eq!(
        loaded.sources["listener.addr"],
        Source::Flag("--listen"),
        "the source is the one that won"
    );
    let path = loaded.sources["listener.path"].to_string();
    assert!(path.contains("MUSTER_LISTENER__PATH"), "{path}");
    let size = loaded.sources["limits.message_bytes_max"].to_string();
    assert!(size.ends_with("muster.toml, line 5"), "{size}");
}

#[test]
fn variables_take_text_numbers_lists_and_toml() {
    let environment = [
        ("MUSTER_LIMITS__CONNECTIONS_MAX", "500"),
        ("MUSTER_LIMITS__OUTBOX_BYTES_MAX", "2MiB"),
        ("MUSTER_LISTENER__ORIGINS", "a.example:443, b.example:*"),
        ("MUSTER_SHUTDOWN__TIMEOUT", "1m 30s"),
        ("MUSTER_LOG__FORMAT", "json"),
    ];
    let config = load_with(None, &environment, &[]).unwrap().config;
    assert_eq!(config.limits.connections_max, Some(500));
    assert_eq!(config.limits.outbox_bytes_max, ByteSize::mib(2));
    assert_eq!(config.listener.origins, ["a.example:443", "b.example:*"]);
    assert_eq!(config.shutdown.timeout, Duration::from_secs(90));
    assert_eq!(config.log.format, LogFormat::Json);
    let toml = [("MUSTER_LISTENER__ORIGINS", "[\"a:1\", \"b:2\"]")];
    let config = load_with(None, &toml, &[]).unwrap().config;
    assert_eq!(config.listener.origins, ["a:1", "b:2"]);
}

#[test]
fn rust_log_sets_the_filter_unless_a_variable_of_ours_does() {
    let rust_log = ("RUST_LOG", "debug");
    let config = load_with(None, &[rust_log], &[]).unwrap().config;
    assert_eq!(config.log.filter, "debug");
    let both = [rust_log, ("MUSTER_LOG__FILTER", "warn")];
    let config = load_with(None, &both, &[]).unwrap().config;
    assert_eq!(config.log.filter, "warn");
}

#[test]
fn an_unknown_key_is_refused_with_its_place_and_the_likely_one() {
    let error = refusal("[listener]\n\nadr = \"1.1.1.1:1\"");
    assert!(
        error
            .contains("muster.toml, line 3: unknown key listener.adr, did you mean listener.addr?"),
        "{error}"
    );
    let error = refusal("\n[listner]\naddr = \"1.1.1.1:1\"");
    assert!(
        error.contains("line 2: unknown key listner, did you mean listener?"),
        "{error}"
    );
    let error = refusal("addr = \"1.1.1.1:1\"");
    assert!(error.contains("belongs under [listener]"), "{error}");
}

#[test]
fn a_value_of_the_wrong_form_is_refused_with_its_place_and_key() {
    for (file, line, key, reason) in [
        ("[listener]\naddr = 5", 2, "listener.addr", "invalid type"),
        (
            "[listener]\naddr = \"here\"",
            2,
            "listener.addr",
            "socket address",
        ),
        (
            "[heartbeat]\nping_interval = \"8\"",
            2,
            "heartbeat.ping_interval",
            "`8` is not a duration",
        ),
        (
            "[limits]\n\nmessage_bytes_max = \"1MB\"",
            3,
            "limits.message_bytes_max",
            "`1MB` is not a size",
        ),
        (
            "[limits]\nconnections_max = -1",
            2,
            "limits.connections_max",
            "-1",
        ),
        ("[log]\nformat = \"xml\"", 2, "log.format", "xml"),
        ("[auth]\nkey_file = \"\"", 2, "auth.key_file", "empty"),
    ] {
        let error = refusal(file);
        let place = format!("muster.toml, line {line}: {key}: ");
        assert!(error.contains(&place), "{error}");
        assert!(error.contains(reason), "{error}");
    }
}

#[test]
fn what_is_not_toml_is_refused_with_its_line() {
    let error = refusal("[listener]\naddr = \n");
    assert!(error.contains("muster.toml, line 2: not TOML: "), "{error}");
    let error = refusal("[log]\nfilter = \"a\"\nfilter = \"b\"");
    assert!(error.contains("line 3: not TOML: "), "{error}");
}

#[test]
fn a_file_that_cannot_be_read_is_fatal() {
    let missing = PathBuf::from("/nonexistent/muster.toml");
    let error = load(Some(&missing), std::iter::empty(), &[]).unwrap_err();
    assert!(matches!(error, ConfigError::Read { .. }));
    assert!(error.to_string().contains("/nonexistent/muster.toml"));
}

#[test]
fn a_misspelt_variable_is_refused_with_the_likely_one() {
    let misspelt = [("MUSTER_LISTENER__ADRR", "1.1.1.1:1")];
    let error = load_with(None, &misspelt, &[]).unwrap_err();
    assert_eq!(
        error,
        "unknown environment variable MUSTER_LISTENER__ADRR, did you mean MUSTER_LISTENER__ADDR?"
    );
    let single = [("MUSTER_LISTENER_ADDR", "1.1.1.1:1")];
    let error = load_with(None, &single, &[]).unwrap_err();
    assert!(
        error.contains("did you mean MUSTER_LISTENER__ADDR?"),
        "{error}"
    );
    assert!(error.contains("MUSTER_SECTION__KEY"), "{error}");
    let lower = [("MUSTER_listener__addr", "1.1.1.1:1")];
    assert!(load_with(None, &lower, &[]).is_err());
}

#[test]
fn variables_about_the_process_are_no_keys() {
    let environment = [
        ("MUSTER_CONFIG", "/etc/muster.toml"),
        ("MUSTER_RUNTIME_DIR", "/run/muster"),
        ("MUSTER_TEST_PATIENCE", "10s"),
    ];
    assert!(load_with(None, &environment, &[]).is_ok());
}

#[test]
fn a_variable_that_is_not_text_is_refused_by_name() {
    let value = OsString::from_vec(vec![b'/', 0xff]);
    let variable = (OsString::from("MUSTER_AUTH__KEY_FILE"), value);
    let error = load(None, std::iter::once(variable), &[]).unwrap_err();
    assert!(error.to_string().contains("MUSTER_AUTH__KEY_FILE"));
}

#[test]
fn a_bad_value_names_the_variable_or_the_flag() {
    let bad = [("MUSTER_BROKER__THREADS", "many")];
    let error = load_with(None, &bad, &[]).unwrap_err();
    assert!(
        error.starts_with("environment variable MUSTER_BROKER__THREADS: broker.threads: "),
        "{error}"
    );
    let error = load_with(None, &[], &[listen("nowhere")]).unwrap_err();
    assert!(
        error.starts_with("flag --listen: listener.addr: "),
        "{error}"
    );
}

#[test]
fn values_that_contradict_each_other_are_refused_by_key() {
    let error = refusal("[heartbeat]\nping_interval = \"25s\"");
    assert_eq!(
        error,
        "invalid configuration: heartbeat.pong_timeout: 20s must exceed heartbeat.ping_interval 25s"
    );
    let error = refusal("[auth]\nkey_file = \"a\"\npublic_key_file = \"b\"");
    assert!(error.contains("auth.public_key_file: "), "{error}");
    assert!(error.contains("contradicts auth.key_file"), "{error}");
    assert!(error.contains("muster.toml, line 3"), "{error}");
}

#[test]
fn sizes_that_do_not_fit_into_each_other_are_refused() {
    for (file, key) in [
        (
            "[limits]\noutbox_bytes_max = \"512KiB\"",
            "limits.outbox_bytes_max",
        ),
        ("[link]\nwindow_bytes = \"512KiB\"", "link.window_bytes"),
        ("[link]\ncredit_bytes = \"512KiB\"", "link.credit_bytes"),
        (
            "[broker]\ntail_bytes_max = \"512KiB\"",
            "broker.tail_bytes_max",
        ),
        (
            "[limits]\nmessage_bytes_max = \"1GiB\"",
            "limits.message_bytes_max",
        ),
        (
            "[limits]\nmessage_bytes_max = 0",
            "limits.message_bytes_max",
        ),
        (
            "[pacing]\nwakeup_interval = \"101ms\"",
            "pacing.wakeup_interval",
        ),
        ("[broker]\nkey_window = \"19s\"", "broker.key_window"),
        (
            "[supervision]\nworker_hung_after = \"1m\"",
            "broker.key_window",
        ),
        (
            "[supervision]\nworker_hung_after = \"1s\"",
            "supervision.worker_hung_after",
        ),
        (
            "[supervision]\nbroker_hung_after = \"1999ms\"",
            "supervision.broker_hung_after",
        ),
        (
            "[supervision]\nstart_timeout = \"0s\"",
            "supervision.start_timeout",
        ),
        ("[broker]\nthreads = 0", "broker.threads"),
        (
            "[shutdown]\ncloses_per_second = 0",
            "shutdown.closes_per_second",
        ),
        ("[shutdown]\ntimeout = \"0s\"", "shutdown.timeout"),
        ("[listener]\npath = \"a\"", "listener.path"),
        ("[listener]\norigins = []", "listener.origins"),
        ("[listener]\norigins = [\"a\"]", "listener.origins"),
        ("[listener]\nhead_bytes_max = 10", "listener.head_bytes_max"),
        ("[limits]\nconnections_max = 0", "limits.connections_max"),
        ("[log]\nfilter = \"a=b=c\"", "log.filter"),
    ] {
        let error = refusal(file);
        let start = format!("invalid configuration: {key}: ");
        assert!(error.starts_with(&start), "{error}");
    }
}

#[test]
fn limits_of_updates_that_make_no_sense_are_refused() {
    for (file, key) in [
        ("[update]\nparallel = 0", "update.parallel"),
        ("[update]\nhold = \"25h\"", "update.hold"),
        ("[update]\nlag_max = \"0s\"", "update.lag_max"),
        (
            "[update]\nfailed_moves_per_thousand_max = 1001",
            "update.failed_moves_per_thousand_max",
        ),
        (
            "[update]\nabnormal_closes_per_thousand_max = 1001",
            "update.abnormal_closes_per_thousand_max",
        ),
        (
            "[update]\nmemory_percent_max = 99",
            "update.memory_percent_max",
        ),
    ] {
        let error = refusal(file);
        let start = format!("invalid configuration: {key}: ");
        assert!(error.starts_with(&start), "{error}");
    }
}

#[test]
fn a_relative_path_in_a_file_is_relative_to_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("muster.toml");
    std::fs::write(&path, "[auth]\nkey_file = \"auth.key\"").unwrap();
    let loaded = load(Some(&path), std::iter::empty(), &[]).unwrap();
    assert_eq!(
        loaded.config.auth.key_file,
        Some(dir.path().join("auth.key"))
    );
    let variable = [("MUSTER_AUTH__KEY_FILE", "auth.key")];
    let config = load_with(None, &variable, &[]).unwrap().config;
    let here = std::env::current_dir().unwrap();
    assert_eq!(config.auth.key_file, Some(here.join("auth.key")));
}

#[test]
fn a_written_configuration_loads_as_itself() {
    let mut config = Config::default();
    config.limits.connections_max = Some(17);
    config.limits.message_bytes_max = ByteSize(100_001);
    config.auth.key_file = Some("/a/b".into());
    config.shutdown.timeout = Duration::from_millis(12_345);
    config.log.filter = "info,muster_worker=\"debug\"".replace('"', "");
    let loaded = load_with(Some(&config.to_toml()), &[], &[]).unwrap();
    assert_eq!(loaded.config, config);
}

#[test]
fn the_printed_effective_configuration_loads_as_itself_and_names_sources() {
    let environment = [("MUSTER_BROKER__THREADS", "3")];
    let loaded = load_with(None, &environment, &[listen("127.0.0.1:0")]).unwrap();
    let text = effective(&loaded.config, &loaded.sources);
    for line in [
        "addr = \"127.0.0.1:0\"  # flag --listen",
        "threads = 3  # environment variable MUSTER_BROKER__THREADS",
        "path = \"/socketcluster/\"  # default",
        "# key_file is not set",
    ] {
        assert!(
            text.lines().any(|printed| printed == line),
            "{line}\n{text}"
        );
    }
    assert_eq!(
        load_with(Some(&text), &[], &[]).unwrap().config,
        loaded.config
    );
}

#[test]
fn the_commented_defaults_load_as_the_defaults_with_and_without_their_comment_signs() {
    let text = commented_defaults();
    let kept = load_with(Some(&text), &[], &[]).unwrap();
    assert_eq!(kept.config, Config::default());
    assert!(kept.sources.is_empty());
    let uncommented: String = text
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(setting) if !setting.starts_with(' ') => format!("{setting}\n"),
            Some(_) | None => format!("{line}\n"),
        })
        .collect();
    let mut loaded = load_with(Some(&uncommented), &[], &[]).unwrap();
    // The things that have no default are shown by an example.
    let example = loaded.config.namespace.pop().unwrap();
    let (prefix, history) = (example.prefix.clone(), example.history);
    assert!(history.is_some_and(|history| history.count == Some(1000)));
    assert_eq!(
        example,
        Namespace {
            prefix,
            history,
            ..Namespace::default()
        }
    );
    loaded.sources.remove("namespace.0").unwrap();
    assert_eq!(loaded.config, Config::default());
    let keys = SECTIONS.iter().map(|section| section.keys.len());
    let unset = text.matches(" is not set").count();
    assert_eq!(loaded.sources.len() + unset, keys.sum::<usize>());
}

#[test]
fn namespaces_are_read_printed_and_read_again() {
    let file = "[limits]\nmessages_per_second = { rate = 10, burst = 20 }\n\
                [[namespace]]\nprefix = \"lobby:\"\npublish = \"authenticated\"\n\
                slow_client = \"drop_oldest\"\n[[namespace]]\nprefix = \"\"\nsubscribe = \"nobody\"\n\
                history = { count = 1000, bytes = \"64KiB\", age = \"10m\" }\n";
    let loaded = load_with(Some(file), &[], &[]).unwrap();
    let lobby = Namespace {
        prefix: "lobby:".into(),
        publish: Right::Authenticated,
        subscribe: Right::Anyone,
        slow_client: SlowClient::DropOldest,
        history: None,
    };
    let rest = Namespace {
        subscribe: Right::Nobody,
        history: Some(History {
            count: Some(1000),
            bytes: Some(ByteSize::kib(64)),
            age: Some(Duration::from_secs(600)),
        }),
        ..Namespace::default()
    };
    assert_eq!(loaded.config.namespace, [lobby, rest]);
    assert_eq!(loaded.config.limits.messages_per_second.rate, 10);
    let printed = effective(&loaded.config, &loaded.sources);
    assert!(printed.contains("muster.toml, line 7"), "{printed}");
    let again = load_with(Some(&printed), &[], &[]).unwrap();
    assert_eq!(again.config, loaded.config);
    let handed_on = load_with(Some(&loaded.config.to_toml()), &[], &[]).unwrap();
    assert_eq!(handed_on.config, loaded.config);
}

#[test]
fn a_wrong_namespace_is_refused_with_its_place() {
    for (file, expected) in [
        ("[[namespace]]\npublish = \"anyone\"", "prefix"),
        (
            "\n[[namespace]]\nprefix = \"a\"\npublis = \"nobody\"",
            "line 4: unknown key namespace.publis, did you mean namespace.publish?",
        ),
        (
            "\n[[namespace]]\nprefix = \"a\"\npublish = \"some\"",
            "line 2: namespace: unknown variant `some`",
        ),
        ("[namespace]\nprefix = \"a\"", "[[namespace]]"),
        ("namespace = 3", "[[namespace]]"),
        ("namespace = [3]", "line 1: namespace:"),
        (
            "[[namespace]]\nprefix = \"a\"\n[[namespace]]\nprefix = \"a\"",
            "there is another namespace with the prefix `a`",
        ),
        (
            "[limits]\nmessages_per_second = { rate = 0, burst = 1 }",
            "at least 1",
        ),
        ("[limits]\nmessages_per_second = { rate = 1 }", "burst"),
        (
            "[limits]\nchannel_name_bytes_max = 513",
            "513 is not between 1 and 512",
        ),
        (
            "[limits]\nconnections_per_address_max = 0",
            "refuse every client",
        ),
    ] {
        let refusal = refusal(file);
        assert!(refusal.contains(expected), "{file}: {refusal}");
    }
    let long = format!("[[namespace]]\nprefix = \"{}\"", "x".repeat(513));
    assert!(refusal(&long).contains("513 bytes"));
    let variable = load_with(None, &[("MUSTER_NAMESPACE", "[]")], &[]).unwrap_err();
    assert!(
        variable.contains("in the configuration file only"),
        "{variable}"
    );
}

#[test]
fn a_history_has_bounds_that_can_be_kept() {
    for (history, expected) in [
        (
            "{}",
            "namespace.history: one of count, bytes and age must be given",
        ),
        ("{ count = 0 }", "namespace.history: count: 0 keeps nothing"),
        ("{ count = -1 }", "line 3: namespace.history: invalid value"),
        (
            "{ bytes = 0 }",
            "bytes: 0B is not between 1B and broker.tail_bytes_max 4MiB",
        ),
        ("{ bytes = \"5MiB\" }", "bytes: 5MiB is not between"),
        (
            "{ bytes = \"many\" }",
            "line 3: namespace.history: `many` is not a size",
        ),
        ("{ age = \"0s\" }", "age: 0s is not between 1ms and"),
        (
            "{ age = \"soon\" }",
            "line 3: namespace.history: `soon` is not a duration",
        ),
        (
            "{ size = 3 }",
            "line 3: namespace.history: unknown field `size`",
        ),
        ("10", "line 3: namespace.history: invalid type"),
    ] {
        let refusal = refusal(&format!(
            "[[namespace]]\nprefix = \"a\"\nhistory = {history}"
        ));
        assert!(refusal.contains(expected), "{history}: {refusal}");
        assert!(refusal.contains("muster.toml"), "{history}: {refusal}");
    }
    for history in ["{ count = 1 }", "{ age = \"30d\" }", "{ bytes = \"4MiB\" }"] {
        let file = format!("[[namespace]]\nprefix = \"a\"\nhistory = {history}");
        assert!(load_with(Some(&file), &[], &[]).is_ok(), "{history}");
    }
}

#[test]
fn two_configurations_differ_in_the_keys_that_are_named() {
    let config = Config::default();
    assert_eq!(config.differences(&config), Vec::<String>::new());
    let mut other = config.clone();
    other.listener.path = "/game/".into();
    other.limits.connections_max = Some(7);
    other.namespace.push(Namespace::default());
    let keys = ["listener.path", "limits.connections_max", "namespace"];
    assert_eq!(config.differences(&other), keys);
    assert_eq!(other.differences(&config), keys);
}

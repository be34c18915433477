//! What `deploy/` promises, with the unit's own command lines.

use std::{
    collections::BTreeSet,
    fs,
    os::{linux::net::SocketAddrExt as _, unix::net::SocketAddr},
    path::{Path, PathBuf},
    process::Command as Program,
    time::Duration,
};

use muster_tests::{Cluster, Raw, eventually, orchestrator, patience, status::Status, tools};
use rustix::process::Signal;
use tokio::{net::UnixDatagram, process::Command, time::timeout};

fn deploy(file: &str) -> PathBuf {
    orchestrator::workspace().join("deploy").join(file)
}

/// A service manager that hears what a service says.
struct Manager {
    socket: UnixDatagram,
    /// What has been said and not been asked for.
    heard: Vec<String>,
}

impl Manager {
    fn at(path: &Path) -> Self {
        Self::new(std::os::unix::net::UnixDatagram::bind(path))
    }

    fn abstract_at(name: &str) -> Self {
        let address = SocketAddr::from_abstract_name(name).expect("a short name");
        Self::new(std::os::unix::net::UnixDatagram::bind_addr(&address))
    }

    fn new(bound: std::io::Result<std::os::unix::net::UnixDatagram>) -> Self {
        let socket = bound.expect("the socket is bound");
        socket.set_nonblocking(true).expect("it does not block");
        Self {
            socket: UnixDatagram::from_std(socket).expect("the runtime takes it"),
            heard: vec![],
        }
    }

    /// Waits until something is said that begins like this, if it has not been
    /// said yet; returns all of it.
    async fn hears(&mut self, beginning: &str) -> String {
        let heard = timeout(patience(), async {
            let mut bytes = [0; 4096];
            loop {
                let known = self
                    .heard
                    .iter()
                    .position(|message| message.starts_with(beginning));
                if let Some(at) = known {
                    return self.heard.remove(at);
                }
                let len = self.socket.recv(&mut bytes).await.expect("it is read");
                let message = String::from_utf8_lossy(&bytes[..len]).into_owned();
                self.heard.push(message);
            }
        })
        .await;
        heard.unwrap_or_else(|_| panic!("{beginning} was not said, but {:?}", self.heard))
    }
}

/// The values of a key in the unit, in order.
fn unit_values(key: &str) -> Vec<String> {
    let unit = fs::read_to_string(deploy("muster.service")).expect("the unit is there");
    let lines = unit.lines().filter_map(|line| line.split_once('='));
    lines
        .filter(|(name, _)| *name == key)
        .map(|(_, value)| value.to_owned())
        .collect()
}

/// A command line of the unit with the paths of this test; whether its failure
/// counts comes along.
fn unit_command(key: &str, dir: &Path) -> (Command, bool) {
    let [line] = &unit_values(key)[..] else {
        panic!("one {key} line");
    };
    let may_fail = line.starts_with('-');
    let mut words = line.trim_start_matches('-').split(' ');
    assert_eq!(words.next(), Some("/usr/bin/orchestrator"));
    let mut command = orchestrator::command();
    command.env("MUSTER_BROKER__JOURNAL_DIR", dir.join("journal"));
    for word in words {
        match word {
            "/run/muster" => command.arg(dir.join("run")),
            "/etc/muster/muster.toml" => command.arg(dir.join("muster.toml")),
            _ => command.arg(word),
        };
    }
    (command, may_fail)
}

async fn succeeds(mut command: Command) -> bool {
    let status = timeout(patience(), command.status()).await;
    status.expect("it ends in time").expect("it runs").success()
}

#[tokio::test]
async fn the_units_command_lines_start_a_cluster_tell_the_manager_and_end_it() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(
        dir.path().join("muster.toml"),
        "[listener]\naddr = \"127.0.0.1:0\"\n",
    )
    .unwrap();
    let mut manager = Manager::at(&dir.path().join("notify"));
    assert!(succeeds(unit_command("ExecStartPre", dir.path()).0).await);
    let (mut up, _) = unit_command("ExecStart", dir.path());
    let log = fs::File::create(dir.path().join("log")).unwrap();
    let mut service = up
        .env("NOTIFY_SOCKET", dir.path().join("notify"))
        .env("WATCHDOG_USEC", "200000")
        .stderr(log)
        .spawn()
        .unwrap();
    let pid = service.id().unwrap();
    let ready = manager.hears("READY=1").await;
    assert_eq!(ready, format!("READY=1\nMAINPID={pid}"));
    for _ in 0..3 {
        manager.hears("WATCHDOG=1").await;
    }
    let status = manager.hears("STATUS=").await;
    assert!(status.contains("workers"), "{status}");

    assert!(succeeds(unit_command("ExecReload", dir.path()).0).await);
    let (stop, may_fail) = unit_command("ExecStop", dir.path());
    assert!(succeeds(stop).await);
    manager.hears("STOPPING=1").await;
    let ended = timeout(patience(), service.wait()).await.unwrap().unwrap();
    assert!(ended.success());
    // With no orchestrator to ask it fails, and systemd has to overlook that.
    assert!(!succeeds(unit_command("ExecStop", dir.path()).0).await);
    assert!(may_fail);
}

#[tokio::test]
async fn the_unit_lets_a_killed_orchestrators_nodes_live_and_gives_them_time_to_end() {
    for (key, value) in [
        ("Type", "notify"),
        ("KillMode", "process"),
        ("RuntimeDirectoryPreserve", "yes"),
        ("RuntimeDirectoryMode", "0700"),
        ("Restart", "on-failure"),
        ("RestartPreventExitStatus", "78"),
    ] {
        assert_eq!(unit_values(key), [value], "{key}");
    }
    let seconds = |key| {
        let value = unit_values(key).remove(0);
        let number = value.trim_end_matches('s').parse();
        Duration::from_secs(number.expect("whole seconds"))
    };
    // shutdown.timeout, and what workers and brokers get beyond it.
    assert!(seconds("TimeoutStopSec") > Duration::from_secs(20 + 2 + 5 + 5));
}

#[tokio::test]
async fn a_manager_with_an_abstract_name_hears_the_next_orchestrator_take_over() {
    let name = format!("muster-deploy-test-{}", std::process::id());
    let mut manager = Manager::abstract_at(&name);
    let mut cluster = Cluster::builder(1, 1)
        .env("NOTIFY_SOCKET", &format!("@{name}"))
        .start()
        .await;
    manager.hears("READY=1").await;
    let mut client = Raw::connect(&cluster.url()).await;
    cluster.kill_orchestrator().await;
    let status = cluster.up_again(2, |same| same).await;
    let ready = manager.hears("READY=1").await;
    assert_eq!(ready, format!("READY=1\nMAINPID={}", status.pid));
    assert!(client.is_alive().await);
    cluster.signal(Signal::TERM);
    manager.hears("STOPPING=1").await;
    client.closed().await;
    cluster.ended().await;
}

#[tokio::test]
async fn a_manager_hears_that_an_update_begins_and_ends_in_the_same_process() {
    let dir = tempfile::tempdir().unwrap();
    let mut manager = Manager::at(&dir.path().join("notify"));
    let cluster = Cluster::builder(1, 1)
        .env("NOTIFY_SOCKET", dir.path().join("notify").to_str().unwrap())
        .start()
        .await;
    let ready = manager.hears("READY=1").await;
    for _ in 0..2 {
        let update = cluster.verb(&["update"]).await;
        assert!(update.status.success(), "{update:?}");
        let reloading = manager.hears("RELOADING=1").await;
        assert!(reloading.contains("\nMONOTONIC_USEC="), "{reloading}");
        assert_eq!(manager.hears("READY=1").await, ready);
    }
    cluster.down().await;
}

#[tokio::test]
async fn systemd_finds_nothing_wrong_with_the_unit() {
    const NAME: &str = "systemd_finds_nothing_wrong_with_the_unit";
    if Program::new("systemd-analyze")
        .arg("--version")
        .output()
        .is_err()
    {
        tools::skipped(NAME, "systemd is not here");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let unit = fs::read_to_string(deploy("muster.service")).unwrap();
    // Neither the program nor its user is installed here.
    let unit = unit
        .replace(
            "/usr/bin/orchestrator",
            orchestrator::binary().to_str().unwrap(),
        )
        .replace("User=muster", "User=root");
    let path = dir.path().join("muster.service");
    fs::write(&path, unit).unwrap();
    let verify = Program::new("systemd-analyze")
        .args(["verify", "--man=no", "--generators=no"])
        .arg(&path)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&verify.stderr);
    let ours: Vec<_> = said
        .lines()
        .filter(|line| line.contains("muster"))
        .collect();
    assert!(ours.is_empty(), "{said}");
}

/// `unshare` with an orchestrator as the first process of a PID namespace.
fn container(dir: &Path) -> Command {
    let mut command = orchestrator::command_through("unshare");
    command
        .args(NAMESPACE)
        .arg(orchestrator::binary())
        .args(["up", "--workers", "1", "--brokers", "1"])
        .args(["--listen", "127.0.0.1:0", "--runtime-dir"])
        .arg(dir.join("run"))
        .env("MUSTER_BROKER__JOURNAL_DIR", dir.join("journal"))
        .stderr(fs::File::create(dir.join("log")).expect("the log is created"));
    command
}

const NAMESPACE: [&str; 4] = ["--pid", "--fork", "--mount-proc", "--kill-child"];

/// A verb for the cluster in the container.
async fn verb(dir: &Path, arguments: &[&str]) -> std::process::Output {
    let mut command = orchestrator::command();
    command
        .args(arguments)
        .arg("--runtime-dir")
        .arg(dir.join("run"));
    command.output().await.expect("it runs")
}

#[tokio::test]
async fn as_the_first_process_of_a_container_it_reaps_orphans_and_ends_with_all() {
    const NAME: &str = "as_the_first_process_of_a_container_it_reaps_orphans_and_ends_with_all";
    let allowed = Program::new("unshare").args(NAMESPACE).arg("true").output();
    if !allowed.is_ok_and(|output| output.status.success()) {
        tools::skipped(NAME, "no PID namespace can be made here");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut container = container(dir.path()).spawn().unwrap();
    eventually("the cluster is ready", patience(), async || {
        let output = verb(dir.path(), &["status", "--json"]).await;
        match serde_json::from_slice::<Status>(&output.stdout) {
            Ok(status) if status.is_whole() && status.pid == 1 => Ok(()),
            other => Err(format!("{other:?} {output:?}")),
        }
    })
    .await;
    // Somebody comes in, starts something and leaves: it becomes the first
    // process's child, and ends.
    let init = *children_of(container.id().unwrap()).first().unwrap();
    let entered = Program::new("nsenter")
        .args(["--pid", "--mount", "--target", &init.to_string()])
        .args(["sh", "-c", "sh -c 'exit 0' & sh -c 'sleep 0.1' & exit 0"])
        .status()
        .unwrap();
    assert!(entered.success());
    eventually(
        "only nodes are left",
        patience(),
        async || match children_of(init) {
            children if children.len() == 2 => Ok(()),
            children => Err(format!("{children:?}")),
        },
    )
    .await;
    let down = verb(dir.path(), &["down"]).await;
    assert!(down.status.success(), "{down:?}");
    let ended = timeout(patience(), container.wait()).await.unwrap();
    assert!(ended.unwrap().success());
}

/// Processes whose parent this is, zombies among them.
fn children_of(parent: u32) -> BTreeSet<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
            let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
            let (_, rest) = stat.rsplit_once(") ")?;
            (rest.split(' ').nth(1)? == parent.to_string()).then_some(pid)
        })
        .collect()
}

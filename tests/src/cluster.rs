//! A real cluster of real processes for one test.

mod processes;

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::{ExitStatus, Output},
    sync::Arc,
    time::Duration,
};

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;
use tokio::process::Child;

use crate::{
    eventually::{eventually, patience},
    orchestrator,
    status::{Node, Status},
};

/// The key that every test cluster's tokens are signed with.
pub const AUTH_KEY: &[u8] = b"a key that is only used by tests";

/// What a cluster is started with.
#[derive(Debug, Clone)]
pub struct ClusterBuilder {
    workers: u32,
    brokers: u32,
    config: String,
    key: Vec<u8>,
    environment: Vec<(OsString, OsString)>,
    flags: Vec<OsString>,
}

/// A running cluster. Dropping it kills everything that is left of it.
#[derive(Debug)]
pub struct Cluster {
    dir: Arc<TempDir>,
    builder: ClusterBuilder,
    orchestrator: Child,
    status: Status,
}

impl ClusterBuilder {
    /// Sets how many nodes there are to be.
    #[must_use]
    pub fn size(mut self, workers: u32, brokers: u32) -> Self {
        (self.workers, self.brokers) = (workers, brokers);
        self
    }

    /// Adds to the configuration file.
    #[must_use]
    pub fn config(mut self, toml: &str) -> Self {
        self.config.push_str(toml);
        self.config.push('\n');
        self
    }

    /// Sets the content of the key file; [`AUTH_KEY`] otherwise.
    #[must_use]
    pub fn key(mut self, key: &[u8]) -> Self {
        self.key = key.to_vec();
        self
    }

    /// Sets an environment variable for all processes.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Adds an argument to `up`.
    #[must_use]
    pub fn flag(mut self, flag: &str) -> Self {
        self.flags.push(flag.into());
        self
    }

    /// Starts it and waits until every node is ready.
    ///
    /// # Panics
    /// When it does not become ready; with its log.
    pub async fn start(self) -> Cluster {
        let dir = tempfile::Builder::new()
            .prefix("muster-")
            .tempdir()
            .expect("a directory");
        self.start_in(Arc::new(dir)).await
    }

    /// Starts it and does not wait.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn begin(self) -> Cluster {
        let dir = tempfile::Builder::new().prefix("muster-").tempdir();
        self.begin_in(Arc::new(dir.expect("a directory")))
    }

    async fn start_in(self, dir: Arc<TempDir>) -> Cluster {
        let nodes = self.workers + self.brokers;
        let mut cluster = self.begin_in(dir);
        cluster.status = cluster.whole(nodes).await;
        cluster
    }

    fn begin_in(self, dir: Arc<TempDir>) -> Cluster {
        fs::write(key_file(dir.path()), &self.key).expect("the key file is written");
        fs::write(config_file(dir.path()), &self.config).expect("the configuration is written");
        fs::File::create(log_file(dir.path())).expect("the log is created");
        let status = Status {
            listen: String::new(),
            pid: 0,
            nodes: vec![],
            scaling: None,
        };
        Cluster {
            orchestrator: self.up(dir.path()),
            builder: self,
            dir,
            status,
        }
    }

    /// Starts an orchestrator for the cluster in `dir`.
    fn up(&self, dir: &Path) -> Child {
        let log = fs::File::options().append(true).open(log_file(dir));
        let log = log.expect("the log was created");
        orchestrator::command()
            .arg("up")
            .args(["--workers", &self.workers.to_string()])
            .args(["--brokers", &self.brokers.to_string()])
            .args(["--listen", "127.0.0.1:0"])
            .arg("--runtime-dir")
            .arg(runtime_dir(dir))
            .arg("--auth-key-file")
            .arg(key_file(dir))
            .arg("--config")
            .arg(config_file(dir))
            .args(&self.flags)
            .env("MUSTER_BROKER__JOURNAL_DIR", journal_dir(dir))
            // Tests of updates that are watched say for how long.
            .env("MUSTER_UPDATE__HOLD", "0s")
            .envs(self.environment.iter().cloned())
            .stdout(log.try_clone().expect("a descriptor is duplicated"))
            .stderr(log)
            .spawn()
            .expect("the orchestrator starts")
    }
}

impl Cluster {
    /// A cluster with the default configuration.
    ///
    /// # Panics
    /// As [`ClusterBuilder::start`].
    pub async fn start(workers: u32, brokers: u32) -> Self {
        Self::builder(workers, brokers).start().await
    }

    /// Describes a cluster.
    #[must_use]
    pub fn builder(workers: u32, brokers: u32) -> ClusterBuilder {
        ClusterBuilder {
            workers,
            brokers,
            config: String::new(),
            key: AUTH_KEY.to_vec(),
            environment: vec![],
            flags: vec![],
        }
    }

    /// A new cluster of one worker and one broker in the directory of this one,
    /// which has ended.
    ///
    /// # Panics
    /// As [`ClusterBuilder::start`].
    pub async fn start_again(&self) -> Self {
        Self::builder(1, 1).start_in(Arc::clone(&self.dir)).await
    }

    /// `ADDRESS:PORT` where clients connect.
    #[must_use]
    pub fn addr(&self) -> &str {
        &self.status.listen
    }

    /// Where clients connect.
    #[must_use]
    pub fn url(&self) -> String {
        format!("ws://{}/socketcluster/", self.addr())
    }

    /// The runtime directory.
    #[must_use]
    pub fn runtime_dir(&self) -> PathBuf {
        runtime_dir(self.dir.path())
    }

    /// Where its brokers keep their journals.
    #[must_use]
    pub fn journal_dir(&self) -> PathBuf {
        journal_dir(self.dir.path())
    }

    /// The file with [`AUTH_KEY`].
    #[must_use]
    pub fn key_file(&self) -> PathBuf {
        key_file(self.dir.path())
    }

    /// Writes another configuration file; nobody reads it by that.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn configure(&self, toml: &str) {
        fs::write(config_file(self.dir.path()), toml).expect("the configuration is written");
    }

    /// What its processes have written so far.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read(log_file(self.dir.path()))
            .map(|log| String::from_utf8_lossy(&log).into_owned())
            .unwrap_or_default()
    }

    /// Runs a verb of the orchestrator on this cluster.
    ///
    /// # Panics
    /// When the binary cannot be run.
    pub async fn verb(&self, arguments: &[&str]) -> Output {
        orchestrator::command()
            .arg("--runtime-dir")
            .arg(self.runtime_dir())
            .args(arguments)
            .output()
            .await
            .expect("the orchestrator runs")
    }

    /// The state that the orchestrator reports now.
    ///
    /// # Errors
    /// What it said instead.
    pub async fn status(&self) -> Result<Status, String> {
        let output = self.verb(&["status", "--json"]).await;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        serde_json::from_slice(&output.stdout)
            .map_err(|error| format!("{error} in {}", String::from_utf8_lossy(&output.stdout)))
    }

    /// Waits until `nodes` nodes are ready.
    async fn whole(&mut self, nodes: u32) -> Status {
        let deadline = tokio::time::Instant::now() + patience();
        loop {
            if let Ok(Some(exit)) = self.orchestrator.try_wait() {
                panic!("the orchestrator ended: {exit}");
            }
            let instead = match self.status().await {
                Ok(status) if status.is_whole() && status.nodes.len() == nodes as usize => {
                    return status;
                }
                Ok(status) => format!("{status:?}"),
                Err(error) => error,
            };
            assert!(
                tokio::time::Instant::now() < deadline,
                "not ready in time: {instead}"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Kills a worker with SIGKILL and waits until its successor is ready.
    ///
    /// # Panics
    /// When it does not come back.
    pub async fn kill_worker(&self, slot: u32) {
        self.kill_node("worker", slot).await;
    }

    /// Kills a broker with SIGKILL and waits until its successor is ready.
    ///
    /// # Panics
    /// When it does not come back.
    pub async fn kill_broker(&self, slot: u32) {
        self.kill_node("broker", slot).await;
    }

    async fn kill_node(&self, role: &str, slot: u32) {
        let before = self.status().await.expect("the cluster runs");
        let victim = before.node(role, slot).expect("the node exists").clone();
        processes::signal(victim.pid, Signal::KILL);
        self.replaced(&victim).await;
    }

    /// Waits until another process is ready in the slot of `earlier`.
    ///
    /// # Panics
    /// When none comes in time.
    pub async fn replaced(&self, earlier: &Node) -> Node {
        let Node { role, slot, .. } = earlier;
        eventually(&format!("{role} {slot} is back"), patience(), async || {
            let status = self.status().await?;
            let node = status.node(role, *slot).ok_or("it is not listed")?;
            let is_back = node.pid != earlier.pid && node.state == "ready";
            if is_back {
                Ok(node.clone())
            } else {
                Err(format!("{node:?}"))
            }
        })
        .await
    }

    /// Begins to change the number of workers; what `scale --json` answers.
    ///
    /// # Panics
    /// When the orchestrator refuses.
    pub async fn scale(&self, workers: u32) -> Value {
        let workers = workers.to_string();
        let output = self.verb(&["scale", "--json", "--workers", &workers]).await;
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).expect("the answer is JSON")
    }

    /// Waits until exactly so many workers are there, all of them ready.
    ///
    /// # Panics
    /// When they are not in time.
    pub async fn has_workers(&self, count: u32) {
        eventually(&format!("{count} workers"), patience(), async || {
            let status = self.status().await?;
            let workers = status.workers();
            let are_all = workers.iter().map(|node| node.slot).eq(1..=count);
            if are_all && status.is_whole() {
                Ok(())
            } else {
                Err(format!("{status:?}"))
            }
        })
        .await;
    }

    /// Begins to change the number of brokers.
    ///
    /// # Panics
    /// When the orchestrator refuses.
    pub async fn scale_brokers(&self, brokers: u32) {
        let brokers = brokers.to_string();
        let output = self.verb(&["scale", "--json", "--brokers", &brokers]).await;
        assert!(output.status.success(), "{output:?}");
    }

    /// Sends a signal to the orchestrator and all nodes, as they were then.
    pub fn signal_all(&self, status: &Status, signal: Signal) {
        for pid in status.pids() {
            processes::signal(pid, signal);
        }
    }

    /// Sends a signal to one of its processes; one that is gone does not matter.
    pub fn signal_process(pid: u32, signal: Signal) {
        processes::signal(pid, signal);
    }

    /// Sends a signal to a node.
    ///
    /// # Panics
    /// When there is no such node.
    pub async fn signal_node(&self, role: &str, slot: u32, signal: Signal) {
        let status = self.status().await.expect("the cluster runs");
        processes::signal(
            status.node(role, slot).expect("the node exists").pid,
            signal,
        );
    }

    /// Sends a signal to a node as `status` knew it, for a cluster that cannot be
    /// asked now. After SIGKILL it waits for the end.
    ///
    /// # Panics
    /// When there was no such node, or it survives.
    pub fn signal_last_known(&self, status: &Status, role: &str, slot: u32, signal: Signal) {
        let node = status.node(role, slot).expect("the node existed");
        processes::signal(node.pid, signal);
        if signal == Signal::KILL {
            assert!(
                processes::wait_gone(node.pid, patience()),
                "{node:?} survives"
            );
        }
    }

    /// Open connections of each worker, by slot, as last reported.
    ///
    /// # Panics
    /// When the cluster does not run.
    pub async fn connections(&self) -> Vec<u64> {
        let status = self.status().await.expect("the cluster runs");
        let count = |stats: &crate::status::Stats| stats.connections;
        status
            .workers()
            .iter()
            .map(|node| node.stats.as_ref().map_or(0, count))
            .collect()
    }

    /// Kills the orchestrator alone with SIGKILL.
    ///
    /// # Panics
    /// When it does not end.
    pub async fn kill_orchestrator(&mut self) {
        self.signal(Signal::KILL);
        self.ended().await;
    }

    /// Starts an orchestrator in the place of one that was killed, with the same
    /// arguments or those that `change` makes of them, and waits until `nodes`
    /// nodes are ready.
    ///
    /// # Panics
    /// When they do not become ready.
    pub async fn up_again(
        &mut self,
        nodes: u32,
        change: impl FnOnce(ClusterBuilder) -> ClusterBuilder,
    ) -> Status {
        let builder = change(self.builder.clone());
        fs::write(config_file(self.dir.path()), &builder.config)
            .expect("the configuration is written");
        self.orchestrator = builder.up(self.dir.path());
        self.status = self.whole(nodes).await;
        self.status.clone()
    }

    /// Starts an orchestrator in the place of one that was killed, and does not
    /// wait.
    pub fn begin_up_again(&mut self) {
        self.begin_up_again_with(|same| same);
    }

    /// The same with the arguments that `change` makes.
    pub fn begin_up_again_with(&mut self, change: impl FnOnce(ClusterBuilder) -> ClusterBuilder) {
        self.orchestrator = change(self.builder.clone()).up(self.dir.path());
    }

    /// Sends a signal to the orchestrator.
    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = self.orchestrator.id() {
            processes::signal(pid, signal);
        }
    }

    /// Waits until the orchestrator has ended.
    ///
    /// # Panics
    /// When it does not end in time.
    pub async fn ended(&mut self) -> ExitStatus {
        tokio::time::timeout(patience(), self.orchestrator.wait())
            .await
            .expect("the orchestrator ends in time")
            .expect("a child can be waited for")
    }

    /// Ends the cluster with `down` and checks that nothing is left of it.
    ///
    /// # Panics
    /// When something is left, or `down` fails.
    pub async fn down(mut self) {
        let output = self.verb(&["down"]).await;
        assert!(output.status.success(), "{output:?}");
        let exit = self.ended().await;
        assert!(exit.success(), "the orchestrator ended with {exit}");
        assert_eq!(self.left_behind(), Vec::<String>::new());
    }

    /// Command lines of processes of this cluster that still run.
    #[must_use]
    pub fn left_behind(&self) -> Vec<String> {
        processes::mentioning(self.dir.path())
            .into_iter()
            .map(|found| found.command)
            .collect()
    }

    /// Removes a client's subscription, or all of them.
    ///
    /// # Panics
    /// When the orchestrator refuses.
    pub async fn kick(&self, connection: &str, channel: Option<&str>, message: &str) {
        // Session ids and channels may begin with a hyphen.
        let mut arguments = vec!["kick", "--message", message, "--", connection];
        arguments.extend(channel);
        self.must(&arguments).await;
    }

    /// Closes a client's connection.
    ///
    /// # Panics
    /// When the orchestrator refuses.
    pub async fn disconnect(&self, connection: &str, code: u16, reason: &str) {
        let code = code.to_string();
        self.must(&[
            "disconnect",
            "--code",
            &code,
            "--reason",
            reason,
            "--",
            connection,
        ])
        .await;
    }

    /// Gives a client a token.
    ///
    /// # Panics
    /// When the orchestrator refuses.
    pub async fn set_token(&self, connection: &str, claims: &Value) {
        self.must(&["token", "set", "--", connection, &claims.to_string()])
            .await;
    }

    /// Takes a client's token away.
    ///
    /// # Panics
    /// When the orchestrator refuses.
    pub async fn remove_token(&self, connection: &str) {
        self.must(&["token", "remove", "--", connection]).await;
    }

    async fn must(&self, arguments: &[&str]) {
        let output = self.verb(arguments).await;
        assert!(output.status.success(), "{arguments:?}: {output:?}");
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let survivors = processes::kill_all(self.dir.path(), patience());
        if std::thread::panicking() {
            eprint_log(&self.log());
        } else {
            assert!(
                survivors.is_empty(),
                "processes survive SIGKILL: {survivors:?}"
            );
        }
    }
}

#[expect(
    clippy::print_stderr,
    reason = "it belongs to the report of the failed test"
)]
fn eprint_log(log: &str) {
    eprintln!("---- log of the cluster ----\n{log}---- end of the log ----");
}

fn runtime_dir(dir: &Path) -> PathBuf {
    dir.join("run")
}

fn journal_dir(dir: &Path) -> PathBuf {
    dir.join("journal")
}

fn key_file(dir: &Path) -> PathBuf {
    dir.join("auth.key")
}

fn config_file(dir: &Path) -> PathBuf {
    dir.join("muster.toml")
}

fn log_file(dir: &Path) -> PathBuf {
    dir.join("log")
}

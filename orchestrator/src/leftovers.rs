//! Nodes that an orchestrator left behind when it was killed and that cannot be
//! taken over: ended before others are started in their place.

use std::time::Duration;

use rustix::process::Signal;
use tracing::{error, warn};

use crate::process::NodeProcess;

/// What nodes without an orchestrator may take to end by themselves.
const TERMINATE_TIMEOUT: Duration = Duration::from_secs(3);
const KILL_TIMEOUT: Duration = Duration::from_secs(5);

/// Ends the nodes, all at the same time.
pub(crate) fn end(nodes: Vec<NodeProcess>) {
    for node in &nodes {
        warn!(
            node = %node.id,
            pid = node.process.pid,
            "Ending a node that an earlier orchestrator left and that cannot be taken over."
        );
        node.process.signal(Signal::TERM);
    }
    let living = outlasting(nodes, TERMINATE_TIMEOUT);
    for node in &living {
        node.process.signal(Signal::KILL);
    }
    for node in outlasting(living, KILL_TIMEOUT) {
        error!(node = %node.id, pid = node.process.pid, "A node could not be killed.");
    }
}

/// Those that still live when the time for all of them is up.
fn outlasting(nodes: Vec<NodeProcess>, timeout: Duration) -> Vec<NodeProcess> {
    let until = muster_daemon::clock::now() + timeout;
    let lives = |node: &NodeProcess| {
        let rest = until.since(muster_daemon::clock::now());
        !node.process.wait_blocking(rest)
    };
    nodes.into_iter().filter(lives).collect()
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::process::ExitStatusExt as _,
        path::Path,
        process::{Child, Command, Stdio},
    };

    use super::*;
    use crate::process::nodes_of;

    /// A shell that runs `script`, with the command line of a node.
    fn node(scripts: &Path, script: &str, dir: &Path) -> Child {
        fs::write(scripts.join("worker"), script).unwrap();
        let mut child = Command::new("sh")
            .args(["worker", "--slot", "1", "--runtime-dir"])
            .arg(dir)
            .current_dir(scripts)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // It says so when it is there.
        let mut byte = [0; 1];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut byte).unwrap();
        child
    }

    #[test]
    fn a_node_of_the_directory_is_ended_and_another_ones_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let scripts = tempfile::tempdir().unwrap();
        let mut leftover = node(scripts.path(), "echo; read line", dir.path());
        let mut other = node(scripts.path(), "echo; read line", &dir.path().join("other"));
        end(nodes_of(dir.path()).unwrap());
        let ended = leftover.wait().unwrap();
        assert_eq!(ended.signal(), Some(Signal::TERM.as_raw()));
        assert!(other.try_wait().unwrap().is_none());
        // Its standard input ends, so it does too.
        drop(other.stdin.take());
        other.wait().unwrap();
    }

    #[test]
    fn nodes_that_do_not_end_by_themselves_are_killed_after_one_time_for_all() {
        let dir = tempfile::tempdir().unwrap();
        let scripts = tempfile::tempdir().unwrap();
        let stubborn = "trap '' TERM; echo; while :; do read line; done";
        let mut nodes = [(); 3].map(|()| node(scripts.path(), stubborn, dir.path()));
        let before = muster_daemon::clock::now();
        end(nodes_of(dir.path()).unwrap());
        let took = muster_daemon::clock::now().since(before);
        assert!(took < TERMINATE_TIMEOUT * 2, "{took:?}");
        for node in &mut nodes {
            let ended = node.wait().unwrap();
            assert_eq!(ended.signal(), Some(Signal::KILL.as_raw()));
        }
    }
}

//! The orchestrator as a service of the machine: what systemd is told, and what
//! the first process of a container owes the others.

use std::{collections::BTreeSet, fs, io, time::Duration};

use muster_daemon::{
    exit::chain,
    notify::{Notifier, State, watchdog_interval},
};
use rustix::process::{Pid, WaitId, WaitIdOptions, getpid, waitid};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::{Interval, MissedTickBehavior, interval},
};
use tracing::{debug, info, warn};

/// The status line is written anew this often, where no watchdog wants more.
const STATUS_INTERVAL: Duration = Duration::from_secs(5);

/// What whoever started this process wants of it.
#[derive(Debug)]
pub(crate) struct Service {
    manager: Option<Manager>,
    /// Present in the first process of a PID namespace.
    orphans: Option<Signal>,
}

#[derive(Debug)]
struct Manager {
    notifier: Notifier,
    beat: Interval,
    is_ready: bool,
    is_stopping: bool,
    status: String,
}

/// What has to be done now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Due {
    /// Call [`Service::beat`].
    Beat,
    /// Call [`Service::reap`].
    Orphans,
}

impl Service {
    /// Looks at the environment and at this process's own pid.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub(crate) fn new() -> Self {
        let notifier = Notifier::from_environment().unwrap_or_else(|error| {
            warn!(
                error = chain(&error),
                "The service manager cannot be told anything."
            );
            None
        });
        let manager = notifier.map(|notifier| {
            let between = watchdog_interval().unwrap_or(STATUS_INTERVAL);
            let mut beat = interval(between.min(STATUS_INTERVAL));
            beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
            Manager {
                notifier,
                beat,
                is_ready: false,
                is_stopping: false,
                status: String::new(),
            }
        });
        let is_init = getpid().is_init();
        let orphans = is_init.then(|| signal(SignalKind::child()));
        let orphans = orphans.and_then(|signal| {
            signal
                .inspect_err(|error| warn!(%error, "Orphans will not be reaped."))
                .ok()
        });
        if is_init {
            info!("First process here: when the orchestrator is killed, everything is.");
        }
        Self { manager, orphans }
    }

    /// Waits until there is something to do. Cancel-safe.
    pub(crate) async fn due(&mut self) -> Due {
        let beat = async {
            match &mut self.manager {
                Some(manager) => manager.beat.tick().await,
                None => std::future::pending().await,
            }
        };
        let orphans = async {
            match &mut self.orphans {
                Some(signal) => signal.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = beat => Due::Beat,
            _ = orphans => Due::Orphans,
        }
    }

    /// The cluster serves clients.
    pub(crate) fn ready(&mut self) {
        if let Some(manager) = &mut self.manager
            && !std::mem::replace(&mut manager.is_ready, true)
        {
            let pid = std::process::id();
            manager.notifier.tell(&State::Ready { pid });
        }
    }

    /// Another program is about to be executed in this process, or another
    /// configuration to be read; nothing more is said until [`Self::reloaded`].
    pub(crate) fn reloading(&mut self) {
        if let Some(manager) = &mut self.manager {
            manager.notifier.tell(&State::Reloading);
        }
    }

    /// That is over, one way or the other.
    pub(crate) fn reloaded(&mut self) {
        if let Some(manager) = &mut self.manager
            && manager.is_ready
        {
            let pid = std::process::id();
            manager.notifier.tell(&State::Ready { pid });
        }
    }

    /// The cluster has begun to end.
    pub(crate) fn stopping(&mut self) {
        if let Some(manager) = &mut self.manager
            && !std::mem::replace(&mut manager.is_stopping, true)
        {
            manager.notifier.tell(&State::Stopping);
        }
    }

    /// The loop of the cluster turns; `status` says how things are.
    pub(crate) fn beat(&mut self, status: String) {
        if let Some(manager) = &mut self.manager {
            manager.notifier.tell(&State::Watchdog);
            if manager.status != status {
                manager.notifier.tell(&State::Status(&status));
                manager.status = status;
            }
        }
    }

    /// Reaps processes that lost their parent and became ours: all that have
    /// ended but those that are `attended` by somebody here.
    pub(crate) fn reap(&self, attended: &BTreeSet<u32>) {
        let children = match children() {
            Ok(children) => children,
            Err(error) => {
                debug!(%error, "The children of this process cannot be listed.");
                return;
            }
        };
        for pid in children {
            let raw = i32::try_from(pid).ok().and_then(Pid::from_raw);
            if let Some(raw) = raw
                && !attended.contains(&pid)
            {
                let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
                // One that still runs is left alone; one that is gone is gone.
                if let Ok(Some(_)) = waitid(WaitId::Pid(raw), options) {
                    debug!(pid, "Reaped an orphan.");
                }
            }
        }
    }
}

/// Children of all threads of this process, among them those that have ended.
fn children() -> io::Result<Vec<u32>> {
    let mut pids = Vec::new();
    for thread in fs::read_dir("/proc/self/task")? {
        // A thread may have ended meanwhile.
        let list = fs::read_to_string(thread?.path().join("children")).unwrap_or_default();
        pids.extend(
            list.split(' ')
                .filter_map(|pid| pid.trim().parse::<u32>().ok()),
        );
    }
    Ok(pids)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn service() -> Service {
        Service {
            manager: None,
            orphans: None,
        }
    }

    #[tokio::test]
    async fn without_a_manager_and_a_container_there_is_nothing_to_do() {
        let mut service = Service::new();
        service.ready();
        service.beat("fine".into());
        service.stopping();
        let due = service.due();
        let nothing = tokio::time::timeout(Duration::ZERO, due).await;
        assert!(nothing.is_err());
    }

    #[test]
    fn only_children_that_nobody_attends_and_that_have_ended_are_reaped() {
        let start = |seconds| Command::new("sleep").arg(seconds).spawn().unwrap();
        let (mut orphan, mut attended, mut living) = (start("0"), start("0"), start("600"));
        for child in [&orphan, &attended] {
            let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
            waitid(WaitId::Pid(pid), options).unwrap();
        }
        service().reap(&BTreeSet::from([attended.id()]));
        assert!(orphan.wait().is_err(), "somebody else has waited for it");
        assert!(attended.wait().unwrap().success());
        assert!(living.try_wait().unwrap().is_none());
        living.kill().unwrap();
        living.wait().unwrap();
    }
}

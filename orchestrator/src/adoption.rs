//! What an orchestrator that was killed has left: nodes that live and are
//! taken over, and nodes that cannot be and are ended (delivery.md E3).

use std::{collections::BTreeMap, fs, io, net::TcpListener, os::fd::OwnedFd, path::Path};

use muster_daemon::{
    Config, adoption,
    config::{self, ConfigError},
    exit::chain,
    runtime_dir::{self, RuntimeDir},
};
use rustix::net::sockopt::socket_acceptconn;
use tracing::{info, warn};

use crate::{
    cli::{Size, UpArgs},
    leftovers,
    node::{NodeId, Role},
    process::{self, NodeProcess, Process},
    state::{self, LifeState, State},
};

/// A cluster without an orchestrator, to go on with.
#[derive(Debug)]
pub(crate) struct Adoption {
    pub(crate) state: State,
    pub(crate) nodes: BTreeMap<NodeId, Adopted>,
    /// What the nodes were started with.
    pub(crate) config: Config,
    /// Absent when no worker lives.
    pub(crate) listener: Option<TcpListener>,
}

/// A node that lives.
#[derive(Debug)]
pub(crate) struct Adopted {
    pub(crate) life: LifeState,
    pub(crate) process: Process,
}

/// Looks for what an earlier orchestrator has left in `dir`, and ends whatever
/// of it cannot be taken over. Only for the holder of the directory's lock,
/// before it has started any node itself. `listener` is the listening socket, if
/// it is there already.
///
/// # Errors
///
/// When the system's processes cannot be read.
pub(crate) fn look(
    dir: &RuntimeDir,
    listener: Option<TcpListener>,
) -> io::Result<Option<Adoption>> {
    let found = process::nodes_of(dir.path())?;
    let state = state::read(&dir.state_file()).unwrap_or_else(|error| {
        warn!(
            file = %dir.state_file().display(),
            error = chain(&error),
            "Ignored what an earlier orchestrator wrote down."
        );
        None
    });
    let Some(state) = state else {
        leftovers::end(found);
        return Ok(None);
    };
    let (nodes, mut others) = sort(&state, found);
    let config = match earlier_config(&dir.config_file()) {
        Ok(config) => Some(config),
        Err(error) => {
            if !nodes.is_empty() {
                warn!(
                    error = chain(&error),
                    "The nodes' configuration cannot be read."
                );
            }
            None
        }
    };
    let listener = listener.or_else(|| ask_for_listener(dir.path(), &nodes));
    // Workers that keep the address and do not give it away must go.
    let is_kept = |role| config.is_some() && (role == Role::Broker || listener.is_some());
    let (nodes, gone): (BTreeMap<_, _>, BTreeMap<_, _>) =
        nodes.into_iter().partition(|(id, _)| is_kept(id.role));
    others.extend(gone.into_iter().map(|(id, adopted)| NodeProcess {
        id,
        incarnation: adopted.life.incarnation,
        process: adopted.process,
    }));
    leftovers::end(others);
    Ok(config.filter(|_| !nodes.is_empty()).map(|config| Adoption {
        state,
        nodes,
        config,
        listener,
    }))
}

/// Who is who: the lives that the state names, and the rest.
fn sort(state: &State, found: Vec<NodeProcess>) -> (BTreeMap<NodeId, Adopted>, Vec<NodeProcess>) {
    let mut nodes = BTreeMap::new();
    let mut others = Vec::new();
    for node in found {
        // A worker and its successor call themselves the same.
        let mut lives = state.lives.iter();
        let known = lives.find(|(id, life)| {
            let is_role = id.role.verb() == node.id.role.verb();
            is_role && id.slot == node.id.slot && is_same_life(life, &node)
        });
        match known {
            Some((id, life)) => {
                let adopted = Adopted {
                    life: *life,
                    process: node.process,
                };
                nodes.insert(*id, adopted);
            }
            None => others.push(node),
        }
    }
    (nodes, others)
}

fn is_same_life(life: &LifeState, node: &NodeProcess) -> bool {
    life.pid == node.process.pid
        && life.start_ticks == node.process.start_ticks
        && life.incarnation == node.incarnation
}

fn earlier_config(file: &Path) -> Result<Config, ConfigError> {
    config::load(Some(file), std::iter::empty(), &[]).map(|loaded| loaded.config)
}

/// Any worker has it; the first that answers gives it.
fn ask_for_listener(dir: &Path, nodes: &BTreeMap<NodeId, Adopted>) -> Option<TcpListener> {
    let workers = nodes.iter().filter(|(id, _)| id.role != Role::Broker);
    for (id, adopted) in workers {
        let socket = runtime_dir::worker_socket(dir, id.slot, adopted.life.incarnation);
        match adoption::ask(&socket).and_then(listening) {
            Ok(listener) => return Some(listener),
            Err(error) => warn!(node = %id, %error, "A worker does not give the listening socket."),
        }
    }
    None
}

fn listening(socket: OwnedFd) -> io::Result<TcpListener> {
    let listener = TcpListener::from(socket);
    listener.local_addr()?;
    if socket_acceptconn(&listener)? {
        Ok(listener)
    } else {
        Err(io::Error::other("it does not listen"))
    }
}

impl Adoption {
    /// Whether the socket of this name in the runtime directory belongs to a
    /// node that lives.
    pub(crate) fn owns_socket(&self, name: &str) -> bool {
        self.nodes.iter().any(|(id, adopted)| {
            let incarnation = adopted.life.incarnation;
            name == format!("{}-{}-{incarnation}.sock", id.role.verb(), id.slot)
        })
    }

    /// The cluster's size: what is wanted, else what it was, and in any case
    /// every node that lives and was to stay: an orchestrator that is started
    /// again after a crash must not take clients away.
    pub(crate) fn size(&self, args: &UpArgs) -> Size {
        let before = self.state.size;
        let wanted = Size {
            workers: args.workers.unwrap_or(before.workers),
            brokers: args.brokers.unwrap_or(before.brokers),
        };
        let living: Vec<_> = self.nodes.keys().copied().collect();
        let size = size_with(&living, before, wanted);
        if size != wanted {
            warn!(
                workers = size.workers,
                brokers = size.brokers,
                "More nodes live than are wanted, and stay: see `scale`, or `down` and `up`."
            );
        }
        size
    }

    /// The configuration to go on with: the one that the nodes run with, so
    /// that all nodes have the same. What was `wanted` otherwise is named.
    pub(crate) fn config(&self, wanted: &Config) -> Config {
        let mut config = self.config.clone();
        let wanted_addr = wanted.listener.addr;
        if self.listener.is_none() && wanted_addr.port() != 0 {
            // Nobody is there who could miss the earlier address.
            config.listener.addr = wanted_addr;
        }
        let mut differences = config.differences(wanted);
        let addr = config.listener.addr;
        if wanted_addr.port() == 0 && wanted_addr.ip() == addr.ip() {
            differences.retain(|key| key != "listener.addr");
        }
        if wanted.auth.key_file.is_none() {
            // The earlier one has been generated.
            differences.retain(|key| key != "auth.key_file");
        }
        if !differences.is_empty() {
            warn!(
                keys = differences.join(", "),
                "The cluster that runs was started with another configuration and keeps it: what \
                 was changed takes effect with `reload`, `update`, or `down` and `up`."
            );
        }
        config
    }

    pub(crate) fn log(&self) {
        let nodes: Vec<String> = self.nodes.keys().map(ToString::to_string).collect();
        info!(nodes = nodes.join(", "), "Taking over nodes that live.");
    }
}

/// Nodes beyond the size `before` were on their way out.
fn size_with(living: &[NodeId], before: Size, wanted: Size) -> Size {
    let highest = |role, most: u32, wanted: u32| {
        let slots = living.iter().filter(|id| id.role == role);
        let staying = slots.map(|id| id.slot).filter(|slot| *slot <= most);
        staying.fold(wanted, u32::max)
    };
    Size {
        workers: highest(Role::Worker, before.workers, wanted.workers),
        brokers: highest(Role::Broker, before.brokers, wanted.brokers),
    }
}

/// Whether the accept gate's file is there; the workers that live have it open.
///
/// # Errors
///
/// When it cannot be looked at.
pub(crate) fn has_gate(path: &Path, len: usize) -> io::Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(metadata) => {
            let len = u64::try_from(len).unwrap_or(u64::MAX);
            Ok(metadata.is_file() && metadata.len() == len)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn living_nodes_that_were_to_stay_are_counted_in() {
        let id = |role, slot| NodeId { role, slot };
        let size = |workers, brokers| Size { workers, brokers };
        let living = [
            id(Role::Worker, 2),
            id(Role::Worker, 4),
            id(Role::Broker, 2),
            id(Role::Broker, 3),
        ];
        let before = size(3, 2);
        let with = |wanted| size_with(&living, before, wanted);
        assert_eq!(
            with(size(1, 1)),
            size(2, 2),
            "worker 4 and broker 3 were on their way out"
        );
        assert_eq!(with(before), size(3, 2));
        assert_eq!(with(size(5, 3)), size(5, 3));
    }

    #[test]
    fn a_gate_that_is_missing_or_foreign_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("gate");
        assert!(!has_gate(&path, 64).unwrap());
        fs::write(&path, [0; 63]).unwrap();
        assert!(!has_gate(&path, 64).unwrap());
        fs::write(&path, [0; 64]).unwrap();
        assert!(has_gate(&path, 64).unwrap());
    }
}

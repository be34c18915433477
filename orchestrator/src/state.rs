//! `state.json` in the runtime directory: what an orchestrator that is started
//! anew must know of the one before it and cannot ask the processes.

use std::{
    collections::BTreeMap,
    fs::OpenOptions,
    io::{self, Read as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use muster_daemon::runtime_dir::RuntimeDir;
use muster_proto::{CONTROL_VERSION, View, ViewError, control as pb};
use muster_wire::Millis;
use prost::Message as _;
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::{
    cli::Size,
    node::{NodeId, Role},
    process::start_ticks,
    program::Named,
    programs::Programs,
};

/// Version of the file that this release reads and writes.
const STATE_VERSION: u32 = 1;
/// Sixteen times what the largest cluster writes.
const STATE_BYTES_MAX: u64 = 4 << 20;
/// Slots a role may have.
const SLOTS_MAX: u32 = 256;
/// Sixteen digits, as many as a socket's name has room for.
const INCARNATION_MAX: u64 = 9_999_999_999_999_999;

/// Why a state file says nothing that can be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StateError {
    #[error("cannot read it")]
    Read(#[from] io::Error),
    #[error("it is no file")]
    NoFile,
    #[error("it is longer than {STATE_BYTES_MAX} bytes")]
    TooLong,
    #[error("it is no state of a cluster")]
    Json(#[from] serde_json::Error),
    #[error("it has version {0}, this release reads {STATE_VERSION}")]
    Version(u32),
    #[error("its nodes speak version {0} of the control protocol, this release {CONTROL_VERSION}")]
    ControlVersion(u32),
    #[error("{0} is in it twice")]
    NodeRepeated(NodeId),
    #[error("{0} cannot be in a cluster")]
    NodeOutOfRange(NodeId),
    #[error("its incarnation {0} is above {INCARNATION_MAX}")]
    IncarnationOutOfRange(u64),
    #[error("its view makes no sense")]
    View(#[from] ViewError),
}

/// What is known of a cluster.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct State {
    /// Every incarnation so far is below or equal.
    pub(crate) incarnation: u64,
    /// When the cluster was started, on the host's monotonic clock.
    pub(crate) started: Millis,
    pub(crate) size: Size,
    /// While brokers are added, how many there were.
    pub(crate) brokers_before: Option<u32>,
    pub(crate) programs: Programs,
    /// How the last update ended.
    pub(crate) last_update: Option<pb::UpdateStatusResponse>,
    /// What nodes log, if an operator has changed it since the start.
    pub(crate) log_filter: Option<String>,
    pub(crate) lives: BTreeMap<NodeId, LifeState>,
    /// Epoch 0 before the first.
    pub(crate) view: View,
}

/// A process that filled a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LifeState {
    pub(crate) incarnation: u64,
    pub(crate) pid: u32,
    /// Tells it from a later process with its pid.
    pub(crate) start_ticks: u64,
    /// When it was started, on the host's monotonic clock.
    pub(crate) born: Millis,
    pub(crate) restarts: u32,
}

#[derive(Deserialize)]
struct Probe {
    version: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    version: u32,
    control_version: u32,
    incarnation: u64,
    started_ms: u64,
    workers: u32,
    brokers: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    brokers_before: Option<u32>,
    /// What nodes are started from, if not the orchestrator's own program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    program: Option<Named>,
    /// Slots that run something else.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    programs: Vec<FileProgram>,
    /// As in `control.proto`, in hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    last_update: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    log_filter: Option<String>,
    nodes: Vec<FileNode>,
    view: FileView,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileNode {
    role: FileRole,
    slot: u32,
    incarnation: u64,
    pid: u32,
    start_ticks: u64,
    born_ms: u64,
    restarts: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileProgram {
    role: FileRole,
    slot: u32,
    /// Absent: the orchestrator's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    program: Option<Named>,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum FileRole {
    Worker,
    Broker,
    Successor,
}

/// As in `control.proto`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileView {
    epoch: u64,
    brokers: Vec<FileBroker>,
    owners: Vec<u32>,
    shard_epochs: Vec<u64>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileBroker {
    slot: u32,
    incarnation: u64,
    address: String,
}

/// Reads what an earlier orchestrator wrote; `None` when there was none.
///
/// # Errors
///
/// When the file is there and cannot be used.
pub(crate) fn read(path: &Path) -> Result<Option<State>, StateError> {
    // Whatever is there must neither block nor lead elsewhere.
    let flags = OFlags::NONBLOCK | OFlags::NOFOLLOW;
    let flags = i32::try_from(flags.bits()).unwrap_or_default();
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    if !file.metadata()?.is_file() {
        return Err(StateError::NoFile);
    }
    let mut bytes = Vec::new();
    let read = file.take(STATE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if u64::try_from(read).unwrap_or(u64::MAX) > STATE_BYTES_MAX {
        return Err(StateError::TooLong);
    }
    State::from_json(&bytes).map(Some)
}

impl State {
    fn from_json(bytes: &[u8]) -> Result<Self, StateError> {
        let Probe { version } = serde_json::from_slice(bytes)?;
        if version != STATE_VERSION {
            return Err(StateError::Version(version));
        }
        let file: File = serde_json::from_slice(bytes)?;
        if file.control_version != CONTROL_VERSION {
            return Err(StateError::ControlVersion(file.control_version));
        }
        let mut lives = BTreeMap::new();
        let mut incarnation = file.incarnation;
        for node in file.nodes {
            incarnation = incarnation.max(node.incarnation);
            let (id, life) = node.into_life();
            if !(1..=SLOTS_MAX).contains(&id.slot) || life.pid == 0 {
                return Err(StateError::NodeOutOfRange(id));
            }
            if lives.insert(id, life).is_some() {
                return Err(StateError::NodeRepeated(id));
            }
        }
        if incarnation > INCARNATION_MAX {
            return Err(StateError::IncarnationOutOfRange(incarnation));
        }
        let view = View::try_from(pb::View::from(file.view))?;
        let others = file.programs.into_iter().map(|other| {
            let role = other.role.into();
            let slot = other.slot;
            (NodeId { role, slot }, other.program)
        });
        let programs = Programs {
            default: file.program,
            others: others.collect(),
        };
        Ok(Self {
            incarnation,
            started: Millis(file.started_ms),
            size: Size {
                workers: file.workers.min(SLOTS_MAX),
                brokers: file.brokers.min(SLOTS_MAX),
            },
            brokers_before: file.brokers_before,
            programs,
            last_update: file.last_update.as_deref().and_then(message_of),
            log_filter: file.log_filter,
            lives,
            view,
        })
    }

    fn to_json(&self) -> Vec<u8> {
        let nodes = self.lives.iter().map(|(id, life)| FileNode {
            role: id.role.into(),
            slot: id.slot,
            incarnation: life.incarnation,
            pid: life.pid,
            start_ticks: life.start_ticks,
            born_ms: life.born.0,
            restarts: life.restarts,
        });
        let programs = self
            .programs
            .others
            .iter()
            .map(|(id, program)| FileProgram {
                role: id.role.into(),
                slot: id.slot,
                program: program.clone(),
            });
        let file = File {
            version: STATE_VERSION,
            control_version: CONTROL_VERSION,
            incarnation: self.incarnation,
            started_ms: self.started.0,
            workers: self.size.workers,
            brokers: self.size.brokers,
            brokers_before: self.brokers_before,
            program: self.programs.default.clone(),
            programs: programs.collect(),
            last_update: self.last_update.as_ref().map(digits_of),
            log_filter: self.log_filter.clone(),
            nodes: nodes.collect(),
            view: pb::View::from(&self.view).into(),
        };
        serde_json::to_vec(&file).expect("numbers and text are always JSON")
    }
}

fn digits_of(message: &pb::UpdateStatusResponse) -> String {
    let bytes = message.encode_to_vec();
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What cannot be read is only an update's figures.
fn message_of(digits: &str) -> Option<pb::UpdateStatusResponse> {
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    let bytes: Option<Vec<u8>> = digits.as_bytes().chunks(2).map(byte).collect();
    pb::UpdateStatusResponse::decode(&*bytes?).ok()
}

impl FileNode {
    fn into_life(self) -> (NodeId, LifeState) {
        let role = self.role.into();
        let slot = self.slot;
        let life = LifeState {
            incarnation: self.incarnation,
            pid: self.pid,
            start_ticks: self.start_ticks,
            born: Millis(self.born_ms),
            restarts: self.restarts,
        };
        (NodeId { role, slot }, life)
    }
}

impl From<Role> for FileRole {
    fn from(role: Role) -> Self {
        match role {
            Role::Worker => Self::Worker,
            Role::Broker => Self::Broker,
            Role::Successor => Self::Successor,
        }
    }
}

impl From<FileRole> for Role {
    fn from(role: FileRole) -> Self {
        match role {
            FileRole::Worker => Self::Worker,
            FileRole::Broker => Self::Broker,
            FileRole::Successor => Self::Successor,
        }
    }
}

impl From<FileView> for pb::View {
    fn from(view: FileView) -> Self {
        let brokers = view.brokers.into_iter().map(|broker| pb::BrokerNode {
            slot: broker.slot,
            incarnation: broker.incarnation,
            address: broker.address,
        });
        Self {
            epoch: view.epoch,
            brokers: brokers.collect(),
            owners: view.owners,
            shard_epochs: view.shard_epochs,
        }
    }
}

impl From<pb::View> for FileView {
    fn from(view: pb::View) -> Self {
        let brokers = view.brokers.into_iter().map(|broker| FileBroker {
            slot: broker.slot,
            incarnation: broker.incarnation,
            address: broker.address,
        });
        Self {
            epoch: view.epoch,
            brokers: brokers.collect(),
            owners: view.owners,
            shard_epochs: view.shard_epochs,
        }
    }
}

/// Keeps the file up to date.
#[derive(Debug)]
pub(crate) struct StateFile {
    dir: RuntimeDir,
    path: PathBuf,
    written: Option<State>,
    is_failing: bool,
}

impl StateFile {
    pub(crate) fn new(dir: RuntimeDir) -> Self {
        Self {
            path: dir.state_file(),
            dir,
            written: None,
            is_failing: false,
        }
    }

    pub(crate) fn dir(&self) -> &RuntimeDir {
        &self.dir
    }

    /// When a process that lives was started, in clock ticks since the machine
    /// was; `None` when it is gone.
    pub(crate) fn start_ticks(&self, id: NodeId, incarnation: u64, pid: u32) -> Option<u64> {
        let known = self.written.as_ref().and_then(|state| state.lives.get(&id));
        match known {
            Some(life) if life.incarnation == incarnation && life.pid == pid => {
                Some(life.start_ticks)
            }
            Some(_) | None => start_ticks(pid).ok(),
        }
    }

    /// Writes the state if it is another than the one that was written last.
    /// A cluster whose state cannot be written runs all the same.
    pub(crate) fn write(&mut self, state: State) {
        if self.written.as_ref() == Some(&state) {
            return;
        }
        match self.dir.write(&self.path, &state.to_json()) {
            Ok(()) => self.is_failing = false,
            Err(error) if !self.is_failing => {
                self.is_failing = true;
                warn!(
                    error = muster_daemon::exit::chain(&error),
                    "Cannot write the state: if this orchestrator is killed, the next one has to \
                     start the nodes anew."
                );
            }
            Err(_) => {}
        }
        self.written = Some(state);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use muster_proto::BrokerNode;
    use serde_json::{Value, json};

    use super::*;

    fn id(role: Role, slot: u32) -> NodeId {
        NodeId { role, slot }
    }

    fn state() -> State {
        let life = LifeState {
            incarnation: 1_700_000_000_000_001,
            pid: 4711,
            start_ticks: 99,
            born: Millis(5),
            restarts: 2,
        };
        let broker = BrokerNode {
            slot: 1,
            incarnation: life.incarnation,
            address: "unix:/run/broker-1.sock".into(),
        };
        State {
            incarnation: 1_700_000_000_000_002,
            started: Millis(4),
            size: Size {
                workers: 2,
                brokers: 1,
            },
            brokers_before: None,
            programs: Programs {
                default: Some(Named {
                    path: "/opt/muster/orchestrator".into(),
                    device: 7,
                    inode: 8,
                }),
                others: BTreeMap::new(),
            },
            last_update: None,
            log_filter: None,
            lives: BTreeMap::from([
                (id(Role::Worker, 2), life),
                (id(Role::Broker, 1), LifeState { pid: 4712, ..life }),
            ]),
            view: View::next(&View::default(), [broker]),
        }
    }

    fn changed(change: impl FnOnce(&mut Value)) -> String {
        let mut json = serde_json::from_slice(&state().to_json()).unwrap();
        change(&mut json);
        let error = State::from_json(json.to_string().as_bytes()).unwrap_err();
        muster_daemon::exit::chain(&error)
    }

    #[test]
    fn what_is_written_is_read_again() {
        let parent = tempfile::tempdir().unwrap();
        let dir = RuntimeDir::create(&parent.path().join("run")).unwrap();
        assert_eq!(read(&dir.state_file()).unwrap(), None);
        let mut file = StateFile::new(dir.clone());
        file.write(state());
        assert_eq!(read(&dir.state_file()).unwrap(), Some(state()));
        let before_the_first_view = State {
            view: View::default(),
            brokers_before: Some(1),
            programs: Programs {
                default: None,
                others: BTreeMap::from([(
                    id(Role::Broker, 1),
                    Some(Named {
                        path: "/opt/one".into(),
                        device: 1,
                        inode: 2,
                    }),
                )]),
            },
            last_update: Some(pb::UpdateStatusResponse {
                state: "done".into(),
                moved: 7,
                ..pb::UpdateStatusResponse::default()
            }),
            log_filter: Some("debug".into()),
            ..state()
        };
        file.write(before_the_first_view.clone());
        let read = read(&dir.state_file()).unwrap();
        assert_eq!(read, Some(before_the_first_view));
    }

    #[test]
    fn a_state_that_makes_no_sense_is_refused_with_the_reason() {
        for (error, reason) in [
            (changed(|json| json["version"] = json!(2)), "version 2"),
            (
                changed(|json| json["control_version"] = json!(9)),
                "version 9 of the control",
            ),
            (changed(|json| json["surplus"] = json!(1)), "surplus"),
            (changed(|json| json["nodes"][0]["pid"] = json!(-1)), "-1"),
            (
                changed(|json| json["nodes"][0]["pid"] = json!(0)),
                "cannot be in a cluster",
            ),
            (
                changed(|json| json["nodes"][0]["slot"] = json!(257)),
                "worker-257",
            ),
            (
                changed(|json| json["nodes"][0]["role"] = json!("king")),
                "king",
            ),
            (
                changed(|json| json["nodes"][1] = json["nodes"][0].clone()),
                "worker-2 is in it twice",
            ),
            (
                changed(|json| json["view"]["owners"][7] = json!(3)),
                "owner of shard 7",
            ),
            (
                changed(|json| json["view"]["owners"] = json!([])),
                "0 owners",
            ),
            (changed(|json| json["incarnation"] = json!(1e30)), "1e+30"),
            (
                changed(|json| json["incarnation"] = json!(u64::MAX)),
                "above 9999999999999999",
            ),
        ] {
            assert!(error.contains(reason), "{error}");
        }
        for garbage in [
            "",
            "{",
            "null",
            "[]",
            "\u{0}",
            "{\"version\":1}",
            "{\"version\":\"1\"}",
        ] {
            assert!(State::from_json(garbage.as_bytes()).is_err(), "{garbage}");
        }
        let deep = "[".repeat(100_000);
        assert!(State::from_json(deep.as_bytes()).is_err());
    }

    #[test]
    fn what_is_no_file_or_endless_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.json");
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, 0o600.into()).unwrap();
        assert!(matches!(read(&path), Err(StateError::NoFile)));
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
        assert!(matches!(read(&path), Err(StateError::Read(_))));
        fs::remove_file(&path).unwrap();
        fs::File::create(&path)
            .unwrap()
            .set_len(STATE_BYTES_MAX + 1)
            .unwrap();
        assert!(matches!(read(&path), Err(StateError::TooLong)));
    }

    proptest::proptest! {
        #[test]
        fn no_file_makes_it_panic(bytes in proptest::collection::vec(0_u8..=255, 0..300)) {
            let _ = State::from_json(&bytes);
        }
    }
}

//! Which programs nodes run, and how that outlives an orchestrator.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::fs::{Access, access};
use tracing::warn;

use crate::{node::NodeId, spawn::OWN_PROGRAM};

/// What nodes run, as it is written down for the next orchestrator.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Programs {
    /// Absent: whatever the orchestrator itself runs.
    pub(crate) default: Option<PathBuf>,
    /// Slots that run something else.
    pub(crate) others: BTreeMap<NodeId, PathBuf>,
}

impl Programs {
    /// `own` is what the program of this orchestrator was called by whoever
    /// chose it; `default` and `nodes` are what is started.
    pub(crate) fn of<'a>(
        own: Option<&Path>,
        default: &Path,
        nodes: impl Iterator<Item = (NodeId, &'a Path)>,
    ) -> Self {
        let name = |program: &Path| match program == Path::new(OWN_PROGRAM) {
            true => own.map(PathBuf::from),
            false => Some(program.into()),
        };
        let default = name(default);
        let others = nodes.filter_map(|(id, program)| {
            let program = name(program);
            let is_other = program != default;
            is_other.then(|| (id, program.unwrap_or_else(|| OWN_PROGRAM.into())))
        });
        Self {
            others: others.collect(),
            default,
        }
    }

    /// What this orchestrator's own program is called, if somebody chose it.
    pub(crate) fn own(&self) -> Option<PathBuf> {
        self.default.clone().filter(|program| is_own(program))
    }

    /// What to start in new slots.
    pub(crate) fn of_new_slots(&self) -> Arc<Path> {
        self.default
            .as_deref()
            .map_or_else(|| Path::new(OWN_PROGRAM).into(), started)
    }

    /// What to start in this slot.
    pub(crate) fn of_slot(&self, id: NodeId) -> Arc<Path> {
        let other = self.others.get(&id);
        other.map_or_else(|| self.of_new_slots(), |program| started(program))
    }
}

/// What is executed for the program of this name. The program that runs here is
/// the same, even if another file has its name by now.
fn started(name: &Path) -> Arc<Path> {
    if name == Path::new(OWN_PROGRAM) || is_own(name) {
        return Path::new(OWN_PROGRAM).into();
    }
    if let Err(error) = access(name, Access::EXEC_OK) {
        warn!(
            program = %name.display(),
            %error,
            "The program that nodes were started with is gone: further ones run the \
             orchestrator's own."
        );
        return Path::new(OWN_PROGRAM).into();
    }
    name.into()
}

fn is_own(program: &Path) -> bool {
    let identity = |path: &Path| -> io::Result<_> {
        let metadata = fs::metadata(path)?;
        Ok((metadata.dev(), metadata.ino()))
    };
    match (identity(program), identity(Path::new(OWN_PROGRAM))) {
        (Ok(program), Ok(own)) => program == own,
        (Err(_), _) | (_, Err(_)) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::Role;

    const OTHER: &str = "/bin/sh";

    fn id(slot: u32) -> NodeId {
        let role = Role::Worker;
        NodeId { role, slot }
    }

    fn own() -> &'static Path {
        Path::new(OWN_PROGRAM)
    }

    #[test]
    fn nothing_is_written_down_of_nodes_that_run_what_the_orchestrator_runs() {
        let nodes = [(id(1), own()), (id(2), own())];
        let programs = Programs::of(None, own(), nodes.into_iter());
        assert_eq!(programs, <Programs as Default>::default());
        assert_eq!(&*programs.of_new_slots(), own());
        assert_eq!(&*programs.of_slot(id(1)), own());
        assert_eq!(programs.own(), None);
    }

    #[test]
    fn a_slot_that_runs_another_program_goes_on_with_it() {
        let nodes = [(id(1), Path::new(OTHER)), (id(2), own())];
        let programs = Programs::of(None, own(), nodes.into_iter());
        assert_eq!(&*programs.of_slot(id(1)), Path::new(OTHER));
        assert_eq!(&*programs.of_slot(id(2)), own());
        assert_eq!(&*programs.of_slot(id(3)), own());

        let nodes = [(id(1), Path::new(OTHER)), (id(2), own())];
        let programs = Programs::of(None, Path::new(OTHER), nodes.into_iter());
        assert_eq!(&*programs.of_slot(id(1)), Path::new(OTHER));
        assert_eq!(&*programs.of_slot(id(2)), own());
        assert_eq!(&*programs.of_slot(id(3)), Path::new(OTHER));
    }

    #[test]
    fn a_chosen_program_that_runs_here_is_started_as_this_one_and_keeps_its_name() {
        let chosen = std::env::current_exe().unwrap();
        let programs = Programs::of(Some(&chosen), own(), [(id(1), own())].into_iter());
        assert_eq!(programs.default.as_deref(), Some(&*chosen));
        assert!(programs.others.is_empty());
        assert_eq!(programs.own(), Some(chosen));
        assert_eq!(&*programs.of_new_slots(), own());
    }

    #[test]
    fn a_program_that_is_gone_is_replaced_by_the_orchestrators_own() {
        let programs = Programs {
            default: Some("/nonexistent/orchestrator".into()),
            others: BTreeMap::new(),
        };
        assert_eq!(&*programs.of_slot(id(1)), own());
        assert_eq!(programs.own(), None);
    }
}

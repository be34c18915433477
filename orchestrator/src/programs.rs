//! Which programs nodes run, and how that outlives an orchestrator.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    node::NodeId,
    program::{Named, Program},
};

/// What nodes run, as it is written down for the next orchestrator. `None` is
/// whatever the orchestrator itself runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Programs {
    /// In new slots.
    pub(crate) default: Option<Named>,
    /// In slots that run something else.
    pub(crate) others: BTreeMap<NodeId, Option<Named>>,
}

/// The same, to start processes from.
#[derive(Debug)]
pub(crate) struct Found {
    default: Arc<Program>,
    others: BTreeMap<NodeId, Arc<Program>>,
}

impl Programs {
    pub(crate) fn of<'a>(
        default: &Program,
        nodes: impl Iterator<Item = (NodeId, &'a Program)>,
    ) -> Self {
        let others = nodes.filter(|(_, program)| program.named() != default.named());
        Self {
            others: others
                .map(|(id, program)| (id, program.named().cloned()))
                .collect(),
            default: default.named().cloned(),
        }
    }

    /// Looks for them; `pids` are of processes that may run them.
    pub(crate) fn find(&self, pids: &[u32]) -> Found {
        let find = |named: Option<&Named>| -> Arc<Program> {
            let found = named.map(|named| Program::find(named, pids.iter().copied()));
            found.unwrap_or_else(Program::own).into()
        };
        // Slots that run the same program share it.
        let mut known: Vec<(&Option<Named>, Arc<Program>)> = Vec::new();
        let mut others = BTreeMap::new();
        for (id, named) in &self.others {
            let place = known.iter().position(|(other, _)| *other == named);
            let place = place.unwrap_or_else(|| {
                known.push((named, find(named.as_ref())));
                known.len() - 1
            });
            others.insert(*id, Arc::clone(&known[place].1));
        }
        Found {
            default: find(self.default.as_ref()),
            others,
        }
    }
}

impl Found {
    /// What to start in new slots.
    pub(crate) fn of_new_slots(&self) -> Arc<Program> {
        Arc::clone(&self.default)
    }

    /// What to start in this slot.
    pub(crate) fn of_slot(&self, id: NodeId) -> Arc<Program> {
        Arc::clone(self.others.get(&id).unwrap_or(&self.default))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::node::Role;

    fn id(slot: u32) -> NodeId {
        let role = Role::Worker;
        NodeId { role, slot }
    }

    #[test]
    fn nothing_is_written_down_of_nodes_that_run_what_the_orchestrator_runs() {
        let own = Program::own();
        let programs = Programs::of(&own, [(id(1), &own), (id(2), &own)].into_iter());
        assert_eq!(programs, Programs::default());
        let found = programs.find(&[]);
        assert_eq!(found.of_new_slots().named(), None);
        assert_eq!(found.of_slot(id(1)).named(), None);
    }

    #[test]
    fn a_slot_that_runs_another_program_goes_on_with_it() {
        let own = Program::own();
        let other = Program::open(Path::new("/bin/sh")).unwrap();
        let nodes = || [(id(1), &other), (id(2), &own), (id(3), &other)].into_iter();
        for default in [&own, &other] {
            let found = Programs::of(default, nodes()).find(&[]);
            assert_eq!(found.of_slot(id(1)).named(), other.named());
            assert_eq!(found.of_slot(id(2)).named(), None);
            assert_eq!(found.of_slot(id(3)).named(), other.named());
            assert_eq!(found.of_slot(id(4)).named(), default.named());
        }
        let found = Programs::of(&own, nodes()).find(&[]);
        assert!(Arc::ptr_eq(&found.of_slot(id(1)), &found.of_slot(id(3))));
    }
}

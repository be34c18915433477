//! When a node is started, restarted and ended: decisions, without doing any.

mod slot;

pub(crate) use slot::{Action, Event, Exit, Life, Phase, Slot};

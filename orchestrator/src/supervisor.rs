//! When a node is started, restarted and ended: decisions, without doing any.

mod slot;
mod turns;

pub(crate) use slot::{Action, Event, Exit, Patience, Phase, Slot};
pub(crate) use turns::{TURN_MAX, Turns};

//! When a node is started, restarted and ended: decisions, without doing any.

mod balance;
mod resize;
mod slot;
mod turns;
mod update;
mod update_brokers;

pub(crate) use balance::{Load, Move, even_out, share_out};
pub(crate) use resize::{Facts, Next, Resize};
pub(crate) use slot::{Action, Event, Exit, Life, Patience, Phase, Slot};
pub(crate) use turns::{TURN_MAX, Turns};
pub(crate) use update::{
    Earlier, Facts as UpdateFacts, Handed, Health, Next as UpdateNext, Plan, SlotFacts, Successor,
    Times, Update, Usual, judge, judge_moves,
};
pub(crate) use update_brokers::{BrokerUpdate, Filling, Next as BrokerNext};

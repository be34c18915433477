//! The protocol between a client and a Muster worker, which is SocketCluster's.
//!
//! Everything here is pure: no sockets, no clock, no randomness. State machines
//! are fed with bytes and with [`Millis`], and say what to do.
#![warn(missing_docs)]

pub mod answer;
mod call_id;
mod channel;
pub mod client;
pub mod close;
pub mod frame;
mod octets;
pub mod packet;
mod position;
pub mod session;
pub mod snapshot;
mod time;
pub mod token;

pub use call_id::CallId;
pub use channel::{CHANNEL_NAME_BYTES_MAX, ChannelName, ChannelNameError};
pub use position::{Position, PositionError};
pub use time::Millis;

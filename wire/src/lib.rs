//! The protocol between a client and a Muster worker, which is SocketCluster's.
//!
//! Everything here is pure: no sockets, no clock, no randomness. State machines
//! are fed with bytes and with [`Millis`], and say what to do.

mod channel;
pub mod client;
pub mod close;
pub mod frame;
pub mod packet;
mod time;

pub use channel::{CHANNEL_NAME_BYTES_MAX, ChannelName, ChannelNameError};
pub use time::Millis;

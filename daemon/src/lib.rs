//! How one Muster process is configured, watched and stopped. Knows no role.

pub mod bytesize;
pub mod config;
pub mod control;
pub mod node;

pub use bytesize::ByteSize;
pub use config::Config;
pub use node::NodeArgs;

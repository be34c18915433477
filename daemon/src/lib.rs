//! How one Muster process is configured, watched and stopped. Knows no role.

pub mod adoption;
pub mod auth_key;
pub mod backoff;
pub mod bytesize;
pub mod cadence;
pub mod clock;
pub mod config;
pub mod control;
pub mod descriptor;
pub mod descriptors;
pub mod exit;
pub mod grpc;
pub mod node;
pub mod notify;
pub mod quiet;
pub mod runtime_dir;
pub mod signals;
pub mod telemetry;

pub use bytesize::ByteSize;
pub use config::Config;
pub use node::NodeArgs;

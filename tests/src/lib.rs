//! What tests of whole clusters share: the harness, and a client that
//! shows every byte.

pub mod bare;
pub mod cluster;
pub mod eventually;
pub mod floor;
pub mod orchestrator;
pub mod raw;
pub mod status;
pub mod tokens;
pub mod tools;

pub use cluster::{Cluster, ClusterBuilder};
pub use eventually::{eventually, patience};
pub use raw::Raw;

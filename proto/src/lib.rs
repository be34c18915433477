//! What two Muster processes must agree on: the gRPC types of links and
//! control streams, how channels are sharded, and the view.

#![warn(missing_docs)]

mod assign;
mod history;
mod pauses;
mod shard;
mod view;

pub use assign::{assign, shards_per_broker_max};
pub use pauses::Pauses;
pub use shard::{SHARDS, ShardId, shard_of};
pub use view::{BrokerNode, View, ViewError};

/// Version of `link.proto` that this release speaks.
pub const LINK_VERSION: u32 = 1;
/// Version of `control.proto` that this release speaks.
pub const CONTROL_VERSION: u32 = 2;
/// Version of what two workers say to each other while connections go from one to
/// the other.
pub const HANDOVER_VERSION: u32 = 1;
/// Longest message of `control.proto`: a publication of the longest that can be
/// configured, and its envelope.
pub const CONTROL_MESSAGE_BYTES_MAX: usize = 65 << 20;
/// Most bytes of one `WorkerBatch` or `BrokerBatch`, unless it holds a single
/// frame.
pub const BATCH_BYTES_MAX: usize = 64 << 10;
/// Longest `Publish.producer`, in bytes.
pub const PRODUCER_BYTES_MAX: usize = 128;

/// Generated from `proto/muster/link.proto`, where the comments stand.
#[expect(
    missing_docs,
    unused_qualifications,
    clippy::too_many_lines,
    reason = "generated code"
)]
pub mod link {
    tonic::include_proto!("muster.link.v1");
}

/// Generated from `proto/muster/control.proto`, where the comments stand.
#[expect(
    missing_docs,
    unused_qualifications,
    clippy::too_many_lines,
    reason = "generated code"
)]
pub mod control {
    tonic::include_proto!("muster.control.v1");
}

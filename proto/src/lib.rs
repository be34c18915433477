//! What two Muster processes must agree on: the gRPC types of links and
//! control streams, how channels are sharded, and the view.

/// Generated from `proto/muster/link.proto`.
#[allow(missing_docs)]
pub mod link {
    tonic::include_proto!("muster.link.v1");
}
/// Generated from `proto/muster/control.proto`.
#[allow(missing_docs)]
pub mod control {
    tonic::include_proto!("muster.control.v1");
}

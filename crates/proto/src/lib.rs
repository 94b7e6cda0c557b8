//! The wire types of Tidelog's gRPC API, generated from `proto/` when this crate is built.
//!
//! [`v1`] is the public API: services `tidelog.v1.Topics`, `tidelog.v1.Log` and `tidelog.v1.Cluster` with their messages.
//! [`internal`] is what brokers keep in their metadata log, and what they say to and ask of each other. Byte fields are [`bytes::Bytes`], so a
//! received batch is a slice of the frame it came in.

pub mod codec;

/// The public API, package `tidelog.v1`.
#[allow(
    missing_docs,
    clippy::all,
    clippy::allow_attributes_without_reason,
    clippy::large_futures,
    unreachable_pub,
    unused_qualifications,
    reason = "generated from commented .proto files"
)]
pub mod v1 {
    tonic::include_proto!("tidelog.v1");
}

/// What brokers keep for themselves.
pub mod internal {
    /// The metadata log, package `tidelog.internal.v1`.
    #[allow(
        missing_docs,
        unreachable_pub,
        reason = "generated from commented .proto files"
    )]
    pub mod v1 {
        tonic::include_proto!("tidelog.internal.v1");
    }
}

/// The compiled descriptors of the public API, for gRPC reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = tonic::include_file_descriptor_set!("tidelog_descriptor");

/// The `domain` of every `google.rpc.ErrorInfo`.
pub const ERROR_DOMAIN: &str = "tidelog";

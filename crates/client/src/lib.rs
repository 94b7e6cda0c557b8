//! An async client of Tidelog's gRPC API: a producer, a reader, and administration of topics.
//!
//! * [`Client`] (`client.rs`) has the connections to the brokers of a cluster (`brokers.rs`) and knows
//!   who leads which partition (`leaders.rs`), cheap to clone. `calls.rs` asks what any broker
//!   answers, `split.rs` what only leaders do; on these stand the calls on topics and offsets
//!   (`admin.rs`, `describe.rs`, `offsets.rs`), on groups (`groups.rs`) and on the cluster (`cluster.rs`). `refresh.rs` asks anew who leads, in the
//!   background. `probe.rs` tells what listens where no broker answers.
//! * A record goes [`Producer::send`] (`producer/mod.rs`) → the open batch of its partition
//!   (`producer/accumulator.rs`) → the driver task, which builds batches and sends them over a
//!   `Produce` stream to the leader of the partition (`producer/driver.rs`, `producer/links.rs`) →
//!   its [`DeliveryFuture`] (`producer/delivery.rs`).
//! * A record comes from a `Read` stream ([`Reader`], `reader/mod.rs`, `reader/streams.rs`), whose
//!   batches are decoded here (`reader/decode.rs`); `reader/progress.rs` knows where to go on after
//!   a lost connection or when another broker leads.
//! * A [`Group`] (`groups.rs`) commits offsets and finds them again.
//! * Every error is a [`ClientError`] (`error.rs`), sorted by what the caller can do about it.
//!
//! How to use it is in [`guide`].
//!
//! # What is promised
//! With [`Acks::All`] a record whose future gives [`Delivered`] survives the loss of power. A record
//! whose future gives an error that [is of unknown outcome](ClientError::is_outcome_unknown) may or
//! may not be there. **A retry is stored once**: when a connection breaks, the producer cannot know
//! whether the batches in flight were stored, and sends them again under the numbers by which the
//! broker knows them ([`ProducerConfig::idempotence`]; not with other acks).
//!
//! Records that one task sends to one partition are stored in the order of the calls, retries
//! included.

mod addresses;
mod admin;
mod backoff;
mod brokers;
mod calls;
mod client;
mod clock;
mod cluster;
mod describe;
mod error;
mod groups;
#[doc = include_str!("../../../docs/client.md")]
pub mod guide {}
mod leaders;
mod offsets;
mod probe;
mod producer;
mod reader;
mod refresh;
mod split;

pub use addresses::{BrokerAddresses, BrokerAddressesError};
pub use admin::{AdminOptions, NewTopic};
pub use backoff::Backoff;
pub use client::{Client, ClientConfig};
pub use error::{BrokerError, ClientError, ErrorClass};
pub use groups::{CommitOptions, Committed, Group, NewCommit};
pub use offsets::ListedOffset;
pub use producer::{
    Acks, Delivered, DeliveryFuture, Producer, ProducerConfig, ProducerRecord, TopicFacts,
};
pub use reader::{ConsumedRecord, OffsetSpec, ReadRange, Reader, ReaderConfig, StartAt};
/// The messages of the API, as administration calls answer them.
pub use tidelog_proto::v1 as proto;
pub use tidelog_record::{Compression, Header, Offset, PartitionId, Timestamp, TopicName};

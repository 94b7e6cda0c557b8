//! The nouns of Tidelog and its record batch: build, view, validate, compress. Pure functions, no
//! I/O, no clock.
//!
//! The record batch is the unit of everything: of produce, append, replication and fetch. It is
//! Kafka's batch with magic 2, byte for byte ([`mod@format`]). A batch passes through here like this:
//!
//! * A producer makes one with [`BatchBuilder`] (`builder.rs`, `compression.rs`).
//! * A broker takes it through [`validate_produced`] (`produced.rs`), which checks framing, CRC and
//!   every record (`record.rs`) without making any, and gives a [`ProducedBatch`]. Stamping that
//!   with its base offset and leader epoch and writing its two parts copies only 61 header bytes.
//! * Recovery and replication walk stored bytes with [`check_batch`] and [`split_batches`]
//!   (`batch.rs`, `header.rs`), which check framing and CRC and look no deeper.
//! * A consumer opens a [`Batch`] with [`Batch::records`].
//! * Compaction makes of a batch one with fewer records, by [`retain_records`] (`retain.rs`).
//!
//! The numbers and names that all crates share are in `nouns.rs` and `names.rs`; which partition a
//! key belongs to is `partitioner.rs`.

mod attributes;
mod batch;
mod builder;
mod compression;
mod crc;
mod error;
#[doc = include_str!("../FORMAT.md")]
pub mod format {}
mod header;
mod limits;
mod names;
mod nouns;
mod partitioner;
mod produced;
mod record;
mod retain;
mod varint;

pub use attributes::{Attributes, Compression, TimestampType, UnknownCompression};
pub use batch::{Batch, Batches, check_batch, split_batches};
pub use builder::{BatchBuilder, BuildError};
pub use crc::crc32c;
pub use error::{BatchError, RecordFault};
pub use header::{BATCH_HEADER_LEN, BATCH_PREFIX_LEN, BatchHeader};
pub use limits::BatchLimits;
pub use names::{TopicName, TopicNameError};
pub use nouns::{LeaderEpoch, Offset, PartitionId, RaftIndex, Timestamp, TopicId};
pub use partitioner::{murmur2, partition_for_key};
pub use produced::{ProduceError, ProducedBatch, validate_produced};
pub use record::{Header, HeaderKey, Record, Records};
pub use retain::retain_records;

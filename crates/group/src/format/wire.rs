//! The types that Kafka's messages are made of: numbers, texts, bytes, arrays, tagged fields.
//!
//! A version of a message is either plain or flexible. Plain ones have lengths of fixed size, -1 for
//! null. Flexible ones have compact lengths, unsigned varints that are one more than the length and 0
//! for null, and tagged fields at the end of every structure. [`Reader`] (`reader.rs`) and [`Writer`]
//! (`writer.rs`) know which they are in, so that the messages need not.

mod reader;
mod writer;

pub(super) use reader::Reader;
pub(super) use writer::Writer;

/// The most bytes of a text, in plain and in flexible versions alike: Kafka reads no longer ones.
const STRING_LEN_MAX: usize = 0x7fff;
/// The most bytes, or elements of an array: what a signed length of 32 bits holds.
const LEN_MAX: usize = 0x7fff_ffff;
/// The most bytes of a varint of 32 bits.
const VARINT_LEN_MAX: u32 = 5;

/// What a partition can be.
const PARTITIONS: &str = "0 to 2^31 - 1";

//! Consumer groups and their committed offsets: a deterministic state machine without I/O, clock or
//! randomness.

pub mod format;
mod names;

pub use names::{GroupId, InstanceId, MemberId, NameError};

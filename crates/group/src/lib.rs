//! Consumer groups and their committed offsets: a deterministic state machine without I/O, clock or
//! randomness.

mod names;

pub use names::{GroupId, InstanceId, MemberId, NameError};

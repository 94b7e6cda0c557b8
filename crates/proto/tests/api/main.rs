//! The public API does not change under its clients.
//!
//! Two lists are committed in `golden/`: `tidelog.v1.api` names every field, enum value and method
//! of the package, `tidelog.v1.wire` has the bytes of every field of a filled value of each message.
//! A line that changes or vanishes fails the tests: clients in use speak what it says.
//!
//! After adding a field, a value, a message or a method, add the lines for it with
//!
//! ```sh
//! TIDELOG_BLESS=1 cargo test -p tidelog-proto
//! ```
//!
//! That only adds. To break the API on purpose, delete the lines in question by hand first.

#![allow(
    clippy::unwrap_used,
    reason = "a test program, which fails by panicking"
)]

mod descriptors;
mod golden;
mod values;
mod wire;

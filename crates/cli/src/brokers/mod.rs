//! Brokers in processes of their own, which are this same binary as `serve`: for `dev` and `demo`.
//!
//! `ports.rs` finds ports for them, `plan.rs` says how each is started, `process.rs` runs one, and
//! `together.rs` several that found a cluster.

pub(crate) mod plan;
pub(crate) mod ports;
pub(crate) mod process;
pub(crate) mod together;

//! The log over the simulated disk: what it must do, and what it must survive.

#![allow(clippy::unwrap_used, reason = "a test that meets an error fails there")]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "the numbers of these tests are small"
)]

mod astray;
mod basic;
mod catch_up;
mod common;
mod compaction;
mod damage;
mod failing;
mod faults;
mod model;
mod offline;
pub(crate) mod producers;
mod reads;
mod replica;
mod seeds;
mod state;
mod sync;
mod together;

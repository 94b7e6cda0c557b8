//! The producer, the reader and administration against a broker of a few lines that does as the
//! test tells it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall panic")]

mod admin;
mod fake;
mod idempotence;
mod leaders;
mod moving;
mod producer;
mod reader;

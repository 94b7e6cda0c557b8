//! The record batch from outside: golden bytes, the rules for producers, and arbitrary input, with
//! a second implementation of the format as the judge.
#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

mod golden;
mod produce;
mod properties;
mod retain;
mod support;

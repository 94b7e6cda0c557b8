//! What goes to stdout: tables for people, JSON for programs, records.

pub(crate) mod numbers;
pub(crate) mod record_json;
pub(crate) mod sink;
pub(crate) mod table;

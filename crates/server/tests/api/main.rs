//! The API as clients see it: a real server on a free port, real connections.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod append;
mod compaction;
mod fetch;
mod groups;
mod http;
mod http2;
mod limits;
mod produce;
mod producers;
mod read;
mod read_bounds;
mod stop;
mod storage;
mod support;
mod topics;

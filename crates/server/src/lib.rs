//! A broker's listeners and its process: gRPC, HTTP, configuration, start and stop.
//!
//! A listener translates its protocol into calls of [`tidelog_broker::Broker`] and nothing more.
//!
//! # How data flows
//!
//! `tidelog serve` resolves a [`Config`] (`config/`) and calls [`run`] (`process.rs`), which binds
//! the ports, opens the broker behind a [`Server`] (`opening.rs`, `server.rs`), says where it listens
//! (`ready.rs`), and stops it all in order when it is told to.
//!
//! A broker that has others (`cluster/`) asks them first to which cluster it belongs, and has links to them. Clients
//! that come meanwhile wait, or are told of it (`founding.rs`).
//!
//! A gRPC connection is accepted by `transport.rs`, which bounds what one may have in flight, and their
//! number (`connections.rs`); a call goes through `grpc/`. HTTP (metrics, health) is `http.rs`.
//!
//! Programs and tests that want a broker inside of themselves open a
//! [`Broker`](tidelog_broker::Broker) and give it to [`Server::start`].

mod accepting;
pub mod cluster;
pub mod config;
mod connections;
mod founding;
mod grpc;
mod http;
mod listen;
mod logging;
mod metrics;
mod opened;
mod opening;
mod paced;
mod process;
mod ready;
mod room;
mod server;
mod transport;

pub use config::{Config, ConfigError, Limits, LogFormat, ServeArgs};
pub use listen::{BindError, Listeners};
pub use opening::OpenError;
pub use process::{Exit, run};
pub use ready::Ready;
pub use server::{Server, ServerError};

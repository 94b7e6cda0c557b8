//! Logs: to stderr, so that stdout is for data. Where stderr cannot be written they are lost, and nothing
//! else is.

use std::io::{self, IsTerminal};

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::{Config, LogFormat};

/// Sends the events of the whole process to stderr from now on. Does nothing when a subscriber is
/// there already, as in a program that embeds the broker.
pub(crate) fn start(config: &Config) {
    let mut levels: Targets = config
        .log_level
        .parse()
        .expect("it was checked when it was read");
    // It warns of each connection that resets many streams, as fast as clients open some.
    if !config.log_level.contains("h2") {
        levels = levels.with_target("h2", LevelFilter::ERROR);
    }
    let registry = tracing_subscriber::registry().with(levels);
    let started = match config.log_format {
        LogFormat::Text => {
            let colours = io::stderr().is_terminal();
            registry
                .with(
                    fmt::layer()
                        .with_ansi(colours)
                        .log_internal_errors(false)
                        .with_writer(io::stderr),
                )
                .try_init()
        }
        LogFormat::Json => registry
            .with(
                fmt::layer()
                    .json()
                    .flatten_event(true)
                    .log_internal_errors(false)
                    .with_writer(io::stderr),
            )
            .try_init(),
    };
    if started.is_err() {
        tracing::debug!("another subscriber gets the logs");
    }
}

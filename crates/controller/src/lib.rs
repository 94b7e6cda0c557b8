//! Which topics there are, with how many partitions and which settings.
//!
//! A deterministic state machine without I/O, clock or randomness: a request is turned into a
//! [`Command`] or refused by the `decide_*` methods of [`Topics`] (`topics.rs`); the command goes
//! into the metadata log (`wire.rs` gives its bytes); once it is durable it is folded in with
//! [`Topics::apply`]. Replaying the log folds the same commands in the same order, so every start,
//! and later every broker, comes to the same topics.
//!
//! The settings a topic may have are in `settings.rs`, under Kafka's names.

mod settings;
mod topics;
mod wire;

pub use settings::{
    CleanupPolicy, EffectiveSetting, SettingError, SettingSpec, TimestampPolicy, TopicSettings,
    setting_specs,
};
pub use topics::{Command, NewTopic, PARTITIONS_MAX, ReplayError, Topic, TopicError, Topics};
pub use wire::CommandError;

//! What is decided for a cluster: which topics there are, which brokers, and which of them have which
//! partitions.
//!
//! A deterministic state machine without I/O, clock or randomness. Data flows in a circle:
//!
//! 1. A request is turned into a [`ClusterCommand`] or refused by a `decide_*` method of [`Cluster`]
//!    (`decide/`). Where new replicas go is in `place.rs`.
//! 2. The command goes into the metadata log (`wire/` gives its bytes); once it is committed it is folded
//!    in with [`Cluster::apply`] (`apply/`). Folding the log gives the same commands in the same order,
//!    so every start and every broker comes to the same [`Cluster`] (`cluster.rs`).
//! 3. The leader of the metadata group compares that with what it sees of the brokers and partitions
//!    ([`Observed`]), and [`plan`] (`plan/`) says what is to be done: more commands, and actions at the
//!    leaders of partitions, whose effect is seen in turn.
//!    What goes between brokers for that are [`Note`]s (`notes.rs`, `tell.rs`, `observe.rs`); what a leader makes
//!    of an [`Order`] is in `order.rs`. Who holds the metadata itself is
//!    planned by [`plan_metadata`] (`metadata.rs`).
//! 4. Now and then [`Cluster::snapshot`] puts the whole state into the log (`snapshot.rs`), which can then
//!    be trimmed below it.
//!
//! A broker that is alone folds [`Command`]s into [`Topics`] (`topics.rs`); its log is the beginning of
//! that of a cluster. The settings a topic may have are in `settings.rs`, under Kafka's names.

mod admission;
mod apply;
mod cluster;
mod command;
mod decide;
mod fold;
mod ids;
mod local;
mod metadata;
mod notes;
mod observe;
mod order;
mod place;
mod plan;
#[cfg(feature = "planted")]
mod planted;
mod settings;
mod snapshot;
mod tell;
#[cfg(test)]
mod tests;
mod topics;
mod wire;

pub use admission::{Admission, KnownOf};
pub use cluster::{
    Broker, Change, Cluster, LEVEL_MAX, PartitionKey, Phase, Placement, REPLICAS_MAX, Registration,
    TopicPlacement,
};
pub use command::{ClusterCommand, RecoveredPartition};
pub use decide::{
    BROKERS_MAX, BrokerError, Left, MoveError, PlaceError, PlannedMove, Recovery, Replication,
    Unusable,
};
pub use fold::Touched;
pub use ids::{ClusterId, DirectoryId, NodeId, ReplicaId, life_of, node_of, replica_of};
pub use local::{AtStart, Fate, Here, LocalBroker, Wanted};
pub use metadata::plan_metadata;
pub use notes::{Note, ReplicaFault, Resigning};
pub use order::{MembersChange, Ordered};
pub use plan::{Action, Observed, Order, PlanOptions, Report, Seen, Step, plan};
#[cfg(feature = "planted")]
pub use planted::Planted;
pub use settings::{
    CleanupPolicy, EffectiveSetting, SettingError, SettingSpec, TimestampPolicy, TopicSettings,
    setting_specs,
};
pub use tell::Teller;
pub use topics::{Command, NewTopic, PARTITIONS_MAX, ReplayError, Topic, TopicError, Topics};
pub use wire::CommandError;

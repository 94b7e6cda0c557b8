//! Which member of a group reads which partitions: a pure function of the members, of what they
//! subscribe to, of what each had before, and of the partitions there are.
//!
//! * `assignor.rs`: [`Assignor`], by which one is chosen, and what goes in and out;
//! * `index.rs`: members, topics and partitions by number, as all three work on them;
//! * `range.rs`, `round_robin.rs`: Kafka's assignors of these names, which look at nothing from before;
//! * `sticky.rs`: the default: balanced, and as little as possible moved; `emptiest.rs` says who
//!   has the fewest.
//!
//! All promise that each partition of a topic that has subscribers goes to exactly one of them, that
//! nothing else is assigned, and that the same input gives the same result at every broker.
//!
//! # Cost
//!
//! With `s` subscriptions (topics over all members) and `p` partitions, range and round-robin take
//! `O((s + p) log s)`, and so does sticky but for what its moves take, which is said in `sticky.rs`.

mod assignor;
mod emptiest;
mod index;
mod range;
mod round_robin;
mod sticky;
#[cfg(test)]
mod tests;

pub use assignor::{Assignment, Assignor, Subscription, TopicPartitions, UnknownAssignor};

//! That another broker has to be asked.

use std::time::Duration;

use thiserror::Error;
use tidelog_record::TopicName;

/// This broker does not lead a partition. Nothing was done.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("partition {partition} of topic {topic:?} is led by {}", leader_name(*.leader))]
pub struct NotLeader {
    /// The topic.
    pub topic: TopicName,
    /// The partition.
    pub partition: u32,
    /// The broker that leads it, if that is known.
    pub leader: Option<u32>,
    /// The newest leader epoch that is known.
    pub epoch: u32,
    /// Where that broker's gRPC is reached.
    pub address: Option<String>,
}

impl NotLeader {
    pub(super) fn facts(&self) -> Vec<(&'static str, String)> {
        let mut facts = vec![
            ("topic", self.topic.to_string()),
            ("partition", self.partition.to_string()),
            ("leader_epoch", self.epoch.to_string()),
        ];
        facts.extend(self.leader.map(|leader| ("leader", leader.to_string())));
        let address = self.address.clone();
        facts.extend(address.map(|address| ("leader_address", address)));
        facts
    }

    /// Soon: whoever leads is there, or is about to be elected.
    pub(super) fn retry_after(&self) -> Duration {
        let millis = if self.leader.is_some() { 5 } else { 50 };
        Duration::from_millis(millis)
    }
}

fn leader_name(leader: Option<u32>) -> String {
    leader.map_or("no broker that is known here".to_owned(), |leader| {
        format!("broker {leader}")
    })
}

//! That another broker has to be asked.

use std::time::Duration;

use thiserror::Error;
use tidelog_record::TopicName;

use crate::METADATA_TOPIC;

/// This broker does not lead a partition. Nothing was done.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{}", said(topic, *partition, *leader))]
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

fn said(topic: &TopicName, partition: u32, leader: Option<u32>) -> String {
    match leader {
        Some(leader) => {
            format!("partition {partition} of topic {topic:?} is led by broker {leader}")
        }
        // It was a change that was asked for, and no partition.
        None if topic.as_str() == METADATA_TOPIC => {
            "no broker is known to lead the metadata: nothing can be changed now".to_owned()
        }
        None => {
            format!("partition {partition} of topic {topic:?} has no leader that is known here")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_leads_is_said_or_that_nobody_does() {
        let said = |topic: &str, leader| {
            let error = NotLeader {
                topic: TopicName::new(topic).unwrap(),
                partition: 2,
                leader,
                epoch: 7,
                address: None,
            };
            error.to_string()
        };
        assert_eq!(
            said("t", Some(3)),
            "partition 2 of topic \"t\" is led by broker 3"
        );
        let nobody = "partition 2 of topic \"t\" has no leader that is known here";
        assert_eq!(said("t", None), nobody);
        assert!(said(METADATA_TOPIC, None).contains("nothing can be changed now"));
    }
}

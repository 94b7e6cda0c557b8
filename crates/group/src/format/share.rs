//! The values of share groups (KIP-932), whose members read the same partitions together. All have
//! version 0, which is flexible.

use tidelog_record::{PartitionId, Timestamp, TopicId};

use super::assignment::{read_partitions, write_partitions};
use super::consumer::{read_i64_tag_0, write_i64_tag_0};
use super::record::Value;
use super::wire::{Reader, Writer};
use super::{FormatError, MemberState, TopicPartitions};

/// A member of a share group, and what it subscribes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShareGroupMemberMetadata {
    /// In which rack it is, if it told.
    pub rack_id: Option<String>,
    /// What the client calls itself.
    pub client_id: String,
    /// Where it connected from.
    pub client_host: String,
    /// Names of the topics that it subscribes to.
    pub subscribed_topic_names: Vec<String>,
}

/// The epoch of a share group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShareGroupMetadata {
    /// Grows with every change of members, of what they subscribe to, or of those topics.
    pub epoch: i32,
    /// A hash of all topics that the group subscribes to.
    pub metadata_hash: i64,
}

/// For which epoch of a share group its target assignment is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShareGroupTargetAssignmentMetadata {
    /// The epoch of the group.
    pub assignment_epoch: i32,
    /// When the assignment was made; 0 where it is not known.
    pub assignment_timestamp: Timestamp,
}

/// What a member of a share group is to have in the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShareGroupTargetAssignmentMember {
    /// The partitions, by topic.
    pub topic_partitions: Vec<TopicPartitions>,
}

/// What a member of a share group has now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShareGroupCurrentMemberAssignment {
    /// The epoch that its next heartbeat is to have.
    pub member_epoch: i32,
    /// The epoch before, which a heartbeat can have where the answer with the new one was lost.
    pub previous_member_epoch: i32,
    /// How far it is.
    pub state: MemberState,
    /// What it has.
    pub assigned_partitions: Vec<TopicPartitions>,
}

/// For which partitions a share group has state: which records are delivered, and which acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShareGroupStatePartitionMetadata {
    /// Those whose state is being made.
    pub initializing_topics: Vec<ShareTopicPartitions>,
    /// Those that have it.
    pub initialized_topics: Vec<ShareTopicPartitions>,
    /// The topics whose state is being deleted.
    pub deleting_topics: Vec<ShareTopic>,
}

/// Partitions of a topic, which is given by its name too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShareTopicPartitions {
    /// The topic.
    pub topic_id: TopicId,
    /// Its name.
    pub topic_name: String,
    /// The partitions of it; each at most 2^31 - 1.
    pub partitions: Vec<PartitionId>,
}

/// A topic by id and name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShareTopic {
    /// The topic.
    pub topic_id: TopicId,
    /// Its name.
    pub topic_name: String,
}

const TOPIC_NAMES: &str = "subscribed_topic_names";

impl Value for ShareGroupMemberMetadata {
    fn read(r: &mut Reader<'_>, _version: i16) -> Result<Self, FormatError> {
        let value = Self {
            rack_id: r.nullable_string("rack_id")?,
            client_id: r.string("client_id")?,
            client_host: r.string("client_host")?,
            subscribed_topic_names: r.array(TOPIC_NAMES, |r| r.string(TOPIC_NAMES))?,
        };
        r.no_tagged_fields()?;
        Ok(value)
    }

    fn write(&self, w: &mut Writer) -> Result<(), FormatError> {
        w.nullable_string("rack_id", self.rack_id.as_deref())?;
        w.string("client_id", &self.client_id)?;
        w.string("client_host", &self.client_host)?;
        w.array(TOPIC_NAMES, &self.subscribed_topic_names, |w, name| {
            w.string(TOPIC_NAMES, name)
        })?;
        w.no_tagged_fields();
        Ok(())
    }
}

impl Value for ShareGroupMetadata {
    fn read(r: &mut Reader<'_>, _version: i16) -> Result<Self, FormatError> {
        let value = Self {
            epoch: r.i32("epoch")?,
            metadata_hash: r.i64("metadata_hash")?,
        };
        r.no_tagged_fields()?;
        Ok(value)
    }

    fn write(&self, w: &mut Writer) -> Result<(), FormatError> {
        w.i32(self.epoch);
        w.i64(self.metadata_hash);
        w.no_tagged_fields();
        Ok(())
    }
}

impl Value for ShareGroupTargetAssignmentMetadata {
    fn read(r: &mut Reader<'_>, _version: i16) -> Result<Self, FormatError> {
        let assignment_epoch = r.i32("assignment_epoch")?;
        let assigned_at = read_i64_tag_0(r, "assignment_timestamp")?;
        Ok(Self {
            assignment_epoch,
            assignment_timestamp: Timestamp::from_millis(assigned_at),
        })
    }

    fn write(&self, w: &mut Writer) -> Result<(), FormatError> {
        w.i32(self.assignment_epoch);
        write_i64_tag_0(
            w,
            "assignment_timestamp",
            self.assignment_timestamp.millis(),
        )
    }
}

impl Value for ShareGroupTargetAssignmentMember {
    fn read(r: &mut Reader<'_>, _version: i16) -> Result<Self, FormatError> {
        let topic_partitions = r.array("topic_partitions", TopicPartitions::read)?;
        r.no_tagged_fields()?;
        Ok(Self { topic_partitions })
    }

    fn write(&self, w: &mut Writer) -> Result<(), FormatError> {
        w.array("topic_partitions", &self.topic_partitions, |w, topic| {
            topic.write(w)
        })?;
        w.no_tagged_fields();
        Ok(())
    }
}

impl Value for ShareGroupCurrentMemberAssignment {
    fn read(r: &mut Reader<'_>, _version: i16) -> Result<Self, FormatError> {
        let value = Self {
            member_epoch: r.i32("member_epoch")?,
            previous_member_epoch: r.i32("previous_member_epoch")?,
            state: MemberState::read(r)?,
            assigned_partitions: r.array("assigned_partitions", TopicPartitions::read)?,
        };
        r.no_tagged_fields()?;
        Ok(value)
    }

    fn write(&self, w: &mut Writer) -> Result<(), FormatError> {
        w.i32(self.member_epoch);
        w.i32(self.previous_member_epoch);
        self.state.write(w);
        w.array(
            "assigned_partitions",
            &self.assigned_partitions,
            |w, topic| topic.write(w),
        )?;
        w.no_tagged_fields();
        Ok(())
    }
}

const INITIALIZING: &str = "initializing_topics";
const INITIALIZED: &str = "initialized_topics";
const DELETING: &str = "deleting_topics";

impl Value for ShareGroupStatePartitionMetadata {
    fn read(r: &mut Reader<'_>, _version: i16) -> Result<Self, FormatError> {
        let value = Self {
            initializing_topics: r.array(INITIALIZING, ShareTopicPartitions::read)?,
            initialized_topics: r.array(INITIALIZED, ShareTopicPartitions::read)?,
            deleting_topics: r.array(DELETING, ShareTopic::read)?,
        };
        r.no_tagged_fields()?;
        Ok(value)
    }

    fn write(&self, w: &mut Writer) -> Result<(), FormatError> {
        w.array(INITIALIZING, &self.initializing_topics, |w, topic| {
            topic.write(w)
        })?;
        w.array(INITIALIZED, &self.initialized_topics, |w, topic| {
            topic.write(w)
        })?;
        w.array(DELETING, &self.deleting_topics, |w, topic| topic.write(w))?;
        w.no_tagged_fields();
        Ok(())
    }
}

impl ShareTopicPartitions {
    fn read(r: &mut Reader<'_>) -> Result<Self, FormatError> {
        let topic = Self {
            topic_id: r.topic_id("topics.topic_id")?,
            topic_name: r.string("topics.topic_name")?,
            partitions: read_partitions(r)?,
        };
        r.no_tagged_fields()?;
        Ok(topic)
    }

    fn write(&self, w: &mut Writer) -> Result<(), FormatError> {
        w.topic_id(self.topic_id);
        w.string("topics.topic_name", &self.topic_name)?;
        write_partitions(w, &self.partitions)?;
        w.no_tagged_fields();
        Ok(())
    }
}

impl ShareTopic {
    fn read(r: &mut Reader<'_>) -> Result<Self, FormatError> {
        let topic = Self {
            topic_id: r.topic_id("topics.topic_id")?,
            topic_name: r.string("topics.topic_name")?,
        };
        r.no_tagged_fields()?;
        Ok(topic)
    }

    fn write(&self, w: &mut Writer) -> Result<(), FormatError> {
        w.topic_id(self.topic_id);
        w.string("topics.topic_name", &self.topic_name)?;
        w.no_tagged_fields();
        Ok(())
    }
}

//! The groups of one partition of `__consumer_offsets`: what is committed for them, and what is decided.

use std::collections::BTreeMap;
use std::ops::Bound;

use thiserror::Error;
use tidelog_record::{PartitionId, Timestamp, TopicId, TopicName};

use crate::error::{GroupError, OffsetError};
use crate::format::{Decoded, FormatError, GroupRecord, OffsetCommit, OffsetKey};
use crate::names::{GroupId, NameError};
use crate::offsets::{CommittedOffset, GroupOffset, Offsets};
use crate::request::{
    Answer, CommitOffsets, Committer, DeleteOffsets, FetchOffsets, GroupDescription, GroupKind,
    GroupSummary, NewOffset, PartitionOffset, Request,
};

/// The most bytes of metadata that are kept with an offset: Kafka's `offset.metadata.max.bytes`.
pub const METADATA_LEN_MAX: usize = 4096;
/// The most bytes that the records of one request take.
pub const REQUEST_LEN_MAX: usize = 4 << 20;
/// What an offset takes in the log beside its names and its metadata, at most.
const OFFSET_OVERHEAD: usize = 96;

/// What a coordinator goes by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupOptions {
    /// The most groups a coordinator takes.
    pub groups_max: usize,
    /// How long an offset is kept after it was committed, in milliseconds, in a group without members.
    pub offsets_retention_ms: u64,
}

impl Default for GroupOptions {
    fn default() -> Self {
        Self {
            groups_max: 100_000,
            offsets_retention_ms: 7 * 24 * 60 * 60 * 1000,
        }
    }
}

/// What time it is for a coordinator.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// By the wall clock, which may jump: what is written down has this time.
    pub wall: Timestamp,
    /// Milliseconds since some moment, by a clock that never jumps: waits go by it.
    pub monotonic_ms: u64,
}

/// A topic as a coordinator sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownTopic {
    /// What it is.
    pub id: TopicId,
    /// How many partitions it has.
    pub partitions: u32,
}

/// The topics that there are, as far as the broker of the coordinator knows.
pub trait KnownTopics {
    /// The topic of this name.
    fn topic(&self, name: &TopicName) -> Option<KnownTopic>;
}

/// Why a record of `__consumer_offsets` makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum FoldError {
    /// Its bytes do not follow the format.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// It is about a group that cannot be.
    #[error(transparent)]
    Group(#[from] NameError),
    /// It is about a topic that cannot be.
    #[error(transparent)]
    Topic(#[from] tidelog_record::TopicNameError),
}

#[derive(Debug, Default)]
struct Group {
    offsets: Offsets,
}

impl Group {
    fn kind(&self) -> GroupKind {
        GroupKind::Offsets
    }

    fn members(&self) -> usize {
        0
    }

    /// Whether nothing is left of it.
    fn is_gone(&self) -> bool {
        self.offsets.is_empty()
    }
}

/// The groups of one partition of `__consumer_offsets`, as its leader decides for them.
///
/// What is decided takes effect at once, and is to be written to the partition's log: nothing that was decided, or
/// answered after it, may be told to anybody before that is committed ([`Turns`](crate::Turns) sees to it). Where it
/// cannot be, the whole state is dropped, and folded anew from the log.
#[derive(Debug, Default)]
pub struct Coordinator {
    options: GroupOptions,
    groups: BTreeMap<GroupId, Group>,
    /// What was decided and was not taken yet.
    decided: Vec<GroupRecord>,
}

impl Coordinator {
    /// One without groups.
    pub fn new(options: GroupOptions) -> Self {
        Self {
            options,
            ..Self::default()
        }
    }

    /// Takes a record of the log in. The log's order counts; one that is compacted gives the same state.
    ///
    /// # Errors
    /// The record makes no sense. The state is as it was.
    pub fn fold(&mut self, key: &[u8], value: Option<&[u8]>) -> Result<(), FoldError> {
        match GroupRecord::decode(key, value)? {
            Decoded::Record(record) => self.apply(&record),
            // Of a newer version, or of another use of groups: not for this coordinator.
            Decoded::NotRead(_) | Decoded::Unknown { .. } => Ok(()),
        }
    }

    /// What was decided since this was called last, in its order, to be written at once or not at all.
    pub fn take_decided(&mut self) -> Vec<GroupRecord> {
        std::mem::take(&mut self.decided)
    }

    /// Decides on a request. `now` is what the clock of the coordinator says.
    pub fn decide(&mut self, request: Request, now: Now, topics: &dyn KnownTopics) -> Answer {
        let answer = match request {
            Request::Commit(commit) => self.commit(commit, now.wall, topics).map(Answer::Committed),
            Request::Committed(fetch) => Ok(Answer::Offsets(self.committed(&fetch))),
            Request::DeleteOffsets(delete) => self.delete_offsets(&delete).map(Answer::Deleted),
            Request::DeleteGroup(group) => self.delete_group(&group).map(|()| Answer::GroupDeleted),
            Request::List { after, max } => Ok(Answer::Groups(self.list(&after, max))),
            Request::Describe(group) => self.describe(&group).map(Answer::Group),
        };
        answer.unwrap_or_else(Answer::Refused)
    }

    /// What is in force of committed offsets, at most so many: by group, topic and partition.
    pub fn offsets(&self, max: usize) -> Vec<GroupOffset> {
        let all = self.groups.iter().flat_map(|(group, state)| {
            let offsets = state.offsets.iter();
            offsets.map(|(topic, partition, committed)| GroupOffset {
                group: group.clone(),
                topic: topic.clone(),
                partition,
                offset: committed.offset,
                topic_id: committed.topic_id,
            })
        });
        all.take(max).collect()
    }

    /// How many groups there are.
    pub fn groups(&self) -> usize {
        self.groups.len()
    }

    /// Forgets what was committed too long ago.
    pub fn expire(&mut self, now: Timestamp) {
        let retention = i64::try_from(self.options.offsets_retention_ms).unwrap_or(i64::MAX);
        let before = now.millis().saturating_sub(retention);
        let mut expired = Vec::new();
        for (id, group) in &self.groups {
            let old = group.offsets.iter();
            let old = old.filter(|(_, _, committed)| committed.committed_at.millis() < before);
            expired.extend(old.map(|(topic, partition, _)| tombstone(id, topic, partition)));
        }
        for record in expired {
            self.put(record);
        }
    }

    fn commit(
        &mut self,
        commit: CommitOffsets,
        now: Timestamp,
        topics: &dyn KnownTopics,
    ) -> Result<Vec<Result<(), OffsetError>>, GroupError> {
        let len: usize = commit.offsets.iter().map(|new| len_of(&commit, new)).sum();
        if len > REQUEST_LEN_MAX {
            let max = REQUEST_LEN_MAX;
            return Err(GroupError::TooLarge { len, max });
        }
        self.may_commit(&commit)?;
        let results = commit.offsets.iter().map(|new| {
            let id = self.check(&commit, new, topics)?;
            let value = OffsetCommit {
                offset: new.offset,
                leader_epoch: new.leader_epoch,
                metadata: new.metadata.clone(),
                commit_timestamp: now,
                expire_timestamp: None,
                topic_id: Some(id),
            };
            let key = key(&commit.group, &new.topic, new.partition);
            self.put(GroupRecord::OffsetCommit(key, Some(value)));
            Ok(())
        });
        Ok(results.collect())
    }

    /// Whether whoever commits may.
    fn may_commit(&self, commit: &CommitOffsets) -> Result<(), GroupError> {
        let group = self.groups.get(&commit.group);
        match &commit.committer {
            Committer::Alone => match group {
                None => self.check_room(),
                Some(group) if group.members() > 0 => Err(GroupError::MembersOnly {
                    group: commit.group.clone(),
                    members: group.members(),
                }),
                Some(_) => Ok(()),
            },
            Committer::Member { id, .. } => Err(GroupError::UnknownMember {
                group: commit.group.clone(),
                member: id.clone(),
            }),
        }
    }

    fn check_room(&self) -> Result<(), GroupError> {
        let max = self.options.groups_max;
        if self.groups.len() < max {
            Ok(())
        } else {
            Err(GroupError::TooManyGroups { max })
        }
    }

    /// Whether an offset may be committed; gives the id of its topic.
    fn check(
        &self,
        commit: &CommitOffsets,
        new: &NewOffset,
        topics: &dyn KnownTopics,
    ) -> Result<TopicId, OffsetError> {
        let topic = new.topic.clone();
        let Some(known) = topics.topic(&topic) else {
            return Err(OffsetError::TopicNotFound { topic });
        };
        if new.topic_id.is_some_and(|id| id != known.id) {
            return Err(OffsetError::TopicReplaced { topic });
        }
        if new.partition >= known.partitions {
            let (partition, partitions) = (new.partition, known.partitions);
            return Err(OffsetError::PartitionNotFound {
                topic,
                partition,
                partitions,
            });
        }
        if new.metadata.len() > METADATA_LEN_MAX {
            let (len, max) = (new.metadata.len(), METADATA_LEN_MAX);
            return Err(OffsetError::MetadataTooLong { len, max });
        }
        let offset = new.offset;
        if let Some(end) = new.end.filter(|end| offset > *end) {
            return Err(OffsetError::BeyondEnd { offset, end });
        }
        let group = self.groups.get(&commit.group);
        let committed = group.and_then(|group| group.offsets.get(topic.as_str(), new.partition));
        // What was committed for a topic that is gone does not bind one of the same name.
        let committed = committed.filter(|committed| committed.topic_id == Some(known.id));
        match committed.map(|committed| committed.offset) {
            Some(committed) if committed > offset && !commit.allow_backwards => {
                Err(OffsetError::Behind { offset, committed })
            }
            _ => Ok(known.id),
        }
    }

    fn committed(&self, fetch: &FetchOffsets) -> Vec<PartitionOffset> {
        let group = self.groups.get(&fetch.group);
        let Some(partitions) = &fetch.partitions else {
            return group.map_or(Vec::new(), all_offsets);
        };
        let asked = partitions.iter().map(|(topic, partition)| {
            let committed = group.and_then(|group| group.offsets.get(topic.as_str(), *partition));
            PartitionOffset {
                topic: topic.clone(),
                partition: *partition,
                committed: committed.cloned(),
            }
        });
        asked.collect()
    }

    fn delete_offsets(&mut self, delete: &DeleteOffsets) -> Result<Vec<bool>, GroupError> {
        self.without_members(&delete.group)?;
        let deleted = delete.partitions.iter().map(|(topic, partition)| {
            let group = self.groups.get(&delete.group);
            let committed = group.and_then(|group| group.offsets.get(topic.as_str(), *partition));
            let is_there = committed.is_some();
            if is_there {
                self.put(tombstone(&delete.group, topic, *partition));
            }
            is_there
        });
        Ok(deleted.collect())
    }

    fn delete_group(&mut self, id: &GroupId) -> Result<(), GroupError> {
        let group = self.without_members(id)?;
        let all = group.offsets.iter();
        let all: Vec<_> = all
            .map(|(topic, partition, _)| tombstone(id, topic, partition))
            .collect();
        for record in all {
            self.put(record);
        }
        Ok(())
    }

    /// The group, which exists and has no members.
    fn without_members(&self, id: &GroupId) -> Result<&Group, GroupError> {
        let group = self.group(id)?;
        match group.members() {
            0 => Ok(group),
            members => Err(GroupError::NotEmpty {
                group: id.clone(),
                members,
            }),
        }
    }

    fn group(&self, id: &GroupId) -> Result<&Group, GroupError> {
        let not_found = || GroupError::NotFound { group: id.clone() };
        self.groups.get(id).ok_or_else(not_found)
    }

    fn list(&self, after: &str, max: usize) -> Vec<GroupSummary> {
        let groups = self
            .groups
            .range::<str, _>((Bound::Excluded(after), Bound::Unbounded));
        let groups = groups.take(max);
        groups.map(|(id, group)| summary(id, group)).collect()
    }

    fn describe(&self, id: &GroupId) -> Result<GroupDescription, GroupError> {
        let group = self.group(id)?;
        Ok(GroupDescription {
            summary: summary(id, group),
            offsets: all_offsets(group),
        })
    }

    /// Decides on a record: it is in force, and to be written.
    fn put(&mut self, record: GroupRecord) {
        self.apply(&record)
            .expect("what is decided here makes sense: names and numbers were checked");
        self.decided.push(record);
    }

    fn apply(&mut self, record: &GroupRecord) -> Result<(), FoldError> {
        match record {
            GroupRecord::OffsetCommit(key, value) => self.apply_offset(key, value.as_ref()),
            // Of another use of the group.
            _ => Ok(()),
        }
    }

    fn apply_offset(
        &mut self,
        key: &OffsetKey,
        value: Option<&OffsetCommit>,
    ) -> Result<(), FoldError> {
        let id = GroupId::new(&key.group)?;
        let topic = TopicName::new(&key.topic)?;
        let partition = key.partition.get();
        match value {
            Some(value) => {
                let committed = committed_of(value);
                let group = self.groups.entry(id).or_default();
                group.offsets.set(topic, partition, committed);
            }
            None => {
                if let Some(group) = self.groups.get_mut(&id) {
                    group.offsets.remove(topic.as_str(), partition);
                    if group.is_gone() {
                        self.groups.remove(&id);
                    }
                }
            }
        }
        Ok(())
    }
}

fn key(group: &GroupId, topic: &TopicName, partition: u32) -> OffsetKey {
    OffsetKey {
        group: group.to_string(),
        topic: topic.to_string(),
        partition: PartitionId::new(partition),
    }
}

fn tombstone(group: &GroupId, topic: &TopicName, partition: u32) -> GroupRecord {
    GroupRecord::OffsetCommit(key(group, topic, partition), None)
}

/// What an offset takes in the log, at most.
fn len_of(commit: &CommitOffsets, new: &NewOffset) -> usize {
    let names = commit.group.as_str().len() + new.topic.as_str().len();
    names + new.metadata.len() + OFFSET_OVERHEAD
}

fn committed_of(value: &OffsetCommit) -> CommittedOffset {
    CommittedOffset {
        offset: value.offset,
        leader_epoch: value.leader_epoch,
        metadata: value.metadata.clone(),
        committed_at: value.commit_timestamp,
        topic_id: value.topic_id,
    }
}

fn summary(id: &GroupId, group: &Group) -> GroupSummary {
    GroupSummary {
        group: id.clone(),
        kind: group.kind(),
        members: group.members(),
        offsets: group.offsets.len(),
    }
}

fn all_offsets(group: &Group) -> Vec<PartitionOffset> {
    let all = group.offsets.iter();
    all.map(|(topic, partition, committed)| PartitionOffset {
        topic: topic.clone(),
        partition,
        committed: Some(committed.clone()),
    })
    .collect()
}

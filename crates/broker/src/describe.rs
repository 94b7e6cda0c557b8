//! What topics and partitions are, for whoever asks.

use std::collections::BTreeMap;

use tidelog_controller::{
    Cluster, EffectiveSetting, NodeId, PartitionKey, Placement, ReplicaId, Topic, node_of,
};
use tidelog_log::SegmentInfo;
use tidelog_record::{LeaderEpoch, Offset, Timestamp, TopicId, TopicName};

use crate::controller::METADATA_KEY;
use crate::error::TopicError;
use crate::metrics::PartitionNumbers;
use crate::partition::Partition;
use crate::{Broker, Inner, METADATA_TOPIC, METADATA_TOPIC_ID, Slot};

/// A topic in short.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicSummary {
    /// Its name.
    pub name: String,
    /// Its id.
    pub topic_id: TopicId,
    /// How many partitions it has.
    pub partitions: u32,
    /// What was set.
    pub settings: BTreeMap<String, String>,
    /// Whether it belongs to the cluster itself.
    pub internal: bool,
    /// How many replicas a new partition gets.
    pub replication_factor: u32,
}

/// A topic in full.
#[derive(Clone, Debug)]
pub struct TopicDescription {
    /// The topic in short.
    pub summary: TopicSummary,
    /// Every setting with the value in force.
    pub settings: Vec<EffectiveSetting>,
    /// Its partitions, from 0.
    pub partitions: Vec<PartitionDescription>,
}

/// A partition in full.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionDescription {
    /// Its number.
    pub partition: u32,
    /// The first readable offset.
    pub log_start: Offset,
    /// Everything below is acknowledged and readable.
    pub high_watermark: Offset,
    /// The next offset to be assigned.
    pub log_end: Offset,
    /// The leadership in force.
    pub leader_epoch: LeaderEpoch,
    /// Bytes of all segments, reserved space not counted.
    pub size_bytes: u64,
    /// How many segments there are.
    pub segment_count: usize,
    /// The segments, when they were asked for.
    pub segments: Vec<SegmentInfo>,
    /// Why it does not serve, all of it or only appends.
    pub fault: Option<String>,
    /// The broker that leads it, if that is known.
    pub leader: Option<NodeId>,
    /// The brokers that have it, the preferred leader first.
    pub replicas: Vec<NodeId>,
    /// Those of them that are caught up, as far as is known.
    pub in_sync: Vec<NodeId>,
    /// This broker has no replica: it knows neither offsets nor sizes.
    pub is_elsewhere: bool,
}

pub(crate) fn numbers(partition: &Partition, now: Timestamp) -> PartitionNumbers {
    let segments = partition.reader().segments();
    let settings = partition.settings();
    let dirty_bytes = settings.cleanup.compact.then(|| {
        let lag = settings.min_compaction_lag_ms;
        let end = partition.high_watermark();
        partition.reader().compactable(now, lag, end).dirty_bytes
    });
    PartitionNumbers {
        topic: partition.topic.to_string(),
        partition: partition.number(),
        log_start: partition.reader().log_start().get(),
        high_watermark: partition.high_watermark().get(),
        log_end: partition.reader().end_offset().get(),
        size_bytes: segments.iter().map(|segment| segment.len).sum(),
        segments: segments.len(),
        dirty_bytes,
        lag_entries: None,
        lag_ms: None,
    }
}

impl TopicSummary {
    pub(crate) fn of(topic: &Topic, replication_factor: u32) -> Self {
        Self {
            name: topic.name.to_string(),
            topic_id: topic.id,
            partitions: topic.partitions,
            settings: topic.settings.set().clone(),
            internal: topic.name.is_internal(),
            replication_factor,
        }
    }
}

impl Inner {
    pub(crate) fn summary(&self, cluster: &Cluster, topic: &Topic) -> TopicSummary {
        let placed = cluster.topic_placement(topic.id);
        TopicSummary::of(topic, placed.map_or(1, |placed| placed.replication_factor))
    }
}

fn metadata_summary(replicas: usize) -> TopicSummary {
    TopicSummary {
        name: METADATA_TOPIC.to_owned(),
        topic_id: METADATA_TOPIC_ID,
        partitions: 1,
        settings: BTreeMap::new(),
        internal: true,
        replication_factor: u32::try_from(replicas).unwrap_or(u32::MAX),
    }
}

impl Broker {
    /// All topics, by name, internal ones too.
    pub fn topics(&self) -> Vec<TopicSummary> {
        let cluster = self.inner.cluster.read();
        let topics = cluster.topics().iter();
        let mut topics: Vec<_> = topics
            .map(|topic| self.inner.summary(&cluster, topic))
            .collect();
        topics.push(metadata_summary(self.metadata_places().len()));
        topics.sort_by(|a, b| a.name.cmp(&b.name));
        topics
    }

    /// The brokers that vote on the metadata.
    pub(crate) fn metadata_places(&self) -> Vec<NodeId> {
        let report = self.inner.seen.report(METADATA_KEY);
        let voters = report.map_or(Vec::new(), |report| report.members.voters);
        if voters.is_empty() {
            return self.inner.config.founders.clone();
        }
        voters.into_iter().map(node_of).collect()
    }

    /// One topic in full.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn describe_topic(
        &self,
        name: &str,
        include_segments: bool,
    ) -> Result<TopicDescription, TopicError> {
        if name == METADATA_TOPIC {
            let metadata = self.inner.metadata.clone();
            let settings = metadata.settings().effective();
            let replicas = self.metadata_places();
            let voters = self.inner.seen.report(METADATA_KEY);
            let voters = voters.map_or(vec![metadata.replica], |report| report.members.voters);
            let place = Place::of(&self.inner, &metadata.topic, METADATA_KEY, &voters);
            let slot = Slot::Serving(metadata);
            return Ok(TopicDescription {
                summary: metadata_summary(replicas.len()),
                settings,
                partitions: vec![describe(0, &slot, include_segments, place)],
            });
        }
        let route = self.inner.routes.read().get(name).cloned();
        let route = route.ok_or_else(|| not_found(name))?;
        let id = route.topic.id;
        let (summary, placements): (_, Vec<Vec<ReplicaId>>) = {
            let cluster = self.inner.cluster.read();
            let placed = cluster.topic_placement(id);
            let placements = placed.map_or(Vec::new(), |placed| {
                let replicas = |placement: &Placement| placement.replicas.clone();
                placed.partitions.iter().map(replicas).collect()
            });
            (self.inner.summary(&cluster, &route.topic), placements)
        };
        let partitions = (0..).zip(&route.slots).map(|(number, slot)| {
            let key = PartitionKey {
                topic: id,
                partition: number,
            };
            let replicas = placements.get(number as usize).cloned().unwrap_or_default();
            let place = Place::of(&self.inner, &route.topic.name, key, &replicas);
            describe(number, slot, include_segments, place)
        });
        Ok(TopicDescription {
            summary,
            settings: route.topic.settings.effective(),
            partitions: partitions.collect(),
        })
    }
}

/// Where a partition is.
struct Place {
    leader: Option<NodeId>,
    replicas: Vec<NodeId>,
    in_sync: Vec<NodeId>,
}

impl Place {
    fn of(inner: &Inner, topic: &TopicName, key: PartitionKey, replicas: &[ReplicaId]) -> Self {
        let leader = inner.leader_of(topic, key).map(|(node, _)| node);
        Self {
            leader,
            replicas: replicas.iter().copied().map(node_of).collect(),
            in_sync: inner.in_sync(key, replicas),
        }
    }
}

fn not_found(name: &str) -> TopicError {
    let name = name.chars().take(TopicName::LEN_MAX).collect();
    tidelog_controller::TopicError::NotFound { name }.into()
}

fn describe(
    partition: u32,
    slot: &Slot,
    include_segments: bool,
    place: Place,
) -> PartitionDescription {
    let Place {
        leader,
        replicas,
        in_sync,
    } = place;
    match slot {
        Slot::Serving(serving) => {
            let segments = serving.reader().segments();
            PartitionDescription {
                partition,
                log_start: serving.reader().log_start(),
                high_watermark: serving.high_watermark(),
                log_end: serving.reader().end_offset(),
                leader_epoch: serving.leader_epoch(),
                size_bytes: segments.iter().map(|segment| segment.len).sum(),
                segment_count: segments.len(),
                segments: if include_segments {
                    segments
                } else {
                    Vec::new()
                },
                fault: serving.fault(),
                leader,
                replicas,
                in_sync,
                is_elsewhere: false,
            }
        }
        Slot::Faulted(_) | Slot::Unmade(_) | Slot::Elsewhere => PartitionDescription {
            partition,
            log_start: Offset::ZERO,
            high_watermark: Offset::ZERO,
            log_end: Offset::ZERO,
            leader_epoch: LeaderEpoch::ZERO,
            size_bytes: 0,
            segment_count: 0,
            segments: Vec::new(),
            fault: match slot {
                Slot::Faulted(fault) | Slot::Unmade(fault) => Some(fault.clone()),
                _ => None,
            },
            leader,
            replicas,
            in_sync,
            is_elsewhere: matches!(slot, Slot::Elsewhere),
        },
    }
}

//! What topics and partitions are, for whoever asks.

use std::collections::BTreeMap;

use tidelog_controller::{EffectiveSetting, Topic};
use tidelog_log::SegmentInfo;
use tidelog_record::{LeaderEpoch, Offset, Timestamp, TopicId};

use crate::error::TopicError;
use crate::metrics::PartitionNumbers;
use crate::partition::Partition;
use crate::{Broker, METADATA_TOPIC, METADATA_TOPIC_ID, Slot};

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
    }
}

pub(crate) fn summary(topic: &Topic) -> TopicSummary {
    TopicSummary {
        name: topic.name.to_string(),
        topic_id: topic.id,
        partitions: topic.partitions,
        settings: topic.settings.set().clone(),
        internal: topic.name.is_internal(),
    }
}

fn metadata_summary() -> TopicSummary {
    TopicSummary {
        name: METADATA_TOPIC.to_owned(),
        topic_id: METADATA_TOPIC_ID,
        partitions: 1,
        settings: BTreeMap::new(),
        internal: true,
    }
}

impl Broker {
    /// All topics, by name, internal ones too.
    pub fn topics(&self) -> Vec<TopicSummary> {
        let routes = self.inner.routes.read();
        let mut topics: Vec<_> = routes.values().map(|route| summary(&route.topic)).collect();
        drop(routes);
        topics.push(metadata_summary());
        topics.sort_by(|a, b| a.name.cmp(&b.name));
        topics
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
        let (summary, settings, slots) = if name == METADATA_TOPIC {
            let metadata = self.inner.metadata.clone();
            let settings = metadata.settings().effective();
            (metadata_summary(), settings, vec![Slot::Serving(metadata)])
        } else {
            let routes = self.inner.routes.read();
            let route = routes.get(name).cloned().ok_or_else(|| not_found(name))?;
            let settings = route.topic.settings.effective();
            (summary(&route.topic), settings, route.slots.clone())
        };
        let partitions = (0..)
            .zip(&slots)
            .map(|(n, slot)| describe(n, slot, include_segments));
        Ok(TopicDescription {
            summary,
            settings,
            partitions: partitions.collect(),
        })
    }
}

fn not_found(name: &str) -> TopicError {
    let name = name
        .chars()
        .take(tidelog_record::TopicName::LEN_MAX)
        .collect();
    tidelog_controller::TopicError::NotFound { name }.into()
}

fn describe(partition: u32, slot: &Slot, include_segments: bool) -> PartitionDescription {
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
            }
        }
        Slot::Faulted(fault) => PartitionDescription {
            partition,
            log_start: Offset::ZERO,
            high_watermark: Offset::ZERO,
            log_end: Offset::ZERO,
            leader_epoch: LeaderEpoch::ZERO,
            size_bytes: 0,
            segment_count: 0,
            segments: Vec::new(),
            fault: Some(fault.clone()),
        },
    }
}

//! How far each partition was read, so that a new stream goes on where the last one broke.

use tidelog_proto::v1;
use tidelog_record::{Offset, PartitionId};

use super::{OffsetSpec, ReadRange, ReaderConfig, StartAt};
use crate::ClientError;
use crate::admin::offset;

/// All partitions of a reader.
#[derive(Debug)]
pub(super) struct Progress {
    partitions: Vec<PartitionProgress>,
    /// Whether the broker answered the first time.
    is_started: bool,
}

/// One partition.
#[derive(Clone, Copy, Debug)]
pub(super) struct PartitionProgress {
    /// What was asked for.
    pub(super) wanted: StartAt,
    /// What the broker made of it at first; that holds for good.
    pub(super) range: Option<ReadRange>,
    /// The next offset to give out.
    pub(super) next: Offset,
    /// Whether nothing more will come.
    pub(super) is_over: bool,
}

impl Progress {
    pub(super) fn new(wanted: &[StartAt]) -> Self {
        let partitions = wanted
            .iter()
            .map(|&wanted| PartitionProgress {
                wanted,
                range: None,
                next: Offset::ZERO,
                is_over: false,
            })
            .collect();
        Self {
            partitions,
            is_started: false,
        }
    }

    /// The first request of a stream that goes on from here.
    pub(super) fn start(&self, config: &ReaderConfig) -> v1::ReadStart {
        let left = self
            .partitions
            .iter()
            .filter(|partition| !partition.is_over);
        v1::ReadStart {
            topic: config.topic.to_string(),
            partitions: left.map(PartitionProgress::start).collect(),
            from: Some(config.from.into()),
            to: config.to.map(Into::into),
            follow: config.follow,
            credit_bytes: config.credit_bytes,
            credit_is_limited: true,
            format: v1::Format::Batches.into(),
            message_bytes: config.message_bytes,
        }
    }

    /// The broker told the ranges. What cannot be read is not among them and told on its own.
    pub(super) fn started(&mut self, started: &v1::ReadStarted) -> Result<(), ClientError> {
        self.is_started = true;
        for range in &started.partitions {
            let partition = self.partition(range.partition)?;
            if partition.range.is_some() {
                continue;
            }
            let range = ReadRange {
                partition: PartitionId::new(range.partition),
                from: offset(range.from)?,
                to: range.to.map(offset).transpose()?,
                high_watermark: offset(range.high_watermark)?,
                log_start_offset: offset(range.log_start_offset)?,
            };
            partition.range = Some(range);
            partition.advance(range.from);
        }
        Ok(())
    }

    /// Whether the broker told the ranges.
    pub(super) fn is_started(&self) -> bool {
        self.is_started
    }

    /// The ranges as they were told at first, without partitions that cannot be read.
    pub(super) fn ranges(&self) -> Vec<ReadRange> {
        self.partitions
            .iter()
            .filter_map(|partition| partition.range)
            .collect()
    }

    /// One partition.
    pub(super) fn partition(&mut self, number: u32) -> Result<&mut PartitionProgress, ClientError> {
        let wanted = PartitionId::new(number);
        self.partitions
            .iter_mut()
            .find(|partition| partition.wanted.partition == wanted)
            .ok_or_else(|| ClientError::Protocol {
                what: format!("an answer for partition {number}, which was not asked for"),
            })
    }

    /// Whether nothing more will come from any partition.
    pub(super) fn is_over(&self) -> bool {
        self.partitions.iter().all(|partition| partition.is_over)
    }
}

impl PartitionProgress {
    fn start(&self) -> v1::ReadPartition {
        let (from, to) = match self.range {
            None => (self.wanted.from, self.wanted.to),
            // Offsets, not what was asked for: times and counts from the end mean something else by now.
            Some(range) => (
                Some(OffsetSpec::Offset(self.next)),
                range.to.map(OffsetSpec::Offset),
            ),
        };
        v1::ReadPartition {
            partition: self.wanted.partition.get(),
            from: from.map(Into::into),
            to: to.map(Into::into),
        }
    }

    /// Where it ends, if it does and that is known.
    pub(super) fn to(&self) -> Option<Offset> {
        self.range.and_then(|range| range.to)
    }

    /// Everything below `next` was given out or holds nothing for us.
    pub(super) fn advance(&mut self, next: Offset) {
        self.next = self.next.max(next);
        if self.to().is_some_and(|to| self.next >= to) {
            self.is_over = true;
        }
    }
}

//! How far each partition was read, so that a new stream goes on where the last one broke.

use std::collections::HashMap;
use std::time::Duration;

use tidelog_proto::v1;
use tidelog_record::{Offset, PartitionId};
use tokio::time::Instant;

use super::stream::StreamId;
use super::{OffsetSpec, ReadRange, ReaderConfig, StartAt};
use crate::ClientError;
use crate::offsets::offset;

/// All partitions of a reader.
#[derive(Debug)]
pub(super) struct Progress {
    partitions: Vec<PartitionProgress>,
    /// Where each is, by its number.
    places: HashMap<u32, usize>,
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
    /// Whether nothing more will come from a broker.
    pub(super) is_over: bool,
    /// Whether it was ended over damaged data: what still comes is not wanted.
    pub(super) is_damaged: bool,
    /// Over which stream it is read; `None`: one is to be opened.
    pub(super) stream: Option<StreamId>,
    /// Not to be read again before.
    pub(super) not_before: Option<Instant>,
    /// Whether a broker said that it is no replica that can be read from.
    pub(super) needs_leader: bool,
    trouble: Option<Trouble>,
}

/// A partition that gets no further.
#[derive(Clone, Copy, Debug)]
struct Trouble {
    since: Instant,
    retries: u32,
}

impl Progress {
    pub(super) fn new(wanted: &[StartAt]) -> Self {
        let partitions: Vec<_> = wanted
            .iter()
            .map(|&wanted| PartitionProgress {
                wanted,
                range: None,
                next: Offset::ZERO,
                is_over: false,
                is_damaged: false,
                stream: None,
                not_before: None,
                needs_leader: false,
                trouble: None,
            })
            .collect();
        let mut places = HashMap::new();
        for (place, wanted) in wanted.iter().enumerate() {
            places.entry(wanted.partition.get()).or_insert(place);
        }
        Self { partitions, places }
    }

    /// The first request of a stream that goes on from here with the partitions at these places,
    /// which are its own from now on.
    pub(super) fn start(
        &mut self,
        config: &ReaderConfig,
        places: &[usize],
        credit_bytes: u64,
        stream: StreamId,
    ) -> v1::ReadStart {
        let mut partitions = Vec::new();
        for &place in places {
            let partition = &mut self.partitions[place];
            partition.stream = Some(stream);
            partition.not_before = None;
            partitions.push(partition.start());
        }
        v1::ReadStart {
            topic: config.topic.to_string(),
            partitions,
            from: Some(config.from.into()),
            to: config.to.map(Into::into),
            follow: config.follow,
            credit_bytes,
            credit_is_limited: true,
            format: v1::Format::Batches.into(),
            message_bytes: config.message_bytes,
            read_replica: config.read_replica,
        }
    }

    /// Partitions that are to be read, but are not, with their places.
    pub(super) fn without_stream(&self) -> impl Iterator<Item = (usize, &PartitionProgress)> {
        let all = self.partitions.iter().enumerate();
        all.filter(|(_, partition)| partition.stream.is_none() && !partition.is_over)
    }

    /// When the first of these is to be read; `now` if it is at once.
    pub(super) fn due_at(&self, now: Instant) -> Option<Instant> {
        let due = self.without_stream();
        due.map(|(_, partition)| partition.not_before.unwrap_or(now))
            .min()
    }

    /// Until when partitions wait to be read again.
    pub(super) fn waits(&mut self) -> impl Iterator<Item = &mut Instant> {
        let waiting = self.partitions.iter_mut();
        waiting
            .filter(|partition| partition.stream.is_none() && !partition.is_over)
            .filter_map(|partition| partition.not_before.as_mut())
    }

    /// The partitions that are read over a stream.
    pub(super) fn of_stream(
        &mut self,
        stream: StreamId,
    ) -> impl Iterator<Item = &mut PartitionProgress> {
        let all = self.partitions.iter_mut();
        all.filter(move |partition| partition.stream == Some(stream) && !partition.is_over)
    }

    /// The broker told the ranges. What cannot be read is not among them and told on its own.
    pub(super) fn started(&mut self, started: &v1::ReadStarted) -> Result<(), ClientError> {
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

    /// Whether of each partition its range is known, or that it cannot be read.
    pub(super) fn is_started(&self) -> bool {
        let mut all = self.partitions.iter();
        all.all(|partition| partition.range.is_some() || partition.is_over)
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
        let place = self.places.get(&number);
        let partition = place.and_then(|&place| self.partitions.get_mut(place));
        partition.ok_or_else(|| ClientError::Protocol {
            what: format!("an answer for partition {number}, which was not asked for"),
        })
    }

    /// Whether nothing more will come from any partition.
    pub(super) fn is_over(&self) -> bool {
        self.partitions.iter().all(|partition| partition.is_over)
    }
}

impl PartitionProgress {
    /// It got further, or at least is alive.
    pub(super) fn is_well(&mut self) {
        self.trouble = None;
    }

    /// It is not read any more. Gives how often that happened without anything in between, and since
    /// when.
    pub(super) fn in_trouble(&mut self, now: Instant) -> (u32, Duration) {
        self.stream = None;
        let trouble = self.trouble.get_or_insert(Trouble {
            since: now,
            retries: 0,
        });
        trouble.retries = trouble.retries.saturating_add(1);
        (trouble.retries, now - trouble.since)
    }

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

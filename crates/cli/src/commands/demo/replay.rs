//! Reading the events back.

use std::time::Duration;

use tidelog_client::{Client, ConsumedRecord, ReadRange, Reader, ReaderConfig};
use tokio::time::Instant;

use super::events::EVENTS_COUNT;
use super::expect;
use crate::failure::Failure;

/// What a reader gave.
#[derive(Debug)]
pub(super) struct Replay {
    ranges: Vec<ReadRange>,
    pub(super) records: Vec<ConsumedRecord>,
    pub(super) elapsed: Duration,
}

impl Replay {
    pub(super) async fn read(client: &Client, config: ReaderConfig) -> Result<Self, Failure> {
        let began_at = Instant::now();
        let mut reader = Reader::open(client.clone(), config).await?;
        let ranges = reader.ranges();
        let mut records = Vec::new();
        while let Some(record) = reader.next().await {
            records.push(record?);
            if records.len() > 2 * EVENTS_COUNT {
                return Err(Failure::failed("more events come back than were stored"));
            }
        }
        Ok(Self {
            ranges,
            records,
            elapsed: began_at.elapsed(),
        })
    }

    pub(super) fn by_partition(&self) -> Vec<usize> {
        let in_partition = |partition| {
            self.records
                .iter()
                .filter(|r| r.partition == partition)
                .count()
        };
        self.ranges
            .iter()
            .map(|range| in_partition(range.partition))
            .collect()
    }

    /// Offsets of each partition count up from 0 without a gap.
    pub(super) fn check_dense(&self) -> Result<(), Failure> {
        for range in &self.ranges {
            let of_partition = self
                .records
                .iter()
                .filter(|r| r.partition == range.partition);
            for (expected, record) in (0..).zip(of_partition) {
                let partition = range.partition;
                expect(
                    &format!("the next offset of partition {partition}"),
                    &record.offset.get(),
                    &expected,
                )?;
            }
        }
        Ok(())
    }

    /// The records by partition and offset: those of different partitions come mixed.
    pub(super) fn sorted(mut self) -> Vec<ConsumedRecord> {
        self.records
            .sort_by_key(|record| (record.partition.get(), record.offset));
        self.records
    }
}

/// Compares what a replica has with what was read before, record by record: offset, key, value,
/// timestamp and headers.
pub(super) fn compare(
    whose: &str,
    found: &[ConsumedRecord],
    wanted: &[ConsumedRecord],
) -> Result<(), Failure> {
    for (found, wanted) in found.iter().zip(wanted) {
        if found != wanted {
            let (partition, offset) = (wanted.partition, wanted.offset);
            return Err(Failure::failed(format!(
                "{whose} has another record at offset {offset} of partition {partition}"
            )));
        }
    }
    expect(&format!("records of {whose}"), &found.len(), &wanted.len())
}

#[cfg(test)]
mod tests {
    use tidelog_client::{Offset, PartitionId, Timestamp};

    use super::*;

    #[test]
    fn replicas_are_the_same_only_if_every_record_is() {
        let record = |offset, value: &'static str| ConsumedRecord {
            partition: PartitionId::new(0),
            offset: Offset::new(offset).unwrap(),
            timestamp: Timestamp::from_millis(5),
            key: Some("k".into()),
            value: Some(value.into()),
            headers: Vec::new(),
        };
        let wanted = [record(0, "a"), record(1, "b")];
        assert_eq!(compare("it", &wanted, &wanted), Ok(()));
        assert!(compare("it", &wanted[..1], &wanted).is_err());
        assert!(compare("it", &wanted, &wanted[..1]).is_err());
        let other = [record(0, "a"), record(1, "c")];
        let failure = compare("broker 2", &other, &wanted).unwrap_err();
        assert_eq!(
            failure.message,
            "broker 2 has another record at offset 1 of partition 0"
        );
        let mut later = wanted.clone();
        later[0].timestamp = Timestamp::from_millis(6);
        assert!(compare("it", &later, &wanted).is_err());
    }
}

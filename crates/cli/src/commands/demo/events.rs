//! The earthquakes that the demo streams, and what must come back.

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroU32;

use tidelog_client::{ConsumedRecord, ProducerRecord, Timestamp, TopicName};
use tidelog_record::partition_for_key;

use crate::failure::Failure;
use crate::fields::Wanted;

/// One week of real events; `data/README.md` names their source.
const EVENTS: &[u8] = include_bytes!("../../../data/earthquakes.ndjson");

/// How many there are.
pub(super) const EVENTS_COUNT: usize = 1707;
/// How many keys they have.
pub(super) const KEYS_COUNT: usize = 12;
/// Partitions of the topic.
pub(super) const PARTITIONS: u32 = 6;
/// Where murmur2 puts the keys: one partition stays empty.
pub(super) const DISTRIBUTION: [usize; 6] = [630, 173, 348, 63, 493, 0];
/// 2018-02-04T00:00:00Z.
pub(super) const SINCE: Timestamp = Timestamp::from_millis(1_517_702_400_000);
/// How many events are at or after it.
pub(super) const SINCE_COUNT: usize = 777;

/// One event, as a line.
#[derive(Clone, Copy, Debug)]
pub(super) struct Event {
    line: &'static [u8],
    time: Timestamp,
}

/// All events in the order of the file, and the same by key.
#[derive(Debug)]
pub(super) struct Events {
    all: Vec<(Vec<u8>, Event)>,
}

impl Events {
    pub(super) fn read() -> Result<Self, Failure> {
        let wanted = Wanted {
            key: Some("network".to_owned()),
            timestamp: Some("time".to_owned()),
        };
        let lines = EVENTS
            .split(|&byte| byte == b'\n')
            .filter(|line| !line.is_empty());
        let all = lines
            .map(|line| {
                let picked = wanted
                    .pick(line)
                    .map_err(|error| Failure::failed(format!("the built-in events: {error}")))?;
                let missing = || Failure::failed("a built-in event has no key or time");
                let key = picked.key.ok_or_else(missing)?;
                let time = picked.timestamp.ok_or_else(missing)?;
                Ok((key, Event { line, time }))
            })
            .collect::<Result<_, Failure>>()?;
        Ok(Self { all })
    }

    /// The records to send.
    pub(super) fn records<'a>(
        &'a self,
        topic: &'a TopicName,
    ) -> impl ExactSizeIterator<Item = ProducerRecord> + 'a {
        self.all.iter().map(|(key, event)| {
            ProducerRecord::new(topic.clone())
                .key(key.clone())
                .value(event.line)
                .timestamp(event.time)
        })
    }

    /// How many of them there must be in each partition.
    pub(super) fn distribution(&self) -> Vec<usize> {
        let partitions = NonZeroU32::new(PARTITIONS).expect("it is not zero");
        let mut counts = vec![0; DISTRIBUTION.len()];
        for (key, _) in &self.all {
            let partition = partition_for_key(key, partitions);
            counts[usize::try_from(partition.get()).expect("there are six")] += 1;
        }
        counts
    }

    /// Checks that `records` are exactly the events at or after `since`, each once, unchanged, and
    /// those of each key in their order.
    pub(super) fn check(
        &self,
        records: &[ConsumedRecord],
        since: Timestamp,
    ) -> Result<(), Failure> {
        let mut wanted: BTreeMap<&[u8], Vec<Event>> = BTreeMap::new();
        for (key, event) in self.all.iter().filter(|(_, event)| event.time >= since) {
            wanted.entry(key).or_default().push(*event);
        }
        let mut found: HashMap<&[u8], Vec<&ConsumedRecord>> = HashMap::new();
        for record in records {
            let key = record
                .key
                .as_deref()
                .ok_or_else(|| wrong(record, "has no key"))?;
            found.entry(key).or_default().push(record);
        }
        for (key, events) in &wanted {
            let name = String::from_utf8_lossy(key);
            let records = found.remove(key).unwrap_or_default();
            if records.len() != events.len() {
                return Err(Failure::failed(format!(
                    "of key {name} there are {} records, but {} events were stored",
                    records.len(),
                    events.len()
                )));
            }
            for (record, event) in records.into_iter().zip(events) {
                if record.value.as_deref() != Some(event.line) {
                    return Err(wrong(
                        record,
                        &format!("is not the next event of key {name}"),
                    ));
                }
                if record.timestamp != event.time {
                    return Err(wrong(record, "has not the time of its event"));
                }
            }
        }
        match found.values().next().and_then(|records| records.first()) {
            Some(record) => Err(wrong(record, "has a key that no event has")),
            None => Ok(()),
        }
    }
}

fn wrong(record: &ConsumedRecord, what: &str) -> Failure {
    let (partition, offset) = (record.partition, record.offset);
    Failure::failed(format!(
        "the record at offset {offset} of partition {partition} {what}"
    ))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use tidelog_client::{Offset, PartitionId};

    use super::*;

    fn consumed(events: &Events) -> Vec<ConsumedRecord> {
        let topic = TopicName::new("t").unwrap();
        let records = events.records(&topic).map(|record| ConsumedRecord {
            partition: PartitionId::new(0),
            offset: Offset::ZERO,
            timestamp: record.timestamp.unwrap(),
            key: record.key,
            value: record.value,
            headers: Vec::new(),
        });
        records.collect()
    }

    #[test]
    fn the_file_is_what_the_demo_says() {
        let events = Events::read().unwrap();
        assert_eq!(events.all.len(), EVENTS_COUNT);
        let keys: BTreeSet<_> = events.all.iter().map(|(key, _)| key).collect();
        assert_eq!(keys.len(), KEYS_COUNT);
        assert_eq!(events.distribution(), DISTRIBUTION);
        let since = events.all.iter().filter(|(_, event)| event.time >= SINCE);
        assert_eq!(since.count(), SINCE_COUNT);
        let lines: BTreeSet<_> = events.all.iter().map(|(_, event)| event.line).collect();
        assert_eq!(lines.len(), EVENTS_COUNT, "no two are the same");
        assert!(events.all.is_sorted_by_key(|(_, event)| event.time));
    }

    #[test]
    fn only_all_of_them_pass() {
        let events = Events::read().unwrap();
        let all = consumed(&events);
        let everything = Timestamp::MIN;
        assert_eq!(events.check(&all, everything), Ok(()));

        let mut fewer = all.clone();
        fewer.remove(100);
        assert!(events.check(&fewer, everything).is_err());
        let mut more = all.clone();
        more.push(all[100].clone());
        assert!(events.check(&more, everything).is_err());
        let mut other = all.clone();
        other[100] = other[101].clone();
        assert!(events.check(&other, everything).is_err());
        let mut changed = all.clone();
        changed[5].timestamp = Timestamp::from_millis(0);
        assert!(events.check(&changed, everything).is_err());
        let mut unordered = all.clone();
        let key = all[0].key.clone();
        let second = all
            .iter()
            .skip(1)
            .position(|record| record.key == key)
            .unwrap()
            + 1;
        unordered.swap(0, second);
        assert!(events.check(&unordered, everything).is_err());
        let mut foreign = all.clone();
        foreign.push(ConsumedRecord {
            key: Some("zz".into()),
            ..all[0].clone()
        });
        assert!(events.check(&foreign, everything).is_err());

        let late: Vec<_> = all
            .iter()
            .filter(|r| r.timestamp >= SINCE)
            .cloned()
            .collect();
        assert_eq!(late.len(), SINCE_COUNT);
        assert_eq!(events.check(&late, SINCE), Ok(()));
        assert!(events.check(&all, SINCE).is_err());
    }
}

//! What must hold of a log, whatever happened to it.

use bytes::Bytes;
use tidelog_log::{INITIAL_EPOCH, INITIAL_INDEX};
use tidelog_record::{LeaderEpoch, Offset};

use super::{Entry, World};
use crate::common::*;

impl World {
    /// The batches from the one that holds `from` on.
    pub(super) fn expected_batches(&self, from: u64) -> Vec<Bytes> {
        self.entries
            .iter()
            .filter_map(|entry| match entry {
                Entry::Batch {
                    bytes, base, times, ..
                } => (base + times.len() as u64 > from).then(|| bytes.clone()),
                _ => None,
            })
            .collect()
    }

    pub(super) fn check_all(&mut self) {
        let reader = self.log().reader();
        let end = self.log().end();
        assert_eq!(end.offset.get(), self.next_offset(), "offsets are dense");
        let log_start = self.entries.iter().fold(0, |start, entry| match entry {
            Entry::LogStart(to) => *to,
            _ => start,
        });
        assert_eq!(
            (reader.log_start().get(), end.log_start.get()),
            (log_start, log_start)
        );
        self.check_reads();
        let first = reader.segments()[0].base_offset.get();
        self.senders().check(self.log(), first);

        // Epochs, as far back as there are records.
        let mut epoch = INITIAL_EPOCH.get();
        let mut starts = Vec::new();
        for (n, entry) in self.entries.iter().enumerate() {
            match entry {
                Entry::Epoch {
                    epoch: began,
                    offset,
                } => {
                    epoch = *began;
                    starts.push((epoch, *offset, INITIAL_INDEX.get() + 1 + n as u64));
                }
                Entry::Batch {
                    base, epoch: wrote, ..
                } => {
                    assert_eq!(*wrote, epoch);
                    if *base >= first {
                        let known = reader.epoch_at(offset(*base));
                        assert_eq!(known.map_or(INITIAL_EPOCH.get(), LeaderEpoch::get), epoch);
                    }
                }
                Entry::LogStart(_) => {}
            }
        }
        assert_eq!(end.epoch.get(), epoch);
        for known in reader.epochs() {
            let known = (known.epoch.get(), known.offset.get(), known.index.get());
            // The first one may stand for one that began in a segment that is gone.
            let is_first = reader.epochs()[0].epoch.get() == known.0;
            assert!(
                starts.contains(&known) || is_first,
                "{known:?} of {starts:?}"
            );
        }
        self.check_times();
    }

    pub(super) fn check_reads(&mut self) {
        let reader = self.log().reader();
        let start = reader.log_start();
        let durable = reader.durable_offset().get();
        let all = read_all(&reader, start).unwrap();
        let mut expected = self.expected_batches(start.get());
        let beyond = self.expected_batches(durable).len();
        expected.truncate(expected.len() - beyond);
        assert!(
            bytes_of(&all) == expected,
            "{} batches, not {}",
            all.len(),
            expected.len()
        );
    }

    pub(super) fn check_times(&mut self) {
        let reader = self.log().reader();
        let start = reader.log_start().get();
        let durable = reader.durable_offset().get();
        let times: Vec<(u64, i64)> = self
            .entries
            .iter()
            .filter_map(|entry| match entry {
                Entry::Batch { base, times, .. } => Some((*base..).zip(times.clone())),
                _ => None,
            })
            .flatten()
            .filter(|(at, _)| (start..durable).contains(at))
            .collect();
        for _ in 0..8 {
            let wanted = i64::try_from(self.rng.below(self.now.unsigned_abs() + 120)).unwrap() - 60;
            let expected = times.iter().find(|(_, time)| *time >= wanted);
            let expected = expected.map(|(n, time)| (offset(*n), at(*time)));
            let found = reader.find_timestamp(at(wanted), offset(durable)).unwrap();
            assert_eq!(found, expected, "time {wanted}");
        }
    }

    pub(super) fn read_somewhere(&mut self) {
        let reader = self.log().reader();
        let (start, durable) = (reader.log_start().get(), reader.durable_offset().get());
        if start >= durable {
            return;
        }
        let from = start + self.rng.below(durable - start);
        let bytes_max = self.rng.index(3000);
        let (got, _) = read(&reader, offset(from), offset(durable), bytes_max).unwrap();
        let expected = self.expected_batches(from).concat();
        let bytes = got.parts.concat();
        assert!(!bytes.is_empty() && expected.starts_with(&bytes));
        assert!(got.next_offset > offset(from) && got.next_offset <= offset(durable));
        let rest = self.expected_batches(got.next_offset.get()).concat();
        assert_eq!(bytes.len() + rest.len(), expected.len(), "whole batches");
        let first = self.expected_batches(from)[0].len();
        assert!(bytes.len() <= bytes_max.max(first));
        assert!(reader.end_offset() >= Offset::ZERO);
        self.check_times();
    }
}

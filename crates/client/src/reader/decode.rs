//! Taking records out of the batches of one message.

use bytes::Bytes;
use tidelog_record::{
    Batch, BatchError, BatchLimits, Batches, Offset, PartitionId, Records, split_batches,
};

use super::ConsumedRecord;

/// The records of one message that lie within the wanted range, decoded a batch at a time.
#[derive(Debug)]
pub(super) struct Decoder {
    partition: PartitionId,
    limits: BatchLimits,
    batches: Batches,
    current: Option<(Offset, Records)>,
    /// Records below were given out already, or are not wanted.
    from: Offset,
    /// Records from here on are not wanted.
    to: Option<Offset>,
}

impl Decoder {
    pub(super) fn new(
        partition: PartitionId,
        bytes: Bytes,
        limits: BatchLimits,
        from: Offset,
        to: Option<Offset>,
    ) -> Self {
        let batches = split_batches(bytes, limits.batch_bytes_max);
        Self {
            partition,
            limits,
            batches,
            current: None,
            from,
            to,
        }
    }

    /// The next record.
    pub(super) fn next(&mut self) -> Option<Result<ConsumedRecord, BatchError>> {
        loop {
            if let Some((base_offset, records)) = &mut self.current {
                match records.next() {
                    Some(Ok(record)) => {
                        // Past the largest offset nothing can be: it is not wanted either.
                        let Some(offset) = record.offset(*base_offset) else {
                            continue;
                        };
                        if offset < self.from || self.to.is_some_and(|to| offset >= to) {
                            continue;
                        }
                        return Some(Ok(ConsumedRecord {
                            partition: self.partition,
                            offset,
                            timestamp: record.timestamp,
                            key: record.key,
                            value: record.value,
                            headers: record.headers,
                        }));
                    }
                    Some(Err(error)) => return Some(Err(error)),
                    None => self.current = None,
                }
            }
            match self.batches.next()? {
                Ok(batch) => match self.open(&batch) {
                    Ok(opened) => self.current = opened,
                    Err(error) => return Some(Err(error)),
                },
                Err(error) => return Some(Err(error)),
            }
        }
    }

    /// The records of a batch that may have wanted ones.
    fn open(&self, batch: &Batch) -> Result<Option<(Offset, Records)>, BatchError> {
        let header = batch.header();
        // What brokers keep for themselves is not for applications.
        if header.attributes.is_control() {
            return Ok(None);
        }
        let Some(base) = Offset::from_wire(header.base_offset) else {
            return Ok(None);
        };
        let last = u64::try_from(header.last_offset_delta)
            .ok()
            .and_then(|d| base.checked_add(d));
        let is_before = last.is_none_or(|last| last < self.from);
        let is_behind = self.to.is_some_and(|to| base >= to);
        if is_before || is_behind {
            return Ok(None);
        }
        Ok(Some((base, batch.records(&self.limits)?)))
    }
}

#[cfg(test)]
mod tests {
    use tidelog_record::{BatchBuilder, Compression, Timestamp};

    use super::*;

    fn batch(base: u64, count: u32, compression: Compression) -> Vec<u8> {
        let mut builder = BatchBuilder::new(compression);
        for index in 0..count {
            let value = (base + u64::from(index)).to_string();
            let time = Timestamp::from_millis(i64::from(index));
            builder
                .push(time, None, Some(value.as_bytes()), &[("h", None)])
                .unwrap();
        }
        let mut bytes = builder.build().unwrap().to_vec();
        // The base offset lies before what the CRC covers: brokers stamp it.
        bytes[..8].copy_from_slice(&base.to_be_bytes());
        bytes
    }

    fn decode(bytes: Vec<u8>, from: u64, to: Option<u64>) -> Vec<Result<u64, BatchError>> {
        let mut decoder = Decoder::new(
            PartitionId::new(0),
            Bytes::from(bytes),
            BatchLimits::default(),
            Offset::new(from).unwrap(),
            to.and_then(Offset::new),
        );
        std::iter::from_fn(|| decoder.next())
            .map(|record| {
                let record = record?;
                let value = record.value.expect("there is one");
                assert_eq!(value, record.offset.to_string());
                assert_eq!(record.headers.len(), 1);
                Ok(record.offset.get())
            })
            .collect()
    }

    #[test]
    fn only_the_wanted_range_comes_out() {
        for compression in Compression::ALL {
            let mut bytes = batch(10, 5, compression);
            bytes.extend(batch(15, 5, compression));
            bytes.extend(batch(20, 5, compression));
            let offsets: Vec<_> = (12..22).map(Ok).collect();
            assert_eq!(decode(bytes.clone(), 12, Some(22)), offsets);
            assert_eq!(decode(bytes.clone(), 0, None).len(), 15);
            assert_eq!(decode(bytes, 25, None), []);
        }
    }

    #[test]
    fn damage_is_told_once() {
        let mut bytes = batch(0, 2, Compression::None);
        let mut damaged = batch(2, 2, Compression::None);
        let last = damaged.len() - 1;
        damaged[last] ^= 1;
        bytes.extend(damaged);
        let decoded = decode(bytes, 0, None);
        assert_eq!(decoded.len(), 3);
        assert!(
            matches!(decoded[2], Err(BatchError::WrongCrc { .. })),
            "{decoded:?}"
        );
    }
}

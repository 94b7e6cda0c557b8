//! Decodes batches into records, a bounded part at a time.

use std::collections::VecDeque;

use bytes::Bytes;
use prost::Message;
use tidelog_broker::ReadError;
use tidelog_proto::v1;
use tidelog_record::{Batch, BatchError, BatchLimits, Compression, Offset, Records, split_batches};

use super::convert::stored_record;
use crate::opened::{OpenedBatch, OpenedBatches, SMALL};

/// Compressed batches above this many bytes are decompressed on a thread that may be busy.
const DECOMPRESS_INLINE_MAX: usize = 1024;

/// What a field costs beside its bytes: its number and its length.
const FIELD_OVERHEAD: usize = 4;
/// After how many bytes of decoded records others get their turn on the thread.
const TURN_BYTES: usize = 64 * 1024;

/// Records `from..end` of some batches, in order. Holds the decompressed form of one batch at a
/// time, counted in [`OpenedBatches`]. The records given out share its memory if it is [`SMALL`],
/// and are copied out of it otherwise, so that they keep alive what they take and no more.
pub(super) struct RecordCursor {
    /// Parts not begun.
    parts: VecDeque<Bytes>,
    /// Batches of the part that was begun.
    batches: tidelog_record::Batches,
    /// The batch that was begun.
    begun: Option<Begun>,
    /// A record that did not fit.
    held: Option<v1::Record>,
    next: Offset,
    end: Offset,
    opened: OpenedBatches,
}

struct Begun {
    base: Offset,
    batch: Batch,
    /// `None` when its memory was wanted for another.
    records: Option<Open>,
}

struct Open {
    records: Records,
    is_small: bool,
    _room: Option<OpenedBatch>,
}

/// Some of the records of a [`RecordCursor`].
pub(super) struct Taken {
    pub(super) records: Vec<v1::Record>,
    /// What they take in an answer, in bytes.
    pub(super) len_bytes: usize,
    /// What they take in memory, in bytes.
    pub(super) memory_bytes: usize,
    /// The offset after the last of them.
    pub(super) next_offset: Offset,
    /// Whether these were the last.
    pub(super) is_last: bool,
}

impl RecordCursor {
    /// Records of `parts` with offsets in `from..end`. `end` is also where reading goes on.
    pub(super) fn new(parts: Vec<Bytes>, from: Offset, end: Offset, opened: OpenedBatches) -> Self {
        Self {
            parts: parts.into(),
            batches: split_batches(Bytes::new(), 0),
            begun: None,
            held: None,
            next: from,
            end,
            opened,
        }
    }

    /// Whether it holds memory that others may want.
    pub(super) fn is_large(&self) -> bool {
        let open = self.begun.as_ref().and_then(|begun| begun.records.as_ref());
        open.is_some_and(|open| !open.is_small)
    }

    /// Lets go of the memory of a decompressed batch. The next [`RecordCursor::take`] decompresses
    /// it again.
    pub(super) fn close(&mut self) {
        if let Some(begun) = &mut self.begun {
            begun.records = None;
        }
    }

    /// The next records, about `bytes_max` of them but at least one, if there are any. What they
    /// take in memory counts where that is more than in an answer: many empty headers.
    pub(super) async fn take(&mut self, bytes_max: usize) -> Result<Taken, ReadError> {
        let mut records = Vec::new();
        let (mut len_bytes, mut memory_bytes) = (0, 0);
        while let Some(record) = self.next_record().await.map_err(damaged)? {
            let len = record.encoded_len() + FIELD_OVERHEAD;
            let memory = memory_bytes + len + decoded_overhead(&record);
            if !records.is_empty() && (len_bytes + len > bytes_max || memory > bytes_max.max(SMALL))
            {
                self.held = Some(record);
                let next_offset = self.next;
                return Ok(Taken {
                    records,
                    len_bytes,
                    memory_bytes,
                    next_offset,
                    is_last: false,
                });
            }
            if memory / TURN_BYTES > memory_bytes / TURN_BYTES {
                tokio::task::yield_now().await;
            }
            len_bytes += len;
            memory_bytes = memory;
            // Offsets are below `Offset::MAX`, since the one after a batch's last was assigned.
            self.next = Offset::new(record.offset + 1).unwrap_or(Offset::MAX);
            records.push(record);
        }
        self.next = self.next.max(self.end);
        Ok(Taken {
            records,
            len_bytes,
            memory_bytes,
            next_offset: self.end,
            is_last: true,
        })
    }

    async fn next_record(&mut self) -> Result<Option<v1::Record>, BatchError> {
        if let Some(held) = self.held.take() {
            return Ok(Some(held));
        }
        loop {
            if let Some(begun) = &mut self.begun {
                if begun.records.is_none() {
                    begun.records = Some(open(begun.batch.clone(), &self.opened).await?);
                }
                let open = begun.records.as_mut().expect("it was opened");
                for record in &mut open.records {
                    let record = record?;
                    let Some(offset) = record.offset(begun.base) else {
                        continue;
                    };
                    if offset >= self.end {
                        return Ok(None);
                    }
                    if offset >= self.next {
                        let mut record = stored_record(offset, record);
                        if !open.is_small {
                            copy_out(&mut record);
                        }
                        return Ok(Some(record));
                    }
                }
                self.begun = None;
            }
            let Some(batch) = self.next_batch().transpose()? else {
                return Ok(None);
            };
            let base = Offset::from_wire(batch.header().base_offset);
            let base = base.filter(|base| *base < self.end);
            let Some(base) = base else {
                return Ok(None);
            };
            self.begun = Some(Begun {
                base,
                batch,
                records: None,
            });
        }
    }

    fn next_batch(&mut self) -> Option<Result<Batch, BatchError>> {
        loop {
            if let Some(batch) = self.batches.next() {
                return Some(batch);
            }
            let part = self.parts.pop_front()?;
            self.batches = split_batches(part, tidelog_log::BATCH_BYTES_LIMIT);
        }
    }
}

async fn open(batch: Batch, opened: &OpenedBatches) -> Result<Open, BatchError> {
    let limits = BatchLimits {
        batch_bytes_max: tidelog_log::BATCH_BYTES_LIMIT,
        ..BatchLimits::default()
    };
    // Plain records are slices of what was read.
    if batch.header().attributes.compression()? == Compression::None {
        return Ok(Open {
            records: batch.records(&limits)?,
            is_small: true,
            _room: None,
        });
    }
    let mut room = opened.reserve(limits.decompressed_bytes_max).await;
    let records = if batch.bytes().len() <= DECOMPRESS_INLINE_MAX {
        batch.records(&limits)?
    } else {
        tokio::task::spawn_blocking(move || batch.records(&limits))
            .await
            .expect("decoding does not panic, and is not cancelled")?
    };
    room.shrink(records.len_bytes());
    Ok(Open {
        is_small: records.len_bytes() <= SMALL,
        records,
        _room: Some(room),
    })
}

/// What a record takes in memory beside its bytes.
fn decoded_overhead(record: &v1::Record) -> usize {
    size_of::<v1::Record>() + record.headers.len() * size_of::<v1::Header>()
}

/// Gives the record memory of its own.
fn copy_out(record: &mut v1::Record) {
    let headers = record.headers.iter_mut().map(|header| &mut header.value);
    let fields = [&mut record.key, &mut record.value].into_iter();
    for bytes in fields.chain(headers).flatten() {
        *bytes = Bytes::copy_from_slice(bytes);
    }
}

/// Stored batches were checked when they came in: one that cannot be decoded was damaged since.
fn damaged(error: BatchError) -> ReadError {
    ReadError::Damaged(error.to_string())
}

#[cfg(test)]
mod tests {
    use tidelog_record::{BatchBuilder, BatchHeader, Timestamp};

    use super::*;

    fn batch(base: u64, count: u64, compression: Compression) -> Bytes {
        let mut builder = BatchBuilder::new(compression);
        for i in base..base + count {
            let value = format!("value {i} {}", "x".repeat(100));
            let at = Timestamp::from_millis(i64::try_from(i).unwrap());
            builder
                .push(at, None, Some(value.as_bytes()), &[("h", None)])
                .unwrap();
        }
        let bytes = builder.build().unwrap();
        let mut header = BatchHeader::decode(&bytes, bytes.len()).unwrap();
        header.base_offset = i64::try_from(base).unwrap();
        let mut stamped = header.encode().to_vec();
        stamped.extend_from_slice(&bytes[stamped.len()..]);
        Bytes::from(stamped)
    }

    fn offset(value: u64) -> Offset {
        Offset::new(value).unwrap()
    }

    fn opened() -> OpenedBatches {
        OpenedBatches::new()
    }

    #[tokio::test]
    async fn a_large_batch_can_be_closed_between_two_parts() {
        let mut builder = BatchBuilder::new(Compression::Zstd);
        let value = vec![7; 100_000];
        for _ in 0..30 {
            builder
                .push(Timestamp::from_millis(1), None, Some(&value), &[])
                .unwrap();
        }
        let large = builder.build().unwrap();
        let parts = vec![large, batch(30, 2, Compression::Gzip)];
        let mut cursor = RecordCursor::new(parts, offset(0), offset(32), opened());
        let mut offsets = Vec::new();
        loop {
            let taken = cursor.take(250_000).await.unwrap();
            offsets.extend(taken.records.iter().map(|record| record.offset));
            if taken.is_last {
                break;
            }
            assert_eq!(cursor.is_large(), taken.next_offset < offset(30));
            cursor.close();
            assert!(!cursor.is_large());
        }
        assert_eq!(offsets, (0..32).collect::<Vec<_>>());
    }

    async fn all(mut cursor: RecordCursor, bytes_max: usize) -> (Vec<u64>, usize) {
        let (mut offsets, mut takes) = (Vec::new(), 0);
        loop {
            let taken = cursor.take(bytes_max).await.unwrap();
            takes += 1;
            if let Some(last) = taken.records.last()
                && !taken.is_last
            {
                assert_eq!(taken.next_offset, offset(last.offset + 1));
                assert!(taken.records.len() == 1 || taken.len_bytes <= bytes_max);
            }
            offsets.extend(taken.records.iter().map(|record| record.offset));
            if taken.is_last {
                return (offsets, takes);
            }
        }
    }

    #[tokio::test]
    async fn gives_exactly_the_range_in_parts() {
        for compression in Compression::ALL {
            let parts = || {
                let back_to_back = [batch(0, 10, compression), batch(10, 200, compression)];
                vec![
                    Bytes::from(back_to_back.concat()),
                    batch(210, 5, compression),
                ]
            };
            let cursor = RecordCursor::new(parts(), offset(7), offset(213), opened());
            let (offsets, takes) = all(cursor, 1000).await;
            assert_eq!(offsets, (7..213).collect::<Vec<_>>());
            assert!(takes > 20, "{takes}");

            let cursor = RecordCursor::new(parts(), offset(0), offset(215), opened());
            assert_eq!(all(cursor, 1).await, ((0..215).collect(), 215));
            let cursor = RecordCursor::new(parts(), offset(0), offset(215), opened());
            assert_eq!(all(cursor, usize::MAX).await, ((0..215).collect(), 1));
            let cursor = RecordCursor::new(parts(), offset(100), offset(100), opened());
            assert_eq!(all(cursor, 1000).await.0, Vec::<u64>::new());
        }
    }

    #[tokio::test]
    async fn a_damaged_batch_is_told() {
        let mut bytes = batch(0, 3, Compression::None).to_vec();
        *bytes.last_mut().unwrap() ^= 1;
        let mut cursor =
            RecordCursor::new(vec![Bytes::from(bytes)], offset(0), offset(3), opened());
        assert!(matches!(
            cursor.take(1000).await,
            Err(ReadError::Damaged(_))
        ));
    }
}

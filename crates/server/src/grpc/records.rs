//! Decodes batches into records, a bounded part at a time.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
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
/// How much small records may take in memory, however little they are in an answer.
const MEMORY_LEAST: usize = 1024 * 1024;
/// Small fields are copied into pieces of memory of this size.
const PIECE: usize = 64 * 1024;
/// After how many bytes of decoded records others get their turn on the thread.
const TURN_BYTES: usize = 64 * 1024;

/// Records `from..end` of some batches, in order. Holds the decompressed form of one batch at a
/// time, counted in [`OpenedBatches`]. The records given out share its memory if it is [`SMALL`], or
/// little more than the one record, and are copied out of it otherwise, so that they keep alive what
/// they count as and no more.
pub(super) struct RecordCursor {
    /// Parts not begun.
    parts: VecDeque<Bytes>,
    /// Batches of the part that was begun.
    batches: tidelog_record::Batches,
    /// The batch that was begun.
    begun: Option<Begun>,
    /// A record that did not fit, of the batch that was begun: it shares its memory.
    held: Option<v1::Record>,
    /// What small fields are copied into.
    piece: BytesMut,
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
    /// What it takes decompressed; 0 where records are slices of what was read.
    len: usize,
    _room: Option<OpenedBatch>,
}

impl Open {
    /// Whether a record of `len` bytes keeps all of the batch in memory rather than being copied.
    fn is_shared_by(&self, len: usize) -> bool {
        self.len <= SMALL || len >= self.len / 2
    }
}

/// What a [`RecordCursor`] gives.
pub(super) enum Take {
    /// The next records.
    Records(Taken),
    /// Nothing: the next record takes so many bytes, and there is no room for it.
    NeedsRoom(usize),
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
            piece: BytesMut::new(),
            next: from,
            end,
            opened,
        }
    }

    /// Whether it holds memory that others may want.
    pub(super) fn is_large(&self) -> bool {
        let open = self.begun.as_ref().and_then(|begun| begun.records.as_ref());
        open.is_some_and(|open| open.len > SMALL)
    }

    /// Lets go of the memory of a decompressed batch. The next [`RecordCursor::take`] decompresses
    /// it again.
    pub(super) fn close(&mut self) {
        self.held = None;
        if let Some(begun) = &mut self.begun {
            begun.records = None;
        }
    }

    /// The next records, about `bytes_max` of them but at least one, if there are any. What they
    /// take in memory counts where that is more than in an answer: many empty headers. `has_room`
    /// tells whether there is room for more than `bytes_max`, before anything is copied into it.
    pub(super) async fn take(
        &mut self,
        bytes_max: usize,
        mut has_room: impl FnMut(usize) -> bool,
    ) -> Result<Take, ReadError> {
        let mut records = Vec::new();
        let (mut len_bytes, mut memory_bytes) = (0, 0);
        let mut room = bytes_max;
        while let Some(mut record) = self.next_record().await.map_err(damaged)? {
            let len = record.encoded_len() + FIELD_OVERHEAD;
            let copied = self.open().is_some_and(|open| !open.is_shared_by(len));
            // One that keeps alive a batch little larger than itself counts as all of it.
            let kept = self.open().map_or(0, |open| open.len).max(SMALL);
            let taken = if copied || kept == SMALL { len } else { kept };
            let memory = memory_bytes + taken + decoded_overhead(&record);
            let fits = if records.is_empty() {
                if memory > bytes_max && !has_room(memory) {
                    self.held = Some(record);
                    return Ok(Take::NeedsRoom(memory));
                }
                room = room.max(memory);
                true
            } else if len_bytes + len > bytes_max {
                false
            } else if memory > room && memory <= MEMORY_LEAST {
                let more = memory.next_multiple_of(TURN_BYTES);
                let has_more = has_room(more);
                room = if has_more { more } else { room };
                has_more
            } else {
                memory <= room
            };
            if !fits {
                self.held = Some(record);
                let next_offset = self.next;
                return Ok(Take::Records(Taken {
                    records,
                    len_bytes,
                    memory_bytes,
                    next_offset,
                    is_last: false,
                }));
            }
            if copied {
                self.copy_out(&mut record);
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
        Ok(Take::Records(Taken {
            records,
            len_bytes,
            memory_bytes,
            next_offset: self.end,
            is_last: true,
        }))
    }

    /// The batch that the record given last came from.
    fn open(&self) -> Option<&Open> {
        self.begun.as_ref()?.records.as_ref()
    }

    /// Gives the record memory of its own.
    fn copy_out(&mut self, record: &mut v1::Record) {
        let headers = record.headers.iter_mut().map(|header| &mut header.value);
        let fields = [&mut record.key, &mut record.value].into_iter();
        for bytes in fields.chain(headers).flatten() {
            if bytes.len() > PIECE / 4 {
                *bytes = Bytes::copy_from_slice(bytes);
                continue;
            }
            if self.piece.capacity() < bytes.len() {
                self.piece = BytesMut::with_capacity(PIECE);
            }
            self.piece.extend_from_slice(bytes);
            *bytes = self.piece.split().freeze();
        }
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
                        return Ok(Some(stored_record(offset, record)));
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
            len: 0,
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
        len: records.len_bytes(),
        records,
        _room: Some(room),
    })
}

/// What a record takes in memory beside its bytes.
fn decoded_overhead(record: &v1::Record) -> usize {
    size_of::<v1::Record>() + record.headers.len() * size_of::<v1::Header>()
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

    async fn taken(cursor: &mut RecordCursor, bytes_max: usize) -> Taken {
        match cursor.take(bytes_max, |_| true).await.unwrap() {
            Take::Records(taken) => taken,
            Take::NeedsRoom(len) => panic!("there is room for {len}"),
        }
    }

    #[tokio::test]
    async fn a_record_is_not_copied_before_there_is_room_for_it() {
        let mut builder = BatchBuilder::new(Compression::Zstd);
        let value = vec![7; 3 << 20];
        for _ in 0..4 {
            builder
                .push(Timestamp::from_millis(1), None, Some(&value), &[])
                .unwrap();
        }
        let large = builder.build().unwrap();
        let mut cursor = RecordCursor::new(vec![large], offset(0), offset(4), opened());
        for at in 0..4 {
            let Take::NeedsRoom(len) = cursor.take(1 << 20, |_| false).await.unwrap() else {
                panic!("record {at} was given without room");
            };
            assert!(len > value.len() && len < value.len() + 1000, "{len}");
            // Its batch may be wanted by others while it waits.
            if at % 2 == 0 {
                cursor.close();
            }
            let taken = taken(&mut cursor, len).await;
            assert_eq!((taken.records.len(), taken.records[0].offset), (1, at));
            assert_eq!(taken.memory_bytes, len);
        }
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
            let taken = taken(&mut cursor, 250_000).await;
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
            let taken = taken(&mut cursor, bytes_max).await;
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
            cursor.take(1000, |_| true).await,
            Err(ReadError::Damaged(_))
        ));
    }
}

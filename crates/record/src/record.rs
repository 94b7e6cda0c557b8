//! Records inside of a batch: one parser, used to skim them when they are produced and to hand
//! them out when they are consumed.

use std::fmt;
use std::iter::FusedIterator;
use std::ops::Range;

use bytes::Bytes;

use crate::varint::Cursor;
use crate::{
    BatchError, BatchHeader, BatchLimits, Compression, Offset, RecordFault, Timestamp,
    TimestampType, compression,
};

/// One record. Its key, value and headers are slices that keep the batch's memory alive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its offset minus the base offset of its batch: 0 to the batch's last offset delta.
    pub offset_delta: i32,
    /// When it came to be, or was appended: see [`TimestampType`].
    pub timestamp: Timestamp,
    /// What it is about; decides its partition and what compaction keeps.
    pub key: Option<Bytes>,
    /// Its content; `None` deletes the key under compaction.
    pub value: Option<Bytes>,
    /// Headers in the order the producer gave them. A key can repeat.
    pub headers: Vec<Header>,
}

impl Record {
    /// Its offset in a batch with this base offset, or `None` past [`Offset::MAX`].
    pub fn offset(&self, base_offset: Offset) -> Option<Offset> {
        base_offset.checked_add(u64::try_from(self.offset_delta).ok()?)
    }
}

/// One header of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Its name.
    pub key: HeaderKey,
    /// Its content.
    pub value: Option<Bytes>,
}

/// The name of a header: UTF-8 text that shares the memory of its batch.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct HeaderKey(Bytes);

impl HeaderKey {
    /// The text.
    pub fn as_str(&self) -> &str {
        // Checked again: names are short, and the alternative is unsafe.
        std::str::from_utf8(&self.0).expect("every constructor checks that it is UTF-8")
    }

    /// The text as shared bytes.
    pub fn into_bytes(self) -> Bytes {
        self.0
    }
}

impl From<String> for HeaderKey {
    fn from(key: String) -> Self {
        Self(Bytes::from(key))
    }
}

impl From<&'static str> for HeaderKey {
    fn from(key: &'static str) -> Self {
        Self(Bytes::from_static(key.as_bytes()))
    }
}

impl AsRef<str> for HeaderKey {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

impl PartialEq<str> for HeaderKey {
    fn eq(&self, other: &str) -> bool {
        self.0 == other.as_bytes()
    }
}

impl PartialEq<&str> for HeaderKey {
    fn eq(&self, other: &&str) -> bool {
        self == *other
    }
}

impl fmt::Display for HeaderKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for HeaderKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

/// The records of one batch, in order; made by [`crate::Batch::records`].
///
/// Ends after the first error: a malformed record leaves no way to find the next.
#[derive(Debug)]
pub struct Records {
    payload: Bytes,
    /// Where in `payload` the next record begins.
    at: usize,
    /// How many records were given out.
    index: u32,
    /// How many there are; set to `index` after an error.
    end_index: u32,
    times: Times,
    last_offset_delta: i32,
    headers_max: usize,
    /// Whether the end still has to be checked for bytes that follow.
    end_unchecked: bool,
}

impl Records {
    /// How many bytes the records take, decompressed if they were compressed: what the records
    /// given out keep in memory together.
    pub fn len_bytes(&self) -> usize {
        self.payload.len()
    }

    pub(crate) fn open(
        header: &BatchHeader,
        body: Bytes,
        limits: &BatchLimits,
    ) -> Result<Self, BatchError> {
        let end_index = record_count(header, limits.records_max)?;
        let is_internal = header.attributes.is_control() && end_index == 0;
        let payload = match header.attributes.compression()? {
            Compression::None => body,
            _ if is_internal => body,
            compression => {
                let mut plain = Vec::new();
                let bytes_max = limits.decompressed_bytes_max;
                compression::decompress(compression, &body, &mut plain, bytes_max)?;
                Bytes::from(plain)
            }
        };
        Ok(Self {
            payload,
            at: 0,
            index: 0,
            end_index,
            times: Times::of(header),
            last_offset_delta: header.last_offset_delta,
            headers_max: limits.record_headers_max,
            end_unchecked: !is_internal,
        })
    }

    fn read_next(&mut self) -> Result<Record, BatchError> {
        let index = self.index;
        let mut headers = Vec::new();
        let payload = &self.payload;
        let parsed = parse_record(payload, self.at, self.headers_max, |key, value| {
            headers.push(Header {
                key: HeaderKey(payload.slice(key)),
                value: value.map(|value| payload.slice(value)),
            });
        })
        .and_then(|raw| {
            if !(0..=self.last_offset_delta).contains(&raw.offset_delta) {
                return Err(RecordFault::OffsetDelta {
                    found: raw.offset_delta,
                    min: 0,
                    max: self.last_offset_delta,
                });
            }
            let timestamp = self.times.timestamp(raw.timestamp_delta)?;
            Ok((raw, timestamp))
        });
        let (raw, timestamp) = parsed.map_err(|fault| BatchError::Record { index, fault })?;
        self.at = raw.end;
        self.index += 1;
        Ok(Record {
            offset_delta: raw.offset_delta,
            timestamp,
            key: raw.key.map(|key| payload.slice(key)),
            value: raw.value.map(|value| payload.slice(value)),
            headers,
        })
    }

    fn check_end(&mut self) -> Result<(), BatchError> {
        let is_unchecked = std::mem::replace(&mut self.end_unchecked, false);
        let len = self.payload.len() - self.at;
        if is_unchecked && len > 0 {
            let record_count = i32::try_from(self.end_index).expect("it was read from an i32");
            return Err(BatchError::AfterRecords { len, record_count });
        }
        Ok(())
    }
}

impl Iterator for Records {
    type Item = Result<Record, BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.index == self.end_index {
            return self.check_end().err().map(Err);
        }
        let record = self.read_next();
        if record.is_err() {
            self.end_index = self.index;
            self.end_unchecked = false;
        }
        Some(record)
    }
}

impl FusedIterator for Records {}

/// How the timestamps of a batch's records come about.
#[derive(Debug)]
struct Times {
    base: i64,
    /// The timestamp of every record, if the broker gave it.
    appended: Option<i64>,
}

impl Times {
    fn of(header: &BatchHeader) -> Self {
        let appended = match header.attributes.timestamp_type() {
            TimestampType::CreateTime => None,
            TimestampType::LogAppendTime => Some(header.max_timestamp),
        };
        Self {
            base: header.base_timestamp,
            appended,
        }
    }

    fn timestamp(&self, delta: i64) -> Result<Timestamp, RecordFault> {
        match self.appended {
            Some(millis) => Ok(Timestamp::from_millis(millis)),
            None => create_time(self.base, delta),
        }
    }
}

fn create_time(base: i64, delta: i64) -> Result<Timestamp, RecordFault> {
    base.checked_add(delta)
        .map(Timestamp::from_millis)
        .ok_or(RecordFault::TimestampOverflow { base, delta })
}

/// The record count of `header`, once it is known to be within the limit.
pub(crate) fn record_count(header: &BatchHeader, records_max: usize) -> Result<u32, BatchError> {
    let found = header.record_count;
    u32::try_from(found)
        .ok()
        .filter(|&count| usize::try_from(count).is_ok_and(|count| count <= records_max))
        .ok_or(BatchError::RecordCount {
            found,
            max: records_max,
        })
}

/// What skimming the records of a produced batch finds out.
#[derive(Debug)]
pub(crate) struct Skimmed {
    /// The largest create time.
    pub(crate) max_timestamp: i64,
}

/// Checks every record of a produced batch, and that they fill `payload` exactly, without making
/// any of them. The count must have been checked and be at least 1.
pub(crate) fn skim_produced(
    payload: &[u8],
    header: &BatchHeader,
    limits: &BatchLimits,
) -> Result<Skimmed, BatchError> {
    let mut at = 0;
    let mut max_timestamp = i64::MIN;
    for expected_delta in 0..header.record_count {
        let mut skim_one = || {
            let raw = parse_record(payload, at, limits.record_headers_max, |_, _| {})?;
            if raw.offset_delta != expected_delta {
                return Err(RecordFault::OffsetDelta {
                    found: raw.offset_delta,
                    min: expected_delta,
                    max: expected_delta,
                });
            }
            if limits.keys_required && raw.key.is_none() {
                return Err(RecordFault::NoKey);
            }
            let timestamp = create_time(header.base_timestamp, raw.timestamp_delta)?;
            max_timestamp = max_timestamp.max(timestamp.millis());
            Ok(raw.end)
        };
        at = skim_one().map_err(|fault| BatchError::Record {
            index: expected_delta.unsigned_abs(),
            fault,
        })?;
    }
    if at < payload.len() {
        let len = payload.len() - at;
        return Err(BatchError::AfterRecords {
            len,
            record_count: header.record_count,
        });
    }
    Ok(Skimmed { max_timestamp })
}

/// One record as it lies in its payload.
struct RawRecord {
    timestamp_delta: i64,
    offset_delta: i32,
    key: Option<Range<usize>>,
    value: Option<Range<usize>>,
    /// Where the next record begins.
    end: usize,
}

/// Parses the record at `payload[at..]` and checks everything that can be checked without its
/// batch. `on_header` gets the ranges of each header's key and value.
#[inline]
fn parse_record(
    payload: &[u8],
    at: usize,
    headers_max: usize,
    mut on_header: impl FnMut(Range<usize>, Option<Range<usize>>),
) -> Result<RawRecord, RecordFault> {
    let mut frame = Cursor::new(payload, at);
    let length = frame.len()?;
    let start = frame.skip(length)?;
    let end = start + length;

    let mut fields = Cursor::new(&payload[..end], start);
    // The record's own attributes: no bit of them has a meaning.
    fields.skip(1)?;
    let timestamp_delta = fields.varlong()?;
    let offset_delta = fields.varint()?;
    let key = nullable(&mut fields)?;
    let value = nullable(&mut fields)?;
    let header_count = fields.varint()?;
    if usize::try_from(header_count).map_or(true, |count| count > headers_max) {
        return Err(if header_count < 0 {
            RecordFault::NegativeLength {
                found: header_count,
            }
        } else {
            RecordFault::TooManyHeaders {
                found: header_count,
                max: headers_max,
            }
        });
    }
    for _ in 0..header_count {
        let key_len = fields.len()?;
        let key_at = fields.skip(key_len)?;
        let key = key_at..key_at + key_len;
        if std::str::from_utf8(&payload[key.clone()]).is_err() {
            return Err(RecordFault::HeaderKeyNotUtf8);
        }
        let value = nullable(&mut fields)?;
        on_header(key, value);
    }
    if fields.at() != end {
        return Err(RecordFault::WrongLength {
            length,
            used: fields.at() - start,
        });
    }
    Ok(RawRecord {
        timestamp_delta,
        offset_delta,
        key,
        value,
        end,
    })
}

#[inline]
fn nullable(fields: &mut Cursor<'_>) -> Result<Option<Range<usize>>, RecordFault> {
    let Some(len) = fields.nullable_len()? else {
        return Ok(None);
    };
    let at = fields.skip(len)?;
    Ok(Some(at..at + len))
}

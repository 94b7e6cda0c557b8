//! Into bytes.

use bytes::Bytes;
use tidelog_record::{PartitionId, TopicId};

use super::{LEN_MAX, PARTITIONS, STRING_LEN_MAX};
use crate::format::{FormatError, RecordKind};

/// Writes fields one after the other, as [`Reader`] reads them.
#[derive(Debug)]
pub(crate) struct Writer {
    kind: RecordKind,
    is_flexible: bool,
    bytes: Vec<u8>,
}

impl Writer {
    /// Writes fields of a plain version.
    pub(crate) fn new(kind: RecordKind) -> Self {
        Self {
            kind,
            is_flexible: false,
            bytes: Vec::new(),
        }
    }

    /// What follows is of a flexible version, if `is_flexible`.
    pub(crate) fn set_flexible(&mut self, is_flexible: bool) {
        self.is_flexible = is_flexible;
    }

    /// The kind of record that is written.
    pub(crate) fn kind(&self) -> RecordKind {
        self.kind
    }

    /// All that was written.
    pub(crate) fn finish(self) -> Bytes {
        self.bytes.into()
    }

    pub(crate) fn i8(&mut self, value: i8) {
        self.bytes.extend(value.to_be_bytes());
    }

    pub(crate) fn i16(&mut self, value: i16) {
        self.bytes.extend(value.to_be_bytes());
    }

    pub(crate) fn i32(&mut self, value: i32) {
        self.bytes.extend(value.to_be_bytes());
    }

    pub(crate) fn i64(&mut self, value: i64) {
        self.bytes.extend(value.to_be_bytes());
    }

    pub(crate) fn topic_id(&mut self, value: TopicId) {
        self.bytes.extend(value.to_bytes());
    }

    /// The number of a partition.
    ///
    /// # Errors
    /// [`FormatError::OutOfRange`] when it does not fit the signed field.
    pub(crate) fn partition(
        &mut self,
        field: &'static str,
        value: PartitionId,
    ) -> Result<(), FormatError> {
        let partition = i32::try_from(value.get()).map_err(|_| FormatError::OutOfRange {
            kind: self.kind,
            field,
            found: value.get().into(),
            allowed: PARTITIONS,
        })?;
        self.i32(partition);
        Ok(())
    }

    fn varint(&mut self, mut value: u32) {
        loop {
            let [low, ..] = value.to_le_bytes();
            value >>= 7;
            if value == 0 {
                return self.bytes.push(low & 0x7f);
            }
            self.bytes.push(low | 0x80);
        }
    }

    fn check_len(&self, field: &'static str, len: usize, max: usize) -> Result<i32, FormatError> {
        let too_long = FormatError::TooLong {
            kind: self.kind,
            field,
            found: len,
            max,
        };
        if len > max {
            return Err(too_long);
        }
        i32::try_from(len).map_err(|_| too_long)
    }

    /// The length of bytes or the count of an array.
    fn len(&mut self, field: &'static str, len: usize) -> Result<(), FormatError> {
        let len = self.check_len(field, len, LEN_MAX)?;
        if self.is_flexible {
            self.varint(len.cast_unsigned() + 1);
        } else {
            self.i32(len);
        }
        Ok(())
    }

    /// A text.
    ///
    /// # Errors
    /// [`FormatError::TooLong`] above [`STRING_LEN_MAX`] bytes.
    pub(crate) fn string(&mut self, field: &'static str, value: &str) -> Result<(), FormatError> {
        let len = self.check_len(field, value.len(), STRING_LEN_MAX)?;
        if self.is_flexible {
            self.varint(len.cast_unsigned() + 1);
        } else {
            self.i16(i16::try_from(len).expect("STRING_LEN_MAX fits 16 bits"));
        }
        self.bytes.extend_from_slice(value.as_bytes());
        Ok(())
    }

    /// A text or null. Errors are those of [`Writer::string`].
    pub(crate) fn nullable_string(
        &mut self,
        field: &'static str,
        value: Option<&str>,
    ) -> Result<(), FormatError> {
        match value {
            Some(value) => self.string(field, value)?,
            None if self.is_flexible => self.varint(0),
            None => self.i16(-1),
        }
        Ok(())
    }

    /// Bytes.
    ///
    /// # Errors
    /// [`FormatError::TooLong`] above 2^31 - 1 of them.
    pub(crate) fn bytes(&mut self, field: &'static str, value: &[u8]) -> Result<(), FormatError> {
        self.len(field, value.len())?;
        self.bytes.extend_from_slice(value);
        Ok(())
    }

    /// An array of what `element` writes.
    ///
    /// # Errors
    /// [`FormatError::TooLong`] above 2^31 - 1 elements, or what `element` fails with.
    pub(crate) fn array<T>(
        &mut self,
        field: &'static str,
        values: &[T],
        mut element: impl FnMut(&mut Self, &T) -> Result<(), FormatError>,
    ) -> Result<(), FormatError> {
        self.len(field, values.len())?;
        values.iter().try_for_each(|value| element(self, value))
    }

    /// Ends a structure that has no tagged field to write.
    pub(crate) fn no_tagged_fields(&mut self) {
        if self.is_flexible {
            self.varint(0);
        }
    }

    /// Ends a structure of a flexible version whose only tagged field has tag 0 and what `content`
    /// writes; no message has another tag.
    ///
    /// # Errors
    /// What `content` fails with, or [`FormatError::TooLong`].
    pub(crate) fn tagged_field_0(
        &mut self,
        field: &'static str,
        content: impl FnOnce(&mut Self) -> Result<(), FormatError>,
    ) -> Result<(), FormatError> {
        let mut writer = Self {
            bytes: Vec::new(),
            ..*self
        };
        content(&mut writer)?;
        let len = self.check_len(field, writer.bytes.len(), LEN_MAX)?;
        self.varint(1);
        self.varint(0);
        self.varint(len.cast_unsigned());
        self.bytes.append(&mut writer.bytes);
        Ok(())
    }

    /// Whether a nullable structure inside of a tagged field is there.
    pub(crate) fn presence(&mut self, is_present: bool) {
        self.varint(is_present.into());
    }
}

//! Out of bytes.

use bytes::Bytes;
use tidelog_record::{PartitionId, TopicId};

use super::{PARTITIONS, STRING_LEN_MAX, VARINT_LEN_MAX};
use crate::format::{FormatError, RecordKind};

/// Reads fields one after the other. No length is believed before it is compared with the bytes left.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    kind: RecordKind,
    is_flexible: bool,
    /// What is not read yet.
    left: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Reads fields of a plain version from `bytes`.
    pub(crate) fn new(kind: RecordKind, bytes: &'a [u8]) -> Self {
        let is_flexible = false;
        Self {
            kind,
            is_flexible,
            left: bytes,
        }
    }

    /// What follows is of a flexible version, if `is_flexible`.
    pub(crate) fn set_flexible(&mut self, is_flexible: bool) {
        self.is_flexible = is_flexible;
    }

    /// The error of a number without meaning.
    pub(crate) fn out_of_range(
        &self,
        field: &'static str,
        found: i64,
        allowed: &'static str,
    ) -> FormatError {
        FormatError::OutOfRange {
            kind: self.kind,
            field,
            found,
            allowed,
        }
    }

    /// Ends here.
    ///
    /// # Errors
    /// [`FormatError::TrailingBytes`] when anything is left of `field`.
    pub(crate) fn finish(self, field: &'static str) -> Result<(), FormatError> {
        match self.left.len() {
            0 => Ok(()),
            left => Err(FormatError::TrailingBytes {
                kind: self.kind,
                field,
                left,
            }),
        }
    }

    fn truncated(&self, field: &'static str, needed: usize) -> FormatError {
        FormatError::Truncated {
            kind: self.kind,
            field,
            needed,
            left: self.left.len(),
        }
    }

    fn take(&mut self, field: &'static str, len: usize) -> Result<&'a [u8], FormatError> {
        let (taken, left) = self
            .left
            .split_at_checked(len)
            .ok_or_else(|| self.truncated(field, len))?;
        self.left = left;
        Ok(taken)
    }

    fn take_array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], FormatError> {
        let (taken, left) = self
            .left
            .split_first_chunk()
            .ok_or_else(|| self.truncated(field, N))?;
        self.left = left;
        Ok(*taken)
    }

    pub(crate) fn i8(&mut self, field: &'static str) -> Result<i8, FormatError> {
        self.take_array(field).map(i8::from_be_bytes)
    }

    pub(crate) fn i16(&mut self, field: &'static str) -> Result<i16, FormatError> {
        self.take_array(field).map(i16::from_be_bytes)
    }

    pub(crate) fn i32(&mut self, field: &'static str) -> Result<i32, FormatError> {
        self.take_array(field).map(i32::from_be_bytes)
    }

    pub(crate) fn i64(&mut self, field: &'static str) -> Result<i64, FormatError> {
        self.take_array(field).map(i64::from_be_bytes)
    }

    /// The number of a partition.
    pub(crate) fn partition(&mut self, field: &'static str) -> Result<PartitionId, FormatError> {
        let found = self.i32(field)?;
        u32::try_from(found)
            .map(PartitionId::new)
            .map_err(|_| self.out_of_range(field, found.into(), PARTITIONS))
    }

    pub(crate) fn topic_id(&mut self, field: &'static str) -> Result<TopicId, FormatError> {
        self.take_array(field).map(TopicId::from_bytes)
    }

    /// An unsigned number, seven bits a byte, least significant first.
    fn varint(&mut self, field: &'static str) -> Result<u32, FormatError> {
        let mut value = 0;
        for place in 0..VARINT_LEN_MAX {
            let [byte] = self.take_array(field)?;
            let bits = u32::from(byte & 0x7f);
            // The last byte has room for the upper 4 of 32 bits.
            if place == VARINT_LEN_MAX - 1 && byte > 0x0f {
                break;
            }
            value |= bits << (7 * place);
            if byte < 0x80 {
                return Ok(value);
            }
        }
        let kind = self.kind;
        Err(FormatError::Varint { kind, field })
    }

    /// A compact length, where 0 means null.
    fn compact_len(&mut self, field: &'static str) -> Result<Option<usize>, FormatError> {
        let Some(len) = self.varint(field)?.checked_sub(1) else {
            return Ok(None);
        };
        // Where a length does not fit, neither do so many bytes.
        Ok(Some(usize::try_from(len).unwrap_or(usize::MAX)))
    }

    /// A length of fixed size, where -1 means null.
    fn plain_len(&self, field: &'static str, found: i32) -> Result<Option<usize>, FormatError> {
        let kind = self.kind;
        match found {
            -1 => Ok(None),
            _ => usize::try_from(found)
                .map(Some)
                .map_err(|_| FormatError::NegativeLength { kind, field, found }),
        }
    }

    /// A length of bytes or a count of an array.
    fn nullable_len(&mut self, field: &'static str) -> Result<Option<usize>, FormatError> {
        if self.is_flexible {
            self.compact_len(field)
        } else {
            let found = self.i32(field)?;
            self.plain_len(field, found)
        }
    }

    fn not_null<T>(&self, field: &'static str, value: Option<T>) -> Result<T, FormatError> {
        let kind = self.kind;
        value.ok_or(FormatError::Null { kind, field })
    }

    /// A text that can be null.
    pub(crate) fn nullable_string(
        &mut self,
        field: &'static str,
    ) -> Result<Option<String>, FormatError> {
        let kind = self.kind;
        let len = if self.is_flexible {
            self.compact_len(field)?
        } else {
            let found = self.i16(field)?;
            self.plain_len(field, found.into())?
        };
        let Some(len) = len else {
            return Ok(None);
        };
        if len > STRING_LEN_MAX {
            return Err(FormatError::TooLong {
                kind,
                field,
                found: len,
                max: STRING_LEN_MAX,
            });
        }
        let text = str::from_utf8(self.take(field, len)?).map_err(|e| FormatError::NotUtf8 {
            kind,
            field,
            valid_up_to: e.valid_up_to(),
        })?;
        Ok(Some(text.to_owned()))
    }

    /// A text.
    pub(crate) fn string(&mut self, field: &'static str) -> Result<String, FormatError> {
        let text = self.nullable_string(field)?;
        self.not_null(field, text)
    }

    /// Bytes.
    pub(crate) fn bytes(&mut self, field: &'static str) -> Result<Bytes, FormatError> {
        let len = self.nullable_len(field)?;
        let len = self.not_null(field, len)?;
        self.take(field, len).map(Bytes::copy_from_slice)
    }

    /// An array that can be null, of what `element` reads.
    pub(crate) fn nullable_array<T>(
        &mut self,
        field: &'static str,
        mut element: impl FnMut(&mut Self) -> Result<T, FormatError>,
    ) -> Result<Option<Vec<T>>, FormatError> {
        let Some(count) = self.nullable_len(field)? else {
            return Ok(None);
        };
        // No element has less than a byte.
        if count > self.left.len() {
            return Err(self.truncated(field, count));
        }
        // Grows with what is read: elements take more memory than the bytes that they come from, so
        // that no room is made for those that are only promised.
        let mut elements = Vec::new();
        for _ in 0..count {
            elements.push(element(self)?);
        }
        Ok(Some(elements))
    }

    /// An array of what `element` reads.
    pub(crate) fn array<T>(
        &mut self,
        field: &'static str,
        element: impl FnMut(&mut Self) -> Result<T, FormatError>,
    ) -> Result<Vec<T>, FormatError> {
        let elements = self.nullable_array(field, element)?;
        self.not_null(field, elements)
    }

    /// The tagged fields that end a structure; none in a plain version. `known` reads the content of
    /// `tag`, or gives `false` for one that it does not know, which is passed over.
    pub(crate) fn tagged_fields(
        &mut self,
        mut known: impl FnMut(u32, &mut Self) -> Result<bool, FormatError>,
    ) -> Result<(), FormatError> {
        if !self.is_flexible {
            return Ok(());
        }
        let kind = self.kind;
        let mut last = None;
        for _ in 0..self.varint("tagged_fields")? {
            let tag = self.varint("tagged_fields.tag")?;
            match last.replace(tag) {
                Some(after) if after >= tag => {
                    let found = tag;
                    return Err(FormatError::TagOrder { kind, found, after });
                }
                _ => {}
            }
            let len = self.varint("tagged_fields.length")?;
            let len = usize::try_from(len).unwrap_or(usize::MAX);
            let mut content = Self {
                kind,
                is_flexible: true,
                left: self.take("tagged_fields.content", len)?,
            };
            if known(tag, &mut content)? {
                content.finish("tagged_fields.content")?;
            }
        }
        Ok(())
    }

    /// The tagged fields of a structure that knows none.
    pub(crate) fn no_tagged_fields(&mut self) -> Result<(), FormatError> {
        self.tagged_fields(|_, _| Ok(false))
    }

    /// Whether a nullable structure inside of a tagged field is there.
    pub(crate) fn presence(&mut self, field: &'static str) -> Result<bool, FormatError> {
        match self.varint(field)? {
            0 => Ok(false),
            1 => Ok(true),
            found => Err(self.out_of_range(field, found.into(), "0 for null, or 1")),
        }
    }
}

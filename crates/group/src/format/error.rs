//! What can be wrong with a record of a group.

use super::RecordKind;

/// Why bytes are not a record of a group, or why a record cannot be written as bytes.
///
/// A field inside of an array is named with the array before it, as in `members.client_id`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// The key is too short to say what kind of record it is.
    #[error("the key has {len} bytes; its kind alone takes 2")]
    NoKind {
        /// Bytes of the key.
        len: usize,
    },
    /// The value is in a version that is not known here.
    #[error("{kind}: the value has version {found}; known are 0 to {highest}")]
    UnknownVersion {
        /// The kind of record.
        kind: RecordKind,
        /// The version in the value.
        found: i16,
        /// The highest that is known.
        highest: i16,
    },
    /// A field needs more bytes than there are. A count of an array needs at least a byte each.
    #[error("{kind}: {field} needs {needed} bytes, but only {left} are left")]
    Truncated {
        /// The kind of record.
        kind: RecordKind,
        /// The field.
        field: &'static str,
        /// Bytes that it needs.
        needed: usize,
        /// Bytes that there are.
        left: usize,
    },
    /// Bytes follow where the key, the value or a tagged field should end.
    #[error("{kind}: {left} bytes follow after the end of {field}; allowed are none")]
    TrailingBytes {
        /// The kind of record.
        kind: RecordKind,
        /// What should have ended: `key`, `value` or `tagged_fields.content`.
        field: &'static str,
        /// Bytes that follow.
        left: usize,
    },
    /// A length or a count is negative, where -1 at most has a meaning.
    #[error(
        "{kind}: {field} has length {found}; allowed are 0 and above, and -1 where it can be null"
    )]
    NegativeLength {
        /// The kind of record.
        kind: RecordKind,
        /// The field.
        field: &'static str,
        /// The length.
        found: i32,
    },
    /// A field is null that cannot be.
    #[error("{kind}: {field} is null, which is not allowed")]
    Null {
        /// The kind of record.
        kind: RecordKind,
        /// The field.
        field: &'static str,
    },
    /// A field is longer than the format has it.
    #[error("{kind}: {field} has length {found}; allowed are at most {max}")]
    TooLong {
        /// The kind of record.
        kind: RecordKind,
        /// The field.
        field: &'static str,
        /// Its length: bytes of a text or of bytes, elements of an array.
        found: usize,
        /// The most that is allowed.
        max: usize,
    },
    /// A text is not UTF-8.
    #[error("{kind}: {field} is no UTF-8 from byte {valid_up_to} on")]
    NotUtf8 {
        /// The kind of record.
        kind: RecordKind,
        /// The field.
        field: &'static str,
        /// How many bytes of it are.
        valid_up_to: usize,
    },
    /// A number of variable length goes on after 5 bytes, or is above 32 bits.
    #[error("{kind}: the variable-length number of {field} does not fit 32 bits in 5 bytes")]
    Varint {
        /// The kind of record.
        kind: RecordKind,
        /// The field whose length, count or tag it is.
        field: &'static str,
    },
    /// A tag is there twice, or after a larger one.
    #[error("{kind}: tag {found} follows after tag {after}; allowed are larger ones only")]
    TagOrder {
        /// The kind of record.
        kind: RecordKind,
        /// The tag.
        found: u32,
        /// The tag before it.
        after: u32,
    },
    /// A number has no meaning in its field.
    #[error("{kind}: {field} is {found}; allowed are {allowed}")]
    OutOfRange {
        /// The kind of record.
        kind: RecordKind,
        /// The field.
        field: &'static str,
        /// The number.
        found: i64,
        /// What would have a meaning.
        allowed: &'static str,
    },
}

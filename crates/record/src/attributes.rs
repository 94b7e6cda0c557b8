//! The attributes of a batch: sixteen bits under the CRC that say how to read the rest.

use std::fmt;
use std::str::FromStr;

use crate::BatchError;

/// How the records of a batch are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Compression {
    /// Not at all: the records lie plain behind the header.
    None,
    /// A gzip stream (RFC 1952).
    Gzip,
    /// Snappy, raw or in the blocks that Java's clients write.
    Snappy,
    /// An LZ4 frame.
    Lz4,
    /// A Zstandard frame (RFC 8878).
    Zstd,
}

impl Compression {
    /// Every kind, in the order of their wire numbers.
    pub const ALL: [Self; 5] = [Self::None, Self::Gzip, Self::Snappy, Self::Lz4, Self::Zstd];

    /// The number in bits 0 to 2 of the attributes.
    pub const fn id(self) -> u8 {
        match self {
            Self::None => 0,
            Self::Gzip => 1,
            Self::Snappy => 2,
            Self::Lz4 => 3,
            Self::Zstd => 4,
        }
    }

    /// The compression of this wire number, or `None` for one that no format defines.
    pub const fn from_id(id: u8) -> Option<Self> {
        match id {
            0 => Some(Self::None),
            1 => Some(Self::Gzip),
            2 => Some(Self::Snappy),
            3 => Some(Self::Lz4),
            4 => Some(Self::Zstd),
            _ => None,
        }
    }

    /// The name in configurations and messages, as Kafka spells it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Snappy => "snappy",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Compression {
    type Err = UnknownCompression;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|compression| compression.name() == name)
            .ok_or_else(|| UnknownCompression {
                name: name.to_owned(),
            })
    }
}

/// A name that is no compression.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown compression {name:?}; allowed are none, gzip, snappy, lz4 and zstd")]
pub struct UnknownCompression {
    /// What was given.
    pub name: String,
}

/// What the timestamps of a batch mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TimestampType {
    /// When the producer says that each record came to be.
    CreateTime,
    /// When the broker appended the batch: its max timestamp counts for every record.
    LogAppendTime,
}

/// The attributes field of a batch, as the wire holds it.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Attributes(u16);

impl Attributes {
    const COMPRESSION: u16 = 0b111;
    const LOG_APPEND_TIME: u16 = 1 << 3;
    const TRANSACTIONAL: u16 = 1 << 4;
    const CONTROL: u16 = 1 << 5;
    const DELETE_HORIZON: u16 = 1 << 6;
    const KNOWN: u16 = (1 << 7) - 1;

    /// The attributes of these sixteen bits, whatever they say.
    pub const fn from_bits(bits: u16) -> Self {
        Self(bits)
    }

    /// The sixteen bits.
    pub const fn bits(self) -> u16 {
        self.0
    }

    /// The compression of bits 0 to 2.
    ///
    /// # Errors
    /// [`BatchError::UnknownCompression`] for the numbers 5 to 7.
    pub fn compression(self) -> Result<Compression, BatchError> {
        let id = self.0.to_be_bytes()[1] & 0b111;
        Compression::from_id(id).ok_or(BatchError::UnknownCompression { id })
    }

    /// What the timestamps mean (bit 3).
    pub const fn timestamp_type(self) -> TimestampType {
        if self.has(Self::LOG_APPEND_TIME) {
            TimestampType::LogAppendTime
        } else {
            TimestampType::CreateTime
        }
    }

    /// Whether the batch belongs to a transaction (bit 4).
    pub const fn is_transactional(self) -> bool {
        self.has(Self::TRANSACTIONAL)
    }

    /// Whether the batch is the broker's own and not for consumers (bit 5).
    pub const fn is_control(self) -> bool {
        self.has(Self::CONTROL)
    }

    /// Whether the base timestamp is a delete horizon, as compaction sets it (bit 6).
    pub const fn has_delete_horizon(self) -> bool {
        self.has(Self::DELETE_HORIZON)
    }

    /// The bits set that no format defines (7 to 15), in their places.
    pub const fn unknown_bits(self) -> u16 {
        self.0 & !Self::KNOWN
    }

    /// The same with this compression.
    #[must_use]
    pub const fn with_compression(self, compression: Compression) -> Self {
        // Not `u16::from`: that cannot be called in a const fn.
        Self((self.0 & !Self::COMPRESSION) | u16::from_be_bytes([0, compression.id()]))
    }

    /// The same with this meaning of timestamps.
    #[must_use]
    pub const fn with_timestamp_type(self, timestamp_type: TimestampType) -> Self {
        self.with(
            Self::LOG_APPEND_TIME,
            matches!(timestamp_type, TimestampType::LogAppendTime),
        )
    }

    /// The same with the transactional bit set or not.
    #[must_use]
    pub const fn with_transactional(self, set: bool) -> Self {
        self.with(Self::TRANSACTIONAL, set)
    }

    /// The same with the control bit set or not.
    #[must_use]
    pub const fn with_control(self, set: bool) -> Self {
        self.with(Self::CONTROL, set)
    }

    /// The same with the delete horizon bit set or not.
    #[must_use]
    pub const fn with_delete_horizon(self, set: bool) -> Self {
        self.with(Self::DELETE_HORIZON, set)
    }

    const fn has(self, bit: u16) -> bool {
        self.0 & bit != 0
    }

    const fn with(self, bit: u16, set: bool) -> Self {
        if set {
            Self(self.0 | bit)
        } else {
            Self(self.0 & !bit)
        }
    }
}

impl fmt::Debug for Attributes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Attributes(")?;
        match self.compression() {
            Ok(compression) => write!(f, "{compression}")?,
            Err(_) => write!(f, "compression {}", self.0 & Self::COMPRESSION)?,
        }
        for (bit, name) in [
            (Self::LOG_APPEND_TIME, "log append time"),
            (Self::TRANSACTIONAL, "transactional"),
            (Self::CONTROL, "control"),
            (Self::DELETE_HORIZON, "delete horizon"),
        ] {
            if self.has(bit) {
                write!(f, ", {name}")?;
            }
        }
        if self.unknown_bits() != 0 {
            write!(f, ", unknown {:#06x}", self.unknown_bits())?;
        }
        write!(f, ")")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_bit_is_where_the_format_says() {
        let none = Attributes::default();
        assert_eq!(none.with_compression(Compression::Zstd).bits(), 4);
        assert_eq!(
            none.with_timestamp_type(TimestampType::LogAppendTime)
                .bits(),
            8
        );
        assert_eq!(none.with_transactional(true).bits(), 16);
        assert_eq!(none.with_control(true).bits(), 32);
        assert_eq!(none.with_delete_horizon(true).bits(), 64);
        assert_eq!(Attributes::from_bits(0xff80).unknown_bits(), 0xff80);
        assert_eq!(Attributes::from_bits(0x007f).unknown_bits(), 0);
    }

    #[test]
    fn setting_one_bit_leaves_the_others() {
        for bits in 0..=u16::MAX {
            let before = Attributes::from_bits(bits);
            assert_eq!(before.with_control(true).bits(), bits | 32);
            assert_eq!(before.with_control(false).bits(), bits & !32);
            assert_eq!(
                before.with_compression(Compression::Lz4).bits(),
                bits & !7 | 3
            );
        }
    }

    #[test]
    fn compression_numbers_and_names_go_both_ways() {
        for compression in Compression::ALL {
            assert_eq!(Compression::from_id(compression.id()), Some(compression));
            assert_eq!(compression.to_string().parse(), Ok(compression));
            let attributes = Attributes::from_bits(0xffff).with_compression(compression);
            assert_eq!(attributes.compression(), Ok(compression));
        }
        for id in 5..=7 {
            let attributes = Attributes::from_bits(u16::from(id));
            assert_eq!(
                attributes.compression(),
                Err(BatchError::UnknownCompression { id })
            );
        }
        let error = "LZ4".parse::<Compression>().unwrap_err();
        assert_eq!(
            error.to_string(),
            "unknown compression \"LZ4\"; allowed are none, gzip, snappy, lz4 and zstd"
        );
    }
}

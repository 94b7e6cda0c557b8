//! Variable-length numbers of records: zigzag, seven bits a byte, least significant first.

use crate::RecordFault;

/// Reads fields from the front of `bytes[at..]`.
///
/// Keeps positions, not sub-slices, so that the caller can cut the fields out of a `Bytes`.
#[derive(Debug)]
pub(crate) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(bytes: &'a [u8], at: usize) -> Self {
        Self { bytes, at }
    }

    /// The position of the next byte.
    pub(crate) fn at(&self) -> usize {
        self.at
    }

    /// The next `len` bytes are passed over; gives where they begin.
    #[inline]
    pub(crate) fn skip(&mut self, len: usize) -> Result<usize, RecordFault> {
        if len > self.bytes.len() - self.at {
            return Err(RecordFault::Truncated);
        }
        let start = self.at;
        self.at += len;
        Ok(start)
    }

    /// A signed number of 32 bits.
    #[inline]
    pub(crate) fn varint(&mut self) -> Result<i32, RecordFault> {
        let zigzag = u32::try_from(self.unsigned::<5, 0x0f>()?)
            .expect("5 bytes with 4 bits in the last are 32 bits");
        Ok((zigzag >> 1).cast_signed() ^ -(zigzag & 1).cast_signed())
    }

    /// A signed number of 64 bits.
    #[inline]
    pub(crate) fn varlong(&mut self) -> Result<i64, RecordFault> {
        let zigzag = self.unsigned::<10, 0x01>()?;
        Ok((zigzag >> 1).cast_signed() ^ -(zigzag & 1).cast_signed())
    }

    /// A length, where -1 means null.
    #[inline]
    pub(crate) fn nullable_len(&mut self) -> Result<Option<usize>, RecordFault> {
        match self.varint()? {
            -1 => Ok(None),
            len => usize::try_from(len)
                .map(Some)
                .map_err(|_| RecordFault::NegativeLength { found: len }),
        }
    }

    /// A length that cannot be null.
    #[inline]
    pub(crate) fn len(&mut self) -> Result<usize, RecordFault> {
        let len = self.varint()?;
        usize::try_from(len).map_err(|_| RecordFault::NegativeLength { found: len })
    }

    /// At most `BYTES_MAX` bytes, of which the last possible one is at most `LAST_MAX`.
    #[inline]
    fn unsigned<const BYTES_MAX: usize, const LAST_MAX: u8>(&mut self) -> Result<u64, RecordFault> {
        // Nearly every number of a record, its deltas and short lengths, takes one or two bytes.
        match self.bytes[self.at..] {
            [byte, ..] if byte < 0x80 => {
                self.at += 1;
                Ok(u64::from(byte))
            }
            [low, high, ..] if high < 0x80 => {
                self.at += 2;
                Ok(u64::from(low & 0x7f) | u64::from(high) << 7)
            }
            ref bytes => {
                let (value, len) = long_unsigned::<BYTES_MAX, LAST_MAX>(bytes)?;
                self.at += len;
                Ok(value)
            }
        }
    }
}

fn long_unsigned<const BYTES_MAX: usize, const LAST_MAX: u8>(
    bytes: &[u8],
) -> Result<(u64, usize), RecordFault> {
    let mut value = 0;
    let mut shift = 0;
    for (index, &byte) in bytes.iter().take(BYTES_MAX).enumerate() {
        if index == BYTES_MAX - 1 && byte > LAST_MAX {
            return Err(RecordFault::NumberTooLong);
        }
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok((value, index + 1));
        }
        shift += 7;
    }
    Err(RecordFault::Truncated)
}

/// Appends `value` to `out`.
pub(crate) fn put_varint(out: &mut Vec<u8>, value: i32) {
    put_unsigned(out, u64::from(zigzag_32(value)));
}

/// Appends `value` to `out`.
pub(crate) fn put_varlong(out: &mut Vec<u8>, value: i64) {
    put_unsigned(out, zigzag_64(value));
}

/// Bytes that [`put_varint`] takes.
pub(crate) fn varint_len(value: i32) -> usize {
    unsigned_len(u64::from(zigzag_32(value)))
}

/// Bytes that [`put_varlong`] takes.
pub(crate) fn varlong_len(value: i64) -> usize {
    unsigned_len(zigzag_64(value))
}

fn zigzag_32(value: i32) -> u32 {
    ((value << 1) ^ (value >> 31)).cast_unsigned()
}

fn zigzag_64(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)).cast_unsigned()
}

fn put_unsigned(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    out.push(value.to_le_bytes()[0]);
}

fn unsigned_len(value: u64) -> usize {
    let bits = 64 - (value | 1).leading_zeros();
    usize::try_from(bits.div_ceil(7)).expect("at most 10")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn int(bytes: &[u8]) -> Result<i32, RecordFault> {
        Cursor::new(bytes, 0).varint()
    }

    fn long(bytes: &[u8]) -> Result<i64, RecordFault> {
        Cursor::new(bytes, 0).varlong()
    }

    #[test]
    fn known_encodings() {
        assert_eq!(int(&[0x00]), Ok(0));
        assert_eq!(int(&[0x01]), Ok(-1));
        assert_eq!(int(&[0x02]), Ok(1));
        assert_eq!(int(&[0x7f]), Ok(-64));
        assert_eq!(int(&[0x80, 0x01]), Ok(64));
        assert_eq!(int(&[0xfe, 0xff, 0xff, 0xff, 0x0f]), Ok(i32::MAX));
        assert_eq!(int(&[0xff, 0xff, 0xff, 0xff, 0x0f]), Ok(i32::MIN));
        let mut widest = [0xff; 10];
        widest[9] = 0x01;
        assert_eq!(long(&widest), Ok(i64::MIN));
        widest[0] = 0xfe;
        assert_eq!(long(&widest), Ok(i64::MAX));
    }

    #[test]
    fn too_long_and_too_short() {
        assert_eq!(int(&[]), Err(RecordFault::Truncated));
        assert_eq!(int(&[0x80; 4]), Err(RecordFault::Truncated));
        assert_eq!(int(&[0x80; 5]), Err(RecordFault::NumberTooLong));
        assert_eq!(
            int(&[0x80, 0x80, 0x80, 0x80, 0x10]),
            Err(RecordFault::NumberTooLong)
        );
        assert_eq!(long(&[0x80; 9]), Err(RecordFault::Truncated));
        assert_eq!(long(&[0x80; 10]), Err(RecordFault::NumberTooLong));
        let mut above = [0xff; 10];
        above[9] = 0x02;
        assert_eq!(long(&above), Err(RecordFault::NumberTooLong));
    }

    #[test]
    fn padded_numbers_are_read_as_other_readers_do() {
        assert_eq!(int(&[0x82, 0x80, 0x00]), Ok(1));
    }

    #[test]
    fn lengths() {
        assert_eq!(Cursor::new(&[0x01], 0).nullable_len(), Ok(None));
        assert_eq!(
            Cursor::new(&[0x03], 0).nullable_len(),
            Err(RecordFault::NegativeLength { found: -2 })
        );
        assert_eq!(
            Cursor::new(&[0x01], 0).len(),
            Err(RecordFault::NegativeLength { found: -1 })
        );
        assert_eq!(Cursor::new(&[0x06], 0).len(), Ok(3));
    }

    proptest! {
        #[test]
        fn ints_round_trip(value: i32) {
            let mut out = Vec::new();
            put_varint(&mut out, value);
            prop_assert_eq!(out.len(), varint_len(value));
            prop_assert_eq!(int(&out), Ok(value));
        }

        #[test]
        fn longs_round_trip(value: i64, shift in 0..64) {
            let value = value >> shift;
            let mut out = Vec::new();
            put_varlong(&mut out, value);
            prop_assert_eq!(out.len(), varlong_len(value));
            prop_assert_eq!(long(&out), Ok(value));
        }
    }
}

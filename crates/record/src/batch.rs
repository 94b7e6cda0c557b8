//! One whole batch, checked, over shared bytes.

use bytes::Bytes;

use crate::header::CRC_COVERS_FROM;
use crate::{BATCH_HEADER_LEN, BatchError, BatchHeader, BatchLimits, Records, crc32c};

/// One whole batch whose framing and CRC were checked. A view over shared bytes: cloning, slicing
/// and reading plain records copy nothing.
///
/// What its header says about records is not checked here, so that what a broker keeps beside
/// records (control bit, no records, last offset delta -1) is a batch too.
/// [`crate::validate_produced`] is the check for batches from producers.
#[derive(Clone, Debug)]
pub struct Batch {
    header: BatchHeader,
    bytes: Bytes,
}

impl Batch {
    /// The batch that `bytes` are, exactly.
    ///
    /// # Errors
    /// Those of [`check_batch`], and [`BatchError::NotOneBatch`] when bytes follow the batch.
    pub fn check(bytes: Bytes, batch_bytes_max: usize) -> Result<Self, BatchError> {
        let header = check_frame(&bytes, batch_bytes_max)?;
        let batch_len = header.total_len();
        if bytes.len() != batch_len {
            return Err(BatchError::NotOneBatch {
                batch_len,
                have: bytes.len(),
            });
        }
        check_crc(&header, &bytes)?;
        Ok(Self { header, bytes })
    }

    /// The header.
    pub fn header(&self) -> &BatchHeader {
        &self.header
    }

    /// All bytes of the batch.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// What follows the header: the (compressed) records. Shares the batch's memory.
    pub fn body(&self) -> Bytes {
        self.bytes.slice(BATCH_HEADER_LEN..)
    }

    /// The records, in order. Plain ones are slices of the batch; compressed ones are decompressed
    /// here, into one buffer that they share.
    ///
    /// A control batch without records has none, whatever its body holds.
    ///
    /// # Errors
    /// [`BatchError::UnknownCompression`], [`BatchError::RecordCount`], and what decompression
    /// meets: [`BatchError::Malformed`], [`BatchError::AfterCompressed`],
    /// [`BatchError::DecompressedTooLarge`]. A malformed record is the iterator's error.
    pub fn records(&self, limits: &BatchLimits) -> Result<Records, BatchError> {
        Records::open(&self.header, self.body(), limits)
    }

    pub(crate) fn into_header(self) -> BatchHeader {
        self.header
    }
}

/// Checks the batch at the start of `bytes` without owning it: its framing, that all of it is
/// there, and its CRC. More bytes may follow.
///
/// # Errors
/// In this order: [`BatchError::WrongMagic`], [`BatchError::Truncated`] (inside the header),
/// [`BatchError::TooShort`], [`BatchError::TooLarge`], [`BatchError::Truncated`] (after the
/// header), [`BatchError::WrongCrc`].
pub fn check_batch(bytes: &[u8], batch_bytes_max: usize) -> Result<BatchHeader, BatchError> {
    let header = check_frame(bytes, batch_bytes_max)?;
    check_crc(&header, &bytes[..header.total_len()])?;
    Ok(header)
}

/// The header, once it is known that the whole batch is there.
fn check_frame(bytes: &[u8], batch_bytes_max: usize) -> Result<BatchHeader, BatchError> {
    let header = BatchHeader::decode(bytes, batch_bytes_max)?;
    let needed = header.total_len();
    if bytes.len() < needed {
        return Err(BatchError::Truncated {
            needed,
            have: bytes.len(),
        });
    }
    Ok(header)
}

fn check_crc(header: &BatchHeader, batch: &[u8]) -> Result<(), BatchError> {
    let computed = crc32c(&[&batch[CRC_COVERS_FROM..]]);
    if computed != header.crc {
        return Err(BatchError::WrongCrc {
            stored: header.crc,
            computed,
        });
    }
    Ok(())
}

/// The batches that lie back to back in `bytes`, each checked like [`Batch::check`] and sharing
/// the memory of `bytes`.
///
/// Ends after the first error. A [`BatchError::Truncated`] at the end of a fetched range only says
/// that the range ended inside a batch.
pub fn split_batches(bytes: Bytes, batch_bytes_max: usize) -> Batches {
    Batches {
        rest: bytes,
        batch_bytes_max,
    }
}

/// The iterator of [`split_batches`].
#[derive(Clone, Debug)]
pub struct Batches {
    rest: Bytes,
    batch_bytes_max: usize,
}

impl Batches {
    /// What was not given out yet: after the last batch nothing, after an error nothing either.
    pub fn rest(&self) -> &Bytes {
        &self.rest
    }
}

impl Iterator for Batches {
    type Item = Result<Batch, BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let checked = check_batch(&self.rest, self.batch_bytes_max);
        Some(match checked {
            Ok(header) => {
                let bytes = self.rest.split_to(header.total_len());
                Ok(Batch { header, bytes })
            }
            Err(error) => {
                self.rest.clear();
                Err(error)
            }
        })
    }
}

impl std::iter::FusedIterator for Batches {}

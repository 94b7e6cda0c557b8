//! The sequence numbers of one partition: what makes a batch that is sent again known to the broker.
//!
//! A batch gets its numbers when it is first sent, and keeps them however often it is sent again.
//! The broker stores batches of a partition in the order of their numbers and refuses gaps. So when
//! a batch is given up, those behind it can never be stored under their numbers: the partition
//! begins anew, with the next epoch and from 0. That must wait until no batch is in doubt, since one
//! that was stored under the old numbers would be stored again under new ones. A doubtful batch is
//! sent again under its old numbers first; that it is refused as out of order says that it was never
//! stored, nor anything behind it.

use bytes::Bytes;
use tidelog_record::{BATCH_HEADER_LEN, BatchHeader};

/// Who a producer is to the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) id: i64,
    pub(crate) epoch: i16,
}

/// The numbers of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    identity: Identity,
    pub(crate) base_sequence: i32,
}

/// The numbers of a partition.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sequence {
    /// `None` until the first batch is sent, and when the identity may not be used any more.
    identity: Option<Identity>,
    next: i32,
    is_broken: bool,
}

impl Sequence {
    /// The id under which batches are sent.
    pub(crate) fn id(&self) -> Option<i64> {
        self.identity.map(|identity| identity.id)
    }

    /// Whether a batch was given up, so that the next one that is not in doubt begins anew.
    pub(crate) fn is_broken(&self) -> bool {
        self.is_broken
    }

    /// A batch with numbers was given up.
    pub(crate) fn break_off(&mut self) {
        self.is_broken = true;
    }

    /// The broker does not know the identity: a new one is needed.
    pub(crate) fn forget_identity(&mut self) {
        self.is_broken = true;
        self.identity = None;
    }

    /// Begins anew: with the next epoch, or with another identity when there are no more.
    pub(crate) fn begin_anew(&mut self) {
        self.is_broken = false;
        self.next = 0;
        self.identity = self.identity.and_then(|Identity { id, epoch }| {
            let epoch = epoch.checked_add(1)?;
            Some(Identity { id, epoch })
        });
    }

    /// The numbers of the next batch, of so many records. `None` without an identity; `producer` is
    /// the one to take if there is none yet.
    pub(crate) fn stamp(&mut self, producer: Option<Identity>, records: u32) -> Option<Stamp> {
        let identity = self.identity.or(producer)?;
        self.identity = Some(identity);
        let base_sequence = self.next;
        self.next = self.next.wrapping_add_unsigned(records) & i32::MAX;
        Some(Stamp {
            identity,
            base_sequence,
        })
    }
}

impl Stamp {
    pub(crate) fn id(&self) -> i64 {
        self.identity.id
    }

    pub(crate) fn epoch(&self) -> i16 {
        self.identity.epoch
    }

    /// The built batch with these numbers. Copies it if it has others: they are under its CRC.
    pub(crate) fn put_on(&self, batch: Bytes) -> Bytes {
        let mut header =
            BatchHeader::decode(&batch, batch.len()).expect("the producer has built it itself");
        let has = (
            header.producer_id,
            header.producer_epoch,
            header.base_sequence,
        );
        if has == (self.id(), self.epoch(), self.base_sequence) {
            return batch;
        }
        header.producer_id = self.id();
        header.producer_epoch = self.epoch();
        header.base_sequence = self.base_sequence;
        let body = &batch[BATCH_HEADER_LEN..];
        header.crc = header.compute_crc(body);
        [&header.encode()[..], body].concat().into()
    }
}

#[cfg(test)]
mod tests {
    use tidelog_record::{Batch, BatchBuilder, Compression, Timestamp};

    use super::*;

    const PRODUCER: Identity = Identity { id: 7, epoch: 0 };

    #[test]
    fn numbers_go_on_and_begin_anew_with_the_next_epoch() {
        let mut sequence = Sequence::default();
        assert_eq!(sequence.stamp(None, 3), None);
        let stamp = |sequence: &mut Sequence, producer| {
            let stamp: Stamp = sequence.stamp(producer, 3).unwrap();
            (stamp.id(), stamp.epoch(), stamp.base_sequence)
        };
        assert_eq!(stamp(&mut sequence, Some(PRODUCER)), (7, 0, 0));
        // Another identity is not taken while there is one.
        let other = Identity { id: 8, epoch: 0 };
        assert_eq!(stamp(&mut sequence, Some(other)), (7, 0, 3));
        sequence.break_off();
        assert!(sequence.is_broken());
        sequence.begin_anew();
        assert_eq!(stamp(&mut sequence, Some(other)), (7, 1, 0));
        sequence.forget_identity();
        sequence.begin_anew();
        assert_eq!(stamp(&mut sequence, Some(other)), (8, 0, 0));
        sequence.identity = Some(Identity {
            id: 8,
            epoch: i16::MAX,
        });
        sequence.begin_anew();
        assert_eq!(sequence.stamp(None, 1), None, "a new identity is needed");
        sequence.next = i32::MAX - 1;
        assert_eq!(stamp(&mut sequence, Some(other)).2, i32::MAX - 1);
        assert_eq!(stamp(&mut sequence, Some(other)).2, 1);
    }

    #[test]
    fn numbers_are_put_on_a_built_batch() {
        for compression in [Compression::None, Compression::Zstd] {
            let mut builder = BatchBuilder::new(compression);
            builder
                .push(Timestamp::from_millis(1), None, Some(b"value"), &[])
                .unwrap();
            let plain = builder.build().unwrap();
            let stamp = Stamp {
                identity: PRODUCER,
                base_sequence: 5,
            };
            let stamped = stamp.put_on(plain.clone());
            let batch = Batch::check(stamped.clone(), 1000).unwrap();
            assert_eq!(batch.header().producer_id, 7);
            assert_eq!(batch.header().base_sequence, 5);
            assert_eq!(batch.body(), plain.slice(BATCH_HEADER_LEN..));
            let again = stamp.put_on(stamped.clone());
            assert_eq!(again.as_ptr(), stamped.as_ptr(), "no copy");
        }
    }
}

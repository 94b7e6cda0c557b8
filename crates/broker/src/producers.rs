//! Producer ids: given out in blocks, so that not each one is a change of the metadata log.

use std::ops::Range;
use std::time::Duration;

use crate::Broker;
use crate::error::{AppendError, TopicError};

/// How many ids one command of the metadata log reserves. A restart skips what is left of a block.
pub(crate) const BLOCK: u32 = 1000;

/// How long a batch waits for its producer's id to be known here.
const KNOWN_WAIT_MAX: Duration = Duration::from_secs(2);

/// The ids that are reserved here and not given out, and those that were reserved anywhere.
#[derive(Debug)]
pub(crate) struct ProducerIds {
    next: i64,
    end: i64,
    /// Ids below it may have been given out, by some broker.
    known_end: i64,
}

impl ProducerIds {
    /// At a start nothing is reserved: what was may have been given out, `next` being the first id that
    /// was not.
    pub(crate) fn after(next: i64) -> Self {
        Self {
            next,
            end: next,
            known_end: next,
        }
    }
}

impl Broker {
    /// A producer id that no other producer has or will have, for epoch 0.
    ///
    /// # Errors
    /// When no more ids could be reserved.
    pub async fn init_producer(&self) -> Result<i64, TopicError> {
        loop {
            let seen = {
                let mut ids = self.inner().producer_ids.lock();
                if ids.next < ids.end {
                    ids.next += 1;
                    return Ok(ids.next - 1);
                }
                ids.known_end
            };
            self.reserve_producer_ids(seen, BLOCK).await?;
        }
    }

    /// Refuses an id that was never given out: it may be given to somebody else one day, and what
    /// that producer sends would be taken for what was sent under it now.
    pub(crate) fn check_producer_id(&self, producer_id: i64) -> Result<(), AppendError> {
        if producer_id < self.inner().producer_ids.lock().known_end {
            Ok(())
        } else {
            Err(AppendError::ForeignProducer { producer_id })
        }
    }

    /// Waits for a moment until an id is known here that another broker may just have given out.
    pub(crate) async fn await_producer_id(&self, producer_id: i64) {
        if self.check_producer_id(producer_id).is_ok() || !self.inner().metadata.has_others() {
            return;
        }
        let mut changed = self.inner().metadata_changed.subscribe();
        let known = changed.wait_for(|_| self.check_producer_id(producer_id).is_ok());
        // One that is not known by then is refused.
        drop(tokio::time::timeout(KNOWN_WAIT_MAX, known).await);
    }

    /// The first id that no broker may have given out, by what was decided and what partitions know.
    pub(crate) fn first_free_producer_id(&self) -> i64 {
        let decided = self.inner().cluster.read().topics().next_producer_id();
        self.inner().producer_ids.lock().known_end.max(decided)
    }

    /// Notes which ids may have been given out, by whichever broker.
    pub(crate) fn producer_ids_known(&self) {
        let decided = self.inner().cluster.read().topics().next_producer_id();
        let mut ids = self.inner().producer_ids.lock();
        ids.known_end = ids.known_end.max(decided);
    }

    /// Notes that these are to be given out here.
    pub(crate) fn producer_ids_reserved(&self, reserved: Range<i64>) {
        let mut ids = self.inner().producer_ids.lock();
        (ids.next, ids.end) = (reserved.start, reserved.end);
    }
}

//! Which groups have something to do in the next turn.

use tidelog_log::state::GroupKey;

/// Keys of groups, each once when they are taken, in their order. A turn comes for each message or two, so that the
/// lists are kept.
#[derive(Debug, Default)]
pub(super) struct Due {
    /// Some may be there more than once.
    keys: Vec<GroupKey>,
    spare: Vec<GroupKey>,
}

/// So many are kept without a look at how many there are twice.
const KEYS_MIN: usize = 64;

impl Due {
    pub(super) fn insert(&mut self, key: GroupKey) {
        if self.keys.last() == Some(&key) {
            return;
        }
        if self.keys.len() == self.keys.capacity() && self.keys.len() >= KEYS_MIN {
            self.settle();
            // Otherwise it would soon be full again, of the same.
            if self.keys.len() > self.keys.capacity() / 2 {
                self.keys.reserve(self.keys.len());
            }
        }
        self.keys.push(key);
    }

    pub(super) fn remove(&mut self, key: &GroupKey) {
        self.keys.retain(|other| other != key);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Takes all out, each once, in their order; to be [given back](Self::give_back).
    pub(super) fn take(&mut self) -> Vec<GroupKey> {
        self.settle();
        std::mem::replace(&mut self.keys, std::mem::take(&mut self.spare))
    }

    /// Keeps the list for another turn.
    pub(super) fn give_back(&mut self, mut list: Vec<GroupKey>) {
        list.clear();
        self.spare = list;
    }

    fn settle(&mut self) {
        self.keys.sort_unstable();
        self.keys.dedup();
    }
}

#[cfg(test)]
mod tests {
    use tidelog_record::{PartitionId, TopicId};

    use super::*;

    #[test]
    fn each_is_there_once_and_in_order_however_often_it_comes() {
        let key = |partition| GroupKey {
            topic_id: TopicId::from_bytes([1; 16]),
            partition: PartitionId::new(partition),
        };
        let mut due = Due::default();
        for turn in 0..3 {
            for number in 0..100_000_u32 {
                due.insert(key(number * 7 % 50));
            }
            due.remove(&key(turn));
            assert!(due.keys.capacity() < 1000, "bounded by how many there are");
            let taken = due.take();
            let expected = (0..50).filter(|number| *number != turn).map(key);
            assert_eq!(taken, expected.collect::<Vec<_>>());
            assert!(due.is_empty());
            due.insert(key(3));
            due.give_back(taken);
            assert_eq!(due.take(), [key(3)]);
        }
    }
}

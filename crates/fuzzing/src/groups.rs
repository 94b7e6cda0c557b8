//! Records of `__consumer_offsets`.

use tidelog_group::format::{Decoded, GroupRecord};
use tidelog_group::{Coordinator, GroupOptions};

/// A record of groups: the length of its key, whether it has a value, and both. What can be decoded is what is written
/// again, and what is written can be decoded; a coordinator takes it in or refuses it.
pub fn group_record(data: &[u8]) {
    let Some((&[key_len, has_value], rest)) = data.split_first_chunk() else {
        return;
    };
    let (key, value) = rest.split_at(rest.len().min(usize::from(key_len)));
    let value = (has_value % 2 == 1).then_some(value);
    let mut coordinator = Coordinator::new(GroupOptions::default());
    let folded = coordinator.fold(key, value);
    assert!(coordinator.take_decided().is_empty());
    let Ok(Decoded::Record(record)) = GroupRecord::decode(key, value) else {
        return;
    };
    // A coordinator refuses more: names that clients could not have given.
    drop(folded);
    let Ok((key, value)) = record.encode() else {
        return;
    };
    let again = GroupRecord::decode(&key, value.as_deref());
    assert_eq!(again, Ok(Decoded::Record(record)));
}

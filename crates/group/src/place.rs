//! Which partition of `__consumer_offsets` a group belongs to.

use std::num::NonZeroU32;

/// The partition of `__consumer_offsets` that a group belongs to, of `partitions`.
///
/// As in Kafka: the absolute value of Java's hash of the name, modulo the number of partitions, and 0 for the one hash
/// without an absolute value (`GroupCoordinatorService.partitionFor` of Apache Kafka; `String.hashCode` of the Java
/// platform: `h = 31 h + c` over the UTF-16 units, in 32 bits).
pub fn partition_of(group: &str, partitions: NonZeroU32) -> u32 {
    let units = group.encode_utf16();
    let hash = units.fold(0i32, |hash, unit| {
        hash.wrapping_mul(31).wrapping_add(i32::from(unit))
    });
    let positive = hash.checked_abs().unwrap_or(0).unsigned_abs();
    positive % partitions
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_belong_where_kafka_looks_for_them() {
        // "polygenelubricants" is known for having the one hash without an absolute value. The others were asked of
        // `Utils.abs(group.hashCode()) % 50` on the Java platform, 17.
        let of = |group| partition_of(group, NonZeroU32::new(50).unwrap());
        assert_eq!(of("polygenelubricants"), 0);
        for (group, partition) in GROUPS {
            assert_eq!(of(group), *partition, "{group}");
        }
    }

    const GROUPS: &[(&str, u32)] = &[
        ("a", 47),
        ("orders", 31),
        ("my-group", 12),
        ("group-0", 48),
        ("größe", 7),
        ("日本語", 43),
        ("🦀", 2),
        ("consumer.group_1", 5),
        ("zzzzzzzzzzzzzzzz", 34),
        ("billing-service-prod", 49),
    ];
}

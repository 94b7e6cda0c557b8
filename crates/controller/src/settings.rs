//! The settings of a topic.

use std::collections::BTreeMap;

use thiserror::Error;

/// One setting a topic may have.
#[derive(Clone, Copy, Debug)]
pub struct SettingSpec {
    /// Its name; Kafka's where Kafka has it.
    pub name: &'static str,
    /// Its value when nobody sets it.
    pub default: &'static str,
    /// What it does, with its unit.
    pub doc: &'static str,
    allowed: Allowed,
}

#[derive(Clone, Copy, Debug)]
enum Allowed {
    Integer {
        min: i64,
        max: i64,
    },
    OneOf(&'static [&'static str]),
    /// From 0 to 1.
    Ratio,
}

impl SettingSpec {
    /// The values that are allowed, for people.
    pub fn allowed(&self) -> String {
        match self.allowed {
            Allowed::Integer { min, max: i64::MAX } => format!("an integer of {min} or more"),
            Allowed::Integer { min, max } => format!("an integer from {min} to {max}"),
            Allowed::OneOf([one, other]) => format!("{one} or {other}"),
            Allowed::OneOf(values) => values.join(", "),
            Allowed::Ratio => "a number from 0 to 1".to_owned(),
        }
    }

    fn accepts(&self, value: &str) -> bool {
        match self.allowed {
            Allowed::Integer { min, max } => value
                .parse()
                .is_ok_and(|number: i64| (min..=max).contains(&number)),
            Allowed::OneOf(values) => values.contains(&value),
            Allowed::Ratio => value
                .parse()
                .is_ok_and(|number: f64| (0.0..=1.0).contains(&number)),
        }
    }
}

const SPECS: [SettingSpec; 13] = [
    SettingSpec {
        name: "cleanup.policy",
        default: "delete",
        doc: "What happens to old segments: they are deleted, or compacted, which keeps the last \
              record of each key, or both.",
        allowed: Allowed::OneOf(&["delete", "compact", "compact,delete", "delete,compact"]),
    },
    SettingSpec {
        name: "delete.retention.ms",
        default: "86400000",
        doc: "How long compaction keeps a tombstone once nothing older of its key is left, in \
              milliseconds.",
        allowed: Allowed::Integer {
            min: 0,
            max: i64::MAX,
        },
    },
    SettingSpec {
        name: "index.interval.bytes",
        default: "16384",
        doc: "How far apart index entries are, in bytes.",
        allowed: Allowed::Integer {
            min: 1024,
            max: 1 << 30,
        },
    },
    SettingSpec {
        name: "max.compaction.lag.ms",
        default: "9223372036854775807",
        doc: "How long records of a compacted topic wait for compaction at most, in milliseconds.",
        allowed: Allowed::Integer {
            min: 1,
            max: i64::MAX,
        },
    },
    SettingSpec {
        name: "max.message.bytes",
        default: "1048588",
        doc: "The largest record batch that is taken, in bytes.",
        allowed: Allowed::Integer {
            min: 1024,
            max: 64 << 20,
        },
    },
    SettingSpec {
        name: "message.timestamp.type",
        default: "CreateTime",
        doc: "Whether records keep the timestamp of their producer, or get the broker's.",
        allowed: Allowed::OneOf(&["CreateTime", "LogAppendTime"]),
    },
    SettingSpec {
        name: "min.cleanable.dirty.ratio",
        default: "0.5",
        doc: "Which share of a compacted partition has to be new for it to be compacted.",
        allowed: Allowed::Ratio,
    },
    SettingSpec {
        name: "min.compaction.lag.ms",
        default: "0",
        doc: "How long a segment of a compacted topic is left alone after it was completed, in \
              milliseconds.",
        allowed: Allowed::Integer {
            min: 0,
            max: i64::MAX,
        },
    },
    SettingSpec {
        name: "retention.bytes",
        default: "-1",
        doc: "How much of a partition is kept, in bytes, by whole segments; -1: all.",
        allowed: Allowed::Integer {
            min: -1,
            max: i64::MAX,
        },
    },
    SettingSpec {
        name: "retention.ms",
        default: "604800000",
        doc: "How long a segment is kept after it was completed, in milliseconds by the broker's \
              clock; -1: for ever.",
        allowed: Allowed::Integer {
            min: -1,
            max: i64::MAX,
        },
    },
    SettingSpec {
        name: "segment.bytes",
        default: "1073741824",
        doc: "How long a segment file gets, in bytes.",
        // Room for a few internal entries stays below 2^31, where positions end.
        allowed: Allowed::Integer {
            min: 1 << 20,
            max: (1 << 31) - (1 << 20),
        },
    },
    SettingSpec {
        name: "segment.ms",
        default: "604800000",
        doc: "How old a segment gets before an append begins the next one, in milliseconds.",
        allowed: Allowed::Integer {
            min: 1,
            max: i64::MAX,
        },
    },
    SettingSpec {
        name: "write.caching",
        default: "false",
        doc: "Whether acks=all waits only until a majority has written the batch, which then is synced in \
              the background: a loss of power may cost what was acknowledged last.",
        allowed: Allowed::OneOf(&["false", "true"]),
    },
];

/// Every setting a topic may have, by name.
pub fn setting_specs() -> &'static [SettingSpec] {
    &SPECS
}

/// Why settings are refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SettingError {
    /// There is no setting of this name.
    #[error("there is no topic setting {name:?}{}; there are {}",
        suggestion.map(|near| format!("; did you mean {near:?}?")).unwrap_or_default(),
        SPECS.map(|spec| spec.name).join(", "))]
    Unknown {
        /// What was asked for.
        name: String,
        /// A name that is nearly the same.
        suggestion: Option<&'static str>,
    },
    /// The value is not allowed.
    #[error("{name} cannot be {value:?}: allowed is {allowed}")]
    Value {
        /// The setting.
        name: &'static str,
        /// What was asked for.
        value: String,
        /// What is allowed.
        allowed: String,
    },
    /// Two settings contradict each other.
    #[error(
        "max.message.bytes ({max_message_bytes}) must be at most half of segment.bytes ({segment_bytes})"
    )]
    MessageAboveSegment {
        /// The largest batch.
        max_message_bytes: u32,
        /// The longest segment.
        segment_bytes: u32,
    },
    /// Two other settings contradict each other.
    #[error("min.compaction.lag.ms ({min}) must be at most max.compaction.lag.ms ({max})")]
    CompactionLags {
        /// The shortest wait.
        min: u64,
        /// The longest.
        max: u64,
    },
}

/// What happens to old segments: at least one of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CleanupPolicy {
    /// They are deleted, by `retention.ms` and `retention.bytes`.
    pub delete: bool,
    /// They are compacted.
    pub compact: bool,
}

/// Which timestamp records get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimestampPolicy {
    /// The producer's.
    CreateTime,
    /// The broker's, at the append.
    LogAppendTime,
}

/// The settings of one topic: what was set, and every value in force.
#[derive(Clone, Debug, PartialEq)]
pub struct TopicSettings {
    set: BTreeMap<String, String>,
    /// `cleanup.policy`
    pub cleanup: CleanupPolicy,
    /// `delete.retention.ms`
    pub delete_retention_ms: u64,
    /// `index.interval.bytes`
    pub index_interval_bytes: u32,
    /// `max.compaction.lag.ms`
    pub max_compaction_lag_ms: u64,
    /// `max.message.bytes`
    pub max_message_bytes: u32,
    /// `min.cleanable.dirty.ratio`
    pub min_cleanable_dirty_ratio: f64,
    /// `min.compaction.lag.ms`
    pub min_compaction_lag_ms: u64,
    /// `message.timestamp.type`
    pub timestamp_policy: TimestampPolicy,
    /// `retention.bytes`; `None` for all.
    pub retention_bytes: Option<u64>,
    /// `retention.ms`; `None` for ever.
    pub retention_ms: Option<u64>,
    /// `segment.bytes`
    pub segment_bytes: u32,
    /// `segment.ms`
    pub segment_ms: u64,
    /// `write.caching`
    pub write_caching: bool,
}

/// The one number that is no integer is never NaN.
impl Eq for TopicSettings {}

/// A setting and the value in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EffectiveSetting {
    /// Its name.
    pub name: &'static str,
    /// Its value.
    pub value: String,
    /// Whether nobody set it.
    pub is_default: bool,
}

impl TopicSettings {
    /// The settings that come from setting these and leaving the rest at their defaults.
    ///
    /// # Errors
    /// The first setting that is unknown or has a value that is not allowed.
    pub fn new(set: BTreeMap<String, String>) -> Result<Self, SettingError> {
        for (name, value) in &set {
            let spec = find(name)?;
            if !spec.accepts(value) {
                return Err(SettingError::Value {
                    name: spec.name,
                    value: value.chars().take(100).collect(),
                    allowed: spec.allowed(),
                });
            }
        }
        let text = |name: &str| -> &str {
            let spec = SPECS.iter().find(|spec| spec.name == name);
            let default = spec.expect("asked for by its constant name").default;
            set.get(name).map_or(default, String::as_str)
        };
        let integer = |name| {
            text(name)
                .parse::<i64>()
                .expect("checked above, defaults too")
        };
        let small = |name| u32::try_from(integer(name)).expect("its range fits");
        let unless_negative = |name| u64::try_from(integer(name)).ok();
        let positive = |name| unless_negative(name).expect("its range is positive");
        let policy = text("cleanup.policy");

        let settings = Self {
            cleanup: CleanupPolicy {
                delete: policy.contains("delete"),
                compact: policy.contains("compact"),
            },
            delete_retention_ms: positive("delete.retention.ms"),
            index_interval_bytes: small("index.interval.bytes"),
            max_compaction_lag_ms: positive("max.compaction.lag.ms"),
            min_cleanable_dirty_ratio: text("min.cleanable.dirty.ratio")
                .parse()
                .expect("checked above, defaults too"),
            min_compaction_lag_ms: positive("min.compaction.lag.ms"),
            max_message_bytes: small("max.message.bytes"),
            timestamp_policy: match text("message.timestamp.type") {
                "LogAppendTime" => TimestampPolicy::LogAppendTime,
                _ => TimestampPolicy::CreateTime,
            },
            retention_bytes: unless_negative("retention.bytes"),
            retention_ms: unless_negative("retention.ms"),
            segment_bytes: small("segment.bytes"),
            segment_ms: positive("segment.ms"),
            write_caching: text("write.caching") == "true",
            set,
        };
        let (min, max) = (
            settings.min_compaction_lag_ms,
            settings.max_compaction_lag_ms,
        );
        if min > max {
            return Err(SettingError::CompactionLags { min, max });
        }
        // Half, so that a segment is never mostly reserve, and a batch always fits beside headers.
        if settings.max_message_bytes > settings.segment_bytes / 2 {
            let max_message_bytes = settings.max_message_bytes;
            // The default of one must not forbid small values of the other.
            if settings.set.contains_key("max.message.bytes") {
                let segment_bytes = settings.segment_bytes;
                return Err(SettingError::MessageAboveSegment {
                    max_message_bytes,
                    segment_bytes,
                });
            }
            let max_message_bytes = settings.segment_bytes / 2;
            return Ok(Self {
                max_message_bytes,
                ..settings
            });
        }
        Ok(settings)
    }

    /// What was set.
    pub fn set(&self) -> &BTreeMap<String, String> {
        &self.set
    }

    /// Every setting with the value in force, by name.
    pub fn effective(&self) -> Vec<EffectiveSetting> {
        SPECS
            .iter()
            .map(|spec| EffectiveSetting {
                name: spec.name,
                value: match (self.set.get(spec.name), spec.name) {
                    (Some(value), _) => value.clone(),
                    (None, "max.message.bytes") => self.max_message_bytes.to_string(),
                    (None, _) => spec.default.to_owned(),
                },
                is_default: !self.set.contains_key(spec.name),
            })
            .collect()
    }

    /// These settings with some set and some reset to their defaults.
    ///
    /// # Errors
    /// As for [`TopicSettings::new`]; also when a setting to be reset does not exist.
    pub fn altered(
        &self,
        set: BTreeMap<String, String>,
        reset: &[String],
    ) -> Result<Self, SettingError> {
        let mut all = self.set.clone();
        all.extend(set);
        for name in reset {
            find(name)?;
            all.remove(name);
        }
        Self::new(all)
    }
}

impl Default for TopicSettings {
    fn default() -> Self {
        Self::new(BTreeMap::new()).expect("the defaults are allowed")
    }
}

fn find(name: &str) -> Result<&'static SettingSpec, SettingError> {
    SPECS
        .iter()
        .find(|spec| spec.name == name)
        .ok_or_else(|| SettingError::Unknown {
            name: name.chars().take(100).collect(),
            suggestion: nearest(name),
        })
}

/// The name with the fewest changes from `name`, if they are few.
fn nearest(name: &str) -> Option<&'static str> {
    let normal: String = name
        .chars()
        .take(64)
        .map(|c| if matches!(c, '_' | '-') { '.' } else { c })
        .collect();
    SPECS
        .iter()
        .map(|spec| (distance(&normal.to_ascii_lowercase(), spec.name), spec.name))
        .min()
        .filter(|(distance, _)| *distance <= 3)
        .map(|(_, name)| name)
}

/// Levenshtein's distance in bytes.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(pairs: &[(&str, &str)]) -> Result<TopicSettings, SettingError> {
        TopicSettings::new(
            pairs
                .iter()
                .map(|(k, v)| (k.to_string(), v.to_string()))
                .collect(),
        )
    }

    #[test]
    fn defaults_are_those_of_kafka_where_it_has_them() {
        let defaults = TopicSettings::default();
        assert_eq!(defaults.segment_bytes, 1 << 30);
        assert_eq!(defaults.max_message_bytes, 1_048_588);
        assert_eq!(defaults.retention_ms, Some(7 * 24 * 3600 * 1000));
        assert_eq!(defaults.retention_bytes, None);
        assert_eq!(defaults.timestamp_policy, TimestampPolicy::CreateTime);
        assert!(
            defaults
                .effective()
                .iter()
                .all(|setting| setting.is_default)
        );
    }

    #[test]
    fn every_default_is_allowed_and_names_are_sorted() {
        assert!(SPECS.iter().all(|spec| spec.accepts(spec.default)));
        assert!(SPECS.is_sorted_by_key(|spec| spec.name));
    }

    #[test]
    fn errors_say_what_is_allowed() {
        let e = settings(&[("segment.bytes", "12")]).unwrap_err();
        assert_eq!(
            e.to_string(),
            "segment.bytes cannot be \"12\": allowed is an integer from 1048576 to 2146435072"
        );
        let e = settings(&[("cleanup.policy", "compress")]).unwrap_err();
        assert_eq!(
            e.to_string(),
            "cleanup.policy cannot be \"compress\": \
             allowed is delete, compact, compact,delete, delete,compact"
        );
        for ratio in ["-0.1", "1.1", "NaN", "half", ""] {
            let e = settings(&[("min.cleanable.dirty.ratio", ratio)]).unwrap_err();
            assert!(e.to_string().ends_with("a number from 0 to 1"), "{e}");
        }
        let e = settings(&[
            ("min.compaction.lag.ms", "2"),
            ("max.compaction.lag.ms", "1"),
        ]);
        assert_eq!(e, Err(SettingError::CompactionLags { min: 2, max: 1 }));
        let e = settings(&[("retention_ms", "1")]).unwrap_err();
        assert!(
            e.to_string().contains("did you mean \"retention.ms\"?"),
            "{e}"
        );
        let e = settings(&[("colour", "red")]).unwrap_err();
        assert!(e.to_string().contains("there are cleanup.policy, "), "{e}");
    }

    #[test]
    fn a_small_segment_takes_smaller_batches() {
        let small = settings(&[("segment.bytes", "1048576")]).unwrap();
        assert_eq!(small.max_message_bytes, 524_288);
        let e = settings(&[
            ("segment.bytes", "1048576"),
            ("max.message.bytes", "1000000"),
        ]);
        assert!(matches!(e, Err(SettingError::MessageAboveSegment { .. })));
    }

    #[test]
    fn policies_are_each_alone_or_both() {
        let policy = |text| settings(&[("cleanup.policy", text)]).unwrap().cleanup;
        let is = |delete, compact| CleanupPolicy { delete, compact };
        assert_eq!(policy("delete"), is(true, false));
        assert_eq!(policy("compact"), is(false, true));
        assert_eq!(policy("compact,delete"), is(true, true));
        assert_eq!(policy("delete,compact"), is(true, true));
        let settings = settings(&[("min.cleanable.dirty.ratio", "0.25")]).unwrap();
        assert!((settings.min_cleanable_dirty_ratio - 0.25).abs() < f64::EPSILON);
        assert_eq!(settings.delete_retention_ms, 24 * 3600 * 1000);
        assert_eq!(settings.min_compaction_lag_ms, 0);
    }

    #[test]
    fn altering_keeps_what_is_not_named() {
        let before = settings(&[("retention.ms", "5"), ("segment.ms", "6")]).unwrap();
        let set = [("segment.ms".to_owned(), "7".to_owned())].into();
        let after = before.altered(set, &["retention.ms".to_owned()]).unwrap();
        assert_eq!(after.segment_ms, 7);
        assert_eq!(after.retention_ms, TopicSettings::default().retention_ms);
        assert!(
            before
                .altered(BTreeMap::new(), &["nothing".to_owned()])
                .is_err()
        );
    }
}

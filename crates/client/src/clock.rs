//! The wall clock, for records without a timestamp of their own.

use std::time::{SystemTime, UNIX_EPOCH};

use tidelog_record::Timestamp;

/// Now, in milliseconds since the Unix epoch.
#[allow(
    clippy::disallowed_methods,
    reason = "a client stamps records with its own clock; nothing here is replayed"
)]
pub(crate) fn now() -> Timestamp {
    let since_epoch = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Timestamp::from_millis(i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX))
}

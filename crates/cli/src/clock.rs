//! The clocks of the command line.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tidelog_client::Timestamp;

/// Now, in milliseconds since the Unix epoch: what `@-1h` is counted from.
#[allow(
    clippy::disallowed_methods,
    reason = "what a person means by an hour ago; nothing here is replayed"
)]
pub(crate) fn now() -> Timestamp {
    let since_epoch = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Timestamp::from_millis(i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX))
}

/// The processor time that this process has taken, in all of its threads.
pub(crate) fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or_default())
}

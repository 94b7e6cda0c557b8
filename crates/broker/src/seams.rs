//! What a broker takes from the world, so that a test can give it another one.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tidelog_disk::{Disk, OsDisk};
use tidelog_record::Timestamp;
use tidelog_replica::{NodeId, Post};

/// The clocks. Record timestamps, the age of segments and producers, and compaction go by them.
pub trait Clock: Debug + Send + Sync + 'static {
    /// Now, by the wall clock, which may jump.
    fn now(&self) -> Timestamp;

    /// How long it is since some moment that stays the same: a clock that never jumps.
    fn monotonic(&self) -> Duration;
}

/// Where new ids come from.
pub trait Random: Debug + Send + Sync + 'static {
    /// 16 bytes that never came before.
    fn id(&self) -> [u8; 16];
}

/// The way to the other brokers of a cluster.
pub trait Peers: Debug + Send + Sync + 'static {
    /// Sends what there is for a broker, which may lose it; never waits.
    ///
    /// # Errors
    /// What surely does not arrive comes back.
    fn send(&self, to: NodeId, post: Post) -> Result<(), Post>;
}

/// Where there are no others.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoPeers;

impl Peers for NoPeers {
    fn send(&self, _to: NodeId, post: Post) -> Result<(), Post> {
        Err(post)
    }
}

/// The disk, the clock and the randomness of a broker, and its way to others.
#[derive(Clone, Debug)]
pub struct Seams {
    /// Where files are.
    pub disk: Arc<dyn Disk>,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
    /// Where ids come from.
    pub random: Arc<dyn Random>,
    /// Where the other brokers are.
    pub peers: Arc<dyn Peers>,
}

impl Seams {
    /// Those of the operating system.
    pub fn os() -> Self {
        #[expect(
            clippy::disallowed_methods,
            reason = "this is the one door to the monotonic clock"
        )]
        let began = Instant::now();
        Self {
            disk: Arc::new(OsDisk),
            clock: Arc::new(OsClock { began }),
            random: Arc::new(OsRandom),
            peers: Arc::new(NoPeers),
        }
    }
}

#[derive(Debug)]
struct OsClock {
    began: Instant,
}

impl Clock for OsClock {
    fn now(&self) -> Timestamp {
        #[allow(
            clippy::disallowed_methods,
            reason = "this is the one door to the wall clock"
        )]
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        // A clock before 1970 is taken as 1970.
        let millis = since.map_or(0, |since| since.as_millis());
        Timestamp::from_millis(i64::try_from(millis).unwrap_or(i64::MAX))
    }

    fn monotonic(&self) -> Duration {
        self.began.elapsed()
    }
}

#[derive(Debug)]
struct OsRandom;

impl Random for OsRandom {
    fn id(&self) -> [u8; 16] {
        uuid::Uuid::new_v4().into_bytes()
    }
}

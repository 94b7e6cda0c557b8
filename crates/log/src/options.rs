use crate::segment::SEGMENT_BYTES_LIMIT;

/// Settings of one log; may change while it is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogOptions {
    /// The longest a segment file gets, in bytes (Kafka's `segment.bytes`): a batch that would
    /// pass it begins the next segment, and one that can fit no segment is refused. Internal
    /// entries may pass it. At most [`SEGMENT_BYTES_LIMIT`] counts.
    pub segment_bytes: u32,
    /// How old a segment gets before the next append rolls it, in milliseconds
    /// (Kafka's `segment.ms`).
    pub segment_ms: u64,
    /// How far apart index entries are at least, in bytes (Kafka's `index.interval.bytes`).
    pub index_interval_bytes: u32,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self {
            segment_bytes: 1 << 30,
            segment_ms: 7 * 24 * 60 * 60 * 1000,
            index_interval_bytes: 16 << 10,
        }
    }
}

/// Bytes a map reaches past `segment_bytes`: internal entries never cause a roll.
const MAP_SLACK: u64 = 1 << 20;

impl LogOptions {
    /// How long the map of a segment with these options is: the whole of what it may become.
    pub(crate) fn map_len(&self) -> u64 {
        u64::from(self.segment_bytes_max()) + MAP_SLACK
    }

    /// `segment_bytes` within the format's limit.
    pub(crate) fn segment_bytes_max(&self) -> u32 {
        self.segment_bytes.min(SEGMENT_BYTES_LIMIT)
    }
}

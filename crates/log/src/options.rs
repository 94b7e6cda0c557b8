use crate::segment::SEGMENT_BYTES_LIMIT;

/// Settings of one log; may change while it is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogOptions {
    /// The longest a segment file gets, in bytes (Kafka's `segment.bytes`): a batch that would
    /// pass it begins the next segment, and one that can fit no segment is refused. Internal
    /// entries may pass it. At most [`SEGMENT_BYTES_LIMIT`] counts.
    pub segment_bytes: u32,
    /// How old a segment gets before the next append rolls it, in milliseconds (Kafka's
    /// `segment.ms`). One that nothing is appended to is sealed by retention.
    pub segment_ms: u64,
    /// How far apart index entries are at least, in bytes (Kafka's `index.interval.bytes`).
    pub index_interval_bytes: u32,
    /// Bytes past the end of the log that stay reserved, also while it is closed: for the log's
    /// own entries, so that it can be opened and trimmed on a disk without any free space.
    pub room_bytes: u32,
    /// Whether appends may take that room too, once the disk has nothing else to give.
    pub appends_use_room: bool,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self {
            segment_bytes: 1 << 30,
            segment_ms: 7 * 24 * 60 * 60 * 1000,
            index_interval_bytes: 16 << 10,
            room_bytes: 0,
            appends_use_room: false,
        }
    }
}

/// Bytes a map reaches past `segment_bytes`: internal entries never cause a roll.
const MAP_SLACK: u64 = 1 << 20;
/// File systems give out space in steps of this, or of less.
const BLOCK_BYTES: u64 = 4096;

impl LogOptions {
    /// How long the map of a segment with these options is: the whole of what it may become.
    pub(crate) fn map_len(&self) -> u64 {
        u64::from(self.segment_bytes_max()) + MAP_SLACK
    }

    /// How long the file of a log that ends at `position` is while nothing is appended: with the
    /// room, up to the next border of a block.
    pub(crate) fn resting_len(&self, position: u32) -> u64 {
        let position = u64::from(position);
        if self.room_bytes == 0 {
            return position;
        }
        let len = (position + u64::from(self.room_bytes)).next_multiple_of(BLOCK_BYTES);
        len.min(u64::from(SEGMENT_BYTES_LIMIT)).max(position)
    }

    /// `segment_bytes` within the format's limit.
    pub(crate) fn segment_bytes_max(&self) -> u32 {
        self.segment_bytes.min(SEGMENT_BYTES_LIMIT)
    }
}

//! How large a batch may be.

/// The limits of one batch. Each is checked before memory is taken for what it bounds.
///
/// Keys, values, and the names and values of headers have no limit of their own: they are slices of
/// the batch, so that `batch_bytes_max`, and `decompressed_bytes_max` if it is compressed, bound
/// them all together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchLimits {
    /// Bytes of the batch as it is stored: header and (compressed) records.
    pub batch_bytes_max: usize,
    /// Bytes of its records once decompressed. Only compressed batches can meet it.
    pub decompressed_bytes_max: usize,
    /// Records in the batch.
    pub records_max: usize,
    /// Headers of any one record.
    pub record_headers_max: usize,
    /// Whether each record of a produced batch must have a key, as compaction needs it.
    pub keys_required: bool,
}

impl BatchLimits {
    /// What `batch_bytes_max` is unless configured: Kafka's `max.message.bytes`, 1 MiB and one
    /// batch prefix.
    pub const BATCH_BYTES_MAX_DEFAULT: usize = 1_048_588;
}

impl Default for BatchLimits {
    /// 1,048,588 bytes a batch, 64 MiB decompressed, 1,000,000 records, 10,000 headers a record;
    /// keys are not required.
    ///
    /// Only the first is Kafka's. The others lie far above what clients send, since a client's
    /// batch is gathered in memory before it is compressed, and bound the work and the memory that
    /// one batch can cost a broker or a consumer.
    fn default() -> Self {
        Self {
            batch_bytes_max: Self::BATCH_BYTES_MAX_DEFAULT,
            decompressed_bytes_max: 64 * 1024 * 1024,
            records_max: 1_000_000,
            record_headers_max: 10_000,
            keys_required: false,
        }
    }
}

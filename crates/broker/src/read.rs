//! Reading: at once, or after waiting for more; looking up offsets; deleting a prefix.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::select_all;
use tidelog_log::{Batches, Found};
use tidelog_record::{LeaderEpoch, Offset, Timestamp};
use tokio::sync::oneshot;

use crate::Broker;
use crate::error::{AppendError, DeleteError, LookupError, ReadError};
use crate::mailbox::Command;
use crate::metrics::Metrics;
use crate::partition::Partition;

/// Reads that wait for the disk at the same time, for the whole broker: each holds a few MiB.
pub(crate) const COLD_READS_MAX: usize = 16;

/// How long it may take a leader to make sure that it leads.
const CONFIRM_WAIT_MAX: Duration = Duration::from_secs(5);

/// No fetch waits longer, so that its deadline can be told.
const FETCH_WAIT_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// A partition, to be read.
#[derive(Clone, Debug)]
pub struct PartitionHandle {
    broker: Broker,
    partition: Arc<Partition>,
    /// Whether a replica that does not lead answers as well.
    from_replica: bool,
}

/// Where a partition begins and ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// The first readable offset.
    pub log_start: Offset,
    /// Everything below is acknowledged and readable.
    pub high_watermark: Offset,
    /// The next offset to be assigned.
    pub log_end: Offset,
    /// The leadership in force.
    pub leader_epoch: LeaderEpoch,
}

/// An offset in a partition, or by what to look one up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OffsetSpec {
    /// This offset.
    Offset(Offset),
    /// The log start offset.
    Earliest,
    /// The high watermark.
    Latest,
    /// The first record with this timestamp or a later one; else the high watermark.
    Timestamp(Timestamp),
    /// So many records before the high watermark, but not below the log start.
    BeforeLatest(u64),
}

/// An offset that was looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// The offset.
    pub offset: Offset,
    /// The timestamp of the record there, in look-ups by time that found one.
    pub timestamp: Option<Timestamp>,
    /// The leadership that wrote it, or would write it next.
    pub leader_epoch: LeaderEpoch,
}

/// What was read from one partition.
#[derive(Clone, Debug)]
pub struct PartitionData {
    /// Whole batches; the first may begin below the offset asked for.
    pub batches: Batches,
    /// When they were read.
    pub high_watermark: Offset,
    /// When they were read.
    pub log_start: Offset,
}

/// A read from several partitions.
#[derive(Clone, Debug)]
pub struct FetchRequest {
    /// The partitions, in the order in which they may fill `bytes_max`.
    pub partitions: Vec<FetchPartition>,
    /// Answer as soon as there are so many bytes.
    pub bytes_min: usize,
    /// Stop adding at so many bytes; the first batch is given whatever its length.
    pub bytes_max: usize,
    /// Answer after so long in any case; at most a day.
    pub wait_max: Duration,
    /// Also where another broker leads: see [`PartitionHandle::from_replica`].
    pub from_replica: bool,
}

/// A partition to be read from.
#[derive(Clone, Debug)]
pub struct FetchPartition {
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: u32,
    /// The first offset wanted.
    pub offset: u64,
    /// Stop adding from this partition at so many bytes.
    pub bytes_max: usize,
}

/// What a fetch found in one partition.
#[derive(Clone, Debug)]
pub struct FetchedPartition {
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: u32,
    /// The batches, or why there are none.
    pub result: Result<PartitionData, ReadError>,
}

impl PartitionHandle {
    pub(crate) fn new(broker: Broker, partition: Arc<Partition>) -> Self {
        Self {
            broker,
            partition,
            from_replica: false,
        }
    }

    /// The same, to be read from although another broker leads: up to the high watermark that is known
    /// here, which may be an older one.
    #[must_use]
    pub fn from_replica(mut self, from_replica: bool) -> Self {
        self.from_replica = from_replica;
        self
    }

    /// The topic's name.
    pub fn topic(&self) -> &str {
        self.partition.topic.as_str()
    }

    /// The partition's number.
    pub fn partition(&self) -> u32 {
        self.partition.number()
    }

    /// Where it begins and ends now.
    pub fn ends(&self) -> Ends {
        Ends {
            log_start: self.partition.reader().log_start(),
            high_watermark: self.partition.high_watermark(),
            log_end: self.partition.reader().end_offset(),
            leader_epoch: self.partition.leader_epoch(),
        }
    }

    /// Reads whole batches from the one that holds `from` on, about `bytes_max` of them; none at
    /// the high watermark, and none where compaction has left nothing below it. Does not wait for new
    /// records, but may wait for the disk. What was written lately comes as slices of a map, without a
    /// copy.
    ///
    /// # Errors
    /// [`ReadError::OutOfRange`] below the log start or above the high watermark; the topic may be
    /// gone; the bytes may be damaged.
    pub async fn read(&self, from: Offset, bytes_max: usize) -> Result<PartitionData, ReadError> {
        #[expect(
            clippy::disallowed_methods,
            reason = "measured for people, decides nothing"
        )]
        let began = Instant::now();
        let partition = &self.partition;
        self.check_open()?;
        let high_watermark = partition.high_watermark();
        if from > high_watermark && self.is_to_come(from) {
            return Ok(PartitionData {
                batches: Batches::empty(from),
                high_watermark,
                log_start: partition.reader().log_start(),
            });
        }
        let mut batches = self.read_once(from, high_watermark, bytes_max).await?;
        // Segments that compaction has emptied from there on.
        while batches.is_empty() && batches.next_offset < high_watermark {
            let next = batches.next_offset;
            batches = self.read_once(next, high_watermark, bytes_max).await?;
            if batches.next_offset == next {
                break;
            }
        }
        let metrics = &self.broker.inner().metrics;
        metrics.fetch_bytes.inc_by(batches.len_bytes() as u64);
        Metrics::observe(&metrics.fetch_seconds, began.elapsed());
        Ok(PartitionData {
            batches,
            high_watermark,
            log_start: partition.reader().log_start(),
        })
    }

    /// Where it begins and ends, with everything that was acknowledged before this call.
    ///
    /// # Errors
    /// Another broker leads, or this one cannot make sure that it does; the topic may be gone.
    pub async fn confirmed_ends(&self) -> Result<Ends, ReadError> {
        self.check_open()?;
        self.confirm_watermark().await?;
        Ok(self.ends())
    }

    /// Whether an offset above the high watermark may be one that was read before: another leader, or
    /// another replica, may know of a higher one. Reading from there waits.
    pub fn is_to_come(&self, from: Offset) -> bool {
        let partition = &self.partition;
        let may_lag = self.from_replica && !partition.answers_for_leader();
        partition.has_others() && (may_lag || from <= partition.reader().end_offset())
    }

    async fn read_once(
        &self,
        from: Offset,
        high_watermark: Offset,
        bytes_max: usize,
    ) -> Result<Batches, ReadError> {
        let reader = &self.partition.reader();
        let failed = |e| self.read_error(e, high_watermark);
        match reader
            .read(from, high_watermark, bytes_max)
            .map_err(failed)?
        {
            Found::Ready(batches) => Ok(batches),
            Found::Cold(cold) => {
                let inner = self.broker.inner();
                inner.metrics.cold_reads.inc();
                let read_turns = inner.read_turns.clone();
                let permit = inner.cold_reads.clone().acquire_owned().await;
                let permit = permit.map_err(|_| ReadError::Stopping)?;
                let run = move || {
                    // Kept by the read, which goes on when nobody waits for it any more.
                    let _permit = permit;
                    cold.run_beside(&read_turns)
                };
                let read = tokio::task::spawn_blocking(run).await;
                read.map_err(|e| ReadError::Disk(e.to_string()))?
                    .map_err(failed)
            }
        }
    }

    /// Waits until there is something above `offset`, the topic is deleted, another broker leads, or the
    /// broker stops.
    pub async fn wait_beyond(&self, offset: Offset) {
        let mut progress = self.partition.progress.subscribe();
        let needs_lead = !self.from_replica && self.partition.has_others();
        let changed = progress
            .wait_for(|now| now.closed || now.high_watermark > offset || needs_lead && !now.leads)
            .await;
        // The sender lives in the partition that this handle holds.
        drop(changed);
    }

    /// Looks an offset up. One that is given is not checked against the log.
    ///
    /// # Errors
    /// Look-ups by time read from the disk, which may fail.
    pub async fn resolve(&self, at: OffsetSpec) -> Result<Resolved, ReadError> {
        self.check_open()?;
        if matches!(at, OffsetSpec::Latest | OffsetSpec::BeforeLatest(_)) {
            self.confirm_watermark().await?;
        }
        let ends = self.ends();
        let (offset, timestamp) = match at {
            OffsetSpec::Offset(offset) => (offset, None),
            OffsetSpec::Earliest => (ends.log_start, None),
            OffsetSpec::Latest => (ends.high_watermark, None),
            OffsetSpec::BeforeLatest(records) => (
                ends.high_watermark
                    .saturating_sub(records)
                    .max(ends.log_start),
                None,
            ),
            OffsetSpec::Timestamp(timestamp) => {
                let cold_reads = self.broker.inner().cold_reads.clone();
                let permit = cold_reads.acquire_owned().await;
                let permit = permit.map_err(|_| ReadError::Stopping)?;
                let reader = self.partition.reader().clone();
                let find = move || {
                    let _permit = permit;
                    reader.find_timestamp(timestamp, ends.high_watermark)
                };
                let found = tokio::task::spawn_blocking(find).await;
                let found = found
                    .map_err(|e| ReadError::Disk(e.to_string()))?
                    .map_err(|e| self.read_error(e, ends.high_watermark))?;
                match found {
                    Some((offset, timestamp)) => (offset, Some(timestamp)),
                    None => (ends.high_watermark, None),
                }
            }
        };
        let leader_epoch = self
            .partition
            .reader()
            .epoch_at(offset)
            .unwrap_or(ends.leader_epoch);
        Ok(Resolved {
            offset,
            timestamp,
            leader_epoch,
        })
    }

    /// Drops every record below `before`, for good, and gives the new log start offset.
    ///
    /// # Errors
    /// [`DeleteError::OutOfRange`] unless that lies between the log start and the high watermark;
    /// [`DeleteError::Policy`] when the topic is only compacted.
    pub async fn delete_records(&self, before: OffsetSpec) -> Result<Offset, DeleteError> {
        let partition = &self.partition;
        if partition.topic.is_internal() {
            return Err(AppendError::InternalTopic {
                topic: partition.topic.clone(),
            }
            .into());
        }
        if !partition.settings().cleanup.delete {
            return Err(DeleteError::Policy {
                topic: partition.topic.clone(),
            });
        }
        let to = self.resolve(before).await?.offset;
        let end = partition.high_watermark();
        let (reply, replied) = oneshot::channel();
        let trim = Command::Trim {
            partition: partition.clone(),
            to,
            end,
            reply,
        };
        partition
            .shard
            .send(trim)
            .await
            .map_err(|_| AppendError::Stopping)?;
        let unknown = || AppendError::OutcomeUnknown {
            cause: "the broker is stopping".to_owned(),
        };
        replied.await.map_err(|_| unknown())?
    }

    /// Makes sure that everything that was acknowledged before this is below the high watermark that is
    /// known here: a leader that was replaced, and has not heard of it, knows of less.
    async fn confirm_watermark(&self) -> Result<(), ReadError> {
        let partition = &self.partition;
        if self.from_replica || !partition.has_others() {
            return Ok(());
        }
        let (reply, replied) = oneshot::channel();
        let key = partition.key;
        let asked = partition
            .shard
            .send(Command::ReadIndex { key, reply })
            .await;
        asked.map_err(|_| ReadError::Stopping)?;
        let not_yet = || ReadError::NotYet {
            topic: partition.topic.clone(),
            partition: partition.number(),
        };
        match tokio::time::timeout(CONFIRM_WAIT_MAX, replied).await {
            Ok(Ok(Ok(_known))) => Ok(()),
            Ok(Ok(Err(_))) if !partition.leads() => {
                Err(self.broker.inner().not_leader(partition).into())
            }
            Ok(_) | Err(_) => Err(not_yet()),
        }
    }

    fn check_open(&self) -> Result<(), ReadError> {
        if !self.partition.is_closed() {
            if self.from_replica || self.partition.answers_for_leader() {
                return Ok(());
            }
            Err(self.broker.inner().not_leader(&self.partition).into())
        } else if self.partition.is_moved() {
            Err(self.broker.inner().not_leader(&self.partition).into())
        } else if self.broker.is_stopping() {
            Err(ReadError::Stopping)
        } else {
            let topic = self.partition.topic.to_string();
            Err(LookupError::TopicNotFound { topic }.into())
        }
    }

    fn read_error(&self, error: tidelog_log::ReadError, high_watermark: Offset) -> ReadError {
        match error {
            tidelog_log::ReadError::OutOfRange {
                requested, start, ..
            } => ReadError::OutOfRange {
                requested: requested.get(),
                log_start: start,
                high_watermark,
            },
            tidelog_log::ReadError::Corrupt(corruption) => {
                ReadError::Damaged(corruption.to_string())
            }
            // The files of a topic that was deleted meanwhile are gone.
            tidelog_log::ReadError::Disk(e) => self
                .check_open()
                .err()
                .unwrap_or_else(|| ReadError::Disk(e.to_string())),
        }
    }
}

impl Broker {
    /// Reads from several partitions; waits until there is enough, or long enough.
    ///
    /// Whenever there is something to be read, `room` is asked for so many bytes first. It gives
    /// how many may be read, and what holds them: nothing is held while there is nothing to read.
    pub async fn fetch<R, F>(
        &self,
        mut request: FetchRequest,
        room: impl Fn(usize) -> F,
    ) -> (Vec<FetchedPartition>, Option<R>)
    where
        F: Future<Output = (usize, R)>,
    {
        let deadline = tokio::time::Instant::now() + request.wait_max.min(FETCH_WAIT_MAX);
        let bytes_max = request.bytes_max;
        // More than all that may be given would never come.
        let bytes_min = request.bytes_min.clamp(1, bytes_max.max(1));
        loop {
            let mut held = None;
            request.bytes_max = 0;
            if self.has_data(&request) {
                let (granted, room) = room(bytes_max).await;
                request.bytes_max = granted.min(bytes_max);
                held = Some(room);
            }
            // Before it is read: whoever waits when the broker stops is told so by what it reads next.
            let is_stopping = self.is_stopping();
            let fetched = self.fetch_now(&request).await;
            let bytes: usize = fetched
                .iter()
                .filter_map(|one| one.result.as_ref().ok())
                .map(|data| data.batches.len_bytes())
                .sum();
            let failed = fetched.iter().any(|one| one.result.is_err());
            // A read ends at its limit and at the end of a segment, and a partition whose first
            // batch did not fit gives nothing. What lies behind is there already: waiting for an
            // append would only delay it.
            let more = fetched
                .iter()
                .filter_map(|one| one.result.as_ref().ok())
                .any(|data| bytes > 0 && data.batches.next_offset < data.high_watermark);
            let enough = bytes >= bytes_min || more || failed || is_stopping;
            if enough || tokio::time::Instant::now() >= deadline || fetched.is_empty() {
                return (fetched, held);
            }
            let has_read = held.is_some();
            drop(held);
            let waits = fetched.iter().filter_map(|one| {
                let data = one.result.as_ref().ok()?;
                // What came since it was seen that there is nothing must not be slept over.
                let seen = if has_read {
                    data.high_watermark
                } else {
                    data.batches.next_offset
                };
                let handle = self.partition(&one.topic, one.partition).ok()?;
                let handle = handle.from_replica(request.from_replica);
                Some(Box::pin(async move { handle.wait_beyond(seen).await }))
            });
            let waits: Vec<_> = waits.collect();
            if waits.is_empty() {
                return (fetched, None);
            }
            // Running out of time is no error: the next turn answers with what there is.
            drop(tokio::time::timeout_at(deadline, select_all(waits)).await);
        }
    }

    /// Whether any partition has something behind the offset asked for.
    fn has_data(&self, request: &FetchRequest) -> bool {
        request.partitions.iter().any(|wanted| {
            let handle = self.partition(&wanted.topic, wanted.partition);
            handle.is_ok_and(|handle| handle.ends().high_watermark.get() > wanted.offset)
        })
    }

    async fn fetch_now(&self, request: &FetchRequest) -> Vec<FetchedPartition> {
        let mut left = request.bytes_max;
        let mut fetched = Vec::with_capacity(request.partitions.len());
        let mut any = false;
        for wanted in &request.partitions {
            let result = if left == 0 {
                self.peek(wanted, request.from_replica)
            } else {
                let bytes_max = wanted.bytes_max.min(left);
                self.read_one(wanted, bytes_max, request.from_replica).await
            };
            let result = result.map(|data| {
                let len = data.batches.len_bytes();
                // The log gives at least one batch; past the first that may be too much.
                if any && len > left {
                    let next_offset = Offset::new(wanted.offset).unwrap_or(Offset::MAX);
                    return PartitionData {
                        batches: Batches::empty(next_offset),
                        ..data
                    };
                }
                any |= len > 0;
                left = left.saturating_sub(len);
                data
            });
            fetched.push(FetchedPartition {
                topic: wanted.topic.clone(),
                partition: wanted.partition,
                result,
            });
        }
        fetched
    }

    async fn read_one(
        &self,
        wanted: &FetchPartition,
        bytes_max: usize,
        from_replica: bool,
    ) -> Result<PartitionData, ReadError> {
        let handle = self.partition(&wanted.topic, wanted.partition)?;
        let handle = handle.from_replica(from_replica);
        handle.read(handle.offset(wanted.offset)?, bytes_max).await
    }

    /// The ends of a partition, without reading.
    fn peek(
        &self,
        wanted: &FetchPartition,
        from_replica: bool,
    ) -> Result<PartitionData, ReadError> {
        let handle = self.partition(&wanted.topic, wanted.partition)?;
        let handle = handle.from_replica(from_replica);
        handle.check_open()?;
        let Ends {
            log_start,
            high_watermark,
            ..
        } = handle.ends();
        let offset = handle.offset(wanted.offset)?;
        let is_to_come = offset > high_watermark && handle.is_to_come(offset);
        if !is_to_come && !(log_start..=high_watermark).contains(&offset) {
            return Err(ReadError::OutOfRange {
                requested: wanted.offset,
                log_start,
                high_watermark,
            });
        }
        Ok(PartitionData {
            batches: Batches::empty(offset),
            high_watermark,
            log_start,
        })
    }
}

impl PartitionHandle {
    /// The offset `number`, which may be too large to be one.
    fn offset(&self, number: u64) -> Result<Offset, ReadError> {
        let Ends {
            log_start,
            high_watermark,
            ..
        } = self.ends();
        Offset::new(number).ok_or(ReadError::OutOfRange {
            requested: number,
            log_start,
            high_watermark,
        })
    }
}

//! Reading records.
//!
//! A [`Reader`] has a `Read` stream to each leader of its partitions (`streams.rs`, `stream.rs`). It
//! takes a message, gives its records one by one (`decode.rs`), and grants the broker credit for the
//! next ones when the application has taken them. When a stream breaks, or a partition is led
//! elsewhere, a new stream goes on from the next offsets (`progress.rs`).

mod config;
mod decode;
mod progress;
mod stream;
mod streams;

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use tidelog_proto::v1;
use tidelog_record::{BatchLimits, PartitionId};
use tokio::time::{Instant, sleep_until};

pub use self::config::{ConsumedRecord, OffsetSpec, ReadRange, ReaderConfig, StartAt};

use self::decode::Decoder;
use self::progress::Progress;
use self::stream::{StreamEvent, StreamId};
use self::streams::Streams;
use crate::refresh::Refresh;
use crate::{Client, ClientError};

/// The longest wait before a partition is read again whose leader is to be found.
const LEADERLESS_WAIT_MAX: Duration = Duration::from_millis(200);

/// How long to wait when a partition has another leader: brokers that point at each other must not be
/// asked all the time.
const MOVED_WAIT: Duration = Duration::from_millis(20);

/// Reads a topic, each record once, over lost connections and changes of leaders too.
///
/// Records of a partition come in the order of their offsets; those of different partitions as the
/// brokers send them.
#[derive(Debug)]
pub struct Reader {
    client: Client,
    config: ReaderConfig,
    limits: BatchLimits,
    progress: Progress,
    streams: Streams,
    /// Asks who leads.
    refresh: Refresh,
    /// Of the client's table, when it was last looked at.
    routing_version: u64,
    /// Came while the reader was opened, for afterwards. The credit bounds it.
    waiting: VecDeque<(StreamId, v1::ReadData)>,
    /// What ended partitions: one each at most.
    errors: VecDeque<ClientError>,
    /// What is being given out.
    current: Option<Message>,
    /// An error after which nothing comes.
    has_failed: bool,
}

/// A message that is being taken apart.
#[derive(Debug)]
struct Message {
    decoder: Decoder,
    stream: StreamId,
    partition: u32,
    next_offset: u64,
    len: u64,
}

impl Reader {
    /// Opens streams and waits until brokers have told where each partition begins and ends.
    ///
    /// # Errors
    /// [`ClientError::Broker`] when the topic, a partition or an offset is not there; what any call
    /// meets, once trying again did not help.
    pub async fn open(client: Client, mut config: ReaderConfig) -> Result<Self, ClientError> {
        let limits = config.limits.clone().unwrap_or_else(|| BatchLimits {
            batch_bytes_max: client.config().message_bytes_max,
            ..BatchLimits::default()
        });
        // This also tells who leads them.
        let all = all_partitions(&client, &config).await?;
        if config.partitions.is_empty() {
            // Named one by one, each has its end or its error, whatever breaks on the way.
            config.partitions = all;
        }
        let mut reader = Self {
            client,
            progress: Progress::new(&config.partitions),
            config,
            limits,
            streams: Streams::new(),
            refresh: Refresh::default(),
            routing_version: 0,
            waiting: VecDeque::new(),
            errors: VecDeque::new(),
            current: None,
            has_failed: false,
        };
        while !reader.progress.is_started() {
            reader.step().await?;
        }
        Ok(reader)
    }

    /// Where each partition began and ends, as the brokers looked it up at the start.
    pub fn ranges(&self) -> Vec<ReadRange> {
        self.progress.ranges()
    }

    /// The next record; `None` when all partitions were read to their ends.
    ///
    /// Cancel safe: a record that was not given out comes with the next call.
    ///
    /// # Errors
    /// [`ClientError::Partition`] and [`ClientError::Damaged`] end one partition; the others go on.
    /// Any other error is the last thing the reader gives.
    pub async fn next(&mut self) -> Option<Result<ConsumedRecord, ClientError>> {
        loop {
            if let Some(record) = self.next_buffered() {
                return Some(record);
            }
            if let Some(error) = self.errors.pop_front() {
                return Some(Err(error));
            }
            if self.has_failed || self.progress.is_over() {
                self.streams.close_all();
                return None;
            }
            if let Err(error) = self.step().await {
                self.has_failed = true;
                self.waiting.clear();
                self.streams.close_all();
                return Some(Err(error));
            }
        }
    }

    /// The next record of those that came already; `None` when a broker has to be waited for, or
    /// there are no more.
    pub fn next_buffered(&mut self) -> Option<Result<ConsumedRecord, ClientError>> {
        loop {
            if self.current.is_none() {
                let (stream, data) = self.waiting.pop_front()?;
                self.current = self.open_message(stream, data);
            }
            if let Some(message) = self.current.as_mut() {
                let partition = message.partition;
                match message.decoder.next() {
                    Some(Ok(record)) => return Some(self.given_out(partition, record)),
                    Some(Err(source)) => {
                        let (stream, len) = (message.stream, message.len);
                        self.current = None;
                        self.streams.grant(stream, len);
                        return Some(Err(self.damaged(partition, source)));
                    }
                    None => self.finish_message(),
                }
            }
        }
    }

    fn given_out(
        &mut self,
        partition: u32,
        record: ConsumedRecord,
    ) -> Result<ConsumedRecord, ClientError> {
        let progress = self.progress.partition(partition)?;
        if let Some(next) = record.offset.checked_add(1) {
            progress.advance(next);
        }
        Ok(record)
    }

    /// Begins to take a message apart. What of it was given out before is left out.
    fn open_message(&mut self, stream: StreamId, data: v1::ReadData) -> Option<Message> {
        let progress = self.progress.partition(data.partition).ok()?;
        let (from, to) = (progress.next, progress.to());
        let partition = PartitionId::new(data.partition);
        let len = u64::try_from(data.batches.len()).unwrap_or(u64::MAX);
        // The broker does not know that we ended a partition over damaged data. What it sends of it
        // is granted back all the same.
        let bytes = if progress.is_damaged {
            Bytes::new()
        } else {
            data.batches
        };
        Some(Message {
            decoder: Decoder::new(partition, bytes, self.limits.clone(), from, to),
            stream,
            partition: data.partition,
            next_offset: data.next_offset,
            len,
        })
    }

    /// All records of the current message were given out.
    fn finish_message(&mut self) {
        let Some(message) = self.current.take() else {
            return;
        };
        if let Ok(progress) = self.progress.partition(message.partition)
            && let Ok(next) = crate::offsets::offset(message.next_offset)
        {
            progress.advance(next);
        }
        self.streams.grant(message.stream, message.len);
    }

    fn damaged(&mut self, partition: u32, source: tidelog_record::BatchError) -> ClientError {
        match self.progress.partition(partition) {
            Ok(progress) => {
                progress.is_over = true;
                progress.is_damaged = true;
                ClientError::Damaged {
                    topic: self.config.topic.clone(),
                    partition: progress.wanted.partition,
                    offset: progress.next.get(),
                    source,
                }
            }
            Err(error) => error,
        }
    }

    /// Does one thing that brings records nearer: opens streams, or takes an event of one.
    async fn step(&mut self) -> Result<(), ClientError> {
        let now = Instant::now();
        self.follow_leaders(now);
        self.streams
            .open_due(&self.client, &self.config, &mut self.progress, now);
        self.refresh.ask(&self.client, now);
        let wake_at = [self.progress.due_at(now), self.refresh.wake_at()];
        let wake_at = wake_at.into_iter().flatten().min();
        let time = async {
            match wake_at {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            (stream, event) = self.streams.event() => match event {
                StreamEvent::Message(response) => self.on_response(stream, response),
                StreamEvent::Ended(error) => self.on_stream_end(stream, error),
            },
            () = self.refresh.answer() => Ok(()),
            () = time => Ok(()),
        }
    }

    /// As long as a partition is not read, another broker may lead it at any time. Once that is
    /// known, it is not waited for longer than it takes.
    fn follow_leaders(&mut self, now: Instant) {
        let version = self.client.routing_version();
        let has_moved = version != self.routing_version;
        self.routing_version = version;
        let mut is_cut_off = false;
        for not_before in self.progress.waits() {
            is_cut_off = true;
            if has_moved {
                *not_before = (*not_before).min(now + MOVED_WAIT);
            }
        }
        if is_cut_off {
            self.refresh.want(&self.config.topic);
        }
    }

    fn on_response(
        &mut self,
        stream: StreamId,
        response: v1::read_response::Response,
    ) -> Result<(), ClientError> {
        use v1::read_response::Response;
        match response {
            Response::Started(started) => self.progress.started(&started)?,
            Response::Data(data) => {
                self.progress.partition(data.partition)?.is_well();
                self.waiting.push_back((stream, data));
            }
            Response::PartitionEnd(end) => {
                let progress = self.progress.partition(end.partition)?;
                progress.is_well();
                progress.is_over = true;
            }
            Response::PartitionError(failed) => self.on_partition_error(stream, &failed)?,
            Response::Heartbeat(_) => {
                for progress in self.progress.of_stream(stream) {
                    progress.is_well();
                }
            }
            Response::GoingAway(_) => {
                // The stream goes on until it ends; then it is known who leads instead.
                tracing::debug!("a broker is about to stop");
                self.refresh.want(&self.config.topic);
            }
        }
        Ok(())
    }

    fn on_partition_error(
        &mut self,
        stream: StreamId,
        failed: &v1::ReadPartitionError,
    ) -> Result<(), ClientError> {
        let source = match &failed.error {
            Some(error) => ClientError::from_message(error),
            None => ClientError::Protocol {
                what: "an error without content".to_owned(),
            },
        };
        let progress = self.progress.partition(failed.partition)?;
        let partition = progress.wanted.partition;
        if progress.stream != Some(stream) {
            return Ok(());
        }
        if !source.is_retryable() {
            progress.is_over = true;
            self.errors.push_back(ClientError::Partition {
                partition,
                next_offset: failed.next_offset,
                source: Box::new(source),
            });
            return Ok(());
        }
        // Only a new stream takes the partition up again; the others go on with this one.
        let address = self.streams.address(stream);
        let mut has_leader = false;
        if let (Some(not_leader), Some(from)) = (source.not_leader(), address) {
            progress.needs_leader = true;
            let (client, topic) = (&self.client, &self.config.topic);
            let successor = client.learn_not_leader(topic, partition, &not_leader, &from);
            has_leader = successor.is_known();
        }
        self.on_trouble(stream, Some(partition), source, has_leader)?;
        if self.progress.of_stream(stream).next().is_none() {
            self.streams.close(stream);
        }
        Ok(())
    }

    fn on_stream_end(&mut self, stream: StreamId, error: ClientError) -> Result<(), ClientError> {
        self.streams.close(stream);
        if self.progress.of_stream(stream).next().is_none() {
            return Ok(());
        }
        if !error.is_retryable() {
            return Err(error);
        }
        self.on_trouble(stream, None, error, false)
    }

    /// A partition of a stream, or all of them, are to be read over a new one, but not at once. Gives
    /// the error when that was tried for too long.
    fn on_trouble(
        &mut self,
        stream: StreamId,
        only: Option<PartitionId>,
        error: ClientError,
        has_leader: bool,
    ) -> Result<(), ClientError> {
        let now = Instant::now();
        let topic = &self.config.topic;
        let (mut retries, mut since) = (0, Duration::ZERO);
        let is_meant = |partition| only.is_none_or(|only| only == partition);
        let mut places = Vec::new();
        for progress in self.progress.of_stream(stream) {
            let partition = progress.wanted.partition;
            if is_meant(partition) {
                let (tried, for_so_long) = progress.in_trouble(now);
                (retries, since) = (retries.max(tried), since.max(for_so_long));
                places.push(partition);
                if !has_leader {
                    self.client.doubt(topic, partition);
                }
            }
        }
        if !has_leader {
            self.refresh.want(topic);
        }
        let wait = if has_leader {
            let backoff = self.config.backoff.at_most(LEADERLESS_WAIT_MAX);
            backoff.wait(retries, None)
        } else if error.not_leader().is_some() {
            let backoff = self.config.backoff.at_most(LEADERLESS_WAIT_MAX);
            backoff.wait(retries, error.retry_after())
        } else {
            self.config.backoff.wait(retries, error.retry_after())
        };
        if since + wait > self.config.retry_timeout {
            return Err(error);
        }
        tracing::debug!(%error, ?wait, partitions = places.len(), "reading goes on elsewhere");
        for partition in places {
            self.progress.partition(partition.get())?.not_before = Some(now + wait);
        }
        Ok(())
    }
}

/// Every partition of the topic, asked for as long as a stream would be.
async fn all_partitions(
    client: &Client,
    config: &ReaderConfig,
) -> Result<Vec<StartAt>, ClientError> {
    let began_at = Instant::now();
    let mut retries = 0;
    loop {
        let error = match client.ask_topic(&config.topic, false).await {
            Ok(described) => {
                let count = described.topic.map_or(0, |topic| topic.partitions);
                return Ok((0..count)
                    .map(|number| PartitionId::new(number).into())
                    .collect());
            }
            Err(error) => error,
        };
        retries += 1;
        let wait = config.backoff.wait(retries, error.retry_after());
        let is_gone = matches!(error, ClientError::Unreachable { .. });
        if !error.is_retryable() || is_gone || began_at.elapsed() + wait > config.retry_timeout {
            return Err(error);
        }
        tokio::time::sleep(wait).await;
    }
}

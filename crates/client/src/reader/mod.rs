//! Reading records.
//!
//! A [`Reader`] holds one `Read` stream. It takes a message, gives its records one by one
//! (`decode.rs`), and grants the broker credit for the next ones when the application has taken
//! them. When the stream breaks, a new one goes on from the next offsets (`progress.rs`).

mod config;
mod decode;
mod progress;

use std::time::Duration;

use bytes::Bytes;
use tidelog_proto::v1;
use tidelog_record::{BatchLimits, PartitionId};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

pub use self::config::{ConsumedRecord, OffsetSpec, ReadRange, ReaderConfig, StartAt};

use self::decode::Decoder;
use self::progress::Progress;
use crate::client::Route;
use crate::{Client, ClientError};

/// The least credit: with less, large batches would come one by one.
const CREDIT_BYTES_MIN: u64 = 64 * 1024;

/// Grants that may wait to be sent. One is sent for each quarter of the credit, so that more than a
/// few never wait.
const GRANTS_WAITING_MAX: usize = 16;

/// Reads a topic, each record once, over lost connections too.
///
/// Records of a partition come in the order of their offsets; those of different partitions as the
/// broker sends them.
#[derive(Debug)]
pub struct Reader {
    client: Client,
    config: ReaderConfig,
    limits: BatchLimits,
    progress: Progress,
    stream: Option<ReadStream>,
    /// What is being given out.
    current: Option<Message>,
    /// Since when there is no stream, and how often a new one was tried.
    trouble: Option<Trouble>,
    /// An error after which nothing comes.
    has_failed: bool,
}

#[derive(Debug)]
struct ReadStream {
    route: Route,
    grants: mpsc::Sender<v1::ReadRequest>,
    answers: Streaming<v1::ReadResponse>,
    /// Bytes that were taken since the last grant.
    ungranted_bytes: u64,
}

/// A message that is being taken apart.
#[derive(Debug)]
struct Message {
    decoder: Decoder,
    partition: u32,
    next_offset: u64,
    len: u64,
}

#[derive(Clone, Copy, Debug)]
struct Trouble {
    since: Instant,
    retries: u32,
}

impl Reader {
    /// Opens the stream and waits until the broker has told where each partition begins and ends.
    ///
    /// # Errors
    /// [`ClientError::Broker`] when the topic, a partition or an offset is not there; what any call
    /// meets, once trying again did not help.
    pub async fn open(client: Client, mut config: ReaderConfig) -> Result<Self, ClientError> {
        config.credit_bytes = config.credit_bytes.max(CREDIT_BYTES_MIN);
        let limits = config.limits.clone().unwrap_or_else(|| BatchLimits {
            batch_bytes_max: client.config().message_bytes_max,
            ..BatchLimits::default()
        });
        if config.partitions.is_empty() {
            // Named one by one, each has its end or its error, whatever breaks on the way.
            config.partitions = all_partitions(&client, &config).await?;
        }
        let mut reader = Self {
            client,
            progress: Progress::new(&config.partitions),
            config,
            limits,
            stream: None,
            current: None,
            trouble: None,
            has_failed: false,
        };
        while !reader.progress.is_started() {
            if let Some(error) = reader.step().await? {
                return Err(error);
            }
        }
        Ok(reader)
    }

    /// Where each partition began and ends, as the broker looked it up at the start.
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
            if self.has_failed || self.progress.is_over() {
                self.stream = None;
                return None;
            }
            match self.step().await {
                Ok(None) => {}
                Ok(Some(partition_error)) => return Some(Err(partition_error)),
                Err(error) => {
                    self.has_failed = true;
                    self.stream = None;
                    return Some(Err(error));
                }
            }
        }
    }

    /// The next record of those that came already; `None` when the broker has to be waited for, or
    /// there are no more.
    pub fn next_buffered(&mut self) -> Option<Result<ConsumedRecord, ClientError>> {
        let message = self.current.as_mut()?;
        let partition = message.partition;
        match message.decoder.next() {
            Some(Ok(record)) => {
                match (
                    self.progress.partition(partition),
                    record.offset.checked_add(1),
                ) {
                    (Ok(progress), Some(next)) => progress.advance(next),
                    (Err(error), _) => return Some(Err(error)),
                    (Ok(_), None) => {}
                }
                Some(Ok(record))
            }
            Some(Err(source)) => {
                let len = message.len;
                self.current = None;
                self.grant(len);
                Some(Err(self.damaged(partition, source)))
            }
            None => {
                self.finish_message();
                None
            }
        }
    }

    /// Does one thing that brings records nearer: opens a stream, or takes a message. Gives the
    /// error of a partition that cannot be read on, while others may go on.
    async fn step(&mut self) -> Result<Option<ClientError>, ClientError> {
        if self.stream.is_none() {
            return match self.open_stream().await {
                Ok(()) => Ok(None),
                Err(error) => self.on_trouble(error).await,
            };
        }
        match self.receive().await {
            Ok(response) => {
                let is_progress = matches!(
                    response,
                    v1::read_response::Response::Data(_)
                        | v1::read_response::Response::PartitionEnd(_)
                );
                if is_progress {
                    self.trouble = None;
                }
                match self.on_response(response) {
                    Ok(partition_error) => Ok(partition_error),
                    Err(error) => self.on_trouble(error).await,
                }
            }
            Err(error) => self.on_trouble(error).await,
        }
    }

    async fn open_stream(&mut self) -> Result<(), ClientError> {
        let (grants, requests) = mpsc::channel(GRANTS_WAITING_MAX);
        let start = self.progress.start(&self.config);
        let request = v1::read_request::Request::Start(start);
        grants
            .try_send(v1::ReadRequest {
                request: Some(request),
            })
            .expect("a new channel has room");
        let route = self.client.route();
        let mut log = self.client.log_of(&route);
        let after = self.client.config().request_timeout;
        let opening = tokio::time::timeout(after, log.read(ReceiverStream::new(requests)));
        let answers = match opening.await {
            Ok(Ok(response)) => {
                self.client.answered();
                response.into_inner()
            }
            Ok(Err(status)) => {
                let error = self.client.error_over(&route, &status);
                return Err(self.client.explained(&route, error).await);
            }
            Err(_) => {
                return Err(ClientError::TimedOut {
                    operation: "Read",
                    after,
                });
            }
        };
        self.stream = Some(ReadStream {
            route,
            grants,
            answers,
            ungranted_bytes: 0,
        });
        Ok(())
    }

    async fn receive(&mut self) -> Result<v1::read_response::Response, ClientError> {
        let Some(stream) = &mut self.stream else {
            return Err(ClientError::Closed);
        };
        let after = self.config.silence_timeout;
        let message = match tokio::time::timeout(after, stream.answers.message()).await {
            Ok(Ok(message)) => message,
            Ok(Err(status)) => return Err(self.client.error_over(&stream.route, &status)),
            Err(_) => {
                return Err(ClientError::TimedOut {
                    operation: "Read",
                    after,
                });
            }
        };
        match message {
            Some(v1::ReadResponse {
                response: Some(response),
            }) => Ok(response),
            Some(_) => Err(ClientError::Protocol {
                what: "a message of Read without content".to_owned(),
            }),
            None => Err(ClientError::Disconnected {
                cause: "the broker ended the stream".to_owned(),
            }),
        }
    }

    fn on_response(
        &mut self,
        response: v1::read_response::Response,
    ) -> Result<Option<ClientError>, ClientError> {
        use v1::read_response::Response;
        match response {
            Response::Started(started) => self.progress.started(&started)?,
            Response::Data(data) => self.on_data(data)?,
            Response::PartitionEnd(end) => {
                self.progress.partition(end.partition)?.is_over = true;
            }
            Response::PartitionError(failed) => return self.on_partition_error(&failed),
            Response::Heartbeat(_) => {}
            // The stream goes on until it ends; then a new one is opened.
            Response::GoingAway(_) => tracing::debug!("the broker is about to stop"),
        }
        Ok(None)
    }

    fn on_data(&mut self, data: v1::ReadData) -> Result<(), ClientError> {
        let progress = self.progress.partition(data.partition)?;
        let (from, to) = (progress.next, progress.to());
        let partition = PartitionId::new(data.partition);
        let len = u64::try_from(data.batches.len()).unwrap_or(u64::MAX);
        // The broker does not know that we ended a partition over damaged data. What it sends of it
        // is granted back all the same.
        let bytes = if progress.is_over {
            Bytes::new()
        } else {
            data.batches
        };
        self.current = Some(Message {
            decoder: Decoder::new(partition, bytes, self.limits.clone(), from, to),
            partition: data.partition,
            next_offset: data.next_offset,
            len,
        });
        Ok(())
    }

    fn on_partition_error(
        &mut self,
        failed: &v1::ReadPartitionError,
    ) -> Result<Option<ClientError>, ClientError> {
        let progress = self.progress.partition(failed.partition)?;
        let source = match &failed.error {
            Some(error) => ClientError::from_message(error),
            None => ClientError::Protocol {
                what: "an error without content".to_owned(),
            },
        };
        if source.is_retryable() {
            // Only a new stream takes the partition up again; the others go on with it.
            return Err(source);
        }
        progress.is_over = true;
        Ok(Some(ClientError::Partition {
            partition: progress.wanted.partition,
            next_offset: failed.next_offset,
            source: Box::new(source),
        }))
    }

    /// All records of the current message were given out.
    fn finish_message(&mut self) {
        let Some(message) = self.current.take() else {
            return;
        };
        if let Ok(progress) = self.progress.partition(message.partition)
            && let Ok(next) = crate::admin::offset(message.next_offset)
        {
            progress.advance(next);
        }
        self.grant(message.len);
    }

    /// So many bytes were taken: the broker may send as many more.
    fn grant(&mut self, len: u64) {
        let Some(stream) = &mut self.stream else {
            return;
        };
        stream.ungranted_bytes = stream.ungranted_bytes.saturating_add(len);
        if stream.ungranted_bytes >= self.config.credit_bytes / 4 {
            let grant = v1::read_request::Request::AddCreditBytes(stream.ungranted_bytes);
            // No room, or the stream is over: the bytes go with the next grant.
            if stream
                .grants
                .try_send(v1::ReadRequest {
                    request: Some(grant),
                })
                .is_ok()
            {
                stream.ungranted_bytes = 0;
            }
        }
    }

    fn damaged(&mut self, partition: u32, source: tidelog_record::BatchError) -> ClientError {
        match self.progress.partition(partition) {
            Ok(progress) => {
                progress.is_over = true;
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

    /// After the stream broke: waits before the next try, or gives up.
    async fn on_trouble(&mut self, error: ClientError) -> Result<Option<ClientError>, ClientError> {
        self.stream = None;
        if self.progress.is_over() {
            return Ok(None);
        }
        if !error.is_retryable() {
            return Err(error);
        }
        let now = Instant::now();
        let trouble = self.trouble.get_or_insert(Trouble {
            since: now,
            retries: 0,
        });
        trouble.retries = trouble.retries.saturating_add(1);
        let wait = self
            .config
            .backoff
            .wait(trouble.retries, error.retry_after());
        if trouble.since.elapsed() + wait > self.retry_timeout(&error) {
            return Err(error);
        }
        tracing::debug!(%error, ?wait, "reading goes on with a new stream");
        tokio::time::sleep(wait).await;
        Ok(None)
    }

    /// At the start an address where nobody listens is rather wrong than gone for a moment.
    fn retry_timeout(&self, error: &ClientError) -> Duration {
        match error {
            ClientError::Unreachable { .. } if !self.progress.is_started() => Duration::ZERO,
            _ => self.config.retry_timeout,
        }
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
        let error = match client.describe_topic(&config.topic, false).await {
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

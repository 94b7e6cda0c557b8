//! The task that sends batches and settles them.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tidelog_proto::v1;
use tidelog_record::Timestamp;
use tokio::time::{Instant, sleep_until};
use tonic::Status;

use super::accumulator::{ClosedBatch, QueueId};
use super::delivery::BatchDelivered;
use super::identity::IdentityRequest;
use super::link::{Link, LinkEvent};
use super::sequence::Identity;
use super::{Acks, Shared};
use crate::{ClientError, Offset};

/// Sends what the accumulator has, as far as its limits allow, over a link that it opens again when
/// it breaks. Ends when the producer is closed and nothing is left.
#[derive(Debug)]
pub(crate) struct Driver {
    shared: Arc<Shared>,
    link: Option<Link>,
    /// Before that, no new link is opened.
    link_not_before: Option<Instant>,
    /// Links that broke without a single answer in between.
    link_failures: u32,
    /// By correlation id.
    in_flight: HashMap<u64, InFlight>,
    identity: IdentityRequest,
    next_correlation_id: u64,
    next_sweep: Instant,
}

#[derive(Debug)]
struct InFlight {
    queue: QueueId,
    batch: ClosedBatch,
    sent_at: Instant,
}

impl Driver {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            link: None,
            link_not_before: None,
            link_failures: 0,
            in_flight: HashMap::new(),
            identity: IdentityRequest::default(),
            next_correlation_id: 1,
            next_sweep: Instant::now(),
        }
    }

    pub(crate) async fn run(mut self) {
        loop {
            let now = Instant::now();
            self.sweep(now);
            let batches_due = self.shared.accumulator.lock().on_time(now);
            self.open_link(now);
            let wants_room = self.send_ready(now);
            self.ask_for_identity(now);
            if self.is_done() {
                break;
            }
            let wake_at = self.wake_at(batches_due);
            self.wait(wake_at, wants_room).await;
        }
        self.finish().await;
    }

    async fn wait(&mut self, wake_at: Option<Instant>, wants_room: bool) {
        let shared = Arc::clone(&self.shared);
        let time = async {
            match wake_at {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let identity = self.identity.answer();
        let event = match &mut self.link {
            None => tokio::select! {
                answer = identity => return self.on_identity(answer),
                () = shared.work.notified() => None,
                () = time => None,
            },
            Some(link) if wants_room => tokio::select! {
                biased;
                event = link.event_or_room() => event,
                answer = identity => return self.on_identity(answer),
                () = shared.work.notified() => None,
                () = time => None,
            },
            Some(link) => tokio::select! {
                biased;
                event = link.event() => Some(event),
                answer = identity => return self.on_identity(answer),
                () = shared.work.notified() => None,
                () = time => None,
            },
        };
        match event {
            None => {}
            Some(LinkEvent::Answer(answer)) => self.on_answer(answer),
            Some(LinkEvent::Ended(status)) => self.on_link_end(status.as_ref()),
        }
    }

    fn is_done(&self) -> bool {
        self.shared.closed.load(Ordering::Acquire)
            && !self.shared.accumulator.lock().has_outstanding()
    }

    fn wake_at(&self, batches_due: Option<Instant>) -> Option<Instant> {
        let (outstanding, unsent) = {
            let accumulator = self.shared.accumulator.lock();
            (accumulator.has_outstanding(), accumulator.has_unsent())
        };
        let sweep = outstanding.then_some(self.next_sweep);
        let link = self
            .link_not_before
            .filter(|_| unsent && self.link.is_none());
        let identity = self.identity.not_before.filter(|_| outstanding);
        [batches_due, sweep, link, identity]
            .into_iter()
            .flatten()
            .min()
    }

    /// Asks who this producer is, when batches wait for that.
    fn ask_for_identity(&mut self, now: Instant) {
        if self.shared.accumulator.lock().wants_identity() {
            self.identity.ask(&self.shared, now);
        }
    }

    fn on_identity(&mut self, answer: Result<Identity, ClientError>) {
        match answer {
            Ok(identity) => {
                self.identity = IdentityRequest::default();
                self.shared.accumulator.lock().set_identity(identity);
            }
            Err(error) => {
                tracing::debug!(%error, "no producer id");
                let backoff = &self.shared.config.backoff;
                self.identity.failed(backoff, &error);
                self.shared.accumulator.lock().note_error(&error);
            }
        }
    }

    fn open_link(&mut self, now: Instant) {
        let may_open = self
            .link_not_before
            .is_none_or(|not_before| not_before <= now);
        if self.link.is_none() && may_open && self.shared.accumulator.lock().has_unsent() {
            let client = &self.shared.client;
            let route = client.route();
            let log = client.log_of(&route);
            self.link = Some(Link::open(log, route, self.shared.config.in_flight_max));
        }
    }

    /// Sends all that may be sent. Gives whether only the link held something back.
    fn send_ready(&mut self, now: Instant) -> bool {
        let Some(link) = &self.link else {
            return false;
        };
        let config = &self.shared.config;
        let acks = v1::Acks::from(config.acks);
        loop {
            let Some(permit) = link.try_reserve() else {
                return self.shared.accumulator.lock().has_sendable();
            };
            let next = {
                let mut accumulator = self.shared.accumulator.lock();
                let next = accumulator.next_to_send();
                next.map(|(queue, batch)| (queue, batch, accumulator.place(queue)))
            };
            let Some((queue, mut batch, (topic, partition))) = next else {
                return false;
            };
            let bytes = match batch.bytes() {
                Ok(bytes) => bytes,
                Err(error) => {
                    self.land(queue, &batch);
                    self.give_up(queue, batch, error.into());
                    continue;
                }
            };
            let correlation_id = self.next_correlation_id;
            self.next_correlation_id += 1;
            permit.send(v1::ProduceRequest {
                correlation_id,
                append: Some(v1::AppendRequest {
                    topic: topic.to_string(),
                    partition: Some(partition.get()),
                    acks: acks.into(),
                    payload: Some(v1::append_request::Payload::Batch(bytes)),
                }),
            });
            batch.attempts = batch.attempts.saturating_add(1);
            if config.acks == Acks::None {
                self.land(queue, &batch);
                let acknowledged_at = now;
                let delivered = BatchDelivered {
                    base_offset: None,
                    log_append_time: None,
                    acknowledged_at,
                };
                self.shared.settle(batch, Ok(delivered));
            } else {
                let flight = InFlight {
                    queue,
                    batch,
                    sent_at: now,
                };
                self.in_flight.insert(correlation_id, flight);
            }
        }
    }

    fn on_answer(&mut self, answer: v1::ProduceResponse) {
        self.link_failures = 0;
        let Some(InFlight { queue, batch, .. }) = self.in_flight.remove(&answer.correlation_id)
        else {
            tracing::debug!(answer.correlation_id, "answer to a batch that was given up");
            return;
        };
        self.land(queue, &batch);
        match read_outcome(answer.outcome) {
            Ok(delivered) => self.shared.settle(batch, Ok(delivered)),
            Err(error) => self.on_batch_error(queue, batch, error),
        }
    }

    fn land(&self, queue: QueueId, batch: &ClosedBatch) {
        self.shared.accumulator.lock().landed(queue, batch.head.id);
    }

    /// Tells the end of a batch that will not be sent any more.
    fn give_up(&self, queue: QueueId, batch: ClosedBatch, error: ClientError) {
        self.shared.accumulator.lock().given_up(queue, &batch);
        self.shared.settle(batch, Err(error));
    }

    /// What the sequence numbers of a batch had to do with its failure; gives it back if nothing.
    fn on_sequence_error(
        &self,
        queue: QueueId,
        mut batch: ClosedBatch,
        error: &ClientError,
    ) -> Option<ClosedBatch> {
        let mut accumulator = self.shared.accumulator.lock();
        match error.broker().map(|error| error.reason.as_str()) {
            Some("OUT_OF_ORDER_SEQUENCE") => accumulator.out_of_order(queue, &mut batch),
            Some("UNKNOWN_PRODUCER") if accumulator.unknown_producer(queue, &mut batch) => {}
            _ => return Some(batch),
        }
        tracing::debug!(%error, "a batch is sent again in its order");
        batch.last_error = Some(error.clone());
        accumulator.put_back(queue, batch, None);
        None
    }

    fn on_batch_error(&self, queue: QueueId, batch: ClosedBatch, error: ClientError) {
        let Some(mut batch) = self.on_sequence_error(queue, batch, &error) else {
            return;
        };
        if error.is_not_found() {
            let (topic, _) = self.shared.accumulator.lock().place(queue);
            self.shared.topics.forget(&topic);
        }
        batch.maybe_stored |= error.is_outcome_unknown();
        if !error.is_retryable() {
            let error = self.final_error(queue, &batch, error);
            return self.give_up(queue, batch, error);
        }
        let wait = self
            .shared
            .config
            .backoff
            .wait(batch.attempts, error.retry_after());
        tracing::debug!(%error, ?wait, "a batch is sent again");
        batch.last_error = Some(error);
        let until = Instant::now() + wait;
        self.shared
            .accumulator
            .lock()
            .put_back(queue, batch, Some(until));
    }

    /// What to tell about a batch that was refused at last: when an earlier attempt may have stored
    /// it, the refusal alone would claim too much.
    fn final_error(&self, queue: QueueId, batch: &ClosedBatch, error: ClientError) -> ClientError {
        if !batch.maybe_stored {
            return error;
        }
        let (topic, partition) = self.shared.accumulator.lock().place(queue);
        ClientError::OutcomeUnknown {
            topic,
            partition,
            after: batch.head.begun_at.elapsed(),
            attempts: batch.attempts,
            last: Some(Box::new(error)),
        }
    }

    fn on_link_end(&mut self, status: Option<&Status>) {
        let Some(link) = self.link.take() else {
            return;
        };
        let error = match status {
            Some(status) => self.shared.client.error_over(&link.route, status),
            None => ClientError::Disconnected {
                cause: "the broker ended the stream".to_owned(),
            },
        };
        self.break_link(&error);
    }

    /// After the link broke: what was on its way goes back, to be sent again in order.
    fn break_link(&mut self, error: &ClientError) {
        self.link = None;
        self.link_failures = self.link_failures.saturating_add(1);
        let wait = self
            .shared
            .config
            .backoff
            .wait(self.link_failures, error.retry_after());
        self.link_not_before = Some(Instant::now() + wait);
        tracing::debug!(%error, in_flight = self.in_flight.len(), ?wait, "the stream ended");
        let was_sent = !matches!(error, ClientError::Unreachable { .. });
        for (
            _,
            InFlight {
                queue, mut batch, ..
            },
        ) in std::mem::take(&mut self.in_flight)
        {
            batch.maybe_stored |= was_sent;
            batch.last_error = Some(error.clone());
            self.land(queue, &batch);
            if error.is_retryable() {
                self.shared.accumulator.lock().put_back(queue, batch, None);
            } else {
                self.give_up(queue, batch, error.clone());
            }
        }
    }

    /// Gives up what took too long.
    fn sweep(&mut self, now: Instant) {
        if now < self.next_sweep {
            return;
        }
        let config = &self.shared.config;
        let every = config.delivery_timeout.min(config.request_timeout) / 20;
        self.next_sweep = now + every.clamp(Duration::from_millis(5), Duration::from_secs(1));

        if let Some(sent_before) = now.checked_sub(config.request_timeout)
            && self
                .in_flight
                .values()
                .any(|flight| flight.sent_at <= sent_before)
        {
            let after = config.request_timeout;
            self.break_link(&ClientError::TimedOut {
                operation: "Produce",
                after,
            });
        }
        let Some(begun_before) = now.checked_sub(self.shared.config.delivery_timeout) else {
            return;
        };
        let expired = self.shared.accumulator.lock().take_expired(begun_before);
        for (queue, batch) in expired {
            let error = self.expired_error(queue, &batch);
            self.give_up(queue, batch, error);
        }
        let is_old = |_: &u64, flight: &mut InFlight| flight.batch.head.begun_at <= begun_before;
        let expired: Vec<_> = self.in_flight.extract_if(is_old).collect();
        for (
            _,
            InFlight {
                queue, mut batch, ..
            },
        ) in expired
        {
            batch.maybe_stored = true;
            self.land(queue, &batch);
            let error = self.expired_error(queue, &batch);
            self.give_up(queue, batch, error);
        }
    }

    fn expired_error(&self, queue: QueueId, batch: &ClosedBatch) -> ClientError {
        let (topic, partition) = self.shared.accumulator.lock().place(queue);
        let after = self.shared.config.delivery_timeout;
        let last = batch.last_error.clone().map(Box::new);
        if batch.maybe_stored {
            let attempts = batch.attempts;
            ClientError::OutcomeUnknown {
                topic,
                partition,
                after,
                attempts,
                last,
            }
        } else {
            ClientError::NotDelivered {
                topic,
                partition,
                after,
                last,
            }
        }
    }

    /// Ends the stream in good order, so that what was handed to the connection leaves it: with
    /// [`Acks::None`] nothing else tells that it did.
    async fn finish(&mut self) {
        let Some(mut link) = self.link.take() else {
            return;
        };
        link.close_requests();
        let ended = async { while !matches!(link.event().await, LinkEvent::Ended(_)) {} };
        if tokio::time::timeout(self.shared.config.request_timeout, ended)
            .await
            .is_err()
        {
            tracing::debug!("the broker did not end the stream in time");
        }
    }
}

impl Drop for Driver {
    /// The task ended or was cancelled with its runtime: nobody shall wait for ever.
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::Release);
        let mut left: Vec<_> = self
            .in_flight
            .drain()
            .map(|(_, flight)| (flight.queue, flight.batch))
            .collect();
        left.extend(self.shared.accumulator.lock().take_all());
        for (queue, batch) in left {
            let error = self.final_error(queue, &batch, ClientError::Closed);
            self.shared.settle(batch, Err(error));
        }
        self.shared.stopped.send_replace(true);
    }
}

/// Where the batch was stored, or why not.
fn read_outcome(
    outcome: Option<v1::produce_response::Outcome>,
) -> Result<BatchDelivered, ClientError> {
    use v1::produce_response::Outcome;
    let protocol = |what: &str| ClientError::Protocol {
        what: what.to_owned(),
    };
    let response = match outcome {
        Some(Outcome::Appended(response)) => response,
        Some(Outcome::Error(error)) => {
            let error = ClientError::from_message(&error);
            let is_stored = error
                .broker()
                .is_some_and(|error| error.reason == "DUPLICATE_SEQUENCE");
            // Stored, but so long ago that the broker does not know where.
            return if is_stored {
                Ok(BatchDelivered {
                    base_offset: None,
                    log_append_time: None,
                    acknowledged_at: Instant::now(),
                })
            } else {
                Err(error)
            };
        }
        None => return Err(protocol("an answer without an outcome")),
    };
    let [result] = response.results.as_slice() else {
        return Err(protocol("a batch has not exactly one result"));
    };
    if let Some(error) = &result.error {
        return Err(ClientError::from_message(error));
    }
    let base_offset = result.base_offset.and_then(Offset::new);
    if base_offset.is_none() {
        return Err(protocol("a stored batch has no offset"));
    }
    Ok(BatchDelivered {
        base_offset,
        log_append_time: result.log_append_time_ms.map(Timestamp::from_millis),
        acknowledged_at: Instant::now(),
    })
}

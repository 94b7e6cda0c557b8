//! The task that sends batches and settles them. What it does about failures is in `failures.rs`.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tidelog_proto::v1;
use tidelog_record::Timestamp;
use tokio::time::{Instant, sleep_until};

use super::accumulator::{ClosedBatch, QueueId};
use super::delivery::BatchDelivered;
use super::identity::IdentityRequest;
use super::link::LinkEvent;
use super::links::Links;
use super::sequence::Identity;
use super::{Acks, Shared};
use crate::brokers::Route;
use crate::refresh::Refresh;
use crate::{ClientError, Offset};

/// As long as a broker cannot be reached, another one may lead at any time: so often it is looked
/// whose leader that is.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// Sends what the accumulator has, as far as its limits allow, over a link to the leader of each
/// partition. Ends when the producer is closed and nothing is left.
#[derive(Debug)]
pub(crate) struct Driver {
    pub(super) shared: Arc<Shared>,
    pub(super) links: Links,
    /// By correlation id, which no two links share.
    pub(super) in_flight: HashMap<u64, InFlight>,
    /// Asks who leads.
    pub(super) refresh: Refresh,
    /// Of the client's table, as it was when queues were last assigned to links.
    routing_version: u64,
    identity: IdentityRequest,
    next_correlation_id: u64,
    pub(super) next_sweep: Instant,
    next_look: Instant,
    /// When it is asked next whether brokers that are silent lead still.
    pub(super) next_leader_check: Instant,
}

#[derive(Debug)]
pub(super) struct InFlight {
    pub(super) queue: QueueId,
    pub(super) batch: ClosedBatch,
    pub(super) sent_at: Instant,
    /// The broker that it was sent to.
    pub(super) address: Arc<str>,
}

/// What the driver waits for.
enum Event {
    Link(Route, LinkEvent),
    Identity(Result<Identity, ClientError>),
    /// It is known anew who leads, or a time has come, or there is something to send.
    Other,
}

impl Driver {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        let config = &shared.config;
        let links = Links::new(shared.client.clone(), config.in_flight_max, &config.backoff);
        Self {
            shared,
            links,
            in_flight: HashMap::new(),
            refresh: Refresh::default(),
            routing_version: 0,
            identity: IdentityRequest::default(),
            next_correlation_id: 1,
            next_sweep: Instant::now(),
            next_look: Instant::now(),
            next_leader_check: Instant::now(),
        }
    }

    pub(crate) async fn run(mut self) {
        loop {
            let now = Instant::now();
            self.sweep(now);
            let batches_due = self.shared.accumulator.lock().on_time(now);
            self.follow_leaders(now);
            self.send_ready(now);
            self.ask_for_identity(now);
            self.refresh.ask(&self.shared.client, now);
            if self.is_done() {
                break;
            }
            let wake_at = self.wake_at(batches_due);
            match self.event(wake_at).await {
                Event::Link(route, LinkEvent::Answer(answer)) => self.on_answer(&route, answer),
                Event::Link(route, LinkEvent::Ended(status)) => {
                    self.on_link_end(&route, status.as_ref());
                }
                Event::Identity(answer) => self.on_identity(answer),
                Event::Other => {}
            }
        }
        self.finish().await;
    }

    async fn event(&mut self, wake_at: Option<Instant>) -> Event {
        let time = async {
            match wake_at {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let room = self.links.room_notify();
        let room = async {
            match room {
                Some(room) => room.notified().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            (route, event) = self.links.event() => Event::Link(route, event),
            answer = self.identity.answer() => Event::Identity(answer),
            () = self.refresh.answer() => Event::Other,
            () = room => Event::Other,
            () = self.shared.work.notified() => Event::Other,
            () = time => Event::Other,
        }
    }

    fn is_done(&self) -> bool {
        self.shared.closed.load(Ordering::Acquire)
            && !self.shared.accumulator.lock().has_outstanding()
    }

    fn wake_at(&self, batches_due: Option<Instant>) -> Option<Instant> {
        let outstanding = self.shared.accumulator.lock().has_outstanding();
        let sweep = outstanding.then_some(self.next_sweep);
        let identity = self.identity.not_before.filter(|_| outstanding);
        let (link, refresh) = (self.links.wake_at(), self.refresh.wake_at());
        let is_cut_off = self.links.cut_off().next().is_some();
        let look = is_cut_off.then_some(self.next_look);
        [batches_due, sweep, link, refresh, look, identity]
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

    /// Where partitions have moved, what waited for the old leaders may go to the new ones.
    fn follow_leaders(&mut self, now: Instant) {
        // From before the look, so that no change is missed.
        let version = self.shared.client.routing_version();
        if version != self.routing_version {
            self.routing_version = version;
            let held = self.links.take_held();
            self.shared.accumulator.lock().release(held);
            self.recall_moved(now);
        }
        if now < self.next_look {
            return;
        }
        self.next_look = now + LOOK_INTERVAL;
        let accumulator = self.shared.accumulator.lock();
        for queue in self.links.cut_off() {
            self.refresh.want(accumulator.topic(queue));
        }
    }

    /// Sends all that may be sent.
    fn send_ready(&mut self, now: Instant) {
        loop {
            while self.send_next(now) {}
            let released = self.links.take_released(now);
            if released.is_empty() {
                return;
            }
            self.shared.accumulator.lock().release(released);
        }
    }

    /// Sends one batch, if there is one that may be sent.
    fn send_next(&mut self, now: Instant) -> bool {
        let shared = Arc::clone(&self.shared);
        let config = &shared.config;
        let mut to = None;
        let next = {
            let mut accumulator = shared.accumulator.lock();
            let next = accumulator.next_to_send(|queue, topic, partition| {
                let route = shared.client.route_of(topic, partition);
                let is_accepted = self.links.accepts(&route, queue, now);
                to = Some(route.address);
                is_accepted
            });
            next.map(|(queue, batch)| (queue, batch, accumulator.place(queue)))
        };
        let (Some((queue, mut batch, (topic, partition))), Some(address)) = (next, to) else {
            return false;
        };
        let bytes = match batch.bytes() {
            Ok(bytes) => bytes,
            Err(error) => {
                self.land(queue, &batch);
                self.give_up(queue, batch, error.into());
                return true;
            }
        };
        let correlation_id = self.next_correlation_id;
        self.next_correlation_id += 1;
        let request = v1::ProduceRequest {
            correlation_id,
            append: Some(v1::AppendRequest {
                topic: topic.to_string(),
                partition: Some(partition.get()),
                acks: v1::Acks::from(config.acks).into(),
                payload: Some(v1::append_request::Payload::Batch(bytes)),
            }),
        };
        if !self.links.send(&address, request) {
            // The link has just ended: that will be told.
            self.land(queue, &batch);
            let mut accumulator = shared.accumulator.lock();
            accumulator.put_back(queue, batch, None);
            return true;
        }
        batch.attempts = batch.attempts.saturating_add(1);
        if config.acks == Acks::None {
            self.land(queue, &batch);
            let delivered = BatchDelivered {
                base_offset: None,
                log_append_time: None,
                acknowledged_at: now,
            };
            shared.settle(batch, Ok(delivered));
        } else {
            self.links.departed(&address);
            let flight = InFlight {
                queue,
                batch,
                sent_at: now,
                address,
            };
            self.in_flight.insert(correlation_id, flight);
        }
        true
    }

    fn on_answer(&mut self, route: &Route, answer: v1::ProduceResponse) {
        self.links.answered(&route.address);
        let Some(flight) = self.in_flight.remove(&answer.correlation_id) else {
            tracing::debug!(answer.correlation_id, "answer to a batch that was given up");
            return;
        };
        let InFlight { queue, batch, .. } = flight;
        self.links.landed(&route.address);
        self.land(queue, &batch);
        match read_outcome(answer.outcome) {
            Ok(delivered) => self.shared.settle(batch, Ok(delivered)),
            Err(error) => self.on_batch_error(queue, batch, error, &route.address),
        }
    }

    pub(super) fn land(&self, queue: QueueId, batch: &ClosedBatch) {
        self.shared.accumulator.lock().landed(queue, batch.head.id);
    }

    /// Ends the streams in good order, so that what was handed to the connections leaves them: with
    /// [`Acks::None`] nothing else tells that it did.
    async fn finish(&mut self) {
        self.links.close_requests();
        let config = &self.shared.config;
        let after = match config.acks {
            Acks::None => config.request_timeout,
            // All is answered: a broker that is silent is not waited for.
            Acks::All | Acks::Leader => config.request_timeout.min(config.leader_check_interval),
        };
        let ended = async {
            while self.links.is_open() {
                if let (route, LinkEvent::Ended(_)) = self.links.event().await {
                    self.links.ended(&route.address);
                }
            }
        };
        if tokio::time::timeout(after, ended).await.is_err() {
            tracing::debug!("a broker did not end the stream in time");
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

//! What the driver does about batches and links that fail.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tonic::Status;

use super::accumulator::{ClosedBatch, QueueId};
use super::driver::{Driver, InFlight};
use crate::ClientError;
use crate::brokers::Route;
use crate::client::Successor;
use crate::error::NotLeader;

/// The longest wait before a batch goes to the broker that is said to lead: two brokers that point
/// at each other must not be asked all the time.
const REDIRECT_WAIT_MAX: Duration = Duration::from_millis(100);

/// The longest wait while nobody is known to lead.
const LEADERLESS_WAIT_MAX: Duration = Duration::from_millis(200);

impl Driver {
    /// Tells the end of a batch that will not be sent any more.
    pub(super) fn give_up(&self, queue: QueueId, batch: ClosedBatch, error: ClientError) {
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

    pub(super) fn on_batch_error(
        &mut self,
        queue: QueueId,
        batch: ClosedBatch,
        error: ClientError,
        from: &Arc<str>,
    ) {
        if let Some(not_leader) = error.not_leader() {
            return self.redirect(queue, batch, error, &not_leader, from);
        }
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
        self.send_again(queue, batch, error, wait);
    }

    /// Sends a batch to the broker that leads its partition instead, once that is known.
    fn redirect(
        &mut self,
        queue: QueueId,
        batch: ClosedBatch,
        error: ClientError,
        not_leader: &NotLeader,
        from: &Arc<str>,
    ) {
        let client = &self.shared.client;
        let (topic, partition) = self.shared.accumulator.lock().place(queue);
        let backoff = &self.shared.config.backoff;
        let wait = match client.learn_not_leader(&topic, partition, not_leader, from) {
            Successor::Known { is_newer: true } => Duration::ZERO,
            Successor::Known { is_newer: false } => {
                let backoff = backoff.at_most(REDIRECT_WAIT_MAX);
                backoff.wait(batch.attempts, None)
            }
            Successor::Nobody => {
                self.refresh.want(&topic);
                let backoff = backoff.at_most(LEADERLESS_WAIT_MAX);
                backoff.wait(batch.attempts, error.retry_after())
            }
        };
        self.send_again(queue, batch, error, wait);
    }

    fn send_again(
        &self,
        queue: QueueId,
        mut batch: ClosedBatch,
        error: ClientError,
        wait: Duration,
    ) {
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
    pub(super) fn final_error(
        &self,
        queue: QueueId,
        batch: &ClosedBatch,
        error: ClientError,
    ) -> ClientError {
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

    pub(super) fn on_link_end(&mut self, route: &Route, status: Option<&Status>) {
        let error = match status {
            Some(status) => self.shared.client.error_over(route, status),
            None => ClientError::Disconnected {
                cause: "the broker ended the stream".to_owned(),
            },
        };
        self.break_link(&route.address, &error);
    }

    /// After a link broke: what was on its way over it goes back, to be sent again in order, to
    /// whoever leads by then.
    fn break_link(&mut self, address: &Arc<str>, error: &ClientError) {
        let flights = self.take_flights(|flight| flight.address == *address);
        let wait = self.links.broke(address, error.retry_after());
        tracing::debug!(%error, %address, in_flight = flights.len(), ?wait, "the stream ended");
        let was_sent = !matches!(error, ClientError::Unreachable { .. });
        for InFlight {
            queue, mut batch, ..
        } in flights
        {
            self.doubt_leader(queue);
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

    /// Takes out flights, which are not under way any more.
    fn take_flights(&mut self, is_wanted: impl Fn(&InFlight) -> bool) -> Vec<InFlight> {
        let taken = self.in_flight.extract_if(|_, flight| is_wanted(flight));
        let taken: Vec<_> = taken.map(|(_, flight)| flight).collect();
        for flight in &taken {
            self.links.landed(&flight.address);
        }
        taken
    }

    fn doubt_leader(&mut self, queue: QueueId) {
        let (topic, partition) = self.shared.accumulator.lock().place(queue);
        self.shared.client.doubt(&topic, partition);
        self.refresh.want(&topic);
    }

    /// Takes back batches whose broker is silent and, as is known by now, does not lead any more. It
    /// may have stored them, but then its successor knows them again; without idempotence a batch
    /// may be stored twice, as after a connection that broke.
    pub(super) fn recall_moved(&mut self, now: Instant) {
        let interval = self.shared.config.leader_check_interval;
        let Some(sent_before) = now.checked_sub(interval) else {
            return;
        };
        let may_ask = now >= self.next_leader_check;
        let (mut moved, accumulator) = (Vec::new(), self.shared.accumulator.lock());
        for (&id, flight) in &self.in_flight {
            if flight.sent_at > sent_before {
                continue;
            }
            let (topic, partition) = accumulator.place(flight.queue);
            match self.shared.client.leader_of(&topic, partition) {
                Some(leader) if leader.address != flight.address => moved.push(id),
                _ if may_ask => {
                    self.refresh.want(&topic);
                    self.next_leader_check = now + interval;
                }
                _ => {}
            }
        }
        drop(accumulator);
        for id in moved {
            let Some(mut flight) = self.in_flight.remove(&id) else {
                continue;
            };
            tracing::debug!(address = %flight.address, "a silent broker does not lead any more");
            self.links.landed(&flight.address);
            self.land(flight.queue, &flight.batch);
            flight.batch.maybe_stored = true;
            let mut accumulator = self.shared.accumulator.lock();
            accumulator.put_back(flight.queue, flight.batch, None);
        }
    }

    /// Gives up what took too long.
    pub(super) fn sweep(&mut self, now: Instant) {
        if now < self.next_sweep {
            return;
        }
        let shared = Arc::clone(&self.shared);
        let config = &shared.config;
        let every = config.delivery_timeout.min(config.request_timeout) / 20;
        let every = every.min(Duration::from_secs(1));
        let every = every.min(config.leader_check_interval / 4);
        self.next_sweep = now + every.max(Duration::from_millis(5));
        self.recall_moved(now);
        self.links.sweep(now);

        if let Some(sent_before) = now.checked_sub(config.request_timeout) {
            let late = self.in_flight.values();
            let late = late.filter(|flight| flight.sent_at <= sent_before);
            let silent: Vec<_> = late.map(|flight| Arc::clone(&flight.address)).collect();
            for address in silent {
                // Not twice, for another batch that went there.
                if self.in_flight.values().any(|it| it.address == address) {
                    let error = ClientError::TimedOut {
                        operation: "Produce",
                        after: config.request_timeout,
                    };
                    self.break_link(&address, &error);
                }
            }
        }
        let Some(begun_before) = now.checked_sub(config.delivery_timeout) else {
            return;
        };
        let expired = shared.accumulator.lock().take_expired(begun_before);
        for (queue, batch) in expired {
            let error = self.expired_error(queue, &batch);
            self.give_up(queue, batch, error);
        }
        let is_old = |flight: &InFlight| flight.batch.head.begun_at <= begun_before;
        for InFlight {
            queue, mut batch, ..
        } in self.take_flights(is_old)
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
}

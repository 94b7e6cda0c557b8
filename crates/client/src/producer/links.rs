//! The links of a producer: one to each broker that leads something it sends to.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tidelog_proto::v1;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use super::accumulator::QueueId;
use super::link::{Link, LinkEvent, LinkEvents, LinkId};
use crate::brokers::Route;
use crate::{Backoff, Client};

/// Answers that wait for the driver. It takes them all the time, so that few wait.
const EVENTS_WAITING_MAX: usize = 64;

/// The longest wait before a broker is connected to again.
const WAIT_MAX: Duration = Duration::from_secs(1);

/// After so long without a link a broker is forgotten.
const IDLE_MAX: Duration = Duration::from_secs(60);

/// Opens links when there is something to send, and knows what waits for each.
#[derive(Debug)]
pub(crate) struct Links {
    client: Client,
    in_flight_max: usize,
    backoff: Backoff,
    by_address: HashMap<Arc<str>, Destination>,
    out: LinkEvents,
    events: mpsc::Receiver<(LinkId, LinkEvent)>,
    next_id: LinkId,
}

/// A broker that is sent to.
#[derive(Debug, Default)]
struct Destination {
    link: Option<Link>,
    /// Batches on their way there.
    in_flight: usize,
    /// Before that, no new link is opened.
    not_before: Option<Instant>,
    /// Links that broke without a single answer in between.
    failures: u32,
    /// Queues that wait for a link or for room, the longest first. Each at most once.
    held: VecDeque<QueueId>,
}

impl Links {
    pub(crate) fn new(client: Client, in_flight_max: usize, backoff: &Backoff) -> Self {
        let (events_out, events) = mpsc::channel(EVENTS_WAITING_MAX);
        let out = LinkEvents {
            events: events_out,
            room: Arc::new(Notify::new()),
        };
        Self {
            client,
            in_flight_max,
            backoff: backoff.at_most(WAIT_MAX),
            by_address: HashMap::new(),
            out,
            events,
            next_id: 0,
        }
    }

    /// Whether a batch can be sent over this route now. If not, the queue is noted, to be released
    /// when that may have changed.
    pub(crate) fn accepts(&mut self, route: &Route, queue: QueueId, now: Instant) -> bool {
        let destination = self
            .by_address
            .entry(Arc::clone(&route.address))
            .or_default();
        if destination.may_open(now) {
            let id = self.next_id;
            self.next_id += 1;
            let log = self.client.log_of(route);
            let events = self.out.clone();
            let link = Link::open(id, log, route.clone(), self.in_flight_max, events);
            destination.link = Some(link);
        }
        if destination.room(self.in_flight_max) == 0 {
            destination.held.push_back(queue);
            return false;
        }
        true
    }

    /// Sends a request to a broker that accepted it. Gives whether it went.
    pub(crate) fn send(&mut self, address: &Arc<str>, request: v1::ProduceRequest) -> bool {
        let link = self.by_address.get(address).and_then(|to| to.link.as_ref());
        link.is_some_and(|link| link.send(request))
    }

    /// A batch is on its way to a broker.
    pub(crate) fn departed(&mut self, address: &Arc<str>) {
        if let Some(destination) = self.by_address.get_mut(address) {
            destination.in_flight += 1;
        }
    }

    /// A batch is not on its way any more.
    pub(crate) fn landed(&mut self, address: &Arc<str>) {
        if let Some(destination) = self.by_address.get_mut(address) {
            destination.in_flight = destination.in_flight.saturating_sub(1);
        }
    }

    /// Takes out queues that may be tried again: as many as there is room for.
    pub(crate) fn take_released(&mut self, now: Instant) -> Vec<QueueId> {
        let mut released = Vec::new();
        for destination in self.by_address.values_mut() {
            let room = if destination.may_open(now) {
                self.in_flight_max
            } else {
                destination.room(self.in_flight_max)
            };
            let count = room.min(destination.held.len());
            released.extend(destination.held.drain(..count));
        }
        released
    }

    /// Takes out all queues that wait: partitions are led elsewhere now.
    pub(crate) fn take_held(&mut self) -> Vec<QueueId> {
        let destinations = self.by_address.values_mut();
        destinations
            .flat_map(|destination| destination.held.drain(..))
            .collect()
    }

    /// Queues that wait for brokers to which there is no link.
    pub(crate) fn cut_off(&self) -> impl Iterator<Item = QueueId> {
        let destinations = self.by_address.values();
        destinations
            .filter(|destination| destination.link.is_none())
            .flat_map(|destination| destination.held.iter().copied())
    }

    /// When the next link may be opened that somebody waits for.
    pub(crate) fn wake_at(&self) -> Option<Instant> {
        let destinations = self.by_address.values();
        destinations
            .filter(|destination| destination.link.is_none() && !destination.held.is_empty())
            .filter_map(|destination| destination.not_before)
            .min()
    }

    /// The next event of a link that was not given up, and the broker. Nothing is lost when this is
    /// dropped before it is done.
    pub(crate) async fn event(&mut self) -> (Route, LinkEvent) {
        loop {
            // It cannot end: a sender is in `out`.
            let Some((id, event)) = self.events.recv().await else {
                return std::future::pending().await;
            };
            let link = self.links().find(|link| link.id == id);
            if let Some(link) = link {
                return (link.route.clone(), event);
            }
        }
    }

    /// Who tells that a link may have room for a request again, if somebody waits for that.
    pub(crate) fn room_notify(&self) -> Option<Arc<Notify>> {
        let is_waited_for = |to: &Destination| {
            let is_full = to.link.as_ref().is_some_and(|link| link.room() == 0);
            is_full && !to.held.is_empty()
        };
        let mut destinations = self.by_address.values();
        destinations
            .any(is_waited_for)
            .then(|| Arc::clone(&self.out.room))
    }

    /// The broker answers.
    pub(crate) fn answered(&mut self, address: &Arc<str>) {
        if let Some(destination) = self.by_address.get_mut(address) {
            destination.failures = 0;
        }
    }

    /// Gives a link up: there will be a new one, but not at once. Gives how long that takes.
    pub(crate) fn broke(&mut self, address: &Arc<str>, asked: Option<Duration>) -> Duration {
        let destination = self.by_address.entry(Arc::clone(address)).or_default();
        destination.link = None;
        destination.failures = destination.failures.saturating_add(1);
        let wait = self.backoff.wait(destination.failures, asked);
        destination.not_before = Some(Instant::now() + wait);
        wait
    }

    /// Forgets brokers that nothing is sent to any more.
    pub(crate) fn sweep(&mut self, now: Instant) {
        self.by_address.retain(|_, to| {
            let is_recent = to.not_before.is_none_or(|at| at + IDLE_MAX > now);
            to.link.is_some() || !to.held.is_empty() || to.in_flight > 0 || is_recent
        });
    }

    /// Tells all brokers that there are no more requests.
    pub(crate) fn close_requests(&mut self) {
        for destination in self.by_address.values_mut() {
            if let Some(link) = &mut destination.link {
                link.close_requests();
            }
        }
    }

    /// A link has ended.
    pub(crate) fn ended(&mut self, address: &Arc<str>) {
        if let Some(destination) = self.by_address.get_mut(address) {
            destination.link = None;
        }
    }

    /// Whether there is a link.
    pub(crate) fn is_open(&self) -> bool {
        self.links().next().is_some()
    }

    fn links(&self) -> impl Iterator<Item = &Link> {
        self.by_address.values().filter_map(|to| to.link.as_ref())
    }
}

impl Destination {
    fn may_open(&self, now: Instant) -> bool {
        self.link.is_none() && self.not_before.is_none_or(|not_before| not_before <= now)
    }

    /// For how many batches there is room now.
    fn room(&self, in_flight_max: usize) -> usize {
        let link = self.link.as_ref().map_or(0, Link::room);
        link.min(in_flight_max.saturating_sub(self.in_flight))
    }
}

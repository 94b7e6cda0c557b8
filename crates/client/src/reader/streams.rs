//! The streams of a reader: one to each broker that leads partitions when it is opened, and others
//! for partitions that move.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::ReaderConfig;
use super::progress::Progress;
use super::stream::{ReadStream, StreamEvent, StreamEvents, StreamId};
use crate::Client;
use crate::brokers::Route;

/// The least credit of a stream: with less, large batches would come one by one.
const CREDIT_BYTES_MIN: u64 = 64 * 1024;

/// Messages that wait for the reader. The credit bounds what there is of them.
const EVENTS_WAITING_MAX: usize = 2;

/// Partitions that are to be read again within that time are read over one stream.
const GATHER: Duration = Duration::from_millis(20);

/// Opens streams for partitions that have none.
#[derive(Debug)]
pub(super) struct Streams {
    open: BTreeMap<StreamId, ReadStream>,
    next_id: StreamId,
    out: StreamEvents,
    events: mpsc::Receiver<(StreamId, StreamEvent)>,
}

impl Streams {
    pub(super) fn new() -> Self {
        let (out, events) = mpsc::channel(EVENTS_WAITING_MAX);
        Self {
            open: BTreeMap::new(),
            next_id: 0,
            out,
            events,
        }
    }

    /// Opens what is due.
    pub(super) fn open_due(
        &mut self,
        client: &Client,
        config: &ReaderConfig,
        progress: &mut Progress,
        now: Instant,
    ) {
        if progress.due_at(now).is_none_or(|due_at| due_at > now) {
            return;
        }
        let mut routes = BTreeMap::<Arc<str>, (Route, Vec<usize>)>::new();
        for (place, partition) in progress.without_stream() {
            if partition.not_before.is_some_and(|at| at > now + GATHER) {
                continue;
            }
            let route = if config.read_replica && !partition.needs_leader {
                client.route()
            } else {
                client.route_of(&config.topic, partition.wanted.partition)
            };
            let address = Arc::clone(&route.address);
            let entry = routes.entry(address).or_insert((route, Vec::new()));
            entry.1.push(place);
        }
        let count = u64::try_from(self.open.len() + routes.len()).unwrap_or(u64::MAX);
        let credit_bytes = (config.credit_bytes / count.max(1)).max(CREDIT_BYTES_MIN);
        for (route, places) in routes.into_values() {
            let id = self.next_id;
            self.next_id += 1;
            let start = progress.start(config, &places, credit_bytes, id);
            let (client, silence) = (client.clone(), config.silence_timeout);
            let stream = ReadStream::open(id, client, route, start, silence, self.out.clone());
            self.open.insert(id, stream);
        }
    }

    /// The next event of a stream that was not given up. Nothing is lost when this is dropped before
    /// it is done.
    pub(super) async fn event(&mut self) -> (StreamId, StreamEvent) {
        loop {
            // It cannot end: a sender is in `out`.
            let Some((id, event)) = self.events.recv().await else {
                return std::future::pending().await;
            };
            if self.open.contains_key(&id) {
                return (id, event);
            }
        }
    }

    /// So many bytes that came over a stream were taken.
    pub(super) fn grant(&mut self, id: StreamId, len: u64) {
        if let Some(stream) = self.open.get_mut(&id) {
            stream.grant(len);
        }
    }

    /// The broker that a stream leads to.
    pub(super) fn address(&self, id: StreamId) -> Option<Arc<str>> {
        let stream = self.open.get(&id)?;
        Some(Arc::clone(&stream.route.address))
    }

    /// Gives a stream up.
    pub(super) fn close(&mut self, id: StreamId) {
        self.open.remove(&id);
    }

    /// Gives all streams up.
    pub(super) fn close_all(&mut self) {
        self.open.clear();
    }
}

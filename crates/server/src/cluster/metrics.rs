//! What the links see, as metrics: made when they are asked for, so that a broker that goes takes its own
//! with it.

use std::fmt;
use std::sync::atomic::Ordering;

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{GaugeVec, IntCounterVec, IntGaugeVec, Opts, Registry};
use tidelog_broker::NodeId;
use tidelog_peer::Link;

/// What one link sees.
#[derive(Clone, Copy, Debug)]
pub(super) struct LinkSeen {
    node: NodeId,
    is_connected: bool,
    round_trip_seconds: Option<f64>,
    queued: u64,
    queued_bytes: u64,
    lost: u64,
    sent_bytes: u64,
}

impl LinkSeen {
    pub(super) fn of(node: NodeId, link: &Link) -> Self {
        let state = *link.state().borrow();
        let stats = link.stats();
        Self {
            node,
            is_connected: state.is_connected,
            round_trip_seconds: state.round_trip.map(|took| took.as_secs_f64()),
            queued: stats.queued.load(Ordering::Relaxed),
            queued_bytes: stats.queued_bytes.load(Ordering::Relaxed),
            lost: stats.lost.load(Ordering::Relaxed),
            sent_bytes: stats.sent_bytes.load(Ordering::Relaxed),
        }
    }
}

type Look = Box<dyn Fn() -> Vec<LinkSeen> + Send + Sync>;

/// The metrics of all links.
pub(super) struct PeerMetrics {
    look: Look,
    descs: Vec<Desc>,
}

impl fmt::Debug for PeerMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerMetrics").finish_non_exhaustive()
    }
}

impl PeerMetrics {
    pub(super) fn register(registry: &Registry, look: Look) {
        let all = All::new();
        let collectors = all.collectors();
        let descs = collectors.iter().flat_map(|one| one.desc());
        let descs = descs.cloned().collect();
        registry
            .register(Box::new(Self { look, descs }))
            .expect("a broker has its links once");
    }
}

impl Collector for PeerMetrics {
    fn desc(&self) -> Vec<&Desc> {
        self.descs.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let all = All::new();
        for seen in (self.look)() {
            all.set(&seen);
        }
        let collected = all.collectors();
        collected.iter().flat_map(|one| one.collect()).collect()
    }
}

struct All {
    connected: IntGaugeVec,
    round_trip: GaugeVec,
    queued_posts: IntGaugeVec,
    queued_bytes: IntGaugeVec,
    lost_posts: IntCounterVec,
    sent_bytes: IntCounterVec,
}

const VALID: &str = "the names and the label are valid";

impl All {
    fn new() -> Self {
        let peer = &["peer"];
        let gauge = |name, help| IntGaugeVec::new(Opts::new(name, help), peer).expect(VALID);
        let counter = |name, help| IntCounterVec::new(Opts::new(name, help), peer).expect(VALID);
        let round_trip = Opts::new(
            "tidelog_peer_round_trip_seconds",
            "How long the last ping to a broker took to be answered.",
        );
        Self {
            connected: gauge(
                "tidelog_peer_connected",
                "1 while there is a connection to a broker, 0 while there is none.",
            ),
            round_trip: GaugeVec::new(round_trip, peer).expect(VALID),
            queued_posts: gauge(
                "tidelog_peer_queued_posts",
                "Posts that wait to be sent to a broker.",
            ),
            queued_bytes: gauge(
                "tidelog_peer_queued_bytes",
                "Bytes of what waits to be sent to a broker.",
            ),
            lost_posts: counter(
                "tidelog_peer_lost_posts_total",
                "Posts for a broker that were lost: there was no connection, or no room.",
            ),
            sent_bytes: counter(
                "tidelog_peer_sent_bytes_total",
                "Bytes that were sent to a broker.",
            ),
        }
    }

    fn collectors(&self) -> [&dyn Collector; 6] {
        [
            &self.connected,
            &self.round_trip,
            &self.queued_posts,
            &self.queued_bytes,
            &self.lost_posts,
            &self.sent_bytes,
        ]
    }

    fn set(&self, seen: &LinkSeen) {
        let peer = seen.node.to_string();
        let peer = &[peer.as_str()];
        let count = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        self.connected
            .with_label_values(peer)
            .set(i64::from(seen.is_connected));
        if let Some(seconds) = seen.round_trip_seconds {
            self.round_trip.with_label_values(peer).set(seconds);
        }
        self.queued_posts
            .with_label_values(peer)
            .set(count(seen.queued));
        self.queued_bytes
            .with_label_values(peer)
            .set(count(seen.queued_bytes));
        self.lost_posts.with_label_values(peer).inc_by(seen.lost);
        self.sent_bytes
            .with_label_values(peer)
            .inc_by(seen.sent_bytes);
    }
}

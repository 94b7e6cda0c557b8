//! What the listeners count, beside what the broker does.

use prometheus::{IntCounter, IntGauge, IntGaugeVec, Opts, Registry};

/// The listeners' metrics, in the broker's registry.
#[derive(Clone, Debug)]
pub(crate) struct ListenerMetrics {
    /// gRPC connections now.
    pub(crate) connections: IntGauge,
    /// Connections closed at once because there were too many.
    pub(crate) refused: IntCounter,
    /// Connections without a call under way that were cut for others.
    pub(crate) made_room: IntCounter,
    /// Calls of the streaming kind now, by method.
    streams: IntGaugeVec,
    /// Bytes of requests that are not complete.
    pub(crate) receiving_bytes: IntGauge,
    /// Bytes of answers that the clients have not taken.
    pub(crate) unsent_bytes: IntGauge,
    /// Bytes that reads and look-ups of many partitions hold.
    pub(crate) asked_bytes: IntGauge,
}

impl ListenerMetrics {
    pub(crate) fn new(registry: &Registry) -> Self {
        let gauge = |name, help| IntGauge::new(name, help).expect("the name is valid");
        let metrics = Self {
            connections: gauge("tidelog_grpc_connections", "gRPC connections."),
            refused: IntCounter::new(
                "tidelog_grpc_connections_refused_total",
                "Connections closed at once because connections_max was reached, and each of the others had a call under way.",
            )
            .expect("the name is valid"),
            made_room: IntCounter::new(
                "tidelog_grpc_connections_made_room_total",
                "Connections without a call under way that were closed for others because connections_max was reached.",
            )
            .expect("the name is valid"),
            streams: IntGaugeVec::new(
                Opts::new(
                    "tidelog_grpc_streams",
                    "Streaming calls under way, by method.",
                ),
                &["method"],
            )
            .expect("the name and label are valid"),
            receiving_bytes: gauge(
                "tidelog_grpc_receiving_bytes",
                "Bytes of requests that are not complete yet, or wait to be begun.",
            ),
            unsent_bytes: gauge(
                "tidelog_grpc_unsent_bytes",
                "Bytes of fetch and read answers that the clients have not taken yet.",
            ),
            asked_bytes: gauge(
                "tidelog_grpc_asked_bytes",
                "Bytes that fetches, reads and look-ups of many partitions hold.",
            ),
        };
        let collectors: [Box<dyn prometheus::core::Collector>; 7] = [
            Box::new(metrics.connections.clone()),
            Box::new(metrics.refused.clone()),
            Box::new(metrics.made_room.clone()),
            Box::new(metrics.streams.clone()),
            Box::new(metrics.receiving_bytes.clone()),
            Box::new(metrics.unsent_bytes.clone()),
            Box::new(metrics.asked_bytes.clone()),
        ];
        for collector in collectors {
            registry
                .register(collector)
                .expect("a broker has its listeners started once");
        }
        metrics
    }

    /// Counts a streaming call for as long as what is returned lives.
    pub(crate) fn stream(&self, method: &str) -> Counted {
        Counted::new(self.streams.with_label_values(&[method]))
    }
}

/// One more in a gauge, until it is dropped.
#[derive(Debug)]
pub(crate) struct Counted(IntGauge);

impl Counted {
    pub(crate) fn new(gauge: IntGauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

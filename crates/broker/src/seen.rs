//! What is seen of the other brokers: which are heard, and what the leaders of partitions say.

use std::collections::{BTreeMap, HashMap, HashSet};

use parking_lot::Mutex;
use tidelog_controller::{
    Cluster, NodeId, Observed, PartitionKey, ReplicaFault, Report, Resigning,
};

/// What is seen, by whichever broker.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    observed: Observed,
    faults: HashMap<NodeId, Vec<ReplicaFault>>,
    /// When a broker was heard, with whatever registration.
    heard_ms: HashMap<NodeId, u64>,
    /// Those of which nothing was heard since the link to them broke.
    cut_off: HashSet<NodeId>,
    /// Why those do not listen to this broker that said so last.
    refusals: BTreeMap<NodeId, String>,
    /// Since when partitions have replicas that are not caught up.
    behind_since: HashMap<PartitionKey, u64>,
}

impl Seen {
    /// A broker has said that it is there, and what it leads.
    pub(crate) fn heartbeat(
        &self,
        from: NodeId,
        is_current: bool,
        reports: Vec<(PartitionKey, Report)>,
        faults: Vec<ReplicaFault>,
        now_ms: u64,
    ) {
        let mut inner = self.inner.lock();
        inner.heard_ms.insert(from, now_ms);
        inner.cut_off.remove(&from);
        inner.refusals.remove(&from);
        let Inner {
            observed,
            behind_since,
            ..
        } = &mut *inner;
        for key in observed.heartbeat(from, is_current, reports, now_ms) {
            let report = &observed.partitions[&key];
            let members = &report.members;
            let mut all = members.voters.iter().chain(&members.learners);
            if all.all(|id| report.caught_up.contains(id)) {
                behind_since.remove(&key);
            } else {
                behind_since.entry(key).or_insert(now_ms);
            }
        }
        inner.faults.insert(from, faults);
    }

    /// The link to a broker has broken.
    pub(crate) fn unreachable(&self, node: NodeId) {
        self.inner.lock().cut_off.insert(node);
    }

    /// A broker does not listen to this one.
    pub(crate) fn refused(&self, by: NodeId, why: &str) {
        self.inner.lock().refusals.insert(by, why.to_owned());
    }

    /// Why a broker does not listen to this one, where one does not.
    pub(crate) fn refusal(&self) -> Option<String> {
        self.inner.lock().refusals.values().next().cloned()
    }

    /// Whether a broker was heard within `within_ms`, and since the link to it broke last.
    pub(crate) fn is_heard(&self, node: NodeId, now_ms: u64, within_ms: u64) -> bool {
        let silent = self.silent_ms(node, now_ms);
        silent.is_some_and(|silent| silent < within_ms)
            && !self.inner.lock().cut_off.contains(&node)
    }

    /// Whether a broker is to lead nothing, and why.
    pub(crate) fn resigns(&self, node: NodeId, resigning: Option<Resigning>) {
        self.inner.lock().observed.resigns(node, resigning);
    }

    /// Why a broker is to lead nothing, if it is, as it said last.
    pub(crate) fn resigning(&self, node: NodeId) -> Option<Resigning> {
        self.inner.lock().observed.resigning.get(&node).copied()
    }

    /// The leader of a partition: which replica, and since which epoch.
    pub(crate) fn leader(&self, key: PartitionKey) -> Option<(u64, u32)> {
        let inner = self.inner.lock();
        let report = inner.observed.partitions.get(&key)?;
        Some((report.leader, report.epoch))
    }

    /// The newest report on a partition.
    pub(crate) fn report(&self, key: PartitionKey) -> Option<Report> {
        self.inner.lock().observed.partitions.get(&key).cloned()
    }

    /// How many entries the replica of a partition lacks that is furthest behind, and for how long not all
    /// were caught up, in milliseconds.
    pub(crate) fn lag(&self, key: PartitionKey, now_ms: u64) -> (Option<u64>, Option<u64>) {
        let inner = self.inner.lock();
        let report = inner.observed.partitions.get(&key);
        let entries = report.and_then(|report| report.lag.values().max().copied());
        let since = inner.behind_since.get(&key);
        let behind = since.map_or(0, |since| now_ms.saturating_sub(*since));
        (entries, report.map(|_| behind))
    }

    /// All newest reports.
    pub(crate) fn reports(&self) -> BTreeMap<PartitionKey, Report> {
        self.inner.lock().observed.partitions.clone()
    }

    /// How long ago a broker was heard, in milliseconds.
    pub(crate) fn silent_ms(&self, node: NodeId, now_ms: u64) -> Option<u64> {
        let heard = self.inner.lock().heard_ms.get(&node).copied();
        heard.map(|heard| now_ms.saturating_sub(heard))
    }

    /// Replicas that do not serve, by broker.
    pub(crate) fn faults(&self) -> Vec<(NodeId, ReplicaFault)> {
        let inner = self.inner.lock();
        let all = inner.faults.iter();
        all.flat_map(|(node, faults)| faults.iter().map(|fault| (*node, fault.clone())))
            .collect()
    }

    /// Does something with what a controller goes by.
    pub(crate) fn with<R>(&self, act: impl FnOnce(&mut Observed) -> R) -> R {
        act(&mut self.inner.lock().observed)
    }

    /// Forgets partitions and brokers that there are not any more.
    pub(crate) fn forget_gone(&self, cluster: &Cluster, metadata: PartitionKey) {
        let mut inner = self.inner.lock();
        let Inner {
            observed,
            behind_since,
            ..
        } = &mut *inner;
        observed.forget_gone(cluster, metadata);
        behind_since.retain(|key, _| observed.partitions.contains_key(key));
        let is_there = |node: &NodeId| cluster.broker(*node).is_some();
        inner.faults.retain(|node, _| is_there(node));
        inner.refusals.retain(|node, _| is_there(node));
    }
}

//! What a broker sees of the others is kept as [`Observed`], by whichever broker.

use std::collections::BTreeSet;

use crate::cluster::{Cluster, PartitionKey};
use crate::ids::{NodeId, node_of};
use crate::notes::Resigning;
use crate::plan::{Observed, Report};

impl Observed {
    /// This broker begins to lead the metadata group. What was heard before that, and asked for by whoever
    /// led before, counts for nothing.
    pub fn begin(&mut self, now_ms: u64) {
        self.since_ms = now_ms;
        self.heard.clear();
        self.transfers_asked.clear();
    }

    /// A broker has said that it is there, and what it leads. `is_current` says whether its registration is
    /// the present one. Gives the partitions of which its report is the newest.
    pub fn heartbeat(
        &mut self,
        from: NodeId,
        is_current: bool,
        reports: Vec<(PartitionKey, Report)>,
        now_ms: u64,
    ) -> Vec<PartitionKey> {
        if is_current {
            self.heard.insert(from, now_ms);
        }
        let mut taken = Vec::new();
        for (key, mut report) in reports {
            if node_of(report.leader) != from {
                continue;
            }
            let known = self.partitions.get(&key);
            if known.is_some_and(|known| known.epoch > report.epoch) {
                continue;
            }
            report.at_ms = now_ms;
            self.partitions.insert(key, report);
            taken.push(key);
        }
        taken
    }

    /// Whether a broker is to lead nothing, and why.
    pub fn resigns(&mut self, node: NodeId, resigning: Option<Resigning>) {
        match resigning {
            Some(why) => drop(self.resigning.insert(node, why)),
            None => drop(self.resigning.remove(&node)),
        }
    }

    /// Whom the broker `own` asks to register it: the one that leads the metadata group, as its own replica
    /// there knows. While that knows of none, all `others`, and whoever says that it leads: one on an empty
    /// disk knows of the founders only, and none of them need lead.
    pub fn registrars(
        &self,
        own: NodeId,
        leader: Option<NodeId>,
        others: &BTreeSet<NodeId>,
        metadata: PartitionKey,
    ) -> BTreeSet<NodeId> {
        let mut asked = match leader {
            Some(leader) => BTreeSet::from([leader]),
            None => {
                let says_so = self.partitions.get(&metadata);
                let says_so = says_so.map(|report| node_of(report.leader));
                others.iter().copied().chain(says_so).collect()
            }
        };
        // It does so itself when it decides.
        asked.remove(&own);
        asked
    }

    /// Forgets partitions that there are not any more. That of the metadata is always there.
    pub fn forget_gone(&mut self, cluster: &Cluster, metadata: PartitionKey) {
        let is_there = |key: &PartitionKey| {
            *key == metadata || cluster.placement(key.topic, key.partition).is_some()
        };
        self.partitions.retain(|key, _| is_there(key));
        self.transfers_asked.retain(|key, _| is_there(key));
    }
}

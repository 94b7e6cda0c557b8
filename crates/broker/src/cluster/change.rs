//! What people ask for of the cluster: each is decided and written down; what it sets going goes on by itself.

use tidelog_controller::{
    BrokerError, Cluster, ClusterCommand, DirectoryId, MoveError, NodeId, PlannedMove,
};

use crate::Broker;
use crate::controller::METADATA_KEY;
use crate::error::TopicError;
use crate::topics::detached;

impl Broker {
    /// Has a partition on these brokers, the preferred leader first.
    ///
    /// # Errors
    /// Why that is refused.
    pub async fn reassign(
        &self,
        topic: &str,
        partition: u32,
        nodes: Vec<NodeId>,
    ) -> Result<(), TopicError> {
        let topic = topic.to_owned();
        self.change(move |cluster| Ok(cluster.decide_reassign(&topic, partition, &nodes)?))
            .await
    }

    /// Turns a change of replicas back.
    ///
    /// # Errors
    /// Why that is refused.
    pub async fn cancel_reassignment(&self, topic: &str, partition: u32) -> Result<(), TopicError> {
        let topic = topic.to_owned();
        self.change(move |cluster| Ok(cluster.decide_cancel(&topic, partition)?))
            .await
    }

    /// Makes a broker the preferred leader of a partition.
    ///
    /// # Errors
    /// Why that is refused.
    pub async fn set_leader(
        &self,
        topic: &str,
        partition: u32,
        node: NodeId,
    ) -> Result<(), TopicError> {
        let topic = topic.to_owned();
        let set = self
            .change(move |cluster| Ok(cluster.decide_set_leader(&topic, partition, node)?))
            .await;
        match set {
            // It is what was asked for.
            Err(TopicError::Move(MoveError::Unchanged)) => Ok(()),
            set => set,
        }
    }

    /// Has all replicas of a broker go elsewhere. Gives how many there are.
    ///
    /// # Errors
    /// Why that is refused.
    pub async fn drain(&self, node: NodeId) -> Result<usize, TopicError> {
        self.change(move |cluster| Ok(cluster.decide_drain(node)?))
            .await?;
        Ok(self.inner().cluster.read().replicas_at(node))
    }

    /// Where the replicas of a broker would go if it were drained, by topic and number of the partition, as far as was
    /// carried out here.
    ///
    /// # Errors
    /// There is no such broker.
    pub fn planned_drain(&self, node: NodeId) -> Result<Vec<(String, PlannedMove)>, TopicError> {
        let cluster = self.inner().cluster.read();
        let moves = cluster.planned_drain(node).map_err(TopicError::Broker)?;
        let named = moves.into_iter().filter_map(|planned| {
            let topic = cluster.topics().by_id(planned.key.topic)?;
            Some((topic.name.to_string(), planned))
        });
        let mut named: Vec<_> = named.collect();
        named.sort_by(|(a, one), (b, other)| (a, one.key.partition).cmp(&(b, other.key.partition)));
        Ok(named)
    }

    /// Lets a broker that was draining have replicas again.
    ///
    /// # Errors
    /// Why that is refused.
    pub async fn undrain(&self, node: NodeId) -> Result<(), TopicError> {
        self.change(move |cluster| Ok(cluster.decide_undrain(node)?))
            .await
    }

    /// Takes a broker without replicas out of the cluster.
    ///
    /// # Errors
    /// Why that is refused.
    pub async fn remove_broker(&self, node: NodeId) -> Result<(), TopicError> {
        let founders = self.inner().config.founders.clone();
        let broker = self.clone();
        self.change(move |cluster| {
            if let Some(command) = never_came(cluster, &founders, node) {
                return Ok(command);
            }
            let report = broker.inner().seen.report(METADATA_KEY);
            let report = report.ok_or(BrokerError::VotersUnknown { node })?;
            Ok(cluster.decide_remove_heard(node, &report.members)?)
        })
        .await
    }

    /// Takes note that a broker has another disk. Gives how many replicas are lost with the one it had.
    ///
    /// # Errors
    /// Why that is refused.
    pub async fn replace_broker(
        &self,
        node: NodeId,
        directory: [u8; 16],
    ) -> Result<usize, TopicError> {
        let lost = self.inner().cluster.read().replicas_at(node);
        let directory = DirectoryId::from_bytes(directory);
        let founders = self.inner().config.founders.clone();
        self.change(move |cluster| {
            let never_came = never_came(cluster, &founders, node);
            Ok(never_came.map_or_else(|| cluster.decide_replace(node, directory), Ok)?)
        })
        .await?;
        Ok(lost)
    }

    async fn change(
        &self,
        decide: impl FnOnce(&Cluster) -> Result<ClusterCommand, TopicError> + Send + 'static,
    ) -> Result<(), TopicError> {
        let broker = self.clone();
        detached(async move {
            let mut folded = broker.begin_change().await?;
            let command = decide(&broker.inner().cluster.read())?;
            broker.commit(&mut folded, &command).await?;
            broker.inner().asked.wake();
            Ok(())
        })
        .await
    }
}

/// What removes a broker that has founded the cluster and never registered: it has lost its disk before. With
/// another one it joins as a new broker does.
fn never_came(cluster: &Cluster, founders: &[NodeId], node: NodeId) -> Option<ClusterCommand> {
    let is_known = cluster.broker(node).is_some() || cluster.was_removed(node);
    (founders.contains(&node) && !is_known).then_some(ClusterCommand::UnregisterBroker {
        node,
        is_lost: true,
    })
}

//! Administration of the cluster: its brokers, and where partitions are.

use bytes::Bytes;
use tidelog_proto::v1;
use tidelog_record::{PartitionId, TopicName};

use crate::{Client, ClientError};

impl Client {
    /// Tells of the brokers, and of partitions that are not well, as one broker sees it.
    ///
    /// # Errors
    /// What any call meets.
    pub async fn describe_cluster(&self) -> Result<v1::DescribeClusterResponse, ClientError> {
        self.call_cluster("DescribeCluster", |mut cluster| async move {
            cluster
                .describe_cluster(v1::DescribeClusterRequest {})
                .await
        })
        .await
    }

    /// Lists the partitions of a topic, or of all, with the brokers that have them.
    ///
    /// # Errors
    /// [`ClientError::Broker`] (not found), and what any call meets.
    pub async fn list_partitions(
        &self,
        topic: Option<&TopicName>,
    ) -> Result<Vec<v1::PartitionPlace>, ClientError> {
        let mut partitions = Vec::new();
        let mut request = v1::ListPartitionsRequest {
            topic: topic.map(ToString::to_string).unwrap_or_default(),
            ..Default::default()
        };
        loop {
            let page = self
                .call_cluster("ListPartitions", |mut cluster| {
                    let request = request.clone();
                    async move { cluster.list_partitions(request).await }
                })
                .await?;
            partitions.extend(page.partitions);
            if page.next_page_token.is_empty() {
                return Ok(partitions);
            }
            if page.next_page_token == request.page_token {
                let what = "ListPartitions gave the same page again".to_owned();
                return Err(ClientError::Protocol { what });
            }
            request.page_token = page.next_page_token;
        }
    }

    /// Has a partition on these brokers, the preferred leader first. It is copied there first; that
    /// goes on by itself once this is answered.
    ///
    /// # Errors
    /// [`ClientError::Broker`] (not found, not possible now), and what any call meets.
    pub async fn reassign_partition(
        &self,
        topic: &TopicName,
        partition: PartitionId,
        node_ids: &[u32],
    ) -> Result<(), ClientError> {
        let request = v1::ReassignPartitionRequest {
            topic: topic.to_string(),
            partition: partition.get(),
            node_ids: node_ids.to_vec(),
        };
        self.call_cluster("ReassignPartition", |mut cluster| {
            let request = request.clone();
            async move { cluster.reassign_partition(request).await }
        })
        .await?;
        Ok(())
    }

    /// Turns such a change back, as long as that can be.
    ///
    /// # Errors
    /// [`ClientError::Broker`] (not found, not possible now), and what any call meets.
    pub async fn cancel_reassignment(
        &self,
        topic: &TopicName,
        partition: PartitionId,
    ) -> Result<(), ClientError> {
        let request = v1::CancelReassignmentRequest {
            topic: topic.to_string(),
            partition: partition.get(),
        };
        self.call_cluster("CancelReassignment", |mut cluster| {
            let request = request.clone();
            async move { cluster.cancel_reassignment(request).await }
        })
        .await?;
        Ok(())
    }

    /// Makes a broker the preferred leader of a partition that it has a replica of.
    ///
    /// # Errors
    /// [`ClientError::Broker`] (not found, not allowed), and what any call meets.
    pub async fn set_leader(
        &self,
        topic: &TopicName,
        partition: PartitionId,
        node_id: u32,
    ) -> Result<(), ClientError> {
        let request = v1::SetLeaderRequest {
            topic: topic.to_string(),
            partition: partition.get(),
            node_id,
        };
        self.call_cluster("SetLeader", |mut cluster| {
            let request = request.clone();
            async move { cluster.set_leader(request).await }
        })
        .await?;
        Ok(())
    }

    /// Has all replicas and leaderships of a broker go elsewhere. Gives how many replicas will.
    ///
    /// # Errors
    /// [`ClientError::Broker`] (not found, not possible), and what any call meets.
    pub async fn drain_broker(&self, node_id: u32) -> Result<u32, ClientError> {
        let response = self
            .call_cluster("DrainBroker", |mut cluster| async move {
                cluster
                    .drain_broker(v1::DrainBrokerRequest {
                        node_id,
                        validate_only: false,
                    })
                    .await
            })
            .await?;
        Ok(response.replicas)
    }

    /// Where the replicas of a broker would go if it were drained, as the broker that answers sees it.
    ///
    /// # Errors
    /// [`ClientError::Broker`] (not found), and what any call meets.
    pub async fn planned_drain(
        &self,
        node_id: u32,
    ) -> Result<v1::DrainBrokerResponse, ClientError> {
        self.call_cluster("DrainBroker", |mut cluster| async move {
            cluster
                .drain_broker(v1::DrainBrokerRequest {
                    node_id,
                    validate_only: true,
                })
                .await
        })
        .await
    }

    /// Lets a broker that was draining have replicas again.
    ///
    /// # Errors
    /// [`ClientError::Broker`] (not found), and what any call meets.
    pub async fn add_broker(&self, node_id: u32) -> Result<(), ClientError> {
        self.call_cluster("AddBroker", |mut cluster| async move {
            cluster.add_broker(v1::AddBrokerRequest { node_id }).await
        })
        .await?;
        Ok(())
    }

    /// Takes a broker without replicas out of the cluster, for good.
    ///
    /// # Errors
    /// [`ClientError::Broker`] (not found, has replicas), and what any call meets.
    pub async fn remove_broker(&self, node_id: u32) -> Result<(), ClientError> {
        self.call_cluster("RemoveBroker", |mut cluster| async move {
            cluster
                .remove_broker(v1::RemoveBrokerRequest { node_id })
                .await
        })
        .await?;
        Ok(())
    }

    /// Takes note that a broker has lost its disk, and has the data directory of this id (16 bytes)
    /// now. Gives how many replicas were lost, and will be made anew.
    ///
    /// # Errors
    /// [`ClientError::Broker`] (not found, not allowed), and what any call meets.
    pub async fn replace_broker(
        &self,
        node_id: u32,
        directory_id: [u8; 16],
    ) -> Result<u32, ClientError> {
        let directory_id = Bytes::copy_from_slice(&directory_id);
        let request = v1::ReplaceBrokerRequest {
            node_id,
            directory_id,
        };
        let response = self
            .call_cluster("ReplaceBroker", |mut cluster| {
                let request = request.clone();
                async move { cluster.replace_broker(request).await }
            })
            .await?;
        Ok(response.replicas)
    }

    /// Gives up the brokers that are lost for good, and has everything go on that has lost its majority
    /// with them; tells what is lost. Without `accept_loss` nothing is changed. `lost` are all that do
    /// not answer; `None` stands for these, whichever they are.
    ///
    /// # Errors
    /// [`ClientError::Broker`] (not possible: one of them is heard, another one does not answer), and what
    /// any call meets.
    pub async fn recover_cluster(
        &self,
        lost: Option<&[u32]>,
        accept_loss: bool,
    ) -> Result<v1::RecoverClusterResponse, ClientError> {
        let request = v1::RecoverClusterRequest {
            lost: lost.unwrap_or_default().to_vec(),
            accept_loss,
            exactly: lost.is_some(),
        };
        self.call_cluster("RecoverCluster", |mut cluster| {
            let request = request.clone();
            async move { cluster.recover_cluster(request).await }
        })
        .await
    }
}

//! Groups: committing offsets, finding them again, and looking at groups.

use std::sync::Arc;

use bytes::Bytes;
use tidelog_proto::v1;
use tidelog_proto::v1::groups_client::GroupsClient;
use tidelog_record::{Offset, PartitionId, Timestamp, TopicName};
use tokio::sync::OnceCell;
use tokio::time::Instant;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use crate::offsets::offset;
use crate::split::Question;
use crate::{Backoff, Client, ClientError};

/// The topic whose partitions' leaders coordinate groups.
const OFFSETS_TOPIC: &str = "__consumer_offsets";
/// What a call has that is not to be passed on to another broker.
const PASSED_ON: &str = "tidelog-passed-on";
/// How many offsets are committed in one call at most.
const COMMITS_MAX: usize = 10_000;

/// A consumer group. Clones are the same group; each call goes to the group's coordinator, and after it where that goes.
#[derive(Clone, Debug)]
pub struct Group {
    client: Client,
    name: Arc<str>,
    /// The partition of [`OFFSETS_TOPIC`] that the group belongs to, once it was asked for.
    partition: Arc<OnceCell<PartitionId>>,
}

/// An offset to be committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewCommit {
    /// The topic.
    pub topic: TopicName,
    /// The partition.
    pub partition: PartitionId,
    /// The next offset to be read: one more than that of the last record that is done with.
    pub offset: Offset,
    /// Anything that is to be found with it, of at most 4,096 bytes.
    pub metadata: String,
    /// The id of the topic that was read, 16 bytes; empty where it does not matter that there may be another one of its
    /// name by now.
    pub topic_id: Bytes,
}

impl NewCommit {
    /// The offset `offset` of a partition, without metadata.
    pub fn new(topic: TopicName, partition: PartitionId, offset: Offset) -> Self {
        Self {
            topic,
            partition,
            offset,
            metadata: String::new(),
            topic_id: Bytes::new(),
        }
    }
}

/// How offsets are committed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CommitOptions {
    /// Also offsets that are lower than those that are committed.
    pub allow_backwards: bool,
}

/// What a group has committed for a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// The topic.
    pub topic: TopicName,
    /// The partition.
    pub partition: PartitionId,
    /// The next offset to be read.
    pub offset: Offset,
    /// What was committed beside it.
    pub metadata: String,
    /// When it was committed, by the coordinator's clock.
    pub committed_at: Timestamp,
    /// The topic it was committed for, 16 bytes. If there is another one of that name now, the offset means nothing.
    pub topic_id: Bytes,
}

impl Client {
    /// The group of this name: 1 to 255 bytes without control characters. It exists from its first commit on.
    pub fn group(&self, name: &str) -> Group {
        Group {
            client: self.clone(),
            name: Arc::from(name),
            partition: Arc::default(),
        }
    }

    /// All groups of the coordinators that answer, by name, and which did not answer.
    ///
    /// # Errors
    /// What any call meets.
    pub async fn list_groups(
        &self,
    ) -> Result<(Vec<v1::GroupSummary>, Vec<v1::MissingCoordinator>), ClientError> {
        let (mut groups, mut missing) = (Vec::new(), Vec::new());
        let mut page_token = String::new();
        loop {
            let request = v1::ListGroupsRequest {
                page_size: 0,
                page_token,
            };
            let page = self.call_groups("ListGroups", |mut groups| {
                let request = request.clone();
                async move { groups.list_groups(request).await }
            });
            let page = page.await?;
            groups.extend(page.groups);
            for one in page.missing {
                let partition = one.partition;
                if missing
                    .iter()
                    .all(|known: &v1::MissingCoordinator| known.partition != partition)
                {
                    missing.push(one);
                }
            }
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return Ok((groups, missing));
            }
        }
    }
}

impl Group {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Commits offsets as somebody who decides alone what to read: the group may have no members. The answers are in
    /// the order of `commits`; each commit succeeds or fails by itself, and one that is lower than what is committed
    /// fails unless the options allow it.
    ///
    /// A commit that is [of unknown outcome](ClientError::is_outcome_unknown) may be done again.
    ///
    /// # Errors
    /// Why none of a part of at most 10,000 commits was done, or nobody knows; parts before it may be.
    pub async fn commit(
        &self,
        commits: &[NewCommit],
        options: CommitOptions,
    ) -> Result<Vec<Result<(), ClientError>>, ClientError> {
        let mut results = Vec::with_capacity(commits.len());
        for part in commits.chunks(COMMITS_MAX) {
            let offsets = part.iter().map(|one| v1::OffsetCommit {
                topic: one.topic.to_string(),
                partition: one.partition.get(),
                offset: one.offset.get(),
                leader_epoch: None,
                metadata: one.metadata.clone(),
                topic_id: one.topic_id.clone(),
            });
            let request = v1::CommitOffsetsRequest {
                group: self.name.to_string(),
                member: None,
                allow_backwards: options.allow_backwards,
                offsets: offsets.collect(),
            };
            // Once more does no harm where a late one changes nothing.
            let is_repeatable = !options.allow_backwards;
            let committed = self.ask("CommitOffsets", is_repeatable, |mut groups| {
                let request = direct(request.clone());
                async move { groups.commit_offsets(request).await }
            });
            let committed = committed.await?.offsets;
            if committed.len() != part.len() {
                let what = format!(
                    "{} offsets are answered for, of {}",
                    committed.len(),
                    part.len()
                );
                return Err(ClientError::Protocol { what });
            }
            results.extend(committed.iter().map(|one| match &one.error {
                Some(error) => Err(ClientError::from_message(error)),
                None => Ok(()),
            }));
        }
        Ok(results)
    }

    /// What is committed, by topic and partition: nothing for a group that does not exist.
    ///
    /// # Errors
    /// What any call meets.
    pub async fn committed(&self) -> Result<Vec<Committed>, ClientError> {
        self.committed_of(Vec::new()).await
    }

    /// What is committed for partitions of a topic; those for which nothing is are left out.
    ///
    /// # Errors
    /// What any call meets.
    pub async fn committed_for(
        &self,
        topic: &TopicName,
        partitions: &[PartitionId],
    ) -> Result<Vec<Committed>, ClientError> {
        let mut committed = Vec::new();
        for part in partitions.chunks(COMMITS_MAX) {
            let named = part.iter().map(|partition| v1::TopicPartition {
                topic: topic.to_string(),
                partition: partition.get(),
            });
            committed.extend(self.committed_of(named.collect()).await?);
        }
        Ok(committed)
    }

    async fn committed_of(
        &self,
        partitions: Vec<v1::TopicPartition>,
    ) -> Result<Vec<Committed>, ClientError> {
        let request = v1::FetchOffsetsRequest {
            group: self.name.to_string(),
            partitions,
        };
        let fetched = self.ask("FetchOffsets", true, |mut groups| {
            let request = direct(request.clone());
            async move { groups.fetch_offsets(request).await }
        });
        let fetched = fetched.await?.offsets.into_iter();
        fetched
            .filter_map(|one| committed(one).transpose())
            .collect()
    }

    /// Forgets what is committed for these partitions. Gives, in their order, whether anything was.
    ///
    /// # Errors
    /// The group has members, or does not exist; what any call meets.
    pub async fn delete_offsets(
        &self,
        partitions: &[(TopicName, PartitionId)],
    ) -> Result<Vec<bool>, ClientError> {
        let named = partitions
            .iter()
            .map(|(topic, partition)| v1::TopicPartition {
                topic: topic.to_string(),
                partition: partition.get(),
            });
        let request = v1::DeleteOffsetsRequest {
            group: self.name.to_string(),
            partitions: named.collect(),
        };
        let deleted = self.ask("DeleteOffsets", false, |mut groups| {
            let request = direct(request.clone());
            async move { groups.delete_offsets(request).await }
        });
        Ok(deleted.await?.deleted)
    }

    /// The group with all that it has committed, and who coordinates it.
    ///
    /// # Errors
    /// It does not exist; what any call meets.
    pub async fn describe(&self) -> Result<v1::DescribeGroupResponse, ClientError> {
        let request = v1::DescribeGroupRequest {
            group: self.name.to_string(),
        };
        self.ask("DescribeGroup", true, |mut groups| {
            let request = direct(request.clone());
            async move { groups.describe_group(request).await }
        })
        .await
    }

    /// Forgets the group and all that it has committed.
    ///
    /// # Errors
    /// It has members, or does not exist; what any call meets.
    pub async fn delete(&self) -> Result<(), ClientError> {
        let request = v1::DeleteGroupRequest {
            group: self.name.to_string(),
        };
        self.ask("DeleteGroup", false, |mut groups| {
            let request = direct(request.clone());
            async move { groups.delete_group(request).await }
        })
        .await?;
        Ok(())
    }

    /// Asks the coordinator.
    async fn ask<T, F>(
        &self,
        operation: &'static str,
        is_repeatable: bool,
        call: impl Fn(GroupsClient<Channel>) -> F,
    ) -> Result<T, ClientError>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let partition = *self.partition.get_or_try_init(|| self.find()).await?;
        let topic = TopicName::new(OFFSETS_TOPIC).expect("it can be a topic's name");
        let question = Question {
            operation,
            topic: &topic,
            partitions: &[partition],
            is_repeatable,
        };
        let answers = self.client.ask_over(question, |route, _places| {
            let called = call(self.client.groups_of(route));
            async move { Ok(vec![Ok(called.await?.into_inner())]) }
        });
        let mut answers = answers.await?;
        answers.pop().expect("one partition was asked")
    }

    /// Finds out to which partition the group belongs; with the first group the topic is made.
    async fn find(&self) -> Result<PartitionId, ClientError> {
        let request = v1::FindCoordinatorRequest {
            group: self.name.to_string(),
        };
        let began_at = Instant::now();
        let backoff = Backoff::default();
        let mut retry = 0;
        loop {
            let found = self.client.call_groups("FindCoordinator", |mut groups| {
                let request = request.clone();
                async move { groups.find_coordinator(request).await }
            });
            let error = match found.await {
                Ok(found) => return Ok(PartitionId::new(found.partition)),
                Err(error) => error,
            };
            // Nobody may lead the partition for a moment, above all when it has just been made.
            retry += 1;
            let wait = backoff.wait(retry, error.retry_after());
            let is_late = began_at.elapsed() + wait > self.client.config().request_timeout;
            if is_late || !error.is_retryable() {
                return Err(error);
            }
            tokio::time::sleep(wait).await;
        }
    }
}

/// The request as one that only the coordinator itself answers.
fn direct<Q>(request: Q) -> Request<Q> {
    let mut request = Request::new(request);
    let here = MetadataValue::from_static("1");
    request.metadata_mut().insert(PASSED_ON, here);
    request
}

fn committed(told: v1::GroupOffset) -> Result<Option<Committed>, ClientError> {
    let Some(next) = told.offset else {
        return Ok(None);
    };
    let topic = TopicName::new(&told.topic);
    Ok(Some(Committed {
        topic: topic.map_err(|e| ClientError::Protocol {
            what: e.to_string(),
        })?,
        partition: PartitionId::new(told.partition),
        offset: offset(next)?,
        metadata: told.metadata,
        committed_at: Timestamp::from_millis(told.committed_at_ms),
        topic_id: told.topic_id,
    }))
}

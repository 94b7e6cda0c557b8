//! Topics: decided, written to the metadata log, carried out.

use std::collections::BTreeMap;
use std::time::Duration;

use tidelog_controller::{
    Cluster, ClusterCommand, Command as TopicCommand, NewTopic, PartitionKey, ReplicaId,
    Replication, Topic, Wanted, node_of,
};
use tidelog_record::TopicId;

use crate::Broker;
use crate::describe::TopicSummary;
use crate::error::{AppendError, ErrorKind, Facts, TopicError};
use crate::files::FIRST_INCARNATION;
use crate::metadata::Folded;

impl Broker {
    /// Makes a topic; it serves when this returns. Once begun, this and the other changes of topics
    /// are carried through even when nobody waits for them any more.
    ///
    /// # Errors
    /// Why it is refused, or could not be made.
    pub async fn create_topic(&self, new: NewTopic) -> Result<TopicSummary, TopicError> {
        self.create_replicated(new, Replication::default()).await
    }

    /// The same, with so many replicas, or at these brokers.
    ///
    /// # Errors
    /// Why it is refused, or could not be made.
    pub async fn create_replicated(
        &self,
        new: NewTopic,
        replication: Replication,
    ) -> Result<TopicSummary, TopicError> {
        let broker = self.clone();
        let created =
            detached(async move { broker.create_now(new, Some(replication)).await }).await?;
        self.await_leaders(created.topic_id).await;
        Ok(created)
    }

    /// Makes a topic that the cluster itself needs, unless it is there.
    pub(crate) async fn create_internal(&self, new: NewTopic) -> Result<(), TopicError> {
        let broker = self.clone();
        match detached(async move { broker.create_now(new, None).await }).await {
            Ok(created) => self.await_leaders(created.topic_id).await,
            // Somebody else needed it as well.
            Err(TopicError::Refused(tidelog_controller::TopicError::Exists { .. })) => {}
            Err(e) => return Err(e),
        }
        Ok(())
    }

    /// Without a `replication` the topic is the cluster's own.
    async fn create_now(
        &self,
        new: NewTopic,
        replication: Option<Replication>,
    ) -> Result<TopicSummary, TopicError> {
        self.await_founders().await;
        let mut folded = self.begin_change().await?;
        let id = TopicId::from_bytes(self.inner.seams.random.id());
        let command = {
            let cluster = self.inner.cluster.read();
            let command = match &replication {
                Some(replication) => cluster.decide_create_topic(&new, replication, id)?,
                None => cluster.decide_create_internal(&new, id)?,
            };
            if let ClusterCommand::CreateTopic { topic, .. } = &command {
                self.check_limits(&cluster, 1, topic.partitions)?;
            }
            command
        };
        let ClusterCommand::CreateTopic {
            topic,
            replication_factor,
            placement,
        } = &command
        else {
            unreachable!("decided just now")
        };
        if new.validate_only {
            return Ok(TopicSummary::of(topic, *replication_factor));
        }
        let here = self.placed_here(0, placement);
        self.clear_the_way(topic, here).await?;
        self.commit(&mut folded, &command).await?;
        match Self::made_error(&mut folded, id) {
            None => Ok(TopicSummary::of(topic, *replication_factor)),
            Some(e) => Err(self.take_back(&mut folded, id, e).await),
        }
    }

    /// Checks that the broker takes so many more topics and partitions: each costs memory, an open
    /// file, and time at the next start.
    fn check_limits(
        &self,
        cluster: &Cluster,
        more_topics: usize,
        more_partitions: u32,
    ) -> Result<(), TopicError> {
        let config = &self.inner.config;
        let topics = cluster.topics();
        let partitions = topics.iter().map(|topic| topic.partitions as usize).sum();
        for (what, setting, max, count, asked) in [
            (
                "topics",
                "topics_max",
                config.topics_max,
                topics.iter().count(),
                more_topics,
            ),
            (
                "partitions",
                "partitions_max",
                config.partitions_max,
                partitions,
                more_partitions as usize,
            ),
        ] {
            if asked > 0 && count.saturating_add(asked) > max {
                return Err(TopicError::LimitReached {
                    what,
                    setting,
                    max,
                    count,
                    asked,
                });
            }
        }
        Ok(())
    }

    /// Takes back a topic that was decided and could not be made.
    async fn take_back(&self, folded: &mut Folded, id: TopicId, error: TopicError) -> TopicError {
        let undo = TopicCommand::Delete { id }.into();
        match self.commit(folded, &undo).await {
            Ok(_) => error,
            Err(undo) => {
                // It exists then, and the next start makes it. Until then it says why it does not
                // serve, and can be deleted.
                let cause = format!("{error}; nor could the topic be taken back: {undo}");
                AppendError::OutcomeUnknown { cause }.into()
            }
        }
    }

    /// Changes settings; they are in force when this returns.
    ///
    /// # Errors
    /// Why that is refused.
    pub async fn alter_topic(
        &self,
        name: &str,
        set: BTreeMap<String, String>,
        reset: Vec<String>,
        validate_only: bool,
    ) -> Result<TopicSummary, TopicError> {
        let (broker, name) = (self.clone(), name.to_owned());
        detached(async move { broker.alter_now(&name, set, reset, validate_only).await }).await
    }

    async fn alter_now(
        &self,
        name: &str,
        set: BTreeMap<String, String>,
        reset: Vec<String>,
        validate_only: bool,
    ) -> Result<TopicSummary, TopicError> {
        let mut folded = self.begin_change().await?;
        let command: ClusterCommand = {
            let cluster = self.inner.cluster.read();
            let topics = cluster.topics();
            let command = topics.decide_alter(name, set, &reset)?;
            if validate_only {
                let mut after = topics.clone();
                after.apply(&command).expect("decided on this state");
                return Ok(self.inner.summary(&cluster, after.get(name)?));
            }
            command.into()
        };
        self.commit(&mut folded, &command).await?;
        let cluster = self.inner.cluster.read();
        Ok(self.inner.summary(&cluster, cluster.topics().get(name)?))
    }

    /// Adds partitions, up to `total`; they serve when this returns.
    ///
    /// # Errors
    /// Why that is refused, or could not be done.
    pub async fn add_partitions(&self, name: &str, total: u32) -> Result<TopicSummary, TopicError> {
        self.add_assigned(name, total, Vec::new()).await
    }

    /// The same, with the new ones at these brokers; chosen where `assignment` is empty.
    ///
    /// # Errors
    /// Why that is refused, or could not be done.
    pub async fn add_assigned(
        &self,
        name: &str,
        total: u32,
        assignment: Vec<Vec<u32>>,
    ) -> Result<TopicSummary, TopicError> {
        let (broker, name) = (self.clone(), name.to_owned());
        let added =
            detached(async move { broker.add_now(&name, total, &assignment).await }).await?;
        self.await_leaders(added.topic_id).await;
        Ok(added)
    }

    async fn add_now(
        &self,
        name: &str,
        total: u32,
        assignment: &[Vec<u32>],
    ) -> Result<TopicSummary, TopicError> {
        let mut folded = self.begin_change().await?;
        let (command, before) = {
            let cluster = self.inner.cluster.read();
            let command = cluster.decide_add_partitions(name, total, assignment)?;
            let before = cluster.topics().get(name)?.clone();
            self.check_limits(&cluster, 0, total - before.partitions)?;
            (command, before)
        };
        let ClusterCommand::AddPartitions { placement, .. } = &command else {
            unreachable!("decided just now")
        };
        let added = before.partitions..total;
        let here = self.placed_here(before.partitions, placement);
        self.clear_the_way(&before, here.clone()).await?;
        // The files come first: a partition cannot be taken back once it is decided. What a crash
        // leaves behind the next start removes.
        let made = match self.make_partitions(&before, here).await {
            Ok(made) => made,
            Err(e) => {
                self.remove_files(&before, added).await;
                return Err(e);
            }
        };
        folded.made = Some((before.id, made));
        let committed = self.commit(&mut folded, &command).await;
        if let Err(e) = committed {
            drop(folded.made.take());
            if e.kind() != ErrorKind::Unknown {
                self.remove_files(&before, added).await;
            }
            return Err(e);
        }
        let cluster = self.inner.cluster.read();
        Ok(self.inner.summary(&cluster, cluster.topics().get(name)?))
    }

    /// Which of new partitions, the first of which has the number `first`, are to be here.
    fn placed_here(&self, first: u32, placement: &[Vec<ReplicaId>]) -> Vec<Wanted> {
        let node = self.inner.identity.node_id;
        let here = (first..).zip(placement).filter_map(|(number, founders)| {
            let replica = founders.iter().find(|replica| node_of(**replica) == node);
            Some(Wanted {
                number,
                replica: *replica?,
                founders: founders.clone(),
                incarnation: FIRST_INCARNATION,
                is_alone: founders.len() == 1,
                leads_first: founders.len() > 1 && founders.first() == replica,
            })
        });
        here.collect()
    }

    /// Waits for a moment until the brokers that founded the cluster are there: partitions are to be
    /// spread over all of them.
    async fn await_founders(&self) {
        let founders = self.inner.config.founders.len();
        let mut changed = self.inner.metadata_changed.subscribe();
        let wait = changed.wait_for(|_| {
            let cluster = self.inner.cluster.read();
            let removed = self.inner.config.founders.iter();
            let removed = removed.filter(|node| cluster.was_removed(**node)).count();
            cluster.brokers().count() + removed >= founders
        });
        if founders > 1 {
            // Without them it is decided with those that there are.
            drop(tokio::time::timeout(FOUNDERS_WAIT_MAX, wait).await);
        }
    }

    /// Waits for a moment until all partitions of a topic have a leader.
    async fn await_leaders(&self, id: TopicId) {
        // Those that have none by then get one later.
        self.await_partitions(id, LEADERS_WAIT_MAX, |key, topic| {
            self.inner.leader_of(&topic.name, key).is_some()
        })
        .await;
    }

    /// Waits for a moment until this broker sees all partitions of a topic led, and their replicas caught up: whoever has
    /// just made them is to find them well.
    pub async fn await_settled(&self, name: &str) {
        let id = {
            let cluster = self.inner.cluster.read();
            cluster.topics().get(name).ok().map(|topic| topic.id)
        };
        let Some(id) = id else {
            return;
        };
        self.await_leaders(id).await;
        self.await_partitions(id, CAUGHT_UP_WAIT_MAX, |key, _| self.is_caught_up(key))
            .await;
    }

    /// Whether the replicas of a partition are caught up, but for those at brokers that are not heard, or whose disk is
    /// full or hangs.
    fn is_caught_up(&self, key: PartitionKey) -> bool {
        let cluster = self.inner.cluster.read();
        let (placement, report) = (
            cluster.placement(key.topic, key.partition),
            self.inner.seen.report(key),
        );
        let Some((placement, report)) = placement.zip(report) else {
            return false;
        };
        let mut replicas = placement.replicas.iter();
        replicas.all(|replica| {
            let node = node_of(*replica);
            report.caught_up.contains(replica)
                || !self.inner.is_heard(node)
                || self.inner.seen.resigning(node).is_some()
        })
    }

    /// Waits until all partitions of a topic are so, or have been, or it is gone, or the time is over.
    async fn await_partitions(
        &self,
        id: TopicId,
        max: Duration,
        is_so: impl Fn(PartitionKey, &Topic) -> bool,
    ) {
        if self.inner.config.is_alone() {
            return;
        }
        let topic = || self.inner.cluster.read().topics().by_id(id).cloned();
        let Some(known) = topic() else {
            return;
        };
        let wait = async {
            for partition in 0..known.partitions {
                let key = PartitionKey {
                    topic: id,
                    partition,
                };
                while !is_so(key, &known) && topic().is_some() {
                    tokio::time::sleep(LEADERS_LOOK).await;
                }
            }
        };
        drop(tokio::time::timeout(max, wait).await);
    }

    /// Deletes a topic and all its records. They are gone when this returns, except for slices
    /// that readers still hold.
    ///
    /// # Errors
    /// Why that is refused.
    pub async fn delete_topic(&self, name: &str) -> Result<(), TopicError> {
        let (broker, name) = (self.clone(), name.to_owned());
        detached(async move { broker.delete_now(&name).await }).await
    }

    async fn delete_now(&self, name: &str) -> Result<(), TopicError> {
        let mut folded = self.begin_change().await?;
        let command = self.inner.cluster.read().topics().decide_delete(name)?;
        self.commit(&mut folded, &command.into()).await?;
        Ok(())
    }

    /// Reserves more producer ids, unless somebody did since all below `seen` were.
    pub(crate) async fn reserve_producer_ids(
        &self,
        seen: i64,
        count: u32,
    ) -> Result<(), TopicError> {
        let broker = self.clone();
        detached(async move {
            let mut folded = broker.begin_change().await?;
            let first = broker.first_free_producer_id();
            if first > seen {
                return Ok(());
            }
            let next = first.checked_add(i64::from(count)).ok_or_else(|| {
                AppendError::Request("there are no more producer ids to give out".to_owned())
            })?;
            let command = TopicCommand::ReserveProducerIds { next }.into();
            broker.commit(&mut folded, &command).await?;
            broker.producer_ids_reserved(first..next);
            Ok(())
        })
        .await
    }
}

/// How long a new topic waits for the brokers that founded the cluster.
const FOUNDERS_WAIT_MAX: Duration = Duration::from_secs(10);
/// How long a change waits until its partitions have leaders.
const LEADERS_WAIT_MAX: Duration = Duration::from_secs(3);
/// And then until their replicas are caught up: one that a broker makes after its leader has first spoken to it hears
/// from it again after a heartbeat.
const CAUGHT_UP_WAIT_MAX: Duration = Duration::from_secs(5);
const LEADERS_LOOK: Duration = Duration::from_millis(10);

/// Carries a change through to its end, even when the caller goes away: a change that is written
/// and not folded in would let a later one be decided on a state that is not so.
pub(crate) async fn detached<T: Send + 'static>(
    change: impl Future<Output = Result<T, TopicError>> + Send + 'static,
) -> Result<T, TopicError> {
    tokio::spawn(change).await.unwrap_or_else(|e| {
        let cause = e.to_string();
        Err(AppendError::OutcomeUnknown { cause }.into())
    })
}

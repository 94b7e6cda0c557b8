//! Topics: decided, written to the metadata log, carried out.

use std::collections::BTreeMap;
use std::sync::Arc;

use tidelog_controller::{Command as TopicCommand, NewTopic, Topics};
use tidelog_record::TopicId;

use crate::Broker;
use crate::describe::{TopicSummary, summary};
use crate::error::{AppendError, ErrorKind, Facts, TopicError};
use crate::metadata::Folded;

impl Broker {
    /// Makes a topic; it serves when this returns. Once begun, this and the other changes of topics
    /// are carried through even when nobody waits for them any more.
    ///
    /// # Errors
    /// Why it is refused, or could not be made.
    pub async fn create_topic(&self, new: NewTopic) -> Result<TopicSummary, TopicError> {
        let broker = self.clone();
        detached(async move { broker.create_now(new).await }).await
    }

    async fn create_now(&self, new: NewTopic) -> Result<TopicSummary, TopicError> {
        let mut folded = self.begin_change().await?;
        let id = TopicId::from_bytes(self.inner.seams.random.id());
        let command = folded.topics.decide_create(&new, id)?;
        let TopicCommand::Create(topic) = &command else {
            unreachable!("decided just now")
        };
        let topic = Arc::new(topic.clone());
        self.check_limits(&folded.topics, 1, topic.partitions)?;
        if new.validate_only {
            return Ok(summary(&topic));
        }
        self.clear_the_way(&topic, 0..topic.partitions).await?;
        self.commit(&mut folded, &command).await?;
        match folded.failed.take().filter(|(failed, _)| *failed == id) {
            None => Ok(summary(&topic)),
            Some((_, e)) => Err(self.take_back(&mut folded, id, e).await),
        }
    }

    /// Checks that the broker takes so many more topics and partitions: each costs memory, an open
    /// file, and time at the next start.
    fn check_limits(
        &self,
        topics: &Topics,
        more_topics: usize,
        more_partitions: u32,
    ) -> Result<(), TopicError> {
        let config = &self.inner.config;
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
        let undo = TopicCommand::Delete { id };
        match self.commit(folded, &undo).await {
            Ok(()) => error,
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
        let command = folded.topics.decide_alter(name, set, &reset)?;
        if validate_only {
            let mut after = folded.topics.clone();
            after.apply(&command).expect("decided on this state");
            return Ok(summary(after.get(name)?));
        }
        self.commit(&mut folded, &command).await?;
        Ok(summary(folded.topics.get(name)?))
    }

    /// Adds partitions, up to `total`; they serve when this returns.
    ///
    /// # Errors
    /// Why that is refused, or could not be done.
    pub async fn add_partitions(&self, name: &str, total: u32) -> Result<TopicSummary, TopicError> {
        let (broker, name) = (self.clone(), name.to_owned());
        detached(async move { broker.add_now(&name, total).await }).await
    }

    async fn add_now(&self, name: &str, total: u32) -> Result<TopicSummary, TopicError> {
        let mut folded = self.begin_change().await?;
        let command = folded.topics.decide_add_partitions(name, total)?;
        let before = folded.topics.get(name)?.clone();
        let added = before.partitions..total;
        self.check_limits(&folded.topics, 0, total - before.partitions)?;
        self.clear_the_way(&before, added.clone()).await?;
        // The files come first: a partition cannot be taken back once it is decided. What a crash
        // leaves behind the next start removes.
        let made = match self.make_partitions(&before, added.clone()).await {
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
        Ok(summary(folded.topics.get(name)?))
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
        let command = folded.topics.decide_delete(name)?;
        self.commit(&mut folded, &command).await
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
            let first = folded.topics.next_producer_id();
            if first > seen {
                return Ok(());
            }
            let command = folded.topics.decide_producer_ids(count).ok_or_else(|| {
                AppendError::Request("there are no more producer ids to give out".to_owned())
            })?;
            broker.commit(&mut folded, &command).await?;
            let end = folded.topics.next_producer_id();
            broker.producer_ids_reserved(first..end);
            Ok(())
        })
        .await
    }
}

/// Carries a change through to its end, even when the caller goes away: a change that is written
/// and not folded in would let a later one be decided on a state that is not so.
async fn detached<T: Send + 'static>(
    change: impl Future<Output = Result<T, TopicError>> + Send + 'static,
) -> Result<T, TopicError> {
    tokio::spawn(change).await.unwrap_or_else(|e| {
        let cause = e.to_string();
        Err(AppendError::OutcomeUnknown { cause }.into())
    })
}

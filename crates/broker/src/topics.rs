//! Topics: decided, written to the metadata log, carried out.

use std::collections::BTreeMap;
use std::sync::Arc;

use tidelog_controller::{Command as TopicCommand, NewTopic, Topic, Topics};
use tidelog_record::{BatchBuilder, BatchLimits, Compression, TopicId, validate_produced};
use tokio::sync::{Semaphore, oneshot};

use crate::append::{Acks, StickyBytes};
use crate::describe::{TopicSummary, summary};
use crate::error::{AppendError, ErrorKind, Facts, TopicError};
use crate::files::log_options;
use crate::shard::{Append, Command};
use crate::{Broker, Route, Slot};

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
        let mut topics = self.lock_topics().await?;
        let id = TopicId::from_bytes(self.inner.seams.random.id());
        let command = topics.decide_create(&new, id)?;
        let TopicCommand::Create(topic) = &command else {
            unreachable!("decided just now")
        };
        let topic = Arc::new(topic.clone());
        self.check_limits(&topics, 1, topic.partitions)?;
        if new.validate_only {
            return Ok(summary(&topic));
        }
        self.clear_the_way(&topic, 0..topic.partitions).await?;
        self.commit(&mut topics, &command).await?;
        match self.make_partitions(&topic, 0..topic.partitions).await {
            Ok(made) => {
                let slots = self.serve(made).await;
                self.insert_route(&topic, slots);
                Ok(summary(&topic))
            }
            Err(e) => Err(self.take_back(&mut topics, &topic, e).await),
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
    async fn take_back(
        &self,
        topics: &mut Topics,
        topic: &Arc<Topic>,
        error: TopicError,
    ) -> TopicError {
        let undo = TopicCommand::Delete { id: topic.id };
        match self.commit(topics, &undo).await {
            Ok(()) => {
                self.remove_partitions(topic, &[]).await;
                error
            }
            Err(undo) => {
                // It exists then, and the next start makes it. Until then it says why it does not
                // serve, and can be deleted.
                let fault = error.to_string();
                let slots = (0..topic.partitions).map(|_| Slot::Faulted(fault.clone()));
                self.insert_route(topic, slots.collect());
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
        let mut topics = self.lock_topics().await?;
        let command = topics.decide_alter(name, set, &reset)?;
        if validate_only {
            let mut after = topics.clone();
            after.apply(&command).expect("decided on this state");
            return Ok(summary(after.get(name)?));
        }
        self.commit(&mut topics, &command).await?;
        let topic = topics.get(name)?.clone();
        let route = self.replace_route(&topic, Vec::new());
        let settings = Arc::new(topic.settings.clone());
        for slot in &route.slots {
            if let Slot::Serving(partition) = slot {
                *partition.settings.write() = settings.clone();
                let options = log_options(&settings);
                let change = Command::SetOptions {
                    key: partition.key,
                    options,
                };
                // Without its thread the partition is faulted, and gets them at the next start.
                drop(partition.shard.send(change).await);
            }
        }
        Ok(summary(&topic))
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
        let mut topics = self.lock_topics().await?;
        let command = topics.decide_add_partitions(name, total)?;
        let topic = topics.get(name)?.clone();
        let added = topic.partitions..total;
        self.check_limits(&topics, 0, total - topic.partitions)?;
        self.clear_the_way(&topic, added.clone()).await?;
        // The files come first: a partition cannot be taken back once it is decided. What a crash
        // leaves behind the next start removes.
        let made = match self.make_partitions(&topic, added.clone()).await {
            Ok(made) => made,
            Err(e) => {
                self.remove_files(&topic, added).await;
                return Err(e);
            }
        };
        if let Err(e) = self.commit(&mut topics, &command).await {
            drop(made);
            if e.kind() != ErrorKind::Unknown {
                self.remove_files(&topic, added).await;
            }
            return Err(e);
        }
        let slots = self.serve(made).await;
        let topic = topics.get(name)?.clone();
        self.replace_route(&topic, slots);
        Ok(summary(&topic))
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
        let mut topics = self.lock_topics().await?;
        let command = topics.decide_delete(name)?;
        let topic = topics.get(name)?.clone();
        self.commit(&mut topics, &command).await?;
        let route = self.inner.routes.write().remove(name);
        let slots = route.map_or(Vec::new(), |route| route.slots.clone());
        self.remove_partitions(&topic, &slots).await;
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
            let mut topics = broker.lock_topics().await?;
            if topics.next_producer_id() > seen {
                return Ok(());
            }
            let command = topics.decide_producer_ids(count).ok_or_else(|| {
                AppendError::Request("there are no more producer ids to give out".to_owned())
            })?;
            broker.commit(&mut topics, &command).await?;
            broker.producer_ids_reserved(&topics);
            Ok(())
        })
        .await
    }

    async fn lock_topics(&self) -> Result<tokio::sync::MutexGuard<'_, Topics>, TopicError> {
        let topics = self.inner.topics.lock().await;
        if self.is_stopping() {
            return Err(AppendError::Stopping.into());
        }
        Ok(topics)
    }

    /// Makes a decision durable, then folds it in.
    async fn commit(&self, topics: &mut Topics, command: &TopicCommand) -> Result<(), TopicError> {
        let metadata = self.inner.metadata.clone();
        let now = self.inner.seams.clock.now();
        let invalid = |e: &dyn std::fmt::Display| AppendError::Request(e.to_string());
        let mut builder = BatchBuilder::new(Compression::None);
        builder
            .push(now, None, Some(&command.encode()), &[])
            .map_err(|e| invalid(&e))?;
        let bytes = builder.build().map_err(|e| invalid(&e))?;
        let batch = validate_produced(bytes, &BatchLimits::default()).map_err(AppendError::from)?;

        // Not from the broker's budget: a change of topics is small, and must not wait for clients.
        let room = Arc::new(Semaphore::new(1)).try_acquire_owned();
        let (reply, replied) = oneshot::channel();
        #[expect(
            clippy::disallowed_methods,
            reason = "measured for people, decides nothing"
        )]
        let since = std::time::Instant::now();
        let append = Append {
            partition: metadata.clone(),
            batch,
            acks: Acks::All,
            log_append_time: false,
            reply,
            since,
            room: Arc::new(room.expect("a new semaphore has its permit")),
        };
        metadata
            .shard
            .send(Command::Append(append))
            .await
            .map_err(|_| AppendError::Stopping)?;
        let lost = || AppendError::OutcomeUnknown {
            cause: "the thread that writes the metadata log has ended".to_owned(),
        };
        replied.await.map_err(|_| lost())??;
        topics.apply(command).expect("decided on this state");
        Ok(())
    }

    fn insert_route(&self, topic: &Arc<Topic>, slots: Vec<Slot>) {
        let route = Route {
            topic: topic.clone(),
            slots,
            sticky_bytes: StickyBytes::default(),
        };
        let mut routes = self.inner.routes.write();
        routes.insert(topic.name.to_string(), Arc::new(route));
    }

    /// Puts a changed topic, with more partitions perhaps, where requests find it.
    fn replace_route(&self, topic: &Arc<Topic>, more: Vec<Slot>) -> Arc<Route> {
        let mut routes = self.inner.routes.write();
        let before = routes.get(topic.name.as_str());
        let mut slots = before.map_or(Vec::new(), |route| route.slots.clone());
        let sticky_bytes = before
            .map(|route| route.sticky_bytes.clone())
            .unwrap_or_default();
        slots.extend(more);
        let route = Arc::new(Route {
            topic: topic.clone(),
            slots,
            sticky_bytes,
        });
        routes.insert(topic.name.to_string(), route.clone());
        route
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

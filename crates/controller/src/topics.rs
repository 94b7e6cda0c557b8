//! The topics, and the commands that change them.

use std::collections::BTreeMap;
use std::sync::Arc;

use thiserror::Error;
use tidelog_record::{TopicId, TopicName, TopicNameError};

use crate::settings::{SettingError, TopicSettings};

/// The most partitions a topic may have.
pub const PARTITIONS_MAX: u32 = 10_000;

/// A topic, as decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topic {
    /// Its name.
    pub name: TopicName,
    /// Its id, which never comes back.
    pub id: TopicId,
    /// How many partitions it has.
    pub partitions: u32,
    /// Its settings.
    pub settings: TopicSettings,
}

/// A topic that is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewTopic {
    /// Its name.
    pub name: String,
    /// How many partitions; 0 means 1.
    pub partitions: u32,
    /// What is to be set; the rest has its defaults.
    pub settings: BTreeMap<String, String>,
    /// Whether only to check.
    pub validate_only: bool,
}

/// A change that was decided. Applying it cannot fail unless the log was tampered with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// A new topic.
    Create(Topic),
    /// Other settings: all that are set from now on.
    Alter {
        /// The topic.
        id: TopicId,
        /// Its settings.
        settings: TopicSettings,
    },
    /// More partitions.
    AddPartitions {
        /// The topic.
        id: TopicId,
        /// How many in all.
        total: u32,
    },
    /// The topic is gone.
    Delete {
        /// The topic.
        id: TopicId,
    },
    /// All producer ids below this one may have been given out, and never are again.
    ReserveProducerIds {
        /// The first id that is still free.
        next: i64,
    },
}

/// Why a change is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TopicError {
    /// The name is not allowed.
    #[error(transparent)]
    Name(#[from] TopicNameError),
    /// A setting is not allowed.
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// There is a topic of that name.
    #[error("topic {name:?} exists already")]
    Exists {
        /// The name.
        name: TopicName,
    },
    /// There is no topic of that name.
    #[error("topic {name:?} does not exist")]
    NotFound {
        /// The name, as it was given.
        name: String,
    },
    /// So many partitions are not allowed.
    #[error("{}", partitions_refused(*asked, *min))]
    Partitions {
        /// What was asked for.
        asked: u32,
        /// The fewest that are allowed here.
        min: u32,
    },
    /// The topic belongs to the cluster itself.
    #[error(
        "topic {name:?} is internal: its name begins with \"__\" or is \"_schemas\", which clients cannot create, change or write to"
    )]
    Internal {
        /// The name.
        name: TopicName,
    },
}

/// A new topic may have one partition; where the least is more, there is a topic already.
fn partitions_refused(asked: u32, min: u32) -> String {
    let there = match min.saturating_sub(1) {
        0 => {
            return format!(
                "a topic cannot have {asked} partitions; allowed are 1 to {PARTITIONS_MAX}"
            );
        }
        1 => "1 partition".to_owned(),
        there => format!("{there} partitions"),
    };
    if min > PARTITIONS_MAX {
        return format!("the topic has {there}, the most there can be");
    }
    format!("the topic has {there}; it can be given {min} to {PARTITIONS_MAX} in all, not {asked}")
}

/// A command of the metadata log does not fit the ones before it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("a command of the metadata log does not fit those before it: {0}")]
pub struct ReplayError(pub(crate) &'static str);

/// All topics, and which producer ids are taken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topics {
    next_producer_id: i64,
    by_name: BTreeMap<TopicName, Arc<Topic>>,
    names: BTreeMap<TopicId, TopicName>,
}

impl Topics {
    /// The topic of this name.
    ///
    /// # Errors
    /// [`TopicError::NotFound`].
    pub fn get(&self, name: &str) -> Result<&Arc<Topic>, TopicError> {
        let clipped = || name.chars().take(TopicName::LEN_MAX).collect();
        self.by_name
            .get(name)
            .ok_or_else(|| TopicError::NotFound { name: clipped() })
    }

    /// The topic with this id.
    pub fn by_id(&self, id: TopicId) -> Option<&Arc<Topic>> {
        self.by_name.get(self.names.get(&id)?)
    }

    /// All topics, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Topic>> {
        self.by_name.values()
    }

    /// Decides on a new topic, which will have the id `id`.
    ///
    /// # Errors
    /// Why it is refused: the first of name, existence, partitions, settings.
    pub fn decide_create(&self, new: &NewTopic, id: TopicId) -> Result<Command, TopicError> {
        let name = TopicName::new(&new.name)?;
        if name.is_internal() {
            return Err(TopicError::Internal { name });
        }
        self.decide_create_internal(new, id)
    }

    /// Decides on a new topic that the cluster itself needs: its name may be internal.
    ///
    /// # Errors
    /// As [`Topics::decide_create`].
    pub(crate) fn decide_create_internal(
        &self,
        new: &NewTopic,
        id: TopicId,
    ) -> Result<Command, TopicError> {
        let name = TopicName::new(&new.name)?;
        if self.by_name.contains_key(&name) {
            return Err(TopicError::Exists { name });
        }
        let partitions = new.partitions.max(1);
        if partitions > PARTITIONS_MAX {
            return Err(TopicError::Partitions {
                asked: partitions,
                min: 1,
            });
        }
        let settings = TopicSettings::new(new.settings.clone())?;
        Ok(Command::Create(Topic {
            name,
            id,
            partitions,
            settings,
        }))
    }

    /// Decides on other settings.
    ///
    /// # Errors
    /// Why they are refused.
    pub fn decide_alter(
        &self,
        name: &str,
        set: BTreeMap<String, String>,
        reset: &[String],
    ) -> Result<Command, TopicError> {
        let topic = self.of_clients(name)?;
        Ok(Command::Alter {
            id: topic.id,
            settings: topic.settings.altered(set, reset)?,
        })
    }

    /// Decides on more partitions: `total` of them.
    ///
    /// # Errors
    /// Why that is refused.
    pub fn decide_add_partitions(&self, name: &str, total: u32) -> Result<Command, TopicError> {
        let topic = self.of_clients(name)?;
        if total <= topic.partitions || total > PARTITIONS_MAX {
            return Err(TopicError::Partitions {
                asked: total,
                min: topic.partitions + 1,
            });
        }
        Ok(Command::AddPartitions {
            id: topic.id,
            total,
        })
    }

    /// Decides on deleting a topic.
    ///
    /// # Errors
    /// Why that is refused.
    pub fn decide_delete(&self, name: &str) -> Result<Command, TopicError> {
        Ok(Command::Delete {
            id: self.of_clients(name)?.id,
        })
    }

    /// Producer ids below this one may have been given out.
    pub fn next_producer_id(&self) -> i64 {
        self.next_producer_id
    }

    /// Takes note that producer ids below `next` were given out, whatever the commands say: some of
    /// them may have been cut away with damage.
    pub fn raise_next_producer_id(&mut self, next: i64) {
        self.next_producer_id = self.next_producer_id.max(next);
    }

    /// Decides on giving out `count` more producer ids: from the present
    /// [`Topics::next_producer_id`] on. `None` when there are no more.
    pub fn decide_producer_ids(&self, count: u32) -> Option<Command> {
        let next = self.next_producer_id.checked_add(i64::from(count))?;
        Some(Command::ReserveProducerIds { next })
    }

    pub(crate) fn of_clients(&self, name: &str) -> Result<&Arc<Topic>, TopicError> {
        // By name, since not every internal topic is made by a command.
        match TopicName::new(name) {
            Ok(name) if name.is_internal() => Err(TopicError::Internal { name }),
            _ => self.get(name),
        }
    }

    /// Folds in a command that was decided on.
    ///
    /// # Errors
    /// [`ReplayError`] when it cannot have been decided on in this state: then the log it comes
    /// from is not the one that was written.
    pub fn apply(&mut self, command: &Command) -> Result<(), ReplayError> {
        match command {
            Command::Create(topic) => {
                if self.by_name.contains_key(&topic.name) || self.names.contains_key(&topic.id) {
                    return Err(ReplayError("a topic is created that exists"));
                }
                self.names.insert(topic.id, topic.name.clone());
                self.by_name
                    .insert(topic.name.clone(), Arc::new(topic.clone()));
            }
            Command::Alter { id, settings } => {
                let settings = settings.clone();
                self.change(*id, |topic| Topic { settings, ..topic })?;
            }
            Command::AddPartitions { id, total } => {
                if self
                    .by_id(*id)
                    .is_some_and(|topic| *total <= topic.partitions)
                {
                    return Err(ReplayError("a topic gets fewer partitions"));
                }
                self.change(*id, |topic| Topic {
                    partitions: *total,
                    ..topic
                })?;
            }
            Command::ReserveProducerIds { next } => {
                if *next <= self.next_producer_id {
                    return Err(ReplayError("producer ids are given out a second time"));
                }
                self.next_producer_id = *next;
            }
            Command::Delete { id } => {
                let name = self.names.remove(id).ok_or(UNKNOWN)?;
                self.by_name.remove(&name);
            }
        }
        Ok(())
    }

    fn change(
        &mut self,
        id: TopicId,
        change: impl FnOnce(Topic) -> Topic,
    ) -> Result<(), ReplayError> {
        let slot = self
            .names
            .get(&id)
            .and_then(|name| self.by_name.get_mut(name))
            .ok_or(UNKNOWN)?;
        *slot = Arc::new(change(Topic::clone(slot)));
        Ok(())
    }
}

const UNKNOWN: ReplayError = ReplayError("a topic is changed that does not exist");

#[cfg(test)]
mod tests {
    use super::*;

    fn new(name: &str, partitions: u32) -> NewTopic {
        NewTopic {
            name: name.to_owned(),
            partitions,
            ..NewTopic::default()
        }
    }

    fn id(n: u8) -> TopicId {
        TopicId::from_bytes([n; 16])
    }

    #[test]
    fn a_topic_lives_and_dies() {
        let mut topics = Topics::default();
        let create = topics.decide_create(&new("orders", 3), id(1)).unwrap();
        topics.apply(&create).unwrap();
        assert_eq!(topics.get("orders").unwrap().partitions, 3);
        assert!(matches!(
            topics.decide_create(&new("orders", 1), id(2)),
            Err(TopicError::Exists { .. })
        ));

        let more = topics.decide_add_partitions("orders", 5).unwrap();
        topics.apply(&more).unwrap();
        assert_eq!(topics.by_id(id(1)).unwrap().partitions, 5);
        let fewer = topics.decide_add_partitions("orders", 5).unwrap_err();
        assert_eq!(
            fewer.to_string(),
            "the topic has 5 partitions; it can be given 6 to 10000 in all, not 5"
        );

        let delete = topics.decide_delete("orders").unwrap();
        topics.apply(&delete).unwrap();
        assert_eq!(topics, Topics::default());
        assert!(
            topics.apply(&delete).is_err(),
            "a replay that does not fit is refused"
        );
        assert!(topics.apply(&more).is_err());
    }

    #[test]
    fn producer_ids_are_given_out_once() {
        let mut topics = Topics::default();
        let first = topics.decide_producer_ids(1000).unwrap();
        topics.apply(&first).unwrap();
        assert_eq!(topics.next_producer_id(), 1000);
        let second = topics.decide_producer_ids(1000).unwrap();
        topics.apply(&second).unwrap();
        assert_eq!(topics.next_producer_id(), 2000);
        assert!(topics.apply(&first).is_err());
        topics
            .apply(&Command::ReserveProducerIds { next: i64::MAX })
            .unwrap();
        assert_eq!(topics.decide_producer_ids(1), None);
    }

    #[test]
    fn internal_topics_are_out_of_reach() {
        let topics = Topics::default();
        for name in ["__consumer_offsets", "_schemas"] {
            let e = topics.decide_create(&new(name, 1), id(1)).unwrap_err();
            assert!(matches!(e, TopicError::Internal { .. }), "{e}");
            let e = topics.decide_delete(name).unwrap_err();
            assert!(matches!(e, TopicError::Internal { .. }), "{e}");
        }
    }

    #[test]
    fn zero_partitions_mean_one_and_too_many_are_refused() {
        let topics = Topics::default();
        let Ok(Command::Create(topic)) = topics.decide_create(&new("a", 0), id(1)) else {
            panic!("0 partitions are allowed");
        };
        assert_eq!(topic.partitions, 1);
        let e = topics.decide_create(&new("a", 10_001), id(1)).unwrap_err();
        assert_eq!(
            e.to_string(),
            "a topic cannot have 10001 partitions; allowed are 1 to 10000"
        );
    }

    #[test]
    fn who_asks_for_too_few_more_partitions_is_told_how_many_there_are() {
        for (there, asked, said) in [
            (
                1,
                1,
                "the topic has 1 partition; it can be given 2 to 10000 in all, not 1",
            ),
            (
                3,
                10_001,
                "the topic has 3 partitions; it can be given 4 to 10000 in all, not 10001",
            ),
            (
                10_000,
                10_001,
                "the topic has 10000 partitions, the most there can be",
            ),
        ] {
            let mut topics = Topics::default();
            let create = topics.decide_create(&new("a", there), id(1)).unwrap();
            topics.apply(&create).unwrap();
            let e = topics.decide_add_partitions("a", asked).unwrap_err();
            assert_eq!(e.to_string(), said);
        }
    }
}

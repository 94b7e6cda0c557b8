//! Folding what has become committed in the metadata log, at a broker that runs.

use std::collections::BTreeMap;
use std::sync::Arc;

use tidelog_record::TopicId;

use crate::cluster::Cluster;
use crate::command::ClusterCommand;
use crate::topics::{Command, ReplayError, Topic};

/// The topics of which what a broker has may have to change, each as it was before, if it was.
pub type Touched = BTreeMap<TopicId, Option<Arc<Topic>>>;

impl Cluster {
    /// Folds commands in, and says which topics they are about. With `is_behind` some commands before are
    /// gone, and these begin with a snapshot that stands for them.
    ///
    /// # Errors
    /// [`ReplayError`]: the log makes no sense.
    pub fn fold<'a>(
        &mut self,
        commands: impl Iterator<Item = &'a ClusterCommand>,
        is_behind: bool,
    ) -> Result<Touched, ReplayError> {
        let mut touched = Touched::new();
        if is_behind {
            // All may be different.
            let topics = self.topics().iter();
            touched.extend(topics.map(|topic| (topic.id, Some(topic.clone()))));
            *self = Self::default();
        }
        for command in commands {
            for id in self.topics_of(command) {
                let before = self.topics().by_id(id).cloned();
                touched.entry(id).or_insert(before);
            }
            self.apply(command)?;
        }
        if is_behind {
            for topic in self.topics().iter() {
                touched.entry(topic.id).or_insert(None);
            }
        }
        Ok(touched)
    }

    /// The topics that a command is about.
    fn topics_of(&self, command: &ClusterCommand) -> Vec<TopicId> {
        match command {
            ClusterCommand::Topics(command) => match command {
                Command::Create(topic) => vec![topic.id],
                Command::Alter { id, .. }
                | Command::AddPartitions { id, .. }
                | Command::Delete { id } => vec![*id],
                Command::ReserveProducerIds { .. } => Vec::new(),
            },
            ClusterCommand::CreateTopic { topic, .. } => vec![topic.id],
            ClusterCommand::AddPartitions { id, .. } => vec![*id],
            ClusterCommand::BeginReassignment { key, .. }
            | ClusterCommand::FinishReassignment { key, .. } => vec![key.topic],
            ClusterCommand::RecoverPartitions { partitions } => {
                partitions.iter().map(|one| one.key.topic).collect()
            }
            // Its replicas have other numbers from now on.
            ClusterCommand::ReplaceBroker { .. } => {
                self.topics().iter().map(|topic| topic.id).collect()
            }
            _ => Vec::new(),
        }
    }
}

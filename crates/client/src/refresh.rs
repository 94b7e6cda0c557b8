//! Asking in the background who leads the partitions of topics.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use tidelog_record::TopicName;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::{Client, ClientError};

/// A topic is asked for at most so often: an election takes longer.
const INTERVAL: Duration = Duration::from_millis(100);

/// The same after nobody has answered several times.
const INTERVAL_MAX: Duration = Duration::from_secs(1);

/// How many topics are asked for at the same time.
const ASKING_MAX: usize = 8;

/// Topics to be asked for, and questions under way. What is learned is in the client's table.
#[derive(Debug, Default)]
pub(crate) struct Refresh {
    wanted: BTreeSet<TopicName>,
    asking: JoinSet<(TopicName, Result<(), ClientError>)>,
    /// When each topic may be asked for again; `None` while it is being asked for.
    not_before: HashMap<TopicName, Option<Instant>>,
    /// Questions in a row that nobody answered.
    failures: u32,
}

impl Refresh {
    /// Notes that a topic shall be asked for.
    pub(crate) fn want(&mut self, topic: &TopicName) {
        if !self.wanted.contains(topic) {
            self.wanted.insert(topic.clone());
        }
    }

    /// Asks for what is wanted, as far as that may be now.
    pub(crate) fn ask(&mut self, client: &Client, now: Instant) {
        let not_before = &mut self.not_before;
        let asking = &mut self.asking;
        self.wanted.retain(|topic| {
            let may_ask = not_before
                .get(topic)
                .is_none_or(|at| at.is_some_and(|at| at <= now));
            if !may_ask || asking.len() >= ASKING_MAX {
                return true;
            }
            not_before.insert(topic.clone(), None);
            let (client, topic) = (client.clone(), topic.clone());
            asking.spawn(async move {
                let asked = client.ask_topic(&topic, false).await;
                (topic, asked.map(|_| ()))
            });
            false
        });
    }

    /// When to ask again. What waits for an answer is not waited for here.
    pub(crate) fn wake_at(&self) -> Option<Instant> {
        if self.asking.len() >= ASKING_MAX {
            return None;
        }
        let waits = self.wanted.iter();
        waits
            .filter_map(|topic| self.not_before.get(topic).copied().flatten())
            .min()
    }

    /// Waits until a question has its answer; for ever while there is none. Nothing is lost when
    /// this is dropped before it is done.
    pub(crate) async fn answer(&mut self) {
        match self.asking.join_next().await {
            Some(Ok((topic, answer))) => {
                self.failures = match answer {
                    Ok(()) => 0,
                    Err(error) => {
                        tracing::debug!(%topic, %error, "nobody tells who leads");
                        self.failures.saturating_add(1)
                    }
                };
                let interval = INTERVAL.saturating_mul(1 << self.failures.min(16));
                let next = Instant::now() + interval.min(INTERVAL_MAX);
                self.not_before.insert(topic, Some(next));
            }
            // It ended with the runtime.
            Some(Err(error)) => tracing::debug!(%error, "asking who leads ended early"),
            None => std::future::pending().await,
        }
    }
}

//! Calls that only the leaders of partitions can answer: split among them, and followed where they
//! go.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tidelog_proto::v1::log_client::LogClient;
use tidelog_record::{PartitionId, TopicName};
use tokio::time::Instant;
use tonic::Status;
use tonic::transport::Channel;

use crate::brokers::Route;
use crate::{Backoff, Client, ClientError};

/// The longest wait before it is looked again who leads.
const WAIT_MAX: Duration = Duration::from_millis(250);

/// What is asked of the leaders of some partitions of a topic.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Question<'a> {
    pub(crate) operation: &'static str,
    pub(crate) topic: &'a TopicName,
    pub(crate) partitions: &'a [PartitionId],
    /// Whether it does no harm when it is done twice.
    pub(crate) is_repeatable: bool,
}

/// The part of a question that goes to one broker.
struct Part {
    route: Route,
    /// Which of the partitions.
    places: Vec<usize>,
}

/// What became of each partition; or of the whole.
type Answers<T> = Result<Vec<Result<T, ClientError>>, ClientError>;

impl Client {
    /// Asks each leader for its partitions, again and elsewhere where another one leads, for as long
    /// as a call may take. The answers are in the order of the partitions. `ask` gets the places of
    /// those that it shall ask for.
    pub(crate) async fn ask_leaders<T, F>(
        &self,
        question: Question<'_>,
        ask: impl Fn(LogClient<Channel>, Vec<usize>) -> F,
    ) -> Answers<T>
    where
        F: Future<Output = Result<Vec<Result<T, ClientError>>, Status>>,
    {
        self.ask_over(question, |route, places| ask(self.log_of(route), places))
            .await
    }

    /// The same, of any service: `ask` gets the way to the broker.
    pub(crate) async fn ask_over<T, F>(
        &self,
        question: Question<'_>,
        ask: impl Fn(&Route, Vec<usize>) -> F,
    ) -> Answers<T>
    where
        F: Future<Output = Result<Vec<Result<T, ClientError>>, Status>>,
    {
        let Question {
            topic, partitions, ..
        } = question;
        if !self.knows(topic) {
            self.ask_who_leads(topic).await?;
        }
        let after = self.config().request_timeout;
        let began_at = Instant::now();
        let backoff = Backoff::default().at_most(WAIT_MAX);
        let mut answers: Vec<Option<Result<T, ClientError>>> = Vec::new();
        answers.resize_with(partitions.len(), || None);
        let mut open: Vec<usize> = (0..partitions.len()).collect();
        let mut retry = 0;
        loop {
            let parts = self.parts(question, &open);
            let asked = parts.iter().map(|part| {
                let left = after.saturating_sub(began_at.elapsed());
                tokio::time::timeout(left, ask(&part.route, part.places.clone()))
            });
            let asked = join_all(asked).await;
            open.clear();
            let mut is_lost = false;
            for (part, answer) in parts.iter().zip(asked) {
                let answer = self.read_part(question, part, answer.ok()).await?;
                for (&place, answer) in part.places.iter().zip(answer) {
                    if let Err(error) = &answer
                        && let Some(has_leader) = self.follow(question, part, place, error)
                    {
                        open.push(place);
                        is_lost |= !has_leader;
                    }
                    answers[place] = Some(answer);
                }
            }
            retry += 1;
            let wait = backoff.wait(retry, None);
            if open.is_empty() || began_at.elapsed() + wait >= after {
                let missing = || ClientError::TimedOut {
                    operation: question.operation,
                    after,
                };
                let answers = answers.into_iter();
                return Ok(answers
                    .map(|answer| answer.unwrap_or_else(|| Err(missing())))
                    .collect());
            }
            if is_lost {
                self.ask_who_leads(topic).await?;
            }
            tokio::time::sleep(wait).await;
        }
    }

    /// The partitions that have no answer, by the brokers that lead them.
    fn parts(&self, question: Question<'_>, open: &[usize]) -> Vec<Part> {
        let mut parts = BTreeMap::<Arc<str>, Part>::new();
        for &place in open {
            let route = self.route_of(question.topic, question.partitions[place]);
            let part = parts.entry(Arc::clone(&route.address));
            let part = part.or_insert_with(|| Part {
                route,
                places: Vec::new(),
            });
            part.places.push(place);
        }
        parts.into_values().collect()
    }

    /// The answer of one broker, or the same error for each of the partitions if others may know
    /// better. `None`: it did not come in time.
    async fn read_part<T>(
        &self,
        question: Question<'_>,
        part: &Part,
        answer: Option<Result<Vec<Result<T, ClientError>>, Status>>,
    ) -> Answers<T> {
        let operation = question.operation;
        let asked = part.places.len();
        let status = match answer {
            Some(Ok(answers)) if answers.len() == asked => {
                self.answered();
                return Ok(answers);
            }
            Some(Ok(answers)) => {
                let found = answers.len();
                let what = format!("{operation} answered for {found} partitions of {asked}");
                return Err(ClientError::Protocol { what });
            }
            Some(Err(status)) => status,
            None => {
                self.route_failed(&part.route);
                let after = self.config().request_timeout;
                return Err(ClientError::TimedOut { operation, after });
            }
        };
        let error = self.error_over(&part.route, &status);
        let error = self.explained(&part.route, error).await;
        if self.may_be_elsewhere(question, &error) {
            return Ok((0..asked).map(|_| Err(error.clone())).collect());
        }
        Err(error)
    }

    fn may_be_elsewhere(&self, question: Question<'_>, error: &ClientError) -> bool {
        match error {
            ClientError::Unreachable { .. } => true,
            ClientError::Disconnected { .. } => question.is_repeatable,
            error => error.not_leader().is_some() || error.is_loading(),
        }
    }

    /// Whether a partition shall be asked for again because of `error`, and if so, whether it is
    /// known where.
    fn follow(
        &self,
        question: Question<'_>,
        part: &Part,
        place: usize,
        error: &ClientError,
    ) -> Option<bool> {
        let (topic, partition) = (question.topic, question.partitions[place]);
        if let Some(not_leader) = error.not_leader() {
            let from = &part.route.address;
            let successor = self.learn_not_leader(topic, partition, &not_leader, from);
            return Some(successor.is_known());
        }
        if error.is_loading() {
            return Some(true);
        }
        if self.may_be_elsewhere(question, error) {
            self.doubt(topic, partition);
            return Some(false);
        }
        None
    }

    /// Asks any broker who leads. That it does not tell is no error, but that there is none.
    async fn ask_who_leads(&self, topic: &TopicName) -> Result<(), ClientError> {
        match self.ask_topic(topic, false).await {
            Err(error) if error.is_wrong_address() => Err(error),
            Err(error) => {
                tracing::debug!(%topic, %error, "nobody tells who leads");
                Ok(())
            }
            Ok(_) => Ok(()),
        }
    }
}

//! Asking the broker who this producer is.

use tidelog_proto::v1;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::Shared;
use super::sequence::Identity;
use crate::{Backoff, ClientError};

/// A question under way, or the wait before the next one.
#[derive(Debug, Default)]
pub(crate) struct IdentityRequest {
    asking: Option<JoinHandle<Result<Identity, ClientError>>>,
    /// Before that, nobody is asked again.
    pub(crate) not_before: Option<Instant>,
    failures: u32,
}

impl IdentityRequest {
    /// Asks, unless that is under way or must wait.
    pub(crate) fn ask(&mut self, shared: &Shared, now: Instant) {
        let must_wait = self.not_before.is_some_and(|not_before| not_before > now);
        if self.asking.is_some() || must_wait {
            return;
        }
        self.not_before = None;
        let client = shared.client.clone();
        self.asking = Some(tokio::spawn(async move {
            let asking = client.call_log("InitProducer", |mut log| async move {
                log.init_producer(v1::InitProducerRequest {}).await
            });
            let answer = asking.await?;
            let epoch = i16::try_from(answer.producer_epoch);
            match epoch {
                Ok(epoch @ 0..) if answer.producer_id >= 0 => Ok(Identity {
                    id: answer.producer_id,
                    epoch,
                }),
                _ => Err(ClientError::Protocol {
                    what: format!("an impossible producer: {answer:?}"),
                }),
            }
        }));
    }

    /// Waits for the answer; for ever while nobody is asked. Nothing is lost when this is dropped
    /// before it is done.
    pub(crate) async fn answer(&mut self) -> Result<Identity, ClientError> {
        let Some(asking) = &mut self.asking else {
            return std::future::pending().await;
        };
        let answer = asking.await;
        self.asking = None;
        answer.unwrap_or_else(|e| {
            Err(ClientError::Protocol {
                what: format!("asking for a producer id ended early: {e}"),
            })
        })
    }

    /// Notes a failure: the next question waits.
    pub(crate) fn failed(&mut self, backoff: &Backoff, error: &ClientError) {
        self.failures = self.failures.saturating_add(1);
        let wait = backoff.wait(self.failures, error.retry_after());
        self.not_before = Some(Instant::now() + wait);
    }
}

impl Drop for IdentityRequest {
    fn drop(&mut self) {
        if let Some(asking) = &self.asking {
            asking.abort();
        }
    }
}

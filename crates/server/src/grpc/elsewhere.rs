//! Changes that another broker decides: they are passed on to it.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use tidelog_broker::{AppendError, CoordinatorError, Facts, NotLeader, TopicError};
use tokio::time::Instant;
use tonic::metadata::{Ascii, MetadataKey, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status};
use tonic_types::StatusExt as _;

use super::Shared;
use super::status::failure;

/// Stands in a call that another broker has passed on: it is not passed on again.
pub(super) const PASSED_ON: &str = "tidelog-passed-on";
/// For how long it is tried to find the broker that decides, while none is known.
const SEARCH_MAX: Duration = Duration::from_secs(5);
/// How long to wait before that is tried again.
const SEARCH_PAUSE: Duration = Duration::from_millis(100);
/// How long a connection to another broker may take.
const CONNECT_MAX: Duration = Duration::from_secs(2);
/// How long the other broker may take.
const ANSWER_MAX: Duration = Duration::from_secs(120);
/// While an answer is awaited, the connection is asked so often whether anybody is there ...
const PING_INTERVAL: Duration = Duration::from_secs(2);
/// ... and given up when nobody is for so long.
const PING_TIMEOUT: Duration = Duration::from_secs(3);
/// Connections that are kept.
const CHANNELS_MAX: usize = 64;

/// Connections to the other brokers, by address.
#[derive(Debug, Default)]
pub(crate) struct Elsewhere {
    channels: Mutex<HashMap<String, Channel>>,
}

impl Elsewhere {
    /// A connection to this address, made when it is used first.
    pub(super) fn channel(&self, address: &str) -> Option<Channel> {
        let mut channels = self.channels.lock();
        if let Some(channel) = channels.get(address) {
            return Some(channel.clone());
        }
        let endpoint = Endpoint::from_shared(format!("http://{address}")).ok()?;
        let endpoint = endpoint.connect_timeout(CONNECT_MAX).timeout(ANSWER_MAX);
        // One that stands still is noticed long before its answer would be too late.
        let endpoint = endpoint.http2_keep_alive_interval(PING_INTERVAL);
        let endpoint = endpoint.keep_alive_timeout(PING_TIMEOUT);
        let channel = endpoint.tcp_nodelay(true).connect_lazy();
        if channels.len() >= CHANNELS_MAX {
            channels.clear();
        }
        channels.insert(address.to_owned(), channel.clone());
        Some(channel)
    }
}

/// The request as it is passed on.
pub(super) fn passed_on<Q>(request: Q) -> Request<Q> {
    let mut request = Request::new(request);
    let key = MetadataKey::<Ascii>::from_static(PASSED_ON);
    let value = MetadataValue::from_static("1");
    request.metadata_mut().insert(key, value);
    request
}

/// Whether another broker has passed a call on.
pub(crate) fn is_passed_on<T>(request: &Request<T>) -> bool {
    request.metadata().contains_key(PASSED_ON)
}

/// An error that may say that another broker is to be asked.
pub(crate) trait Refusal: Facts {
    /// Who is to be asked instead.
    fn not_leader(&self) -> Option<&NotLeader>;
}

impl Refusal for TopicError {
    fn not_leader(&self) -> Option<&NotLeader> {
        self.not_leader()
    }
}

impl Refusal for CoordinatorError {
    fn not_leader(&self) -> Option<&NotLeader> {
        self.not_leader()
    }
}

/// Reasons of a broker that has surely done nothing, and another one may, or the same one soon.
const TRY_AGAIN: [&str; 4] = [
    "NOT_LEADER",
    "NOT_COORDINATOR",
    "COORDINATOR_LOADING",
    "SHUTTING_DOWN",
];

/// Whether surely nothing was done, and it may be done elsewhere.
fn is_to_be_tried_again(status: &Status) -> bool {
    let reason = status.get_details_error_info().map(|info| info.reason);
    match (status.code(), reason) {
        (Code::Unavailable, Some(reason)) => TRY_AGAIN.contains(&reason.as_str()),
        // The transport's own words about a connection that could not be made.
        (Code::Unavailable, None) => status.message().contains("connect error"),
        _ => false,
    }
}

/// Whether it is the transport that says so, and no broker: nobody knows what became of it.
fn is_broken(status: &Status) -> bool {
    std::error::Error::source(status).is_some()
}

impl Shared {
    /// Makes a change here, or at the broker that decides. `field` is the one of the request that an error
    /// is about, where it is about one.
    pub(crate) async fn decided<T, Q, L, R>(
        &self,
        is_passed_on: bool,
        field: Option<&str>,
        request: &Q,
        here: impl Fn() -> L,
        there: impl Fn(Channel, Request<Q>) -> R,
    ) -> Result<T, Status>
    where
        Q: Clone,
        L: Future<Output = Result<T, TopicError>>,
        R: Future<Output = Result<Response<T>, Status>>,
    {
        self.at_leader(is_passed_on, field, request, here, there)
            .await
    }

    /// Asks the coordinator of a group, here or elsewhere.
    pub(crate) async fn coordinated<T, Q, L, R>(
        &self,
        is_passed_on: bool,
        request: &Q,
        here: impl Fn() -> L,
        there: impl Fn(Channel, Request<Q>) -> R,
    ) -> Result<T, Status>
    where
        Q: Clone,
        L: Future<Output = Result<T, CoordinatorError>>,
        R: Future<Output = Result<Response<T>, Status>>,
    {
        self.at_leader(is_passed_on, None, request, here, there)
            .await
    }

    async fn at_leader<T, Q, E, L, R>(
        &self,
        is_passed_on: bool,
        field: Option<&str>,
        request: &Q,
        here: impl Fn() -> L,
        there: impl Fn(Channel, Request<Q>) -> R,
    ) -> Result<T, Status>
    where
        Q: Clone,
        E: Refusal,
        L: Future<Output = Result<T, E>>,
        R: Future<Output = Result<Response<T>, Status>>,
    {
        let until = Instant::now() + SEARCH_MAX;
        loop {
            let error = match here().await {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            let refused = || {
                let failure = failure(&error);
                let failure = match field {
                    Some(field) => failure.in_field(field),
                    None => failure,
                };
                failure.status(self.broker.metrics())
            };
            let Some(leader) = error.not_leader().filter(|_| !is_passed_on) else {
                return Err(refused());
            };
            let channel = leader.address.as_deref();
            if let Some(channel) = channel.and_then(|address| self.elsewhere.channel(address)) {
                match there(channel, passed_on(request.clone())).await {
                    Ok(done) => return Ok(done.into_inner()),
                    Err(status) if is_to_be_tried_again(&status) => {
                        tracing::debug!(%status, "a change is tried again elsewhere");
                    }
                    Err(status) if is_broken(&status) => {
                        let of = leader.address.as_deref().unwrap_or_default();
                        let why = status.message();
                        let cause = format!("the connection to {of}, which decides, broke: {why}");
                        let error = TopicError::from(AppendError::OutcomeUnknown { cause });
                        return Err(failure(&error).status(self.broker.metrics()));
                    }
                    Err(status) => return Err(status),
                }
            }
            if Instant::now() >= until {
                return Err(refused());
            }
            tokio::select! {
                () = tokio::time::sleep(SEARCH_PAUSE) => {}
                () = self.stopping.cancelled() => return Err(refused()),
            }
        }
    }
}

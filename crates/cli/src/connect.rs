//! Connecting to the broker that the command line names.

use std::time::Duration;

use tidelog_client::{BrokerAddresses, Client, ClientConfig, TopicName};

use crate::failure::Failure;

/// Runs a command that talks to a broker.
pub(crate) fn with_client<T>(
    brokers: &BrokerAddresses,
    command: impl AsyncFnOnce(Client) -> Result<T, Failure>,
) -> Result<T, Failure> {
    run(async {
        let client = Client::connect_with(ClientConfig::new(brokers.clone())).await?;
        command(client).await
    })
}

/// How long a broker may be silent before it is said that it is.
const SAID_AFTER: Duration = Duration::from_secs(2);

/// How long it is asked which partitions have no leader.
const LEADERS_ASKED_MAX: Duration = Duration::from_secs(1);

/// So many of them are named.
const LEADERLESS_SAID_MAX: usize = 10;

/// Waits for a broker, and says so on stderr once it takes long.
pub(crate) async fn waiting_aloud<T>(
    for_what: impl FnOnce() -> String,
    waited_for: impl Future<Output = T>,
) -> T {
    let mut waited_for = std::pin::pin!(waited_for);
    if let Ok(done) = tokio::time::timeout(SAID_AFTER, &mut waited_for).await {
        return done;
    }
    say!("waiting for {}", for_what());
    waited_for.await
}

/// The same for what needs the leaders of a topic's partitions: `for_what` is told which have none, where some have.
pub(crate) async fn waiting_for_leaders<T>(
    client: &Client,
    topic: &TopicName,
    for_what: impl FnOnce(Option<String>) -> String,
    waited_for: impl Future<Output = T>,
) -> T {
    let mut waited_for = std::pin::pin!(waited_for);
    if let Ok(done) = tokio::time::timeout(SAID_AFTER, &mut waited_for).await {
        return done;
    }
    tokio::select! {
        biased;
        done = &mut waited_for => return done,
        which = leaderless(client, topic) => say!("waiting for {}", for_what(which)),
    }
    waited_for.await
}

/// The partitions of a topic that have no leader, as the broker that answers sees it; `None` where none does, or soon.
async fn leaderless(client: &Client, topic: &TopicName) -> Option<String> {
    let places = tokio::time::timeout(LEADERS_ASKED_MAX, client.list_partitions(Some(topic)));
    let places = places.await.ok()?.ok()?;
    let without = places.iter().filter(|place| place.leader.is_none());
    let mut without: Vec<_> = without.map(|place| place.partition.to_string()).collect();
    if without.len() > LEADERLESS_SAID_MAX {
        without.truncate(LEADERLESS_SAID_MAX);
        without.push("…".to_owned());
    }
    let all = without.join(", ");
    (!all.is_empty()).then(|| format!("partition {all} of topic {topic}"))
}

/// Waits for what a command asks first: where no broker answers, its address may be wrong.
pub(crate) async fn first_answer<T>(
    client: &Client,
    topic: &TopicName,
    until: Duration,
    answer: impl Future<Output = T>,
) -> T {
    let brokers = &client.config().brokers;
    let for_what = |leaderless: Option<String>| {
        let until = until.as_secs();
        match leaderless {
            Some(which) => format!("a leader of {which}, for up to {until} s"),
            None => format!("an answer from {brokers}, for up to {until} s"),
        }
    };
    waiting_for_leaders(client, topic, for_what, answer).await
}

/// Runs a future to its end.
pub(crate) fn run<T>(future: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("tidelog")
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("cannot start threads: {error}")))?;
    let result = runtime.block_on(Box::pin(future));
    // A thread may sit in a read of the terminal, which nothing can end.
    runtime.shutdown_background();
    result
}

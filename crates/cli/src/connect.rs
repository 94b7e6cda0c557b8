//! Connecting to the broker that the command line names.

use std::time::Duration;

use tidelog_client::{BrokerAddresses, Client, ClientConfig};

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

/// Waits for what a command asks first: where no broker answers, its address may be wrong.
pub(crate) async fn first_answer<T>(
    client: &Client,
    until: Duration,
    answer: impl Future<Output = T>,
) -> T {
    let brokers = &client.config().brokers;
    let for_what = || format!("an answer from {brokers}, for up to {} s", until.as_secs());
    waiting_aloud(for_what, answer).await
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

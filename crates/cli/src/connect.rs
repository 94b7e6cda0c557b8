//! Connecting to the broker that the command line names.

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

//! Several brokers that are started together.

use std::time::Duration;

use futures_util::future::try_join_all;
use tidelog_client::proto::BrokerState;
use tidelog_client::{Client, ClientConfig, ClientError};
use tokio::time::{Instant, sleep};

use super::plan::Plan;
use super::process::{Broker, Starting};
use crate::failure::Failure;

/// How long the brokers may take to see each other, once each is ready.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often it is looked whether they do.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Starts them, and waits until all serve. Where one does not, the others are ended.
pub(crate) async fn start(plans: &[Plan]) -> Result<Vec<Broker>, Failure> {
    // Not as tasks, which may outlive this: dropping them kills their brokers at once.
    let starting: Result<Vec<_>, Failure> = plans.iter().map(Starting::spawn).collect();
    let mut brokers = try_join_all(starting?.into_iter().map(Starting::ready)).await?;
    brokers.sort_by_key(|broker: &Broker| broker.plan.node_id);
    if plans.len() > 1 {
        all_see_each_other(plans).await?;
    }
    Ok(brokers)
}

/// The gRPC addresses of all, as `--broker` takes them.
pub(crate) fn addresses(plans: &[Plan]) -> String {
    let addresses: Vec<_> = plans.iter().map(Plan::grpc_address).collect();
    addresses.join(",")
}

/// Waits until every broker hears all others, so that what comes next is not about the start.
pub(crate) async fn all_see_each_other(plans: &[Plan]) -> Result<(), Failure> {
    let until = Instant::now() + PATIENCE;
    for plan in plans {
        let client = Client::lazy(config(&plan.grpc_address())?)?;
        loop {
            let seen = sees_all(&client, plans).await;
            if matches!(seen, Ok(true)) {
                break;
            }
            if Instant::now() >= until {
                let what = format!(
                    "broker {} did not hear all others within {PATIENCE:?}",
                    plan.node_id
                );
                return Err(match seen {
                    Err(error) => Failure::from(error).about(&what),
                    Ok(_) => Failure::failed(what),
                });
            }
            sleep(LOOK_EVERY).await;
        }
    }
    Ok(())
}

async fn sees_all(client: &Client, plans: &[Plan]) -> Result<bool, ClientError> {
    let cluster = client.describe_cluster().await?;
    let is_heard = |plan: &Plan| {
        let mut brokers = cluster.brokers.iter();
        brokers.any(|b| b.node_id == plan.node_id && b.state() == BrokerState::Alive)
    };
    Ok(cluster.metadata_leader.is_some() && plans.iter().all(is_heard))
}

/// How to reach these brokers.
pub(crate) fn config(addresses: &str) -> Result<ClientConfig, Failure> {
    let brokers = addresses
        .parse()
        .map_err(|error| Failure::failed(format!("the brokers' addresses: {error}")))?;
    Ok(ClientConfig::new(brokers))
}

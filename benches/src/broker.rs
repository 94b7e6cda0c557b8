//! A broker inside this process.

use std::path::Path;

use anyhow::Context;
use bytes::Bytes;
use tidelog_broker::{Acks, AppendRequest, Broker, BrokerConfig, NewTopic, Payload, Seams};
use tokio::runtime::Runtime;

pub(crate) const TOPIC: &str = "bench";

pub(crate) fn runtime() -> anyhow::Result<Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?)
}

pub(crate) fn open(dir: &Path) -> anyhow::Result<Broker> {
    let config = BrokerConfig {
        data_dir: dir.join("data"),
        ..BrokerConfig::default()
    };
    Ok(Broker::open(config, Seams::os())?)
}

pub(crate) async fn create(
    broker: &Broker,
    name: &str,
    partitions: u32,
    settings: &[(&str, &str)],
) -> anyhow::Result<()> {
    let settings = settings
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    let new = NewTopic {
        name: name.to_owned(),
        partitions,
        settings: settings.collect(),
        ..NewTopic::default()
    };
    broker.create_topic(new).await?;
    Ok(())
}

/// Appends and waits until it is durable.
pub(crate) async fn append(
    broker: &Broker,
    topic: &str,
    partition: u32,
    batch: Bytes,
) -> anyhow::Result<()> {
    append_with(Acks::All, broker, topic, partition, batch).await
}

/// Appends and waits as `acks` says.
pub(crate) async fn append_with(
    acks: Acks,
    broker: &Broker,
    topic: &str,
    partition: u32,
    batch: Bytes,
) -> anyhow::Result<()> {
    let request = AppendRequest {
        topic: topic.to_owned(),
        partition: Some(partition),
        acks,
        payload: Payload::Batch(batch),
    };
    let parts = broker.submit(request).await?.await;
    for part in &parts {
        part.result
            .as_ref()
            .map_err(|e| anyhow::anyhow!("{e}"))
            .context("an append failed")?;
    }
    Ok(())
}

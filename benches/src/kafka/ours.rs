//! Three brokers of ours under the same load.

use futures_util::future::try_join_all;
use tidelog_client::{Client, NewTopic, TopicName};
use tidelog_proto::v1::Acks;
use tidelog_proto::v1::log_client::LogClient;
use tokio::runtime::Runtime;
use tonic::transport::Channel;

use super::{CONNECTIONS, IN_FLIGHT, Load, PARTITIONS, Turn, taken};
use crate::brokers::{BROKERS, Cluster, LOOK, PATIENCE, create_as, is_well};
use crate::fixtures::{Bench, now};
use crate::grpc::{Clients, Stream};

pub(super) struct Ours {
    cluster: Cluster,
    client: Client,
    /// The connections to each broker.
    logs: Vec<Vec<LogClient<Channel>>>,
    runtime: Runtime,
}

impl Ours {
    pub(super) fn start(bench: &Bench) -> anyhow::Result<Self> {
        let cluster = Cluster::start(bench, BROKERS)?;
        let runtime = crate::broker::runtime()?;
        let (client, logs) = runtime.block_on(async {
            let mut logs = Vec::new();
            for broker in cluster.brokers.iter().flatten() {
                let connections = (0..CONNECTIONS).map(|_| Clients::connect(&broker.addr));
                let clients = try_join_all(connections).await?;
                logs.push(clients.into_iter().map(|one| one.log).collect());
            }
            anyhow::Ok((cluster.client()?, logs))
        })?;
        Ok(Self {
            cluster,
            client,
            logs,
            runtime,
        })
    }

    /// A turn, into a topic of its own, where what is acknowledged is on two disks, or in two page caches.
    pub(super) fn turn(&mut self, topic: &str, synced: bool, load: &Load) -> anyhow::Result<Turn> {
        let Self {
            cluster,
            client,
            logs,
            runtime,
        } = self;
        let mut new = NewTopic {
            partitions: PARTITIONS,
            ..NewTopic::default()
        };
        if !synced {
            let cached = ("write.caching".to_owned(), "true".to_owned());
            new.settings.extend([cached]);
        }
        let name = runtime.block_on(create_as(client, topic, new))?;
        runtime.block_on(is_well(client, BROKERS as usize))?;
        let led = runtime.block_on(led_evenly(client, &name))?;
        let batches = || {
            let streams = led.iter().zip(&*logs).flat_map(|(led, logs)| {
                logs.iter().map(|log| {
                    let stream = Stream {
                        topic,
                        partitions: led,
                        acks: Acks::All,
                        in_flight: IN_FLIGHT,
                        batch: load.batch.clone(),
                        count: load.count,
                    };
                    stream.produce(log.clone())
                })
            });
            let millis = runtime.block_on(try_join_all(streams))?;
            Ok(millis.concat())
        };
        let singles = || {
            let stream = Stream {
                topic,
                partitions: &led[0][..1],
                acks: Acks::All,
                in_flight: 1,
                batch: load.single.clone(),
                count: load.singles,
            };
            runtime.block_on(stream.produce(logs[0][0].clone()))
        };
        let turn = taken(load, || cluster.cpu_seconds(), batches, singles)?;
        runtime.block_on(client.delete_topic(&name))?;
        Ok(turn)
    }
}

/// The partitions that each broker leads, once these are two each.
async fn led_evenly(client: &Client, topic: &TopicName) -> anyhow::Result<Vec<Vec<u32>>> {
    let began = now();
    loop {
        let places = client.list_partitions(Some(topic)).await?;
        let led = (1..=BROKERS).map(|node| {
            let led = places.iter().filter(|place| place.leader == Some(node));
            led.map(|place| place.partition).collect()
        });
        let led: Vec<Vec<u32>> = led.collect();
        if led
            .iter()
            .all(|led| led.len() == (PARTITIONS / BROKERS) as usize)
        {
            return Ok(led);
        }
        anyhow::ensure!(began.elapsed() < PATIENCE, "leaderships are not even");
        tokio::time::sleep(LOOK).await;
    }
}

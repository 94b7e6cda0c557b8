//! Commits of many groups at a time, which share their syncs: inside of this process, and over gRPC.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::bail;
use futures_util::future::try_join_all;
use tidelog_broker::Broker;
use tidelog_client::{AdminOptions, Client, CommitOptions, NewCommit, NewTopic, PartitionId};
use tidelog_group::{Answer, CommitOffsets, Committer, GroupId, NewOffset, Request};
use tidelog_record::{Offset, TopicName};
use tokio::runtime::Runtime;

use crate::broker::{TOPIC, append, create, open, runtime};
use crate::figure::{Figure, Goal, in_turns};
use crate::fixtures::{Bench, batch_of, float, now};
use crate::process::Server;

/// Committers inside of the process, each for a group of its own.
const COMMITTERS: usize = 1024;
/// Connections over gRPC, and committers of each.
const CONNECTIONS: usize = 4;
const COMMITTERS_EACH: usize = 64;

pub(crate) fn measure(bench: &Bench) -> anyhow::Result<Vec<Figure>> {
    let time = Duration::from_millis(if bench.quick { 300 } else { 2000 });
    Ok(vec![inside(bench, time)?, over_grpc(bench, time)?])
}

fn inside(bench: &Bench, time: Duration) -> anyhow::Result<Figure> {
    let dir = bench.dir()?;
    let runtime = runtime()?;
    let broker = open(dir.path())?;
    runtime.block_on(async {
        create(&broker, TOPIC, 1, &[]).await?;
        append(&broker, TOPIC, 0, batch_of(100)?).await?;
        // The topic of groups is made, and its coordinators are there.
        for number in 0..COMMITTERS {
            while commit(&broker, number, 0).await.is_err() {
                tokio::task::yield_now().await;
            }
        }
        Ok::<_, anyhow::Error>(())
    })?;
    let rate = |committers| {
        let began = now();
        let tasks = (0..committers).map(|number| {
            let broker = broker.clone();
            runtime.spawn(async move {
                let mut count = 0;
                while began.elapsed() < time {
                    commit(&broker, number, count as u64 % 100).await?;
                    count += 1;
                }
                Ok::<_, anyhow::Error>(count)
            })
        });
        let mut sum = 0;
        for count in runtime.block_on(try_join_all(tasks))? {
            sum += count?;
        }
        Ok(float(sum) / began.elapsed().as_secs_f64())
    };
    let (values, baselines) = in_turns(bench.turns, || rate(COMMITTERS), || rate(1))?;
    runtime.block_on(broker.stop())?;
    Ok(Figure {
        name: "group-commits.1024-synced".to_owned(),
        unit: "commits/s",
        values,
        baseline: "one committer, synced",
        baselines,
        goal: Goal::Above(50_000.0),
    })
}

async fn commit(broker: &Broker, number: usize, offset: u64) -> anyhow::Result<()> {
    let group = GroupId::new(&format!("group-{number}"))?;
    let new = NewOffset {
        topic: TopicName::new(TOPIC)?,
        topic_id: None,
        partition: 0,
        offset: Offset::new(offset).unwrap_or_default(),
        leader_epoch: None,
        metadata: String::new(),
        end: None,
    };
    let commit = CommitOffsets {
        group: group.clone(),
        committer: Committer::Alone,
        allow_backwards: true,
        offsets: vec![new],
    };
    match broker.ask_group(&group, Request::Commit(commit)).await? {
        Answer::Committed(results) if results.iter().all(Result::is_ok) => Ok(()),
        other => bail!("{other:?}"),
    }
}

fn over_grpc(bench: &Bench, time: Duration) -> anyhow::Result<Figure> {
    let dir = bench.dir()?;
    let runtime = runtime()?;
    let server = Server::broker(&dir.path().join("data"))?;
    prepare(&runtime, &server.addr)?;
    let rate = |connections: usize, each: usize| {
        let clients = (0..connections).map(|_| Client::connect(&server.addr));
        let clients = runtime.block_on(try_join_all(clients))?;
        let committed = Arc::new(AtomicUsize::new(0));
        let began = now();
        let mut tasks = Vec::new();
        for (connection, client) in clients.iter().enumerate() {
            for number in 0..each {
                let group = client.group(&format!("group-{connection}-{number}"));
                let committed = committed.clone();
                tasks.push(runtime.spawn(async move {
                    let topic = TopicName::new(TOPIC)?;
                    let options = CommitOptions::default();
                    while began.elapsed() < time {
                        let first = PartitionId::new(0);
                        let new = NewCommit::new(topic.clone(), first, Offset::ZERO);
                        for result in group.commit(&[new], options).await? {
                            result?;
                        }
                        committed.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok::<_, anyhow::Error>(())
                }));
            }
        }
        for ended in runtime.block_on(try_join_all(tasks))? {
            ended?;
        }
        Ok(float(committed.load(Ordering::Relaxed)) / began.elapsed().as_secs_f64())
    };
    let ours = || rate(CONNECTIONS, COMMITTERS_EACH);
    let (values, baselines) = in_turns(bench.turns, ours, || rate(1, 1))?;
    Ok(Figure {
        name: "group-commits.grpc-256-synced".to_owned(),
        unit: "commits/s",
        values,
        baseline: "one committer over gRPC",
        baselines,
        goal: Goal::None,
    })
}

/// Makes the topic, and the topic of groups.
fn prepare(runtime: &Runtime, addr: &str) -> anyhow::Result<()> {
    runtime.block_on(async {
        let client = Client::connect(addr).await?;
        let topic = TopicName::new(TOPIC)?;
        let new = NewTopic {
            partitions: 1,
            ..NewTopic::default()
        };
        client
            .create_topic_as(&topic, new, AdminOptions::default())
            .await?;
        client.group("first").committed().await?;
        Ok(())
    })
}

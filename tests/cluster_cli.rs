//! What the command line says and reads where brokers of a cluster are away.

#![allow(
    clippy::unwrap_used,
    unreachable_pub,
    reason = "a test program, which fails by panicking"
)]

#[path = "support/cluster.rs"]
mod cluster;
#[path = "support/proxy.rs"]
mod proxy;
mod support;

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use cluster::Cluster;
use serde_json::Value;
use support::{TIDELOG, code, run, stderr};
use tidelog_client::{
    PartitionId, Producer, ProducerConfig, ProducerRecord, Reader, ReaderConfig, TopicName,
};

/// Runs a command against one broker.
async fn run_at(cluster: &Cluster, at: u32, args: &[&str], input: &str) -> Output {
    let address = cluster.nodes[&at].grpc.clone();
    let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
    let input = input.to_owned();
    let output = tokio::task::spawn_blocking(move || {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        run(&args, &[("TIDELOG_BROKER", &address)], input.as_bytes())
    });
    output.await.unwrap()
}

/// The offset and value of each record that is read at one broker.
async fn consumed(cluster: &Cluster, at: u32, args: &[&str]) -> Vec<(u64, String)> {
    let args = [&["consume", "t", "-o", "json"], args].concat();
    let output = run_at(cluster, at, &args, "").await;
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let text = String::from_utf8(output.stdout).unwrap();
    let lines = text.lines().map(|line| {
        let record: Value = serde_json::from_str(line).unwrap();
        let value = record["value"].as_str().unwrap().to_owned();
        (record["offset"].as_u64().unwrap(), value)
    });
    lines.collect()
}

/// The same, once there are so many: a follower hears a moment later what is committed.
async fn consumed_by(cluster: &Cluster, at: u32, count: usize) -> Vec<(u64, String)> {
    let all = async {
        loop {
            let records = consumed(cluster, at, &["--read-replica"]).await;
            if records.len() >= count {
                return records;
            }
        }
    };
    let all = tokio::time::timeout(Duration::from_secs(60), all).await;
    all.expect("the follower has all within a minute")
}

/// The first line that a command says on stderr, which waits for long; it is ended then.
async fn says_at(cluster: &Cluster, at: u32, command: &'static str) -> String {
    let address = cluster.nodes[&at].grpc.clone();
    let said = tokio::task::spawn_blocking(move || {
        let mut child = Command::new(TIDELOG)
            .args([command, "t", "--broker", &address])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        // One that does not read it is not in the way of the test.
        stdin.write_all(b"late\n").ok();
        let mut said = String::new();
        let mut lines = BufReader::new(child.stderr.take().unwrap());
        lines.read_line(&mut said).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        said
    });
    said.await.unwrap()
}

/// What a producer and a reader meet that do not wait for long.
async fn fails_soon(cluster: &Cluster, at: u32, topic: &TopicName) -> [String; 2] {
    let timeout = Duration::from_secs(2);
    let producer = Producer::new(
        cluster.client_of(at),
        ProducerConfig {
            delivery_timeout: timeout,
            // An id comes of the metadata, which nobody leads either: asking for one takes longer than this.
            idempotence: false,
            ..ProducerConfig::default()
        },
    );
    let record = ProducerRecord::new(topic.clone()).partition(PartitionId::new(0));
    let delivery = producer.send(record.value("late")).await.unwrap();
    let not_produced = delivery.await.unwrap_err();
    let config = ReaderConfig {
        retry_timeout: timeout,
        ..ReaderConfig::new(topic.clone())
    };
    let not_read = Reader::open(cluster.client_of(at), config)
        .await
        .unwrap_err();
    [not_produced.to_string(), not_read.to_string()]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_is_read_also_when_no_majority_is_left() {
    const RECORDS: usize = 100;
    let mut cluster = Cluster::found(3).await;
    let topic = cluster.create("t", 1).await;
    let leader = cluster.leader(&topic, 0).await;
    let values: String = (0..RECORDS).map(|n| format!("value {n}\n")).collect();
    let produced = run_at(&cluster, leader, &["produce", "t"], &values).await;
    assert_eq!(code(&produced), 0, "{}", stderr(&produced));
    let records = consumed(&cluster, leader, &[]).await;
    assert_eq!(records.len(), RECORDS);
    assert_eq!(records[7], (7, "value 7".to_owned()));
    let followers: Vec<u32> = (1..=3).filter(|id| *id != leader).collect();
    for follower in &followers {
        assert_eq!(consumed_by(&cluster, *follower, RECORDS).await, records);
    }

    let left = followers[0];
    cluster.kill(leader);
    cluster.kill(followers[1]);
    let leaderless = tidelog_client::proto::ProblemKind::Leaderless as i32;
    cluster
        .until_at(left, "nobody leads", |described| {
            let mut problems = described.problems.iter();
            problems.any(|one| one.kind == leaderless)
        })
        .await;
    assert_eq!(consumed(&cluster, left, &["--read-replica"]).await, records);
    let some = ["--read-replica", "--from", "90", "-n", "3"];
    assert_eq!(consumed(&cluster, left, &some).await, records[90..93]);
    // All else needs a leader, and says which partition has none.
    let offsets = run_at(&cluster, left, &["offsets", "t"], "").await;
    assert_eq!(code(&offsets), 4);
    let said = stderr(&offsets);
    let cause = "partition 0 of topic \"t\" has no leader that is known here (NOT_LEADER)";
    assert!(said.contains(cause), "{said}");
    assert!(said.contains("tidelog cluster status"), "{said}");
    for command in ["consume", "produce"] {
        let said = says_at(&cluster, left, command).await;
        let waiting = "waiting for a leader of partition 0 of topic t";
        assert!(said.starts_with(waiting), "{command}: {said}");
    }
    for said in fails_soon(&cluster, left, &topic).await {
        assert!(said.contains(cause), "{said}");
    }
    let created = run_at(&cluster, left, &["topic", "create", "u"], "").await;
    assert_eq!(code(&created), 4);
    let said = stderr(&created);
    assert!(
        said.contains("no broker is known to lead the metadata"),
        "{said}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_was_removed_while_it_was_away_says_so() {
    let mut cluster = Cluster::found(4).await;
    cluster.kill(4);
    let alive = tidelog_client::proto::BrokerState::Alive as i32;
    cluster
        .until("it is not heard", |described| {
            let mut brokers = described.brokers.iter();
            brokers.any(|one| one.node_id == 4 && one.state != alive)
        })
        .await;
    let remove = ["cluster", "remove", "4", "--yes"];
    let removed = run_at(&cluster, 1, &remove, "").await;
    assert_eq!(code(&removed), 0, "{}", stderr(&removed));
    // It does not know of that: the others tell it why they do not listen.
    cluster.spawn(4);
    cluster
        .until_at(4, "it was told", |described| !described.refused.is_empty())
        .await;
    let status = run_at(&cluster, 4, &["cluster", "status"], "").await;
    let said = String::from_utf8(status.stdout).unwrap();
    assert!(
        said.contains("broker 4 is not taken by the cluster"),
        "{said}"
    );
    assert!(said.contains("was removed"), "{said}");
    assert!(said.contains("--join"), "{said}");
}

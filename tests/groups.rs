//! Groups with real brokers: what is committed outlives whoever coordinates, and is shown and changed on the command
//! line.

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

use std::time::Duration;

use cluster::{Cluster, Load};
use serde_json::Value;
use support::{Broker, code, stderr};
use tidelog_client::{
    ClientError, CommitOptions, Group, NewCommit, Offset, OffsetSpec, PartitionId, TopicName,
};

const P: PartitionId = PartitionId::new(0);

/// Commits until it is acknowledged.
async fn commit(group: &Group, topic: &TopicName, offset: u64) {
    let new = NewCommit::new(topic.clone(), P, Offset::new(offset).unwrap());
    let committed = async {
        loop {
            match group
                .commit(std::slice::from_ref(&new), CommitOptions::default())
                .await
            {
                Ok(results) => match &results[0] {
                    Ok(()) => return,
                    // An earlier try was done after all.
                    Err(e) if reason(e) == "OFFSET_BEHIND" => return,
                    Err(e) => panic!("{e}"),
                },
                Err(e) if e.is_retryable() || e.is_outcome_unknown() => {}
                Err(e) => panic!("{e}"),
            }
        }
    };
    let committed = tokio::time::timeout(Duration::from_secs(60), committed);
    committed
        .await
        .expect("somebody coordinates within a minute");
}

fn reason(error: &ClientError) -> &str {
    error.broker().map_or("", |broker| broker.reason.as_str())
}

/// What is committed, as soon as somebody tells.
async fn committed(group: &Group) -> Option<u64> {
    let found = async {
        loop {
            match group.committed().await {
                Ok(found) => return found.first().map(|one| one.offset.get()),
                Err(e) if e.is_retryable() || e.is_outcome_unknown() => {}
                Err(e) => panic!("{e}"),
            }
        }
    };
    let found = tokio::time::timeout(Duration::from_secs(60), found);
    found.await.expect("somebody coordinates within a minute")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_committed_survives_coordinators_that_are_killed_under_load() {
    let mut cluster = Cluster::found(3).await;
    let topic = cluster.create("t", 1).await;
    let client = cluster.client();
    let load = Load::start(&client, &topic, 1);
    let groups: Vec<Group> = (0..6)
        .map(|number| client.group(&format!("g{number}")))
        .collect();
    let mut acknowledged = vec![0u64; groups.len()];
    for round in 1..=4u64 {
        load.more(200).await;
        for step in 0..5 {
            let ends = client
                .list_offsets(&topic, &[(P, OffsetSpec::Latest)])
                .await;
            let Ok(ends) = ends else { continue };
            let offset = ends[0].offset.get().saturating_sub(5 - step);
            for (group, acknowledged) in groups.iter().zip(&mut acknowledged) {
                commit(group, &topic, offset).await;
                *acknowledged = (*acknowledged).max(offset);
            }
        }
        let described = groups[0].describe().await.unwrap();
        let coordinator = described.coordinator.unwrap().node_id;
        cluster.kill(coordinator);
        for (group, acknowledged) in groups.iter().zip(&acknowledged) {
            assert_eq!(committed(group).await, Some(*acknowledged), "round {round}");
        }
        cluster.start(coordinator).await;
    }
    // All of them at once.
    let all = cluster.running();
    for id in &all {
        cluster.kill(*id);
    }
    for id in all {
        cluster.spawn(id);
    }
    cluster.all_ready().await;
    for (group, acknowledged) in groups.iter().zip(&acknowledged) {
        assert_eq!(committed(group).await, Some(*acknowledged));
    }
    load.check(&cluster, &topic).await;
}

/// The lines of a command that prints JSON.
fn json(broker: &Broker, args: &[&str]) -> Vec<Value> {
    let args = [args, &["-o", "json"]].concat();
    let text = broker.ok(&args);
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn groups_are_shown_and_changed_on_the_command_line() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start_with(dir.path(), &["--offsets-partitions", "4"]);
    broker.ok(&["topic", "create", "t", "--partitions", "2"]);
    broker.ok_with_input(&["produce", "t", "--partition", "0"], b"a\nb\nc\nd\n");
    assert!(json(&broker, &["group", "list"]).is_empty());
    let missing = broker.run(&["group", "describe", "g"]);
    assert_eq!(code(&missing), 3);
    assert!(
        stderr(&missing).contains("tidelog group list"),
        "{}",
        stderr(&missing)
    );

    // A group that has committed nothing yet begins where it is told to.
    let reset = ["group", "reset-offsets", "g", "--to", "-3", "--topic", "t"];
    let dry = [&reset[..], &["--dry-run"]].concat();
    let planned = json(&broker, &dry);
    assert_eq!(planned[0]["after"], 1);
    assert!(json(&broker, &["group", "list"]).is_empty());
    let unsure = broker.run(&reset);
    assert_eq!(code(&unsure), 2, "{}", stderr(&unsure));
    broker.ok(&[&reset[..], &["--yes"]].concat());
    let listed = json(&broker, &["group", "list"]);
    assert_eq!(
        (listed[0]["group"].as_str(), listed[0]["offsets"].as_u64()),
        (Some("g"), Some(2))
    );

    let lag = json(&broker, &["group", "lag", "g"]);
    let behind: Vec<_> = lag.iter().map(|one| one["lag"].as_u64().unwrap()).collect();
    assert_eq!(behind, [3, 0]);
    assert!(lag[0]["lag_ms"].as_u64().is_some());
    assert_eq!(lag[1]["lag_ms"], 0);
    for (how, after) in [
        ("--shift=2", 3),
        ("--shift=-100", 0),
        ("--to=latest", 4),
        ("--to=2", 2),
    ] {
        let args = [
            "group",
            "reset-offsets",
            "g",
            how,
            "--topic",
            "t",
            "--partition",
            "0",
            "--yes",
        ];
        let done = json(&broker, &args);
        assert_eq!(
            (done.len(), &done[0]["after"]),
            (1, &Value::from(after)),
            "{how}"
        );
        let described = json(&broker, &["group", "describe", "g"]);
        assert_eq!(
            described[0]["offsets"][0]["committed_offset"], after,
            "{how}"
        );
    }
    broker.ok(&["topic", "delete", "t", "--yes"]);
    let gone = json(&broker, &["group", "lag", "g"]);
    assert_eq!(gone[0]["lag"], Value::Null);
    broker.ok(&["group", "delete", "g", "--yes"]);
    assert!(json(&broker, &["group", "list"]).is_empty());
    assert_eq!(code(&broker.run(&["group", "delete", "g", "--yes"])), 3);
    assert!(broker.terminate().success());
}

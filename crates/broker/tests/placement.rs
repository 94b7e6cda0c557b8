//! Partitions that are at some brokers and not at others, and go from one to another.
#![allow(clippy::unwrap_used, reason = "a failed test panics")]

mod support;

use std::collections::BTreeSet;
use std::path::Path;

use support::cluster::{Cluster, place};
use support::{new_topic, read_all};
use tidelog_broker::{Broker, Facts, Replication};
use tidelog_disk::{Disk, DiskOp, OpenHow};
use tidelog_record::TopicId;
use tidelog_sim::{FailMode, InjectedError, OpFilter};

async fn create(cluster: &Cluster, name: &str, assignment: &[&[u32]]) {
    let replication = Replication {
        factor: None,
        assignment: assignment.iter().map(|nodes| nodes.to_vec()).collect(),
    };
    let partitions = u32::try_from(assignment.len()).unwrap();
    let create = async |broker: &Broker| {
        let new = new_topic(name, partitions, &[]);
        broker.create_replicated(new, replication.clone()).await
    };
    cluster.anywhere("a topic", create).await;
    cluster
        .until("all know the topic", |broker| {
            broker.partitions_of(name).is_ok()
        })
        .await;
}

async fn append_some(cluster: &Cluster, topic: &str, values: &mut Vec<String>, count: usize) {
    for _ in 0..count {
        let value = format!("{}", values.len());
        cluster.append(topic, &value).await;
        values.push(value);
    }
}

/// All acknowledged values are at a broker, in their order.
async fn has_all(cluster: &Cluster, id: u32, topic: &str, values: &[String]) {
    let broker = &cluster.brokers[&id];
    cluster
        .until("the watermark is there", |other| {
            other.node_id() != id
                || broker
                    .partition(topic, 0)
                    .is_ok_and(|handle| handle.ends().high_watermark.get() >= values.len() as u64)
        })
        .await;
    let read = read_all(broker, topic, 0).await.unwrap();
    let mut found = read.iter().map(|(_, value)| value);
    for value in values {
        assert!(found.any(|found| found == value), "{value} is lost at {id}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_without_a_replica_says_who_leads() {
    let cluster = Cluster::new();
    create(&cluster, "t", &[&[1, 2]]).await;
    let (leader, _) = cluster.append("t", "v").await;
    assert!([1, 2].contains(&leader));
    let third = &cluster.brokers[&3];
    cluster
        .until("the third has heard of it", |_| {
            let e = third.partition("t", 0).unwrap_err();
            e.facts()
                .contains(&("leader_address", format!("broker{leader}:9400")))
        })
        .await;
    let e = third.partition("t", 0).unwrap_err();
    assert_eq!(e.reason(), "NOT_LEADER");
    assert!(e.facts().contains(&("leader", leader.to_string())));
    let described = third.describe_topic("t", false).unwrap();
    assert!(described.partitions[0].is_elsewhere);
    assert_eq!(described.partitions[0].replicas, [1, 2]);
    assert!(!cluster.has_files(3, "t", 0));
    assert!(cluster.has_files(1, "t", 0) && cluster.has_files(2, "t", 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_moves_with_all_it_has_and_takes_more_meanwhile() {
    let mut cluster = Cluster::new();
    create(&cluster, "t", &[&[1, 2]]).await;
    let mut values = Vec::new();
    append_some(&cluster, "t", &mut values, 30).await;
    let reassign = async |broker: &Broker| broker.reassign("t", 0, vec![3, 2]).await;
    cluster.anywhere("a move", reassign).await;
    append_some(&cluster, "t", &mut values, 30).await;
    cluster.placed("t", 0, &[2, 3]).await;
    append_some(&cluster, "t", &mut values, 10).await;
    cluster
        .until("the preferred one leads", |broker| {
            place(broker, "t", 0).is_some_and(|place| place.leader == Some(3))
        })
        .await;
    cluster
        .until("the old replica is gone", |_| !cluster.has_files(1, "t", 0))
        .await;
    has_all(&cluster, 3, "t", &values).await;
    has_all(&cluster, 2, "t", &values).await;
    // It is so after power loss as well, and what one has left half made goes.
    for id in 1..=3 {
        cluster.crash(id);
    }
    let (disk, half_made) = (&cluster.disks[&1], Path::new("/srv/data/t-0"));
    disk.create_dir_all(half_made).unwrap();
    disk.open(
        &half_made.join("00000000000000000000.log"),
        OpenHow::CreateNew,
    )
    .unwrap();
    assert!(cluster.has_files(1, "t", 0));
    for id in 1..=3 {
        cluster.start(id);
    }
    append_some(&cluster, "t", &mut values, 1).await;
    has_all(&cluster, 3, "t", &values).await;
    assert!(!cluster.has_files(1, "t", 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leadership_goes_where_it_is_wanted() {
    let cluster = Cluster::new();
    create(&cluster, "t", &[&[1, 2, 3]]).await;
    for node in [3, 2, 1] {
        let set = async |broker: &Broker| broker.set_leader("t", 0, node).await;
        cluster.anywhere("another leader", set).await;
        cluster
            .until("it leads", |broker| {
                place(broker, "t", 0).is_some_and(|place| place.leader == Some(node))
            })
            .await;
        assert_eq!(cluster.append("t", "v").await.0, node);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_joins_takes_what_another_had_and_that_one_goes() {
    let mut cluster = Cluster::new();
    create(&cluster, "t", &[&[1, 2, 3]]).await;
    let mut values = Vec::new();
    append_some(&cluster, "t", &mut values, 20).await;
    cluster.join(4).await;
    cluster
        .until("all know the fourth", |broker| {
            broker.known_brokers().len() == 4 && broker.is_registered()
        })
        .await;
    let drain = async |broker: &Broker| broker.drain(1).await;
    cluster.anywhere("a drain", drain).await;
    cluster.placed("t", 0, &[2, 3, 4]).await;
    append_some(&cluster, "t", &mut values, 5).await;
    has_all(&cluster, 4, "t", &values).await;
    let remove = async |broker: &Broker| broker.remove_broker(1).await;
    cluster.anywhere("a removal", remove).await;
    let rest: BTreeSet<u32> = [2, 3, 4].into();
    cluster
        .until("others vote on the metadata", |broker| {
            let voters: BTreeSet<u32> = broker
                .describe_cluster()
                .metadata_voters
                .into_iter()
                .collect();
            voters == rest || broker.node_id() == 1
        })
        .await;
    // What is left decides without the one that went.
    cluster.crash(1);
    create(&cluster, "later", &[&[2, 3, 4]]).await;
    append_some(&cluster, "t", &mut values, 5).await;
    has_all(&cluster, 4, "t", &values).await;
    // And that one is not taken back as it is.
    cluster.start(1);
    cluster
        .until("it is told so", |broker| {
            broker.node_id() != 1
                || broker.was_removed(1)
                || broker.registration_refused().is_some()
        })
        .await;
    append_some(&cluster, "t", &mut values, 5).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_founder_that_has_lost_its_disk_before_it_came_can_be_removed() {
    for replaces in [false, true] {
        let cluster = Cluster::begun_by(&[1, 2]);
        create(&cluster, "t", &[&[1, 2]]).await;
        let remove = async |broker: &Broker| match replaces {
            true => broker.replace_broker(3, [9; 16]).await.map(drop),
            false => broker.remove_broker(3).await,
        };
        cluster.anywhere("the founder is removed", remove).await;
        cluster
            .until("all know, and it is no voter any more", |broker| {
                broker.removed_brokers() == [3]
                    && !broker.describe_cluster().metadata_voters.contains(&3)
            })
            .await;
        let again = async |broker: &Broker| match broker.remove_broker(3).await {
            Err(e) if e.reason() == "BROKER_NOT_FOUND" => Ok(()),
            other => other,
        };
        cluster.anywhere("it is gone", again).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_is_lost_comes_back_as_another_replica() {
    let mut cluster = Cluster::new();
    create(&cluster, "t", &[&[1, 2, 3]]).await;
    // More than are moved at once, so that the new disk is told of replicas on the old one.
    create(&cluster, "many", &[[1, 2, 3].as_slice(); 20]).await;
    let mut values = Vec::new();
    append_some(&cluster, "t", &mut values, 20).await;
    cluster.crash(2);
    append_some(&cluster, "t", &mut values, 10).await;
    cluster.replace(2).await;
    cluster
        .until("it has a replica again", |broker| {
            place(broker, "t", 0)
                .is_some_and(|place| place.change.is_none() && place.in_sync.len() == 3)
        })
        .await;
    append_some(&cluster, "t", &mut values, 5).await;
    has_all(&cluster, 2, "t", &values).await;
    // On the new disk nothing ever spoke as a replica that was on the old one.
    let spoke = cluster.net.spoke.lock().clone();
    let (on_the_old, on_the_new) = (2, 2 | 1 << 32);
    assert!(
        spoke.contains(&on_the_new) && !spoke.contains(&on_the_old),
        "{spoke:?}"
    );
    // Any two are enough again, the new one among them.
    cluster.crash(1);
    append_some(&cluster, "t", &mut values, 5).await;
    has_all(&cluster, 2, "t", &values).await;
    for broker in cluster.brokers.values() {
        assert_eq!(broker.health().faults, Vec::<String>::new());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_metadata_log_is_cut_and_who_was_away_copies_the_rest() {
    let mut cluster = Cluster::cut_after(20);
    create(&cluster, "kept", &[&[1, 2, 3]]).await;
    cluster.crash(3);
    for number in 0..40 {
        let name = format!("t{number}");
        create(&cluster, &name, &[&[1, 2]]).await;
        let delete = async |broker: &Broker| broker.delete_topic(&name).await;
        cluster.anywhere("a deletion", delete).await;
    }
    cluster
        .until("the log is cut", |broker| {
            let metadata = broker.partition("__cluster_metadata", 0);
            metadata.is_ok_and(|metadata| metadata.ends().log_start.get() > 40)
        })
        .await;
    cluster.start(3);
    cluster.append("kept", "v").await;
    cluster
        .until("all know the same topics", |broker| {
            let names: Vec<String> = broker
                .topics()
                .into_iter()
                .map(|topic| topic.name)
                .collect();
            names == ["__cluster_metadata", "kept"] && broker.is_registered()
        })
        .await;
    let values = cluster.same_everywhere("kept", 1).await;
    assert_eq!(values, ["v"]);
}

/// A broker that was away learns of both, and stops again before it has done anything about either. With
/// `others` between, what it learns of begins with a snapshot, which says nothing of deletions.
async fn a_topic_is_made_again_in_the_place_of_a_deleted_one(others: usize) {
    let mut cluster = Cluster::cut_after(20);
    create(&cluster, "t", &[&[1, 2, 3]]).await;
    append_some(&cluster, "t", &mut Vec::new(), 5).await;
    cluster.same_everywhere("t", 5).await;
    cluster.crash(3);
    let delete = async |broker: &Broker| broker.delete_topic("t").await;
    cluster.anywhere("a deletion", delete).await;
    create(&cluster, "t", &[&[1, 2, 3]]).await;
    let mut values = Vec::new();
    append_some(&cluster, "t", &mut values, 3).await;
    for number in 0..others {
        create(&cluster, &format!("t{number}"), &[&[1, 2]]).await;
    }
    let new = topic_id(&cluster.brokers[&1], "t");

    cluster.disks[&3].fail_nth(
        OpFilter::op(DiskOp::Rename).on("t-0"),
        1,
        InjectedError::Io,
        FailMode::Forever,
    );
    cluster.start(3);
    cluster
        .until("it knows of the new one", |broker| {
            topic_id(broker, "t") == new
        })
        .await;
    // So that what it knows to be committed is recorded.
    cluster.brokers[&3].stop().await.unwrap();
    cluster.crash(3);
    cluster.disks[&3].stop_failing();
    cluster.start(3);
    append_some(&cluster, "t", &mut values, 2).await;
    has_all(&cluster, 3, "t", &values).await;
    assert_eq!(cluster.brokers[&3].health().faults, Vec::<String>::new());
}

fn topic_id(broker: &Broker, name: &str) -> Option<TopicId> {
    let topics = broker.topics();
    let topic = topics.iter().find(|topic| topic.name == name);
    topic.map(|topic| topic.topic_id)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_tells_a_new_topic_from_a_deleted_one_of_its_name() {
    a_topic_is_made_again_in_the_place_of_a_deleted_one(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_tells_them_apart_after_a_snapshot_too() {
    a_topic_is_made_again_in_the_place_of_a_deleted_one(30).await;
}

//! Clusters of real processes that are killed, paused and cut off while producers and readers work.

#![allow(
    clippy::unwrap_used,
    unreachable_pub,
    reason = "a test program, which fails by panicking"
)]

#[path = "support/cluster.rs"]
mod harness;
#[path = "support/proxy.rs"]
mod proxy;
mod support;

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::Duration;

use harness::{Cluster, Killed, Load};
use support::{code, run, stderr};
use tidelog_client::{NewTopic, Producer, ProducerConfig, ProducerRecord};

const PARTITIONS: u32 = 3;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaders_are_killed_again_and_again() {
    let mut cluster = Cluster::found(3).await;
    let topic = cluster.create("t", PARTITIONS).await;
    let load = Load::start(&cluster.client(), &topic, PARTITIONS);
    for round in 0..4 {
        load.more(500).await;
        let leader = cluster.leader(&topic, round % PARTITIONS).await;
        cluster.kill(leader);
        load.more_of_each(200).await;
        cluster.start(leader).await;
        cluster.is_well().await;
    }
    assert!(load.check(&cluster, &topic).await >= 4000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_are_killed_at_once_and_a_majority_is_enough() {
    let mut cluster = Cluster::found(3).await;
    let topic = cluster.create("t", PARTITIONS).await;
    let load = Load::start(&cluster.client(), &topic, PARTITIONS);
    load.more(500).await;
    for id in 1..=3 {
        cluster.kill(id);
    }
    // Two of them are enough, and the third comes later.
    for id in [3, 1] {
        cluster.spawn(id);
    }
    load.more(500).await;
    cluster.start(2).await;
    cluster.all_ready().await;
    cluster.is_well().await;
    load.check(&cluster, &topic).await;
}

/// What the operating system has outlives every process.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_write_caching_brokers_that_are_killed_lose_nothing() {
    let mut cluster = Cluster::found(3).await;
    let new = NewTopic {
        partitions: PARTITIONS,
        replication_factor: 3,
        settings: [("write.caching".to_owned(), "true".to_owned())].into(),
        ..NewTopic::default()
    };
    let topic = cluster.create_as("t", new).await;
    let load = Load::start(&cluster.client(), &topic, PARTITIONS);
    for partition in 0..PARTITIONS {
        load.more(500).await;
        let leader = cluster.leader(&topic, partition).await;
        cluster.kill(leader);
        load.more_of_each(200).await;
        cluster.start(leader).await;
    }
    load.more(500).await;
    for id in 1..=3 {
        cluster.kill(id);
    }
    for id in [2, 1] {
        cluster.spawn(id);
    }
    load.more(500).await;
    cluster.start(3).await;
    cluster.all_ready().await;
    cluster.is_well().await;
    load.check(&cluster, &topic).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_majority_nothing_is_acknowledged_and_what_was_is_read() {
    let mut cluster = Cluster::found(3).await;
    let topic = cluster.create("t", 1).await;
    let load = Load::start(&cluster.client(), &topic, 1);
    load.more(200).await;
    let told = load.check(&cluster, &topic).await;
    let leader = cluster.leader(&topic, 0).await;
    let rest: Vec<u32> = (1..=3).filter(|id| *id != leader).collect();
    for id in &rest {
        cluster.kill(*id);
    }
    let config = ProducerConfig {
        delivery_timeout: Duration::from_secs(4),
        ..ProducerConfig::default()
    };
    let producer = Producer::new(cluster.client_of(leader), config);
    let record = ProducerRecord::new(topic.clone()).value("one more");
    let delivery = producer.send(record).await.unwrap();
    delivery.await.expect_err("nobody else has it");
    let described = cluster.client_of(leader).describe_cluster().await.unwrap();
    assert_eq!(described.problem_count, 1, "{described:?}");
    let read = cluster.read(&topic, Some(leader)).await;
    assert_eq!(read.len(), told);
    // It goes on as soon as one of them is back.
    cluster.start(rest[0]).await;
    let load = Load::start(&cluster.client(), &topic, 1);
    load.more(200).await;
    drop(load);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_paused_is_done_without_and_comes_back() {
    let cluster = Cluster::found(3).await;
    let topic = cluster.create("t", PARTITIONS).await;
    let load = Load::start(&cluster.client(), &topic, PARTITIONS);
    for partition in 0..2 {
        load.more(300).await;
        let leader = cluster.leader(&topic, partition).await;
        cluster.pause(leader);
        load.more_of_each(300).await;
        cluster.resume(leader);
        cluster.is_well().await;
    }
    load.check(&cluster, &topic).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_cut_off_is_done_without() {
    let cluster = Cluster::found(3).await;
    let topic = cluster.create("t", PARTITIONS).await;
    let load = Load::start(&cluster.client(), &topic, PARTITIONS);
    load.more(300).await;
    let leader = cluster.leader(&topic, 0).await;
    // Clients still reach it, and it must not acknowledge anything.
    cluster.net.isolate(leader);
    load.more_of_each(300).await;
    cluster.net.heal();
    cluster.is_well().await;
    load.more(300).await;
    load.check(&cluster, &topic).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_heard_and_does_not_hear_is_done_without() {
    let cluster = Cluster::found(3).await;
    let topic = cluster.create("t", PARTITIONS).await;
    let load = Load::start(&cluster.client(), &topic, PARTITIONS);
    load.more(300).await;
    let leader = cluster.leader(&topic, 0).await;
    for other in (1..=3).filter(|id| *id != leader) {
        cluster.net.cut(other, leader);
    }
    load.more_of_each(300).await;
    cluster.net.heal();
    cluster.is_well().await;
    // And the other way round: it hears, and is not heard.
    let leader = cluster.leader(&topic, 0).await;
    for other in (1..=3).filter(|id| *id != leader) {
        cluster.net.cut(leader, other);
    }
    load.more_of_each(300).await;
    cluster.net.heal();
    cluster.is_well().await;
    load.check(&cluster, &topic).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn links_that_come_and_go_lose_nothing() {
    let cluster = Cluster::found(3).await;
    let topic = cluster.create("t", PARTITIONS).await;
    let load = Load::start(&cluster.client(), &topic, PARTITIONS);
    for round in 0..6 {
        load.more(150).await;
        let (a, b) = (1 + round % 3, 1 + (round + 1) % 3);
        cluster.net.cut(a, b);
        cluster.net.cut(b, a);
        load.more(150).await;
        cluster.net.heal();
    }
    cluster.is_well().await;
    load.check(&cluster, &topic).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn brokers_are_restarted_one_after_the_other_and_no_request_fails() {
    let mut cluster = Cluster::found(3).await;
    let topic = cluster.create("t", PARTITIONS).await;
    let load = Load::start(&cluster.client(), &topic, PARTITIONS);
    for id in 1..=3 {
        load.more(300).await;
        cluster.stop(id).await;
        load.more(300).await;
        cluster.start(id).await;
        cluster.is_well().await;
    }
    load.check(&cluster, &topic).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bridge_between_two_halves_keeps_working() {
    let cluster = Cluster::found(5).await;
    let topic = cluster.create("t", PARTITIONS).await;
    let load = Load::start(&cluster.client(), &topic, PARTITIONS);
    load.more(300).await;
    // 1 and 2 do not see 4 and 5; all see 3.
    for a in [1, 2] {
        for b in [4, 5] {
            cluster.net.cut(a, b);
            cluster.net.cut(b, a);
        }
    }
    load.more_of_each(300).await;
    cluster.net.heal();
    cluster.is_well().await;
    load.check(&cluster, &topic).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_joins_under_load_another_is_drained_and_removed() {
    let mut cluster = Cluster::found(3).await;
    let topic = cluster.create("t", PARTITIONS).await;
    let load = Load::start(&cluster.client(), &topic, PARTITIONS);
    load.more(500).await;
    cluster.join(4).await;
    cluster.all_ready().await;
    let admin = cluster.client();
    admin.drain_broker(1).await.unwrap();
    cluster
        .until("nothing is left at the one that is drained", |described| {
            let drained = described.brokers.iter().find(|one| one.node_id == 1);
            drained.is_some_and(|one| one.replicas == 0 && one.leaders == 0)
        })
        .await;
    load.more(300).await;
    admin.remove_broker(1).await.unwrap();
    cluster.kill(1);
    cluster
        .until("it is forgotten", |described| {
            described.brokers.len() == 3 && described.problem_count == 0
        })
        .await;
    load.more(300).await;
    // It is not taken back as it is, and disturbs nobody.
    cluster.spawn(1);
    load.more(1000).await;
    cluster.kill(1);
    load.check(&cluster, &topic).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_disk_is_refused_until_it_is_replaced() {
    let mut cluster = Cluster::found(3).await;
    let topic = cluster.create("t", PARTITIONS).await;
    let load = Load::start(&cluster.client(), &topic, PARTITIONS);
    load.more(500).await;
    cluster.kill(2);
    cluster.wipe(2);
    let said = cluster.refused(2).await;
    let at = said
        .find("--directory ")
        .unwrap_or_else(|| panic!("{said}"));
    assert!(
        said.contains("tidelog cluster replace 2 --directory "),
        "{said}"
    );
    let hex = &said[at + "--directory ".len()..][..32];
    let directory = u128::from_str_radix(hex, 16).unwrap().to_be_bytes();
    cluster
        .until("it is seen to be gone", |described| {
            let gone = described.brokers.iter().find(|one| one.node_id == 2);
            gone.is_some_and(|one| one.state == tidelog_client::proto::BrokerState::Fenced as i32)
        })
        .await;
    cluster.client().replace_broker(2, directory).await.unwrap();
    cluster.start(2).await;
    cluster.is_well().await;
    load.more(300).await;
    // The new replica counts: with another one gone, nothing stops.
    cluster.kill(3);
    load.more(500).await;
    cluster.start(3).await;
    cluster.is_well().await;
    load.check(&cluster, &topic).await;
}

/// Both would speak as the same replicas. Which of the two is right nobody knows, so the one that is heard stays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_on_a_copied_directory_is_refused_and_says_so() {
    let mut cluster = Cluster::found(3).await;
    let topic = cluster.create("t", PARTITIONS).await;
    let load = Load::start(&cluster.client(), &topic, PARTITIONS);
    load.more(500).await;
    cluster.stop(2).await;
    let mut copied = cluster.on_copy(2);
    cluster.start(2).await;
    cluster.is_well().await;
    copied.stdout(Stdio::null()).stderr(Stdio::piped());
    let mut copy = Killed(copied.spawn().unwrap());
    let lines = BufReader::new(copy.0.stderr.take().unwrap()).lines();
    let said = tokio::task::spawn_blocking(move || {
        let is_it = |line: &String| line.contains("a broker does not listen to this one");
        lines.map(|line| line.unwrap()).find(is_it)
    });
    let said = tokio::time::timeout(Duration::from_secs(60), said).await;
    let said = said.expect("it is told within a minute").unwrap().unwrap();
    for part in [
        "ERROR",
        "another process runs as broker 2 with the same data directory",
        "stop one of the two",
    ] {
        assert!(said.contains(part), "{part:?} is not in {said}");
    }
    // The one that was there first is in nobody's way, and nothing is acknowledged by the other.
    load.more_of_each(300).await;
    cluster.is_well().await;
    drop(copy);
    load.check(&cluster, &topic).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_are_told_whom_a_broker_waits_for_that_founds() {
    let mut cluster = Cluster::unfounded(2).await;
    cluster.spawn(1);
    let address = cluster.nodes[&1].grpc.clone();
    let create = async || {
        let env = address.clone();
        let run = move || run(&["topic", "create", "t"], &[("TIDELOG_BROKER", &env)], b"");
        let output = tokio::task::spawn_blocking(run).await.unwrap();
        (code(&output), stderr(&output))
    };
    let (exit, said) = loop {
        let (exit, said) = create().await;
        // Its port is not there yet.
        if !said.contains("no broker can be reached") {
            break (exit, said);
        }
    };
    assert_eq!(exit, 4, "{said}");
    for part in [
        "broker 1 waits for other brokers, without which there is no cluster: 2@127.0.0.1:",
        "(FOUNDING)",
        "start those brokers with the same --peers",
    ] {
        assert!(said.contains(part), "{part:?} is not in {said}");
    }
    cluster.spawn(2);
    cluster.all_ready().await;
    let (exit, said) = create().await;
    assert_eq!(exit, 0, "{said}");
}

/// Whoever is asked passes it on to the broker that decides, and notices that nobody is there: long before the two
/// minutes are over that a change may take.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_is_passed_on_to_a_broker_that_stands_still_ends() {
    let cluster = Cluster::found(3).await;
    let topic = cluster.create("t", 3).await;
    let described = cluster.client().describe_cluster().await.unwrap();
    let decides = described.metadata_leader.unwrap();
    let other = (1..=3).find(|id| *id != decides).unwrap();
    let client = cluster.client_of(other);
    // So that there is a connection between them.
    client
        .delete_topic(&cluster.create("u", 1).await)
        .await
        .unwrap();
    cluster.pause(decides);
    let ended = tokio::time::timeout(Duration::from_secs(60), client.delete_topic(&topic)).await;
    cluster.resume(decides);
    let ended = ended.expect("it waits for a broker that stands still");
    if let Err(error) = ended {
        assert!(error.to_string().contains("not known"), "{error}");
    }
    cluster.is_well().await;
}

/// What a stuck change leaves behind is taken back, and the partition goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_to_a_broker_that_is_away_is_cancelled() {
    let mut cluster = Cluster::found(4).await;
    let topic = cluster.create("t", 1).await;
    let load = Load::start(&cluster.client(), &topic, 1);
    load.more(200).await;
    let admin = cluster.client();
    let place = admin.list_partitions(Some(&topic)).await.unwrap().remove(0);
    let spare = (1..=4).find(|id| !place.replicas.contains(id)).unwrap();
    cluster.kill(spare);
    let mut nodes = place.replicas.clone();
    nodes[2] = spare;
    let partition = tidelog_client::PartitionId::new(0);
    admin
        .reassign_partition(&topic, partition, &nodes)
        .await
        .unwrap();
    load.more(300).await;
    admin.cancel_reassignment(&topic, partition).await.unwrap();
    let is_over = async {
        loop {
            let places = admin.list_partitions(Some(&topic)).await.unwrap();
            if places[0].reassignment == 0 && places[0].replicas == place.replicas {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), is_over)
        .await
        .expect("the change is over within a minute");
    cluster.start(spare).await;
    cluster.is_well().await;
    load.more(200).await;
    load.check(&cluster, &topic).await;
}

//! Brokers are lost for good, and a majority with them: `tidelog cluster recover --accept-loss`.

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

use cluster::{Cluster, Load};
use serde_json::Value;
use support::{code, run, stderr};
use tidelog_client::{NewTopic, TopicName};

/// Runs the command against one broker; gives its exit code, and what it prints as JSON.
async fn recover(cluster: &Cluster, at: u32, args: &[&str]) -> (i32, Value, String) {
    let address = cluster.nodes[&at].grpc.clone();
    let args: Vec<String> = ["cluster", "recover", "-o", "json"]
        .iter()
        .chain(args)
        .map(|arg| (*arg).to_owned())
        .collect();
    let output = tokio::task::spawn_blocking(move || {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        run(&args, &[("TIDELOG_BROKER", &address)], b"")
    });
    let output = output.await.unwrap();
    let json = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    (code(&output), json, stderr(&output))
}

/// Waits until a broker sees that these are gone.
async fn seen_gone(cluster: &Cluster, gone: &[u32]) {
    let alive = tidelog_client::proto::BrokerState::Alive as i32;
    cluster
        .until("the others are seen to be gone", |described| {
            let mut brokers = described.brokers.iter();
            brokers.all(|one| !gone.contains(&one.node_id) || one.state != alive)
        })
        .await;
}

/// Waits until so many brokers are left, and each partition has a leader.
async fn all_led(cluster: &Cluster, brokers: usize) {
    let leaderless = tidelog_client::proto::ProblemKind::Leaderless as i32;
    cluster
        .until("each is led", |described| {
            described.brokers.len() == brokers
                && described.problems.iter().all(|one| one.kind != leaderless)
        })
        .await;
}

async fn goes_on(cluster: &Cluster, topic: &TopicName, partitions: u32, records: u64) -> Load {
    let load = Load::start(&cluster.client(), topic, partitions);
    load.more(records).await;
    load
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_three_goes_on_alone_and_new_ones_take_the_places_of_the_lost() {
    let mut cluster = Cluster::found(3).await;
    let topic = cluster.create("t", 4).await;
    let load = goes_on(&cluster, &topic, 4, 500).await;
    let single = NewTopic {
        assignment: vec![vec![1], vec![2], vec![3]],
        ..NewTopic::default()
    };
    let single = cluster.create_as("single", single).await;
    drop(goes_on(&cluster, &single, 3, 100).await);
    cluster.is_well().await;
    let (exit, _, said) = recover(&cluster, 1, &["--accept-loss", "--yes"]).await;
    assert_eq!(exit, 3, "nothing is lost: {said}");
    assert!(said.contains("RECOVERY_REFUSED"), "{said}");
    let before = load.check(&cluster, &topic).await;
    for id in [2, 3] {
        cluster.kill(id);
        cluster.wipe(id);
    }
    seen_gone(&cluster, &[2, 3]).await;

    // It says what is lost, and changes nothing.
    let (exit, plan, said) = recover(&cluster, 1, &[]).await;
    assert_eq!(exit, 0, "{said}");
    assert_eq!(plan["lost"], serde_json::json!([2, 3]));
    assert_eq!(
        (&plan["metadata_keeper"], &plan["done"]),
        (&1.into(), &false.into())
    );
    assert_eq!(plan["partition_count"], 6);
    let partitions = plan["partitions"].as_array().unwrap().iter();
    let of_t = partitions.filter(|one| one["topic"] == "t");
    let kept: u64 = of_t.map(|one| one["end_offset"].as_u64().unwrap()).sum();
    assert_eq!(kept, before as u64);
    let described = cluster.client().describe_cluster().await.unwrap();
    assert_eq!((described.brokers.len(), described.problem_count), (3, 6));
    // Who is given up has to be named, or confirmed.
    let (exit, _, said) = recover(&cluster, 1, &["--accept-loss"]).await;
    assert!(exit == 2 && said.contains("--lost 2,3"), "{said}");
    cluster
        .until_at(1, "nobody leads the metadata", |described| {
            described.metadata_leader.is_none()
        })
        .await;
    let broker = [("TIDELOG_BROKER", cluster.nodes[&1].grpc.as_str())];
    let said = stderr(&run(&["cluster", "status"], &broker, b""));
    assert!(said.contains("tidelog cluster recover"), "{said}");
    let (exit, _, said) = recover(&cluster, 1, &["--lost", "2"]).await;
    assert_eq!(exit, 3, "broker 3 does not answer either: {said}");
    let (exit, _, said) = recover(&cluster, 1, &["--lost", "1,2,3", "--accept-loss"]).await;
    assert_eq!(exit, 3, "broker 1 answers: {said}");

    let (exit, done, said) = recover(&cluster, 1, &["--lost", "2,3", "--accept-loss"]).await;
    assert_eq!((exit, &done["done"]), (0, &true.into()), "{said}");
    all_led(&cluster, 1).await;
    assert_eq!(cluster.read(&topic, None).await.len(), before);
    drop(goes_on(&cluster, &topic, 4, 300).await);
    // Of two of its partitions nothing was left: they begin anew, and work.
    drop(goes_on(&cluster, &single, 3, 300).await);
    // Those who are named were given up before: nobody else is for that.
    let (exit, again, said) = recover(&cluster, 1, &["--lost", "2,3", "--accept-loss"]).await;
    assert_eq!(exit, 3, "{again} {said}");

    // One of those that were lost does not come back as if nothing had been.
    let said = cluster.refused(2).await;
    assert!(said.contains("--join"), "{said}");
    for id in [4, 5] {
        cluster.join(id).await;
    }
    // They get what was lost by themselves.
    cluster.is_well().await;
    let places = cluster
        .client()
        .list_partitions(Some(&topic))
        .await
        .unwrap();
    assert!(
        places.iter().all(|one| one.in_sync.len() == 3),
        "{places:?}"
    );
    // They vote by now, also on the metadata: without the one that was left all goes on.
    cluster
        .until("the metadata are decided by three", |described| {
            described.metadata_voters.len() == 3
        })
        .await;
    let fresh = cluster.create("fresh", 2).await;
    let load = goes_on(&cluster, &fresh, 2, 200).await;
    cluster.kill(1);
    load.more(300).await;
    cluster.start(1).await;
    cluster.is_well().await;
    load.check(&cluster, &fresh).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_five_two_are_lost_and_only_what_needs_it_goes_on_without_them() {
    let mut cluster = Cluster::found(5).await;
    let topic = cluster.create("t", 5).await;
    let load = goes_on(&cluster, &topic, 5, 500).await;
    let told = load.check(&cluster, &topic).await;
    cluster.is_well().await;
    let before = cluster
        .client()
        .list_partitions(Some(&topic))
        .await
        .unwrap();
    for id in [4, 5] {
        cluster.kill(id);
    }
    seen_gone(&cluster, &[4, 5]).await;
    let (exit, done, said) = recover(&cluster, 2, &["--accept-loss", "--yes"]).await;
    assert_eq!((exit, &done["done"]), (0, &true.into()), "{said}");
    assert_eq!(
        done["metadata_keeper"],
        Value::Null,
        "three of five are there"
    );
    let is_stuck = |place: &&tidelog_client::proto::PartitionPlace| {
        place.replicas.iter().filter(|id| **id > 3).count() > 1
    };
    let stuck = before.iter().filter(is_stuck).count();
    assert_eq!(done["partition_count"], stuck);
    all_led(&cluster, 3).await;
    assert_eq!(cluster.read(&topic, None).await.len(), told);
    drop(goes_on(&cluster, &topic, 5, 300).await);
}

/// They were not lost after all. Both sides go on, and neither hears the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn those_who_were_given_up_and_come_back_change_nothing() {
    let mut cluster = Cluster::found(3).await;
    let topic = cluster.create("t", 2).await;
    let load = goes_on(&cluster, &topic, 2, 300).await;
    load.check(&cluster, &topic).await;
    cluster.is_well().await;
    for id in [1, 2] {
        cluster.kill(id);
    }
    seen_gone(&cluster, &[1, 2]).await;
    let (exit, _, said) = recover(&cluster, 3, &["--accept-loss", "--yes"]).await;
    assert_eq!(exit, 0, "{said}");
    let left = cluster.client_of(3);
    let load = Load::start(&left, &topic, 2);
    load.more(300).await;
    for id in [1, 2] {
        cluster.spawn(id);
    }
    // Those two are a majority of the cluster that they know, with all it had.
    cluster
        .until_at(1, "the two go on by themselves", |described| {
            described.metadata_leader.is_some() && described.brokers.len() == 3
        })
        .await;
    load.more(500).await;
    cluster
        .until_at(
            3,
            "the one that was left knows of itself only",
            |described| described.brokers.len() == 1,
        )
        .await;
    for id in [1, 2] {
        cluster.kill(id);
    }
    cluster.nodes.retain(|id, _| *id == 3);
    // What was written after is there once, in order, and nothing else is.
    let ends = load.end().await;
    let read = cluster.read(&topic, None).await;
    for told in &ends {
        assert!(read.contains(told), "{told:?}");
    }
    assert_eq!(
        cluster
            .client_of(3)
            .describe_cluster()
            .await
            .unwrap()
            .brokers
            .len(),
        1
    );
}

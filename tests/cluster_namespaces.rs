//! Clusters of real processes, each in a network namespace of its own, whose packets are lost on the way.
//!
//! Where proxies cut connections, the kernel's own goes on: it tries again, waits longer and longer, and tells
//! of nothing. Clients are at a bridge between the brokers.

#![allow(
    clippy::unwrap_used,
    unreachable_pub,
    reason = "a test program, which fails by panicking"
)]
#![cfg(target_os = "linux")]

#[path = "support/disk.rs"]
mod disk;
#[path = "support/cluster.rs"]
mod harness;
#[path = "support/proxy.rs"]
mod proxy;
mod support;

use std::process::Command;

use harness::{Cluster, Host, Load};

const PARTITIONS: u32 = 3;
const BROKERS: u32 = 3;
/// Says that the test runs in namespaces of its own.
const INSIDE: &str = "TIDELOG_TEST_INSIDE";

/// Whether this runs in namespaces that nobody else sees: of the network, of mounts, for the names of further
/// ones, and of processes. If not, runs the test once more in such. The system removes all that is made in
/// there when it ends, however it ends.
fn is_inside(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let inside = |script: &str| {
        let mut command = Command::new("unshare");
        command
            .args(["--user", "--map-root-user", "--net", "--mount", "--pid"])
            .args(["--fork", "--kill-child", "--mount-proc", "sh", "-c"])
            .arg(format!("mount -t tmpfs tidelog-test /run && {script}"))
            .arg("sh");
        command
    };
    let probe = "ip netns add a && ip link add type bridge && ip link add type veth";
    let may = inside(probe).output();
    if !may.is_ok_and(|output| output.status.success()) {
        disk::skip("this process may not make network namespaces with unshare and ip");
        return false;
    }
    let status = inside("exec \"$@\"")
        .arg(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture"])
        .env(INSIDE, "1")
        .status();
    assert!(status.unwrap().success(), "it failed in its namespaces");
    false
}

#[track_caller]
fn ip(args: &str) {
    let output = Command::new("ip").args(args.split(' ')).output().unwrap();
    let said = support::stderr(&output);
    assert!(output.status.success(), "ip {args}: {said}");
}

/// A bridge, and a namespace for each broker that is joined to it.
fn hosts() -> Vec<Host> {
    ip("link set lo up");
    ip("link add bridge type bridge");
    ip("addr add 10.0.0.254/24 dev bridge");
    ip("link set bridge up");
    let host = |id| {
        ip(&format!("netns add broker-{id}"));
        ip(&format!(
            "link add to-{id} type veth peer name eth0 netns broker-{id}"
        ));
        ip(&format!("link set to-{id} master bridge up"));
        ip(&format!("-n broker-{id} addr add 10.0.0.{id}/24 dev eth0"));
        ip(&format!("-n broker-{id} link set eth0 up"));
        let within = format!("ip netns exec broker-{id}");
        Host {
            ip: format!("10.0.0.{id}"),
            within: within.split(' ').map(str::to_owned).collect(),
        }
    };
    (1..=BROKERS).map(host).collect()
}

/// Has what one broker sends to another lost, or not any more.
fn lose(from: u32, to: u32, is_lost: bool) {
    let change = if is_lost { "add" } else { "del" };
    ip(&format!(
        "-n broker-{from} route {change} blackhole 10.0.0.{to}"
    ));
}

async fn under_load() -> (Cluster, tidelog_client::TopicName, Load) {
    let mut cluster = Cluster::on(&hosts());
    cluster.start_all().await;
    let topic = cluster.create("t", PARTITIONS).await;
    let load = Load::start(&cluster.client(), &topic, PARTITIONS);
    load.more_of_each(200).await;
    (cluster, topic, load)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whose_cable_is_pulled_is_done_without() {
    if !is_inside("a_leader_whose_cable_is_pulled_is_done_without") {
        return;
    }
    let (cluster, topic, load) = under_load().await;
    for partition in 0..2 {
        let leader = cluster.leader(&topic, partition).await;
        ip(&format!("link set to-{leader} down"));
        load.more_of_each(300).await;
        ip(&format!("link set to-{leader} up"));
        cluster.is_well().await;
        load.more_of_each(200).await;
    }
    load.check(&cluster, &topic).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whose_packets_are_lost_one_way_is_done_without() {
    if !is_inside("a_leader_whose_packets_are_lost_one_way_is_done_without") {
        return;
    }
    let (cluster, topic, load) = under_load().await;
    for is_heard in [false, true] {
        let leader = cluster.leader(&topic, 0).await;
        // Clients reach it all the time.
        let change = |is_lost| {
            for other in (1..=BROKERS).filter(|id| *id != leader) {
                match is_heard {
                    false => lose(leader, other, is_lost),
                    true => lose(other, leader, is_lost),
                }
            }
        };
        change(true);
        load.more_of_each(300).await;
        change(false);
        cluster.is_well().await;
        load.more_of_each(200).await;
    }
    load.check(&cluster, &topic).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn links_whose_packets_are_lost_in_turn_lose_nothing() {
    if !is_inside("links_whose_packets_are_lost_in_turn_lose_nothing") {
        return;
    }
    let (cluster, topic, load) = under_load().await;
    for round in 0..6 {
        let (from, to) = (1 + round % BROKERS, 1 + (round + 1) % BROKERS);
        lose(from, to, true);
        load.more_of_each(2000).await;
        lose(from, to, false);
        load.more_of_each(2000).await;
    }
    cluster.is_well().await;
    load.check(&cluster, &topic).await;
}

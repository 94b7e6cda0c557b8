//! Tests of the cluster's metadata.

mod decisions;
mod golden;
mod local;
mod metadata;
mod model;
mod placement;
mod planner;
mod properties;
mod recovery;

use tidelog_record::TopicId;

use crate::*;

const ID: ClusterId = ClusterId::from_bytes(*b"cluster-of-tests");

fn registration(node: NodeId) -> Registration {
    Registration {
        node,
        directory: directory(node, 0),
        grpc_address: format!("node{node}:9400"),
        http_address: format!("node{node}:9401"),
        cluster_address: format!("node{node}:9402"),
        rack: None,
        version: "1.0.0".to_owned(),
        level_min: 0,
        level_max: 2,
    }
}

/// The `n`th disk of a node.
fn directory(node: NodeId, n: u32) -> DirectoryId {
    let bytes = (u128::from(node) << 64) + u128::from(n);
    DirectoryId::from_bytes(bytes.to_be_bytes())
}

fn topic_id(n: u8) -> TopicId {
    TopicId::from_bytes([n; 16])
}

fn new_topic(name: &str, partitions: u32) -> NewTopic {
    NewTopic {
        name: name.to_owned(),
        partitions,
        ..NewTopic::default()
    }
}

/// What is decided has to fit, and to be the same after it went through the log.
fn commit(cluster: &mut Cluster, command: ClusterCommand) {
    let read = ClusterCommand::decode(&command.encode()).unwrap();
    assert_eq!(read, command);
    cluster.apply(&read).unwrap();
}

/// A cluster of nodes 1 to `nodes`, in these racks if any.
fn cluster(nodes: u32, racks: &[&str]) -> Cluster {
    let mut cluster = Cluster::default();
    let found = cluster.decide_found(ID).unwrap();
    commit(&mut cluster, found);
    for node in 1..=nodes {
        let rack = racks.get(node as usize - 1).map(|rack| rack.to_string());
        let registration = Registration {
            rack,
            ..registration(node)
        };
        let register = cluster.decide_register(ID, registration).unwrap();
        commit(&mut cluster, register);
    }
    cluster
}

fn fence(cluster: &mut Cluster, node: NodeId, is_fenced: bool) {
    let epoch = cluster.broker(node).unwrap().epoch;
    commit(
        cluster,
        ClusterCommand::SetFenced {
            node,
            epoch,
            is_fenced,
        },
    );
}

/// A topic on these nodes.
fn create(cluster: &mut Cluster, name: &str, n: u8, assignment: &[&[NodeId]]) {
    let replication = Replication {
        assignment: assignment.iter().map(|nodes| nodes.to_vec()).collect(),
        factor: None,
    };
    let new = new_topic(name, 0);
    let create = cluster.decide_create_topic(&new, &replication, topic_id(n));
    commit(cluster, create.unwrap());
}

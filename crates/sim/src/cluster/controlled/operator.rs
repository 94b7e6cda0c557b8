//! Whoever runs the cluster: topics are created and deleted, replicas moved, brokers drained, removed, wiped,
//! replaced, and join.

use tidelog_controller::{
    Cluster as Folded, ClusterCommand, NewTopic, NodeId, Registration, ReplicaId, Replication,
    Seen, life_of, node_of,
};
use tidelog_record::TopicId;

use super::broker::{Job, Seat};
use super::{METADATA, NAMES, TOPICS_MAX, cluster_id, directory, name_of, registration};
use crate::cluster::Cluster;
use crate::cluster::events::Event;

/// What is asked of whoever leads the metadata log.
#[derive(Clone, Debug)]
pub(in crate::cluster) enum Request {
    Create {
        number: u8,
        partitions: u32,
        factor: u32,
    },
    Add {
        topic: String,
        total: u32,
    },
    Delete {
        topic: String,
    },
    Reassign {
        topic: String,
        partition: u32,
        nodes: Vec<NodeId>,
    },
    MoveAway {
        topic: String,
        partition: u32,
        node: NodeId,
    },
    Cancel {
        topic: String,
        partition: u32,
    },
    SetLeader {
        topic: String,
        partition: u32,
        node: NodeId,
    },
    Drain(NodeId),
    Undrain(NodeId),
    Remove(NodeId),
    Replace {
        node: NodeId,
        disk: u32,
    },
    Join(Registration),
}

impl Request {
    /// What is to be written for it, unless it is refused.
    pub(super) fn decide(
        &self,
        cluster: &Folded,
        metadata: Option<&Seen>,
    ) -> Option<ClusterCommand> {
        match self {
            Self::Create {
                number,
                partitions,
                factor,
            } => {
                let new = NewTopic {
                    name: name_of(*number),
                    partitions: *partitions,
                    ..NewTopic::default()
                };
                let replication = Replication {
                    factor: Some(*factor),
                    ..Replication::default()
                };
                let id = TopicId::from_bytes([*number; 16]);
                let created = cluster.decide_create_topic(&new, &replication, id);
                created
                    .ok()
                    .filter(|_| cluster.topics().by_id(id).is_none())
            }
            Self::Add { topic, total } => cluster.decide_add_partitions(topic, *total, &[]).ok(),
            Self::Delete { topic } => {
                let deleted = cluster.topics().decide_delete(topic);
                deleted.ok().map(ClusterCommand::Topics)
            }
            Self::Reassign {
                topic,
                partition,
                nodes,
            } => cluster.decide_reassign(topic, *partition, nodes).ok(),
            Self::MoveAway {
                topic,
                partition,
                node,
            } => cluster.decide_move_away(topic, *partition, *node).ok(),
            Self::Cancel { topic, partition } => cluster.decide_cancel(topic, *partition).ok(),
            Self::SetLeader {
                topic,
                partition,
                node,
            } => cluster.decide_set_leader(topic, *partition, *node).ok(),
            Self::Drain(node) => cluster.decide_drain(*node).ok(),
            Self::Undrain(node) => cluster.decide_undrain(*node).ok(),
            Self::Remove(node) => cluster.decide_remove_heard(*node, metadata?).ok(),
            Self::Replace { node, disk } => {
                cluster.decide_replace(*node, directory(*node, *disk)).ok()
            }
            Self::Join(registration) => {
                let decided = cluster.decide_registration(cluster_id(), registration.clone(), 0);
                decided.ok().flatten()
            }
        }
    }
}

/// Within so long what was asked for is decided, or never.
const DECIDED_MILLIS_MAX: u64 = 12_000;
/// Topics have so many partitions at most.
const PARTITIONS_MAX: u64 = 2;

impl Cluster {
    /// One request, or one more thing that happens to a disk, and when the next one comes.
    pub(in crate::cluster) fn operate(&mut self) {
        if !self.is_stormy {
            return;
        }
        let next = self.now + 100 + self.rng.below(1500);
        self.events.at(next, Event::Operate);
        let node = self.any_node();
        let topics = self.reference().topics().iter().count();
        let request = match self.rng.below(100) {
            _ if topics == 0 => self.create_topic(),
            0..8 => self.create_topic(),
            8..12 => self.of_partition(|topic, _, _| Request::Add {
                topic,
                total: u32::try_from(PARTITIONS_MAX).expect("few"),
            }),
            12..14 => self.of_partition(|topic, _, _| Request::Delete { topic }),
            14..40 => self.reassign(),
            40..46 => self.of_partition(|topic, partition, _| Request::Cancel { topic, partition }),
            46..56 => self.of_partition(|topic, partition, node| Request::SetLeader {
                topic,
                partition,
                node,
            }),
            56..62 => self.of_partition(|topic, partition, node| Request::MoveAway {
                topic,
                partition,
                node,
            }),
            62..70 => Some(Request::Drain(node)),
            70..78 => Some(Request::Undrain(node)),
            78..85 => self.remove(node),
            85..94 => {
                self.wipe();
                None
            }
            _ => {
                self.retire_broker();
                None
            }
        };
        if let Some(request) = request {
            self.ask(request);
        }
    }

    fn any_node(&mut self) -> NodeId {
        1 + u32::try_from(self.rng.index(self.nodes.len())).expect("few")
    }

    /// Sends a request to whoever leads the metadata log; with none, or one that does not hear it, it is lost.
    fn ask(&mut self, request: Request) {
        if let Some(to) = self.leader(METADATA)
            && !self.rng.chance(self.loss)
        {
            let time = self.now + self.delay();
            let request = Box::new(request);
            self.events.at(time, Event::Ask { to, request });
        }
    }

    pub(in crate::cluster) fn take_request(&mut self, to: NodeId, request: Request) {
        if let Some(broker) = self.node_mut(to).broker_mut() {
            broker.jobs.push_back(Job::Asked(request));
        }
    }

    fn create_topic(&mut self) -> Option<Request> {
        let taken = self.reference().topics();
        let is_free = |name: u8| taken.get(&name_of(name)).is_err();
        let name = (0..NAMES).find(|name| is_free(*name))?;
        let partitions = 1 + u32::try_from(self.rng.below(PARTITIONS_MAX)).expect("few");
        let is_mixed = self.controlled.as_ref().is_some_and(|it| it.is_mixed);
        let factor = if is_mixed {
            1 + u32::try_from(self.rng.below(3)).expect("few")
        } else {
            3
        };
        let controlled = self.controlled.as_mut()?;
        // The next number that gives this name; ids never come back.
        let mut number = controlled.last_topic + 1;
        while number % NAMES != name {
            number += 1;
        }
        if number > TOPICS_MAX {
            return None;
        }
        controlled.last_topic = number;
        Some(Request::Create {
            number,
            partitions,
            factor,
        })
    }

    fn of_partition(
        &mut self,
        request: impl FnOnce(String, u32, NodeId) -> Request,
    ) -> Option<Request> {
        let at = usize::try_from(self.rng.below(1 << 20)).expect("small");
        let reference = self.reference();
        let all: Vec<_> = reference.placements().collect();
        if all.is_empty() {
            return None;
        }
        let (key, placement) = all[at % all.len()];
        let topic = reference.topics().by_id(key.topic)?;
        let replica = placement.replicas[at % placement.replicas.len()];
        Some(request(
            topic.name.to_string(),
            key.partition,
            node_of(replica),
        ))
    }

    fn reassign(&mut self) -> Option<Request> {
        let count = match self.rng.below(10) {
            0 => 1,
            1 | 2 => 2,
            3 => 4,
            _ => 3,
        };
        let mut nodes: Vec<NodeId> = Vec::new();
        while nodes.len() < count {
            let node = self.any_node();
            if !nodes.contains(&node) {
                nodes.push(node);
            }
        }
        self.of_partition(|topic, partition, _| Request::Reassign {
            topic,
            partition,
            nodes,
        })
    }

    /// Who removes a broker that votes on the metadata while others have just been lost, and before that is
    /// known, takes it the majority: so that is not done, nor is a disk lost soon after.
    fn remove(&mut self, node: NodeId) -> Option<Request> {
        let ids = self.reference().brokers();
        let ids: Vec<NodeId> = ids.map(|broker| broker.registration.node).collect();
        if ids.into_iter().any(|id| self.node(id).is_out) {
            return None;
        }
        let until = self.now + DECIDED_MILLIS_MAX;
        self.controlled.as_mut()?.no_loss_until = until;
        Some(Request::Remove(node))
    }

    /// A node loses its disk, if all is on a majority of others, and gets another one.
    fn wipe(&mut self) {
        // What has one replica, or two, would be lost with it.
        let now = self.now;
        let controlled = self.controlled.as_ref();
        if controlled.is_none_or(|it| it.is_mixed || now < it.no_loss_until) {
            return;
        }
        let first = self.rng.index(self.nodes.len());
        let mut ids: Vec<NodeId> = self.nodes.iter().map(|node| node.id).collect();
        ids.rotate_left(first);
        let can = |id: &NodeId| {
            let is_known = self.reference().broker(*id).is_some();
            is_known && !self.node(*id).is_out && self.can_lose(*id)
        };
        let Some(id) = ids.into_iter().find(can) else {
            return;
        };
        // What is decided meanwhile may count on it still.
        if let Some(controlled) = &mut self.controlled {
            controlled.no_loss_until = now + DECIDED_MILLIS_MAX;
        }
        self.stats.wiped += 1;
        self.stop_for_good(id);
        self.enter_later(id);
    }

    /// A broker that was removed is stopped, and may join again on an empty disk.
    fn retire_broker(&mut self) {
        let mut ids = self.nodes.iter().map(|node| node.id);
        let can = |id: &NodeId| {
            let is_removed = self.reference().was_removed(*id);
            is_removed && !self.node(*id).is_out && self.can_lose(*id)
        };
        let Some(id) = ids.find(can) else { return };
        self.stats.retired += 1;
        self.stop_for_good(id);
        if self.rng.chance(70) {
            self.enter_later(id);
        }
    }

    fn enter_later(&mut self, id: NodeId) {
        let time = self.now + self.rng.below(5000);
        self.events.at(time, Event::Enter { node: id });
    }

    /// A process ends, and with it the disk.
    fn stop_for_good(&mut self, id: NodeId) {
        self.forget_process(id);
        let mut rng = self.rng.fork();
        let node = &mut self.nodes[id as usize - 1];
        node.stop(true);
        let seat = node.seat.as_ref().expect("it had a disk");
        let seat = Seat {
            disk: seat.disk + 1,
            ..seat.clone()
        };
        node.sit(seat, false, &mut rng);
        for partition in &mut self.partitions {
            partition.replicas.retain(|replica| node_of(*replica) != id);
        }
    }

    /// A node on an empty disk asks how it stands, and is let in, or asks for that.
    pub(in crate::cluster) fn enter(&mut self, id: NodeId) {
        let node = self.node(id);
        if !node.is_out {
            return;
        }
        let again = self.now + 300 + self.rng.below(1000);
        self.events.at(again, Event::Enter { node: id });
        let disk = self.node(id).disk_number();
        let own = directory(id, disk);
        let other = self.any_node();
        let Some(broker) = self.node(other).broker() else {
            return;
        };
        if !self.node(other).is_running() || self.cuts.contains(&(other, id)) {
            return;
        }
        match broker.cluster.broker(id) {
            Some(known) if known.registration.directory == own => {
                let generation = known.generation;
                let mut rng = self.rng.fork();
                let node = &mut self.nodes[id as usize - 1];
                let seat = node.seat.as_ref().expect("it has a disk");
                let seat = Seat {
                    generation,
                    ..seat.clone()
                };
                node.seat = Some(seat);
                node.is_out = false;
                node.make_space();
                assert!(node.start_broker(&mut rng), "nothing fails on a new disk");
                self.stats.entered += 1;
                let partition = &mut self.partitions[self.numbers[&METADATA]];
                let replica = tidelog_replica::replica_of(id, generation);
                partition.replicas.insert(replica);
                self.note_made(id, METADATA, replica);
                self.with(id, |_| {});
            }
            Some(_) => self.ask(Request::Replace { node: id, disk }),
            None => self.ask(Request::Join(registration(id, disk))),
        }
    }

    /// Whether all is on a majority without the disk of this node, whatever is being changed.
    fn can_lose(&self, id: NodeId) -> bool {
        let reference = self.reference();
        let all_up = self.nodes.iter().all(|node| node.is_up() || node.is_out);
        // Those of a lower life were on disks that are lost.
        let is_kept = |replica: &ReplicaId| {
            let node = self.node(node_of(*replica));
            let generation = node.seat.as_ref().map_or(0, |seat| seat.generation);
            // Nobody listens any more to one that was removed, though its replica may vote still.
            let is_heard = !node.is_out && !reference.was_removed(node.id);
            node.id != id && is_heard && life_of(*replica) >= generation
        };
        let is_enough = |voters: &[ReplicaId]| {
            let kept = voters.iter().filter(|replica| is_kept(replica));
            voters.is_empty() || kept.count() * 2 > voters.len()
        };
        let groups = self.nodes.iter().filter_map(|node| node.shard());
        let mut groups = groups.flat_map(|shard| shard.keys().filter_map(|key| shard.group(key)));
        let in_groups = groups.all(|group| {
            let state = &group.members().state;
            let is_changing = group.log().has_uncommitted_change();
            !is_changing && is_enough(&state.voters) && is_enough(&state.voters_outgoing)
        });
        let placed = reference.placements().all(|(_, placement)| {
            let target = placement.change.as_ref().map(|change| &change.target);
            is_enough(&placement.replicas) && target.is_none_or(|target| is_enough(target))
        });
        // A broker that is lost counts as there until it is fenced, which takes a leader: one at a time.
        let all_there = reference.brokers().all(|broker| {
            let node = self.node(broker.registration.node);
            let own = directory(node.id, node.disk_number());
            !node.is_out && broker.registration.directory == own
        });
        all_up && all_there && in_groups && placed && self.is_all_decided()
    }

    /// Whether nothing is being decided, which may yet count on a disk that is lost meanwhile.
    fn is_all_decided(&self) -> bool {
        let length = self.partitions[self.numbers[&METADATA]].checks.length();
        self.nodes.iter().all(|node| {
            let log = node.shard().and_then(|shard| shard.log(METADATA));
            let is_committed = log.is_none_or(|log| log.end_index().get() <= length + 1);
            let broker = node.broker();
            is_committed && broker.is_none_or(|it| it.jobs.is_empty() && !it.is_deciding())
        })
    }
}

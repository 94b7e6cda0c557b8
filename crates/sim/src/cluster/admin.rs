//! What else is asked for: reads of what is committed, new log starts, rolls; and who waits for what.

use tidelog_record::{Offset, RaftIndex};
use tidelog_replica::{Done, NodeId, Proposal, Refusal, ReplicaId, Until};

use super::Cluster;
use super::clients::{BatchId, Reply, Request};
use super::events::Event;
use super::members::Partition;

/// What somebody waits for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Asked {
    /// What a broker asks the metadata group for, to decide.
    Decided,
    Batch {
        producer: usize,
        batch: BatchId,
    },
    /// Up to where the log is committed; `floor` was when this was asked.
    ReadIndex {
        floor: u64,
    },
    /// That the log starts here.
    LogStart {
        to: Offset,
    },
}

/// Somebody who waits for a node.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ticket {
    pub(super) node: NodeId,
    asked: Asked,
}

impl Cluster {
    pub(super) fn ticket(&mut self, node: NodeId, asked: Asked) -> u64 {
        self.last_ticket += 1;
        self.tickets
            .insert(self.last_ticket, Ticket { node, asked });
        self.last_ticket
    }

    /// A producer's batches have come to a node.
    pub(super) fn propose(&mut self, to: NodeId, request: Request) {
        let Request {
            producer,
            until,
            batches,
        } = request;
        let key = self.key_for(producer);
        let proposals: Vec<_> = batches
            .into_iter()
            .map(|(id, batch)| Proposal {
                batch,
                until,
                term: None,
                waiter: self.ticket(
                    to,
                    Asked::Batch {
                        producer,
                        batch: id,
                    },
                ),
            })
            .collect();
        if let Some(shard) = self.node_mut(to).shard_mut() {
            for proposal in proposals {
                shard.propose(key, proposal);
            }
        }
    }

    /// A node answers.
    pub(super) fn answered(&mut self, node: NodeId, ticket: u64, result: Result<Done, Refusal>) {
        let known = self.tickets.remove(&ticket);
        let Ticket { asked, node: of } = known.expect("everybody is answered once, who waits");
        assert_eq!(of, node, "everybody is answered by whom was asked");
        match asked {
            Asked::Decided => self.decided(node, &result),
            Asked::Batch { producer, batch } => {
                if let Ok(Done::Stored {
                    base_offset,
                    is_duplicate,
                    ..
                }) = &result
                {
                    self.stats.duplicates += u64::from(*is_duplicate);
                    let of_it = &self.producers[producer];
                    if of_it.until() == Until::Received {
                        let key = self.partitions[of_it.partition].key;
                        let log = self.node(node).shard().and_then(|shard| shard.log(key));
                        let committed = log.map(|log| log.reader().committed_offset());
                        let is_early = committed.is_some_and(|end| end <= *base_offset);
                        self.stats.early += u64::from(is_early);
                    }
                    self.producers[producer].told(batch, *base_offset);
                }
                let reply = Reply::new(batch, &result);
                if !self.rng.chance(self.answers_lost) {
                    let delay = self.delay();
                    let event = Event::Answer { producer, reply };
                    self.events.at(self.now + delay, event);
                }
            }
            Asked::ReadIndex { floor } => {
                if let Ok(done) = result {
                    let Done::ReadIndex(index) = done else {
                        panic!("asked for a read index and told {done:?}");
                    };
                    self.stats.reads += 1;
                    assert!(
                        index >= floor,
                        "a read is told of {index}, and {floor} was committed when it asked"
                    );
                }
            }
            Asked::LogStart { to } => {
                if let Ok(done) = result {
                    let is_there = matches!(done, Done::LogStart(start) if start >= to);
                    assert!(is_there, "asked for log start {to} and told {done:?}");
                    self.stats.starts += 1;
                }
            }
        }
    }

    /// One thing that somebody asks for, and when the next one comes.
    pub(super) fn administer(&mut self) {
        if !self.is_stormy {
            return;
        }
        let next = self.now + 20 + self.rng.below(400);
        self.events.at(next, Event::Admin);
        let number = self.rng.index(self.partitions.len());
        let key = self.partitions[number].key;
        let leaders: Vec<NodeId> = self
            .nodes
            .iter()
            .filter(|node| node.is_running())
            .filter(|node| {
                let group = node.shard().and_then(|shard| shard.group(key));
                group.is_some_and(|group| group.role().is_leader)
            })
            .map(|node| node.id)
            .collect();
        if leaders.is_empty() {
            return;
        }
        // More than one may take itself for the leader.
        let node = leaders[self.rng.index(leaders.len())];
        match self.rng.below(10) {
            0..7 => self.read(number, node),
            7 => self.trim(number, node),
            _ => {
                let now = self.time();
                let node = 1 + u32::try_from(self.rng.index(self.nodes.len())).expect("few");
                self.with(node, |node| {
                    if let Some(shard) = node.shard_mut() {
                        // Where there is no space for another segment, the old one goes on.
                        shard.with(key, |group| group.roll_if_aged(now, 1000).ok());
                    }
                });
            }
        }
    }

    /// Asks a node how far a partition's log is committed.
    pub(super) fn read(&mut self, number: usize, node: NodeId) {
        let Partition { key, checks, .. } = &self.partitions[number];
        let (key, floor) = (*key, checks.length());
        if !self.node(node).is_running() {
            return;
        }
        let ticket = self.ticket(node, Asked::ReadIndex { floor });
        self.with(node, |node| {
            if let Some(shard) = node.shard_mut() {
                shard.read_index(key, ticket);
            }
        });
    }

    /// Asks for a new log start: sometimes for one that every replica has got to, as the leader knows, and
    /// sometimes for one at the end, so that whoever lacks entries that are gone has to copy files.
    fn trim(&mut self, number: usize, leader: NodeId) {
        let leaves_behind = self.rng.chance(30);
        let partition = &self.partitions[number];
        let key = partition.key;
        let group = self.node(leader).shard().and_then(|shard| shard.group(key));
        let known_of = |id: &ReplicaId| group?.known_of(*id).map(RaftIndex::get);
        let known: Option<Vec<u64>> = partition.replicas.iter().map(known_of).collect();
        let index = known.and_then(|known| known.into_iter().min());
        let commit = group.map(|group| group.log().commit().get());
        let index = if leaves_behind { commit } else { index };
        let to = index.and_then(|index| partition.checks.batch_at(index));
        let Some(to) = to.filter(|_| partition.trims) else {
            return;
        };
        let ticket = self.ticket(leader, Asked::LogStart { to });
        self.with(leader, |node| {
            if let Some(shard) = node.shard_mut() {
                shard.set_log_start(key, to, ticket);
            }
        });
    }
}

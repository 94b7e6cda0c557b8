//! A few brokers' shards beside each other, with a network that a test may bend.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tidelog_disk::Disk;
use tidelog_log::state::{DirectoryIdentity, GroupKey, GroupState, StateFile};
use tidelog_log::{Log, LogIdentity, LogOptions};
use tidelog_record::{
    BatchBuilder, BatchLimits, Compression, PartitionId, ProducedBatch, RaftIndex, Timestamp,
    TopicId, validate_produced,
};
use tidelog_replica::catch_up::{CatchUpLetter, Copies, LogsOf, PullConfig};
use tidelog_replica::{
    Done, Effects, Group, GroupConfig, Members, NodeId, Proposal, Received, Refusal, Shard,
    StateStore, Until, node_of, replica_of,
};
use tidelog_sim::{SimDisk, SimRng};

pub(crate) const TICK: u64 = 50;

/// What is on its way.
#[derive(Debug)]
pub(crate) enum Post {
    Raft(NodeId, Box<Received>),
    Files(CatchUpLetter),
}

pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) disk: SimDisk,
    pub(crate) shard: Shard<u64>,
    pub(crate) copies: Copies,
    state: Arc<StateFile>,
    /// Logs that ask for a sync, as long as its disk does none.
    pub(crate) unsynced: Option<Vec<GroupKey>>,
    pub(crate) is_up: bool,
    /// Whether its disk is to fail, and something has failed by that.
    pub(crate) may_fail: bool,
    pub(crate) has_failed: bool,
    pub(crate) answers: Vec<(u64, Result<Done, Refusal>)>,
}

pub(crate) struct Nodes {
    pub(crate) nodes: Vec<Node>,
    pub(crate) now: u64,
    pub(crate) post: VecDeque<Post>,
    /// Of 100 letters so many are lost.
    pub(crate) loss: u64,
    /// Of an older version: it neither asks for receipts nor gives any.
    pub(crate) older: Option<NodeId>,
    /// Nobody hears it, and it hears nobody.
    pub(crate) cut_off: Option<NodeId>,
    pub(crate) rng: SimRng,
}

pub(crate) fn key(partition: u32) -> GroupKey {
    GroupKey {
        topic_id: TopicId::from_bytes([9; 16]),
        partition: PartitionId::new(partition),
    }
}

fn dir(key: GroupKey) -> PathBuf {
    PathBuf::from(format!("/data/topic-{}", key.partition.get()))
}

fn state_dir() -> PathBuf {
    PathBuf::from("/data/state")
}

fn identity(key: GroupKey) -> LogIdentity {
    LogIdentity {
        cluster_id: [7; 16],
        topic_id: key.topic_id,
        partition: key.partition,
        incarnation: 1,
    }
}

pub(crate) fn options() -> LogOptions {
    LogOptions {
        segment_bytes: 20_000,
        index_interval_bytes: 500,
        ..LogOptions::default()
    }
}

fn config(id: u64) -> GroupConfig {
    GroupConfig {
        id,
        message_bytes_max: 4000,
        messages_in_flight_max: 8,
        uncommitted_bytes_max: 20_000,
        seed: id,
        ..GroupConfig::default()
    }
}

pub(crate) fn batch(value: &str) -> ProducedBatch {
    batch_of(value, 1)
}

pub(crate) fn batch_of(value: &str, records: usize) -> ProducedBatch {
    let mut builder = BatchBuilder::new(Compression::None);
    let now = Timestamp::from_millis(0);
    for _ in 0..records {
        builder
            .push(now, None, Some(value.as_bytes()), &[])
            .unwrap();
    }
    let built = builder.build().unwrap();
    validate_produced(built, &BatchLimits::default()).unwrap()
}

impl Node {
    fn create(id: NodeId, voters: &[NodeId], partitions: u32) -> Self {
        let disk = SimDisk::new(u64::from(id));
        let shared: Arc<dyn Disk> = Arc::new(disk.clone());
        disk.create_dir_all(&state_dir()).unwrap();
        for dir in ["/", "/data"] {
            disk.sync_dir(Path::new(dir)).unwrap();
        }
        let owner = DirectoryIdentity {
            cluster_id: [7; 16],
            node_id: id,
            directory_id: [u8::try_from(id).unwrap(); 16],
        };
        let state = Arc::new(StateFile::create(shared.clone(), &state_dir(), owner).unwrap());
        let mut node = Self {
            id,
            copies: Copies::new(shared.clone(), PullConfig::default()),
            disk,
            shard: Shard::default(),
            state,
            unsynced: None,
            is_up: true,
            may_fail: false,
            has_failed: false,
            answers: Vec::new(),
        };
        let voters = voters.iter().map(|node| replica_of(*node, 0)).collect();
        let members = Members::founded_by(voters);
        for partition in 0..partitions {
            let key = key(partition);
            let now = Timestamp::from_millis(0);
            let disk = shared.clone();
            let log = Log::create_replica(disk, &dir(key), identity(key), options(), now).unwrap();
            let known = GroupState {
                incarnation: 1,
                replica_id: replica_of(id, 0),
                term: 5,
                vote: 0,
                commit: 5,
                checkpoint: None,
            };
            node.add(key, log, known, members.clone());
        }
        node
    }

    fn add(&mut self, key: GroupKey, log: Log, known: GroupState, members: Members) {
        let mut store = StateStore::new(self.state.clone(), key);
        let group = Group::open(config(known.replica_id), log, known, members).unwrap();
        self.state.record(&store.records_of(&group), true).unwrap();
        self.shard.add(key, known.incarnation, group, store);
    }

    /// Takes a replica out, to be added again.
    pub(crate) fn take(&mut self, key: GroupKey) -> (Group, StateStore) {
        let group = self.shard.remove(key).unwrap();
        let mut store = StateStore::new(self.state.clone(), key);
        let _recorded = store.records_of(&group);
        (group, store)
    }

    /// The process ends, or the power goes.
    pub(crate) fn stop(&mut self, loses_power: bool) {
        self.is_up = false;
        self.shard = Shard::default();
        if loses_power {
            self.disk.crash();
        } else {
            self.disk.kill();
        }
        self.copies = Copies::new(Arc::new(self.disk.clone()), PullConfig::default());
    }

    /// As a broker starts.
    pub(crate) fn start(&mut self, partitions: u32) {
        self.disk.stop_failing();
        (self.may_fail, self.has_failed) = (false, false);
        let shared: Arc<dyn Disk> = Arc::new(self.disk.clone());
        self.state = Arc::new(StateFile::open(shared.clone(), &state_dir()).unwrap());
        for partition in 0..partitions {
            let key = key(partition);
            let mut store = StateStore::new(self.state.clone(), key);
            store
                .recover_swap(&*shared, &dir(key), identity(key))
                .unwrap();
            let (known, members) = store.load().unwrap();
            let (end, commit) = (known.checkpoint, RaftIndex::new(known.commit));
            let disk = shared.clone();
            let opened = Log::open_replica(disk, &dir(key), identity(key), options(), end, commit);
            let (log, _) = opened.unwrap();
            self.add(key, log, known, members);
        }
        self.is_up = true;
    }

    /// Takes turns until nothing is left to be done without the others; all syncs are at once.
    fn turns(&mut self, now: u64, post: &mut VecDeque<Post>) {
        let time = Timestamp::from_millis(i64::try_from(now).unwrap());
        while self.shard.has_work() {
            let effects: Effects<u64> = self.shard.turn(time);
            for (node, mail) in effects.posts {
                post.extend(mail.files.into_iter().map(Post::Files));
                for letter in mail.raft {
                    assert_eq!(node, node_of(letter.message.to));
                    post.push_back(Post::Raft(node, Box::new(letter.into())));
                }
            }
            if !effects.state_to_sync.is_empty() {
                match self.state.sync() {
                    Ok(()) => self.shard.state_synced(&effects.state_to_sync),
                    Err(poisoned) => self.shard.state_failed(&poisoned),
                }
            }
            for answer in effects.answers {
                self.answers.push((answer.waiter, answer.result));
            }
            let to_sync = match &mut self.unsynced {
                Some(unsynced) => {
                    unsynced.extend(effects.logs_to_sync);
                    Vec::new()
                }
                None => effects.logs_to_sync,
            };
            for key in to_sync {
                self.sync(key);
            }
            self.has_failed |= !effects.failed.is_empty();
            assert!(self.may_fail || !self.has_failed, "{:?}", effects.failed);
        }
    }

    /// Its disk does what it was asked for, and goes on.
    pub(crate) fn sync_all(&mut self) {
        for key in self.unsynced.take().unwrap_or_default() {
            self.sync(key);
        }
    }

    fn sync(&mut self, key: GroupKey) {
        if let Some(log) = self.shard.log(key)
            && let Ok(end) = log.sync_handle().sync()
        {
            let recorded = StateStore::new(self.state.clone(), key).checkpoint(end);
            self.has_failed |= recorded.is_err();
        }
        self.shard.log_synced(key);
    }

    fn with_copies(
        &mut self,
        post: &mut VecDeque<Post>,
        act: impl FnOnce(&mut Copies, &mut LogsOf<'_, u64>) -> Vec<CatchUpLetter>,
    ) {
        let disk: Arc<dyn Disk> = Arc::new(self.disk.clone());
        let shard = &mut self.shard;
        let letters = act(&mut self.copies, &mut LogsOf { shard, disk });
        post.extend(letters.into_iter().map(Post::Files));
    }
}

impl Nodes {
    pub(crate) fn new(count: NodeId, partitions: u32, seed: u64) -> Self {
        let voters: Vec<NodeId> = (1..=count).collect();
        let nodes = voters
            .iter()
            .map(|id| Node::create(*id, &voters, partitions));
        Self {
            nodes: nodes.collect(),
            now: 0,
            post: VecDeque::new(),
            loss: 0,
            older: None,
            cut_off: None,
            rng: SimRng::new(seed),
        }
    }

    pub(crate) fn node(&mut self, id: NodeId) -> &mut Node {
        &mut self.nodes[id as usize - 1]
    }

    /// Everything that is on its way arrives, or is lost, and what comes of it.
    pub(crate) fn settle(&mut self) {
        let now = self.now;
        for node in self.nodes.iter_mut().filter(|node| node.is_up) {
            node.turns(now, &mut self.post);
        }
        // What is sent while this is delivered is delivered after it.
        for _ in 0..10_000 {
            let Some(post) = self.post.pop_front() else {
                return;
            };
            if self.rng.chance(self.loss) {
                continue;
            }
            let (from, to) = match &post {
                Post::Raft(to, received) => (node_of(received.message.from), *to),
                Post::Files(letter) => (node_of(letter.from), node_of(letter.to)),
            };
            if [from, to].map(Some).contains(&self.cut_off) {
                continue;
            }
            let node = &mut self.nodes[to as usize - 1];
            if !node.is_up {
                continue;
            }
            match post {
                Post::Raft(_, mut received) => {
                    received.receipt &= ![from, to].map(Some).contains(&self.older);
                    let time = Timestamp::from_millis(i64::try_from(now).unwrap());
                    // One that is late is refused.
                    node.shard.receive(*received, time).ok();
                }
                Post::Files(letter) => {
                    node.with_copies(&mut self.post, |copies, logs| {
                        copies.take(letter, logs, now)
                    });
                }
            }
            node.turns(now, &mut self.post);
        }
        panic!("it does not come to an end");
    }

    pub(crate) fn tick(&mut self) {
        self.now += TICK;
        for node in self.nodes.iter_mut().filter(|node| node.is_up) {
            node.shard.tick();
            let now = self.now;
            node.with_copies(&mut self.post, |copies, logs| copies.tick(logs, now));
        }
        self.settle();
    }

    /// Lets time pass until it is so.
    pub(crate) fn until(&mut self, what: &str, is_so: impl Fn(&Self) -> bool) {
        for _ in 0..4000 {
            if is_so(self) {
                return;
            }
            self.tick();
        }
        panic!("it never came to be that {what}");
    }

    pub(crate) fn leader(&self, key: GroupKey) -> Option<NodeId> {
        let up = self.nodes.iter().filter(|node| node.is_up);
        let leaders = up.filter_map(|node| {
            let group = node.shard.group(key)?;
            group.is_ready().then(|| (group.role().term, node.id))
        });
        leaders.max().map(|(_, id)| id)
    }

    pub(crate) fn commit(&self, id: NodeId, key: GroupKey) -> u64 {
        let log = self.nodes[id as usize - 1].shard.log(key);
        log.map_or(0, |log| log.commit().get())
    }

    /// Appends a batch at the leader; gives its ticket.
    pub(crate) fn append(&mut self, key: GroupKey, value: &str, ticket: u64) {
        let leader = self.leader(key).unwrap();
        self.append_at(leader, key, value, ticket);
    }

    /// The same at this node, whoever leads.
    pub(crate) fn append_at(&mut self, id: NodeId, key: GroupKey, value: &str, ticket: u64) {
        self.append_until(id, key, value, Until::Committed, ticket);
    }

    pub(crate) fn append_until(
        &mut self,
        id: NodeId,
        key: GroupKey,
        value: &str,
        until: Until,
        ticket: u64,
    ) {
        let proposal = Proposal {
            batch: batch(value),
            until,
            term: None,
            waiter: ticket,
        };
        self.node(id).shard.propose(key, proposal);
        self.settle();
    }
}

//! What a run does, and what it was like.

use tidelog_controller::Planted as PlantedController;
use tidelog_replica::Planted;

/// What a run does.
#[derive(Clone, Copy, Debug)]
pub struct ClusterOptions {
    /// How many replicas each partition has at first, each on a node of its own.
    pub replicas: u32,
    /// How many partitions.
    pub partitions: u32,
    /// How many producers, all partitions together.
    pub producers: usize,
    /// How long faults happen, in simulated milliseconds.
    pub millis: u64,
    /// Whether producers wait only until a majority has written a batch. Then no power is lost and no disk fails: what
    /// they are told must be as true as what is told of durable ones, as long as every disk has what was written.
    pub is_cached: bool,
    /// What is wrong with the replicas, to see that it is found.
    pub planted: Option<Planted>,
    /// Whether the nodes decide for themselves which topics there are and who has what.
    pub is_controlled: bool,
    /// What is wrong with how they do.
    pub planted_controller: Option<PlantedController>,
}

impl ClusterOptions {
    /// One replica, three or five of two or three partitions, as the seed says.
    pub fn of_seed(seed: u64) -> Self {
        Self {
            replicas: match seed % 4 {
                0 | 2 => 3,
                1 => 5,
                _ => 1,
            },
            partitions: if seed.is_multiple_of(3) { 3 } else { 2 },
            ..Self::default()
        }
    }

    /// As [`Self::of_seed`], with producers that wait for no sync.
    pub fn cached(seed: u64) -> Self {
        Self {
            is_cached: true,
            ..Self::of_seed(seed)
        }
    }

    /// Three founders or five, as the seed says, and two more nodes, that decide for themselves.
    pub fn controlled(seed: u64) -> Self {
        Self {
            replicas: if seed % 4 == 1 { 5 } else { 3 },
            is_controlled: true,
            ..Self::default()
        }
    }
}

impl Default for ClusterOptions {
    fn default() -> Self {
        Self {
            replicas: 3,
            partitions: 2,
            producers: 5,
            millis: 60_000,
            is_cached: false,
            planted: None,
            is_controlled: false,
            planted_controller: None,
        }
    }
}

/// What a run was like: a run in which nothing happened proves nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClusterStats {
    /// Simulated milliseconds, until everything was well again.
    pub millis: u64,
    /// Batches that were acknowledged.
    pub acknowledged: u64,
    /// Those that were, before the leader knew of a commit.
    pub early: u64,
    /// Batches that were sent again.
    pub retried: u64,
    /// Those that turned out to be there already.
    pub duplicates: u64,
    /// Leaderships.
    pub terms: u64,
    /// Times a node was started again.
    pub restarts: u64,
    /// Changes of members that were committed.
    pub changes: u64,
    /// Times entries that were not committed were taken back.
    pub truncations: u64,
    /// Frames delivered.
    pub frames: u64,
    /// Those that had letters of more than one group.
    pub shared: u64,
    /// Letters that were refused: damaged, late, or of entries there was no space for.
    pub refused: u64,
    /// Times a replica waited for space, and got it.
    pub stalls: u64,
    /// Log starts that were raised.
    pub starts: u64,
    /// Logs whose place the files of others have taken.
    pub copies: u64,
    /// Reads that were told how far the log is committed.
    pub reads: u64,
    /// Commands of metadata logs.
    pub commands: u64,
    /// Those of them that somebody asked for.
    pub asked: u64,
    /// Orders to the leaders of partitions.
    pub orders: u64,
    /// Replicas that brokers made, as was decided.
    pub made: u64,
    /// Those that they removed.
    pub removed: u64,
    /// Disks that were lost.
    pub wiped: u64,
    /// Brokers that were removed and stopped.
    pub retired: u64,
    /// Nodes that came into a cluster on an empty disk.
    pub entered: u64,
    /// Snapshots of the metadata that were written.
    pub snapshots: u64,
    /// Times that a broker went on with one, as it lacked what was before.
    pub leaps: u64,
}

impl ClusterStats {
    /// Adds those of another run.
    pub fn add(&mut self, other: &Self) {
        let Self {
            millis,
            acknowledged,
            early,
            retried,
            duplicates,
            terms,
            restarts,
            changes,
            truncations,
            frames,
            shared,
            refused,
            stalls,
            starts,
            copies,
            reads,
            commands,
            asked,
            orders,
            made,
            removed,
            wiped,
            retired,
            entered,
            snapshots,
            leaps,
        } = other;
        self.millis += millis;
        self.acknowledged += acknowledged;
        self.early += early;
        self.retried += retried;
        self.duplicates += duplicates;
        self.terms += terms;
        self.restarts += restarts;
        self.changes += changes;
        self.truncations += truncations;
        self.frames += frames;
        self.shared += shared;
        self.refused += refused;
        self.stalls += stalls;
        self.starts += starts;
        self.copies += copies;
        self.reads += reads;
        self.commands += commands;
        self.asked += asked;
        self.orders += orders;
        self.made += made;
        self.removed += removed;
        self.wiped += wiped;
        self.retired += retired;
        self.entered += entered;
        self.snapshots += snapshots;
        self.leaps += leaps;
    }
}

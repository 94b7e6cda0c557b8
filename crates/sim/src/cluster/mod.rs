//! A whole cluster in one thread, from one seed: replicas of a partition on simulated disks, a network
//! that loses, repeats, delays, reorders and damages, clients that retry, and checks of what they were promised.
//!
//! Time is a number that jumps to the next event (`events.rs`), so a minute of it takes a few
//! milliseconds. A replica (`replica.rs`) is the code that a broker runs: the group, the log, recovery;
//! here are only its surroundings. Faults (`faults.rs`) are drawn from the seed: power loss, kills,
//! pauses, cuts of the network one way or both, syncs that take long or fail. Clients (`clients.rs`)
//! send idempotent batches, one after the other, again and again until they are acknowledged. All
//! along and at the end (`checks.rs`) it is asked whether
//! - replicas agree on every committed entry, byte by byte;
//! - a term has one leader;
//! - every acknowledged record is committed at the offset that was told;
//! - nothing is there twice, and each producer's records are in order;
//! - once the faults end, everything is acknowledged.

mod checks;
mod clients;
mod events;
mod faults;
mod members;
mod replica;

use std::collections::{BTreeMap, BTreeSet};

use tidelog_record::Timestamp;
use tidelog_replica::eraftpb::ConfState;
use tidelog_replica::{Members, Planted};

use self::checks::Checks;
use self::clients::Clients;
use self::events::{Event, Events};
use self::replica::Replica;
use crate::SimRng;

/// What a run does.
#[derive(Clone, Copy, Debug)]
pub struct ClusterOptions {
    /// How many replicas.
    pub replicas: u64,
    /// How many producers.
    pub producers: u64,
    /// How long faults happen, in simulated milliseconds.
    pub millis: u64,
    /// What is wrong with the replicas, to see that it is found.
    pub planted: Option<Planted>,
}

impl ClusterOptions {
    /// One replica, three or five, as the seed says.
    pub fn of_seed(seed: u64) -> Self {
        Self {
            replicas: match seed % 4 {
                0 | 2 => 3,
                1 => 5,
                _ => 1,
            },
            ..Self::default()
        }
    }
}

impl Default for ClusterOptions {
    fn default() -> Self {
        Self {
            replicas: 3,
            producers: 3,
            millis: 60_000,
            planted: None,
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
    /// Batches that were sent again.
    pub retried: u64,
    /// Those that turned out to be there already.
    pub duplicates: u64,
    /// Leaderships.
    pub terms: u64,
    /// Times a replica was started again.
    pub restarts: u64,
    /// Changes of members that were committed.
    pub changes: u64,
    /// Times entries that were not committed were taken back.
    pub truncations: u64,
    /// Messages delivered.
    pub messages: u64,
    /// Those that were refused because their batches were damaged.
    pub refused: u64,
}

impl ClusterStats {
    /// Adds those of another run.
    pub fn add(&mut self, other: &Self) {
        self.millis += other.millis;
        self.acknowledged += other.acknowledged;
        self.retried += other.retried;
        self.duplicates += other.duplicates;
        self.terms += other.terms;
        self.restarts += other.restarts;
        self.truncations += other.truncations;
        self.changes += other.changes;
        self.messages += other.messages;
        self.refused += other.refused;
    }
}

/// Runs a cluster.
///
/// # Panics
/// When a check fails: that is what it is for.
pub fn run_cluster(seed: u64, options: ClusterOptions) -> ClusterStats {
    let mut cluster = Cluster::new(seed, options);
    cluster.run()
}

pub(crate) struct Cluster {
    options: ClusterOptions,
    rng: SimRng,
    now: u64,
    events: Events,
    replicas: BTreeMap<u64, Replica>,
    /// Who is in the group, by the newest change that was committed.
    members: Members,
    /// Who ever was, or was to be: none of them is added again.
    ever_members: BTreeSet<u64>,
    /// Who was in it before the newest change, and may be still.
    left: BTreeSet<u64>,
    clients: Clients,
    checks: Checks,
    /// Pairs that do not hear each other: from, to.
    cuts: Vec<(u64, u64)>,
    /// Of 100 messages so many are lost now.
    loss: u64,
    /// Whether faults may happen.
    is_stormy: bool,
    stats: ClusterStats,
}

/// How often replicas are told of time.
const TICK_MILLIS: u64 = 50;

impl Cluster {
    fn new(seed: u64, options: ClusterOptions) -> Self {
        let mut rng = SimRng::new(seed);
        let voters: Vec<u64> = (1..=options.replicas).collect();
        let members = Members {
            state: ConfState::from((voters.clone(), Vec::new())),
            index: 0,
        };
        let ever_members = voters.iter().copied().collect();
        let replicas = voters
            .iter()
            .map(|id| {
                (
                    *id,
                    Replica::create(*id, &voters, options.planted, &mut rng),
                )
            })
            .collect();
        let mut events = Events::default();
        for id in voters {
            events.at(rng.below(TICK_MILLIS), Event::Tick { id });
        }
        for producer in 0..options.producers {
            events.at(rng.below(500), Event::Send { producer, plan: 0 });
        }
        events.at(rng.below(2000), Event::Fault);
        Self {
            clients: Clients::new(options.producers),
            options,
            rng,
            now: 0,
            events,
            replicas,
            members,
            ever_members,
            left: BTreeSet::new(),
            checks: Checks::default(),
            cuts: Vec::new(),
            loss: 0,
            is_stormy: true,
            stats: ClusterStats::default(),
        }
    }

    fn run(&mut self) -> ClusterStats {
        self.run_until(self.options.millis, |_| false);
        self.calm();
        // Elections, and batches that wait for their time to be sent again.
        let deadline = self.now + 120_000;
        self.clients.stop();
        let is_well = |cluster: &Self| cluster.clients.is_done() && cluster.is_caught_up();
        self.run_until(deadline, is_well);
        assert!(
            is_well(self),
            "two minutes after the last fault the cluster is not well: {:?}, {}",
            self.replicas.values().collect::<Vec<_>>(),
            self.clients.waiting(),
        );
        self.check_end();
        self.stats.millis = self.now;
        self.stats
    }

    fn run_until(&mut self, deadline: u64, is_done: impl Fn(&Self) -> bool) {
        while !is_done(self)
            && let Some((at, event)) = self.events.next_before(deadline)
        {
            self.now = at;
            self.handle(event);
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Tick { id } => {
                if !self.replicas.contains_key(&id) {
                    return;
                }
                self.events.at(self.now + TICK_MILLIS, Event::Tick { id });
                self.with(id, |replica, _| replica.tick());
            }
            Event::Deliver { from, to, letter } => {
                self.stats.messages += 1;
                if !self.is_cut(from, to) {
                    let now = self.time();
                    let mut is_refused = false;
                    self.with(to, |replica, _| is_refused = replica.step(&letter, now));
                    self.stats.refused += u64::from(is_refused);
                }
            }
            Event::LogSync { id, life } => {
                self.with(id, |replica, _| replica.sync_log(life));
            }
            Event::StateSync { id, life, recorded } => {
                self.with(id, |replica, _| replica.sync_state(life, recorded));
            }
            Event::Restart { id } => self.restart(id),
            Event::Resume { id } => self.resume(id),
            Event::Heal { cuts } => self.cuts.retain(|cut| !cuts.contains(cut)),
            Event::Fault => self.fault(),
            Event::Send { producer, plan } => self.send(producer, plan),
        }
    }

    fn time(&self) -> Timestamp {
        Timestamp::from_millis(i64::try_from(self.now).expect("a simulation is short"))
    }

    /// Does something to a replica that runs, and then what comes of it.
    fn with(&mut self, id: u64, act: impl FnOnce(&mut Replica, &mut SimRng)) {
        let now = self.time();
        let Some(replica) = self.replicas.get_mut(&id).filter(|r| r.is_running()) else {
            return;
        };
        act(replica, &mut self.rng);
        let Some(outcome) = replica.turn(now) else {
            self.stop(id);
            return;
        };
        let life = replica.life();
        if outcome.is_log_dirty {
            let took = self.sync_millis();
            self.events.at(self.now + took, Event::LogSync { id, life });
        }
        if let Some(recorded) = outcome.state_to_sync {
            let took = self.sync_millis();
            let event = Event::StateSync { id, life, recorded };
            self.events.at(self.now + took, event);
        }
        for letter in outcome.letters {
            self.post(id, letter);
        }
        self.stats.truncations += outcome.truncations;
        let replica = &self.replicas[&id];
        self.checks.committed(replica);
        if let Some(role) = outcome.role {
            self.stats.terms += self.checks.role(id, role);
        }
        if let Some(members) = outcome.members {
            self.members_changed(members);
        }
        self.answer(id);
    }

    fn post(&mut self, from: u64, letter: events::Letter) {
        let to = letter.message.to;
        if self.rng.chance(self.loss) {
            return;
        }
        let copies = 1 + u64::from(self.is_stormy && self.rng.chance(2));
        for _ in 0..copies {
            let delay = match self.rng.below(100) {
                0..80 => self.rng.below(3),
                80..99 => self.rng.below(30),
                _ => self.rng.below(1000),
            };
            let mut letter = letter.clone();
            if self.is_stormy && self.rng.chance(1) {
                letter.damage(&mut self.rng);
            }
            let letter = Box::new(letter);
            self.events
                .at(self.now + delay, Event::Deliver { from, to, letter });
        }
    }

    fn sync_millis(&mut self) -> u64 {
        match self.rng.below(100) {
            0..70 => self.rng.below(2),
            70..98 => self.rng.below(20),
            _ => self.rng.below(1500),
        }
    }

    fn is_cut(&self, from: u64, to: u64) -> bool {
        self.cuts.contains(&(from, to))
    }

    fn is_caught_up(&self) -> bool {
        let length = self.checks.length();
        self.replicas
            .iter()
            .filter(|(id, _)| self.is_member(**id))
            .all(|(_, replica)| replica.is_running() && replica.committed() == length)
    }

    fn check_end(&mut self) {
        for replica in self.replicas.values().filter(|r| r.is_up()) {
            self.checks.all_of(replica);
        }
        for (id, replica) in self.replicas.iter().filter(|(id, _)| self.is_member(**id)) {
            let known = replica.members().map(sorted);
            let members = Some(sorted(&self.members));
            assert_eq!(known, members, "the members, as replica {id} knows them");
        }
        self.checks.batches(&self.clients);
        self.stats.acknowledged = self.clients.acknowledged();
    }
}

/// The members in an order that Raft does not keep.
fn sorted(members: &Members) -> Members {
    let mut members = members.clone();
    let state = &mut members.state;
    for ids in [
        &mut state.voters,
        &mut state.learners,
        &mut state.voters_outgoing,
        &mut state.learners_next,
    ] {
        ids.sort_unstable();
    }
    members
}

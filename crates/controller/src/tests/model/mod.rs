//! A small cluster under the planner: groups whose members follow its actions some time later or never,
//! brokers that die, pause, return and lose disks, leaders of the metadata group that are replaced in the
//! middle of a plan, and people who move, drain, cancel and delete. Then everything is left alone, and
//! has to end up as it was decided.

mod world;

use std::collections::BTreeMap;

use super::*;
use world::{Random, World};

const SESSION_MS: u64 = 9_000;
const STEP_MS: u64 = 250;

/// The leader of the metadata group.
struct Controller {
    cluster: Cluster,
    observed: Observed,
    log: Vec<Vec<u8>>,
    /// Folding may start here.
    start: usize,
    /// Transfers asked for since everything was left alone, by partition.
    transfers: BTreeMap<PartitionKey, u32>,
}

impl Controller {
    fn commit(&mut self, command: &ClusterCommand) {
        self.log.push(command.encode());
        self.cluster
            .apply(command)
            .expect("it was decided on this state");
    }

    /// Another broker leads the metadata group now: it folds the log, and has seen nothing.
    fn restart(&mut self, now: u64) {
        let mut cluster = Cluster::default();
        for bytes in &self.log[self.start..] {
            cluster
                .apply(&ClusterCommand::decode(bytes).unwrap())
                .unwrap();
        }
        assert_eq!(cluster, self.cluster);
        self.observed = Observed {
            since_ms: now,
            ..Observed::default()
        };
    }

    fn snapshot(&mut self) {
        self.start = self.log.len();
        for part in self.cluster.snapshot_in(200) {
            self.commit(&part);
        }
    }

    /// Plans, and does the first `steps_max` of it.
    fn turn(&mut self, world: &mut World, steps_max: usize) {
        let now = world.now;
        let options = PlanOptions {
            session_ms: SESSION_MS,
            reassignments_max: 3,
            transfers_max: 2,
            transfer_wait_ms: 2_000,
            #[cfg(feature = "planted")]
            planted: None,
        };
        let steps = plan(&self.cluster, &self.observed, &options, now);
        assert_eq!(steps, plan(&self.cluster, &self.observed, &options, now));
        let is_transfer = |step: &&Step| {
            let Step::Act(order) = step else {
                return false;
            };
            matches!(order.action, Action::TransferLeadership(_))
        };
        assert!(steps.iter().filter(is_transfer).count() <= 2);
        for step in steps.into_iter().take(steps_max) {
            match step {
                Step::Commit(command) => {
                    let is_fenced = matches!(
                        command,
                        ClusterCommand::SetFenced {
                            is_fenced: true,
                            ..
                        }
                    );
                    assert!(!is_fenced || now > self.observed.since_ms + SESSION_MS);
                    self.commit(&command);
                }
                Step::Act(order) if self.is_harmful(&order.action) => {
                    panic!("{order:?} takes away a majority")
                }
                Step::Act(order) => {
                    let Order {
                        key,
                        leader,
                        epoch,
                        members_index,
                        action,
                    } = order;
                    if let Action::TransferLeadership(_) = action {
                        self.observed.transfers_asked.insert(key, now);
                        *self.transfers.entry(key).or_default() += 1;
                    }
                    world.send(key, (leader, epoch, members_index), action);
                }
            }
        }
    }

    fn is_harmful(&self, action: &Action) -> bool {
        let is_live = |replica: &ReplicaId| {
            let broker = self.cluster.broker(node_of(*replica)).unwrap();
            !broker.is_fenced && life_of(*replica) >= broker.generation
        };
        match action {
            Action::EnterJoint(voters) => {
                2 * voters.iter().filter(|r| is_live(r)).count() <= voters.len()
            }
            Action::TransferLeadership(to) => !is_live(to),
            _ => false,
        }
    }

    /// Somebody asks for something.
    ///
    /// Partitions are not made on disks that are gone: they would never be.
    fn request(&mut self, random: &mut Random, n: u32, can_make: bool) {
        let cluster = &self.cluster;
        let names: Vec<String> = cluster
            .topics()
            .iter()
            .map(|t| t.name.to_string())
            .collect();
        let name = random.of(&names).cloned().unwrap_or_default();
        let partition = random.below(3);
        let node = 1 + random.below(6);
        let draining = cluster
            .brokers()
            .filter(|broker| broker.is_draining)
            .count();
        let command = match random.below(16) {
            0 if names.len() < 5 && can_make => {
                let new = new_topic(&format!("topic{n}"), 1 + random.below(3));
                let replication = Replication {
                    factor: Some(1 + random.below(3)),
                    ..Replication::default()
                };
                let id = TopicId::from_bytes(u128::from(n).to_be_bytes());
                cluster.decide_create_topic(&new, &replication, id).ok()
            }
            1 if names.len() > 2 => {
                let delete = cluster.topics().decide_delete(&name);
                delete.ok().map(ClusterCommand::from)
            }
            2 if can_make => cluster
                .decide_add_partitions(&name, 1 + random.below(4), &[])
                .ok(),
            3 if draining < 2 => cluster.decide_drain(node).ok(),
            4 => cluster.decide_undrain(node).ok(),
            5 => cluster.decide_set_leader(&name, partition, node).ok(),
            6 => cluster.decide_move_away(&name, partition, node).ok(),
            7..10 => cluster.decide_cancel(&name, partition).ok(),
            10..15 => {
                let count = 1 + random.below(4) as usize;
                let mut nodes: Vec<NodeId> = (1..=6).collect();
                random.shuffle(&mut nodes);
                cluster
                    .decide_reassign(&name, partition, &nodes[..count])
                    .ok()
            }
            _ => None,
        };
        if let Some(command) = command {
            self.commit(&command);
        }
    }
}

/// Everything that happens with this seed.
fn run(seed: u64) {
    let mut random = Random::new(seed);
    let mut world = World::new(seed);
    let mut controller = Controller {
        cluster: cluster(6, &["a", "b", "c"]),
        observed: Observed::default(),
        log: Vec::new(),
        start: 0,
        transfers: BTreeMap::new(),
    };
    // What the helper has committed is in no log.
    controller.snapshot();
    let chaos_ms = 60_000 + u64::from(random.below(120_000));
    let mut n = 0;
    while world.now < chaos_ms {
        world.now += STEP_MS;
        n += 1;
        world.turn(&controller.cluster, &mut controller.observed);
        if random.one_in(8) {
            controller.request(&mut random, n, !world.is_any_wiped());
        }
        if random.one_in(30) {
            world.disturb(&controller.cluster);
        }
        for command in world.returning(&controller.cluster) {
            controller.commit(&command);
        }
        match random.below(100) {
            0 => controller.restart(world.now),
            1 => {
                let some = random.below(3) as usize;
                controller.turn(&mut world, some);
                controller.restart(world.now);
            }
            2 => controller.snapshot(),
            3..60 => controller.turn(&mut world, usize::MAX),
            _ => {}
        }
        let is_planned = random.one_in(10);
        if is_planned && world.now > controller.observed.since_ms + SESSION_MS {
            controller.turn(&mut world, usize::MAX);
            world.check_fenced(&controller.cluster, SESSION_MS);
        }
    }
    settle(&mut world, &mut controller);
}

/// All brokers are back, nobody asks for anything: everything comes to be as decided, and stays so.
fn settle(world: &mut World, controller: &mut Controller) {
    world.calm();
    controller.transfers.clear();
    let until = world.now + 400_000;
    while world.now < until {
        world.now += STEP_MS;
        world.turn(&controller.cluster, &mut controller.observed);
        for command in world.returning(&controller.cluster) {
            controller.commit(&command);
        }
        controller.turn(world, usize::MAX);
    }
    for broker in controller.cluster.brokers() {
        let node = broker.registration.node;
        assert!(!broker.is_fenced, "node {node} is there");
        let replicas = controller.cluster.replicas_at(node);
        assert!(
            !broker.is_draining || replicas == 0,
            "node {node}: {replicas}"
        );
    }
    for (key, placement) in controller.cluster.placements() {
        assert_eq!(
            placement.change,
            None,
            "{placement:?} {:?} {}",
            controller.observed.partitions.get(&key),
            world.describe(key)
        );
        world.check_settled(key, placement);
        let transfers = controller.transfers.get(&key).copied().unwrap_or(0);
        assert!(transfers < 40, "{key:?} went to and fro: {transfers}");
    }
    let (log, transfers) = (controller.log.len(), controller.transfers.clone());
    for _ in 0..200 {
        world.now += STEP_MS;
        world.turn(&controller.cluster, &mut controller.observed);
        controller.turn(world, usize::MAX);
    }
    assert_eq!(controller.log.len(), log, "there is nothing left to do");
    assert_eq!(controller.transfers, transfers);
}

#[test]
fn everything_ends_up_as_decided() {
    let seeds = std::env::var("MODEL_SEEDS").ok();
    let seeds = seeds.map_or(0..150, |seeds| {
        let (from, to) = seeds.split_once("..").expect("like 5..6");
        from.parse().unwrap()..to.parse().unwrap()
    });
    for seed in seeds {
        let done = std::panic::catch_unwind(|| run(seed));
        assert!(done.is_ok(), "again with MODEL_SEEDS={seed}..{}", seed + 1);
    }
}

//! What a broker has while its process is there, beside its shard; and what its disk stands for.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use tidelog_controller::{
    Cluster as Folded, LocalBroker, Observed, PlanOptions, Planted, Registration, Step, Teller,
    Topic,
};
use tidelog_log::state::GroupKey;
use tidelog_record::{Offset, TopicId};
use tidelog_replica::{NodeId, ReplicaId};

use super::operator::Request;
use super::registration;

/// What the disk of a node stands for, and its configuration: all of it outlives the process.
#[derive(Clone, Debug)]
pub(in crate::cluster) struct Seat {
    /// Which disk of the node it is, from 0.
    pub(in crate::cluster) disk: u32,
    /// How many disks the broker had lost when it got this one, as it was told.
    pub(super) generation: u32,
    /// Who founded the cluster.
    pub(super) founders: Vec<NodeId>,
    /// What is wrong, to see that it is found.
    pub(super) planted: Option<Planted>,
}

impl Seat {
    pub(super) fn local(&self, node: NodeId) -> LocalBroker {
        LocalBroker {
            planted: self.planted,
            ..LocalBroker::new(node, self.generation)
        }
    }
}

/// What becomes of what was asked of the metadata group.
#[derive(Clone, Copy, Debug)]
pub(super) enum Outcome {
    /// This broker leads, in this term.
    Leads(u64),
    /// A command is committed at this offset.
    Stored(Offset),
    /// It is not, or not known to be.
    Failed,
}

/// A change that waits for its turn.
#[derive(Clone, Debug)]
pub(super) enum Job {
    /// What the leader of the metadata log does again and again.
    Turn(Stage),
    /// What the operator asks for.
    Asked(Request),
}

/// How far a turn of the leader has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Register,
    Plan,
    Snapshot,
    Trim,
    Over,
}

/// What is being decided.
#[derive(Debug, Default)]
pub(super) enum Deciding {
    #[default]
    Nothing,
    /// Whether this broker leads the metadata log, and all that was decided before, is being asked.
    Asking(Job),
    /// Steps are being carried out one after the other, the first of which is being written.
    Writing {
        job: Job,
        term: u64,
        steps: VecDeque<Step>,
        /// Where the first of them was written.
        first: Option<Offset>,
        /// Who registers by it.
        registers: Option<NodeId>,
    },
}

/// A topic of which what is here may have to change; as it was before, where it is gone.
pub(super) type Todo = (TopicId, Option<Arc<Topic>>);

pub(in crate::cluster) struct Broker {
    pub(super) local: LocalBroker,
    pub(super) founders: Vec<NodeId>,
    pub(super) options: PlanOptions,
    pub(super) registration: Registration,
    /// That of its registration when it started.
    pub(super) epoch_before: u64,
    /// The metadata log, folded up to `applied`.
    pub(in crate::cluster) cluster: Folded,
    pub(super) applied: Offset,
    /// Where its newest snapshot begins, or it does.
    pub(super) snapshot_at: Offset,
    pub(super) observed: Observed,
    pub(super) teller: Teller,
    /// The replicas that it has, but for that of the metadata.
    pub(super) serving: BTreeMap<GroupKey, ReplicaId>,
    /// What its start has let alone, as it did not know whether it was to be there.
    pub(super) strays: BTreeSet<GroupKey>,
    pub(super) todo: VecDeque<Todo>,
    /// When `todo` is gone on with.
    pub(super) todo_at: u64,
    /// Who asks to be registered: the last thing each has said.
    pub(super) registrations: BTreeMap<NodeId, (Registration, u64)>,
    /// The term in which it leads the metadata log.
    pub(super) leads_since: Option<u64>,
    pub(super) jobs: VecDeque<Job>,
    pub(super) deciding: Deciding,
    /// What came of what `deciding` waits for.
    pub(super) outcome: Option<Outcome>,
    /// When the next turn is.
    pub(super) turn_at: u64,
    /// New groups in which the replica here is to lead, and until when it stands for election again and
    /// again.
    pub(super) beginning: BTreeMap<GroupKey, u64>,
    /// It may not register.
    pub(super) is_refused: bool,
}

/// A broker that is not heard for so long is fenced: sooner than in production, so that more of it happens.
const SESSION_MILLIS: u64 = 4000;

impl Broker {
    pub(super) fn new(node: NodeId, seat: &Seat, cluster: Folded, applied: Offset) -> Self {
        let epoch_before = cluster.broker(node).map_or(0, |known| known.epoch);
        let options = PlanOptions {
            session_ms: SESSION_MILLIS,
            planted: seat.planted,
            ..PlanOptions::default()
        };
        Self {
            local: seat.local(node),
            founders: seat.founders.clone(),
            options,
            registration: registration(node, seat.disk),
            epoch_before,
            cluster,
            applied,
            snapshot_at: applied,
            observed: Observed::default(),
            teller: Teller::default(),
            serving: BTreeMap::new(),
            strays: BTreeSet::new(),
            todo: VecDeque::new(),
            todo_at: 0,
            registrations: BTreeMap::new(),
            leads_since: None,
            jobs: VecDeque::new(),
            deciding: Deciding::Nothing,
            outcome: None,
            turn_at: 0,
            beginning: BTreeMap::new(),
            is_refused: false,
        }
    }

    pub(super) fn is_deciding(&self) -> bool {
        !matches!(self.deciding, Deciding::Nothing)
    }

    pub(super) fn is_registered(&self) -> bool {
        self.cluster
            .has_registered(&self.registration, self.epoch_before)
    }
}

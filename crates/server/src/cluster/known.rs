//! What this broker knows of its cluster: whom it lets speak, and what it tells those who ask.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock};

use tidelog_broker::{Position, Recovery};
use tidelog_controller::{Admission, DirectoryId, KnownOf};
use tidelog_peer::{Answers, Gate, Identity, Refused};
use tidelog_proto::internal::v1::{
    PeerAnswer, PeerAskPositions, PeerJoin, PeerJoined, PeerNotLeader, PeerQuestion, PeerRecover,
    PeerRecovered, PeerRefused, RegisterBroker, peer_answer::Answer, peer_question::Question,
};

use super::decide::{Here, Own};
use super::settle::Settled;
use super::{KnownBroker, hex, lock, wire, with_another_directory};

/// What becomes of a broker that wants to join.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JoinAnswer {
    /// It is registered.
    Joined {
        /// How many data directories it has lost.
        generation: u32,
        /// All that are registered.
        brokers: Vec<KnownBroker>,
        /// That of the metadata group.
        metadata_incarnation: u32,
    },
    /// It is not let in; this is why.
    Refused(String),
    /// Another broker decides.
    NotLeader {
        /// Its cluster port, if it is known.
        leader_address: Option<String>,
    },
}

/// How far the replicas of a broker are, and whom it hears.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Positions {
    /// Those that run, by partition.
    pub replicas: Vec<Position>,
    /// The brokers that it hears, itself among them.
    pub heard: BTreeSet<u32>,
}

/// What a broker that is open does for others that ask.
pub trait Host: Debug + Send + Sync + 'static {
    /// The cluster port of whoever decides at present, if it is known.
    fn leader_address(&self) -> Option<String>;

    /// Registers a broker, if this one decides.
    fn join(
        &self,
        registration: RegisterBroker,
    ) -> Pin<Box<dyn Future<Output = JoinAnswer> + Send + '_>>;

    /// The brokers that were removed, and have not come again.
    fn removed(&self) -> BTreeSet<u32>;

    /// The data directory that a broker had when it was removed, if it has not come again; zeros where it had never
    /// come.
    fn removed_directory(&self, node: u32) -> Option<[u8; 16]>;

    /// Whether it may lack what was decided last, as it hears nobody who leads the metadata whom it knows.
    fn may_lack_metadata(&self) -> bool;

    /// The incarnation of the metadata group.
    fn metadata_incarnation(&self) -> u32;

    /// Tells how far its replicas are; why not, where it cannot.
    fn positions(&self) -> Pin<Box<dyn Future<Output = Result<Positions, String>> + Send + '_>>;

    /// Has its replica of the metadata go on without those that are lost; says why that cannot be.
    fn recover(
        &self,
        incarnation: u32,
        how: Recovery,
    ) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send + '_>>;
}

/// Shared by all who ask.
#[derive(Debug)]
pub(crate) struct Known {
    state: Mutex<State>,
    host: OnceLock<Arc<dyn Host>>,
}

#[derive(Debug)]
struct State {
    here: Here,
}

impl Known {
    /// A broker that is fresh, and wants to found a cluster with these.
    pub(crate) fn fresh(own: Own, wanted: impl IntoIterator<Item = u32>) -> Self {
        let here = Here {
            node_id: own.node_id,
            directory_id: own.directory_id,
            wanted: wanted.into_iter().collect(),
            ..Here::default()
        };
        Self {
            state: Mutex::new(State { here }),
            host: OnceLock::new(),
        }
    }

    /// It is settled to which cluster the broker belongs.
    pub(crate) fn settle(&self, settled: &Settled) {
        let mut state = lock(&self.state);
        state.here.cluster_id = Some(settled.cluster_id);
        state.here.founders.clone_from(&settled.founders);
        state.here.wanted.clear();
    }

    /// These are registered, and no others.
    pub(crate) fn update(&self, brokers: &[KnownBroker]) {
        brokers.clone_into(&mut lock(&self.state).here.brokers);
    }

    /// Those that are registered, or are to be.
    pub(crate) fn brokers(&self) -> Vec<KnownBroker> {
        lock(&self.state).here.brokers.clone()
    }

    /// From now on brokers can be let in. A second call does nothing.
    pub(crate) fn set_host(&self, host: Arc<dyn Host>) {
        self.host.set(host).ok();
    }

    fn here(&self) -> Here {
        let mut here = lock(&self.state).here.clone();
        if let Some(host) = self.host.get() {
            here.leader_address = host.leader_address();
            here.removed = host.removed();
            here.metadata_incarnation = host.metadata_incarnation();
        }
        here
    }

    /// Whether another broker means this cluster; what it is told otherwise.
    fn check_cluster(&self, cluster_id: &[u8]) -> Result<(), String> {
        let own = lock(&self.state).here.cluster_id;
        let own = own.ok_or("this broker belongs to no cluster yet")?;
        match wire::id_of(cluster_id) == Some(own) {
            true => Ok(()),
            false => Err(format!("this is another cluster: {}", hex(&own))),
        }
    }

    fn host(&self) -> Result<&Arc<dyn Host>, String> {
        let host = self.host.get();
        host.ok_or_else(|| "this broker is not open yet".to_owned())
    }

    async fn positions(&self, asked: PeerAskPositions) -> Result<Answer, String> {
        self.check_cluster(&asked.cluster_id)?;
        let after = wire::after(&asked);
        let after = after.ok_or("the partition after which to go on makes no sense")?;
        let positions = self.host()?.positions().await?;
        let here = lock(&self.state).here.clone();
        Ok(Answer::Positions(wire::positions_to_wire(
            &here, &positions, after,
        )))
    }

    async fn recover(&self, asked: PeerRecover) -> Result<Answer, String> {
        self.check_cluster(&asked.cluster_id)?;
        let how = if asked.alone {
            Recovery::Alone
        } else {
            Recovery::Follows
        };
        self.host()?.recover(asked.incarnation, how).await?;
        Ok(Answer::Recovered(PeerRecovered {}))
    }

    async fn join(&self, join: PeerJoin) -> Result<Answer, String> {
        self.check_cluster(&join.cluster_id)?;
        let founders = lock(&self.state).here.founders.clone();
        let registration = join.registration.filter(wire::is_sound);
        let registration = registration.ok_or("what the broker says of itself makes no sense")?;
        Ok(match self.host()?.join(registration).await {
            JoinAnswer::Joined {
                generation,
                brokers,
                metadata_incarnation,
            } => Answer::Joined(PeerJoined {
                founders: wire::founders_to_wire(&founders),
                generation,
                brokers: wire::brokers_to_wire(&brokers),
                metadata_incarnation,
            }),
            JoinAnswer::Refused(cause) => return Err(cause),
            JoinAnswer::NotLeader { leader_address } => Answer::NotLeader(PeerNotLeader {
                leader_address: leader_address.unwrap_or_default(),
            }),
        })
    }
}

/// What is said: the answer, or why there is none.
fn either(answer: Result<Answer, String>) -> Answer {
    answer.unwrap_or_else(|cause| Answer::Refused(PeerRefused { cause }))
}

impl Answers for Known {
    fn answer(
        &self,
        question: PeerQuestion,
    ) -> Pin<Box<dyn Future<Output = PeerAnswer> + Send + '_>> {
        Box::pin(async move {
            let answer = match question.question {
                Some(Question::Who(_)) => Answer::Here(wire::here_to_wire(&self.here())),
                Some(Question::Join(join)) => either(self.join(join).await),
                Some(Question::Positions(asked)) => either(self.positions(asked).await),
                Some(Question::Recover(asked)) => either(self.recover(asked).await),
                None => Answer::Refused(PeerRefused {
                    cause: "the question is not known here".to_owned(),
                }),
            };
            PeerAnswer {
                answer: Some(answer),
            }
        })
    }
}

impl Gate for Known {
    fn admit(&self, who: &Identity) -> Result<(), Refused> {
        let state = lock(&self.state);
        let here = &state.here;
        if who.node_id == here.node_id {
            return Err(Refused(format!("broker {} is this one", who.node_id)));
        }
        let registered = here.brokers.iter().find(|one| one.node_id == who.node_id);
        let registered = registered.map(|one| one.directory_id);
        let removed = || self.host.get()?.removed_directory(who.node_id);
        let removed = match registered {
            Some(_) => None,
            None => removed().map(DirectoryId::from_bytes),
        };
        let mut founders = here.founders.iter();
        let founder = founders.find(|one| one.node_id == who.node_id);
        let known = KnownOf {
            registered: registered.map(DirectoryId::from_bytes),
            founded: founder.map(|one| DirectoryId::from_bytes(one.directory_id)),
            removed,
        };
        let host = self.host.get();
        let may_be_behind = || host.is_some_and(|host| host.may_lack_metadata());
        match known.admits(DirectoryId::from_bytes(who.directory_id), may_be_behind) {
            Admission::Removed => Err(Refused(format!(
                "broker {} was removed or given up as lost, and must not run any more with the data that it \
                 has: stop it, empty its data directory, and start it with --join",
                who.node_id
            ))),
            Admission::Unknown => Err(Refused(format!("broker {} is not known here", who.node_id))),
            Admission::OtherDirectory(known) => Err(Refused(format!(
                "broker {} is known here with the data directory {}, not {}: {}",
                who.node_id,
                hex(&known.to_bytes()),
                hex(&who.directory_id),
                with_another_directory(who.node_id, &who.directory_id)
            ))),
            Admission::Admitted => Ok(()),
        }
    }
}

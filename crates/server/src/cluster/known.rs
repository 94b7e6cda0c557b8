//! What this broker knows of its cluster: whom it lets speak, and what it tells those who ask.

use std::fmt::Debug;
use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock};

use tidelog_peer::{Answers, Gate, Identity, Refused};
use tidelog_proto::internal::v1::{
    PeerAnswer, PeerJoin, PeerJoined, PeerNotLeader, PeerQuestion, PeerRefused, RegisterBroker,
    peer_answer::Answer, peer_question::Question,
};

use super::decide::{Here, Own};
use super::settle::Settled;
use super::{Founder, KnownBroker, hex, lock, replace_command, wire};

/// What becomes of a broker that wants to join.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JoinAnswer {
    /// It is registered.
    Joined {
        /// How many data directories it has lost.
        generation: u32,
        /// All that are registered.
        brokers: Vec<KnownBroker>,
    },
    /// It is not let in; this is why.
    Refused(String),
    /// Another broker decides.
    NotLeader {
        /// Its cluster port, if it is known.
        leader_address: Option<String>,
    },
}

/// Who lets brokers into the cluster.
pub trait Joins: Debug + Send + Sync + 'static {
    /// The cluster port of whoever decides at present, if it is known.
    fn leader_address(&self) -> Option<String>;

    /// Registers a broker, if this one decides.
    fn join(
        &self,
        registration: RegisterBroker,
    ) -> Pin<Box<dyn Future<Output = JoinAnswer> + Send + '_>>;
}

/// Shared by all who ask.
#[derive(Debug)]
pub(crate) struct Known {
    state: Mutex<State>,
    joins: OnceLock<Arc<dyn Joins>>,
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
            joins: OnceLock::new(),
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

    /// From now on brokers can be let in. A second call does nothing.
    pub(crate) fn set_joins(&self, joins: Arc<dyn Joins>) {
        self.joins.set(joins).ok();
    }

    fn here(&self) -> Here {
        let mut here = lock(&self.state).here.clone();
        here.leader_address = self.joins.get().and_then(|joins| joins.leader_address());
        here
    }

    async fn join(&self, join: PeerJoin) -> Answer {
        let refused = |cause: String| Answer::Refused(PeerRefused { cause });
        let (cluster_id, founders) = {
            let state = lock(&self.state);
            (state.here.cluster_id, state.here.founders.clone())
        };
        let Some(cluster_id) = cluster_id else {
            return refused("this broker belongs to no cluster yet".to_owned());
        };
        if wire::id_of(&join.cluster_id) != Some(cluster_id) {
            return refused(format!("this is another cluster: {}", hex(&cluster_id)));
        }
        let registration = join.registration.filter(wire::is_sound);
        let Some(registration) = registration else {
            return refused("what the broker says of itself makes no sense".to_owned());
        };
        let Some(joins) = self.joins.get() else {
            return refused("this broker does not let others in yet".to_owned());
        };
        match joins.join(registration).await {
            JoinAnswer::Joined {
                generation,
                brokers,
            } => Answer::Joined(PeerJoined {
                founders: wire::founders_to_wire(&founders),
                generation,
                brokers: wire::brokers_to_wire(&brokers),
            }),
            JoinAnswer::Refused(cause) => refused(cause),
            JoinAnswer::NotLeader { leader_address } => Answer::NotLeader(PeerNotLeader {
                leader_address: leader_address.unwrap_or_default(),
            }),
        }
    }
}

impl Answers for Known {
    fn answer(
        &self,
        question: PeerQuestion,
    ) -> Pin<Box<dyn Future<Output = PeerAnswer> + Send + '_>> {
        Box::pin(async move {
            let answer = match question.question {
                Some(Question::Who(_)) => Answer::Here(wire::here_to_wire(&self.here())),
                Some(Question::Join(join)) => self.join(join).await,
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
        let is_own = |node_id: &u32| *node_id == who.node_id;
        let registered = here.brokers.iter().find(|one| is_own(&one.node_id));
        let founder = |founder: &&Founder| is_own(&founder.node_id);
        let known = registered
            .map(|one| one.directory_id)
            // It founds the cluster, and has not come to register yet.
            .or_else(|| {
                here.founders
                    .iter()
                    .find(founder)
                    .map(|one| one.directory_id)
            });
        match known {
            None => Err(Refused(format!("broker {} is not known here", who.node_id))),
            Some(known) if known != who.directory_id => Err(Refused(format!(
                "broker {} is known here with the data directory {}, not {}: if that is lost, run: {}",
                who.node_id,
                hex(&known),
                hex(&who.directory_id),
                replace_command(who.node_id, &who.directory_id)
            ))),
            Some(_) => Ok(()),
        }
    }
}

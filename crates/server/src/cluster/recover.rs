//! Going on where brokers are lost for good: those that are left are asked how far they are, then the one that
//! has most goes on with the metadata. What becomes of partitions is decided by the broker.
//!
//! A broker that does not answer is lost, or nothing is done: of one that is only away it would not be known
//! what it has.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::join_all;
use tidelog_broker::{Broker, Position, Recovery, is_of_metadata, metadata_keeper};
use tidelog_controller::node_of;
use tidelog_peer::ask;
use tidelog_proto::internal::v1::{
    PeerAskPositions, PeerQuestion, PeerRecover, peer_answer::Answer, peer_question::Question,
};

use super::{KnownBroker, Links, wire};

/// How long a broker may take to tell a part of what it has.
const ASK_TIMEOUT: Duration = Duration::from_secs(3);
/// How long its replica of the metadata may take to go on.
const RECOVER_TIMEOUT: Duration = Duration::from_secs(15);
/// So many parts are asked for: more than any broker has.
const PARTS_MAX: usize = 1_000;

/// Who is lost, and what is left.
#[derive(Debug)]
pub(crate) struct Survey {
    /// The brokers that are given up.
    pub(crate) lost: BTreeSet<u32>,
    /// The others, this one among them.
    left: Vec<KnownBroker>,
    /// What these have.
    pub(crate) positions: Vec<Position>,
}

/// What one broker has, and whom it hears.
struct Has {
    positions: Vec<Position>,
    heard: BTreeSet<u32>,
}

impl Survey {
    /// Asks all brokers how far they are. `named` are those that are said to be lost: all that do not answer,
    /// or none, which stands for these.
    ///
    /// # Errors
    /// Why nothing is to be done, for people.
    pub(crate) async fn make(
        broker: &Broker,
        links: &Links,
        named: &[u32],
    ) -> Result<Self, String> {
        let brokers = links.brokers();
        let own = broker.node_id();
        let cluster_id = broker.cluster_id();
        let asked = brokers.iter().map(|one| async move {
            let has = if one.node_id == own {
                broker.positions().await.map(|positions| Has {
                    positions,
                    heard: broker.heard(),
                })
            } else {
                all_positions(one, &cluster_id).await
            };
            (one, has)
        });
        let answers: Vec<(&KnownBroker, Result<Has, String>)> = join_all(asked).await;
        let silent: BTreeSet<u32> = answers
            .iter()
            .filter(|(_, has)| has.is_err())
            .map(|(one, _)| one.node_id)
            .collect();
        let why = |node: &u32| {
            let answer = answers.iter().find(|(one, _)| one.node_id == *node);
            let why = answer.and_then(|(_, has)| has.as_ref().err());
            why.cloned().unwrap_or_default()
        };
        if silent.contains(&own) {
            return Err(format!("broker {own} itself: {}", why(&own)));
        }
        // One that was given up before is lost, and nobody is to be asked.
        let gone = broker.removed_brokers();
        let named = named.iter().copied().filter(|node| !gone.contains(node));
        let named: BTreeSet<u32> = named.collect();
        let known: BTreeSet<u32> = brokers.iter().map(|one| one.node_id).collect();
        if let Some(stranger) = named.difference(&known).next() {
            return Err(format!("there is no broker {stranger} in the cluster"));
        }
        if let Some(alive) = named.difference(&silent).next() {
            return Err(format!(
                "broker {alive} answers: it is not lost, and what it has may be needed"
            ));
        }
        if let Some(other) = silent
            .difference(&named)
            .next()
            .filter(|_| !named.is_empty())
        {
            return Err(format!(
                "broker {other} does not answer either ({}): start it, or name it too if it is lost",
                why(other)
            ));
        }
        let mut survey = Self {
            lost: silent,
            left: Vec::new(),
            positions: Vec::new(),
        };
        for (one, has) in answers {
            let Ok(has) = has else { continue };
            if let Some(heard) = has.heard.intersection(&survey.lost).next() {
                return Err(format!(
                    "broker {} hears broker {heard}: it is not lost, or not long enough ago",
                    one.node_id
                ));
            }
            survey.left.push(one.clone());
            survey.positions.extend(has.positions);
        }
        Ok(survey)
    }

    /// The broker that goes on with the metadata, and in which incarnation, where they have lost their majority.
    pub(crate) fn keeper(&self) -> Option<(u32, u32)> {
        let keeper = metadata_keeper(&self.positions);
        keeper.map(|(replica, incarnation)| (node_of(replica), incarnation))
    }

    /// Has the metadata go on where they have lost their majority, and whoever has missed that follow.
    ///
    /// # Errors
    /// Why that did not come to its end; it can be begun again.
    pub(crate) async fn recover_metadata(&self, broker: &Broker) -> Result<(), String> {
        let of_metadata = self.positions.iter().filter(|one| is_of_metadata(one));
        let newest = of_metadata.clone().map(|one| one.incarnation).max();
        let (keeper, incarnation) = match self.keeper() {
            Some((keeper, incarnation)) => (Some(keeper), incarnation),
            None => (None, newest.unwrap_or(1)),
        };
        if let Some(keeper) = keeper {
            tracing::warn!(keeper, incarnation, "the metadata go on without a majority");
            let recovered = self
                .tell(broker, keeper, incarnation, Recovery::Alone)
                .await;
            recovered
                .map_err(|e| format!("broker {keeper} does not go on with the metadata: {e}"))?;
        }
        for one in of_metadata {
            let node = node_of(one.replica);
            if Some(node) == keeper || one.incarnation >= incarnation {
                continue;
            }
            let told = self
                .tell(broker, node, incarnation, Recovery::Follows)
                .await;
            told.map_err(|e| format!("broker {node} does not follow with the metadata: {e}"))?;
        }
        Ok(())
    }

    async fn tell(
        &self,
        broker: &Broker,
        node: u32,
        incarnation: u32,
        how: Recovery,
    ) -> Result<(), String> {
        if node == broker.node_id() {
            return broker.recover_metadata(incarnation, how).await;
        }
        let known = self.left.iter().find(|one| one.node_id == node);
        let address = known.map(|one| one.cluster_address.as_str());
        let recover = PeerRecover {
            cluster_id: broker.cluster_id().to_vec().into(),
            incarnation,
            alone: how == Recovery::Alone,
        };
        let question = PeerQuestion {
            question: Some(Question::Recover(recover)),
        };
        let answer = ask(address.unwrap_or_default(), question, RECOVER_TIMEOUT).await;
        match answer.map_err(|e| e.to_string())?.answer {
            Some(Answer::Recovered(_)) => Ok(()),
            Some(Answer::Refused(refused)) => Err(shortened(&refused.cause)),
            _ => Err("what it answers makes no sense".to_owned()),
        }
    }
}

/// All that a broker tells of its replicas, part by part.
async fn all_positions(broker: &KnownBroker, cluster_id: &[u8; 16]) -> Result<Has, String> {
    let senseless = || "what it answers makes no sense".to_owned();
    let mut asked = PeerAskPositions {
        cluster_id: cluster_id.to_vec().into(),
        ..PeerAskPositions::default()
    };
    let mut has = Has {
        positions: Vec::new(),
        heard: BTreeSet::new(),
    };
    for _ in 0..PARTS_MAX {
        let question = PeerQuestion {
            question: Some(Question::Positions(asked.clone())),
        };
        let answer = ask(&broker.cluster_address, question, ASK_TIMEOUT).await;
        let part = match answer.map_err(|e| e.to_string())?.answer {
            Some(Answer::Positions(part)) => part,
            Some(Answer::Refused(refused)) => return Err(shortened(&refused.cause)),
            _ => return Err(senseless()),
        };
        if part.node_id != broker.node_id || part.directory_id[..] != broker.directory_id {
            return Err("another broker answers there, or with another data directory".to_owned());
        }
        let positions = wire::positions(part.positions).ok_or_else(senseless)?;
        has.heard.extend(part.heard);
        let last = positions.last().map(|one| one.key);
        has.positions.extend(positions);
        match last {
            Some(last) if part.more => {
                asked.after_topic_id = last.topic_id.to_bytes().to_vec().into();
                asked.after_partition = last.partition.get();
            }
            _ => return Ok(has),
        }
    }
    Err("it has more replicas than it can have".to_owned())
}

fn shortened(cause: &str) -> String {
    cause.chars().take(300).collect()
}

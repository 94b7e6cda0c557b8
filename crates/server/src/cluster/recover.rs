//! Going on where brokers are lost for good: those that are left are asked how far they are, then the one that
//! has most goes on with the metadata. What becomes of partitions is decided by the broker.
//!
//! A broker that does not answer is lost, or nothing is done: of one that is only away it would not be known
//! what it has.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::join_all;
use tidelog_broker::{
    Broker, MetadataRecovery, Position, Recovery, is_of_metadata, recover_metadata,
};
use tidelog_controller::node_of;
use tidelog_peer::ask;
use tidelog_proto::internal::v1::{
    PeerAskPositions, PeerQuestion, PeerRecover, peer_answer::Answer, peer_question::Question,
};
use tokio::time::{Instant, sleep};

use super::decide::Own;
use super::{KnownBroker, Links, wire};

/// How long a broker may take to tell a part of what it has.
const ASK_TIMEOUT: Duration = Duration::from_secs(3);
/// How long its replica of the metadata may take to go on.
const RECOVER_TIMEOUT: Duration = Duration::from_secs(15);
/// For how long a broker is told to go on that refuses, and how often: longer than an election takes to begin.
const INSIST_MAX: Duration = Duration::from_secs(8);
const INSIST_PAUSE: Duration = Duration::from_millis(500);
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

/// Why nothing is known of what a broker has.
#[derive(Debug)]
enum Silence {
    /// It does not answer.
    Silent(String),
    /// It is there, and cannot tell.
    Cannot(String),
}

/// What one broker has, and whom it hears.
#[derive(Debug)]
struct Has {
    positions: Vec<Position>,
    heard: BTreeSet<u32>,
}

impl Survey {
    /// Asks all brokers how far they are. `named` are those that are said to be lost, which has to be all that do
    /// not answer; nobody says so: then it is these.
    ///
    /// # Errors
    /// Why nothing is to be done, for people.
    pub(crate) async fn make(
        broker: &Broker,
        links: &Links,
        named: Option<&[u32]>,
    ) -> Result<Self, String> {
        let brokers = links.brokers();
        let own = broker.node_id();
        let cluster_id = broker.cluster_id();
        let asked = brokers.iter().map(|one| async move {
            let has = if one.node_id == own {
                let positions = broker.positions().await;
                let positions = positions.map_err(|why| Silence::Cannot(format!("broker {own} itself: {why}")));
                positions.map(|positions| Has {
                    positions,
                    heard: broker.heard(),
                })
            } else {
                let asking = Own {
                    node_id: own,
                    directory_id: broker.directory_id(),
                };
                match all_positions(one, &cluster_id).await {
                    // One that is there and cannot tell is not lost.
                    Err(why) if is_there(&asking, one).await => {
                        let node = one.node_id;
                        Err(Silence::Cannot(format!(
                            "broker {node} answers, and cannot tell yet what it has ({why}): try again when it can"
                        )))
                    }
                    has => has.map_err(Silence::Silent),
                }
            };
            (one.clone(), has)
        });
        let answers = join_all(asked).await;
        Self::judge(own, &broker.removed_brokers(), named, answers)
    }

    /// What the answers of all brokers come to; the broker `own` asks, and knows that `gone` were removed.
    fn judge(
        own: u32,
        gone: &[u32],
        named: Option<&[u32]>,
        answers: Vec<(KnownBroker, Result<Has, Silence>)>,
    ) -> Result<Self, String> {
        let mut survey = Self {
            lost: BTreeSet::new(),
            left: Vec::new(),
            positions: Vec::new(),
        };
        let known: BTreeSet<u32> = answers.iter().map(|(one, _)| one.node_id).collect();
        let mut heard = Vec::new();
        for (one, has) in answers {
            let node = one.node_id;
            match has {
                Ok(has) => {
                    heard.extend(has.heard.into_iter().map(|other| (node, other)));
                    survey.positions.extend(has.positions);
                    survey.left.push(one);
                }
                Err(Silence::Cannot(why)) => return Err(why),
                Err(Silence::Silent(why)) => {
                    // One that was given up before is lost anyway.
                    if named.is_some_and(|named| !named.contains(&node)) {
                        return Err(format!(
                            "broker {node} does not answer ({why}): start it, or name it too if it is lost"
                        ));
                    }
                    survey.lost.insert(node);
                }
            }
        }
        for node in named.unwrap_or_default() {
            if known.contains(node) && !survey.lost.contains(node) {
                return Err(format!(
                    "broker {node} answers: it is not lost, and what it has may be needed"
                ));
            }
            if !known.contains(node) && !gone.contains(node) {
                return Err(format!("there is no broker {node} in the cluster"));
            }
        }
        for (node, other) in heard {
            if survey.lost.contains(&other) {
                return Err(format!(
                    "broker {node} hears broker {other}: it is not lost, or not long enough ago; try again \
                     in a few seconds"
                ));
            }
            if !known.contains(&other) && !gone.contains(&other) {
                return Err(format!(
                    "broker {node} knows broker {other}, and broker {own} does not: ask broker {node} instead"
                ));
            }
        }
        Ok(survey)
    }

    /// The broker that goes on with the metadata, and in which incarnation, where they have lost their majority.
    ///
    /// # Errors
    /// Why nobody can.
    pub(crate) fn keeper(&self) -> Result<Option<(u32, u32)>, String> {
        match recover_metadata(&self.positions) {
            MetadataRecovery::NotNeeded => Ok(None),
            MetadataRecovery::Stuck(replica) => Err(format!(
                "broker {} has most of the metadata, and was leaving them when a majority was lost: it cannot \
                 go on with them",
                node_of(replica)
            )),
            MetadataRecovery::Alone(replica, incarnation) => {
                let has_it = |node| {
                    let mut metadata = self.positions.iter().filter(|one| is_of_metadata(one));
                    metadata.any(|one| node_of(one.replica) == node)
                };
                match self.left.iter().find(|one| !has_it(one.node_id)) {
                    Some(one) => Err(format!(
                        "the metadata do not serve at broker {}, which may have most of them: see its log, and \
                         start it again",
                        one.node_id
                    )),
                    None => Ok(Some((node_of(replica), incarnation))),
                }
            }
        }
    }

    /// Whether some replica of the metadata has missed that they went on.
    pub(crate) fn is_half_done(&self) -> bool {
        let of_metadata = self.positions.iter().filter(|one| is_of_metadata(one));
        let mut incarnations = of_metadata.map(|one| one.incarnation);
        let first = incarnations.next();
        incarnations.any(|one| Some(one) != first)
    }

    /// Has the metadata go on where they have lost their majority, and whoever has missed that follow.
    ///
    /// # Errors
    /// Why that did not come to its end; it can be begun again.
    pub(crate) async fn recover_metadata(&self, broker: &Broker) -> Result<(), String> {
        let of_metadata = self.positions.iter().filter(|one| is_of_metadata(one));
        let newest = of_metadata.clone().map(|one| one.incarnation).max();
        let (keeper, incarnation) = match self.keeper()? {
            Some((keeper, incarnation)) => (Some(keeper), incarnation),
            None => (None, newest.unwrap_or(1)),
        };
        if let Some(keeper) = keeper {
            tracing::warn!(keeper, incarnation, "the metadata go on without a majority");
            let recovered = self
                .insist(broker, keeper, incarnation, Recovery::Alone)
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
                .insist(broker, node, incarnation, Recovery::Follows)
                .await;
            told.map_err(|e| format!("broker {node} does not follow with the metadata: {e}"))?;
        }
        Ok(())
    }

    /// Tells a broker again and again for a while: it may not have noticed yet that nobody leads.
    async fn insist(
        &self,
        broker: &Broker,
        node: u32,
        incarnation: u32,
        how: Recovery,
    ) -> Result<(), String> {
        let until = Instant::now() + INSIST_MAX;
        loop {
            let told = self.tell(broker, node, incarnation, how).await;
            if told.is_ok() || Instant::now() >= until {
                return told;
            }
            sleep(INSIST_PAUSE).await;
        }
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

/// Whether a broker answers, with the data directory that it is known by.
async fn is_there(asking: &Own, broker: &KnownBroker) -> bool {
    let answer = ask(&broker.cluster_address, wire::who(asking), ASK_TIMEOUT).await;
    match answer.map(|answer| answer.answer) {
        Ok(Some(Answer::Here(here))) => {
            here.node_id == broker.node_id && here.directory_id[..] == broker.directory_id
        }
        _ => false,
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

#[cfg(test)]
mod tests {
    use super::*;

    fn has(heard: &[u32]) -> Result<Has, Silence> {
        Ok(Has {
            positions: Vec::new(),
            heard: heard.iter().copied().collect(),
        })
    }

    /// Brokers 1 and 2 answer, and broker 3 does not.
    fn judge(named: Option<&[u32]>, heard: &[u32], gone: &[u32]) -> Result<Vec<u32>, String> {
        let broker = |node_id| KnownBroker {
            node_id,
            ..KnownBroker::default()
        };
        let answers = vec![
            (broker(1), has(&[1, 2])),
            (broker(2), has(heard)),
            (broker(3), Err(Silence::Silent("silence".to_owned()))),
        ];
        let survey = Survey::judge(1, gone, named, answers)?;
        Ok(survey.lost.into_iter().collect())
    }

    #[test]
    fn who_is_silent_is_lost_unless_others_are_named() {
        assert_eq!(judge(None, &[1, 2], &[]), Ok(vec![3]));
        assert_eq!(judge(Some(&[3]), &[1, 2], &[]), Ok(vec![3]));
        // One that was given up before is no reason to give up another.
        let why = judge(Some(&[4]), &[1, 2], &[4]).unwrap_err();
        assert!(why.contains("broker 3 does not answer"), "{why}");
        assert_eq!(judge(Some(&[3, 4]), &[1, 2], &[4]), Ok(vec![3]));
        let why = judge(Some(&[]), &[1, 2], &[]).unwrap_err();
        assert!(why.contains("broker 3 does not answer"), "{why}");
        let why = judge(Some(&[2, 3]), &[1, 2], &[]).unwrap_err();
        assert!(why.contains("broker 2 answers"), "{why}");
        let why = judge(Some(&[3, 9]), &[1, 2], &[]).unwrap_err();
        assert!(why.contains("no broker 9"), "{why}");
    }

    #[test]
    fn who_answers_and_cannot_tell_is_waited_for() {
        let broker = KnownBroker {
            node_id: 2,
            ..KnownBroker::default()
        };
        let cannot = Silence::Cannot("broker 2 is not open yet".to_owned());
        let why = Survey::judge(1, &[], None, vec![(broker, Err(cannot))]).unwrap_err();
        assert_eq!(why, "broker 2 is not open yet");
    }

    #[test]
    fn who_is_heard_is_not_lost_and_who_knows_more_is_asked() {
        let why = judge(None, &[1, 2, 3], &[]).unwrap_err();
        assert!(why.contains("broker 2 hears broker 3"), "{why}");
        let why = judge(None, &[1, 2, 5], &[]).unwrap_err();
        assert!(why.contains("ask broker 2 instead"), "{why}");
        assert_eq!(judge(None, &[1, 2, 5], &[5]), Ok(vec![3]));
    }
}

//! Asking the others, again and again, until it is settled to which cluster a fresh broker belongs.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::join_all;
use thiserror::Error;
use tidelog_disk::{Disk, DiskError};
use tidelog_peer::{AskError, ask};
use tidelog_proto::internal::v1::{
    PeerJoin, PeerQuestion, RegisterBroker, peer_answer::Answer, peer_question::Question,
};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::decide::{Asked, Decision, Here, InCluster, Own, decide, decide_join};
use super::file::{FoundingFile, Phase};
use super::known::Known;
use super::{Founder, KnownBroker, lock, wire};
use crate::Config;

/// The pause between two rounds of questions grows from the first of these to the second.
const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(1));
/// How long one answer may take.
const ASK_TIMEOUT: Duration = Duration::from_secs(1);
/// Whoever is asked to let a broker in has to have that decided by most.
const JOIN_TIMEOUT: Duration = Duration::from_secs(10);
/// So often it is said whom is waited for.
const SAY_INTERVAL: Duration = Duration::from_secs(5);
/// So often it is followed to whoever decides, before all begins anew.
const FOLLOWED_MAX: usize = 5;

/// To which cluster a broker belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settled {
    /// The cluster.
    pub cluster_id: [u8; 16],
    /// The broker's data directory.
    pub directory_id: [u8; 16],
    /// The first members of the metadata group.
    pub founders: Vec<Founder>,
    /// How many data directories the broker had lost when it came to this one.
    pub generation: u32,
    /// The incarnation of the metadata group when the broker came to the cluster.
    pub metadata_incarnation: u32,
}

/// Why it could not be settled.
#[derive(Debug, Error)]
pub(crate) enum SettleError {
    #[error("{0}")]
    Refused(String),
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// Whom a broker waits for that founds or joins a cluster. Shared with who tells people.
#[derive(Clone, Debug, Default)]
pub(crate) struct Waits(Arc<watch::Sender<Vec<String>>>);

impl Waits {
    pub(crate) fn get(&self) -> Vec<String> {
        self.0.borrow().clone()
    }

    pub(crate) fn set(&self, whom: &[String]) {
        self.0.send_replace(whom.to_vec());
    }

    /// Each change of it.
    #[cfg(test)]
    pub(super) fn subscribe(&self) -> watch::Receiver<Vec<String>> {
        self.0.subscribe()
    }
}

/// What asking takes.
#[derive(Debug)]
pub(crate) struct Asking<'a> {
    pub(crate) config: &'a Config,
    pub(crate) own: Own,
    /// What to say of this broker where it joins.
    pub(crate) registration: RegisterBroker,
    pub(crate) known: &'a Known,
    pub(crate) waits: &'a Waits,
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) data_dir: &'a Path,
    /// The addresses of which it was said that they are no cluster ports.
    pub(crate) said_wrong: Mutex<BTreeSet<String>>,
}

impl Asking<'_> {
    /// Asks until it is settled, and records that. May be dropped at any time: the next start goes on.
    /// With the outcome come the brokers that the cluster knows.
    pub(crate) async fn settle(&self) -> Result<(Settled, Vec<KnownBroker>), SettleError> {
        let mut pause = PAUSES.0;
        let mut said_at: Option<Instant> = None;
        loop {
            let decision = match &self.config.join {
                Some(address) => self.try_join(address).await,
                None => decide(&self.own, &self.ask_peers().await),
            };
            match decision {
                Decision::Found {
                    cluster_id,
                    founders,
                } => {
                    let found = InCluster {
                        founders,
                        generation: 0,
                        metadata_incarnation: 1,
                        brokers: Vec::new(),
                    };
                    return self.agree(cluster_id, found).await;
                }
                Decision::Return { cluster_id, known } => {
                    return self.agree(cluster_id, known).await;
                }
                Decision::Refuse(why) => return Err(SettleError::Refused(why)),
                Decision::Wait(whom) => self.say_waits(&whom, &mut said_at),
                // try_join has done what it could.
                Decision::Join { address, .. } => self.say_waits(&[address], &mut said_at),
            }
            sleep(pause).await;
            pause = (pause * 3 / 2).min(PAUSES.1);
        }
    }

    fn say_waits(&self, whom: &[String], said_at: &mut Option<Instant>) {
        self.waits.set(whom);
        if said_at.is_none_or(|at| at.elapsed() >= SAY_INTERVAL) {
            *said_at = Some(Instant::now());
            tracing::info!(
                brokers = whom.join(", "),
                "waiting for other brokers, without which there is no cluster"
            );
        }
    }

    /// Says once of an address that waiting does not help there.
    fn say_wrong(&self, address: &str, why: &AskError) {
        if lock(&self.said_wrong).insert(address.to_owned()) {
            let setting = match self.config.join {
                Some(_) => "join",
                None => "peers",
            };
            tracing::warn!(
                address,
                %why,
                "{setting} must name the cluster port of a broker (its cluster_addr)"
            );
        }
    }

    async fn ask_peers(&self) -> Vec<Asked> {
        let own = self.own.node_id;
        let others = self.config.peers.iter().filter(|peer| peer.node_id != own);
        let asked = others.map(|peer| self.ask_who(Some(peer.node_id), &peer.address));
        join_all(asked).await
    }

    async fn ask_who(&self, node_id: Option<u32>, address: &str) -> Asked {
        Asked {
            node_id,
            address: address.to_owned(),
            answer: self.here(address).await,
        }
    }

    async fn here(&self, address: &str) -> Result<Here, String> {
        let answer = ask(address, wire::who(&self.own), ASK_TIMEOUT).await;
        if let Err(why @ AskError::NotClusterPort { .. }) = &answer {
            self.say_wrong(address, why);
        }
        let here = match answer.map_err(|e| e.to_string())?.answer {
            Some(Answer::Here(here)) => wire::here(here),
            _ => None,
        };
        here.ok_or_else(|| "what it answers makes no sense".to_owned())
    }

    /// Asks to be let in, following to whoever decides.
    async fn try_join(&self, address: &str) -> Decision {
        let asked = self.ask_who(None, address).await;
        let decision = decide_join(&self.own, &asked);
        let Decision::Join {
            cluster_id,
            mut address,
        } = decision
        else {
            return decision;
        };
        for _ in 0..FOLLOWED_MAX {
            let join = PeerJoin {
                cluster_id: cluster_id.to_vec().into(),
                registration: Some(self.registration.clone()),
            };
            let question = PeerQuestion {
                question: Some(Question::Join(join)),
            };
            let answer = match ask(&address, question, JOIN_TIMEOUT).await {
                Ok(answer) => answer.answer,
                Err(e) => return Decision::Wait(vec![format!("{address} ({e})")]),
            };
            match answer {
                Some(Answer::Joined(joined)) => {
                    let Some(known) = wire::joined(joined) else {
                        let what = "what it answers makes no sense";
                        return Decision::Wait(vec![format!("{address} ({what})")]);
                    };
                    return Decision::Return { cluster_id, known };
                }
                Some(Answer::Refused(refused)) => {
                    let cause: String = refused.cause.chars().take(1000).collect();
                    let what = format!("{address} does not let this broker in: {cause}");
                    return Decision::Refuse(what);
                }
                Some(Answer::NotLeader(other)) if !other.leader_address.is_empty() => {
                    match wire::address_of(other.leader_address) {
                        Some(leader) => address = leader,
                        None => break,
                    }
                }
                _ => break,
            }
        }
        Decision::Wait(vec![format!("{address} (nobody decides there at present)")])
    }

    /// Records what was agreed, and only then tells it to others.
    async fn agree(
        &self,
        cluster_id: [u8; 16],
        known: InCluster,
    ) -> Result<(Settled, Vec<KnownBroker>), SettleError> {
        let settled = Settled {
            cluster_id,
            directory_id: self.own.directory_id,
            founders: known.founders,
            generation: known.generation,
            metadata_incarnation: known.metadata_incarnation,
        };
        record(
            &self.disk,
            self.data_dir,
            self.own.node_id,
            &settled,
            Phase::Agreed,
        )
        .await?;
        self.known.settle(&settled);
        self.waits.set(&[]);
        Ok((settled, known.brokers))
    }
}

/// Writes `founding.json` on a thread that may block.
pub(crate) async fn record(
    disk: &Arc<dyn Disk>,
    data_dir: &Path,
    node_id: u32,
    settled: &Settled,
    phase: Phase,
) -> Result<(), DiskError> {
    let file = FoundingFile {
        node_id,
        directory_id: settled.directory_id,
        phase,
        cluster_id: Some(settled.cluster_id),
        founders: settled.founders.clone(),
        generation: settled.generation,
        metadata_incarnation: settled.metadata_incarnation,
    };
    write(disk, data_dir, file).await
}

pub(crate) async fn write(
    disk: &Arc<dyn Disk>,
    data_dir: &Path,
    file: FoundingFile,
) -> Result<(), DiskError> {
    let (disk, data_dir) = (disk.clone(), data_dir.to_owned());
    let written = tokio::task::spawn_blocking(move || file.write(&*disk, &data_dir)).await;
    written.expect("writing a file does not panic, and is not cancelled")
}

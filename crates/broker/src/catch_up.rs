//! Catching up by files: the thread that reads and writes them, so that no shard waits for a disk.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::thread::JoinHandle;
use std::time::Duration;

use tidelog_log::catch_up::{CatchUpSource, SourceError};
use tidelog_log::state::GroupKey;
use tidelog_replica::catch_up::{
    CatchUp, CatchUpLetter, Copies, Logs, PullConfig, PullTarget, Pulled,
};
use tidelog_replica::{Delivery, NodeId, Post, Received, node_of};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, watch};

use crate::Broker;
use crate::mailbox::{Command, ShardHandle};
use crate::metrics::Metrics;
use crate::seams::{Clock, Peers, Seams};
use crate::start::shard_number;

/// Letters that wait at most: a part of a file has up to 1 MiB.
const MAILBOX_LEN: usize = 16;
/// How often it is looked at what to ask for, while something is copied.
const TICK: Duration = Duration::from_millis(50);
/// How long a shard takes at most to answer.
const SHARD_WAIT_MAX: Duration = Duration::from_secs(30);

/// Where letters about files go.
pub(crate) type Letters = mpsc::Sender<CatchUpLetter>;

impl Broker {
    /// Takes what came of another broker, as far as there is room for it now; gives back the rest, which is for
    /// [`Broker::deliver`] before anything else that comes of that broker.
    pub fn try_deliver(&self, delivery: Delivery) -> Option<Delivery> {
        let Delivery {
            from,
            mut raft,
            files,
            notes,
        } = delivery;
        let mut left = Delivery {
            from,
            raft: Vec::new(),
            files: Vec::new(),
            notes: Vec::new(),
        };
        while let Some((shard, part)) = self.part_of(&mut raft) {
            // One that is gone has no replicas any more.
            if let Err(TrySendError::Full(part)) = shard.try_receive(part) {
                left.raft.extend(part);
            }
        }
        for note in &notes {
            self.take_note(from, note);
        }
        if let Some(letters) = &self.inner().catch_up {
            for letter in files {
                // In their order: where one waits, so do those behind it.
                let sent = if left.files.is_empty() {
                    letters.try_send(letter)
                } else {
                    Err(TrySendError::Full(letter))
                };
                if let Err(TrySendError::Full(letter)) = sent {
                    left.files.push(letter);
                }
            }
        }
        (!left.raft.is_empty() || !left.files.is_empty()).then_some(left)
    }

    /// Takes what came of another broker. Waits while this one has not taken what came before.
    pub async fn deliver(&self, delivery: Delivery) {
        let mut raft = delivery.raft;
        while let Some((shard, part)) = self.part_of(&mut raft) {
            // One that is gone has no replicas any more.
            drop(shard.send(Command::Received(part)).await);
        }
        for note in &delivery.notes {
            self.take_note(delivery.from, note);
        }
        for letter in delivery.files {
            if let Some(letters) = &self.inner().catch_up {
                drop(letters.send(letter).await);
            }
        }
    }

    /// Takes out of `raft` all that is for the shard of the first of it.
    fn part_of(&self, raft: &mut Vec<Received>) -> Option<(&ShardHandle, Vec<Received>)> {
        let shards = &self.inner().shards;
        let shard_of = |received: &Received| shard_number(received.key, shards.len());
        let first = shard_of(raft.first()?);
        // Mostly there is one message, or all are for the same.
        let others = raft.extract_if(.., |received| shard_of(received) != first);
        let others: Vec<_> = others.collect();
        Some((&shards[first], std::mem::replace(raft, others)))
    }

    /// The link to a broker has broken: what was sent to it lately may not have arrived, and replicas that follow it
    /// stand for election soon. Never waits.
    pub fn unreachable(&self, node: NodeId) {
        self.inner().seen.unreachable(node);
        for shard in &self.inner().shards {
            shard.unreachable(node);
        }
    }

    /// A broker can be reached, for the first time or again: replicas that are led here need not wait there until
    /// their next heartbeat to hear of what they lack. Never waits.
    pub fn reachable(&self, node: NodeId) {
        for shard in &self.inner().shards {
            shard.reachable(node);
        }
    }

    /// A broker does not listen to this one, and says why. Never waits.
    pub fn refused(&self, node: NodeId, why: &str) {
        self.inner().seen.refused(node, why);
    }
}

/// Starts the thread.
pub(crate) fn start(
    seams: &Seams,
    shards: Vec<ShardHandle>,
    stopping: watch::Receiver<bool>,
    metrics: Arc<Metrics>,
) -> io::Result<(Letters, JoinHandle<()>)> {
    let (letters, mailbox) = mpsc::channel(MAILBOX_LEN);
    let run = Run {
        copies: Copies::new(seams.disk.clone(), PullConfig::default()),
        shards: Shards(shards),
        peers: seams.peers.clone(),
        clock: seams.clock.clone(),
        stopping,
        metrics,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()?;
    let thread = std::thread::Builder::new()
        .name("tidelog-catch-up".to_owned())
        .spawn(move || run.run(mailbox, &runtime))?;
    Ok((letters, thread))
}

/// The bytes of files that a letter has.
fn part_len(letter: &CatchUpLetter) -> u64 {
    match &letter.what {
        CatchUp::Part { bytes, .. } => bytes.len() as u64,
        _ => 0,
    }
}

struct Run {
    metrics: Arc<Metrics>,
    copies: Copies,
    shards: Shards,
    peers: Arc<dyn Peers>,
    clock: Arc<dyn Clock>,
    stopping: watch::Receiver<bool>,
}

impl Run {
    /// Until the broker stops, or nobody is left who could send a letter.
    fn run(
        mut self,
        mut mailbox: mpsc::Receiver<CatchUpLetter>,
        runtime: &tokio::runtime::Runtime,
    ) {
        loop {
            let is_idle = self.copies.is_idle();
            let stopping = &mut self.stopping;
            let next = runtime.block_on(async {
                // Whoever stops the broker waits for this thread, and holds a sender.
                let stopped = stopping.wait_for(|stopping| *stopping);
                let letter = async {
                    tokio::select! {
                        biased;
                        _ = stopped => None,
                        letter = mailbox.recv() => letter,
                    }
                };
                if is_idle {
                    return Ok(letter.await);
                }
                tokio::time::timeout(TICK, letter).await
            });
            let now = u64::try_from(self.clock.monotonic().as_millis()).unwrap_or(u64::MAX);
            let mut letters = match next {
                Ok(Some(letter)) => {
                    let len = part_len(&letter);
                    self.metrics.catch_up_received_bytes.inc_by(len);
                    self.copies.take(letter, &mut self.shards, now)
                }
                Ok(None) => return,
                Err(_elapsed) => Vec::new(),
            };
            letters.extend(self.copies.tick(&mut self.shards, now));
            for letter in letters {
                let to = node_of(letter.to);
                self.metrics.catch_up_sent_bytes.inc_by(part_len(&letter));
                let post = Post {
                    files: vec![letter],
                    ..Post::default()
                };
                // One that is lost is sent again.
                self.peers.send(to, post).ok();
            }
        }
    }
}

/// The logs of all shards, each asked on its thread.
struct Shards(Vec<ShardHandle>);

impl Shards {
    /// Asks the shard of a group; `None` where it is gone, or takes too long.
    fn ask<T>(
        &self,
        key: GroupKey,
        command: impl FnOnce(std::sync::mpsc::SyncSender<T>) -> Command,
    ) -> Option<T> {
        let (reply, replied) = sync_channel(1);
        let shard = &self.0[shard_number(key, self.0.len())];
        shard.blocking_send(command(reply)).ok()?;
        replied.recv_timeout(SHARD_WAIT_MAX).ok()
    }
}

impl Logs for Shards {
    fn target_of(&mut self, letter: &CatchUpLetter) -> Option<PullTarget> {
        let letter = letter.clone();
        self.ask(letter.key, |reply| Command::TargetOf { letter, reply })?
    }

    fn source_of(&mut self, letter: &CatchUpLetter) -> Option<Result<CatchUpSource, SourceError>> {
        let letter = letter.clone();
        self.ask(letter.key, |reply| Command::SourceOf { letter, reply })?
    }

    fn adopt(&mut self, pulled: Pulled) -> bool {
        let pulled = Box::new(pulled);
        let adopted = self.ask(pulled.key, |reply| Command::Adopt { pulled, reply });
        adopted.unwrap_or(false)
    }
}

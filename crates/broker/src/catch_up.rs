//! Catching up by files: the thread that reads and writes them, so that no shard waits for a disk.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::thread::JoinHandle;
use std::time::Duration;

use tidelog_replica::catch_up::{CatchUp, CatchUpLetter, PullConfig, Pulled, Pulls, Sources};
use tidelog_replica::{Delivery, NodeId, Post, node_of};
use tokio::sync::mpsc;

use crate::Broker;
use crate::mailbox::{Command, ShardHandle};
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
    /// Takes what came of another broker. Waits while this one has not taken what came before.
    pub async fn deliver(&self, delivery: Delivery) {
        let shards = &self.inner().shards;
        let mut by_shard: Vec<Vec<_>> = Vec::new();
        by_shard.resize_with(shards.len(), Vec::new);
        for received in delivery.raft {
            by_shard[shard_number(received.key, shards.len())].push(received);
        }
        for (shard, received) in shards.iter().zip(by_shard) {
            if !received.is_empty() {
                // One that is gone has no replicas any more.
                drop(shard.send(Command::Received(received)).await);
            }
        }
        for letter in delivery.files {
            if let Some(letters) = &self.inner().catch_up {
                drop(letters.send(letter).await);
            }
        }
    }

    /// A broker cannot be reached: what was sent to it lately may not have arrived. Never waits.
    pub fn unreachable(&self, node: NodeId) {
        for shard in &self.inner().shards {
            shard.unreachable(node);
        }
    }
}

/// Starts the thread.
pub(crate) fn start(
    seams: &Seams,
    shards: Vec<ShardHandle>,
) -> io::Result<(Letters, JoinHandle<()>)> {
    let (letters, mailbox) = mpsc::channel(MAILBOX_LEN);
    let copies = Copies {
        pulls: Pulls::new(seams.disk.clone(), PullConfig::default()),
        sources: Sources::default(),
        peers: seams.peers.clone(),
        clock: seams.clock.clone(),
        shards,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()?;
    let thread = std::thread::Builder::new()
        .name("tidelog-catch-up".to_owned())
        .spawn(move || copies.run(mailbox, &runtime))?;
    Ok((letters, thread))
}

struct Copies {
    pulls: Pulls,
    sources: Sources,
    peers: Arc<dyn Peers>,
    clock: Arc<dyn Clock>,
    shards: Vec<ShardHandle>,
}

impl Copies {
    /// Until nobody is left who could send a letter.
    fn run(
        mut self,
        mut mailbox: mpsc::Receiver<CatchUpLetter>,
        runtime: &tokio::runtime::Runtime,
    ) {
        loop {
            let is_idle = self.pulls.is_empty() && self.sources.is_empty();
            let next = runtime.block_on(async {
                if is_idle {
                    return Ok(mailbox.recv().await);
                }
                tokio::time::timeout(TICK, mailbox.recv()).await
            });
            match next {
                Ok(Some(letter)) => self.take(letter),
                Ok(None) => return,
                Err(_elapsed) => {}
            }
            let now = self.now();
            self.sources.forget_idle(now);
            let (letters, pulled) = self.pulls.tick(now);
            self.send(letters);
            self.adopt(pulled);
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.clock.monotonic().as_millis()).unwrap_or(u64::MAX)
    }

    fn take(&mut self, letter: CatchUpLetter) {
        let now = self.now();
        let shard = self.shards[shard_number(letter.key, self.shards.len())].clone();
        match letter.what {
            CatchUp::Needed { .. } => {
                let from = letter.from;
                let target = ask(&shard, |reply| Command::TargetOf { letter, reply });
                if let Some(target) = target.flatten() {
                    let first = self.pulls.begin(target, from, now);
                    self.send(first);
                }
            }
            CatchUp::Ask | CatchUp::AskPart { .. } => {
                let make = || {
                    let letter = letter.clone();
                    ask(&shard, |reply| Command::SourceOf { letter, reply }).flatten()
                };
                let answer = self.sources.take(&letter, make, now);
                self.send(answer);
            }
            CatchUp::Manifest(_) | CatchUp::Part { .. } | CatchUp::Gone => {
                let (letters, pulled) = self.pulls.take(letter, now);
                self.send(letters);
                self.adopt(pulled);
            }
        }
    }

    fn send(&self, letters: impl IntoIterator<Item = CatchUpLetter>) {
        for letter in letters {
            let to = node_of(letter.to);
            // One that is lost is sent again.
            self.peers.send(
                to,
                Post {
                    raft: Vec::new(),
                    files: vec![letter],
                },
            );
        }
    }

    fn adopt(&self, pulled: impl IntoIterator<Item = Pulled>) {
        for pulled in pulled {
            let shard = &self.shards[shard_number(pulled.key, self.shards.len())];
            let pulled = Box::new(pulled);
            ask(shard, |reply| Command::Adopt { pulled, reply });
        }
    }
}

/// Asks a shard; `None` where it is gone, or takes too long.
fn ask<T>(
    shard: &ShardHandle,
    command: impl FnOnce(std::sync::mpsc::SyncSender<T>) -> Command,
) -> Option<T> {
    let (reply, replied) = sync_channel(1);
    shard.blocking_send(command(reply)).ok()?;
    replied.recv_timeout(SHARD_WAIT_MAX).ok()
}

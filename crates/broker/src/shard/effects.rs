//! What comes of a shard's turns is carried out: posts, syncs, roles, commits, and what those who waited are told.

use std::io;
use std::sync::Arc;

use tidelog_disk::{DiskError, DiskOp};
use tidelog_log::state::GroupKey;
use tidelog_log::{LogSync, Poisoned, SyncTarget};
use tidelog_record::Offset;
use tidelog_replica::{Answer, Done, Effects, GroupError, Refusal};

use super::{Known, Shard};
use crate::error::DeleteError;
use crate::partition::Partition;
use crate::waiters::{Waiter, refused};

impl Shard {
    pub(super) fn carry_out(&mut self, effects: Effects<Waiter>) {
        for (key, role) in &effects.roles {
            let epoch = u32::try_from(role.term).ok();
            if let Some(epoch) = epoch.and_then(tidelog_record::LeaderEpoch::new)
                && let Some(partition) = self.partition(key)
            {
                let metrics = &self.around.metrics;
                if role.leader.is_some() && role.leader != partition.leader() {
                    metrics.leader_changes.inc();
                    metrics.elections.inc_by(u64::from(role.is_leader));
                }
                partition.set_leader(epoch, role.leader);
            }
        }
        for (key, error) in &effects.failed {
            tracing::error!(?key, %error, "a replica does no more until the next start");
            if let Some(log) = self.groups.log(*key) {
                give_up(&log.sync_handle(), error);
            }
            // Another one will lead, or does already: who asks here is not to wait for this one.
            if let Some(partition) = self.partition(key)
                && partition.has_others()
            {
                partition.set_leader(partition.leader_epoch(), None);
            }
        }
        if !effects.roles.is_empty() || !effects.failed.is_empty() {
            self.around.leaders_changed.notify_one();
        }
        for (key, _) in &effects.members {
            if let Some(partition) = self.partition(key)
                && let Some(group) = self.groups.group(*key)
            {
                partition.set_has_others(group.has_others() || !group.is_sole_voter());
            }
        }
        for (key, end) in &effects.committed {
            // Readable first, so that whoever is answered can read what it wrote.
            if let Some(partition) = self.partition(key) {
                partition.raise_high_watermark(end.offset);
            }
            self.around.remover.take(self.groups.take_removed(*key));
        }
        for Answer {
            key,
            waiter,
            result,
        } in effects.answers
        {
            self.answer(key, waiter, result);
        }
        for (node, post) in effects.posts {
            if let Err(lost) = self.around.peers.send(node, post) {
                // What was said of files is said again by itself.
                self.groups.not_sent(&lost.raft);
            }
        }
        if !effects.state_to_sync.is_empty() {
            match self.around.state.sync() {
                Ok(()) => self.groups.state_synced(&effects.state_to_sync),
                Err(poisoned) => self.groups.state_failed(&poisoned),
            }
        }
        let targets = effects.logs_to_sync.iter();
        let targets = targets.filter_map(|key| Some(self.partition(key)?.sync_target()));
        let targets: Vec<Arc<dyn SyncTarget>> = targets.collect();
        if effects.is_sync_awaited {
            self.around.coordinator.sync(targets);
        } else {
            self.around.coordinator.sync_behind(targets);
        }
    }

    fn answer(&mut self, key: GroupKey, waiter: Waiter, result: Result<Done, Refusal>) {
        match waiter {
            Waiter::Append(append) => append.answer(result, &self.around.metrics),
            Waiter::ReadIndex { reply } => {
                let term = self.groups.group(key).map_or(0, |group| group.role().term);
                let known = result.map(|_| Known { term });
                drop(reply.send(known));
            }
            Waiter::Recover { reply } => {
                let partition = self.partition(&key);
                let result = match (result, partition) {
                    (Ok(_), _) => Ok(()),
                    (Err(Refusal::NotRecovered(e)), _) => Err(e.to_string()),
                    (Err(refusal), Some(partition)) => {
                        Err(refused(&partition, refusal).to_string())
                    }
                    (Err(_), None) => Err("the partition is not here any more".to_owned()),
                };
                if let Err(e) = &result {
                    tracing::error!(?key, error = %e, "a group does not go on");
                }
                drop(reply.send(result));
            }
            Waiter::Trim { partition, reply } => {
                self.around.remover.take(self.groups.take_removed(key));
                drop(reply.send(log_start(&partition, result)));
            }
            Waiter::Retain {
                partition,
                now,
                roll_at,
                reply,
            } => {
                self.around.remover.take(self.groups.take_removed(key));
                let result = log_start(&partition, result);
                let result = match (result, roll_at) {
                    (Ok(_), Some(age)) => self.roll(key, &partition, now, age),
                    (result, _) => result,
                };
                drop(reply.send(result));
            }
        }
    }
}

fn log_start(partition: &Partition, result: Result<Done, Refusal>) -> Result<Offset, DeleteError> {
    match result {
        Ok(Done::LogStart(start)) => Ok(start),
        // Deleted meanwhile: there is nothing left to be trimmed.
        Err(Refusal::Gone) => Ok(partition.reader().log_start()),
        Ok(_) => unreachable!("not what was asked for"),
        Err(refusal) => Err(refused(partition, refusal).into()),
    }
}

/// Stops a log whose group failed: nothing is known of what it holds in memory. The other logs of the
/// shard go on. One that failed by itself keeps its own cause.
fn give_up(log: &LogSync, error: &GroupError) {
    let source = io::Error::other(error.to_string());
    let identity = log.identity();
    let name = format!("{}-{}", identity.topic_id, identity.partition.get());
    let cause = DiskError::new(DiskOp::Write, std::path::Path::new(&name), source);
    log.poison(&Poisoned {
        cause: Arc::new(cause),
    });
}

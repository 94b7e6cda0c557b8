//! What is committed in the metadata log is folded, and then carried out.

use bytes::Bytes;
use tidelog_controller::ClusterCommand;
use tidelog_disk::DiskError;
use tidelog_log::{BATCH_BYTES_LIMIT, Found, LogReader, ReadError};
use tidelog_record::{BatchLimits, Offset, split_batches};
use tidelog_replica::NodeId;

use super::METADATA;
use crate::cluster::Cluster;
use crate::cluster::events::Event;
use crate::cluster::node::Running;

/// After how long it is tried again to carry out what could not be.
pub(super) const AGAIN_MILLIS: u64 = 1000;

impl Cluster {
    /// Does what a broker has to do after the turns of its shard; says whether that has more to do then.
    pub(in crate::cluster) fn control(&mut self, id: NodeId) -> bool {
        let Some(broker) = self.node(id).broker() else {
            return false;
        };
        let is_deciding = broker.is_deciding();
        let decided = self.decide(id);
        // Whoever decides folds by itself, with nothing in between.
        if !is_deciding && !decided && self.has_to_fold(id) {
            self.fold(id);
        }
        self.carry_out_todo(id);
        decided
    }

    fn has_to_fold(&self, id: NodeId) -> bool {
        let node = self.node(id);
        let log = node.shard().and_then(|shard| shard.log(METADATA));
        let end = log.map(|log| log.reader().committed_offset());
        let broker = node.broker();
        broker.is_some_and(|broker| end.is_some_and(|end| end > broker.applied))
    }

    /// Folds what is committed and was not yet; says no where that cannot be done now.
    pub(super) fn fold(&mut self, id: NodeId) -> bool {
        let now = self.now;
        let lateness = self.rng.below(300);
        let is_late = self.rng.chance(30);
        let node = &mut self.nodes[id as usize - 1];
        let may_fail = node.may_fail || node.is_short;
        let Some(Running { shard, broker, .. }) = &mut node.running else {
            return false;
        };
        let (Some(broker), Some(log)) = (broker, shard.log(METADATA)) else {
            return false;
        };
        let reader = log.reader();
        let end = reader.committed_offset();
        if broker.applied >= end {
            return true;
        }
        // So that the next start knows of what is carried out from now on.
        if !shard.record_commit(METADATA) {
            return false;
        }
        let from = broker.applied.max(reader.log_start());
        let is_behind = from > broker.applied;
        let read = match commands(&reader, from, end) {
            Ok(read) => read,
            Err(e) => {
                assert!(
                    may_fail,
                    "the metadata log of node {id} cannot be read: {e}"
                );
                return false;
            }
        };
        for (offset, command) in &read {
            if let ClusterCommand::Snapshot { part: 0, .. } = command {
                broker.snapshot_at = *offset;
            }
        }
        let commands = read.iter().map(|(_, command)| command);
        let touched = broker.cluster.fold(commands, is_behind);
        let touched = touched.expect("what is committed in the metadata log makes sense");
        broker.applied = end;
        self.stats.leaps += u64::from(is_behind);
        let topics = broker.cluster.topics();
        let is_there = |id| topics.by_id(id).is_some();
        // Those that are gone first: one of the same name may take the place of their directories.
        let (there, gone): (Vec<_>, Vec<_>) =
            touched.into_iter().partition(|(id, _)| is_there(*id));
        broker.todo.extend(gone);
        broker.todo.extend(there);
        if is_late && !broker.todo.is_empty() {
            // As on a thread of its own: a stop may come in between.
            broker.todo_at = now + lateness;
            let life = node.life();
            let event = Event::Carry { node: id, life };
            self.events.at(now + lateness, event);
        }
        true
    }
}

/// The commands of the metadata log from one offset to another.
pub(super) fn commands(
    reader: &LogReader,
    mut from: Offset,
    end: Offset,
) -> Result<Vec<(Offset, ClusterCommand)>, DiskError> {
    let read = |from| -> Result<_, ReadError> {
        match reader.read(from, end, 1 << 20)? {
            Found::Ready(batches) => Ok(batches),
            Found::Cold(cold) => cold.run(),
        }
    };
    let mut commands = Vec::new();
    while from < end {
        let batches = match read(from) {
            Err(ReadError::Disk(e)) => return Err(e),
            batches => batches.expect("what is committed can be read"),
        };
        for part in &batches.parts {
            commands.extend(decoded(part).into_iter().filter(|(at, _)| *at >= from));
        }
        assert!(batches.next_offset > from, "a read comes further");
        from = batches.next_offset;
    }
    Ok(commands)
}

/// The commands in some batches.
pub(super) fn decoded(part: &Bytes) -> Vec<(Offset, ClusterCommand)> {
    let mut commands = Vec::new();
    for batch in split_batches(part.clone(), BATCH_BYTES_LIMIT) {
        let batch = batch.expect("what is committed is well");
        if batch.header().attributes.is_control() {
            continue;
        }
        let base = Offset::from_wire(batch.header().base_offset).expect("it has its offset");
        let records = batch.records(&BatchLimits::default());
        for record in records.expect("what is committed is well") {
            let record = record.expect("what is committed is well");
            let offset = record.offset(base).expect("it has its offset");
            let command = ClusterCommand::decode(&record.value.unwrap_or_default());
            commands.push((offset, command.expect("what was written can be read")));
        }
    }
    commands
}

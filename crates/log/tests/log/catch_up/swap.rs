//! Which log a copy may replace, and what becomes of that.

use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;

use tidelog_log::catch_up::{AdoptError, Staged, Swap, recover_swap, replaced_dir};
use tidelog_log::{LogEnd, LogSync, RoundObserver, SyncConfig, SyncCoordinator, SyncTarget};
use tidelog_sim::SimDisk;

use super::*;
use crate::replica::next_batch;

/// A copy that is ready, and beside it the log of a replica that lags behind.
fn ready(original: &Original, batches: usize) -> (SimDisk, Log, Staged) {
    ready_in(original, batches, 6)
}

/// A log with as many batches, all of the leader epoch `epoch`, and a complete copy beside it.
fn ready_in(original: &Original, batches: usize, epoch: u32) -> (SimDisk, Log, Staged) {
    let disk = SimDisk::new(8);
    let mut log = create_replica(&disk, small());
    begin(&mut log, epoch);
    for _ in 0..batches {
        let entry = next_batch(&log, epoch);
        log.append_entries(&[entry], at(0)).unwrap();
    }
    log.sync().unwrap();
    let source = original.source();
    let mut staging = stage(&disk, source.manifest()).unwrap();
    pump(&source, &mut staging, 900, usize::MAX).unwrap();
    let staged = staging.finish().unwrap();
    (disk, log, staged)
}

#[test]
fn no_entry_that_a_replica_has_acknowledged_vanishes() {
    let original = Original::of_all_kinds();
    let copy_end = original.source().manifest().end();
    let (end, epoch) = (copy_end.index.get() as usize, copy_end.epoch.get());
    // What stands in the place of an entry that was committed never was itself, nor what lies behind.
    let (_, mut log, staged) = ready_in(&original, end - 6, epoch - 1);
    staged.adopt(Old::Open(&mut log), |_| Ok(())).unwrap();
    for batches in [end - 8, end - 7, end - 6] {
        let (disk, mut log, staged) = ready_in(&original, batches, epoch);
        let old = log.end();
        let is_ahead = old.index.get() as usize >= end;
        assert_eq!(is_ahead, batches > end - 8);
        let record = |_: &Manifest| Ok(());
        match staged.adopt(Old::Open(&mut log), record) {
            Ok(_) => assert!(!is_ahead),
            Err(AdoptError::Behind { .. }) => {
                assert!(is_ahead);
                let entry = next_batch(&log, epoch);
                log.append_entries(&[entry], at(0)).unwrap();
            }
            Err(e) => panic!("{e}"),
        }
        // What it says is taken for the log's where that is closed.
        let (_, log, staged) = ready(&original, batches);
        drop(log);
        let adopted = staged.adopt(Old::Closed(old), record);
        assert_eq!(adopted.is_err(), is_ahead);
        drop(disk);
    }
    let (_, _, staged) = ready(&original, 3);
    let refused = staged.adopt(Old::Nothing, |_| Ok(()));
    assert!(matches!(refused, Err(AdoptError::Exists { .. })));
}

#[derive(Debug)]
struct Owner(LogSync, std::sync::mpsc::SyncSender<()>);

impl SyncTarget for Owner {
    fn log(&self) -> &LogSync {
        &self.0
    }
    fn synced(&self, _: &Result<LogEnd, Poisoned>) {
        self.1.send(()).ok();
    }
}

#[derive(Clone, Debug, Default)]
struct Rounds(Arc<Mutex<Vec<LogEnd>>>);

impl RoundObserver for Rounds {
    fn record(&self, ends: &[(Arc<dyn SyncTarget>, LogEnd)]) -> Result<(), Poisoned> {
        self.0.lock().extend(ends.iter().map(|(_, end)| *end));
        Ok(())
    }
    fn finished(&self, _: usize, _: Duration) {}
}

/// Its end would be the checkpoint of the copy.
#[test]
fn no_end_of_a_log_is_recorded_once_it_is_replaced() {
    let original = Original::of_all_kinds();
    let (_, mut log, staged) = ready(&original, 3);
    let rounds = Rounds::default();
    let coordinator =
        SyncCoordinator::start(Arc::new(rounds.clone()), SyncConfig::default()).unwrap();
    let (told, tells) = std::sync::mpsc::sync_channel(2);
    let owner: Arc<dyn SyncTarget> = Arc::new(Owner(log.sync_handle(), told));
    coordinator.sync(vec![owner.clone()]);
    tells.recv().unwrap();
    assert_eq!(rounds.0.lock().len(), 1);
    staged.adopt(Old::Open(&mut log), |_| Ok(())).unwrap();
    coordinator.sync(vec![owner]);
    tells.recv().unwrap();
    assert_eq!(rounds.0.lock().len(), 1);
    let entry = next_batch(&log, 6);
    assert!(log.append_entries(&[entry], at(0)).is_err());
}

/// The start is told of a swap that is done and recorded no more than once.
#[test]
fn a_swap_that_is_done_is_not_told_again() {
    let original = Original::of_all_kinds();
    let (disk, mut log, staged) = ready(&original, 3);
    let manifest = staged.adopt(Old::Open(&mut log), |_| Ok(())).unwrap();
    drop(log);
    disk.crash();
    let swap = recover_swap(&disk, &dir(), identity(), |_| {
        panic!("nothing to be recorded")
    });
    assert_eq!(swap.unwrap(), Swap::None);
    let log = Recorded::of(&manifest).open(&disk);
    check_copy(&original, &log, &manifest);
}

/// Between the two renames the copy is taken, which was whole before; where it does not say so, the log.
#[test]
fn a_swap_that_was_interrupted_goes_the_way_there_is() {
    let original = Original::of_all_kinds();
    for is_whole in [true, false] {
        let (disk, log, staged) = ready(&original, 3);
        let old = log.end();
        drop(log);
        let manifest = staged.manifest().clone();
        disk.rename(&dir(), &replaced_dir(&dir())).unwrap();
        if !is_whole {
            disk.flip_bit(&catch_up_dir(&dir()).join("adopted"), 50, 1);
        }
        let mut recorded = None;
        let swap = recover_swap(&disk, &dir(), identity(), |manifest| {
            recorded = Some(Recorded::of(manifest));
            Ok(())
        });
        assert!(disk.list(&replaced_dir(&dir())).is_err());
        disk.crash();
        if is_whole {
            assert_eq!(swap.unwrap(), Swap::Adopted(Arc::new(manifest.clone())));
            let log = recorded.unwrap().open(&disk);
            check_copy(&original, &log, &manifest);
        } else {
            assert_eq!(swap.unwrap(), Swap::TakenBack);
            let (checkpoint, commit) = (old, 5);
            let log = Recorded { checkpoint, commit }.open(&disk);
            assert_eq!((recorded, log.end()), (None, old));
        }
    }
}

/// What an earlier swap could not remove is in nobody's way.
#[test]
fn a_replaced_log_that_stayed_is_removed_by_the_next_swap() {
    let original = Original::of_all_kinds();
    let (disk, mut log, staged) = ready(&original, 3);
    let left = replaced_dir(&dir());
    disk.create_dir_all(&left).unwrap();
    let file = disk
        .open(&left.join("left"), tidelog_disk::OpenHow::Create)
        .unwrap();
    file.set_len(7).unwrap();
    staged.adopt(Old::Open(&mut log), |_| Ok(())).unwrap();
    assert!(disk.list(&left).is_err());
}

/// A manifest in the log's own directory that cannot be read: where the log ends is not known.
#[test]
fn a_damaged_manifest_in_place_is_told() {
    let original = Original::of_all_kinds();
    let (disk, mut log, staged) = ready(&original, 3);
    let failed = staged.adopt(Old::Open(&mut log), |_| Err(poisoned()));
    assert!(matches!(failed, Err(AdoptError::Poisoned(_))));
    disk.flip_bit(&dir().join("adopted"), 50, 1);
    let told = recover_swap(&disk, &dir(), identity(), |_| Ok(()));
    assert!(matches!(told, Err(AdoptError::Damaged { .. })));
}

pub(super) fn poisoned() -> Poisoned {
    let source = std::io::Error::other("the state file");
    let path = "state".as_ref();
    let cause = tidelog_disk::DiskError::new(tidelog_disk::DiskOp::Write, path, source);
    let cause = Arc::new(cause);
    Poisoned { cause }
}

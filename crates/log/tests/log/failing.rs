//! Random operations while the k-th call of the disk fails, whatever call that is, against a list of
//! what was appended.
//!
//! `model.rs` lets writes and syncs fail; here every call does: opens, reads, maps, renames and
//! removals too, with every kind of error. What must hold: what was acknowledged is there, in order,
//! after every end of the process; a failed write or sync stops the log, too little space or too
//! many open files do not; and an operation that met no failure succeeds.
//!
//! `TIDELOG_SEED=n cargo test -p tidelog-log --test log failing` replays one run.

use bytes::Bytes;
use tidelog_disk::DiskOp;
use tidelog_log::{AppendError, Log, LogEnd, LogOptions, OpenError, ReadError, TrimError};
use tidelog_record::Compression;
use tidelog_sim::{FailMode, InjectedError, OpFilter, SimDisk, SimRng};

use crate::common::*;
use crate::seeds::{SEEDS, each_seed};

/// How often the log is opened and ended in one run, and how many operations there are in between.
const LIVES: u64 = 5;
const STEPS: u64 = 12;

#[test]
fn whatever_the_kth_call_is_that_fails_nothing_acknowledged_is_lost() {
    let runs = each_seed("failing", |seed| World::new(seed).run());
    let sum = |of: fn(&Seen) -> u64| runs.iter().map(of).sum::<u64>();
    let seen = [
        sum(|seen| seen.struck),
        sum(|seen| seen.poisoned),
        sum(|seen| seen.full),
        sum(|seen| seen.out_of_files),
        sum(|seen| seen.unread),
        sum(|seen| seen.unopened),
        sum(|seen| seen.acknowledged),
    ];
    if runs.len() as u64 >= SEEDS {
        assert!(seen.iter().all(|count| *count > 100), "{seen:?}");
    }
}

/// How often things happened.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    struck: u64,
    poisoned: u64,
    full: u64,
    out_of_files: u64,
    unread: u64,
    unopened: u64,
    acknowledged: u64,
}

/// What may come of the failures that are armed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Armed {
    /// Anything.
    AnyCall,
    /// Nothing that stops a log: only calls that take space or open files are refused.
    Shortage,
}

struct World {
    rng: SimRng,
    disk: SimDisk,
    options: LogOptions,
    armed: Armed,
    /// All that may be in the log: batch n has one record, of offset n.
    given: Vec<Bytes>,
    /// So many of them were acknowledged as durable.
    acknowledged: usize,
    /// The ends that the broker recorded, each after its sync.
    recorded: Vec<LogEnd>,
    /// A trim to here was acknowledged; trims up to `trimmed_max` were tried.
    trimmed: u64,
    trimmed_max: u64,
    seen: Seen,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = SimRng::new(seed ^ 0x5eed);
        let disk = SimDisk::new(rng.next_u64());
        let options = LogOptions {
            segment_bytes: u32::try_from(700 + rng.below(2000)).unwrap(),
            segment_ms: 1_000_000,
            index_interval_bytes: u32::try_from(1 + rng.below(400)).unwrap(),
            room_bytes: u32::try_from(rng.below(2) * rng.below(3000)).unwrap(),
            appends_use_room: rng.chance(50),
        };
        let end = create(&disk, options).end();
        Self {
            rng,
            disk,
            options,
            armed: Armed::AnyCall,
            given: Vec::new(),
            acknowledged: 0,
            recorded: vec![end],
            trimmed: 0,
            trimmed_max: 0,
            seen: Seen::default(),
        }
    }

    fn run(mut self) -> Seen {
        for _ in 0..LIVES {
            self.disk.kill();
            self.arm();
            let before = self.disk.failures();
            let Some(mut log) = self.open() else { continue };
            for _ in 0..STEPS {
                self.step(&mut log);
                if log.reader().poisoned().is_some() {
                    self.check_poisoned(&mut log);
                    break;
                }
            }
            self.seen.struck += self.disk.failures() - before;
            self.end(log);
        }
        self.disk.crash();
        self.disk.stop_failing();
        let log = self.open().expect("nothing fails");
        self.seen.acknowledged += self.acknowledged as u64;
        drop(log);
        self.seen
    }

    /// The k-th call from now on fails, once or with all that follow.
    fn arm(&mut self) {
        self.disk.stop_failing();
        let filters = [OpFilter::any(), OpFilter::mutating()];
        let mut filter = filters[self.rng.index(2)].clone();
        let mut error = [InjectedError::Io, InjectedError::Short][self.rng.index(2)];
        self.armed = Armed::AnyCall;
        match self.rng.below(10) {
            0..3 => {
                filter = OpFilter::ops(&[DiskOp::Open, DiskOp::Reserve]);
                error = InjectedError::Full;
                self.armed = Armed::Shortage;
            }
            3..5 => {
                filter = OpFilter::op(DiskOp::Open);
                error = InjectedError::OutOfFiles;
                self.armed = Armed::Shortage;
            }
            5 => error = InjectedError::Full,
            _ => {}
        }
        let k = 1 + self.rng.below(60);
        let mode = if self.rng.chance(75) {
            FailMode::Once
        } else {
            FailMode::Forever
        };
        self.disk.fail_nth(filter, k, error, mode);
    }

    fn open(&mut self) -> Option<Log> {
        let before = self.disk.failures();
        let checkpoint = self.recorded.last().copied();
        let log = match open(&self.disk, self.options, checkpoint) {
            Ok((log, _)) => log,
            Err(OpenError::Disk(e)) => {
                assert!(self.disk.failures() > before, "nothing failed, but: {e}");
                self.seen.unopened += 1;
                // It is as it was: without the failure it opens.
                self.disk.stop_failing();
                match open(&self.disk, self.options, checkpoint) {
                    Ok((log, _)) => log,
                    Err(e) => panic!("{e}"),
                }
            }
            Err(e) => panic!("{e}"),
        };
        let end = log.end();
        let kept = usize::try_from(end.offset.get()).unwrap();
        assert!(kept >= self.acknowledged, "{kept} of {}", self.acknowledged);
        assert!(kept <= self.given.len(), "records from nowhere");
        self.given.truncate(kept);
        // What was opened is durable.
        self.acknowledged = kept;
        let start = log.reader().log_start().get();
        assert!((self.trimmed..=self.trimmed_max).contains(&start));
        (self.trimmed, self.trimmed_max) = (start, start);
        self.recorded.retain(|recorded| recorded.index <= end.index);
        self.recorded.push(end);
        self.read(&log);
        Some(log)
    }

    fn step(&mut self, log: &mut Log) {
        let before = self.disk.failures();
        let refused = match self.rng.below(20) {
            0..9 => self.append(log).err(),
            9..13 => self.sync(log).err(),
            13 => self.roll(log).err(),
            14 => {
                let epoch = log.end().epoch.next().unwrap();
                log.begin_epoch(epoch).err()
            }
            15 => self.trim(log).err(),
            16 => {
                self.find_time(log);
                None
            }
            _ => {
                self.read(log);
                None
            }
        };
        let Some(refused) = refused else { return };
        let failed = self.disk.failures() > before;
        assert!(failed, "nothing failed, but: {refused}");
        match refused {
            AppendError::Full { needed, dir: named } => {
                assert!(needed > 0 && named == dir());
                self.seen.full += 1;
            }
            AppendError::OutOfFiles { dir: named } => {
                assert_eq!(named, dir());
                self.seen.out_of_files += 1;
            }
            AppendError::Poisoned(e) | AppendError::WriteFailed(e) => {
                assert_eq!(self.armed, Armed::AnyCall, "too little is not broken: {e}");
                return;
            }
            e => panic!("{e}"),
        }
        // A shortage changes nothing and passes.
        assert!(log.reader().poisoned().is_none());
        assert_eq!(log.end().offset.get(), self.given.len() as u64);
        if self.rng.chance(50) {
            self.disk.stop_failing();
            self.append(log).unwrap();
            self.sync(log).unwrap();
        }
    }

    fn append(&mut self, log: &mut Log) -> Result<(), AppendError> {
        for _ in 0..=self.rng.below(4) {
            let mut value = vec![0; self.rng.index(250)];
            self.rng.fill(&mut value);
            let time = self.given.len() as i64;
            let batch = batch_of(&[(time, &value)], Compression::None);
            let base = log.end().offset;
            let result = log.append(&mut [batch.clone()], at(0));
            // An epoch that waited for space began with it.
            let epoch = log.end().epoch.get();
            if matches!(result, Ok(_) | Err(AppendError::WriteFailed(_))) {
                self.given.push(stamped(&batch, base, epoch));
            }
            assert_eq!(result?.base_offset, base);
        }
        Ok(())
    }

    fn sync(&mut self, log: &mut Log) -> Result<(), AppendError> {
        let end = log.sync()?;
        assert_eq!(end, log.end());
        self.recorded.push(end);
        self.acknowledged = self.given.len();
        Ok(())
    }

    fn roll(&mut self, log: &mut Log) -> Result<(), AppendError> {
        let newest = log.reader().segments().pop().unwrap();
        if newest.end_offset > newest.base_offset {
            log.roll(at(0))?;
            self.acknowledged = self.given.len();
        }
        Ok(())
    }

    fn trim(&mut self, log: &mut Log) -> Result<(), AppendError> {
        let end = log.reader().durable_offset();
        let to = self.trimmed + self.rng.below(end.get() - self.trimmed + 1);
        self.trimmed_max = self.trimmed_max.max(to);
        match log.trim(offset(to), end) {
            Ok(()) => {
                self.trimmed = to;
                self.acknowledged = self.acknowledged.max(to as usize);
                Ok(())
            }
            Err(TrimError::Append(e)) => {
                if !matches!(e, AppendError::Poisoned(_)) {
                    self.trimmed_max = self.trimmed;
                }
                Err(e)
            }
            Err(e) => panic!("{e}"),
        }
    }

    /// All that is durable is read, or a call failed.
    fn read(&mut self, log: &Log) {
        let reader = log.reader();
        let (start, durable) = (reader.log_start(), reader.durable_offset());
        assert!(durable.get() >= self.acknowledged as u64);
        let before = self.disk.failures();
        match read_all(&reader, start) {
            Ok(all) => {
                let from = usize::try_from(start.get()).unwrap();
                let to = usize::try_from(durable.get()).unwrap();
                assert!(bytes_of(&all) == self.given[from..to.max(from)]);
            }
            Err(ReadError::Disk(e)) => {
                assert!(self.disk.failures() > before, "nothing failed, but: {e}");
                self.seen.unread += 1;
            }
            Err(e) => panic!("{e}"),
        }
    }

    fn find_time(&mut self, log: &Log) {
        let reader = log.reader();
        let (start, durable) = (reader.log_start().get(), reader.durable_offset());
        let wanted = self.rng.below(self.given.len() as u64 + 2);
        let before = self.disk.failures();
        match reader.find_timestamp(at(wanted as i64), durable) {
            Ok(found) => {
                let first = wanted.max(start);
                let expected = (first < durable.get()).then(|| (offset(first), at(first as i64)));
                assert_eq!(found, expected);
            }
            Err(ReadError::Disk(_)) => assert!(self.disk.failures() > before),
            Err(e) => panic!("{e}"),
        }
    }

    /// After a failed write or sync nothing more is taken, and what was durable is read.
    fn check_poisoned(&mut self, log: &mut Log) {
        self.seen.poisoned += 1;
        self.disk.stop_failing();
        let refused = log.append(&mut [batch(1, 1)], at(0));
        assert!(matches!(refused, Err(AppendError::Poisoned(_))));
        assert!(log.sync().is_err());
        let start = log.end().log_start;
        assert!(log.trim(start, start).is_err());
        let before = self.seen.unread;
        self.read(log);
        assert_eq!(self.seen.unread, before, "nothing fails any more");
    }

    /// The process ends: as it should, by a kill, or with the power.
    fn end(&mut self, log: Log) {
        match self.rng.below(3) {
            0 => {
                if let Ok(end) = log.close() {
                    self.recorded.push(end);
                    self.acknowledged = self.given.len();
                }
            }
            1 => drop(log),
            _ => {
                drop(log);
                self.disk.crash();
                // Records of the state file are not synced: power loss takes the last ones.
                if self.rng.chance(50) {
                    let keep = 1 + self.rng.index(self.recorded.len());
                    self.recorded.truncate(keep);
                }
            }
        }
    }
}

//! Random operations, kills, power losses and failing calls, against a list of what was appended.
//!
//! The law: what the log once called durable is there, byte for byte and in order, whatever
//! happens; of the rest a suffix may be missing; nothing else is ever read.
//!
//! `TIDELOG_SEED=n cargo test -p tidelog-log --test log model` replays one run;
//! `TIDELOG_SEEDS=n` runs so many.

use bytes::Bytes;
use tidelog_disk::DiskOp;
use tidelog_log::{AppendError, INITIAL_INDEX, Log, LogEnd, LogOptions, ProducerError};
use tidelog_record::{BatchHeader, Compression, LeaderEpoch, ProducedBatch};
use tidelog_sim::{FailMode, InjectedError, OpFilter, SimDisk, SimRng};

use crate::common::*;
use crate::producers::{Senders, batch_by};
use crate::seeds::{SEEDS, each_seed};

mod checks;

const STEPS: u64 = 60;

#[test]
fn random_runs_keep_what_was_durable() {
    let runs = each_seed("model", |seed| World::new(seed).run());
    let mut seen = Seen::default();
    for run in &runs {
        seen.add(run);
    }
    // What the runs are for did happen.
    let Seen {
        crashes,
        kills,
        lost,
        torn,
        poisoned,
        segments,
        trims,
        duplicates,
    } = seen;
    if runs.len() as u64 >= SEEDS {
        let least = [
            crashes, kills, lost, torn, poisoned, segments, trims, duplicates,
        ];
        assert!(least.iter().all(|count| *count > 100), "{seen:?}");
    }
}

/// How often things happened.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    crashes: u64,
    kills: u64,
    lost: u64,
    torn: u64,
    poisoned: u64,
    segments: u64,
    trims: u64,
    duplicates: u64,
}

impl Seen {
    fn add(&mut self, other: &Self) {
        self.crashes += other.crashes;
        self.kills += other.kills;
        self.lost += other.lost;
        self.torn += other.torn;
        self.poisoned += other.poisoned;
        self.segments += other.segments;
        self.trims += other.trims;
        self.duplicates += other.duplicates;
    }
}

/// What takes a Raft index.
#[derive(Clone, Debug)]
enum Entry {
    Batch {
        bytes: Bytes,
        base: u64,
        times: Vec<i64>,
        epoch: u32,
    },
    Epoch {
        epoch: u32,
        offset: u64,
    },
    LogStart(u64),
}

struct World {
    rng: SimRng,
    disk: SimDisk,
    options: LogOptions,
    log: Option<Log>,
    /// All that may be in the log: entry n has the Raft index `INITIAL_INDEX + 1 + n`.
    entries: Vec<Entry>,
    /// So many of them were called durable.
    durable: usize,
    /// The ends that the broker recorded, each after its sync.
    recorded: Vec<LogEnd>,
    /// The largest log start that was durable.
    log_start: u64,
    now: i64,
    /// The epoch that waits for space.
    pending: Option<u32>,
    seen: Seen,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = SimRng::new(seed);
        let disk = SimDisk::new(rng.next_u64());
        let options = LogOptions {
            segment_bytes: u32::try_from(700 + rng.below(3000)).unwrap(),
            segment_ms: 1 + rng.below(300),
            index_interval_bytes: u32::try_from(1 + rng.below(600)).unwrap(),
            room_bytes: u32::try_from(rng.below(2) * rng.below(5000)).unwrap(),
            appends_use_room: rng.chance(50),
        };
        let log = create(&disk, options);
        let recorded = vec![log.end()];
        Self {
            rng,
            disk,
            options,
            log: Some(log),
            entries: Vec::new(),
            durable: 0,
            recorded,
            log_start: 0,
            now: 0,
            pending: None,
            seen: Seen::default(),
        }
    }

    fn run(mut self) -> Seen {
        for _ in 0..STEPS {
            self.now += i64::try_from(self.rng.below(40)).unwrap();
            if self.rng.chance(4) {
                self.arm();
            }
            match self.rng.below(100) {
                0..45 => self.append(),
                45..60 => self.sync(),
                60..65 => self.roll(),
                65..71 => self.begin_epoch(),
                71..76 => self.trim(),
                76..81 => self.close_and_open(),
                81..86 => self.kill_and_open(),
                86..92 => self.crash_and_open(),
                _ => self.read_somewhere(),
            }
            if self.rng.chance(5) {
                self.disk.sync_all();
            }
            self.note_durable();
            if self.log().reader().poisoned().is_some() {
                self.seen.poisoned += 1;
                self.check_poisoned();
                self.disk.stop_failing();
                if self.rng.chance(50) {
                    self.kill_and_open();
                } else {
                    self.crash_and_open();
                }
            }
        }
        self.disk.stop_failing();
        self.crash_and_open();
        self.seen.segments += self.log().reader().segments().len() as u64;
        self.seen
    }

    fn log(&mut self) -> &mut Log {
        self.log.as_mut().expect("a log is open between steps")
    }

    /// One of the next calls on the log's files fails.
    fn arm(&mut self) {
        let ops = [
            DiskOp::Write,
            DiskOp::Sync,
            DiskOp::SetLen,
            DiskOp::SyncDir,
            DiskOp::Reserve,
        ];
        let op = ops[self.rng.index(ops.len())];
        let nth = 1 + self.rng.below(4);
        let mode = if self.rng.chance(70) {
            FailMode::Once
        } else {
            FailMode::Forever
        };
        let error = if self.rng.chance(50) {
            InjectedError::Io
        } else {
            InjectedError::Full
        };
        self.disk.fail_nth(OpFilter::op(op), nth, error, mode);
    }

    fn next_offset(&self) -> u64 {
        self.entries
            .iter()
            .rev()
            .find_map(|entry| match entry {
                Entry::Batch { base, times, .. } => Some(base + times.len() as u64),
                _ => None,
            })
            .unwrap_or(0)
    }

    fn append(&mut self) {
        let mut senders = self.senders();
        let mut batches: Vec<(ProducedBatch, Vec<i64>)> = (0..1 + self.rng.below(5))
            .map(|_| {
                let id = 1 + i64::try_from(self.rng.below(4)).unwrap();
                // Of those that are gone it may know nothing, once snapshots were spoilt.
                let first = self.log().reader().segments()[0].base_offset.get();
                if self.rng.chance(15)
                    && let Some(last) = senders.0.get(&id)
                    && last[0].1 >= first
                {
                    let (batch, _) = last[self.rng.index(last.len())].clone();
                    return (batch, Vec::new());
                }
                let times: Vec<i64> = (0..1 + self.rng.below(4))
                    .map(|_| self.now + i64::try_from(self.rng.below(100)).unwrap() - 50)
                    .collect();
                let longest = if self.rng.chance(10) { 300 } else { 80 };
                let mut value = vec![0; self.rng.index(longest)];
                self.rng.fill(&mut value);
                let records: Vec<(i64, &[u8])> =
                    times.iter().map(|time| (*time, &value[..])).collect();
                if self.rng.chance(50) {
                    let sequence = senders.next_sequence(id);
                    let batch = batch_by(id, 0, sequence, &records);
                    senders.note(&batch, u64::MAX);
                    return (batch, times);
                }
                let compression = Compression::ALL[self.rng.index(Compression::ALL.len())];
                (batch_of(&records, compression), times)
            })
            .collect();
        let now = at(self.now);
        while !batches.is_empty() {
            let mut produced: Vec<_> = batches.iter().map(|(batch, _)| batch.clone()).collect();
            let base = self.log().end().offset;
            let result = self.log().append(&mut produced, now);
            let poisoned = matches!(result, Err(AppendError::Poisoned(_)));
            let has_begun = self.pass_epoch(poisoned, base.get());
            let epoch = self.log().end().epoch.get();
            let taken = match &result {
                Ok(appended) if appended.duplicate.is_some() => {
                    let (batch, times) = batches.remove(0);
                    assert!(times.is_empty(), "a new batch is told to be old");
                    assert_eq!(appended.batches, 1);
                    assert_eq!(self.stored_at(&batch), Some(appended.base_offset.get()));
                    self.seen.duplicates += 1;
                    continue;
                }
                Err(_) if !has_begun => 0,
                Ok(appended) => {
                    assert_eq!(appended.base_offset, base);
                    let taken = &batches[..appended.batches];
                    assert!(
                        taken.iter().all(|(_, times)| !times.is_empty()),
                        "stored twice"
                    );
                    appended.batches
                }
                // Its batches are in segments that are gone, or were sent too long ago.
                Err(AppendError::Producer(e)) => {
                    let (batch, times) = batches.remove(0);
                    let first = self.log().reader().segments()[0].base_offset.get();
                    let known = self.senders().0.get(&batch.header().producer_id).cloned();
                    let gone = known.is_some_and(|last| last.iter().all(|(_, at)| *at < first));
                    let is_old = times.is_empty() && matches!(e, ProducerError::Duplicate { .. });
                    assert!(gone || is_old, "{e}");
                    // What this producer sends behind it cannot be stored either.
                    let id = batch.header().producer_id;
                    if !times.is_empty() {
                        batches.retain(|(batch, _)| batch.header().producer_id != id);
                    }
                    continue;
                }
                // Any of them may be on the disk.
                Err(AppendError::WriteFailed(_)) => batches.len(),
                Err(
                    AppendError::Full { .. }
                    | AppendError::TooLarge { .. }
                    | AppendError::Poisoned(_),
                ) => 0,
                Err(e @ (AppendError::OutOfFiles { .. } | AppendError::Exhausted)) => panic!("{e}"),
            };
            let mut next = base;
            for (batch, times) in batches.drain(..taken) {
                let bytes = stamped(&batch, next, epoch);
                let base = next.get();
                next = offset(base + times.len() as u64);
                self.entries.push(Entry::Batch {
                    bytes,
                    base,
                    times,
                    epoch,
                });
            }
            if result.is_err() {
                return;
            }
            assert_eq!(self.log().end().offset, next);
        }
    }

    fn batches(&self) -> impl Iterator<Item = &Bytes> {
        self.entries.iter().filter_map(|entry| match entry {
            Entry::Batch { bytes, .. } => Some(bytes),
            _ => None,
        })
    }

    fn senders(&self) -> Senders {
        Senders::of(self.batches())
    }

    /// Where a batch of a producer is.
    fn stored_at(&self, batch: &ProducedBatch) -> Option<u64> {
        let of = |header: &BatchHeader| (header.producer_id, header.base_sequence);
        self.batches()
            .map(|bytes| BatchHeader::decode(bytes, bytes.len()).unwrap())
            .filter(|header| of(header) == of(batch.header()))
            .map(|header| header.base_offset.unsigned_abs())
            .last()
    }

    /// Whether the epoch that waited, if one did, has begun with the call just made.
    fn pass_epoch(&mut self, poisoned: bool, offset: u64) -> bool {
        let Some(epoch) = self.pending else {
            return true;
        };
        let has_begun = self.log().end().epoch.get() == epoch;
        // Its beginning may be on the disk too.
        if has_begun || poisoned {
            self.entries.push(Entry::Epoch { epoch, offset });
            self.pending = None;
        }
        has_begun
    }

    fn sync(&mut self) {
        if let Ok(end) = self.log().sync() {
            assert_eq!(end, self.log().end());
            assert_eq!(self.log().reader().durable_offset(), end.offset);
            self.recorded.push(end);
        }
    }

    fn roll(&mut self) {
        let now = at(self.now);
        let newest = self.log().reader().segments().pop().unwrap();
        if newest.end_offset > newest.base_offset
            && let Err(e) = self.log().roll(now)
        {
            assert!(
                matches!(e, AppendError::Full { .. } | AppendError::Poisoned(_)),
                "{e}"
            );
        }
    }

    fn begin_epoch(&mut self) {
        let epoch = self.log().end().epoch.get() + 1 + u32::try_from(self.rng.below(2)).unwrap();
        let offset = self.log().end().offset.get();
        let result = self.log().begin_epoch(LeaderEpoch::new(epoch).unwrap());
        self.pending = None;
        if matches!(result, Err(AppendError::Full { .. })) {
            self.pending = Some(epoch);
        } else {
            self.entries.push(Entry::Epoch { epoch, offset });
        }
    }

    fn trim(&mut self) {
        let end = self.log().reader().durable_offset();
        let start = self.log().end().log_start.get();
        if end.get() < start {
            return;
        }
        let to = start + self.rng.below(end.get() - start + 1);
        let next = self.log().end().offset.get();
        let result = self.log().trim(offset(to), end);
        let poisoned = matches!(
            result,
            Err(tidelog_log::TrimError::Append(AppendError::Poisoned(_)))
        );
        let has_begun = to == start || self.pass_epoch(poisoned, next);
        if to > start
            && has_begun
            && !matches!(
                result,
                Err(tidelog_log::TrimError::Append(AppendError::Full { .. }))
            )
        {
            self.entries.push(Entry::LogStart(to));
        }
        if result.is_ok() {
            self.seen.trims += 1;
            assert_eq!(self.log().reader().log_start(), offset(to));
            assert!(
                self.log().reader().durable().log_start == offset(to),
                "trims are durable"
            );
        }
    }

    /// Whatever the log calls durable from now on must stay.
    fn note_durable(&mut self) {
        let durable = self.log().reader().durable();
        let first = INITIAL_INDEX.get() + 1;
        let count = usize::try_from(durable.index.get() - first).unwrap();
        assert!(count >= self.durable, "durable went back");
        assert!(count <= self.entries.len());
        self.durable = count;
        assert!(durable.log_start.get() >= self.log_start);
        self.log_start = durable.log_start.get();
    }

    fn check_poisoned(&mut self) {
        let mut batches = [batch(1, 1)];
        let now = at(self.now);
        assert!(matches!(
            self.log().append(&mut batches, now),
            Err(AppendError::Poisoned(_))
        ));
        assert!(self.log().sync().is_err());
        self.disk.stop_failing();
        self.check_reads();
    }

    fn close_and_open(&mut self) {
        let log = self.log.take().unwrap();
        let reader = log.reader();
        let expected = log.end();
        match log.close() {
            Ok(end) => {
                assert_eq!(end, expected);
                self.durable = self.entries.len();
                self.recorded.push(end);
                self.disk.stop_failing();
                self.open(Some(end));
                assert_eq!(self.log().end(), end);
                // With the room that it keeps, whole blocks of it.
                let position = u64::from(end.position);
                let closed = match u64::from(self.log().options().room_bytes) {
                    0 => position,
                    room => (position + room).next_multiple_of(4096),
                };
                let path = self.log().reader().segments().pop().unwrap().path;
                let len = self.disk.contents(&path).len() as u64;
                // The disk may have been full.
                assert!(
                    (position..=closed).contains(&len),
                    "{len} of {position} to {closed}"
                );
            }
            Err(_) => {
                drop(reader);
                self.seen.poisoned += 1;
                self.disk.stop_failing();
                self.crash();
                self.open_at_some_recorded();
            }
        }
    }

    /// After a kill the page cache has everything, the last record of the state file too.
    fn kill_and_open(&mut self) {
        self.seen.kills += 1;
        let poisoned = self.log().reader().poisoned().is_some();
        let end = self.log().end();
        self.log = None;
        self.disk.kill();
        self.open(self.recorded.last().copied());
        if !poisoned {
            assert_eq!(self.log().end(), end, "a kill loses nothing");
        }
    }

    fn crash_and_open(&mut self) {
        self.log = None;
        self.crash();
        self.open_at_some_recorded();
    }

    fn crash(&mut self) {
        self.seen.crashes += 1;
        self.disk.crash();
    }

    /// Records of the state file are not synced: power loss takes the last ones, never others.
    fn open_at_some_recorded(&mut self) {
        if self.rng.chance(50) {
            let keep = self.rng.index(self.recorded.len() + 1);
            self.recorded.truncate(keep);
        }
        self.open(self.recorded.last().copied());
    }

    fn open(&mut self, checkpoint: Option<LogEnd>) {
        if self.rng.chance(10) {
            self.spoil_derived_files();
        }
        let (log, recovery) = match open(&self.disk, self.options, checkpoint) {
            Ok(opened) => opened,
            Err(e) => panic!("{e}; files: {:?}", self.disk.files()),
        };
        let end = log.end();
        self.log = Some(log);
        self.pending = None;
        self.seen.torn += u64::from(recovery.torn_bytes > 0);
        let kept = usize::try_from(end.index.get() - INITIAL_INDEX.get() - 1).unwrap();
        assert!(
            kept >= self.durable,
            "{} of {} durable entries are there",
            kept,
            self.durable
        );
        assert!(kept <= self.entries.len(), "entries from nowhere");
        self.seen.lost += (self.entries.len() - kept) as u64;
        self.entries.truncate(kept);
        assert_eq!(
            self.log().reader().durable(),
            end,
            "what was opened is durable"
        );
        self.note_durable();
        self.recorded.retain(|recorded| recorded.index <= end.index);
        self.recorded.push(end);
        self.check_all();
        if self.rng.chance(10) {
            // Opened is durable: another power loss changes nothing.
            let fork = self.disk.fork(self.rng.next_u64());
            fork.crash();
            let (again, _) = open(&fork, self.options, Some(end)).unwrap();
            assert_eq!(again.end(), end);
            assert_eq!(
                read_all(&again.reader(), offset(self.log_start))
                    .unwrap()
                    .len(),
                { self.expected_batches(self.log_start).len() }
            );
        }
    }

    /// Loses or breaks files that can be built again.
    fn spoil_derived_files(&mut self) {
        for path in self.disk.files() {
            if path.extension().is_some_and(|e| e == "log") || !self.rng.chance(40) {
                continue;
            }
            let len = self.disk.contents(&path).len();
            match self.rng.below(3) {
                0 => self.disk.remove(&path),
                1 if len > 0 => {
                    let at = self.rng.below(len as u64);
                    self.disk.flip_bit(&path, at, 5);
                }
                _ => self
                    .disk
                    .truncate_file(&path, self.rng.below(len as u64 + 1)),
            }
        }
    }
}

//! Opening a log whose newest segment holds anything.

use std::collections::BTreeMap;
use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tidelog_disk::{Disk, OpenHow};
use tidelog_log::offline::{Depth, Problem, Severity, apply_repair, check_partition, plan_repair};
use tidelog_log::{Found, Log, LogEnd, LogIdentity, LogOptions, OpenError, ReadError};
use tidelog_record::{
    BATCH_HEADER_LEN, BatchHeader, PartitionId, Timestamp, TopicId, check_batch, split_batches,
};
use tidelog_sim::SimDisk;

const BATCH_MAX: usize = 1 << 20;

/// Whose log it is.
pub const IDENTITY: LogIdentity = LogIdentity {
    cluster_id: [7; 16],
    topic_id: TopicId::from_bytes([9; 16]),
    partition: PartitionId::new(0),
    incarnation: 1,
};

fn dir() -> &'static Path {
    Path::new("/t-0")
}

/// The first byte says how: bit 0, whether the bytes come behind a good segment header; bit 1,
/// whether batches get the checksum that belongs to them; bit 2, whether there is a checkpoint
/// behind the header; bit 3, whether that lies further on.
pub fn recovery(data: &[u8]) {
    let [how, bytes @ ..] = data else { return };
    if bytes.len() > BATCH_MAX {
        return;
    }
    let disk = SimDisk::new(1);
    let log = create(&disk);
    let after_header = log.end();
    drop(log);
    let path = dir().join("00000000000000000000.log");
    let header = disk.contents(&path)[..after_header.position as usize].to_vec();
    let mut file = if how & 1 == 0 { Vec::new() } else { header };
    let start = file.len();
    file.extend_from_slice(bytes);
    if how & 2 != 0 {
        fix_checksums(&mut file[start..]);
    }
    write(&disk, &path, &file);
    let checkpoint = match (how & 4 != 0, how & 8 != 0) {
        (false, _) => None,
        (true, false) => Some(after_header),
        (true, true) => first_end(&disk, after_header),
    };
    open_and_look(&disk, checkpoint);
}

fn options() -> LogOptions {
    LogOptions {
        segment_bytes: 1 << 20,
        index_interval_bytes: 200,
        ..LogOptions::default()
    }
}

fn shared(disk: &SimDisk) -> Arc<dyn Disk> {
    Arc::new(disk.clone())
}

fn create(disk: &SimDisk) -> Log {
    let now = Timestamp::from_millis(0);
    Log::create(shared(disk), dir(), IDENTITY, options(), now).expect("the disk is good")
}

fn write(disk: &SimDisk, path: &Path, bytes: &[u8]) {
    let file = disk.open(path, OpenHow::Create).expect("the disk is good");
    file.set_len(0).expect("the disk is good");
    file.write_at(0, &[IoSlice::new(bytes)])
        .expect("the disk is good");
}

/// Gives each batch, as far as lengths lead, the checksum of its bytes.
fn fix_checksums(mut bytes: &mut [u8]) {
    while let Ok(header) = BatchHeader::decode(bytes, BATCH_MAX) {
        let len = header.total_len();
        if len > bytes.len() {
            return;
        }
        let (batch, rest) = bytes.split_at_mut(len);
        let crc = tidelog_record::crc32c(&[&batch[21..]]);
        batch[17..21].copy_from_slice(&crc.to_be_bytes());
        bytes = rest;
    }
}

/// Where a recovery without a checkpoint ends: as if that had been recorded.
fn first_end(disk: &SimDisk, after_header: LogEnd) -> Option<LogEnd> {
    let copy = disk.fork(1);
    let opened = Log::open(
        shared(&copy),
        dir(),
        IDENTITY,
        options(),
        Some(after_header),
    );
    opened.ok().map(|(log, _)| log.end())
}

/// Every file and its bytes.
fn contents(disk: &SimDisk) -> BTreeMap<PathBuf, Vec<u8>> {
    let files = disk.files().into_iter();
    files
        .map(|path| (path.clone(), disk.contents(&path)))
        .collect()
}

fn open_and_look(disk: &SimDisk, checkpoint: Option<LogEnd>) {
    let before = contents(disk);
    // Looking first: it must take anything.
    let mut problems: Vec<Problem> = Vec::new();
    check_partition(&shared(disk), dir(), None, Depth::Everything, &mut problems)
        .expect("the disk is good");
    assert!(contents(disk) == before, "looking changes nothing");
    repair(&disk.fork(1), &before);
    let (log, recovery) = match Log::open(shared(disk), dir(), IDENTITY, options(), checkpoint) {
        Ok(opened) => opened,
        Err(OpenError::Corrupt(_)) => {
            assert!(contents(disk) == before, "a refusal changes nothing");
            return;
        }
        Err(OpenError::Missing { .. }) => return,
        Err(OpenError::Disk(e)) => panic!("{e}"),
    };
    let end = log.end();
    assert_eq!(log.reader().durable(), end);
    if let Some(checkpoint) = checkpoint {
        assert!(
            end.position >= checkpoint.position,
            "nothing durable is cut"
        );
    }
    let served = read_all(&log);
    drop(log);
    disk.kill();
    let (again, nothing) = Log::open(shared(disk), dir(), IDENTITY, options(), Some(end))
        .expect("what was recovered opens");
    assert_eq!(again.end(), end);
    assert_eq!(
        (nothing.kept_bytes, nothing.torn_bytes),
        (0, 0),
        "after {recovery:?}"
    );
    assert_eq!(read_all(&again), served);
    drop(again);
    let mut problems: Vec<Problem> = Vec::new();
    check_partition(&shared(disk), dir(), None, Depth::Headers, &mut problems)
        .expect("the disk is good");
    let damage = problems
        .iter()
        .find(|problem| problem.severity == Severity::Damage);
    assert!(damage.is_none(), "{damage:?}");
}

/// A repair leaves a log that opens without damage, and every byte of what was there.
fn repair(disk: &SimDisk, before: &BTreeMap<PathBuf, Vec<u8>>) {
    let shared = shared(disk);
    let mut problems: Vec<Problem> = Vec::new();
    let now = Timestamp::from_millis(0);
    let plan =
        plan_repair(&shared, dir(), None, true, now, &mut problems).expect("the disk is good");
    assert!(contents(disk) == *before, "a plan changes nothing");
    apply_repair(&shared, &plan, None).expect("the disk is good");
    let kept: BTreeMap<PathBuf, Vec<u8>> = contents(disk);
    for (path, bytes) in before {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let mut now = kept.get(path).cloned().unwrap_or_default();
        let beside = plan.kept.join(format!("{name}.from-{}", now.len()));
        let beside = kept
            .get(&beside)
            .or_else(|| kept.get(&plan.kept.join(&*name)));
        now.extend_from_slice(beside.map_or(&[][..], Vec::as_slice));
        assert!(now == *bytes, "bytes of {name} are gone");
    }
    if plan.refused.is_some() {
        assert!(plan.remaining > 0 && plan.cut.is_none());
        return;
    }
    let mut problems: Vec<Problem> = Vec::new();
    check_partition(&shared, dir(), None, Depth::Everything, &mut problems)
        .expect("the disk is good");
    let left = problems
        .iter()
        .find(|problem| problem.severity == Severity::Damage);
    assert!(left.is_none(), "{left:?} after {plan:?}");
    match Log::open(shared, dir(), IDENTITY, options(), None) {
        Ok((_, recovery)) => assert_eq!(recovery.torn_bytes, 0, "after {plan:?}"),
        // The only segment was never finished.
        Err(OpenError::Missing { .. }) => {}
        // Nobody but the caller knows whose log it should be.
        Err(OpenError::Corrupt(corruption)) => assert!(
            matches!(corruption.what, tidelog_log::Damage::Foreign(_)),
            "{corruption}"
        ),
        Err(OpenError::Disk(e)) => panic!("{e}"),
    }
}

/// All that can be read, batch by batch: each whole and in its place.
fn read_all(log: &Log) -> Vec<Vec<u8>> {
    let reader = log.reader();
    let (mut next, end) = (reader.log_start(), reader.durable_offset());
    let mut all = Vec::new();
    while next < end {
        let found = match reader.read(next, end, 1 << 16) {
            Ok(Found::Ready(batches)) => Ok(batches),
            Ok(Found::Cold(cold)) => cold.run(),
            Err(e) => Err(e),
        };
        let batches = match found {
            Ok(batches) => batches,
            Err(ReadError::Corrupt(_)) => return all,
            Err(e) => panic!("{e}"),
        };
        for part in &batches.parts {
            for batch in split_batches(part.clone(), BATCH_MAX) {
                let batch = batch.expect("only batches are served");
                check_batch(batch.bytes(), BATCH_MAX).expect("with a good checksum");
                assert!(batch.bytes().len() >= BATCH_HEADER_LEN);
                all.push(batch.bytes().to_vec());
            }
        }
        assert!(batches.next_offset > next, "a read gets on");
        next = batches.next_offset;
    }
    all
}

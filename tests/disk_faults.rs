//! Real broker processes on file systems that are full, at limits of the system, and beside other
//! programs that cut and spoil files.

#![allow(
    clippy::unwrap_used,
    unreachable_pub,
    reason = "a test program, which fails by panicking"
)]
#![cfg(target_os = "linux")]

#[path = "support/disk.rs"]
mod disk;
mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use disk::{BadSyncs, Mounted, skip};
use rustix::process::{Pid, Resource, Rlimit};
use support::{Broker, code, serve, stderr};
use tidelog_proto::v1::log_client::LogClient;
use tidelog_proto::v1::{
    AppendRequest, DeleteRecordsPartition, DeleteRecordsRequest, FetchPartition, FetchRequest,
    Format, NewRecord, NewRecords, OffsetSpec, append_request, offset_spec,
};
use tonic::transport::Channel;
use tonic::{Code, Status};

/// Long enough that two fill a segment of a mebibyte.
const LONG: usize = 400_000;
const SMALL_SEGMENTS: &str = "segment.bytes=1048576";

async fn append(broker: &Broker, topic: &str, value: &[u8]) -> Result<u64, Status> {
    append_by(&mut broker.log().await, topic, value).await
}

async fn append_by(log: &mut LogClient<Channel>, topic: &str, value: &[u8]) -> Result<u64, Status> {
    let record = NewRecord {
        value: Some(value.to_vec().into()),
        ..NewRecord::default()
    };
    let request = AppendRequest {
        topic: topic.to_owned(),
        partition: Some(0),
        payload: Some(append_request::Payload::Records(NewRecords {
            records: vec![record],
            compression: 0,
            producer: None,
        })),
        ..AppendRequest::default()
    };
    let answer = log.append(request).await?.into_inner();
    let result = &answer.results[0];
    match &result.error {
        None => Ok(result.base_offset.unwrap()),
        Some(error) => Err(Status::new(Code::from(error.code), error.message.clone())),
    }
}

/// Numbered values of this length, from `from` on.
fn value(n: u64, len: usize) -> Vec<u8> {
    let mut value = format!("{n:08}").into_bytes();
    // Nothing that a compressing file system could make small.
    let mut state = n + 1;
    while value.len() < len {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        value.extend_from_slice(&state.to_le_bytes());
    }
    value
}

/// The offsets of all records there are.
fn numbers(broker: &Broker, topic: &str) -> Vec<u64> {
    let offsets = broker.ok(&["consume", topic, "-f", "%o\\n"]);
    offsets.lines().map(|line| line.parse().unwrap()).collect()
}

async fn read(broker: &Broker, topic: &str, offset: u64) -> Result<Vec<u8>, Status> {
    let request = FetchRequest {
        partitions: vec![FetchPartition {
            topic: topic.to_owned(),
            offset,
            ..FetchPartition::default()
        }],
        format: Format::Records.into(),
        ..FetchRequest::default()
    };
    let answer = broker.log().await.fetch(request).await?.into_inner();
    let partition = &answer.partitions[0];
    match &partition.error {
        None => Ok(partition.records[0].value.clone().unwrap().to_vec()),
        Some(error) => Err(Status::new(Code::from(error.code), error.message.clone())),
    }
}

async fn delete_before(broker: &Broker, topic: &str, offset: u64) {
    let request = DeleteRecordsRequest {
        topic: topic.to_owned(),
        partitions: vec![DeleteRecordsPartition {
            partition: 0,
            before: Some(OffsetSpec {
                at: Some(offset_spec::At::Offset(offset)),
            }),
        }],
    };
    let answer = broker.log().await.delete_records(request).await.unwrap();
    let deleted = &answer.into_inner().partitions[0];
    assert_eq!((&deleted.error, deleted.log_start_offset), (&None, offset));
}

#[track_caller]
fn exhausted(refused: &Status, says: &[&str]) {
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    for part in says {
        assert!(refused.message().contains(part), "{refused:?} lacks {part}");
    }
}

/// The number of bytes that the message says are needed.
fn needed(refused: &Status) -> u64 {
    let message = refused.message();
    let before = message
        .split(" bytes")
        .filter_map(|part| part.rsplit(' ').next());
    before
        .filter_map(|word| word.parse::<u64>().ok())
        .last()
        .unwrap_or_else(|| panic!("{message} says no number of bytes"))
}

const RESERVE: u64 = 64 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_file_system_refuses_appends_and_nothing_else_and_heals() {
    let dir = tempfile::tempdir().unwrap();
    let Some(mounted) = Mounted::tmpfs(&dir.path().join("fs"), "size=96m,nr_inodes=300") else {
        return;
    };
    let data_dir = mounted.dir.join("data");
    let broker = Broker::start(&data_dir);
    for topic in ["t", "small", "doomed"] {
        broker.ok(&["topic", "create", topic, "-c", SMALL_SEGMENTS]);
    }
    for n in 0..4 {
        assert_eq!(append(&broker, "t", &value(n, LONG)).await.unwrap(), n);
    }
    append(&broker, "small", b"first").await.unwrap();
    append(&broker, "doomed", b"first").await.unwrap();

    // Full at the roll: the file system has no more files to give.
    let ballast = mounted.dir.join("files");
    fs::create_dir(&ballast).unwrap();
    let mut files = 0;
    while fs::write(ballast.join(files.to_string()), b"").is_ok() {
        files += 1;
    }
    let refused = append(&broker, "t", &value(4, LONG)).await.unwrap_err();
    exhausted(&refused, &["/data/t-0", "free space, or lower retention"]);
    assert!(needed(&refused) > 0);
    // A topic whose segment has room takes more, and all is read.
    append(&broker, "small", b"second").await.unwrap();
    assert_eq!(read(&broker, "t", 0).await.unwrap(), value(0, LONG));
    assert_eq!(read(&broker, "t", 3).await.unwrap(), value(3, LONG));
    // Deleting records makes room, which a thread of its own gives back; an append finds it.
    delete_before(&broker, "t", 2).await;
    let mut tries = 0;
    let offset = loop {
        match append(&broker, "t", &value(4, LONG)).await {
            Ok(offset) => break offset,
            Err(refused) => exhausted(&refused, &["/data/t-0"]),
        }
        tries += 1;
        assert!(tries < 10_000, "there is no room yet");
    };
    assert_eq!(offset, 4);
    fs::remove_dir_all(&ballast).unwrap();

    // Below the reserve.
    mounted.fill_up_to(RESERVE - (1 << 20));
    let refused = append(&broker, "small", b"third").await.unwrap_err();
    let data = data_dir.to_str().unwrap();
    exhausted(&refused, &[data, "free space, or lower retention"]);
    let missing = RESERVE - mounted.free();
    assert!((missing..missing + 1000).contains(&needed(&refused)));
    let refused = broker.run(&["topic", "create", "more"]);
    assert_ne!(code(&refused), 0);
    assert!(
        stderr(&refused).contains("free space"),
        "{}",
        stderr(&refused)
    );

    // And with nothing free at all, across a restart.
    mounted.fill_up_to(0);
    for _ in 0..2 {
        assert!(mounted.free() < 100_000);
        assert_eq!(read(&broker, "t", 2).await.unwrap(), value(2, LONG));
        assert_eq!(read(&broker, "small", 1).await.unwrap(), b"second");
        append(&broker, "small", b"third").await.unwrap_err();
    }
    delete_before(&broker, "small", 1).await;
    assert!(broker.terminate().success());
    let broker = Broker::start(&data_dir);
    assert_eq!(numbers(&broker, "t"), [2, 3, 4]);
    let refused = append(&broker, "small", b"third").await.unwrap_err();
    exhausted(&refused, &[data]);
    broker.ok(&["topic", "delete", "doomed", "--yes"]);

    // It heals without a restart.
    mounted.remove_ballast();
    assert_eq!(append(&broker, "small", b"third").await.unwrap(), 2);
    assert_eq!(append(&broker, "t", &value(5, LONG)).await.unwrap(), 5);
    broker.ok(&["topic", "create", "more"]);
    broker.kill();
    let broker = Broker::start(&data_dir);
    assert_eq!(numbers(&broker, "t"), [2, 3, 4, 5]);
    assert_eq!(numbers(&broker, "small"), [1, 2]);
    for n in 2..6 {
        assert_eq!(read(&broker, "t", n).await.unwrap(), value(n, LONG));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_sync_of_a_real_process_is_told_and_never_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let data_dir = dir.path().join("data");
    let broker = Broker::start(&data_dir);
    for topic in ["t", "small"] {
        broker.ok(&["topic", "create", topic]);
        append(&broker, topic, b"safe").await.unwrap();
    }
    let Some(failing) = BadSyncs::fail(broker.pid()) else {
        return skip("this process may not make the syncs of another fail with strace");
    };
    let unknown = append(&broker, "t", b"lost?").await.unwrap_err();
    assert_eq!(unknown.code(), Code::Unknown, "{unknown:?}");
    drop(failing);
    for _ in 0..2 {
        let refused = append(&broker, "t", b"refused").await.unwrap_err();
        assert_eq!(refused.code(), Code::DataLoss, "{refused:?}");
    }
    assert_eq!(numbers(&broker, "t"), [0]);
    append(&broker, "small", b"beside").await.unwrap();
    broker.kill();
    let broker = Broker::start(&data_dir);
    let kept = numbers(&broker, "t");
    assert!(kept == [0] || kept == [0, 1], "{kept:?}");
    let next = append(&broker, "t", b"after").await.unwrap();
    assert_eq!(next, kept.len() as u64);
    assert_eq!(numbers(&broker, "small"), [0, 1]);
}

/// Sets a limit of a process that runs; gives what it was.
fn limit(broker: &Broker, resource: Resource, current: Option<u64>) -> Option<u64> {
    let pid = Pid::from_raw(i32::try_from(broker.pid()).unwrap());
    // The hard limit stays: what was taken can be given back.
    let maximum = rustix::process::getrlimit(resource).maximum;
    let new = Rlimit { current, maximum };
    rustix::process::prlimit(pid, resource, new)
        .unwrap()
        .current
}

/// What a file system answers that takes no larger files, as a quota does: possible everywhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_limit_on_the_size_of_files_refuses_appends_and_nothing_else_and_heals() {
    let dir = tempfile::tempdir().unwrap();
    let data_dir = dir.path().join("data");
    let broker = Broker::start(&data_dir);
    for topic in ["t", "small"] {
        broker.ok(&["topic", "create", topic]);
    }
    append(&broker, "t", &value(0, LONG)).await.unwrap();
    append(&broker, "small", b"first").await.unwrap();
    // The broker's own files are shorter.
    let before = limit(&broker, Resource::Fsize, Some(3 << 20));
    let mut stored = 1;
    let refused = loop {
        assert!(stored < 20, "nothing is refused");
        match append(&broker, "t", &value(stored, LONG)).await {
            Ok(offset) => assert_eq!(offset, stored),
            Err(refused) => break refused,
        }
        stored += 1;
    };
    assert!(stored > 1);
    let at = data_dir.join("t-0");
    exhausted(
        &refused,
        &[at.to_str().unwrap(), "free space, or lower retention"],
    );
    assert!(
        (400_000..401_000).contains(&needed(&refused)),
        "{refused:?}"
    );
    append(&broker, "small", b"second").await.unwrap();
    for n in 0..stored {
        assert_eq!(read(&broker, "t", n).await.unwrap(), value(n, LONG));
    }
    delete_before(&broker, "t", 1).await;

    limit(&broker, Resource::Fsize, before);
    assert_eq!(
        append(&broker, "t", &value(stored, LONG)).await.unwrap(),
        stored
    );
    broker.kill();
    let broker = Broker::start(&data_dir);
    assert_eq!(numbers(&broker, "t"), (1..=stored).collect::<Vec<_>>());
    assert_eq!(numbers(&broker, "small"), [0, 1]);
}

/// Not one more file, nor connection: what needs none goes on, and all the rest when there are some.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_the_limit_of_open_files_a_roll_is_refused_and_heals() {
    let dir = tempfile::tempdir().unwrap();
    let data_dir = dir.path().join("data");
    let broker = Broker::start(&data_dir);
    for topic in ["t", "small"] {
        broker.ok(&["topic", "create", topic, "-c", SMALL_SEGMENTS]);
    }
    let mut log = broker.log().await;
    for n in 0..2 {
        append_by(&mut log, "t", &value(n, LONG)).await.unwrap();
    }
    let before = limit(&broker, Resource::Nofile, Some(0));
    for _ in 0..3 {
        let refused = append_by(&mut log, "t", &value(2, LONG)).await.unwrap_err();
        let at = data_dir.join("t-0");
        exhausted(
            &refused,
            &[at.to_str().unwrap(), "raise the limit of open files"],
        );
        append_by(&mut log, "small", b"beside").await.unwrap();
    }
    // One that connects now waits.
    let waits = std::net::TcpStream::connect(&broker.grpc).unwrap();
    limit(&broker, Resource::Nofile, before);
    assert_eq!(append_by(&mut log, "t", &value(2, LONG)).await.unwrap(), 2);
    assert_eq!(numbers(&broker, "small"), [0, 1, 2]);
    assert_eq!(broker.get("/health/ready").0, 200);
    drop(waits);
    broker.kill();
    let broker = Broker::start(&data_dir);
    assert_eq!(numbers(&broker, "t"), [0, 1, 2]);
}

/// A broker with records in two topics that was started three times, and killed.
async fn prepared(data_dir: &Path) {
    for round in 0..3 {
        let broker = Broker::start(data_dir);
        if round == 0 {
            broker.ok(&["topic", "create", "t", "-c", SMALL_SEGMENTS]);
            broker.ok(&["topic", "create", "small"]);
        }
        for n in 0..3 {
            append(&broker, "t", &value(round * 3 + n, LONG))
                .await
                .unwrap();
        }
        append(&broker, "small", &value(round, 8)).await.unwrap();
        broker.kill();
    }
}

fn files(dir: &Path, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let mut paths: Vec<_> = entries
        .filter(|path| path.extension().is_some_and(|found| found == extension))
        .collect();
    paths.sort();
    paths
}

fn generations(data_dir: &Path) -> Vec<PathBuf> {
    let mut paths = files(&data_dir.join("state"), "snapshot");
    paths.retain(|path| !path.to_string_lossy().contains("spare"));
    paths
}

fn spoil(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    for byte in bytes.iter_mut().step_by(7) {
        *byte ^= 0x55;
    }
    fs::write(path, bytes).unwrap();
}

async fn check_prepared(broker: &Broker) {
    assert_eq!(numbers(broker, "t"), (0..9).collect::<Vec<_>>());
    assert_eq!(numbers(broker, "small"), [0, 1, 2]);
    for n in 0..9 {
        assert_eq!(read(broker, "t", n).await.unwrap(), value(n, LONG));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_the_newest_generation_of_the_state_file_spoilt_the_other_serves() {
    let dir = tempfile::tempdir().unwrap();
    let data_dir = dir.path().join("data");
    prepared(&data_dir).await;
    spoil(generations(&data_dir).last().unwrap());
    let broker = Broker::start(&data_dir);
    check_prepared(&broker).await;
    append(&broker, "small", b"more").await.unwrap();
    broker.kill();
    let broker = Broker::start(&data_dir);
    assert_eq!(numbers(&broker, "small"), [0, 1, 2, 3]);
    broker.kill();

    // With both of them nobody knows what was durable: it does not guess, and touches nothing.
    let both = generations(&data_dir);
    assert_eq!(both.len(), 2, "{both:?}");
    both.iter().for_each(|path| spoil(path));
    let before: Vec<_> = all_files(&data_dir);
    let output = serve(&data_dir, &[])
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    assert_eq!(code(&output), 5, "{}", stderr(&output));
    assert!(stderr(&output).contains("state"), "{}", stderr(&output));
    assert!(all_files(&data_dir) == before, "a refusal changes nothing");
}

fn all_files(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(all_files(&path));
        } else {
            all.push((path.clone(), fs::read(&path).unwrap()));
        }
    }
    all.sort();
    all
}

/// Snapshots of producers, indexes, tables of epochs: none of them decides what is kept.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spoilt_snapshots_and_indexes_delete_no_data() {
    let dir = tempfile::tempdir().unwrap();
    let data_dir = dir.path().join("data");
    prepared(&data_dir).await;
    let segments = files(&data_dir.join("t-0"), "log");
    assert!(segments.len() >= 4);
    let mut spoilt = 0;
    for round in 0..3 {
        for partition in ["t-0", "small-0", "__cluster_metadata-0"] {
            for (path, bytes) in all_files(&data_dir.join(partition)) {
                if path.extension().is_some_and(|extension| extension == "log") {
                    continue;
                }
                match round {
                    0 => spoil(&path),
                    1 => fs::write(&path, &bytes[..bytes.len() / 2]).unwrap(),
                    _ => fs::write(&path, b"").unwrap(),
                }
                spoilt += 1;
            }
        }
        let broker = Broker::start(&data_dir);
        check_prepared(&broker).await;
        assert!(
            broker
                .get("/metrics")
                .1
                .contains("tidelog_partitions_faulted 0")
        );
        broker.kill();
        assert_eq!(files(&data_dir.join("t-0"), "log"), segments);
    }
    assert!(spoilt > 20, "{spoilt}");
}

/// Somebody cuts files of a running broker. It may end by that, since they are mapped; what is still
/// in the files is let alone, and what is missing is named.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mapped_file_that_somebody_cuts_costs_no_more_than_what_was_cut() {
    let dir = tempfile::tempdir().unwrap();
    let data_dir = dir.path().join("data");
    prepared(&data_dir).await;
    let broker = Broker::start(&data_dir);
    // So that it is in the map of the newest segment.
    for n in 9..11 {
        append(&broker, "t", &value(n, LONG)).await.unwrap();
    }
    let newest = files(&data_dir.join("t-0"), "log").pop().unwrap();
    let durable = fs::read(&newest).unwrap();
    let left = 64 * 4096;
    fs::File::options()
        .write(true)
        .open(&newest)
        .unwrap()
        .set_len(left)
        .unwrap();
    // This ends the process, or is refused; it is not answered with anything else.
    if let Ok(read) = read(&broker, "t", 10).await {
        assert_eq!(read, value(10, LONG));
    }
    broker.kill();

    let broker = Broker::start(&data_dir);
    let output = broker.run(&["consume", "t"]);
    assert_eq!(code(&output), 5, "{}", stderr(&output));
    let said = stderr(&output);
    let name = newest.file_name().unwrap().to_str().unwrap();
    let short = format!("{left} bytes where");
    assert!(said.contains(name) && said.contains(&short), "{said}");
    let refused = append(&broker, "t", b"x").await.unwrap_err();
    assert_eq!(refused.code(), Code::DataLoss, "{refused:?}");
    // The others serve, and the damaged one is as it was left.
    assert_eq!(numbers(&broker, "small"), [0, 1, 2]);
    append(&broker, "small", b"more").await.unwrap();
    broker.kill();
    assert!(fs::read(&newest).unwrap() == durable[..usize::try_from(left).unwrap()]);
}

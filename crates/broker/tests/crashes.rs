//! Changes of topics that are cut off at each of their calls to the disk, and directories that are
//! not as they should be.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use support::{append, config, create, new_topic, open, read_all, seams, try_open};
use tidelog_broker::{Broker, BrokerConfig, ErrorKind, Facts, NewTopic};
use tidelog_disk::{Disk, DiskOp, OpenHow};
use tidelog_log::offline::{Problem, apply_repair, plan_repair, read_state};
use tidelog_record::Timestamp;
use tidelog_sim::{FailMode, InjectedError, OpFilter, SimDisk};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Change {
    Create,
    Add,
    Delete,
}

async fn change(broker: &Broker, change: Change) -> Result<(), tidelog_broker::TopicError> {
    match change {
        Change::Create => create(broker, "made", 3).await.map(|_| ()),
        Change::Add => broker.add_partitions("old", 4).await.map(|_| ()),
        Change::Delete => broker.delete_topic("old").await,
    }
}

fn shape(broker: &Broker, name: &str) -> Option<u32> {
    broker.partitions_of(name).ok()
}

/// So that files cannot be moved, and stay under their names.
fn fail_renames(disk: &SimDisk) {
    let filter = OpFilter::op(DiskOp::Rename);
    disk.fail_nth(filter, 1, InjectedError::Io, FailMode::Forever);
}

/// A disk with the topic `old`, which has a record, cleanly stopped.
async fn prepared() -> SimDisk {
    let disk = SimDisk::new(1);
    let broker = open(&disk);
    create(&broker, "old", 2).await.unwrap();
    append(&broker, "old", "kept").await.unwrap();
    broker.stop().await.unwrap();
    disk
}

async fn check_after(broker: Broker, what: Change, context: &str) {
    assert_eq!(broker.health().faults, Vec::<String>::new(), "{context}");
    let old = shape(&broker, "old");
    let made = shape(&broker, "made");
    match what {
        Change::Create => assert!([None, Some(3)].contains(&made), "{context}: {made:?}"),
        Change::Add => assert!([Some(2), Some(4)].contains(&old), "{context}: {old:?}"),
        Change::Delete => assert!([None, Some(2)].contains(&old), "{context}: {old:?}"),
    }
    if old.is_some() {
        let kept = read_all(&broker, "old", 0).await.unwrap();
        assert_eq!(kept, [(0, "kept".to_owned())], "{context}");
    }
    // All of it can be done, or done again.
    if old.is_some() {
        broker.delete_topic("old").await.unwrap();
    }
    for name in ["old", "made"] {
        if shape(&broker, name).is_none() {
            create(&broker, name, 3).await.unwrap();
        }
        assert_eq!(
            append(&broker, name, "new").await.unwrap().get(),
            0,
            "{context}"
        );
        assert_eq!(
            read_all(&broker, name, 0).await.unwrap().len(),
            1,
            "{context}"
        );
    }
    broker.stop().await.unwrap();
}

#[tokio::test]
async fn a_change_that_a_crash_cuts_off_is_done_or_not_done() {
    let prepared = prepared().await;
    for what in [Change::Create, Change::Add, Change::Delete] {
        let disk = prepared.fork(2);
        let broker = open(&disk);
        let before = disk.io_count();
        change(&broker, what).await.unwrap();
        let calls = disk.io_count() - before;
        assert!(calls > 5, "{what:?} made {calls} calls");
        for nth in 1..=calls + 1 {
            for seed in 0..2 {
                let context = format!("{what:?}, call {nth} of {calls}, seed {seed}");
                let disk = prepared.fork(seed);
                let broker = open(&disk);
                // From that call on nothing reaches the disk: the process is as good as dead.
                disk.fail_nth(
                    OpFilter::mutating(),
                    nth,
                    InjectedError::Io,
                    FailMode::Forever,
                );
                let result = change(&broker, what).await;
                let disk = disk.fork(seed + 100);
                if seed > 0 {
                    disk.crash();
                }
                let again = open(&disk);
                match (&result, what) {
                    (Ok(()), Change::Create) => assert_eq!(shape(&again, "made"), Some(3)),
                    (Ok(()), Change::Add) => assert_eq!(shape(&again, "old"), Some(4)),
                    (Ok(()), Change::Delete) => assert_eq!(shape(&again, "old"), None),
                    (Err(e), _) if e.kind() == ErrorKind::Unknown => {}
                    (Err(e), _) => {
                        assert_eq!(shape(&again, "made"), None, "{context}: {e}");
                        assert_eq!(shape(&again, "old"), Some(2), "{context}: {e}");
                    }
                }
                check_after(again, what, &context).await;
            }
        }
    }
}

#[tokio::test]
async fn a_change_with_one_failing_call_is_done_or_not_done() {
    let prepared = prepared().await;
    for what in [Change::Create, Change::Add, Change::Delete] {
        for error in [InjectedError::Io, InjectedError::Full] {
            for nth in 1..45 {
                let context = format!("{what:?}, call {nth}, {error:?}");
                let disk = prepared.fork(nth);
                let broker = open(&disk);
                disk.fail_nth(OpFilter::mutating(), nth, error, FailMode::Once);
                let result = change(&broker, what).await;
                let made = shape(&broker, "made").is_some();
                match &result {
                    Ok(()) => assert_eq!(made, what == Change::Create, "{context}"),
                    Err(e) if e.kind() == ErrorKind::Unknown => {}
                    Err(e) => assert!(!made, "{context}: {e}"),
                }
                let disk = disk.fork(nth);
                check_after(open(&disk), what, &context).await;
            }
        }
    }
}

#[tokio::test]
async fn a_change_goes_on_when_its_caller_goes_away() {
    let disk = SimDisk::new(3);
    let broker = open(&disk);
    for _ in 0..20 {
        // Polled once: begun, and given up at the first wait.
        let create = create(&broker, "t", 2);
        drop(tokio::time::timeout(std::time::Duration::ZERO, create).await);
        // Waits for its turn behind the one that was given up.
        drop(broker.delete_topic("t").await);
    }
    broker.stop().await.unwrap();
    let broker = open(&disk.fork(1));
    assert_eq!(broker.health().faults, Vec::<String>::new());
}

#[tokio::test]
async fn power_loss_right_after_the_first_start_loses_nothing() {
    for seed in 0..30 {
        let disk = SimDisk::new(seed);
        let broker = open(&disk);
        create(&broker, "t", 1).await.unwrap();
        append(&broker, "t", "x").await.unwrap();
        let disk = disk.fork(seed);
        disk.crash();
        let broker = open(&disk);
        let read = read_all(&broker, "t", 0).await;
        assert_eq!(read.unwrap(), [(0, "x".to_owned())], "seed {seed}");
    }
}

#[tokio::test]
async fn a_lost_directory_faults_its_partition_alone() {
    let disk = prepared().await;
    let dir = config().data_dir.join("old-1");
    disk.remove_dir_all(&dir).unwrap();
    let broker = open(&disk);
    let e = broker.partition("old", 1).unwrap_err();
    assert_eq!(e.reason(), "PARTITION_FAULTED");
    assert!(e.to_string().contains("/srv/data/old-1"), "{e}");
    assert_eq!(broker.health().faults.len(), 1);
    assert!(
        broker
            .metrics_text()
            .contains("tidelog_partitions_faulted 1")
    );
    append(&broker, "old", "others serve").await.unwrap();
    broker.delete_topic("old").await.unwrap();
    create(&broker, "old", 2).await.unwrap();
    assert_eq!(broker.health().faults.len(), 0);
}

#[tokio::test]
async fn another_partitions_directory_is_not_taken_for_its_own() {
    let disk = prepared().await;
    let dir = |name: &str| config().data_dir.join(name);
    disk.rename(&dir("old-1"), &dir("aside")).unwrap();
    disk.rename(&dir("old-0"), &dir("old-1")).unwrap();
    disk.rename(&dir("aside"), &dir("old-0")).unwrap();
    let broker = open(&disk);
    let faults = broker.health().faults;
    assert_eq!(faults.len(), 2, "{faults:?}");
    assert!(
        faults
            .iter()
            .all(|fault| fault.contains("belongs to another log")),
        "{faults:?}"
    );
}

fn put(disk: &SimDisk, path: &Path) {
    disk.create_dir_all(path.parent().unwrap()).unwrap();
    let file = disk.open(path, OpenHow::Create).unwrap();
    file.write_at(0, &[std::io::IoSlice::new(b"mine")]).unwrap();
}

#[tokio::test]
async fn a_strangers_directory_is_left_alone() {
    let disk = SimDisk::new(4);
    let broker = open(&disk);
    let stranger = PathBuf::from("/srv/data/t-1/letters.txt");
    put(&disk, &stranger);
    let e = create(&broker, "t", 2).await.unwrap_err();
    assert!(e.to_string().contains("/srv/data/t-1 is in the way"), "{e}");
    assert_eq!(disk.contents(&stranger), b"mine");
    assert_eq!(shape(&broker, "t"), None);
    disk.remove_dir_all(stranger.parent().unwrap()).unwrap();
    create(&broker, "t", 2).await.unwrap();
}

#[tokio::test]
async fn leftovers_of_deletions_are_removed_at_the_start() {
    let disk = prepared().await;
    let broker = open(&disk);
    // The files cannot be moved, and so stay under their names.
    fail_renames(&disk);
    broker.delete_topic("old").await.unwrap();
    disk.stop_failing();
    // Fewer partitions than before: the rest of the directories is nobody's.
    create(&broker, "old", 1).await.unwrap();
    append(&broker, "old", "new").await.unwrap();
    put(&disk, Path::new("/srv/data/0-0.deleted/x"));
    let disk = disk.fork(5);
    disk.crash();
    let broker = open(&disk);
    assert_eq!(
        read_all(&broker, "old", 0).await.unwrap(),
        [(0, "new".to_owned())]
    );
    let files = disk.files();
    let left: Vec<_> = files
        .iter()
        .filter(|path| {
            let path = path.to_string_lossy();
            path.contains("deleted") || path.contains("old-1")
        })
        .collect();
    assert_eq!(left, Vec::<&PathBuf>::new());
    broker.stop().await.unwrap();
}

/// What was cut off is not known any more; the files of it are nobody's to remove.
#[tokio::test]
async fn a_start_on_metadata_that_a_repair_has_cut_removes_no_partition() {
    let disk = prepared().await;
    let broker = open(&disk);
    create(&broker, "later", 1).await.unwrap();
    append(&broker, "later", "kept").await.unwrap();
    broker.stop().await.unwrap();
    disk.kill();
    let metadata = PathBuf::from("/srv/data/__cluster_metadata-0");
    let log = metadata.join("00000000000000000000.log");
    let bytes = disk.contents(&log);
    let place = bytes.windows(5).rposition(|window| window == b"later");
    disk.flip_bit(&log, place.unwrap() as u64, 3);
    let shared: Arc<dyn Disk> = Arc::new(disk.clone());
    let data_dir = Path::new("/srv/data");
    let mut problems: Vec<Problem> = Vec::new();
    let state = read_state(&disk, data_dir, &mut problems).unwrap();
    let now = Timestamp::from_millis(0);
    let plan = plan_repair(&shared, &metadata, state.as_ref(), true, now, &mut problems).unwrap();
    apply_repair(&shared, &plan, Some(data_dir)).unwrap();

    let contents = |disk: &SimDisk, dir: &str| {
        let file = format!("/srv/data/{dir}/00000000000000000000.log");
        disk.contents(Path::new(&file))
    };
    let before = contents(&disk, "later-0");
    for _ in 0..2 {
        let broker = open(&disk);
        assert_eq!(shape(&broker, "later"), None, "it was cut off");
        broker.stop().await.unwrap();
        disk.kill();
        assert_eq!(contents(&disk, "later-0"), before);
    }
    // Also when another one takes its name.
    let broker = open(&disk);
    create(&broker, "later", 1).await.unwrap();
    append(&broker, "later", "new").await.unwrap();
    broker.stop().await.unwrap();
    let files = disk.files();
    let mut strays = files
        .iter()
        .filter(|path| path.to_string_lossy().contains(".stray/"));
    let stray = strays.find(|path| path.extension().is_some_and(|ending| ending == "log"));
    assert_eq!(disk.contents(stray.unwrap()), before);
}

/// A directory is removed as a deleted partition's only where its log says that it is.
#[tokio::test]
async fn another_log_under_the_name_of_a_deleted_topic_stays() {
    let disk = prepared().await;
    let broker = open(&disk);
    create(&broker, "kept", 1).await.unwrap();
    append(&broker, "kept", "mine").await.unwrap();
    fail_renames(&disk);
    broker.delete_topic("old").await.unwrap();
    broker.stop().await.unwrap();
    let disk = disk.fork(5);
    disk.crash();
    let (old, kept) = (Path::new("/srv/data/old-0"), Path::new("/srv/data/kept-0"));
    disk.remove_dir_all(old).unwrap();
    disk.rename(kept, old).unwrap();
    let broker = open(&disk);
    assert!(
        read_all(&broker, "kept", 0).await.is_err(),
        "it is elsewhere"
    );
    broker.stop().await.unwrap();
    disk.kill();
    disk.rename(old, kept).unwrap();
    let broker = open(&disk);
    assert_eq!(
        read_all(&broker, "kept", 0).await.unwrap(),
        [(0, "mine".to_owned())]
    );
}

#[tokio::test]
async fn a_leftover_that_cannot_be_removed_does_not_keep_a_broker_from_starting() {
    let disk = prepared().await;
    put(&disk, Path::new("/srv/data/0-0.deleted/x"));
    disk.fail_nth(
        OpFilter::op(DiskOp::Remove).on("deleted"),
        1,
        InjectedError::Io,
        FailMode::Forever,
    );
    let broker = try_open(&disk).unwrap();
    assert_eq!(read_all(&broker, "old", 0).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_full_disk_refuses_appends_and_new_topics_and_heals() {
    let disk = prepared().await;
    let free_bytes_min = 1 << 20;
    let config = BrokerConfig {
        free_bytes_min,
        ..config()
    };
    let broker = Broker::open(config, seams(&disk)).unwrap();
    let room = Some(free_bytes_min - 1);
    disk.set_free_bytes(room);
    let files = disk.files();
    let e = append(&broker, "old", "too much").await.unwrap_err();
    assert_eq!(
        (e.reason(), e.kind()),
        ("STORAGE_FULL", ErrorKind::Exhausted)
    );
    let e = create(&broker, "made", 3).await.unwrap_err();
    assert_eq!(e.reason(), "STORAGE_FULL");
    let e = broker.add_partitions("old", 9).await.unwrap_err();
    assert_eq!(e.reason(), "STORAGE_FULL");
    assert_eq!(
        disk.files(),
        files,
        "what was refused left something behind"
    );
    assert_eq!(
        (shape(&broker, "made"), shape(&broker, "old")),
        (None, Some(2))
    );

    assert_eq!(read_all(&broker, "old", 0).await.unwrap().len(), 1);
    let handle = broker.partition("old", 0).unwrap();
    handle
        .delete_records(tidelog_broker::OffsetSpec::Latest)
        .await
        .unwrap();
    assert_eq!(broker.health().faults, Vec::<String>::new());
    disk.set_free_bytes(None);
    assert_eq!(append(&broker, "old", "again").await.unwrap().get(), 1);
    disk.set_free_bytes(room);
    broker.delete_topic("old").await.unwrap();
    disk.set_free_bytes(None);
    create(&broker, "old", 2).await.unwrap();
    broker.stop().await.unwrap();
}

#[tokio::test]
async fn out_of_files_is_told_apart_and_leaves_nothing_behind() {
    let disk = prepared().await;
    let broker = open(&disk);
    let files = disk.files();
    disk.fail_nth(
        OpFilter::op(DiskOp::Open).on("/made-2"),
        1,
        InjectedError::OutOfFiles,
        FailMode::Forever,
    );
    let e = create(&broker, "made", 3).await.unwrap_err();
    assert_eq!(
        (e.reason(), e.kind()),
        ("STORAGE_ERROR", ErrorKind::Exhausted)
    );
    assert!(e.to_string().contains("limit of open files"), "{e}");
    assert_eq!(disk.files(), files);
    disk.stop_failing();
    create(&broker, "made", 3).await.unwrap();
}

#[tokio::test]
async fn there_are_no_more_topics_and_partitions_than_the_broker_takes() {
    let disk = prepared().await;
    let config = BrokerConfig {
        topics_max: 2,
        partitions_max: 5,
        ..config()
    };
    let broker = Broker::open(config.clone(), seams(&disk)).unwrap();
    let refused = |e: tidelog_broker::TopicError| {
        assert_eq!(
            (e.reason(), e.kind()),
            ("LIMIT_REACHED", ErrorKind::Exhausted)
        );
        assert_eq!(e.retry_after(), None);
        let facts: Vec<String> = e.facts().into_iter().map(|(_, value)| value).collect();
        facts.join(" ")
    };
    let files = disk.files();
    let e = create(&broker, "made", 4).await.unwrap_err();
    assert_eq!(refused(e), "partitions_max 5 2 4");
    let e = broker.add_partitions("old", 6).await.unwrap_err();
    assert_eq!(refused(e), "partitions_max 5 2 4");
    assert_eq!(disk.files(), files);
    create(&broker, "made", 2).await.unwrap();
    let only_check = NewTopic {
        validate_only: true,
        ..new_topic("more", 1, &[])
    };
    let e = broker.create_topic(only_check).await.unwrap_err();
    assert_eq!(refused(e), "topics_max 2 2 1");
    broker.add_partitions("old", 3).await.unwrap();
    let e = broker.add_partitions("made", 3).await.unwrap_err();
    assert_eq!(refused(e), "partitions_max 5 5 1");
    // Lower limits than there is keep nobody from using it.
    broker.stop().await.unwrap();
    drop(broker);
    let config = BrokerConfig {
        topics_max: 1,
        partitions_max: 1,
        ..config
    };
    let broker = Broker::open(config, seams(&disk)).unwrap();
    append(&broker, "old", "more").await.unwrap();
    broker.delete_topic("made").await.unwrap();
}

#[tokio::test]
async fn no_space_at_all_is_survived_too() {
    let disk = prepared().await;
    let config = BrokerConfig {
        free_bytes_min: 0,
        ..config()
    };
    let broker = Broker::open(config, seams(&disk)).unwrap();
    for room in (0..40).map(|sectors| sectors * 512) {
        let files = disk.files();
        disk.set_free_bytes(Some(room));
        let made = broker.create_topic(new_topic("made", 3, &[])).await;
        disk.set_free_bytes(None);
        match made {
            Ok(_) => broker.delete_topic("made").await.unwrap(),
            Err(e) => {
                assert_eq!(e.reason(), "STORAGE_FULL", "{room}: {e}");
                assert_eq!(disk.files(), files, "{room} left something behind");
            }
        }
    }
    create(&broker, "made", 3).await.unwrap();
    append(&broker, "made", "x").await.unwrap();
}

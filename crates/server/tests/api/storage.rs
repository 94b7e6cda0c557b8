//! What the disk does to requests: full, broken, damaged.

use std::sync::Arc;

use tidelog_broker::Seams;
use tidelog_disk::DiskOp;
use tidelog_proto::v1;
use tidelog_sim::{FailMode, InjectedError, OpFilter, SimDisk};
use tonic::Code;

use crate::support::{Fixture, append_batch, batch, fetch, told, told_within};

async fn on_sim(disk: &SimDisk) -> Fixture {
    let seams = Seams {
        disk: Arc::new(disk.clone()),
        ..Seams::os()
    };
    Fixture::on(tempfile::tempdir().unwrap(), seams, |config| {
        config.data_dir = "/data".into();
    })
    .await
}

#[tokio::test]
async fn a_full_disk_refuses_appends_until_there_is_space() {
    let disk = SimDisk::new(1);
    let mut f = on_sim(&disk).await;
    f.create("t", 1).await;
    f.append("t", 0, &["a"]).await;
    disk.set_free_bytes(Some(0));
    let value = "x".repeat(1_000_000);
    let mut refused = None;
    // What was reserved ahead is used up first.
    for _ in 0..200 {
        if let Err(status) = f.log.append(append_batch("t", 0, batch(&[&value]))).await {
            refused = Some(status);
            break;
        }
    }
    let refused = refused.expect("the disk is full");
    told(refused, Code::ResourceExhausted, "STORAGE_FULL")
        .can_be_retried()
        .says("free space");
    assert_eq!(f.values("t", 0, 0).await[0], "a", "reads go on");
    disk.set_free_bytes(None);
    f.append("t", 0, &["b"]).await;
}

#[tokio::test]
async fn a_failed_sync_leaves_the_outcome_unknown_and_stops_the_partition() {
    let disk = SimDisk::new(2);
    let mut f = on_sim(&disk).await;
    f.create("t", 1).await;
    f.append("t", 0, &["a"]).await;
    disk.fail_nth(
        OpFilter::op(DiskOp::Sync),
        1,
        InjectedError::Io,
        FailMode::Once,
    );
    let unknown = f
        .log
        .append(append_batch("t", 0, batch(&["b"])))
        .await
        .unwrap_err();
    told(unknown, Code::Unknown, "OUTCOME_UNKNOWN").cannot_be_retried();
    let faulted = f
        .log
        .append(append_batch("t", 0, batch(&["c"])))
        .await
        .unwrap_err();
    told(faulted, Code::DataLoss, "PARTITION_FAULTED")
        .fact("topic", "t")
        .fact("partition", 0)
        .cannot_be_retried();
    // What was acknowledged is still read.
    assert_eq!(f.values("t", 0, 0).await, ["a"]);
    let (code, _, body) = f.get("/health/ready").await;
    assert_eq!(code, 200);
    assert!(body.contains("t-0"), "{body}");
    let described = v1::DescribeTopicRequest {
        name: "t".to_owned(),
        include_segments: false,
    };
    let described = f
        .topics
        .describe_topic(described)
        .await
        .unwrap()
        .into_inner();
    assert!(!described.partitions[0].fault.is_empty());
}

#[tokio::test]
async fn damaged_records_are_not_served() {
    let disk = SimDisk::new(3);
    let mut f = on_sim(&disk).await;
    f.create_with("t", 1, &[("segment.bytes", "1048576")]).await;
    // Sealed segments of 1 MiB, so that the first is read from the disk after a restart.
    let value = "x".repeat(300_000);
    for _ in 0..12 {
        f.append("t", 0, &[&value]).await;
    }
    let Fixture { server, dir, .. } = f;
    server
        .stop(std::time::Duration::from_secs(30))
        .await
        .unwrap();
    drop(dir);
    let first = disk
        .files()
        .into_iter()
        .find(|path| path.ends_with("t-0/00000000000000000000.log"))
        .expect("the first segment is there");
    disk.flip_bit(&first, 150_000, 3);
    disk.kill();
    let mut f = on_sim(&disk).await;
    let fetched = f.log.fetch(fetch("t", 0, 0)).await.unwrap().into_inner();
    told_within(
        fetched.partitions[0].error.clone(),
        Code::DataLoss,
        "DATA_DAMAGED",
    )
    .says("damaged")
    .cannot_be_retried();
    // Later segments are as they were.
    let last = f.log.fetch(fetch("t", 0, 11)).await.unwrap().into_inner();
    assert_eq!(last.partitions[0].error, None);
    assert_eq!(last.partitions[0].next_offset, 12);
}

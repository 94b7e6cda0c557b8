//! Payload is not copied below the listeners: what appends and fetches allocate is counted. Alone in
//! its process, since the allocator counts for all threads.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::alloc::System;

use bytes::Bytes;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use tidelog_broker::{
    Acks, AppendRequest, Broker, BrokerConfig, FetchPartition, FetchRequest, NewTopic, Payload,
    Seams,
};
use tidelog_record::{BatchBuilder, Compression, Timestamp};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const BATCH_BYTES: usize = 512 << 10;
const BATCHES: usize = 40;
/// What one append or fetch may allocate, whatever the length of its payload.
const PER_CALL_MAX: usize = 8 << 10;

fn batch() -> Bytes {
    let mut builder = BatchBuilder::new(Compression::None);
    let value = vec![7; 1000];
    for _ in 0..BATCH_BYTES / value.len() {
        builder
            .push(Timestamp::from_millis(1), None, Some(&value), &[])
            .unwrap();
    }
    builder.build().unwrap()
}

async fn append(broker: &Broker, acks: Acks, batch: Bytes) {
    let request = AppendRequest {
        topic: "t".to_owned(),
        partition: Some(0),
        acks,
        payload: Payload::Batch(batch),
    };
    let parts = broker.submit(request).await.unwrap().await;
    assert!(parts[0].result.is_ok());
}

/// Bytes that were allocated since `region` began, those that were given back included.
fn allocated(region: &Region<'_, System>) -> usize {
    let change = region.change();
    change.bytes_allocated + usize::try_from(change.bytes_reallocated.max(0)).unwrap()
}

/// All that is there, and where in memory each part lies.
async fn read_all(broker: &Broker) -> (usize, Vec<*const u8>) {
    let partition = broker.partition("t", 0).unwrap();
    let mut from = partition.ends().log_start;
    let (mut len, mut places) = (0, Vec::with_capacity(BATCHES));
    loop {
        let data = partition.read(from, BATCH_BYTES).await.unwrap();
        if data.batches.is_empty() {
            return (len, places);
        }
        for part in &data.batches.parts {
            len += part.len();
            places.push(part.as_ptr());
        }
        from = data.batches.next_offset;
    }
}

#[tokio::test]
async fn appends_and_fetches_do_not_copy_payload() {
    let dir = tempfile::tempdir().unwrap();
    let config = BrokerConfig {
        data_dir: dir.path().join("data"),
        ..BrokerConfig::default()
    };
    let opened = tokio::task::spawn_blocking(|| Broker::open(config, Seams::os()));
    let broker = opened.await.unwrap().unwrap();
    let new = NewTopic {
        name: "t".to_owned(),
        partitions: 1,
        ..NewTopic::default()
    };
    broker.create_topic(new).await.unwrap();
    let batch = batch();
    // What is made once: room in queues, threads' own state.
    append(&broker, Acks::All, batch.clone()).await;
    append(&broker, Acks::Leader, batch.clone()).await;

    let region = Region::new(ALLOCATOR);
    for n in 0..BATCHES {
        let acks = if n % 2 == 0 { Acks::All } else { Acks::Leader };
        append(&broker, acks, batch.clone()).await;
    }
    // Durable, and so readable, is what was appended before this.
    append(&broker, Acks::All, batch.clone()).await;
    let produced = allocated(&region);
    assert!(
        produced < (BATCHES + 1) * PER_CALL_MAX,
        "{} appends of {BATCH_BYTES} bytes allocated {produced} bytes",
        BATCHES + 1
    );

    let region = Region::new(ALLOCATOR);
    let (len, places) = read_all(&broker).await;
    let fetched = allocated(&region);
    assert_eq!(len, (BATCHES + 3) * batch.len());
    assert!(
        fetched < (BATCHES + 3) * PER_CALL_MAX,
        "reading {len} bytes allocated {fetched} bytes"
    );
    let (_, again) = read_all(&broker).await;
    assert_eq!(
        places, again,
        "both are the same bytes of the segment's map"
    );

    let region = Region::new(ALLOCATOR);
    let request = FetchRequest {
        partitions: vec![FetchPartition {
            topic: "t".to_owned(),
            partition: 0,
            offset: 0,
            bytes_max: len,
        }],
        bytes_min: 1,
        bytes_max: len,
        wait_max: std::time::Duration::ZERO,
        from_replica: false,
    };
    let anything = |bytes_max| async move { (bytes_max, ()) };
    let (answers, _room) = broker.fetch(request, anything).await;
    let fetched = allocated(&region);
    let parts = &answers[0].result.as_ref().unwrap().batches;
    assert_eq!(parts.len_bytes(), len);
    assert!(
        fetched < 4 * PER_CALL_MAX,
        "a fetch of {len} bytes allocated {fetched} bytes"
    );
    broker.stop().await.unwrap();
}

//! What replication allocates, from the append at the leader to the logs of both followers, over the links
//! of brokers. Alone in its process, since the allocator counts for all threads.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::alloc::System;
use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use support::{create_anywhere, has_until, open, soon, three};
use tidelog_broker::{Acks, AppendRequest, Payload};
use tidelog_record::{BatchBuilder, Compression, Timestamp};
use tidelog_server::Server;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Of payload, in each part of the test.
const BYTES: usize = 64 << 20;
/// Batches of so many bytes, so many of which are not acknowledged yet, and how many bytes are allocated at most
/// for each byte of payload, at all three together. Two would be the least, a copy of what it receives at each
/// follower; the client's batch is there before, and logs are maps of files. Large batches take 2.02 to 2.2;
/// small ones 2.38 to 2.42 where many of them share messages, and 2.50 to 2.53 where few do: what is said of each
/// message.
const PARTS: [(usize, usize, f64); 3] =
    [(16 << 10, 4, 2.7), (16 << 10, 64, 2.5), (1 << 20, 4, 2.5)];

/// A batch of one record.
fn batch(bytes: usize) -> Bytes {
    let mut builder = BatchBuilder::new(Compression::None);
    let value = vec![7; bytes - 100];
    let time = Timestamp::from_millis(1);
    builder.push(time, None, Some(&value), &[]).unwrap();
    builder.build().unwrap()
}

/// Appends the batch again and again, and waits until all have it.
async fn replicate(
    servers: &[&Server],
    leader: &Server,
    batch: &Bytes,
    count: usize,
    in_flight: usize,
) {
    let mut waiting = VecDeque::new();
    let mut end = 0;
    for number in 0..count + in_flight {
        if number < count {
            let request = AppendRequest {
                topic: "t".to_owned(),
                partition: Some(0),
                acks: Acks::All,
                payload: Payload::Batch(batch.clone()),
            };
            waiting.push_back(leader.broker().submit(request).await.unwrap());
        }
        if number >= in_flight {
            let parts = waiting.pop_front().unwrap().await;
            let appended = parts[0].result.as_ref().unwrap();
            end = appended.base_offset.get() + 1;
        }
    }
    for server in servers {
        soon("replication", has_until(server, "t", end)).await;
    }
}

/// The server that leads the partition, as the first append that is taken tells.
async fn leader<'a>(servers: &[&'a Server]) -> &'a Server {
    loop {
        for server in servers {
            let request = AppendRequest {
                topic: "t".to_owned(),
                partition: Some(0),
                acks: Acks::All,
                payload: Payload::Batch(batch(1000)),
            };
            if let Ok(pending) = server.broker().submit(request).await
                && pending.await[0].result.is_ok()
            {
                return server;
            }
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_replication_allocates_is_bounded_by_what_is_replicated() {
    let dirs = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let opening = three(&dirs)
        .into_iter()
        .map(|(config, listeners)| open(&config, listeners));
    let opening: Vec<_> = opening.collect();
    let mut servers = Vec::new();
    for one in opening {
        servers.push(soon("the founding", one).await.unwrap().unwrap());
    }
    let all: Vec<_> = servers.iter().collect();
    soon("a topic", create_anywhere(&all, "t")).await;
    let leader = soon("a leader", leader(&all)).await;
    let mut too_many = Vec::new();
    for (bytes, in_flight, most) in PARTS {
        let (batch, count) = (batch(bytes), BYTES / bytes);
        // What is made once: buffers of the connections.
        replicate(&all, leader, &batch, count / 8, in_flight).await;
        let region = Region::new(ALLOCATOR);
        replicate(&all, leader, &batch, count, in_flight).await;
        let change = region.change();
        let grown = usize::try_from(change.bytes_reallocated.max(0)).unwrap();
        let allocated = change.bytes_allocated + grown;
        #[allow(clippy::cast_precision_loss, reason = "far below what a float holds")]
        let ratio = allocated as f64 / (count * batch.len()) as f64;
        let what =
            format!("{in_flight} batches of {bytes} bytes: {ratio:.2} bytes allocated a byte");
        println!("{what}");
        if ratio > most {
            too_many.push(what);
        }
    }
    for server in servers {
        soon("a stop", server.stop(Duration::from_secs(10)))
            .await
            .unwrap();
    }
    assert!(too_many.is_empty(), "{too_many:?}");
}

use super::*;

fn accumulator(linger_ms: u64, per_partition: usize) -> Accumulator {
    Accumulator::new(Limits {
        idempotent: false,
        compression: Compression::None,
        linger: Duration::from_millis(linger_ms),
        in_flight_per_partition_max: per_partition,
    })
}

fn next(accumulator: &mut Accumulator) -> Option<(QueueId, ClosedBatch)> {
    accumulator.next_to_send(|_, _, _| true)
}

fn push(accumulator: &mut Accumulator, partition: u32, len: usize) -> Pushed {
    let topic = TopicName::new("t").unwrap();
    let record = ProducerRecord::new(topic).value(vec![0; len]);
    let partition = PartitionId::new(partition);
    accumulator
        .push(&record, partition, Timestamp::NONE, len, 1000)
        .unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_full_batch_is_closed_and_an_open_one_lingers() {
    let now = Instant::now();
    let mut accumulator = accumulator(5, 1);
    assert!(
        push(&mut accumulator, 0, 500).wake,
        "the driver must know when it is due"
    );
    assert!(next(&mut accumulator).is_none());
    let second = push(&mut accumulator, 0, 500);
    assert!(second.wake, "the first batch is closed");
    let (_, batch) = next(&mut accumulator).expect("the first is full");
    assert_eq!((batch.head.id, batch.head.reserved_bytes), (0, 500));
    accumulator.landed(0, 0);

    assert!(next(&mut accumulator).is_none());
    let due = now + Duration::from_millis(5);
    assert_eq!(accumulator.on_time(now), Some(due));
    assert_eq!(accumulator.on_time(due), None);
    assert_eq!(
        next(&mut accumulator)
            .expect("it lingered enough")
            .1
            .head
            .id,
        1
    );
}

#[tokio::test(start_paused = true)]
async fn without_linger_records_gather_while_others_are_on_their_way() {
    let mut accumulator = accumulator(0, 1);
    push(&mut accumulator, 0, 10);
    let (id, _) = next(&mut accumulator).expect("at once");
    for _ in 0..5 {
        push(&mut accumulator, 0, 10);
    }
    assert!(next(&mut accumulator).is_none(), "one at a time");
    accumulator.landed(id, 0);
    let (_, batch) = next(&mut accumulator).expect("the gathered ones");
    assert_eq!(batch.head.reserved_bytes, 50);
}

#[tokio::test(start_paused = true)]
async fn a_failed_batch_goes_before_later_ones() {
    let now = Instant::now();
    let mut accumulator = accumulator(0, 3);
    let mut sent = Vec::new();
    for _ in 0..3 {
        push(&mut accumulator, 0, 990);
        sent.push(next(&mut accumulator).expect("room for three"));
    }
    push(&mut accumulator, 0, 990);
    push(&mut accumulator, 1, 990);
    // The second, then the first and the third fail.
    let until = now + Duration::from_millis(10);
    for at in [1, 0, 0] {
        let (id, batch) = sent.remove(at);
        accumulator.landed(id, batch.head.id);
        accumulator.put_back(id, batch, Some(until));
    }
    let (other, _) = next(&mut accumulator).expect("the other partition goes on");
    assert_eq!(accumulator.place(other).1, PartitionId::new(1));
    assert!(next(&mut accumulator).is_none(), "the partition is muted");
    assert_eq!(accumulator.on_time(now), Some(until));
    accumulator.on_time(until);
    let ids: Vec<_> = std::iter::from_fn(|| next(&mut accumulator))
        .map(|(_, batch)| batch.head.id)
        .collect();
    assert_eq!(ids, [0, 1, 2]);
    accumulator.landed(0, 0);
    assert_eq!(
        next(&mut accumulator)
            .expect("then the later ones")
            .1
            .head
            .id,
        3
    );
}

#[tokio::test(start_paused = true)]
async fn old_batches_expire_and_flushing_waits_only_for_older_ones() {
    let now = Instant::now();
    let mut accumulator = accumulator(1000, 1);
    push(&mut accumulator, 0, 10);
    let mark = accumulator.next_batch();
    let later = now + Duration::from_secs(1);
    tokio::time::advance(later - now).await;
    push(&mut accumulator, 1, 10);
    assert!(
        accumulator
            .take_expired(now - Duration::from_secs(1))
            .is_empty()
    );
    let expired = accumulator.take_expired(now);
    assert_eq!(expired.len(), 1);
    assert!(!accumulator.is_settled_before(mark));
    accumulator.settled(expired[0].1.head.id);
    assert!(accumulator.is_settled_before(mark));
    assert!(accumulator.has_outstanding());
}

#[tokio::test(start_paused = true)]
async fn what_is_held_back_waits_until_it_is_released() {
    let mut accumulator = accumulator(0, 1);
    for partition in 0..12 {
        push(&mut accumulator, partition, 10);
    }
    let mut asked = 0;
    let sent = std::iter::from_fn(|| {
        accumulator.next_to_send(|_, _, partition| {
            asked += 1;
            partition.get() < 10
        })
    });
    assert_eq!(sent.count(), 10);
    assert_eq!(asked, 12, "each once");
    push(&mut accumulator, 10, 10);
    assert!(next(&mut accumulator).is_none(), "it is still held back");
    accumulator.release([10]);
    let (id, batch) = next(&mut accumulator).expect("it was released");
    assert_eq!((id, batch.head.reserved_bytes), (10, 20));
    assert!(next(&mut accumulator).is_none());
}

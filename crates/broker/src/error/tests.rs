//! What a client is told of each error.

use super::*;

fn name() -> TopicName {
    TopicName::new("orders").expect("the name is valid")
}

/// What a client is told: the reason and kind are promises, the text is read by people.
#[test]
fn errors_say_what_was_wrong_and_what_is_allowed() {
    use ErrorKind::*;
    let not_found = || LookupError::TopicNotFound {
        topic: "orders".to_owned(),
    };
    let out_of_range = || ReadError::OutOfRange {
        requested: 9,
        log_start: Offset::ZERO,
        high_watermark: Offset::new(3).expect("3 is small"),
    };
    let not_deleted = DeleteError::OutOfRange {
        requested: Offset::new(9).expect("9 is small"),
        log_start: Offset::ZERO,
        high_watermark: Offset::new(3).expect("3 is small"),
    };
    let partition_not_found = LookupError::PartitionNotFound {
        topic: name(),
        partition: 7,
        partitions: 3,
    };
    let faulted = LookupError::Faulted {
        topic: name(),
        partition: 1,
        fault: "/data/orders-1 holds no log".to_owned(),
    };
    let too_large = AppendError::TooLarge {
        topic: name(),
        len: 20,
        max: 10,
    };
    let overloaded = AppendError::Overloaded {
        len: 20,
        max: 10,
        waited_ms: 5,
    };
    let poisoned = AppendError::Poisoned {
        topic: name(),
        partition: 1,
        fault: "EIO".to_owned(),
    };
    let unknown = AppendError::OutcomeUnknown {
        cause: "the sync failed".to_owned(),
    };
    let limit = TopicError::LimitReached {
        what: "topics",
        setting: "topics_max",
        max: 9,
        count: 8,
        asked: 2,
    };
    let policy = DeleteError::Policy { topic: name() };
    type Case = (Box<dyn Facts>, ErrorKind, &'static str, &'static str, usize);
    let table: Vec<Case> = vec![
        (
            Box::new(not_found()),
            NotFound,
            "TOPIC_NOT_FOUND",
            "topic \"orders\" does not exist",
            1,
        ),
        (
            Box::new(partition_not_found),
            NotFound,
            "PARTITION_NOT_FOUND",
            "topic \"orders\" has no partition 7: it has 3, counted from 0",
            3,
        ),
        (
            Box::new(faulted),
            DataLoss,
            "PARTITION_FAULTED",
            "/data/orders-1 holds no log",
            2,
        ),
        (
            Box::new(policy),
            Invalid,
            "POLICY_VIOLATION",
            "its cleanup.policy is compact; allowed are delete and compact,delete",
            1,
        ),
        (
            Box::new(AppendError::InternalTopic { topic: name() }),
            Denied,
            "INTERNAL_TOPIC",
            "clients cannot write to it",
            1,
        ),
        (
            Box::new(too_large),
            Invalid,
            "BATCH_TOO_LARGE",
            "20 bytes is above max.message.bytes",
            3,
        ),
        (
            Box::new(overloaded),
            Exhausted,
            "OVERLOADED",
            "holds at most 10 bytes",
            2,
        ),
        (
            Box::new(AppendError::Full {
                what: "no space".to_owned(),
                dir: "/data".into(),
                needed: 7,
            }),
            Exhausted,
            "STORAGE_FULL",
            "no space; free space, or lower retention.ms",
            2,
        ),
        (
            Box::new(AppendError::OutOfFiles("no open file".to_owned())),
            Exhausted,
            "STORAGE_ERROR",
            "no open file; raise the limit of open files",
            0,
        ),
        (
            Box::new(poisoned),
            DataLoss,
            "PARTITION_FAULTED",
            "takes no appends: EIO",
            2,
        ),
        (
            Box::new(AppendError::Stopping),
            Unavailable,
            "SHUTTING_DOWN",
            "the broker is stopping",
            0,
        ),
        (
            Box::new(unknown),
            Unknown,
            "OUTCOME_UNKNOWN",
            "the sync failed",
            0,
        ),
        (
            Box::new(out_of_range()),
            OutOfRange,
            "OFFSET_OUT_OF_RANGE",
            "starts at 0 and the high watermark is 3",
            3,
        ),
        (
            Box::new(ReadError::Damaged("bad bytes".to_owned())),
            DataLoss,
            "DATA_DAMAGED",
            "bad bytes",
            0,
        ),
        (
            Box::new(ReadError::Disk("EIO".to_owned())),
            Unavailable,
            "STORAGE_ERROR",
            "EIO",
            0,
        ),
        (
            Box::new(DeleteError::Read(out_of_range())),
            OutOfRange,
            "OFFSET_OUT_OF_RANGE",
            "offset 9",
            3,
        ),
        (
            Box::new(not_deleted),
            OutOfRange,
            "OFFSET_OUT_OF_RANGE",
            "records before offset 9 cannot be deleted: allowed is an offset from the log start, \
             0, to the high watermark, 3",
            3,
        ),
        (
            Box::new(DeleteError::Append(AppendError::Stopping)),
            Unavailable,
            "SHUTTING_DOWN",
            "stopping",
            0,
        ),
        (
            Box::new(TopicError::Storage("EIO".to_owned())),
            Unavailable,
            "STORAGE_ERROR",
            "could not be made: EIO",
            0,
        ),
        (
            Box::new(TopicError::OutOfFiles("EMFILE".to_owned())),
            Exhausted,
            "STORAGE_ERROR",
            "could not be made: EMFILE; raise the limit of open files",
            0,
        ),
        (
            Box::new(limit),
            Exhausted,
            "LIMIT_REACHED",
            "2 asked for, 8 there, at most 9 allowed (topics_max)",
            4,
        ),
        (
            Box::new(TopicError::Append(AppendError::Lookup(not_found()))),
            NotFound,
            "TOPIC_NOT_FOUND",
            "does not exist",
            1,
        ),
    ];
    for (error, kind, reason, text, facts) in table {
        let said = error.to_string();
        assert_eq!((error.kind(), error.reason()), (kind, reason), "{said}");
        assert!(said.contains(text), "{said:?} lacks {text:?}");
        assert_eq!(error.facts().len(), facts, "{said}");
        let retries = matches!(kind, Exhausted | Unavailable) && reason != "LIMIT_REACHED";
        assert_eq!(error.retry_after().is_some(), retries, "{said}");
    }
}

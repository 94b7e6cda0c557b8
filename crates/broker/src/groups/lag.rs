//! How far groups are behind, for the metrics.

use std::fmt::Write;
use std::sync::mpsc;
use std::time::Duration;

use tidelog_group::GroupOffset;
use tidelog_log::{Found, LogReader};
use tidelog_record::{BatchHeader, Offset};

use super::Asked;
use crate::Broker;

/// How long a coordinator may take to say what is committed.
const LOOK_WAIT_MAX: Duration = Duration::from_secs(1);
/// So many committed offsets are told of at most.
const TOLD_MAX: usize = 10_000;
/// So many times at most the disk is waited for, to see how old a record is.
const COLD_MAX: usize = 100;

/// How far a group is behind in a partition.
#[derive(Debug)]
struct Lag {
    of: GroupOffset,
    /// Where there is a replica of the partition here.
    records: Option<u64>,
    /// The same, and its next record could be looked at.
    millis: Option<u64>,
}

/// A gauge that there is for each committed offset: its name, what it tells, and how it is read.
type LagGauge = (&'static str, &'static str, fn(&Lag) -> Option<String>);

const GAUGES: [LagGauge; 3] = [
    (
        "tidelog_group_committed_offset",
        "The next offset that a group reads.",
        |lag| Some(lag.of.offset.to_string()),
    ),
    (
        "tidelog_group_lag_records",
        "How many records a group is behind, where the coordinator has a replica of the partition.",
        |lag| lag.records.map(|records| records.to_string()),
    ),
    (
        "tidelog_group_lag_seconds",
        "How old the batch with the next record is that a group has not done; 0 where there is none.",
        |lag| {
            let millis = lag.millis?;
            Some(format!("{}.{:03}", millis / 1000, millis % 1000))
        },
    ),
];

impl Broker {
    /// What the groups that are coordinated here have committed, and how far they are behind. Blocks.
    pub(crate) fn groups_text(&self) -> String {
        let committed = self.committed_here();
        let now = self.inner().seams.clock.now().millis();
        let mut colds = 0;
        let lags = committed
            .into_iter()
            .map(|of| self.lag(of, now, &mut colds));
        let lags: Vec<Lag> = lags.collect();
        let mut text = String::new();
        for (name, help, value) in GAUGES {
            write_gauge(&mut text, name, help, &lags, value);
        }
        text
    }

    /// What is committed, or about to be, in the groups that are coordinated here.
    fn committed_here(&self) -> Vec<GroupOffset> {
        let queues: Vec<_> = {
            let coordinators = self.inner().groups.coordinators.lock();
            let led = coordinators.values().filter(|(of, _)| of.leads());
            led.map(|(_, queue)| queue.clone()).collect()
        };
        let (reply, replied) = mpsc::sync_channel(queues.len().max(1));
        for queue in &queues {
            // One that has no room has more to do than to tell.
            let asked = Asked::Look {
                max: TOLD_MAX,
                reply: reply.clone(),
            };
            drop(queue.try_send(asked));
        }
        drop(reply);
        let mut all = Vec::new();
        while let Ok(of_one) = replied.recv_timeout(LOOK_WAIT_MAX) {
            all.extend(of_one);
        }
        all.truncate(TOLD_MAX);
        all.sort_by(|a: &GroupOffset, b| {
            let key = |one: &GroupOffset| (one.group.clone(), one.topic.clone(), one.partition);
            key(a).cmp(&key(b))
        });
        all
    }

    fn lag(&self, of: GroupOffset, now: i64, colds: &mut usize) -> Lag {
        let lag = |of, records, millis| Lag {
            of,
            records,
            millis,
        };
        let Ok(partition) = self.inner().lookup(of.topic.as_str(), of.partition) else {
            return lag(of, None, None);
        };
        if of.topic_id.is_some_and(|id| id != partition.key.topic_id) {
            return lag(of, None, None);
        }
        let reader = partition.reader();
        let end = partition.high_watermark();
        // What was trimmed is read no more.
        let next = of.offset.max(reader.log_start());
        if next >= end {
            return lag(of, Some(0), Some(0));
        }
        let written = written_at(&reader, next, end, colds);
        let millis = written.map(|time| u64::try_from(now.saturating_sub(time)).unwrap_or(0));
        let records = end.records_since(next);
        lag(of, Some(records), millis)
    }
}

/// The time of the first record of the batch that has the record at an offset, or the next one.
fn written_at(reader: &LogReader, next: Offset, end: Offset, colds: &mut usize) -> Option<i64> {
    let batches = match reader.read(next, end, 1).ok()? {
        Found::Ready(batches) => batches,
        Found::Cold(cold) => {
            *colds += 1;
            if *colds > COLD_MAX {
                return None;
            }
            cold.run().ok()?
        }
    };
    let first = batches.parts.first()?;
    let header = BatchHeader::decode(first, first.len()).ok()?;
    Some(header.base_timestamp)
}

fn write_gauge(
    text: &mut String,
    name: &str,
    help: &str,
    lags: &[Lag],
    value: impl Fn(&Lag) -> Option<String>,
) {
    let mut any = false;
    for lag in lags {
        let Some(value) = value(lag) else {
            continue;
        };
        if !any {
            any = true;
            writeln!(text, "# HELP {name} {help}\n# TYPE {name} gauge")
                .expect("a string takes everything");
        }
        let GroupOffset {
            group,
            topic,
            partition,
            ..
        } = &lag.of;
        let group = group.as_str().replace('\\', "\\\\").replace('"', "\\\"");
        writeln!(
            text,
            "{name}{{group=\"{group}\",topic=\"{topic}\",partition=\"{partition}\"}} {value}"
        )
        .expect("a string takes everything");
    }
}

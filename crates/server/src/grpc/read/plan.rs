//! What a read is to do: its first message, with every place looked up.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures_util::{StreamExt, stream};
use tidelog_broker::{Ends, Facts, OffsetSpec, PartitionHandle, ReadError};
use tidelog_proto::v1::{self, Format, ReadPartitionError, ReadRange, ReadStart};
use tidelog_record::Offset;
use tonic::Status;

use super::super::fetch::PARTITION_OVERHEAD;
use super::super::log::{LOOKUPS_MAX, PARTITIONS_MAX};
use super::super::status::{Failure, RequestError, failure};
use super::super::{Shared, convert};
use super::credit::Credit;
use crate::room::Room;
use crate::transport::Peer;

/// About how many bytes a message has unless the client says otherwise.
const MESSAGE_BYTES_DEFAULT: usize = 1024 * 1024;

/// How many bytes a message may be asked to have.
const MESSAGE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// What a read is to do.
pub(super) struct Plan {
    /// The ranges to be read, in the order of the request.
    pub(super) tracks: Vec<Track>,
    /// Partitions that cannot be read at all.
    pub(super) failed: Vec<ReadPartitionError>,
    pub(super) credit: Credit,
    pub(super) format: Format,
    pub(super) message_bytes: usize,
    /// What the tracks take, counted for as long as they are read.
    pub(super) _asked: Option<Room>,
}

/// One partition's range.
pub(super) struct Track {
    pub(super) handle: PartitionHandle,
    /// The next offset to be sent.
    pub(super) next: Offset,
    /// Where to end, exclusive; `None`: never.
    pub(super) to: Option<Offset>,
    /// Where the partition began and ended when it was looked up.
    ends: Ends,
}

impl Track {
    /// Whether all of the range was sent.
    pub(super) fn is_at_end(&self) -> bool {
        self.to.is_some_and(|to| self.next >= to)
    }

    /// The range, for the first message.
    pub(super) fn range(&self) -> ReadRange {
        ReadRange {
            partition: self.handle.partition(),
            from: self.next.get(),
            to: self.to.map(Offset::get),
            high_watermark: self.ends.high_watermark.get(),
            log_start_offset: self.ends.log_start.get(),
        }
    }
}

/// Where one partition is to be read.
struct Wanted {
    partition: u32,
    from: OffsetSpec,
    to: Option<OffsetSpec>,
}

/// Looks up everything that `start` names.
pub(super) async fn plan(
    shared: &Arc<Shared>,
    peer: &Peer,
    start: ReadStart,
) -> Result<Plan, Status> {
    let count = shared
        .broker
        .partitions_of(&start.topic)
        .map_err(|e| shared.refuse(&e))?;
    let format = convert::format(start.format).map_err(|e| shared.reject(e))?;
    let wanted =
        wanted(&start, count).map_err(|failure| failure.status(shared.broker.metrics()))?;
    let asked = shared.asked(peer, wanted.len() * PARTITION_OVERHEAD)?;
    let tracks = stream::iter(wanted)
        .map(|wanted| {
            let partition = wanted.partition;
            let track = track(shared, &start, wanted);
            async move { (partition, track.await) }
        })
        .buffered(LOOKUPS_MAX)
        .collect::<Vec<_>>()
        .await;
    let message_bytes = match usize::try_from(start.message_bytes) {
        Ok(0) | Err(_) => MESSAGE_BYTES_DEFAULT,
        Ok(asked) => asked.min(MESSAGE_BYTES_MAX),
    };
    let mut plan = Plan {
        tracks: Vec::new(),
        failed: Vec::new(),
        credit: Credit::new(start.credit_is_limited, start.credit_bytes),
        format,
        message_bytes,
        _asked: asked,
    };
    for (partition, track) in tracks {
        match track {
            Ok(track) => plan.tracks.push(track),
            Err((next_offset, error)) => plan.failed.push(ReadPartitionError {
                partition,
                next_offset,
                error: Some(error.message(shared.broker.metrics())),
            }),
        }
    }
    Ok(plan)
}

/// The partitions named, or all, each with the places that hold for it.
fn wanted(start: &ReadStart, count: u32) -> Result<Vec<Wanted>, Failure> {
    let found = start.partitions.len();
    if found > PARTITIONS_MAX {
        let field = "start.partitions";
        return Err(RequestError::TooMany {
            field,
            found,
            max: PARTITIONS_MAX,
        }
        .into());
    }
    let place = |given: Option<&v1::OffsetSpec>, field: String| {
        let read = |given| convert::offset_spec(Some(given), "offset");
        given
            .map(read)
            .transpose()
            .map_err(|e| Failure::from(e).in_field(field))
    };
    let from = place(start.from.as_ref(), "start.from".to_owned())?;
    let from = from.unwrap_or(OffsetSpec::Earliest);
    let to = place(start.to.as_ref(), "start.to".to_owned())?;
    if start.partitions.is_empty() {
        return Ok((0..count)
            .map(|partition| Wanted {
                partition,
                from,
                to,
            })
            .collect());
    }
    let mut seen = BTreeSet::new();
    let mut wanted = Vec::with_capacity(found);
    for (i, one) in start.partitions.iter().enumerate() {
        if !seen.insert(one.partition) {
            return Err(Failure::from(RequestError::Value {
                field: "start.partitions",
                value: format!("partition {} a second time", one.partition),
                allowed: "each partition once",
            }));
        }
        let field = |name: &str| format!("start.partitions[{i}].{name}");
        wanted.push(Wanted {
            partition: one.partition,
            from: place(one.from.as_ref(), field("from"))?.unwrap_or(from),
            to: place(one.to.as_ref(), field("to"))?.or(to),
        });
    }
    Ok(wanted)
}

/// Looks up one partition. With an error comes the offset at which reading stopped.
async fn track(
    shared: &Shared,
    start: &ReadStart,
    wanted: Wanted,
) -> Result<Track, (u64, Failure)> {
    let follow = start.follow;
    let handle = shared
        .broker
        .partition(&start.topic, wanted.partition)
        .map_err(|e| (0, failure(&e)))?
        .from_replica(start.read_replica);
    let place = async |at| match at {
        OffsetSpec::Offset(offset) => Ok(offset),
        at => handle.resolve(at).await.map(|resolved| resolved.offset),
    };
    let unknown = |e: ReadError| (0, failure(&e));
    // The end is looked up first: what comes between the two look-ups is not missed by a read
    // from the latest on, and cannot put the end before the beginning.
    let to = match wanted.to {
        Some(to) => Some(place(to).await.map_err(unknown)?),
        None => None,
    };
    let next = place(wanted.from).await.map_err(unknown)?;
    let ends = handle.confirmed_ends().await.map_err(unknown)?;
    let is_above = next > ends.high_watermark && !handle.is_to_come(next);
    if next < ends.log_start || is_above {
        let out_of_range = ReadError::OutOfRange {
            requested: next.get(),
            log_start: ends.log_start,
            high_watermark: ends.high_watermark,
        };
        debug_assert_eq!(out_of_range.reason(), "OFFSET_OUT_OF_RANGE");
        return Err((next.get(), failure(&out_of_range)));
    }
    // A read that does not follow ends at what there is now, even when it was asked for more.
    let to = match to {
        _ if follow => to,
        Some(to) => Some(to.min(ends.high_watermark.max(next))),
        None => Some(ends.high_watermark.max(next)),
    };
    Ok(Track {
        handle,
        next,
        to,
        ends,
    })
}

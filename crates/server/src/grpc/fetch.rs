//! `Log.Fetch`: one read from several partitions, with a long poll.

use std::collections::HashSet;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tidelog_broker as broker;
use tidelog_broker::{PartitionData, ReadError};
use tidelog_log::Batches;
use tidelog_proto::v1::{FetchRequest, FetchResponse, FetchedPartition, Format};
use tidelog_record::Offset;
use tonic::{Response, Status};

use super::call::HeldBytes;
use super::records::{RecordCursor, Take};
use super::status::RequestError;
use super::{Shared, convert, log};
use crate::room::{Alone, Room};
use crate::transport::Peer;

/// The longest a fetch may wait, in milliseconds.
const WAIT_MS_MAX: u32 = 60_000;

/// What a call holds for each partition it names, in bytes.
pub(super) const PARTITION_OVERHEAD: usize = 512;

/// What a partition gives at most unless the request says otherwise.
const PARTITION_BYTES_DEFAULT: usize = 1024 * 1024;

pub(super) async fn fetch(
    shared: &Shared,
    peer: &Peer,
    request: FetchRequest,
) -> Result<Response<FetchResponse>, Status> {
    let format = check(&request).map_err(|e| shared.reject(e))?;
    // What waits for each partition takes memory for as long as the call does.
    let _asked = shared.asked(peer, request.partitions.len() * PARTITION_OVERHEAD)?;
    let offsets: Vec<u64> = request
        .partitions
        .iter()
        .map(|wanted| wanted.offset)
        .collect();
    let bytes_max = at_most(request.max_bytes, shared.limits.fetch_bytes_max);
    let partition = |wanted: &tidelog_proto::v1::FetchPartition| broker::FetchPartition {
        topic: wanted.topic.clone(),
        partition: wanted.partition,
        offset: wanted.offset,
        bytes_max: match wanted.max_bytes {
            0 => PARTITION_BYTES_DEFAULT,
            max => at_most(max, bytes_max),
        },
    };
    // What a first batch or record takes that did not fit into the room there was.
    let mut need: Option<(usize, Alone)> = None;
    loop {
        let wanted = broker::FetchRequest {
            partitions: request.partitions.iter().map(partition).collect(),
            bytes_min: usize::try_from(request.min_bytes)
                .unwrap_or(usize::MAX)
                .min(bytes_max),
            bytes_max,
            wait_max: Duration::from_millis(u64::from(request.max_wait_ms)),
            from_replica: request.read_replica,
        };
        // Answers wait here while the client has not taken earlier ones. There is room for this one
        // before anything is read for it.
        let room = |len| async move {
            let room = match need {
                Some((whole, alone)) => peer.unsent_whole(whole, alone).await,
                None => peer.unsent(len).await,
            };
            (room.len(), room)
        };
        let (fetched, mut room) = tokio::select! {
            fetched = shared.broker.fetch(wanted, room) => fetched,
            () = shared.stopping.cancelled() => return Err(shared.reject(RequestError::Stopping)),
        };
        match answer(shared, fetched, &offsets, format, bytes_max, room.as_mut()).await {
            Answer::Whole(answer, used) => {
                let Some(mut room) = room else {
                    return Ok(peer.hold(answer).await);
                };
                room.shrink(used);
                let mut response = Response::new(answer);
                response.extensions_mut().insert(HeldBytes::new(room));
                return Ok(response);
            }
            // Read again when there is room: until then nothing of it is to be held.
            Answer::NeedsRoom(len, alone) => need = Some((len, alone)),
        }
    }
}

enum Answer {
    /// The answer, and what it takes.
    Whole(FetchResponse, usize),
    /// Its first batch or record takes so much more than there is room for.
    NeedsRoom(usize, Alone),
}

async fn answer(
    shared: &Shared,
    fetched: Vec<broker::FetchedPartition>,
    offsets: &[u64],
    format: Format,
    bytes_max: usize,
    mut room: Option<&mut Room>,
) -> Answer {
    let mut partitions = Vec::with_capacity(fetched.len());
    let bytes_max = room
        .as_ref()
        .map_or(bytes_max, |room| room.len().min(bytes_max));
    let mut used = 0_usize;
    for (one, offset) in fetched.into_iter().zip(offsets) {
        let mut answer = FetchedPartition {
            topic: one.topic,
            partition: one.partition,
            next_offset: *offset,
            ..FetchedPartition::default()
        };
        let filled = match one.result {
            Ok(data) => {
                let left = Left {
                    used,
                    bytes_max,
                    room: room.as_deref_mut(),
                };
                fill(shared, &mut answer, data, *offset, format, left).await
            }
            Err(error) => Err(error),
        };
        match filled {
            Ok(Filled::With(len)) => used += len,
            Ok(Filled::NeedsRoom(len, alone)) => return Answer::NeedsRoom(len, alone),
            Err(error) => answer.error = Some(shared.refuse_within(&error)),
        }
        partitions.push(answer);
    }
    Answer::Whole(FetchResponse { partitions }, used)
}

fn check(request: &FetchRequest) -> Result<Format, RequestError> {
    log::check_partitions(request.partitions.len())?;
    let mut named: HashSet<(&str, u32)> = HashSet::with_capacity(request.partitions.len());
    for wanted in &request.partitions {
        if !named.insert((&wanted.topic, wanted.partition)) {
            return Err(RequestError::Value {
                field: "partitions",
                value: format!("partition {} of a topic twice", wanted.partition),
                allowed: "each partition once",
            });
        }
    }
    if request.max_wait_ms > WAIT_MS_MAX {
        return Err(RequestError::Value {
            field: "max_wait_ms",
            value: request.max_wait_ms.to_string(),
            allowed: "0 to 60000",
        });
    }
    convert::format(request.format)
}

/// What was asked for, but no more than the limit; 0 is the limit.
fn at_most(asked: u32, limit: usize) -> usize {
    match usize::try_from(asked) {
        Ok(0) | Err(_) => limit,
        Ok(asked) => asked.min(limit),
    }
}

/// What an answer may still take.
struct Left<'a> {
    used: usize,
    bytes_max: usize,
    room: Option<&'a mut Room>,
}

impl Left<'_> {
    /// Whether there is room for a part of `len` bytes: only a first one may pass the limit.
    fn has_room(&mut self, len: usize, alone: Alone) -> bool {
        match &mut self.room {
            Some(room) if self.used == 0 => room.try_grow(len, alone),
            _ => self.used + len <= self.bytes_max,
        }
    }
}

enum Filled {
    /// With so many bytes.
    With(usize),
    /// A first part takes so much more than there is room for.
    NeedsRoom(usize, Alone),
}

/// Puts what was read from a partition into its answer.
async fn fill(
    shared: &Shared,
    answer: &mut FetchedPartition,
    data: PartitionData,
    offset: u64,
    format: Format,
    mut left: Left<'_>,
) -> Result<Filled, ReadError> {
    answer.high_watermark = data.high_watermark.get();
    answer.log_start_offset = data.log_start.get();
    let Batches { parts, next_offset } = data.batches;
    if parts.is_empty() {
        // Further on than asked for where compaction has left nothing in between.
        answer.next_offset = next_offset.get();
        return Ok(Filled::With(0));
    }
    let is_first = left.used == 0;
    match format {
        Format::Batches => {
            let len = parts.iter().map(Bytes::len).sum();
            if is_first && !left.has_room(len, Alone::Goes) {
                return Ok(Filled::NeedsRoom(len, Alone::Goes));
            }
            answer.batches = joined(parts);
            answer.next_offset = next_offset.get();
            Ok(Filled::With(len))
        }
        Format::Records => {
            // Decompressed they may take more than the batches did.
            let bytes_max = left.bytes_max.saturating_sub(left.used);
            if bytes_max == 0 {
                return Ok(Filled::With(0));
            }
            let from = Offset::new(offset).unwrap_or(Offset::MAX);
            let mut cursor = RecordCursor::new(parts, from, next_offset, shared.opened.clone());
            let has_room = |len| left.has_room(len, Alone::Waits);
            match cursor.take(bytes_max, has_room).await? {
                Take::Records(taken) => {
                    answer.records = taken.records;
                    answer.next_offset = taken.next_offset.get();
                    Ok(Filled::With(taken.memory_bytes))
                }
                Take::NeedsRoom(len) if is_first => Ok(Filled::NeedsRoom(len, Alone::Waits)),
                Take::NeedsRoom(_) => Ok(Filled::With(0)),
            }
        }
    }
}

/// All parts as one. Nearly always there is only one, which is not copied.
pub(super) fn joined(mut parts: Vec<Bytes>) -> Bytes {
    if parts.len() == 1 {
        return parts.pop().expect("there is one");
    }
    let mut all = BytesMut::with_capacity(parts.iter().map(Bytes::len).sum());
    for part in &parts {
        all.extend_from_slice(part);
    }
    all.freeze()
}

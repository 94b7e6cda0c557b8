//! Reads the ranges of a plan and sends what it finds.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tidelog_broker::ReadError;
use tidelog_log::Batches;
use tidelog_proto::v1::read_response::Response;
use tidelog_proto::v1::{
    Format, ReadData, ReadHeartbeat, ReadPartitionEnd, ReadPartitionError, ReadStarted,
    read_request,
};
use tidelog_record::{BATCH_HEADER_LEN, BatchHeader, Offset};
use tokio::sync::mpsc;
use tokio::time::{Instant, Sleep};

use super::super::Shared;
use super::super::fetch::joined;
use super::super::records::{RecordCursor, Take};
use super::super::status::RequestError;
use super::plan::{Plan, Track};
use super::{End, Requests, Sender, Unsent, response};
use crate::room::{Alone, Room};
use crate::transport::Peer;

/// A place in the channel to the client.
type Place<'a> = mpsc::Permit<'a, Unsent>;

/// What room is wanted for the next data.
#[derive(Clone, Copy)]
enum Ask {
    /// None: it is words beside the data.
    None,
    /// For so many bytes, or for some of them.
    Some(usize),
    /// For all of so many bytes, that a batch or a record takes.
    Whole(usize, Alone),
}

/// Waits for a place in the channel, and then for room.
async fn place<'a>(
    sender: &'a Sender,
    peer: &Peer,
    ask: Ask,
) -> Result<(Place<'a>, Option<Room>), mpsc::error::SendError<()>> {
    let place = sender.reserve().await?;
    let room = async {
        match ask {
            Ask::None => None,
            Ask::Some(len) => Some(peer.unsent(len).await),
            Ask::Whole(len, alone) => Some(peer.unsent_whole(len, alone).await),
        }
    };
    tokio::select! {
        room = room => Ok((place, room)),
        () = sender.closed() => Err(mpsc::error::SendError(())),
    }
}

/// Data that waits for the client. Its room becomes what it takes.
fn unsent(data: ReadData, mut room: Room, len: usize) -> Unsent {
    room.shrink(len);
    Unsent {
        answer: Ok(response(Response::Data(data))),
        room: Some(room),
    }
}

/// Waits until the track of this number has something new.
type Wait = Pin<Box<dyn Future<Output = usize> + Send>>;

/// The state of a read under way.
struct Pump<'a> {
    shared: &'a Arc<Shared>,
    peer: &'a Peer,
    plan: Plan,
    /// How many tracks are neither at their end nor failed.
    open: usize,
    /// Tracks that may have something to send, each at most once: they take turns, a message
    /// each.
    ready: VecDeque<usize>,
    /// Tracks that were read up to the high watermark.
    waits: FuturesUnordered<Wait>,
    /// Records that were read, but not all sent: one track's, so that a stream holds no more than
    /// one decompressed batch.
    rest: Option<Rest>,
    /// How much room the next batch or record takes, which did not fit into what there was. Until
    /// there is, none is held.
    need: Option<(usize, Alone)>,
    /// What is to be said beside the data. Takes no credit, and goes first.
    outbox: VecDeque<Response>,
}

struct Rest {
    track: usize,
    records: RecordCursor,
    high_watermark: Offset,
}

pub(super) async fn pump(
    shared: &Arc<Shared>,
    peer: &Peer,
    mut plan: Plan,
    requests: &mut Requests,
    sender: &Sender,
) -> Result<End, End> {
    let started = ReadStarted {
        partitions: plan.tracks.iter().map(Track::range).collect(),
    };
    let mut outbox = VecDeque::from([Response::Started(started)]);
    outbox.extend(
        std::mem::take(&mut plan.failed)
            .into_iter()
            .map(Response::PartitionError),
    );
    let mut pump = Pump {
        shared,
        peer,
        open: plan.tracks.len(),
        ready: VecDeque::new(),
        plan,
        waits: FuturesUnordered::new(),
        rest: None,
        need: None,
        outbox,
    };
    for at in 0..pump.plan.tracks.len() {
        if pump.plan.tracks[at].is_at_end() {
            pump.end(at);
        } else {
            pump.ready.push_back(at);
        }
    }
    pump.run(requests, sender).await
}

impl Pump<'_> {
    async fn run(&mut self, requests: &mut Requests, sender: &Sender) -> Result<End, End> {
        let heartbeat = self.shared.limits.read_heartbeat;
        let mut idle: Pin<Box<Sleep>> = Box::pin(tokio::time::sleep(heartbeat));
        loop {
            if self.open == 0 && self.outbox.is_empty() {
                return Ok(End::Done);
            }
            let has_more = self.rest.is_some() || !self.ready.is_empty();
            let allowed = self.plan.credit.allows(self.plan.message_bytes);
            let may_send = !self.outbox.is_empty() || (has_more && allowed.is_some());
            let bytes_max = allowed.unwrap_or(self.plan.message_bytes);
            let ask = match self.need {
                _ if !self.outbox.is_empty() => Ask::None,
                Some((len, alone)) => Ask::Whole(len, alone),
                None => Ask::Some(bytes_max),
            };
            let is_large = self
                .rest
                .as_ref()
                .is_some_and(|rest| rest.records.is_large());
            tokio::select! {
                biased;
                () = self.shared.stopping.cancelled() => return Ok(End::Stopping),
                request = requests.next(), if requests.is_open() => {
                    self.take_request(request?)?;
                    continue;
                }
                Some(track) = self.waits.next() => {
                    self.ready.push_back(track);
                    continue;
                }
                place = place(sender, self.peer, ask), if may_send => {
                    let (place, room) = place.map_err(|_| End::Gone)?;
                    match room {
                        None => {
                            if let Some(words) = self.outbox.pop_front() {
                                place.send(Ok(response(words)).into());
                            }
                        }
                        Some(room) => {
                            self.need = None;
                            if !self.send_data(place, room, bytes_max).await {
                                continue;
                            }
                        }
                    }
                }
                // The client does not take what it has, and others want the memory.
                () = self.shared.opened.wanted(), if is_large => {
                    if let Some(rest) = &mut self.rest {
                        rest.records.close();
                    }
                    continue;
                }
                () = &mut idle => {
                    // A client that does not take what waits for it sees that we live.
                    let heartbeat = Ok(response(Response::Heartbeat(ReadHeartbeat {})));
                    drop(sender.try_send(heartbeat.into()));
                }
            }
            // Something was sent.
            idle.as_mut().reset(Instant::now() + heartbeat);
        }
    }

    fn take_request(&mut self, request: Option<read_request::Request>) -> Result<(), End> {
        match request {
            Some(read_request::Request::AddCreditBytes(granted)) => {
                self.plan.credit.grant(granted);
                Ok(())
            }
            Some(read_request::Request::Start(_)) => {
                Err(End::Failed(self.shared.reject(RequestError::Value {
                    field: "start",
                    value: "given a second time".to_owned(),
                    allowed: "one start, as the first message",
                })))
            }
            // The client grants no more; it may still read.
            None => Ok(()),
        }
    }

    /// Sends one message of the partition whose turn it is, if it has anything. Tells whether it
    /// had.
    async fn send_data(&mut self, place: Place<'_>, mut room: Room, bytes_max: usize) -> bool {
        let bytes_max = bytes_max.min(room.len());
        if let Some(rest) = self.rest.take() {
            return self.send_records(place, room, rest, bytes_max).await;
        }
        let Some(at) = self.ready.pop_front() else {
            return false;
        };
        let track = &mut self.plan.tracks[at];
        let data = match track.handle.read(track.next, bytes_max).await {
            Ok(data) => data,
            Err(error) => {
                self.fail(at, &error);
                return false;
            }
        };
        if data.batches.is_empty() {
            // Nothing is left up to there.
            let next = data.batches.next_offset;
            track.next = track.next.max(track.to.map_or(next, |to| next.min(to)));
            if track.is_at_end() {
                self.end(at);
                return false;
            }
            let (handle, next) = (track.handle.clone(), track.next);
            self.waits.push(Box::pin(async move {
                handle.wait_beyond(next).await;
                at
            }));
            return false;
        }
        let high_watermark = data.high_watermark;
        let batches = up_to(data.batches, track.to);
        match self.plan.format {
            Format::Batches => {
                // Read again when there is room: until then it is not to be held.
                let len = batches.len_bytes();
                if !room.try_grow(len, Alone::Goes) {
                    self.need = Some((len, Alone::Goes));
                    self.ready.push_front(at);
                    return false;
                }
                let bytes = joined(batches.parts);
                let len = bytes.len();
                self.plan.credit.spend(len);
                let mut answer = self.answer(at, batches.next_offset, high_watermark);
                answer.batches = bytes;
                place.send(unsent(answer, room, len));
                self.after(at, batches.next_offset);
                true
            }
            Format::Records => {
                let records = RecordCursor::new(
                    batches.parts,
                    track.next,
                    batches.next_offset,
                    self.shared.opened.clone(),
                );
                let rest = Rest {
                    track: at,
                    records,
                    high_watermark,
                };
                self.send_records(place, room, rest, bytes_max).await
            }
        }
    }

    /// Sends a message of the records left of what was read; keeps the others.
    async fn send_records(
        &mut self,
        place: Place<'_>,
        mut room: Room,
        mut rest: Rest,
        bytes_max: usize,
    ) -> bool {
        let at = rest.track;
        let has_room = |len| room.try_grow(len, Alone::Waits);
        let taken = match rest.records.take(bytes_max, has_room).await {
            Ok(Take::Records(taken)) => taken,
            Ok(Take::NeedsRoom(len)) => {
                self.need = Some((len, Alone::Waits));
                self.rest = Some(rest);
                return false;
            }
            Err(error) => {
                self.fail(at, &error);
                return false;
            }
        };
        let is_empty = taken.records.is_empty();
        if !is_empty {
            self.plan.credit.spend(taken.len_bytes);
            let mut answer = self.answer(at, taken.next_offset, rest.high_watermark);
            answer.records = taken.records;
            place.send(unsent(answer, room, taken.memory_bytes));
        }
        if taken.is_last {
            self.after(at, taken.next_offset);
        } else {
            self.plan.tracks[at].next = taken.next_offset;
            self.rest = Some(rest);
        }
        !is_empty
    }

    fn answer(&self, at: usize, next_offset: Offset, high_watermark: Offset) -> ReadData {
        ReadData {
            partition: self.plan.tracks[at].handle.partition(),
            next_offset: next_offset.get(),
            high_watermark: high_watermark.get(),
            ..ReadData::default()
        }
    }

    /// The track was sent up to `next_offset`: it ends, or goes to the end of the queue.
    fn after(&mut self, at: usize, next_offset: Offset) {
        let track = &mut self.plan.tracks[at];
        track.next = next_offset;
        if track.is_at_end() {
            self.end(at);
        } else {
            self.ready.push_back(at);
        }
    }

    fn end(&mut self, at: usize) {
        let track = &self.plan.tracks[at];
        self.open -= 1;
        self.outbox
            .push_back(Response::PartitionEnd(ReadPartitionEnd {
                partition: track.handle.partition(),
                next_offset: track.next.get(),
            }));
    }

    fn fail(&mut self, at: usize, error: &ReadError) {
        let track = &self.plan.tracks[at];
        self.open -= 1;
        self.outbox
            .push_back(Response::PartitionError(ReadPartitionError {
                partition: track.handle.partition(),
                next_offset: track.next.get(),
                error: Some(self.shared.refuse_within(error)),
            }));
    }
}

/// The batches without those that lie wholly at or above `to`, and `to` as the place to read on
/// when they reach it.
fn up_to(mut batches: Batches, to: Option<Offset>) -> Batches {
    let Some(to) = to else {
        return batches;
    };
    if batches.next_offset <= to {
        return batches;
    }
    batches.next_offset = to;
    for i in 0..batches.parts.len() {
        let part = &batches.parts[i];
        let mut len = 0;
        while part.len() - len >= BATCH_HEADER_LEN {
            let header = BatchHeader::decode(&part[len..], tidelog_log::BATCH_BYTES_LIMIT);
            let below = |header: &BatchHeader| {
                Offset::from_wire(header.base_offset).is_some_and(|base| base < to)
            };
            let Some(header) = header.ok().filter(below) else {
                let part = part.slice(..len);
                batches.parts.truncate(i);
                if !part.is_empty() {
                    batches.parts.push(part);
                }
                return batches;
            };
            len = len.saturating_add(header.total_len()).min(part.len());
        }
    }
    batches
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use tidelog_record::{BatchBuilder, Compression, Timestamp};

    use super::*;

    fn offset(value: u64) -> Offset {
        Offset::new(value).unwrap()
    }

    fn batch(base: i64, count: usize) -> Bytes {
        let mut builder = BatchBuilder::new(Compression::None);
        for _ in 0..count {
            builder
                .push(Timestamp::from_millis(0), None, Some(b"v"), &[])
                .unwrap();
        }
        let bytes = builder.build().unwrap();
        let mut header = BatchHeader::decode(&bytes, bytes.len()).unwrap();
        header.base_offset = base;
        Bytes::from([&header.encode()[..], &bytes[BATCH_HEADER_LEN..]].concat())
    }

    #[test]
    fn batches_wholly_above_the_end_are_cut() {
        let (a, b, c) = (batch(0, 10), batch(10, 5), batch(15, 5));
        let parts = vec![Bytes::from([&a[..], &b[..]].concat()), c.clone()];
        let all = Batches {
            parts,
            next_offset: offset(20),
        };
        assert_eq!(up_to(all.clone(), None), all);
        assert_eq!(up_to(all.clone(), Some(offset(20))), all);
        let cut = up_to(all.clone(), Some(offset(16)));
        assert_eq!((cut.parts, cut.next_offset.get()), (all.parts.clone(), 16));
        let cut = up_to(all.clone(), Some(offset(15)));
        assert_eq!(
            (cut.parts, cut.next_offset.get()),
            (all.parts[..1].to_vec(), 15)
        );
        let cut = up_to(all.clone(), Some(offset(10)));
        assert_eq!((cut.parts, cut.next_offset.get()), (vec![a.clone()], 10));
        let cut = up_to(all, Some(offset(3)));
        assert_eq!((cut.parts, cut.next_offset.get()), (vec![a], 3));
    }
}

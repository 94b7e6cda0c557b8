//! As much of Kafka's protocol as it takes to load it: topics are made and deleted, and batches that were
//! encoded before are sent. A client that does next to nothing leaves the processor to the brokers.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::Context;

use crate::fixtures::now;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(30);
const PATIENCE_MILLIS: i32 = 30_000;

const PRODUCE: (i16, i16) = (0, 7);
const CREATE_TOPICS: (i16, i16) = (19, 2);
const DELETE_TOPICS: (i16, i16) = (20, 1);
const NONE: i16 = -1;
/// Of a producer: answered when all replicas that are in sync have it.
const ACKS_ALL: i16 = -1;

/// A request that is being written.
struct Request(Vec<u8>);

impl Request {
    fn new((api, version): (i16, i16)) -> Self {
        // The length comes last.
        let request = Self(vec![0; 4]);
        // No correlation: answers come in the order of the requests.
        request.i16(api).i16(version).i32(0).string("bench")
    }

    fn i8(mut self, value: i8) -> Self {
        self.0.extend(value.to_be_bytes());
        self
    }

    fn i16(mut self, value: i16) -> Self {
        self.0.extend(value.to_be_bytes());
        self
    }

    fn i32(mut self, value: i32) -> Self {
        self.0.extend(value.to_be_bytes());
        self
    }

    fn string(self, value: &str) -> Self {
        let len = i16::try_from(value.len()).unwrap_or(i16::MAX);
        let mut request = self.i16(len);
        request.0.extend(value.as_bytes());
        request
    }

    fn bytes(self, value: &[u8]) -> Self {
        let len = i32::try_from(value.len()).unwrap_or(i32::MAX);
        let mut request = self.i32(len);
        request.0.extend(value);
        request
    }

    fn done(mut self) -> Vec<u8> {
        let len = u32::try_from(self.0.len() - 4).unwrap_or(u32::MAX);
        self.0[..4].copy_from_slice(&len.to_be_bytes());
        self.0
    }
}

/// One batch for one partition.
pub(super) fn produce(topic: &str, partition: i32, batch: &[u8]) -> Vec<u8> {
    let request = Request::new(PRODUCE)
        .i16(NONE) // no transaction
        .i16(ACKS_ALL)
        .i32(PATIENCE_MILLIS);
    let request = request.i32(1).string(topic);
    request.i32(1).i32(partition).bytes(batch).done()
}

/// An answer that is being read.
struct Answer<'a>(&'a [u8]);

impl Answer<'_> {
    fn take<const N: usize>(&mut self) -> anyhow::Result<[u8; N]> {
        let (taken, rest) = self
            .0
            .split_first_chunk()
            .context("an answer is too short")?;
        self.0 = rest;
        Ok(*taken)
    }

    fn i16(&mut self) -> anyhow::Result<i16> {
        Ok(i16::from_be_bytes(self.take()?))
    }

    fn i32(&mut self) -> anyhow::Result<i32> {
        Ok(i32::from_be_bytes(self.take()?))
    }

    fn skip_string(&mut self) -> anyhow::Result<()> {
        let len = usize::try_from(self.i16()?).unwrap_or(0);
        self.0 = self.0.get(len..).context("an answer is too short")?;
        Ok(())
    }
}

/// A connection to one broker.
pub(super) struct Connection {
    stream: TcpStream,
    answer: Vec<u8>,
}

impl Connection {
    pub(super) fn open(addr: &str) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(addr)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let answer = Vec::new();
        Ok(Self { stream, answer })
    }

    /// Makes a topic with three replicas of each partition. Broker 1 leads the first partition, broker 2
    /// the second, and so on.
    pub(super) fn create(
        &mut self,
        topic: &str,
        partitions: i32,
        settings: &[(&str, &str)],
    ) -> anyhow::Result<()> {
        let request = Request::new(CREATE_TOPICS).i32(1).string(topic);
        // How many partitions and replicas follows from where they are to be.
        let mut request = request.i32(-1).i16(-1).i32(partitions);
        for partition in 0..partitions {
            request = request.i32(partition).i32(3);
            for replica in 0..3 {
                request = request.i32((partition + replica) % 3 + 1);
            }
        }
        request = request.i32(i32::try_from(settings.len())?);
        for (key, value) in settings {
            request = request.string(key).string(value);
        }
        // It is to be done, not just checked.
        let request = request.i32(PATIENCE_MILLIS).i8(0).done();
        self.change(&request)
            .with_context(|| format!("topic {topic} is not made"))
    }

    pub(super) fn delete(&mut self, topic: &str) -> anyhow::Result<()> {
        let request = Request::new(DELETE_TOPICS).i32(1).string(topic);
        self.change(&request.i32(PATIENCE_MILLIS).done())
            .with_context(|| format!("topic {topic} is not deleted"))
    }

    /// A change of one topic.
    fn change(&mut self, request: &[u8]) -> anyhow::Result<()> {
        self.stream.write_all(request)?;
        let mut answer = self.answer()?;
        answer.i32()?; // not throttled
        answer.i32()?; // one topic
        answer.skip_string()?;
        is_good(answer.i16()?)
    }

    /// Sends one of `requests` after the other, `count` in all and so many unanswered at most, and gives how
    /// long each took, in milliseconds.
    pub(super) fn produce(
        &mut self,
        requests: &[Vec<u8>],
        count: usize,
        in_flight: usize,
    ) -> anyhow::Result<Vec<f64>> {
        let mut millis = Vec::with_capacity(count);
        let mut waiting = VecDeque::with_capacity(in_flight);
        let mut requests = requests.iter().cycle().take(count);
        loop {
            while waiting.len() < in_flight
                && let Some(request) = requests.next()
            {
                waiting.push_back(now());
                self.stream.write_all(request)?;
            }
            let Some(began) = waiting.pop_front() else {
                return Ok(millis);
            };
            let mut answer = self.answer()?;
            answer.i32()?; // one topic
            answer.skip_string()?;
            answer.i32()?; // one partition
            answer.i32()?;
            is_good(answer.i16()?)?;
            millis.push(began.elapsed().as_secs_f64() * 1e3);
        }
    }

    /// The next answer, behind its correlation.
    fn answer(&mut self) -> anyhow::Result<Answer<'_>> {
        let mut len = [0; 4];
        self.stream.read_exact(&mut len)?;
        self.answer.resize(u32::from_be_bytes(len) as usize, 0);
        self.stream.read_exact(&mut self.answer)?;
        let mut answer = Answer(&self.answer);
        answer.i32()?;
        Ok(answer)
    }
}

fn is_good(error: i16) -> anyhow::Result<()> {
    anyhow::ensure!(error == 0, "Kafka answers with error {error}");
    Ok(())
}

//! Turns of a coordinator: requests are decided at once, and answered when what was decided is committed.
//!
//! A turn gathers requests while the one before it is written. What it gathered is then written as one batch; where
//! nothing was decided, the coordinator only makes sure that it still leads. Either way all answers of the turn go out
//! together, afterwards: what they tell, or were decided on, is committed then, and no other coordinator has decided
//! anything in between. There is one turn on its way at a time, so that nothing can be written without what was decided
//! before it.
//!
//! Where a turn cannot be written, or nobody knows whether it was, the state is of no use any more: the turns are
//! [failed](Turns::fail), and whoever still leads begins again from the log.

use tidelog_record::Timestamp;

use crate::coordinator::{Coordinator, KnownTopics, Now};
use crate::format::GroupRecord;
use crate::request::{Answer, Request};

/// After so many bytes of decided records a turn takes no more requests.
const TURN_LEN_MAX: usize = 1 << 20;
/// After so many requests a turn takes no more.
const TURN_REQUESTS_MAX: usize = 16 * 1024;

/// A coordinator, and what is on its way. `T` is whom an answer is for.
#[derive(Debug)]
pub struct Turns<T> {
    coordinator: Coordinator,
    gathered: Turn<T>,
    under_way: Option<Vec<(T, Answer)>>,
}

#[derive(Debug)]
struct Turn<T> {
    /// What was decided: keys and values.
    batch: Vec<Encoded>,
    len: usize,
    answers: Vec<(T, Answer)>,
}

/// The key and the value of a record.
pub type Encoded = (bytes::Bytes, Option<bytes::Bytes>);

impl<T> Default for Turn<T> {
    fn default() -> Self {
        Self {
            batch: Vec::new(),
            len: 0,
            answers: Vec::new(),
        }
    }
}

impl<T> Turns<T> {
    /// Those of a coordinator that has folded all of its log.
    pub fn new(coordinator: Coordinator) -> Self {
        Self {
            coordinator,
            gathered: Turn::default(),
            under_way: None,
        }
    }

    /// Whether the turn that is gathered takes more. Otherwise it is to be begun first.
    pub fn has_room(&self) -> bool {
        self.gathered.len < TURN_LEN_MAX && self.gathered.answers.len() < TURN_REQUESTS_MAX
    }

    /// Whether nobody waits for an answer.
    pub fn is_idle(&self) -> bool {
        self.under_way.is_none()
            && self.gathered.answers.is_empty()
            && self.gathered.batch.is_empty()
    }

    /// Decides on a request; `of` is who gets the answer.
    pub fn take(&mut self, of: T, request: Request, now: Now, topics: &dyn KnownTopics) {
        let answer = self.coordinator.decide(request, now, topics);
        self.gathered.answers.push((of, answer));
        self.gather();
    }

    /// Has what is too old forgotten.
    pub fn expire(&mut self, now: Timestamp) {
        self.coordinator.expire(now);
        self.gather();
    }

    fn gather(&mut self) {
        for record in self.coordinator.take_decided() {
            let encoded = GroupRecord::encode(&record);
            let (key, value) = encoded.expect("names, texts and partitions were checked");
            self.gathered.len += key.len() + value.as_ref().map_or(0, bytes::Bytes::len);
            self.gathered.batch.push((key, value));
        }
    }

    /// Begins a turn with what was gathered, unless there is nothing, or one is under way. Gives what is to be
    /// written, as one batch; if that is empty, it is only to be made sure that the coordinator still leads.
    pub fn begin(&mut self) -> Option<Vec<Encoded>> {
        let has_some = !self.gathered.answers.is_empty() || !self.gathered.batch.is_empty();
        if self.under_way.is_some() || !has_some {
            return None;
        }
        let turn = std::mem::take(&mut self.gathered);
        self.under_way = Some(turn.answers);
        Some(turn.batch)
    }

    /// The turn that was begun is committed: its answers may go out.
    pub fn committed(&mut self) -> Vec<(T, Answer)> {
        self.under_way.take().unwrap_or_default()
    }

    /// The turn that was begun is not committed, or nobody knows. Gives those who get no answer: first those of that
    /// turn, then those whose requests have surely changed nothing.
    pub fn fail(self) -> (Vec<T>, Vec<T>) {
        let of = |answers: Vec<(T, Answer)>| answers.into_iter().map(|(of, _)| of).collect();
        let under_way = self.under_way.unwrap_or_default();
        (of(under_way), of(self.gathered.answers))
    }

    /// The groups, to be looked at.
    pub fn coordinator(&self) -> &Coordinator {
        &self.coordinator
    }
}

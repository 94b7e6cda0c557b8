//! The connections of clients that are open: how many there may be, which one makes room for one more, and
//! how they are cut.
//!
//! A connection takes a place before it has said anything, so that whoever only connects could keep all others
//! out. Where no place is left, one without a call under way gives up its own: first those that never made a
//! call, since nothing is lost by that, then those that had one, each time the one that has been so for longest.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use futures_util::task::AtomicWaker;

/// All that are open.
#[derive(Clone, Debug)]
pub(crate) struct Connections(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    max: usize,
    places: Mutex<Places>,
}

#[derive(Debug, Default)]
struct Places {
    open: HashMap<u64, Entry>,
    /// Those without a call under way. The first makes room first.
    idle: BTreeMap<Idle, u64>,
    /// How many connections there were.
    opened: u64,
    /// How many times one became idle.
    turns: u64,
}

#[derive(Debug)]
struct Entry {
    cut: Arc<Cut>,
    /// Calls under way.
    calls: usize,
    /// Its key in `idle`, which is there while it has no call under way.
    idle: Idle,
}

/// Since when a connection has no call under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Idle {
    /// Whether it had one before.
    has_called: bool,
    turn: u64,
}

impl Places {
    fn idle_from_now(&mut self, has_called: bool) -> Idle {
        self.turns += 1;
        Idle {
            has_called,
            turn: self.turns,
        }
    }

    /// Cuts the one that makes room; `false` where all have calls under way.
    fn make_room(&mut self) -> bool {
        let first = self.idle.pop_first();
        let entry = first.and_then(|(_, number)| self.open.remove(&number));
        if let Some(entry) = &entry {
            entry.cut.cut();
        }
        entry.is_some()
    }
}

impl Connections {
    pub(crate) fn new(max: usize) -> Self {
        Self(Arc::new(Shared {
            max,
            places: Mutex::default(),
        }))
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        self.0.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for one more.
    pub(crate) fn add(&self) -> Added {
        let mut places = self.places();
        let is_full = places.open.len() >= self.0.max;
        if is_full && !places.make_room() {
            return Added::Refused;
        }
        let cut = Arc::new(Cut::default());
        let idle = places.idle_from_now(false);
        places.opened += 1;
        let number = places.opened;
        let entry = Entry {
            cut: cut.clone(),
            calls: 0,
            idle,
        };
        places.open.insert(number, entry);
        places.idle.insert(idle, number);
        drop(places);
        let open = Open {
            caller: Caller {
                connections: self.clone(),
                number,
            },
            cut,
        };
        match is_full {
            true => Added::InPlaceOfAnother(open),
            false => Added::Free(open),
        }
    }

    /// Ends every connection now, whatever it does.
    pub(crate) fn cut(&self) {
        let mut places = self.places();
        places.idle.clear();
        for entry in std::mem::take(&mut places.open).into_values() {
            entry.cut.cut();
        }
    }
}

/// What one more connection gets.
#[derive(Debug)]
pub(crate) enum Added {
    /// A place that nobody had.
    Free(Open),
    /// The place of one that was cut.
    InPlaceOfAnother(Open),
    /// Nothing: each of the others has a call under way.
    Refused,
}

/// The place of a connection, until it is dropped.
#[derive(Debug)]
pub(crate) struct Open {
    caller: Caller,
    cut: Arc<Cut>,
}

impl Open {
    /// What says that the connection has calls under way.
    pub(crate) fn caller(&self) -> Caller {
        self.caller.clone()
    }

    /// Whether the connection is cut. If not, `cx` is woken when it is.
    pub(crate) fn poll_cut(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.cut.reader.register(cx.waker());
        if self.cut.is_cut.load(Ordering::Acquire) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let mut places = self.caller.connections.places();
        if let Some(entry) = places.open.remove(&self.caller.number) {
            places.idle.remove(&entry.idle);
        }
    }
}

#[derive(Debug, Default)]
struct Cut {
    is_cut: AtomicBool,
    reader: AtomicWaker,
}

impl Cut {
    fn cut(&self) {
        self.is_cut.store(true, Ordering::Release);
        self.reader.wake();
    }
}

/// One of the connections, to those who serve its calls.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    connections: Connections,
    number: u64,
}

impl Caller {
    /// A call is under way until what is returned is dropped: the connection makes no room meanwhile.
    pub(crate) fn call(&self) -> UnderWay {
        let mut places = self.connections.places();
        let places = &mut *places;
        if let Some(entry) = places.open.get_mut(&self.number) {
            entry.calls += 1;
            places.idle.remove(&entry.idle);
        }
        UnderWay(self.clone())
    }
}

/// A call that is under way.
#[derive(Debug)]
pub(crate) struct UnderWay(Caller);

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut places = self.0.connections.places();
        let idle = places.idle_from_now(true);
        let places = &mut *places;
        // It is not there any more where it was cut.
        if let Some(entry) = places.open.get_mut(&self.0.number) {
            entry.calls -= 1;
            if entry.calls == 0 {
                entry.idle = idle;
                places.idle.insert(idle, self.0.number);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn is_cut(open: &Open) -> bool {
        std::future::poll_fn(|cx| open.poll_cut(cx))
            .now_or_never()
            .is_some()
    }

    fn free(connections: &Connections) -> Open {
        match connections.add() {
            Added::Free(open) => open,
            other => panic!("{other:?}"),
        }
    }

    fn in_place_of_another(connections: &Connections) -> Open {
        match connections.add() {
            Added::InPlaceOfAnother(open) => open,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn who_never_called_makes_room_first_then_who_has_been_idle_for_longest() {
        let connections = Connections::new(4);
        let [a, b, c, d] = [(); 4].map(|()| free(&connections));
        // The last call of `a` ends after that of `b`.
        let calls = [a.caller().call(), a.caller().call(), b.caller().call()];
        let [first, second, of_b] = calls;
        drop((first, of_b, second));
        let e = in_place_of_another(&connections);
        assert_eq!([&a, &b, &c, &d].map(is_cut), [false, false, true, false]);
        let under_way = [e.caller().call(), d.caller().call()];
        let f = in_place_of_another(&connections);
        assert_eq!([&a, &b, &d, &e].map(is_cut), [false, true, false, false]);
        let of_f = f.caller().call();
        let g = in_place_of_another(&connections);
        assert_eq!([&a, &d, &e, &f].map(is_cut), [true, false, false, false]);
        let of_g = g.caller().call();
        assert!(matches!(connections.add(), Added::Refused));
        assert_eq!([&d, &e, &f, &g].map(is_cut), [false; 4]);
        // Those that were cut have given their places up already.
        drop((a, b, c));
        assert!(matches!(connections.add(), Added::Refused));
        drop(d);
        let h = free(&connections);
        drop((under_way, of_f, of_g));
        let _i = in_place_of_another(&connections);
        assert_eq!([&e, &f, &g, &h].map(is_cut), [false, false, false, true]);
    }

    #[test]
    fn all_are_cut_whatever_they_do() {
        let connections = Connections::new(2);
        let [a, b] = [(); 2].map(|()| free(&connections));
        let under_way = a.caller().call();
        connections.cut();
        assert_eq!([&a, &b].map(is_cut), [true, true]);
        drop((under_way, a, b));
    }
}

//! Calls that do not come back: a device that hangs.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::faults::{Call, OpFilter};

/// The calls that hang.
#[derive(Debug, Default)]
pub(crate) struct Holds {
    state: Mutex<HoldState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct HoldState {
    next: u64,
    held: Vec<(u64, OpFilter)>,
    /// What each call that hangs now was held by first.
    hanging: Vec<u64>,
}

impl Holds {
    /// Waits for as long as calls like this one hang. Nothing of the call has happened yet.
    pub(crate) fn pass(&self, call: &Call<'_>) {
        let mut state = self.state();
        let Some(id) = state.holder(call) else {
            return;
        };
        state.hanging.push(id);
        self.changed.notify_all();
        while state.holder(call).is_some() {
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        if let Some(at) = state.hanging.iter().position(|held_by| *held_by == id) {
            state.hanging.swap_remove(at);
        }
    }

    pub(crate) fn add(self: &Arc<Self>, filter: OpFilter) -> Hang {
        let mut state = self.state();
        let id = state.next;
        state.next += 1;
        state.held.push((id, filter));
        Hang {
            holds: self.clone(),
            id,
        }
    }

    /// Lets everything go.
    pub(crate) fn clear(&self) {
        self.state().held.clear();
        self.changed.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, HoldState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HoldState {
    fn holder(&self, call: &Call<'_>) -> Option<u64> {
        let mut held = self.held.iter();
        held.find(|(_, filter)| filter.takes(call))
            .map(|(id, _)| *id)
    }
}

/// Calls hang until this is dropped; then they go on as if nothing had been.
#[derive(Debug)]
pub struct Hang {
    holds: Arc<Holds>,
    id: u64,
}

impl Hang {
    /// Waits until a call hangs because of this. For threads of their own: it blocks.
    pub fn wait_until_one_hangs(&self) {
        let mut state = self.holds.state();
        while !state.hanging.contains(&self.id) {
            state = self
                .holds
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Hang {
    fn drop(&mut self) {
        self.holds.state().held.retain(|(id, _)| *id != self.id);
        self.holds.changed.notify_all();
    }
}

//! Reads of old data and syncs on one device, by turns.
//!
//! A device that works on a long read keeps a sync waiting, and with it whoever waits for an
//! acknowledgement. So, while syncs go on, a cold read asks the device for little at a time, one
//! reader at a time, each time after the round that is under way. With every byte that is read while
//! no sync comes, reads get longer again, up to all that is wanted at once.

use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// What is read at a time where a sync has just been: less makes no sync faster.
const CHUNK_MIN: u64 = 32 << 10;
/// A read is at most this part of what was read since the last sync.
const QUIET_PART: u64 = 8;
/// So long a read waits for a round or for another reader; what takes longer hangs.
const PATIENCE: Duration = Duration::from_millis(10);

/// Keeps cold reads and syncs out of each other's way. One for all logs on a device.
#[derive(Debug)]
pub struct ReadTurns {
    state: Mutex<State>,
    ended: Condvar,
    reading: Mutex<()>,
    patience: Duration,
}

#[derive(Debug)]
struct State {
    /// Rounds of syncs that run, and how many ended.
    running: usize,
    ended: u64,
    /// Reads that wait for the end of one.
    waiting: usize,
    /// Bytes read since the last round began.
    quiet: u64,
}

impl Default for ReadTurns {
    fn default() -> Self {
        Self::with_patience(PATIENCE)
    }
}

impl ReadTurns {
    fn with_patience(patience: Duration) -> Self {
        let state = State {
            running: 0,
            ended: 0,
            waiting: 0,
            quiet: u64::MAX,
        };
        Self {
            state: Mutex::new(state),
            ended: Condvar::new(),
            reading: Mutex::new(()),
            patience,
        }
    }

    /// Takes note of a round of syncs, which ends when what is returned is dropped.
    pub(crate) fn sync(&self) -> SyncTurn<'_> {
        let mut state = self.state.lock();
        state.running += 1;
        state.quiet = 0;
        SyncTurn { turns: self }
    }

    /// Whether so many bytes may be asked for at once, and more be read ahead of them.
    pub(crate) fn is_quiet_for(&self, len: usize) -> bool {
        len as u64 <= self.state.lock().quiet / QUIET_PART
    }

    /// Calls `read` with how many of `left` bytes it shall read, when it is this reader's turn.
    pub(crate) fn read<T>(&self, left: usize, read: impl FnOnce(usize) -> T) -> T {
        if self.is_quiet_for(left) {
            self.note_read(left);
            return read(left);
        }
        let turn = self.reading.try_lock_for(self.patience);
        let len = self.wait_for_round(left);
        self.note_read(len);
        let read = read(len);
        drop(turn);
        read
    }

    /// Waits for the end of the round that runs now; gives how much to read then.
    fn wait_for_round(&self, left: usize) -> usize {
        let mut state = self.state.lock();
        let before = state.ended;
        let is_under_way = |state: &mut State| state.running > 0 && state.ended == before;
        state.waiting += 1;
        self.ended
            .wait_while_for(&mut state, is_under_way, self.patience);
        state.waiting -= 1;
        let len = (state.quiet / QUIET_PART).max(CHUNK_MIN);
        usize::try_from(len).map_or(left, |len| len.min(left))
    }

    fn note_read(&self, len: usize) {
        let mut state = self.state.lock();
        state.quiet = state.quiet.saturating_add(len as u64);
    }
}

/// A round of syncs that runs.
#[must_use]
pub(crate) struct SyncTurn<'a> {
    turns: &'a ReadTurns,
}

impl Drop for SyncTurn<'_> {
    fn drop(&mut self) {
        let mut state = self.turns.state.lock();
        state.running -= 1;
        state.ended += 1;
        drop(state);
        self.turns.ended.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    /// What is read at a time of `left` bytes.
    fn lengths(turns: &ReadTurns, mut left: usize) -> Vec<usize> {
        let mut lengths = Vec::new();
        while left > 0 {
            let len = turns.read(left, |len| len);
            lengths.push(len);
            left -= len;
        }
        lengths
    }

    #[test]
    fn without_syncs_all_is_read_at_once() {
        let turns = ReadTurns::default();
        assert_eq!(lengths(&turns, 4 * MIB), [4 * MIB]);
        assert!(turns.is_quiet_for(usize::MAX / 16));
    }

    #[test]
    fn after_a_sync_reads_are_short_and_grow_until_the_next_one() {
        let turns = ReadTurns::default();
        drop(turns.sync());
        let lengths_then = lengths(&turns, MIB);
        assert_eq!(lengths_then[..9], [32 << 10; 9]);
        // The last one is what is left.
        assert!(lengths_then[..lengths_then.len() - 1].is_sorted());
        assert_eq!(lengths_then.iter().sum::<usize>(), MIB);
        assert!(lengths_then.len() > 16, "{lengths_then:?}");
        lengths(&turns, 7 * MIB);
        assert_eq!(lengths(&turns, MIB), [MIB]);
        drop(turns.sync());
        assert_eq!(turns.read(MIB, |len| len), 32 << 10);
    }

    #[test]
    fn a_read_waits_for_the_round_under_way_and_not_for_the_next_one() {
        let turns = ReadTurns::with_patience(Duration::MAX);
        let first = turns.sync();
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| turns.read(MIB, |len| len));
            while turns.state.lock().waiting == 0 {
                std::thread::yield_now();
            }
            assert!(!reader.is_finished());
            let second = turns.sync();
            drop(first);
            assert_eq!(reader.join().ok(), Some(32 << 10));
            drop(second);
        });
    }

    #[test]
    fn a_round_that_hangs_holds_nobody_up_for_long() {
        let turns = ReadTurns::with_patience(Duration::ZERO);
        let hanging = turns.sync();
        assert_eq!(turns.read(MIB, |len| len), 32 << 10);
        // Nor does a reader that hangs.
        let reading = turns.reading.lock();
        assert_eq!(turns.read(MIB, |len| len), 32 << 10);
        drop((hanging, reading));
    }
}

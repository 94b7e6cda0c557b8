//! What a test does to the disk from outside: power loss, kills, failures, damage, a look inside.

use std::path::{Path, PathBuf};

use crate::faults::{Astray, FailMode, InjectedError, OpFilter};
use crate::holds::Hang;
use crate::image::SECTOR_BYTES;
use crate::names::Ino;
use crate::state::State;
use crate::{SimDisk, SimRng};

/// Crashes.
impl SimDisk {
    /// Power loss. Of everything unsynced, what survives is drawn from the seed. All open files
    /// fail from now on, all locks are free, and armed failures are gone.
    pub fn crash(&self) {
        let state = &mut *self.state();
        state.end_process();
        // Those that hung find their process gone.
        self.holds.clear();
        let used = state.used();
        for file in state.files.values_mut() {
            file.crash(&mut state.rng);
        }
        state.names.crash(&mut state.rng);
        state.forget_unknown();
        for file in state.files.values_mut() {
            file.is_named = true;
        }
        let used_now = state.used();
        state.free = state
            .free
            .map(|free| (free + used).saturating_sub(used_now));
    }

    /// The process ends, the system goes on: nothing is lost, but all open files fail from now on,
    /// all locks are free, and armed failures are gone.
    pub fn kill(&self) {
        self.state().end_process();
        // Those that hung find their process gone.
        self.holds.clear();
    }

    /// Mounts another file system at `dir`: what is created there from now on is not synced with
    /// the rest.
    pub fn mount(&self, dir: &Path) {
        self.state().mount = Some(dir.to_owned());
    }

    /// Makes all bytes and names durable, without counting as a call: a quiet minute. What a
    /// failed sync has lost stays lost.
    pub fn sync_all(&self) {
        let state = &mut *self.state();
        for file in state.files.values_mut() {
            file.sync();
        }
        state.names.sync_all();
        state.forget_unknown();
    }

    /// Forgets all clean pages, as memory pressure does: from now on reads show what the device
    /// holds where a failed sync lost bytes.
    pub fn drop_caches(&self) {
        for file in self.state().files.values_mut() {
            file.drop_clean();
        }
    }

    /// The same disk again, unsynced changes included, but without handles, locks and armed
    /// failures, and deciding from another seed. With it one run is crashed in many ways.
    #[must_use]
    pub fn fork(&self, seed: u64) -> Self {
        let state = self.state();
        let mut copy = State {
            rng: SimRng::new(seed),
            incarnation: state.incarnation,
            names: state.names.clone(),
            files: state
                .files
                .iter()
                .map(|(ino, file)| (*ino, file.copy()))
                .collect(),
            locks: Default::default(),
            faults: Default::default(),
            mount: state.mount.clone(),
            free: state.free,
        };
        copy.forget_unknown();
        Self::with_state(copy)
    }
}

/// Failures on demand.
impl SimDisk {
    /// Makes the `nth` call from now on that `filter` takes fail with `error`, counted from 1.
    /// Several can be armed at once.
    ///
    /// # Panics
    /// When `nth` is 0.
    pub fn fail_nth(
        &self,
        filter: OpFilter,
        nth: u64,
        error: impl Into<InjectedError>,
        mode: FailMode,
    ) {
        self.state().faults.arm(filter, nth, error.into(), mode);
    }

    /// Makes the `nth` read or write from now on that `filter` takes go astray, counted from 1; the
    /// call says that all went well. A write is shown by reads, from the page cache, until
    /// [`SimDisk::drop_caches`] or a crash: on the device it lies elsewhere, over what was there. A
    /// read gives another place's bytes, once.
    ///
    /// # Panics
    /// When `nth` is 0, and at that call, when there is no file where it is to go.
    pub fn misdirect_nth(&self, filter: OpFilter, nth: u64, to: Astray) {
        self.state().faults.misdirect(filter, nth, to);
    }

    /// Makes all calls that `filter` takes hang, before they do anything, until what is returned
    /// is dropped, or the disk crashes or its process is killed.
    pub fn hang(&self, filter: OpFilter) -> Hang {
        self.holds.add(filter)
    }

    /// Disarms all failures and misdirections.
    pub fn stop_failing(&self) {
        self.state().faults.disarm();
    }

    /// How many calls were made to fail so far. A run that left it unchanged was not touched.
    pub fn failures(&self) -> u64 {
        self.state().faults.struck
    }

    /// How many calls there were so far that change something or make it durable: those that
    /// [`OpFilter::mutating`] takes.
    pub fn io_count(&self) -> u64 {
        self.state().faults.mutating_calls
    }

    /// How many calls there were so far, reads included: those that [`OpFilter::any`] takes.
    pub fn call_count(&self) -> u64 {
        self.state().faults.calls
    }

    /// Leaves `bytes` of free space from now on, or any amount with `None`. Space is taken and
    /// given back in sectors of [`SECTOR_BYTES`].
    pub fn set_free_bytes(&self, bytes: Option<u64>) {
        self.state().free = bytes;
    }
}

/// A look inside, and damage. None of it counts as a call or fails.
///
/// # Panics
/// All panic when the file they name is not there.
impl SimDisk {
    /// The paths of all files from the root, sorted.
    pub fn files(&self) -> Vec<PathBuf> {
        self.state()
            .names
            .files()
            .into_iter()
            .map(|(path, _)| path)
            .collect()
    }

    /// What reads of the file see.
    pub fn contents(&self, path: &Path) -> Vec<u8> {
        let mut state = self.state();
        let ino = state.ino(path);
        state.file(ino).cache().to_vec()
    }

    /// What the device holds of the file: what the worst power loss leaves, name aside.
    pub fn durable_contents(&self, path: &Path) -> Vec<u8> {
        let mut state = self.state();
        let ino = state.ino(path);
        state.file(ino).device().to_vec()
    }

    /// Turns over bit `bit` (0 is the lowest) of the byte at `position`, in cache and on the device.
    ///
    /// # Panics
    /// When `position` is beyond the end of the file.
    pub fn flip_bit(&self, path: &Path, position: u64, bit: u8) {
        let mut byte = [0];
        let mut state = self.state();
        let ino = state.ino(path);
        assert!(
            state.file(ino).cache().read(position, &mut byte) == 1,
            "no byte at {position}"
        );
        state.file(ino).overwrite(position, &[byte[0] ^ (1 << bit)]);
    }

    /// Fills the sector that holds `position` with random bytes, in cache and on the device.
    ///
    /// # Panics
    /// When `position` is beyond the end of the file.
    pub fn corrupt_sector(&self, path: &Path, position: u64) {
        let state = &mut *self.state();
        let ino = state.ino(path);
        let len = state.file(ino).cache().len();
        assert!(position < len, "no byte at {position}");
        let start = position - position % SECTOR_BYTES;
        let mut garbage = [0; crate::image::SECTOR_LEN];
        state.rng.fill(&mut garbage);
        let there = usize::try_from(SECTOR_BYTES.min(len - start)).expect("at most a sector");
        state.file(ino).overwrite(start, &garbage[..there]);
    }

    /// Puts `bytes` at `position`, in cache and on the device; with a copy of other bytes it
    /// stages a misdirected write.
    ///
    /// # Panics
    /// When the range reaches beyond the end of the file.
    pub fn overwrite(&self, path: &Path, position: u64, bytes: &[u8]) {
        let mut state = self.state();
        let ino = state.ino(path);
        let end = position + bytes.len() as u64;
        assert!(
            end <= state.file(ino).cache().len(),
            "no bytes at {position}..{end}"
        );
        state.file(ino).overwrite(position, bytes);
    }

    /// Cuts the file to `len` bytes, durably; a shorter file stays as it is. What was pending in it
    /// is made durable on the way.
    pub fn truncate_file(&self, path: &Path, len: u64) {
        let mut state = self.state();
        let ino = state.ino(path);
        let file = state.file(ino);
        let before = file.space();
        file.truncate(len);
        let given_back = before - file.space();
        state.free = state.free.map(|free| free + given_back);
    }

    /// Removes the file, durably. Handles to it go on.
    pub fn remove(&self, path: &Path) {
        let mut state = self.state();
        let ino = state.ino(path);
        let name = state.names.name(path).expect("what was found has a name");
        state.unname(ino);
        state.names.remove_durably(name);
    }
}

impl State {
    fn end_process(&mut self) {
        self.incarnation += 1;
        self.locks.clear();
        self.faults.disarm();
    }

    /// Bytes of space that all named files take.
    fn used(&self) -> u64 {
        self.files
            .values()
            .filter(|file| file.is_named)
            .map(|file| file.space())
            .sum()
    }

    /// # Panics
    /// When there is no file at `path`.
    fn ino(&self, path: &Path) -> Ino {
        match self.names.lookup(path) {
            Ok(ino) if !self.names.is_dir(ino) => ino,
            Ok(_) => panic!("{} is a directory", path.display()),
            Err(kind) => panic!(
                "no file at {}: {}",
                path.display(),
                std::io::Error::from(kind)
            ),
        }
    }
}

//! All there is to a disk, and what the calls do to it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::SimRng;
use crate::faults::{Astray, Faults};
use crate::file::FileState;
use crate::image::{SECTOR_BYTES, pieces};
use crate::names::{Ino, Name, Names};

/// All there is to a disk.
pub(crate) struct State {
    pub(crate) rng: SimRng,
    /// Counts crashes and kills; handles and locks of an older one are dead.
    pub(crate) incarnation: u64,
    pub(crate) names: Names,
    pub(crate) files: BTreeMap<Ino, FileState>,
    pub(crate) locks: BTreeSet<Ino>,
    pub(crate) faults: Faults,
    /// The directory below which another file system lies, if there is one.
    pub(crate) mount: Option<PathBuf>,
    /// Bytes of space left, if that is limited. Below zero never: what does not fit is refused.
    pub(crate) free: Option<u64>,
}

impl State {
    pub(crate) fn new(rng: SimRng) -> Self {
        Self {
            rng,
            incarnation: 0,
            names: Names::new(),
            files: BTreeMap::new(),
            locks: BTreeSet::new(),
            faults: Faults::default(),
            mount: None,
            free: None,
        }
    }

    pub(crate) fn create_file(&mut self, name: Name) -> Ino {
        let ino = self.names.create_file(name);
        self.files.insert(ino, FileState::new());
        ino
    }

    pub(crate) fn file(&mut self, ino: Ino) -> &mut FileState {
        self.files
            .get_mut(&ino)
            .expect("files live as long as names or handles to them")
    }

    pub(crate) fn rename(&mut self, from: Name, to: Name) -> Result<(), ErrorKind> {
        let moved = self.names.get(&from).ok_or(ErrorKind::NotFound)?;
        if self.names.is_dir(moved) && self.names.is_within(to.0, moved) {
            return Err(ErrorKind::InvalidInput);
        }
        if from == to {
            return Ok(());
        }
        if let Some(replaced) = self.names.get(&to) {
            match (self.names.is_dir(moved), self.names.is_dir(replaced)) {
                (false, false) => self.unname(replaced),
                (false, true) => return Err(ErrorKind::IsADirectory),
                (true, false) => return Err(ErrorKind::NotADirectory),
                (true, true) if self.names.children(replaced).next().is_some() => {
                    return Err(ErrorKind::DirectoryNotEmpty);
                }
                (true, true) => {}
            }
        }
        self.names.rename(from, to);
        Ok(())
    }

    pub(crate) fn remove_below(&mut self, dir: Ino) {
        let children: Vec<_> = self
            .names
            .children(dir)
            .map(|(name, ino)| (name.to_owned(), ino))
            .collect();
        for (name, ino) in children {
            if self.names.is_dir(ino) {
                self.remove_below(ino);
            } else {
                self.unname(ino);
            }
            self.names.remove((dir, name));
        }
    }

    /// The file lost its name: its space is free again.
    pub(crate) fn unname(&mut self, ino: Ino) {
        let file = self.file(ino);
        if std::mem::take(&mut file.is_named) {
            let space = file.space();
            self.free = self.free.map(|free| free + space);
        }
    }

    pub(crate) fn sync_dir(&mut self, dir: &Path, failed: Option<io::Error>) -> io::Result<()> {
        let dir = self.names.lookup_dir(dir)?;
        match failed {
            None => self.names.sync(dir),
            Some(error) => {
                self.names.fail_sync(dir, &mut self.rng);
                return Err(error);
            }
        }
        self.forget_unknown();
        Ok(())
    }

    /// Drops files that have no name, cannot get one back, and are not open.
    pub(crate) fn forget_unknown(&mut self) {
        let known = self.names.known();
        self.files
            .retain(|ino, file| known.contains(ino) || Arc::strong_count(&file.opened) > 1);
    }

    /// Writes `bytes`, or as much of them as there is space for, or, when the call was made to
    /// fail, any part.
    pub(crate) fn write(
        &mut self,
        ino: Ino,
        at: u64,
        bytes: &[u8],
        failed: Option<io::Error>,
    ) -> io::Result<()> {
        let failed = match failed {
            None if self.take_space(ino, |file| file.space_to_write(at, bytes.len())) => {
                self.file(ino).write(at, bytes);
                return Ok(());
            }
            None => io::Error::from(ErrorKind::StorageFull),
            Some(error) => error,
        };
        // What landed is a prefix, or sectors here and there, as far as there is space for them.
        let is_short = failed.kind() == ErrorKind::WriteZero;
        let most = bytes.len() + usize::from(!is_short || bytes.is_empty());
        let end = self.rng.index(most);
        let is_torn = !is_short && failed.kind() != ErrorKind::StorageFull && self.rng.chance(30);
        for piece in pieces(at, end) {
            if is_torn && self.rng.chance(50) {
                continue;
            }
            let start = at + piece.range.start as u64;
            if !self.take_space(ino, |file| file.space_to_write(start, piece.range.len())) {
                break;
            }
            self.file(ino).write(start, &bytes[piece.range]);
        }
        Err(failed)
    }

    /// Writes `bytes` for all that reads see; the device puts them elsewhere.
    ///
    /// # Panics
    /// When there is no file where they are to go.
    pub(crate) fn write_astray(
        &mut self,
        ino: Ino,
        at: u64,
        bytes: &[u8],
        to: Astray,
    ) -> io::Result<()> {
        if !self.take_space(ino, |file| file.space_to_write(at, bytes.len())) {
            return Err(ErrorKind::StorageFull.into());
        }
        self.file(ino).write_astray(at, bytes);
        let (other, there) = self.elsewhere(ino, at, to);
        self.file(other).land(there, bytes);
        Ok(())
    }

    /// Reads from elsewhere, as many bytes as there were to be read here.
    ///
    /// # Panics
    /// When there is no file where they are to come from.
    pub(crate) fn read_astray(&mut self, ino: Ino, at: u64, buf: &mut [u8], to: Astray) -> usize {
        let read = self.file(ino).cache().read(at, buf);
        let buf = &mut buf[..read];
        let (other, there) = self.elsewhere(ino, at, to);
        let found = self.file(other).cache().read(there, buf);
        buf[found..].fill(0);
        read
    }

    fn elsewhere(&self, ino: Ino, at: u64, to: Astray) -> (Ino, u64) {
        match to {
            Astray::By(distance) => (ino, at.saturating_add_signed(distance)),
            Astray::To(path, there) => {
                let other = self.names.lookup(&path).expect("a file to go astray to");
                (other, there)
            }
        }
    }

    pub(crate) fn reserve(
        &mut self,
        ino: Ino,
        len: u64,
        failed: Option<io::Error>,
    ) -> io::Result<()> {
        let failed = match failed {
            None if self.take_space(ino, |file| file.space_to_reserve(len)) => {
                self.file(ino).reserve(len);
                return Ok(());
            }
            None => io::Error::from(ErrorKind::StorageFull),
            Some(error) => error,
        };
        let present = self.file(ino).cache().len();
        if len > present {
            // The file may have grown by a part of what was asked for, where that had space.
            let mut reached = present + self.rng.below(len - present + 1);
            reached -= reached % SECTOR_BYTES;
            if reached > present && self.take_space(ino, |file| file.space_to_reserve(reached)) {
                self.file(ino).reserve(reached);
            }
        }
        Err(failed)
    }

    pub(crate) fn set_len(
        &mut self,
        ino: Ino,
        len: u64,
        failed: Option<io::Error>,
    ) -> io::Result<()> {
        if failed.is_none() || self.rng.chance(50) {
            let file = self.file(ino);
            let before = file.space();
            file.set_len(len);
            let given_back = if file.is_named {
                before - file.space()
            } else {
                0
            };
            self.free = self.free.map(|free| free + given_back);
        }
        failed.map_or(Ok(()), Err)
    }

    pub(crate) fn sync_file(&mut self, ino: Ino, failed: Option<io::Error>) -> io::Result<()> {
        let file = self
            .files
            .get_mut(&ino)
            .expect("files live as long as handles to them");
        match failed {
            None => {
                file.sync();
                Ok(())
            }
            Some(error) => {
                file.fail_sync(&mut self.rng);
                Err(error)
            }
        }
    }

    /// Whether `path` lies on another file system than the rest.
    pub(crate) fn is_elsewhere(&self, path: &Path) -> bool {
        self.mount.as_ref().is_some_and(|dir| path.starts_with(dir))
    }

    /// Syncs every file of the file system that holds what lies below `dir`, or loses any part of
    /// what each of them was to write.
    pub(crate) fn sync_all(&mut self, dir: &Path, failed: Option<io::Error>) -> io::Result<()> {
        let is_elsewhere = self.is_elsewhere(dir);
        let of_it = |file: &&mut FileState| file.is_elsewhere == is_elsewhere;
        for file in self.files.values_mut().filter(of_it) {
            if failed.is_some() {
                file.fail_sync(&mut self.rng);
            } else {
                file.sync();
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// Takes the space that `needed` says, if there is as much.
    fn take_space(&mut self, ino: Ino, needed: impl FnOnce(&FileState) -> u64) -> bool {
        let Some(free) = self.free else { return true };
        let file = self.file(ino);
        let needed = if file.is_named { needed(file) } else { 0 };
        let left = free.checked_sub(needed);
        if let Some(left) = left {
            self.free = Some(left);
        }
        left.is_some()
    }
}

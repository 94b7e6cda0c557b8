//! The disk as its users see it: the calls on names.

use std::fmt;
use std::io;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tidelog_disk::{
    DirEntry, DirLock, Disk, DiskError, DiskFile, DiskOp, FileSystem, LockError, OpenHow,
};

use crate::SimRng;
use crate::faults::Call;
use crate::handle::{SimFile, SimFileSystem, SimLock};
use crate::holds::Holds;
use crate::names::Ino;
use crate::state::State;

/// Free space of a disk that was given none, in bytes.
const FREE_BYTES_DEFAULT: u64 = 1 << 40;

/// A disk in memory; see the crate's documentation for what it models. Clones are handles to the
/// same disk.
#[derive(Clone)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
    pub(crate) holds: Arc<Holds>,
}

impl fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        f.debug_struct("SimDisk")
            .field("incarnation", &state.incarnation)
            .field("files", &state.files.len())
            .field("calls", &state.faults.calls)
            .finish_non_exhaustive()
    }
}

impl SimDisk {
    /// An empty disk whose every decision comes from `seed`.
    pub fn new(seed: u64) -> Self {
        Self::with_state(State::new(SimRng::new(seed)))
    }

    pub(crate) fn with_state(state: State) -> Self {
        Self {
            state: Arc::new(Mutex::new(state)),
            holds: Arc::default(),
        }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while the state is half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts the call and makes it, or fails it: then it may have happened or not.
    fn call<T>(
        &self,
        call: Call<'_>,
        act: impl FnOnce(&mut State) -> io::Result<T>,
    ) -> Result<T, DiskError> {
        self.holds.pass(&call);
        let mut state = self.state();
        let result = match state.faults.count(&call) {
            None => act(&mut state),
            Some(error) => {
                if call.mutates && state.rng.chance(50) {
                    act(&mut state).ok();
                }
                Err(error)
            }
        };
        result.map_err(|e| DiskError::new(call.op, call.path, e))
    }
}

fn reads(op: DiskOp, path: &Path) -> Call<'_> {
    Call {
        op,
        path,
        mutates: false,
    }
}

fn mutates(op: DiskOp, path: &Path) -> Call<'_> {
    Call {
        op,
        path,
        mutates: true,
    }
}

impl Disk for SimDisk {
    fn open(&self, path: &Path, how: OpenHow) -> Result<Arc<dyn DiskFile>, DiskError> {
        let creates = matches!(how, OpenHow::Create | OpenHow::CreateNew);
        let call = Call {
            op: DiskOp::Open,
            path,
            mutates: creates,
        };
        let (ino, opened, incarnation) = self.call(call, |state| {
            let name = state.names.name(path)?;
            let ino = match state.names.get(&name) {
                Some(_) if how == OpenHow::CreateNew => {
                    return Err(ErrorKind::AlreadyExists.into());
                }
                Some(ino) if state.names.is_dir(ino) => return Err(ErrorKind::IsADirectory.into()),
                Some(ino) => ino,
                None if creates => {
                    let ino = state.create_file(name);
                    state.file(ino).is_elsewhere = state.is_elsewhere(path);
                    ino
                }
                None => return Err(ErrorKind::NotFound.into()),
            };
            Ok((ino, state.file(ino).opened.clone(), state.incarnation))
        })?;
        let is_writable = how != OpenHow::Read;
        Ok(Arc::new(SimFile::new(
            self.clone(),
            incarnation,
            ino,
            opened,
            path,
            is_writable,
        )))
    }

    fn create_dir_all(&self, path: &Path) -> Result<(), DiskError> {
        self.call(mutates(DiskOp::CreateDir, path), |state| {
            let mut above: Vec<&Path> = path.ancestors().collect();
            above.reverse();
            for path in above {
                match state.names.lookup(path) {
                    Ok(ino) if state.names.is_dir(ino) => {}
                    Ok(_) => return Err(ErrorKind::AlreadyExists.into()),
                    Err(ErrorKind::NotFound) => {
                        let name = state.names.name(path)?;
                        state.names.create_dir(name);
                    }
                    Err(kind) => return Err(kind.into()),
                }
            }
            Ok(())
        })
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), DiskError> {
        self.call(mutates(DiskOp::Rename, from), |state| {
            let (from, to) = (state.names.name(from)?, state.names.name(to)?);
            state.rename(from, to).map_err(io::Error::from)
        })
    }

    fn remove_file(&self, path: &Path) -> Result<(), DiskError> {
        self.call(mutates(DiskOp::Remove, path), |state| {
            let name = state.names.name(path)?;
            let ino = state.names.get(&name).ok_or(ErrorKind::NotFound)?;
            if state.names.is_dir(ino) {
                return Err(ErrorKind::IsADirectory.into());
            }
            state.names.remove(name);
            state.unname(ino);
            Ok(())
        })
    }

    fn remove_dir_all(&self, path: &Path) -> Result<(), DiskError> {
        self.call(mutates(DiskOp::Remove, path), |state| {
            let name = state.names.name(path)?;
            let dir = state.names.lookup_dir(path)?;
            state.remove_below(dir);
            state.names.remove(name);
            Ok(())
        })
    }

    fn list(&self, dir: &Path) -> Result<Vec<DirEntry>, DiskError> {
        self.call(reads(DiskOp::List, dir), |state| {
            let names = &state.names;
            let entry = |(name, ino): (&str, Ino)| DirEntry {
                name: name.to_owned(),
                is_dir: names.is_dir(ino),
            };
            Ok(names.children(names.lookup_dir(dir)?).map(entry).collect())
        })
    }

    fn sync_dir(&self, dir: &Path) -> Result<(), DiskError> {
        let call = mutates(DiskOp::SyncDir, dir);
        self.holds.pass(&call);
        let mut state = self.state();
        let failed = state.faults.count(&call);
        let result = state.sync_dir(dir, failed);
        result.map_err(|e| DiskError::new(DiskOp::SyncDir, dir, e))
    }

    fn free_bytes(&self, dir: &Path) -> Result<u64, DiskError> {
        self.call(reads(DiskOp::Stat, dir), |state| {
            state.names.lookup(dir)?;
            Ok(state.free.unwrap_or(FREE_BYTES_DEFAULT))
        })
    }

    fn file_system(&self, dir: &Path) -> Result<Option<Box<dyn FileSystem>>, DiskError> {
        let incarnation = self.call(reads(DiskOp::Stat, dir), |state| {
            state.names.lookup(dir)?;
            Ok(state.incarnation)
        })?;
        let file_system = SimFileSystem::new(self.clone(), incarnation, dir);
        Ok(Some(Box::new(file_system)))
    }

    fn lock(&self, path: &Path) -> Result<Box<dyn DirLock>, LockError> {
        let taken = self.call(mutates(DiskOp::Lock, path), |state| {
            let name = state.names.name(path)?;
            let ino = name.0;
            match state.names.get(&name) {
                Some(file) if state.names.is_dir(file) => {
                    return Err(ErrorKind::IsADirectory.into());
                }
                Some(_) => {}
                None => {
                    state.create_file(name);
                }
            }
            if state.locks.contains(&ino) {
                return Ok(None);
            }
            Ok(Some((ino, state.incarnation)))
        })?;
        let Some((ino, incarnation)) = taken else {
            return Err(LockError::Held {
                path: path.to_owned(),
            });
        };
        // A failed call must not leave the lock held by nobody, so it is taken only here.
        match SimLock::take(self.clone(), incarnation, ino) {
            Some(lock) => Ok(Box::new(lock)),
            None => Err(LockError::Held {
                path: path.to_owned(),
            }),
        }
    }
}

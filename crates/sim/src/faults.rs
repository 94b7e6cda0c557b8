//! Calls that fail on demand, and the counts that say which.

use std::io;
use std::path::{Path, PathBuf};

use tidelog_disk::DiskOp;

/// Which calls [`SimDisk::fail_nth`](crate::SimDisk::fail_nth) counts and fails.
#[derive(Clone, Debug)]
pub struct OpFilter {
    which: Which,
    path_part: Option<String>,
}

#[derive(Clone, Debug)]
enum Which {
    Any,
    Mutating,
    Ops(Vec<DiskOp>),
}

impl OpFilter {
    /// Every call, reads included.
    pub fn any() -> Self {
        Self {
            which: Which::Any,
            path_part: None,
        }
    }

    /// The calls that change something or make it durable: creating opens, locks, creations of
    /// directories, renames, removals, writes, syncs, changes of length, reservations.
    pub fn mutating() -> Self {
        Self {
            which: Which::Mutating,
            path_part: None,
        }
    }

    /// The calls of one kind.
    pub fn op(op: DiskOp) -> Self {
        Self::ops(&[op])
    }

    /// The calls of several kinds.
    pub fn ops(ops: &[DiskOp]) -> Self {
        Self {
            which: Which::Ops(ops.to_vec()),
            path_part: None,
        }
    }

    /// Of these, only the calls on a path that contains `part`. A rename counts by its old path.
    #[must_use]
    pub fn on(mut self, part: &str) -> Self {
        self.path_part = Some(part.to_owned());
        self
    }

    pub(crate) fn takes(&self, call: &Call<'_>) -> bool {
        let takes_op = match &self.which {
            Which::Any => true,
            Which::Mutating => call.mutates,
            Which::Ops(ops) => ops.contains(&call.op),
        };
        takes_op
            && self
                .path_part
                .as_ref()
                .is_none_or(|part| call.path.to_string_lossy().contains(part.as_str()))
    }
}

/// The error that a call is made to fail with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InjectedError {
    /// The device failed: EIO.
    Io,
    /// No space left: ENOSPC.
    Full,
    /// The process has too many open files: EMFILE.
    OutOfFiles,
    /// A write wrote less than all of its bytes, the first ones, and then nothing more.
    Short,
    /// Any other kind.
    Kind(io::ErrorKind),
    /// None: the code that calls panics, as if it had a bug.
    Panic,
}

impl From<io::ErrorKind> for InjectedError {
    fn from(kind: io::ErrorKind) -> Self {
        Self::Kind(kind)
    }
}

impl InjectedError {
    fn to_io(self) -> io::Error {
        // These numbers are the same on Linux and macOS.
        match self {
            Self::Io => io::Error::from_raw_os_error(5),
            Self::OutOfFiles => io::Error::from_raw_os_error(24),
            Self::Full => io::Error::from_raw_os_error(28),
            Self::Short => io::ErrorKind::WriteZero.into(),
            Self::Kind(kind) => kind.into(),
            Self::Panic => panic!("the disk was told to panic"),
        }
    }
}

/// How often an armed failure strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailMode {
    /// The n-th call alone.
    Once,
    /// The n-th call and all later ones.
    Forever,
}

/// Where a misdirected read or write goes instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Astray {
    /// So many bytes further on in the same file, or back.
    By(i64),
    /// To a place in another file, in bytes from its start. There must be such a file.
    To(PathBuf, u64),
}

/// A call that is about to be made.
pub(crate) struct Call<'a> {
    pub(crate) op: DiskOp,
    pub(crate) path: &'a Path,
    pub(crate) mutates: bool,
}

/// Armed failures, and how many calls there were.
#[derive(Clone, Debug, Default)]
pub(crate) struct Faults {
    armed: Vec<Armed>,
    /// Reads and writes that will go astray: which, after how many others, and where to.
    astray: Vec<(OpFilter, u64, Astray)>,
    pub(crate) mutating_calls: u64,
    pub(crate) calls: u64,
    /// How many calls were made to fail.
    pub(crate) struck: u64,
}

#[derive(Clone, Debug)]
struct Armed {
    filter: OpFilter,
    /// How many calls go well before it strikes.
    spare: u64,
    error: InjectedError,
    mode: FailMode,
}

impl Faults {
    pub(crate) fn arm(&mut self, filter: OpFilter, nth: u64, error: InjectedError, mode: FailMode) {
        assert!(nth > 0, "calls are counted from 1");
        self.armed.push(Armed {
            filter,
            spare: nth - 1,
            error,
            mode,
        });
    }

    pub(crate) fn misdirect(&mut self, filter: OpFilter, nth: u64, to: Astray) {
        assert!(nth > 0, "calls are counted from 1");
        self.astray.push((filter, nth - 1, to));
    }

    pub(crate) fn disarm(&mut self) {
        self.armed.clear();
        self.astray.clear();
    }

    /// Where this call goes instead of where it should.
    pub(crate) fn stray(&mut self, call: &Call<'_>) -> Option<Astray> {
        let mut stray = None;
        self.astray.retain_mut(|(filter, spare, to)| {
            if !filter.takes(call) {
                return true;
            }
            if *spare > 0 {
                *spare -= 1;
                return true;
            }
            stray.get_or_insert_with(|| to.clone());
            false
        });
        self.struck += u64::from(stray.is_some());
        stray
    }

    /// Counts a call; returns the error it must fail with. Of several armed failures that would
    /// strike, the first one armed does.
    pub(crate) fn count(&mut self, call: &Call<'_>) -> Option<io::Error> {
        self.calls += 1;
        self.mutating_calls += u64::from(call.mutates);
        let mut error = None;
        self.armed.retain_mut(|armed| {
            if !armed.filter.takes(call) {
                return true;
            }
            if armed.spare > 0 {
                armed.spare -= 1;
                return true;
            }
            error = error.or(Some(armed.error));
            armed.mode == FailMode::Forever
        });
        self.struck += u64::from(error.is_some());
        error.map(InjectedError::to_io)
    }
}

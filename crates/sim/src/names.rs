//! The tree of names: what lookups see, what is durable, and the changes between the two.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::path::{Component, Path, PathBuf};

use crate::SimRng;
use crate::rng::Survival;

/// A file or directory, whatever its name. Never used twice.
pub(crate) type Ino = u64;

/// A name: its directory and itself.
pub(crate) type Name = (Ino, String);

/// The directory that all paths start from, absolute or not.
const ROOT: Ino = 0;

/// Directories and the names in them.
#[derive(Clone, Debug)]
pub(crate) struct Names {
    live: BTreeMap<Name, Ino>,
    durable: BTreeMap<Name, Ino>,
    /// From `durable` to `live`, oldest first.
    pending: Vec<Change>,
    dirs: BTreeSet<Ino>,
    last: Ino,
}

/// One change of names, atomic: a creation, a removal, or both together, which is a rename.
#[derive(Clone, Debug)]
struct Change {
    unlinks: Option<Name>,
    links: Option<(Name, Ino)>,
}

impl Change {
    fn names(&self) -> impl Iterator<Item = &Name> {
        self.unlinks
            .iter()
            .chain(self.links.iter().map(|(name, _)| name))
    }

    fn apply(&self, names: &mut BTreeMap<Name, Ino>) {
        if let Some(name) = &self.unlinks {
            names.remove(name);
        }
        if let Some((name, ino)) = &self.links {
            names.insert(name.clone(), *ino);
        }
    }
}

impl Names {
    pub(crate) fn new() -> Self {
        Self {
            live: BTreeMap::new(),
            durable: BTreeMap::new(),
            pending: Vec::new(),
            dirs: BTreeSet::from([ROOT]),
            last: ROOT,
        }
    }

    /// What is at `path`.
    pub(crate) fn lookup(&self, path: &Path) -> Result<Ino, ErrorKind> {
        let mut at = ROOT;
        for part in parts(path) {
            self.check_dir(at)?;
            at = self
                .get(&(at, part?.to_owned()))
                .ok_or(ErrorKind::NotFound)?;
        }
        Ok(at)
    }

    /// The directory at `path`.
    pub(crate) fn lookup_dir(&self, path: &Path) -> Result<Ino, ErrorKind> {
        let ino = self.lookup(path)?;
        self.check_dir(ino)?;
        Ok(ino)
    }

    /// The name that `path` means, whether something is there or not; its directory exists.
    pub(crate) fn name(&self, path: &Path) -> Result<Name, ErrorKind> {
        let mut at = ROOT;
        let mut parts = parts(path).peekable();
        while let Some(part) = parts.next() {
            let name = (at, part?.to_owned());
            self.check_dir(at)?;
            if parts.peek().is_none() {
                return Ok(name);
            }
            at = self.get(&name).ok_or(ErrorKind::NotFound)?;
        }
        // The root has no name.
        Err(ErrorKind::InvalidInput)
    }

    pub(crate) fn get(&self, name: &Name) -> Option<Ino> {
        self.live.get(name).copied()
    }

    pub(crate) fn is_dir(&self, ino: Ino) -> bool {
        self.dirs.contains(&ino)
    }

    fn check_dir(&self, ino: Ino) -> Result<(), ErrorKind> {
        if self.is_dir(ino) {
            Ok(())
        } else {
            Err(ErrorKind::NotADirectory)
        }
    }

    /// What is in a directory, by name.
    pub(crate) fn children(&self, dir: Ino) -> impl Iterator<Item = (&str, Ino)> {
        children(&self.live, dir)
    }

    /// All files that have a name, with their paths from the root, sorted.
    pub(crate) fn files(&self) -> Vec<(PathBuf, Ino)> {
        let mut files = Vec::new();
        let mut dirs = vec![(PathBuf::from("/"), ROOT)];
        while let Some((path, dir)) = dirs.pop() {
            for (name, ino) in self.children(dir) {
                let path = path.join(name);
                if self.is_dir(ino) {
                    dirs.push((path, ino))
                } else {
                    files.push((path, ino))
                }
            }
        }
        files.sort();
        files
    }

    pub(crate) fn create_file(&mut self, name: Name) -> Ino {
        self.last += 1;
        self.change(Change {
            unlinks: None,
            links: Some((name, self.last)),
        });
        self.last
    }

    pub(crate) fn create_dir(&mut self, name: Name) -> Ino {
        let ino = self.create_file(name);
        self.dirs.insert(ino);
        ino
    }

    pub(crate) fn remove(&mut self, name: Name) {
        self.change(Change {
            unlinks: Some(name),
            links: None,
        });
    }

    /// Renames what is at `from`, replacing what is at `to`.
    pub(crate) fn rename(&mut self, from: Name, to: Name) {
        let ino = self.live[&from];
        self.change(Change {
            unlinks: Some(from),
            links: Some((to, ino)),
        });
    }

    fn change(&mut self, change: Change) {
        change.apply(&mut self.live);
        self.pending.push(change);
    }

    /// Whether the directory `below` is `above`, or somewhere in it.
    pub(crate) fn is_within(&self, below: Ino, above: Ino) -> bool {
        reachable(&self.live, above).contains(&below)
    }

    /// Makes all changes in `dir` durable, and those elsewhere that they build on.
    pub(crate) fn sync(&mut self, dir: Ino) {
        let mut needed = BTreeSet::new();
        let mut synced = vec![false; self.pending.len()];
        for (change, synced) in self.pending.iter().zip(&mut synced).rev() {
            *synced = change
                .names()
                .any(|name| name.0 == dir || needed.contains(name));
            if *synced {
                needed.extend(change.names().cloned());
            }
        }
        let mut synced = synced.into_iter();
        let mut sync_next = |_: &Change| synced.next().expect("one for each change");
        self.settle(&mut sync_next);
    }

    /// Makes any part of the changes in `dir` durable; the others stay pending.
    pub(crate) fn fail_sync(&mut self, dir: Ino, rng: &mut SimRng) {
        let survival = Survival::draw(rng);
        self.settle(|change| change.names().any(|name| name.0 == dir) && survival.keeps(rng));
    }

    /// Makes all changes durable.
    pub(crate) fn sync_all(&mut self) {
        self.settle(|_| true);
    }

    /// Power loss: any part of the changes is durable, and lookups see only that.
    pub(crate) fn crash(&mut self, rng: &mut SimRng) {
        let survival = Survival::draw(rng);
        self.settle(|_| survival.keeps(rng));
        self.pending.clear();
        let reachable = reachable(&self.durable, ROOT);
        self.durable.retain(|(dir, _), _| reachable.contains(dir));
        self.dirs.retain(|dir| reachable.contains(dir));
        self.live = self.durable.clone();
    }

    /// Applies the changes that `keep` chooses to the durable names and forgets them; but a change
    /// to a name with an older change that was not kept is not kept either.
    fn settle(&mut self, mut keep: impl FnMut(&Change) -> bool) {
        let mut blocked: BTreeSet<Name> = BTreeSet::new();
        let durable = &mut self.durable;
        self.pending.retain(|change| {
            let wanted = keep(change);
            if wanted && !change.names().any(|name| blocked.contains(name)) {
                change.apply(durable);
                return false;
            }
            blocked.extend(change.names().cloned());
            true
        });
    }

    /// Damage: the name is gone, durably.
    pub(crate) fn remove_durably(&mut self, name: Name) {
        self.remove(name.clone());
        self.sync(name.0);
    }

    /// Every file and directory that has a name, or may have one after a crash.
    pub(crate) fn known(&self) -> BTreeSet<Ino> {
        let pending = self
            .pending
            .iter()
            .filter_map(|change| Some(change.links.as_ref()?.1));
        self.live
            .values()
            .chain(self.durable.values())
            .copied()
            .chain(pending)
            .collect()
    }
}

fn children(names: &BTreeMap<Name, Ino>, dir: Ino) -> impl Iterator<Item = (&str, Ino)> {
    names
        .range((dir, String::new())..)
        .take_while(move |((parent, _), _)| *parent == dir)
        .map(|((_, name), ino)| (name.as_str(), *ino))
}

/// `top` and everything below it.
fn reachable(names: &BTreeMap<Name, Ino>, top: Ino) -> BTreeSet<Ino> {
    let mut found = BTreeSet::from([top]);
    let mut todo = vec![top];
    while let Some(dir) = todo.pop() {
        todo.extend(
            children(names, dir)
                .map(|(_, ino)| ino)
                .filter(|ino| found.insert(*ino)),
        );
    }
    found
}

/// The names in a path. Those that are not UTF-8 are refused, and `..` too.
fn parts(path: &Path) -> impl Iterator<Item = Result<&str, ErrorKind>> {
    path.components().filter_map(|part| match part {
        Component::RootDir | Component::CurDir => None,
        Component::Normal(name) => Some(name.to_str().ok_or(ErrorKind::InvalidInput)),
        Component::ParentDir | Component::Prefix(_) => Some(Err(ErrorKind::InvalidInput)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        (ROOT, text.to_owned())
    }

    fn shown(names: &Names) -> Vec<&str> {
        names.children(ROOT).map(|(name, _)| name).collect()
    }

    #[test]
    fn changes_that_share_a_name_stay_ordered() {
        let mut names = Names::new();
        names.create_file(name("a"));
        names.rename(name("a"), name("b"));
        names.create_file(name("c"));
        let mut seen = BTreeSet::new();
        for seed in 0..200 {
            let mut names = names.clone();
            names.crash(&mut SimRng::new(seed));
            seen.insert(shown(&names).join(" "));
        }
        let expected = ["", "a", "a c", "b", "b c", "c"].map(str::to_owned);
        assert_eq!(seen, BTreeSet::from(expected));
    }

    #[test]
    fn a_new_file_under_an_old_name_never_outlives_the_move_of_the_old_one() {
        let mut names = Names::new();
        let old = names.create_file(name("a"));
        names.sync_all();
        names.rename(name("a"), name("b"));
        names.create_file(name("a"));
        for seed in 0..200 {
            let mut names = names.clone();
            names.crash(&mut SimRng::new(seed));
            assert!(
                names.known().contains(&old),
                "seed {seed} lost a durable file"
            );
        }
    }

    #[test]
    fn a_failed_sync_does_a_part_at_once() {
        let mut names = Names::new();
        let other = names.create_dir(name("other"));
        names.sync_all();
        names.create_file(name("a"));
        names.create_file(name("b"));
        names.create_file((other, "c".to_owned()));
        let mut seen = BTreeSet::new();
        for seed in 0..200 {
            let mut names = names.clone();
            names.fail_sync(ROOT, &mut SimRng::new(seed));
            assert_eq!(
                children(&names.durable, other).count(),
                0,
                "another directory"
            );
            seen.insert(
                children(&names.durable, ROOT)
                    .map(|(name, _)| name)
                    .collect::<String>(),
            );
        }
        assert_eq!(
            seen,
            BTreeSet::from(["other", "aother", "bother", "abother"].map(String::from))
        );
    }

    #[test]
    fn a_sync_takes_along_what_it_builds_on_and_nothing_else() {
        let mut names = Names::new();
        let (from, to) = (names.create_dir(name("from")), names.create_dir(name("to")));
        names.sync_all();
        names.create_file((from, "x".to_owned()));
        names.create_file((from, "y".to_owned()));
        names.rename((from, "x".to_owned()), (to, "x".to_owned()));
        names.sync(to);
        assert_eq!(names.pending.len(), 1, "only the creation of y");
        assert_eq!(children(&names.durable, to).count(), 1);
        assert_eq!(children(&names.durable, from).count(), 0);
    }

    #[test]
    fn a_lost_directory_takes_its_durable_names_along() {
        let mut names = Names::new();
        let dir = names.create_dir(name("dir"));
        names.create_file((dir, "x".to_owned()));
        names.sync(dir);
        let mut seen = BTreeSet::new();
        for seed in 0..50 {
            let mut names = names.clone();
            names.crash(&mut SimRng::new(seed));
            seen.insert(names.files().len());
            assert_eq!(names.files().len(), shown(&names).len());
            assert_eq!(
                names.known().len(),
                2 * shown(&names).len(),
                "all of it is forgotten"
            );
        }
        assert_eq!(seen, BTreeSet::from([0, 1]));
    }
}

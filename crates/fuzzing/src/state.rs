//! State files that hold anything.

use std::collections::BTreeMap;
use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tidelog_disk::{Disk, OpenHow};
use tidelog_log::fuzzing::state_file;
use tidelog_log::offline::{Problem, Severity, read_state};
use tidelog_log::state::{StateError, StateFile};
use tidelog_sim::SimDisk;

/// The first byte says how: bit 0, whether what follows are records that get good frames; bit 1,
/// whether there are two generations. Two more say how long the first file is; the others share
/// the rest.
pub fn state(data: &[u8]) {
    let [how, high, low, bytes @ ..] = data else {
        return;
    };
    let first = usize::from(u16::from_be_bytes([*high, *low])).min(bytes.len());
    let (snapshot, rest) = bytes.split_at(first);
    let (journal, second) = match how & 2 {
        0 => (rest, &[][..]),
        _ => rest.split_at(rest.len() / 2),
    };
    let disk = SimDisk::new(1);
    let dir = Path::new("/data/state");
    disk.create_dir_all(dir).expect("the disk is good");
    let put = |name: &str, generation, bytes: &[u8]| {
        let bytes = match how & 1 {
            0 => bytes.to_vec(),
            _ => state_file(bytes, generation),
        };
        let file = disk
            .open(&dir.join(name), OpenHow::Create)
            .expect("the disk is good");
        file.write_at(0, &[IoSlice::new(&bytes)])
            .expect("the disk is good");
    };
    put("00000000000000000001.snapshot", 1, snapshot);
    put("00000000000000000001.journal", 1, journal);
    if how & 2 != 0 {
        put("00000000000000000002.snapshot", 2, second);
    }
    let before = contents(&disk);
    let mut problems: Vec<Problem> = Vec::new();
    let looked = read_state(&disk, Path::new("/data"), &mut problems).expect("the disk is good");
    assert!(contents(&disk) == before, "looking changes nothing");
    let shared: Arc<dyn Disk> = Arc::new(disk.clone());
    let opened = match StateFile::open(shared.clone(), dir) {
        Ok(opened) => opened,
        Err(StateError::Damaged { .. }) => {
            assert!(contents(&disk) == before, "a refusal changes nothing");
            assert!(
                problems
                    .iter()
                    .any(|problem| problem.severity == Severity::Damage)
            );
            return;
        }
        Err(e) => panic!("{e}"),
    };
    let state = opened.state();
    assert_eq!(looked.as_ref(), Some(&state));
    drop(opened);
    disk.kill();
    let again = StateFile::open(shared, dir).expect("what was opened opens again");
    assert_eq!(again.state(), state);
}

fn contents(disk: &SimDisk) -> BTreeMap<PathBuf, Vec<u8>> {
    let files = disk.files().into_iter();
    files
        .map(|path| (path.clone(), disk.contents(&path)))
        .collect()
}

//! What power loss and kills do to bytes, lengths, names, handles and locks.

mod common;

use std::collections::BTreeSet;
use std::io::IoSlice;
use std::path::Path;

use common::{contents, create, create_durable, disk, image, names, write};
use tidelog_disk::{Disk, DiskFile, OpenHow};
use tidelog_sim::{FailMode, InjectedError, OpFilter, SECTOR_BYTES, SimDisk, SimRng};

const SECTOR: usize = 512;

/// What a run leaves after each of many power losses.
fn crashes(disk: &SimDisk, path: &str) -> Vec<Vec<u8>> {
    let after = |seed| {
        let disk = disk.fork(seed);
        disk.crash();
        contents(&disk, path)
    };
    (0..300).map(after).collect()
}

#[test]
fn a_sector_is_what_a_sector_is() {
    assert_eq!(SECTOR_BYTES, SECTOR as u64);
}

#[test]
fn unsynced_bytes_are_lost_or_kept_or_torn() {
    let disk = disk(1);
    let file = create_durable(&disk, "/d/f", &[1; 8 * SECTOR]);
    write(&*file, 0, &[2; 8 * SECTOR]).unwrap();
    let after = crashes(&disk, "/d/f");

    let mut torn = BTreeSet::new();
    for bytes in &after {
        let sectors: Vec<u8> = bytes.chunks(SECTOR).map(|sector| sector[0]).collect();
        assert!(
            bytes
                .chunks(SECTOR)
                .all(|sector| sector.iter().all(|b| *b == sector[0]))
        );
        assert_eq!(sectors.len(), 8);
        torn.insert(sectors);
    }
    assert!(torn.contains(&vec![1; 8]), "all lost for some seed");
    assert!(torn.contains(&vec![2; 8]), "all kept for some seed");
    let out_of_order = |sectors: &&Vec<u8>| sectors.is_sorted() && sectors[0] != sectors[7];
    assert!(
        torn.iter().any(|sectors| out_of_order(&sectors)),
        "a later one without an earlier"
    );
    assert!(torn.len() > 50, "and many mixtures: {}", torn.len());
}

#[test]
fn synced_bytes_stay() {
    let disk = disk(2);
    let file = create_durable(&disk, "/d/f", &[1; 3000]);
    write(&*file, 100, &[2; 5000]).unwrap();
    file.sync_data().unwrap();
    let expected = contents(&disk, "/d/f");
    write(&*file, 100, &[2; 5000]).unwrap();
    for bytes in crashes(&disk, "/d/f") {
        assert!(
            bytes == expected,
            "identical bytes over durable ones change nothing"
        );
    }
}

#[test]
fn a_length_is_kept_or_lost_whatever_happens_to_the_bytes() {
    let disk = disk(3);
    let file = create_durable(&disk, "/d/f", &[1; 100]);
    write(&*file, 100, &[2; 924]).unwrap();
    let after: BTreeSet<Vec<u8>> = crashes(&disk, "/d/f").into_iter().collect();
    let with = |parts: &[(u8, usize)]| -> Vec<u8> {
        parts
            .iter()
            .flat_map(|(byte, count)| vec![*byte; *count])
            .collect()
    };
    let expected = [
        with(&[(1, 100)]),
        with(&[(1, 100), (2, 924)]),
        with(&[(1, 100), (2, 412), (0, 512)]),
        with(&[(1, 100), (0, 412), (2, 512)]),
        with(&[(1, 100), (0, 924)]),
    ];
    assert_eq!(after, BTreeSet::from(expected));
}

#[test]
fn a_cut_is_kept_or_lost() {
    let disk = disk(4);
    let file = create_durable(&disk, "/d/f", &[1; 2000]);
    file.set_len(700).unwrap();
    let lengths: BTreeSet<usize> = crashes(&disk, "/d/f").iter().map(Vec::len).collect();
    assert_eq!(lengths, BTreeSet::from([700, 2000]));
    file.sync_data().unwrap();
    let lengths: BTreeSet<usize> = crashes(&disk, "/d/f").iter().map(Vec::len).collect();
    assert_eq!(lengths, BTreeSet::from([700]));
}

#[test]
fn reserved_space_is_kept_or_lost() {
    let disk = disk(5);
    let file = create_durable(&disk, "/d/f", b"abc");
    file.reserve(1 << 20).unwrap();
    let lengths: BTreeSet<usize> = crashes(&disk, "/d/f").iter().map(Vec::len).collect();
    assert_eq!(lengths, BTreeSet::from([3, 1 << 20]));
}

/// Against a plain model: per sector, every content it had since the last sync.
#[test]
fn every_sector_shows_something_it_once_held() {
    for seed in 0..200 {
        let mut rng = SimRng::new(seed);
        let disk = disk(seed);
        let file = create_durable(&disk, "/d/f", &[0; 16 * SECTOR]);
        let mut now = vec![0_u8; 16 * SECTOR];
        let mut had: Vec<BTreeSet<Vec<u8>>> = now
            .chunks(SECTOR)
            .map(|sector| BTreeSet::from([sector.to_vec()]))
            .collect();
        for step in 0..40 {
            if rng.chance(10) {
                file.sync_data().unwrap();
                had.iter_mut().for_each(BTreeSet::clear);
            } else {
                let start = rng.index(now.len());
                let end = now.len().min(start + 1 + rng.index(3 * SECTOR));
                now[start..end].fill(step);
                write(&*file, start as u64, &now[start..end]).unwrap();
            }
            for (had, sector) in had.iter_mut().zip(now.chunks(SECTOR)) {
                had.insert(sector.to_vec());
            }
        }
        assert!(contents(&disk, "/d/f") == now);
        disk.crash();
        let after = contents(&disk, "/d/f");
        assert_eq!(after.len(), now.len());
        for (n, (had, sector)) in had.iter().zip(after.chunks(SECTOR)).enumerate() {
            assert!(
                had.contains(sector),
                "seed {seed}: sector {n} never held what it shows"
            );
        }
        assert!(disk.durable_contents(Path::new("/d/f")) == after);
    }
}

fn crashed_names(disk: &SimDisk) -> BTreeSet<String> {
    let after = |seed| {
        let disk = disk.fork(seed);
        disk.crash();
        names(&disk).join(" ")
    };
    (0..300).map(after).collect()
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn an_unsynced_name_may_vanish_with_its_synced_bytes() {
    let disk = disk(6);
    let file = create(&disk, "/d/f");
    write(&*file, 0, b"abc").unwrap();
    file.sync_data().unwrap();
    assert_eq!(crashed_names(&disk), set(&["", "/d/f"]));
    disk.sync_dir(Path::new("/d")).unwrap();
    assert_eq!(crashed_names(&disk), set(&["/d/f"]));
    assert!(crashes(&disk, "/d/f").iter().all(|bytes| bytes == b"abc"));
}

#[test]
fn an_unsynced_rename_may_be_lost() {
    let disk = disk(7);
    create_durable(&disk, "/d/new", b"new");
    create_durable(&disk, "/d/old", b"old");
    disk.rename(Path::new("/d/new"), Path::new("/d/old"))
        .unwrap();
    assert_eq!(crashed_names(&disk), set(&["/d/new /d/old", "/d/old"]));
    let seen: BTreeSet<Vec<u8>> = crashes(&disk, "/d/old").into_iter().collect();
    assert_eq!(seen, BTreeSet::from([b"new".to_vec(), b"old".to_vec()]));
    disk.sync_dir(Path::new("/d")).unwrap();
    assert!(crashes(&disk, "/d/old").iter().all(|bytes| bytes == b"new"));
}

#[test]
fn an_unsynced_removal_may_be_lost() {
    let disk = disk(8);
    create_durable(&disk, "/d/f", b"abc");
    disk.remove_file(Path::new("/d/f")).unwrap();
    assert_eq!(crashed_names(&disk), set(&["", "/d/f"]));
    disk.sync_dir(Path::new("/d")).unwrap();
    assert_eq!(crashed_names(&disk), set(&[""]));
}

#[test]
fn names_in_an_unsynced_directory_vanish_with_it() {
    let disk = disk(9);
    disk.create_dir_all(Path::new("/d/sub")).unwrap();
    create_durable(&disk, "/d/sub/f", b"abc");
    assert_eq!(crashed_names(&disk), set(&["", "/d/sub/f"]));
    disk.sync_dir(Path::new("/d")).unwrap();
    assert_eq!(crashed_names(&disk), set(&["/d/sub/f"]));
}

#[test]
fn a_kill_loses_nothing() {
    let disk = disk(10);
    let file = create(&disk, "/d/f");
    write(&*file, 0, &[1; 5000]).unwrap();
    disk.rename(Path::new("/d/f"), Path::new("/d/g")).unwrap();
    let lock = disk.lock(Path::new("/d/lock")).unwrap();
    let before = image(&disk);
    disk.kill();
    assert_eq!(image(&disk), before);
    assert_handle_is_dead(&*file);

    let new_lock = disk
        .lock(Path::new("/d/lock"))
        .expect("the lock died with its process");
    drop(lock);
    assert!(
        disk.lock(Path::new("/d/lock")).is_err(),
        "the dead one's guard frees nothing"
    );
    drop(new_lock);

    // What the dead process wrote is still unsynced.
    assert!(crashed_names(&disk).contains(""));
}

#[test]
fn a_crash_ends_handles_and_locks() {
    let disk = disk(11);
    let file = create_durable(&disk, "/d/f", &[1; 100]);
    file.freeze(100);
    file.map(100).unwrap();
    let slice = file.slice(0, 100).unwrap();
    let _lock = disk.lock(Path::new("/d/lock")).unwrap();
    disk.sync_all();
    disk.crash();
    assert_handle_is_dead(&*file);
    assert_eq!(file.slice(0, 100), None);
    assert_eq!(slice, vec![1; 100]);
    assert_eq!(contents(&disk, "/d/f"), vec![1; 100]);
    disk.lock(Path::new("/d/lock"))
        .expect("the lock died with its process");
    disk.open(Path::new("/d/f"), OpenHow::Write)
        .expect("the next life opens it anew");
}

fn assert_handle_is_dead(file: &dyn DiskFile) {
    assert!(file.len().is_err());
    assert!(file.read_at(0, &mut [0]).is_err());
    assert!(file.write_at(1 << 20, &[IoSlice::new(b"zombie")]).is_err());
    assert!(file.sync_data().is_err());
    assert!(file.set_len(1 << 20).is_err());
    assert!(file.reserve(1 << 20).is_err());
}

/// A long run of everything, failures and crashes included.
fn busy_run(seed: u64) -> SimDisk {
    let disk = disk(seed);
    let mut rng = SimRng::new(1000 + seed % 2);
    for _ in 0..3 {
        disk.fail_nth(
            OpFilter::mutating(),
            7,
            InjectedError::Io,
            FailMode::Forever,
        );
        disk.set_free_bytes(Some(20_000));
        for n in 0..60_u8 {
            let path = format!("/d/{}", rng.below(5));
            let other = format!("/d/{}", rng.below(5));
            if n == 20 {
                disk.stop_failing();
            }
            let Ok(file) = disk.open(Path::new(&path), OpenHow::Create) else {
                continue;
            };
            // Whether each goes well is the disk's to decide.
            match rng.below(6) {
                0 => file.sync_data().ok(),
                1 => file.set_len(rng.below(3000)).ok(),
                2 => disk.rename(Path::new(&path), Path::new(&other)).ok(),
                3 => disk.sync_dir(Path::new("/d")).ok(),
                _ => write(&*file, rng.below(2000), &vec![n; rng.index(3000)]).ok(),
            };
        }
        disk.crash();
    }
    disk
}

#[test]
fn the_same_seed_and_calls_give_the_same_disk() {
    let mut seen = BTreeSet::new();
    for seed in 0..20 {
        let left = image(&busy_run(seed));
        assert!(left == image(&busy_run(seed)), "seed {seed}");
        seen.insert(left);
    }
    assert!(
        seen.len() > 10,
        "different seeds give different disks: {}",
        seen.len()
    );
}

/// Writes `bytes` as the contents of `/d/f`, by the careful way: all of it or nothing.
fn replace(disk: &SimDisk, bytes: &[u8], is_careful: bool) -> Result<(), tidelog_disk::DiskError> {
    let temporary = Path::new("/d/f.new");
    let file = disk.open(temporary, OpenHow::Create)?;
    file.set_len(0)?;
    write(&*file, 0, bytes)?;
    if is_careful {
        file.sync_data()?;
    }
    disk.rename(temporary, Path::new("/d/f"))?;
    disk.sync_dir(Path::new("/d"))
}

/// Fails each call in turn, loses power, and says whether the file was ever anything but whole.
fn ever_broken(is_careful: bool) -> bool {
    let (old, new) = (vec![1; 2000], vec![2; 3000]);
    let mut is_broken = false;
    for seed in 0..40 {
        for nth in 1.. {
            let disk = disk(seed);
            create_durable(&disk, "/d/f", &old);
            disk.fail_nth(OpFilter::mutating(), nth, InjectedError::Io, FailMode::Once);
            let failures = disk.failures();
            let result = replace(&disk, &new, is_careful);
            let was_touched = disk.failures() > failures;
            assert_eq!(result.is_err(), was_touched);
            disk.crash();
            let left = contents(&disk, "/d/f");
            is_broken |= left != new && (left != old || !was_touched);
            if !was_touched {
                break;
            }
        }
    }
    is_broken
}

#[test]
fn the_careful_replacement_holds_and_the_careless_one_is_caught() {
    assert!(!ever_broken(true));
    assert!(ever_broken(false));
}

//! Calls that fail, disks that are full, and damage from outside.

mod common;

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::Path;

use common::{contents, create, create_durable, disk, names, write};
use tidelog_disk::{Disk, DiskOp, OpenHow};
use tidelog_sim::{Astray, FailMode, InjectedError, OpFilter, SimDisk};

#[test]
fn a_failed_sync_loses_bytes_that_no_later_sync_saves() {
    let mut lost = BTreeSet::new();
    for seed in 0..200 {
        let disk = disk(seed);
        let file = create_durable(&disk, "/d/f", &[1; 2048]);
        write(&*file, 0, &[2; 2048]).unwrap();
        disk.fail_nth(
            OpFilter::op(DiskOp::Sync),
            1,
            InjectedError::Io,
            FailMode::Once,
        );
        let failed = file.sync_data().unwrap_err();
        assert_eq!(
            (failed.op, failed.source.raw_os_error()),
            (DiskOp::Sync, Some(5))
        );
        assert_eq!(
            contents(&disk, "/d/f"),
            vec![2; 2048],
            "the page cache still shows them"
        );
        file.sync_data().expect("the next one finds nothing to do");

        let cold = disk.fork(seed);
        cold.drop_caches();
        disk.crash();
        let left = contents(&disk, "/d/f");
        assert_eq!(
            contents(&cold, "/d/f"),
            left,
            "pages read anew show what is really there"
        );
        lost.insert(left.iter().filter(|b| **b == 1).count());
    }
    assert_eq!(lost, BTreeSet::from([0, 512, 1024, 1536, 2048]));
}

#[test]
fn bytes_lost_by_a_failed_sync_are_saved_by_writing_them_again() {
    for seed in 0..50 {
        let disk = disk(seed);
        let file = create_durable(&disk, "/d/f", &[1; 2048]);
        write(&*file, 0, &[2; 2048]).unwrap();
        disk.fail_nth(
            OpFilter::op(DiskOp::Sync),
            1,
            InjectedError::Io,
            FailMode::Once,
        );
        file.sync_data().unwrap_err();
        write(&*file, 0, &[2; 2048]).unwrap();
        file.sync_data().unwrap();
        disk.crash();
        assert_eq!(contents(&disk, "/d/f"), vec![2; 2048]);
    }
}

#[test]
fn a_failed_write_has_written_any_part() {
    let mut seen = BTreeSet::new();
    for seed in 0..300 {
        let disk = disk(seed);
        let file = create_durable(&disk, "/d/f", &[1; 4096]);
        disk.fail_nth(
            OpFilter::op(DiskOp::Write),
            1,
            InjectedError::Io,
            FailMode::Once,
        );
        write(&*file, 0, &[2; 4096]).unwrap_err();
        let sectors = contents(&disk, "/d/f")
            .chunks(512)
            .map(|s| s[0])
            .collect::<Vec<_>>();
        seen.insert(sectors);
    }
    assert!(seen.contains(&vec![1; 8]));
    assert!(
        seen.iter()
            .any(|s| s.is_sorted_by(|a, b| a >= b) && s[0] == 2 && s[7] == 1)
    );
    assert!(
        seen.iter().any(|s| !s.is_sorted_by(|a, b| a >= b)),
        "not only prefixes"
    );
}

#[test]
fn other_failed_changes_may_have_happened() {
    let mut seen = BTreeSet::new();
    for seed in 0..50 {
        let disk = disk(seed);
        create_durable(&disk, "/d/f", b"abc");
        disk.fail_nth(
            OpFilter::op(DiskOp::Rename),
            1,
            InjectedError::Io,
            FailMode::Once,
        );
        disk.rename(Path::new("/d/f"), Path::new("/d/g"))
            .unwrap_err();
        seen.insert(names(&disk));
    }
    assert_eq!(seen.len(), 2, "{seen:?}");
}

#[test]
fn a_failed_directory_sync_may_have_done_a_part() {
    let mut seen = BTreeSet::new();
    for seed in 0..200 {
        let disk = disk(seed);
        create(&disk, "/d/a");
        create(&disk, "/d/b");
        disk.fail_nth(
            OpFilter::op(DiskOp::SyncDir),
            1,
            InjectedError::Io,
            FailMode::Once,
        );
        disk.sync_dir(Path::new("/d")).unwrap_err();
        assert_eq!(names(&disk).len(), 2);
        disk.crash();
        seen.insert(names(&disk).concat());
    }
    assert_eq!(seen.len(), 4, "{seen:?}");
}

#[test]
fn the_nth_call_fails_and_no_other() {
    let disk = disk(1);
    let file = create(&disk, "/d/f");
    disk.fail_nth(
        OpFilter::op(DiskOp::Write),
        3,
        ErrorKind::TimedOut,
        FailMode::Once,
    );
    for n in 1..=6 {
        let result = write(&*file, 0, b"abc");
        assert_eq!(result.is_err(), n == 3, "write {n}");
        if let Err(failed) = result {
            assert_eq!(failed.source.kind(), ErrorKind::TimedOut);
        }
    }
    assert_eq!(disk.failures(), 1);

    disk.fail_nth(
        OpFilter::op(DiskOp::Read),
        2,
        InjectedError::Io,
        FailMode::Forever,
    );
    for n in 1..=4 {
        assert_eq!(file.read_at(0, &mut [0]).is_err(), n >= 2, "read {n}");
    }
    disk.stop_failing();
    file.read_at(0, &mut [0]).unwrap();
}

#[test]
fn filters_take_what_they_say() {
    let disk = disk(2);
    let (one, two) = (create(&disk, "/d/one.log"), create(&disk, "/d/two.index"));
    let filter = OpFilter::ops(&[DiskOp::Write, DiskOp::Sync]).on(".index");
    disk.fail_nth(filter, 1, InjectedError::Full, FailMode::Forever);
    write(&*one, 0, b"abc").unwrap();
    one.sync_data().unwrap();
    two.set_len(0).unwrap();
    assert!(write(&*two, 0, b"abc").unwrap_err().is_full());
    assert!(two.sync_data().unwrap_err().is_full());
    disk.stop_failing();

    disk.fail_nth(
        OpFilter::mutating(),
        1,
        InjectedError::OutOfFiles,
        FailMode::Forever,
    );
    one.read_at(0, &mut [0]).unwrap();
    one.len().unwrap();
    disk.list(Path::new("/d")).unwrap();
    let path = Path::new("/d/one.log");
    disk.open(path, OpenHow::Read).unwrap();
    assert!(
        disk.open(path, OpenHow::Create)
            .unwrap_err()
            .is_out_of_files()
    );
    disk.lock(Path::new("/d/lock")).unwrap_err();
    disk.stop_failing();
    disk.lock(Path::new("/d/lock"))
        .expect("a failed lock call left none held");

    disk.fail_nth(OpFilter::any(), 1, InjectedError::Io, FailMode::Forever);
    one.len().unwrap_err();
    one.map(10).unwrap_err();
    disk.list(Path::new("/d")).unwrap_err();
}

#[test]
fn calls_are_counted() {
    let disk = disk(3);
    let (io, calls) = (disk.io_count(), disk.call_count());
    let file = create(&disk, "/d/f");
    write(&*file, 0, b"abc").unwrap();
    file.sync_data().unwrap();
    file.len().unwrap();
    file.read_at(0, &mut [0]).unwrap();
    disk.sync_dir(Path::new("/d")).unwrap();
    disk.contents(Path::new("/d/f"));
    assert_eq!((disk.io_count() - io, disk.call_count() - calls), (4, 6));
}

#[test]
fn a_full_disk_refuses_writes_until_space_comes_back() {
    let disk = disk(4);
    let dir = Path::new("/d");
    disk.set_free_bytes(Some(4096));
    let file = create(&disk, "/d/f");
    write(&*file, 0, &[1; 1000]).unwrap();
    assert_eq!(disk.free_bytes(dir).unwrap(), 3072);
    write(&*file, 500, &[1; 524]).unwrap();
    assert_eq!(
        disk.free_bytes(dir).unwrap(),
        3072,
        "bytes over bytes take no space"
    );

    let failed = write(&*file, 1024, &[2; 4000]).unwrap_err();
    assert!(failed.is_full());
    file.set_len(1024).unwrap();
    assert_eq!(
        disk.free_bytes(dir).unwrap(),
        3072,
        "a cut gives back what had landed"
    );
    assert!(file.reserve(8192).unwrap_err().is_full());
    file.set_len(1024).unwrap();
    file.reserve(4096).unwrap();
    assert_eq!(disk.free_bytes(dir).unwrap(), 0);
    write(&*file, 1024, &[3; 3072]).expect("reserved space is there");
    assert!(write(&*file, 4096, b"x").unwrap_err().is_full());

    file.set_len(600).unwrap();
    assert_eq!(
        disk.free_bytes(dir).unwrap(),
        3072,
        "a cut gives back reserved space too"
    );
    write(&*file, 600, &[3; 1000]).unwrap();
    assert_eq!(
        disk.free_bytes(dir).unwrap(),
        2048,
        "and it must be taken again"
    );

    disk.remove_file(Path::new("/d/f")).unwrap();
    assert_eq!(disk.free_bytes(dir).unwrap(), 4096);
    let other = create(&disk, "/d/g");
    write(&*other, 0, &[4; 4096]).unwrap();
    disk.set_free_bytes(None);
    write(&*other, 4096, &[4; 1 << 20]).unwrap();
}

#[test]
fn space_is_counted_anew_after_a_crash() {
    for seed in 0..50 {
        let disk = disk(seed);
        disk.set_free_bytes(Some(10 * 512));
        let file = create_durable(&disk, "/d/f", &[1; 512]);
        write(&*file, 512, &[1; 1024]).unwrap();
        create_durable(&disk, "/d/g", &[1; 1024]);
        disk.remove_file(Path::new("/d/g")).unwrap();
        disk.crash();
        let left = names(&disk);
        let sectors = left.iter().map(|path| {
            contents(&disk, path)
                .chunks(512)
                .filter(|sector| sector[0] == 1)
                .count()
        });
        let used = 512 * sectors.sum::<usize>() as u64;
        assert_eq!(
            disk.free_bytes(Path::new("/d")).unwrap(),
            5120 - used,
            "seed {seed}"
        );
    }
}

#[test]
fn damage_is_durable_and_seen_at_once() {
    let disk = disk(5);
    let path = Path::new("/d/f");
    create_durable(&disk, "/d/f", &[0; 2000]);
    disk.flip_bit(path, 1999, 7);
    disk.flip_bit(path, 3, 0);
    disk.overwrite(path, 600, b"misdirected");
    disk.corrupt_sector(path, 1100);
    let damaged = contents(&disk, "/d/f");
    assert_eq!(
        (damaged[1999], damaged[3], &damaged[600..611]),
        (128, 1, &b"misdirected"[..])
    );
    assert_eq!(damaged[611..1024], [0; 413]);
    assert_ne!(damaged[1024..1536], [0; 512]);
    assert_eq!(damaged[1536..1999], [0; 463]);
    disk.crash();
    assert_eq!(contents(&disk, "/d/f"), damaged);

    disk.truncate_file(path, 700);
    disk.crash();
    assert_eq!(contents(&disk, "/d/f"), damaged[..700]);
    disk.remove(path);
    disk.crash();
    assert_eq!(names(&disk), Vec::<String>::new());
}

#[test]
fn damage_to_unsynced_bytes_is_kept_with_them() {
    let disk = disk(6);
    let file = create(&disk, "/d/f");
    write(&*file, 0, &[1; 512]).unwrap();
    disk.flip_bit(Path::new("/d/f"), 0, 1);
    file.sync_data().unwrap();
    disk.sync_dir(Path::new("/d")).unwrap();
    disk.crash();
    assert_eq!(contents(&disk, "/d/f")[..2], [3, 1]);
}

#[test]
#[should_panic(expected = "SIGBUS")]
fn a_slice_beyond_a_file_that_someone_cut_is_the_end() {
    let disk = disk(7);
    let file = create_durable(&disk, "/d/f", &[1; 100]);
    file.map(100).unwrap();
    file.freeze(100);
    disk.truncate_file(Path::new("/d/f"), 50);
    file.slice(40, 20);
}

#[test]
fn files_without_names_are_forgotten_once_closed() {
    let disk = disk(8);
    let file = create_durable(&disk, "/d/f", &[1; 100]);
    disk.remove_file(Path::new("/d/f")).unwrap();
    disk.sync_dir(Path::new("/d")).unwrap();
    assert!(
        format!("{disk:?}").contains("files: 1"),
        "it is open: {disk:?}"
    );
    drop(file);
    disk.sync_dir(Path::new("/d")).unwrap();
    assert!(format!("{disk:?}").contains("files: 0"), "{disk:?}");
}

#[test]
fn a_call_that_hangs_goes_on_where_it_was() {
    let disk = SimDisk::new(1);
    let dir = Path::new("/d");
    disk.create_dir_all(dir).unwrap();
    let file = disk.open(&dir.join("f"), OpenHow::CreateNew).unwrap();
    let hang = disk.hang(OpFilter::op(DiskOp::Sync).on("f"));
    std::thread::scope(|scope| {
        let sync = scope.spawn(|| file.sync_data());
        hang.wait_until_one_hangs();
        // Other calls go on meanwhile.
        write(&*file, 0, b"x").unwrap();
        assert!(!sync.is_finished());
        drop(hang);
        sync.join().unwrap().unwrap();
    });
    let hang = disk.hang(OpFilter::op(DiskOp::Sync));
    std::thread::scope(|scope| {
        let sync = scope.spawn(|| file.sync_data());
        hang.wait_until_one_hangs();
        disk.kill();
        sync.join().unwrap().unwrap_err();
    });
}

#[test]
fn a_short_write_has_written_less_than_all_from_the_front() {
    let mut seen = BTreeSet::new();
    for seed in 0..300 {
        let disk = disk(seed);
        let file = create_durable(&disk, "/d/f", &[1; 10]);
        disk.fail_nth(
            OpFilter::op(DiskOp::Write),
            1,
            InjectedError::Short,
            FailMode::Once,
        );
        let failed = write(&*file, 0, &[2; 10]).unwrap_err();
        assert_eq!(failed.source.kind(), ErrorKind::WriteZero);
        let bytes = contents(&disk, "/d/f");
        assert!(bytes.is_sorted_by(|a, b| a >= b), "{bytes:?}");
        seen.insert(bytes.iter().filter(|byte| **byte == 2).count());
    }
    assert_eq!(seen, (0..10).collect(), "never all of it");
}

#[test]
fn a_misdirected_write_is_seen_where_it_belongs_and_lies_elsewhere() {
    let (f, g) = (Path::new("/d/f"), Path::new("/d/g"));
    for (to, path, at) in [
        (Astray::By(512), f, 1024),
        (Astray::By(-512), f, 0),
        (Astray::To(g.to_owned(), 100), g, 100),
    ] {
        let disk = disk(1);
        let file = create_durable(&disk, "/d/f", &[1; 2048]);
        create_durable(&disk, "/d/g", &[3; 400]);
        disk.misdirect_nth(OpFilter::op(DiskOp::Write).on("/f"), 2, to);
        write(&*file, 0, &[4; 512]).unwrap();
        write(&*file, 512, &[5; 512]).unwrap();
        write(&*file, 1024, &[6; 512]).unwrap();
        assert_eq!(contents(&disk, "/d/f")[512..1024], [5; 512]);
        file.sync_data().unwrap();
        disk.drop_caches();
        assert_eq!(
            contents(&disk, "/d/f")[512..1024],
            [1; 512],
            "what was there"
        );
        // What was written there later lies over it.
        let landed = disk.durable_contents(path);
        let fives = landed.iter().filter(|byte| **byte == 5).count();
        let expected = if path == g { 300 } else { 0 };
        assert_eq!(fives, expected);
        if path == g {
            assert_eq!(landed.len(), 400, "within the file");
            assert_eq!(landed[at..], [5; 300]);
        }
        assert_eq!(disk.failures(), 1);
    }
}

#[test]
fn a_misdirected_read_gives_other_bytes_once() {
    let disk = disk(1);
    let file = create_durable(&disk, "/d/f", &[[1; 512], [2; 512]].concat());
    create_durable(&disk, "/d/g", &[3; 100]);
    let read = || {
        let mut buf = [9; 512];
        let read = file.read_at(0, &mut buf).unwrap();
        (read, buf)
    };
    let reads = || OpFilter::op(DiskOp::Read);
    disk.misdirect_nth(reads(), 1, Astray::By(512));
    assert_eq!(read(), (512, [2; 512]));
    disk.misdirect_nth(reads(), 1, Astray::To("/d/g".into(), 0));
    let (len, bytes) = read();
    assert_eq!(
        (len, &bytes[..100], &bytes[100..]),
        (512, &[3; 100][..], &[0; 412][..])
    );
    assert_eq!(read(), (512, [1; 512]));
    disk.misdirect_nth(reads(), 1, Astray::By(512));
    disk.stop_failing();
    assert_eq!(read(), (512, [1; 512]));
}

#[test]
fn a_sync_of_the_file_system_is_one_of_all_files_and_fails_as_one() {
    let mut kept = BTreeSet::new();
    for seed in 0..50 {
        let disk = disk(seed);
        let file_system = disk.file_system(Path::new("/d")).unwrap().unwrap();
        let files: Vec<_> = ["/d/one", "/d/two"]
            .iter()
            .map(|path| create_durable(&disk, path, &[1; 1024]))
            .collect();
        let write_all = |byte| {
            for file in &files {
                write(&**file, 0, &[byte; 1024]).unwrap();
            }
        };
        write_all(2);
        file_system.sync().unwrap();
        write_all(3);
        let filter = OpFilter::op(DiskOp::SyncAll);
        disk.fail_nth(filter, 1, InjectedError::Io, FailMode::Once);
        let failed = file_system.sync().unwrap_err();
        assert_eq!(failed.op, DiskOp::SyncAll);
        // It finds all pages clean.
        file_system.sync().unwrap();
        disk.crash();
        for path in ["/d/one", "/d/two"] {
            let left = contents(&disk, path);
            assert!(left.iter().all(|byte| [2, 3].contains(byte)), "{left:?}");
            kept.insert(left.iter().filter(|byte| **byte == 3).count());
        }
        assert!(file_system.sync().is_err(), "its process is gone");
    }
    assert_eq!(kept, BTreeSet::from([0, 512, 1024]));
}

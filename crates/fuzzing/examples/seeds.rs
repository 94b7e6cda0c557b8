//! Writes the seeds of `fuzz/corpus`, made of the golden files of the formats and of a small log:
//! `cargo run -p tidelog-fuzzing --example seeds`. They are the same every time.

#![allow(
    clippy::unwrap_used,
    reason = "a program for developers, which fails by panicking"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tidelog_fuzzing::{IDENTITY, fuzz_dir};
use tidelog_log::{Log, LogOptions};
use tidelog_record::{
    BATCH_HEADER_LEN, BatchBuilder, BatchHeader, BatchLimits, Compression, LeaderEpoch, Offset,
    Timestamp, validate_produced,
};
use tidelog_sim::SimDisk;

fn main() {
    for (name, bytes) in goldens("record") {
        put("batch", &name, &bytes);
        if let Ok(header) = BatchHeader::decode(&bytes, usize::MAX)
            && let Ok(compression) = header.attributes.compression()
        {
            let kind = Compression::ALL
                .iter()
                .position(|c| *c == compression)
                .unwrap();
            let kind = u8::try_from(kind).unwrap();
            let count = u8::try_from(header.record_count.clamp(0, 255)).unwrap();
            let body = bytes.get(BATCH_HEADER_LEN..).unwrap_or_default();
            put("decompression", &name, &[&[kind, count][..], body].concat());
        }
    }
    for (name, bytes) in goldens("log") {
        match name.split('_').next().unwrap() {
            "index" => {
                let limit = (1_u64 << 20).to_be_bytes();
                put("index", &name, &[&limit[..], &bytes].concat());
            }
            "leader-epochs" => put("epochs", &name, &bytes),
            "producers" => put("producers", &name, &bytes),
            "state-snapshot" | "state-journal" => {}
            _ => {
                put("internal_entry", &name, &bytes);
                put("recovery", &name, &[&[0][..], &bytes].concat());
            }
        }
        // The content alone, for the decoder behind the checksum.
        if name.starts_with("segment-header") && bytes.len() > 89 {
            put("internal_entry", &format!("{name}_content"), &bytes[89..]);
        }
    }
    groups();
    states();
    logs();
}

/// Records of groups: the length of the key and whether there is a value, then both.
fn groups() {
    let dir = fuzz_dir().join("../crates/group/golden");
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        let mut parts = [Vec::new(), Vec::new()];
        let (mut part, mut has_value) = (0, false);
        for line in text.lines() {
            match line.trim() {
                "[key]" => part = 0,
                "[value]" => (part, has_value) = (1, true),
                _ => {
                    let hex = line
                        .split('#')
                        .next()
                        .unwrap_or_default()
                        .split_whitespace();
                    // Words stand for what has no bytes.
                    let bytes = hex.filter_map(|byte| u8::from_str_radix(byte, 16).ok());
                    parts[part].extend(bytes);
                }
            }
        }
        let [key, value] = parts;
        let head = [u8::try_from(key.len()).unwrap(), u8::from(has_value)];
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        put("group_record", &name, &[&head[..], &key, &value].concat());
    }
}

/// The golden files of a crate: their names and bytes.
fn goldens(of: &str) -> Vec<(String, Vec<u8>)> {
    let dir = fuzz_dir().join(format!("../crates/{of}/golden"));
    let mut paths: Vec<PathBuf> = fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    paths.sort();
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).unwrap();
        let bytes = text.lines().flat_map(|line| {
            let hex = line.split('#').next().unwrap_or_default();
            hex.split_whitespace()
                .map(|byte| u8::from_str_radix(byte, 16).unwrap())
        });
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        (name, bytes.collect())
    };
    paths.into_iter().map(read).collect()
}

fn put(target: &str, name: &str, bytes: &[u8]) {
    let dir = fuzz_dir().join("corpus").join(target);
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join(name), bytes).unwrap();
}

/// Snapshots and journals in each other's company, as records without their frames.
fn states() {
    let unframed = |bytes: &[u8]| {
        let mut records = Vec::new();
        let mut rest = bytes.get(8..).unwrap_or_default();
        while rest.len() > 8 {
            let len = u32::from_be_bytes(*rest.first_chunk().unwrap()) as usize;
            let Some(body) = rest.get(8..8 + len).filter(|body| !body.is_empty()) else {
                break;
            };
            records.extend_from_slice(&[body[0], u8::try_from(len - 1).unwrap()]);
            records.extend_from_slice(&body[1..]);
            rest = &rest[8 + len..];
        }
        records
    };
    let all = goldens("log");
    let of = |kind: &'static str| {
        let wanted = move |(name, _): &&(String, Vec<u8>)| name.starts_with(kind);
        all.iter().filter(wanted)
    };
    for (snapshot_name, snapshot) in of("state-snapshot") {
        for (journal_name, journal) in of("state-journal") {
            let (snapshot, journal) = (unframed(snapshot), unframed(journal));
            let len = u16::try_from(snapshot.len()).unwrap().to_be_bytes();
            for (how, second) in [(1, &[][..]), (3, &snapshot[..])] {
                let bytes = [&[how][..], &len, &snapshot, &journal, second].concat();
                let name = format!("{snapshot_name}-{journal_name}-{how}");
                put("state", &name, &bytes);
            }
        }
    }
}

/// The bytes of a small log behind its segment header.
fn logs() {
    let disk = SimDisk::new(1);
    let dir = Path::new("/t-0");
    let shared: Arc<dyn tidelog_disk::Disk> = Arc::new(disk.clone());
    let now = Timestamp::from_millis(0);
    let mut log = Log::create(shared, dir, IDENTITY, LogOptions::default(), now).unwrap();
    let start = log.end().position as usize;
    log.begin_epoch(LeaderEpoch::new(6).unwrap()).unwrap();
    for (number, compression) in (1_i64..).zip(Compression::ALL) {
        let mut builder = BatchBuilder::new(compression);
        for record in 0..number {
            let value = b"some value, some value";
            let at = Timestamp::from_millis(record);
            builder
                .push(at, Some(b"key"), Some(value), &[("h", None)])
                .unwrap();
        }
        let batch = validate_produced(builder.build().unwrap(), &BatchLimits::default()).unwrap();
        log.append(&mut [batch], now).unwrap();
    }
    log.begin_epoch(LeaderEpoch::new(9).unwrap()).unwrap();
    log.sync().unwrap();
    log.trim(Offset::new(1).unwrap(), Offset::new(5).unwrap())
        .unwrap();
    let len = log.end().position as usize;
    let bytes = disk.contents(&dir.join("00000000000000000000.log"));
    for how in [1_u8, 3, 5, 7, 13, 15] {
        let seed = [&[how][..], &bytes[start..len]].concat();
        put("recovery", &format!("log-{how}"), &seed);
        put(
            "recovery",
            &format!("log-{how}-reserved"),
            &[&seed[..], &[0; 100]].concat(),
        );
        put(
            "recovery",
            &format!("log-{how}-cut"),
            &seed[..seed.len() - 40],
        );
    }
    put("recovery", "whole-log", &[&[0][..], &bytes[..len]].concat());
}

//! What the docs name must exist.

#![allow(
    clippy::unwrap_used,
    unreachable_pub,
    reason = "a test program, which fails by panicking"
)]

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The tests that a row of the table of faults names, as path and function.
fn tests_of(row: &str) -> Vec<(&str, &str)> {
    let quoted = row.split('`').skip(1).step_by(2);
    quoted
        .filter_map(|named| {
            named
                .split_once(".rs: ")
                .map(|_| named.split_once(": ").unwrap())
        })
        .collect()
}

/// Every `path: function` of the table of faults is a test that exists.
#[test]
fn every_test_in_the_table_of_faults_exists() {
    let table = read(&root().join("docs/faults.md"));
    let mut rows = 0;
    for row in table.lines().filter(|line| line.starts_with("| ")) {
        let tests = tests_of(row);
        for (path, function) in &tests {
            let source = read(&root().join(path));
            let declared = source.find(&format!("fn {function}("));
            let declared = declared.unwrap_or_else(|| panic!("{path}: {function} does not exist"));
            let before = source[..declared].rsplit("\n\n").next().unwrap();
            let is_test = before.contains("#[test]") || before.contains("#[tokio::test");
            assert!(is_test, "{path}: {function} is no test");
        }
        rows += usize::from(!tests.is_empty());
    }
    assert!(rows >= 10, "the table has {rows} rows that name a test");
}

/// Each fault that is numbered has a row with a test, in the order of the numbers of its table, but for those
/// that the page says have none.
#[test]
fn every_numbered_fault_has_a_row_with_a_test() {
    let table = read(&root().join("docs/faults.md"));
    let mut found = Vec::new();
    for row in table.lines().filter(|line| line.starts_with("| ")) {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        let Ok(number) = cells[0].parse::<u32>() else {
            continue;
        };
        assert_eq!(cells.len(), 4, "{row}");
        assert!(!tests_of(cells[3]).is_empty(), "fault {number} has no test");
        found.push(number);
    }
    let disks = (1..=20).chain([41, 43]);
    let others = (21..=29).chain(31..=40).chain(45..=47).chain(49..=56);
    let expected: Vec<u32> = disks.chain(others).collect();
    assert_eq!(found, expected);
}

/// Every link from a page to a file of the repository leads somewhere.
#[test]
fn links_lead_to_files() {
    let mut pages = vec![root().join("README.md")];
    for dir in ["docs", "docs/decisions"] {
        let entries = fs::read_dir(root().join(dir)).unwrap();
        pages.extend(entries.map(|entry| entry.unwrap().path()));
    }
    pages.retain(|page| page.extension().is_some_and(|extension| extension == "md"));
    for page in pages {
        for link in read(&page).split("](").skip(1) {
            let link = link.split([')', '#']).next().unwrap();
            if link.is_empty() || link.contains("://") {
                continue;
            }
            let target = page.parent().unwrap().join(link);
            assert!(target.exists(), "{} links to {link}", page.display());
        }
    }
}

/// Every topic setting is in its page, with its default.
#[test]
fn every_topic_setting_is_documented() {
    let page = read(&root().join("docs/topic-settings.md"));
    for spec in tidelog_controller::setting_specs() {
        let row = page
            .lines()
            .find(|line| line.starts_with(&format!("| `{}` |", spec.name)));
        let row = row.unwrap_or_else(|| panic!("{} is not documented", spec.name));
        let default = row.split('|').nth(2).unwrap().trim().trim_matches('`');
        assert_eq!(default, spec.default, "{}", spec.name);
    }
}
